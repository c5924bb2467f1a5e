/** Commands with a model of the hub: what they fetch, what they print, what they record. */
import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, symlink } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { openHubModel } from "../../weights/hub.ts";
import { parseHubName } from "../../weights/hub-name.ts";
import {
  errorCodes,
  exampleLines,
  type Folder,
  jsonLines,
  lastJsonLine,
  startStratum,
  stratum,
  temporaryFolder,
  until,
  writeTinyTextModel,
} from "../support/cli.ts";
import { COMMIT, type HubServer, shardedFiles, shardName, startHub } from "../support/hub-server.ts";
import type { TinyModel } from "../support/tiny-model.ts";

const LAYERS = 4;
const NAME = `org/tiny@${COMMIT}`;
const [FIRST, SECOND] = [shardName(0, LAYERS), shardName(1, LAYERS)];
/** Whatever else the machine's owner has set. */
const VARIABLES = ["HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "XDG_CACHE_HOME"] as const;
const before = VARIABLES.map((name) => process.env[name]);

let tiny: TinyModel;
let files: ReadonlyMap<string, Uint8Array>;
let hub: HubServer;
let folder: Folder;
let lists: string;

beforeAll(async () => {
  tiny = await writeTinyTextModel({ layers: LAYERS });
  files = await shardedFiles(tiny.directory, LAYERS);
});
beforeEach(async () => {
  hub = await startHub(files);
  folder = await temporaryFolder();
  lists = await folder.write("lists.jsonl", `${exampleLines.slice(0, 6).join("\n")}\n`);
  for (const name of VARIABLES) delete process.env[name];
  process.env["HF_ENDPOINT"] = hub.endpoint;
  process.env["HF_HOME"] = join(folder.path, "hf");
});
afterEach(async () => {
  for (const [i, name] of VARIABLES.entries()) {
    if (before[i] === undefined) delete process.env[name];
    else process.env[name] = before[i];
  }
  await hub[Symbol.asyncDispose]();
  await folder[Symbol.asyncDispose]();
});
afterAll(() => tiny[Symbol.asyncDispose]());

const weightsFetched = () => hub.fetched().filter((name) => name.endsWith(".safetensors"));
const repository = () => join(folder.path, "hf", "hub", "models--org--tiny");

describe("rank", () => {
  it("fetches the shards below the layer, once, and ranks as with the folder; stdout is data alone", async () => {
    const flags = ["--layer", "1", "--json"];
    const local = await stratum(["rank", lists, "--model", tiny.directory, ...flags]);
    const run = await stratum(["rank", lists, "--model", "org/tiny", ...flags]);
    expect(errorCodes(run.stderr)).toEqual([]);
    expect([run.code, run.stdout]).toEqual([0, local.stdout]);
    expect(jsonLines(run.stdout)).toHaveLength(6);
    expect(weightsFetched()).toEqual([FIRST]);
    expect(lastJsonLine(run.stderr)).toMatchObject({ model: NAME, layer: 1 });
    expect(run.stderr).toMatch(`download ${NAME}: ${FIRST}, `);

    // Deeper: the next shard, and no byte of what is there.
    hub.forget();
    const deeper = await stratum(["rank", lists, "--model", "org/tiny", "--layer", "2"]);
    expect(deeper.code).toBe(0);
    expect(weightsFetched()).toEqual([SECOND]);

    hub.forget();
    process.env["HF_HUB_OFFLINE"] = "1";
    const offline = await stratum(["rank", lists, "--model", "org/tiny", ...flags]);
    expect([offline.code, offline.stdout, hub.requests]).toEqual([0, local.stdout, []]);
  });

  it("stopped in a download keeps what there is, and goes on from there", async () => {
    // The first request is for the header alone, and shorter.
    hub.fail("bytes", { kind: "stall", after: 300_000 }, { file: FIRST, times: 2 });
    const run = startStratum(["rank", lists, "--model", "org/tiny", "--layer", "1"]);
    run.child.stdin?.end();
    const blobs = join(repository(), "blobs");
    const part = await until(async () => {
      if (!existsSync(blobs)) return undefined;
      const name = (await readdir(blobs)).find((file) => file.endsWith(".incomplete"));
      return name !== undefined && (await readFile(join(blobs, name))).byteLength === 300_000 ? name : undefined;
    }, "a part of the first shard");
    run.child.kill("SIGINT");
    const { code, stdout, stderr } = await run.ended;
    expect([code, stdout, errorCodes(stderr)]).toEqual([130, "", []]);
    expect(stderr).toMatch("what was downloaded is kept");
    expect(await readdir(blobs)).toContain(part);

    hub.forget();
    const again = await stratum(["rank", lists, "--model", "org/tiny", "--layer", "1", "--quiet"]);
    expect(again.code).toBe(0);
    const shard = hub.requests.filter(({ route, file }) => route === "bytes" && file === FIRST);
    expect(shard.at(-1)!.range).toBe("bytes=300000-");
    expect(again.stderr).not.toMatch("download");
  });
});

it.each(["rank", "train"])("%s tells of a tokenizer that does not fit before a shard is fetched", async (command) => {
  const tokenizer = JSON.parse(Buffer.from(files.get("tokenizer.json")!).toString());
  tokenizer.model.vocab["beyond the embeddings"] = 4096;
  hub.files.set("tokenizer.json", Buffer.from(JSON.stringify(tokenizer)));
  const run = await stratum([
    command,
    lists,
    "--model",
    NAME,
    ...(command === "train" ? ["-o", join(folder.path, "scorer")] : []),
  ]);
  expect(run.code).toBe(2);
  expect(errorCodes(run.stderr)).toEqual(["tokenizer/mismatch"]);
  expect(weightsFetched()).toEqual([]);
});

describe("inspect and --dry-run", () => {
  it("look at headers and fetch no shard", async () => {
    const run = await stratum(["inspect", "org/tiny", "--json"]);
    const local = await stratum(["inspect", tiny.directory, "--json"]);
    expect([run.code, local.code]).toEqual([0, 0]);
    const [found, expected] = [JSON.parse(run.stdout), JSON.parse(local.stdout)] as Record<string, unknown>[];
    expect({ ...found, model: "" }).toEqual({ ...expected, model: "" });
    const dry = await stratum(["rank", lists, "--model", "org/tiny", "--dry-run", "--json"]);
    expect([dry.code, jsonLines(dry.stdout).length]).toEqual([0, 1]);
    expect((await readdir(join(repository(), "snapshots", COMMIT))).filter((file) => file.includes("-of-"))).toEqual(
      [],
    );
  });
});

/** A cache folder without features; adapters and compiled shaders are as before, or every run would make them again. */
async function borrowCaches(cache: string): Promise<void> {
  await mkdir(join(cache, "stratum"), { recursive: true });
  const own = join(homedir(), ".cache");
  const paths = (await readdir(own).catch(() => [])).filter((name) => name !== "stratum");
  const inside = (await readdir(join(own, "stratum")).catch(() => [])).filter((name) => name !== "features");
  for (const path of [...paths, ...inside.map((name) => join("stratum", name))]) {
    await symlink(join(own, path), join(cache, path));
  }
}

describe("train", () => {
  it("records the commit, finds its features again, and its scorer fits the folder of the same model", async () => {
    const cache = join(folder.path, "cache");
    await borrowCaches(cache);
    process.env["XDG_CACHE_HOME"] = cache;
    const scorer = join(folder.path, "scorer");
    const flags = ["--preset", "few-lists", "--steps", "2", "--no-validation", "--layer", "1"];
    const run = await stratum(["train", lists, "--model", "org/tiny", ...flags, "-o", scorer]);
    expect([errorCodes(run.stderr), run.code]).toEqual([[], 0]);
    const record = JSON.parse(await readFile(join(scorer, "scorer.json"), "utf8")) as { base_model: { name: string } };
    expect(record.base_model.name).toBe(NAME);
    // A shard more in the cache is no other model.
    await (await openHubModel(parseHubName(NAME)!)).fetch([SECOND]);
    const again = await stratum(["train", lists, "--model", "org/tiny", ...flags, "-o", `${scorer}2`]);
    expect(again.stderr).toMatch("features of layer 1 from the cache");
    const local = await stratum(["rank", lists, "--model", tiny.directory, "--scorer", scorer]);
    expect([local.code, jsonLines(local.stdout).length]).toEqual([0, 6]);
  });
});

describe("a name that cannot be had", () => {
  it.each([
    ["org/none", 2, "model/not-on-hub"],
    ["org/tiny@none", 2, "model/no-revision"],
    ["no/such/folder", 2, "model/missing"],
  ])("%s ends with %i, %s", async (model, code, error) => {
    const run = await stratum(["rank", lists, "--model", model]);
    expect([run.code, run.stdout, errorCodes(run.stderr)]).toEqual([code, "", [error]]);
    expect(run.stderr).toMatch(/^ {2}fix: /m);
  });

  it("gated: 2; a hub that is not there: 3", async () => {
    hub.fail("revision", { kind: "answer", status: 403, headers: { "x-error-code": "GatedRepo" } });
    const gated = await stratum(["rank", lists, "--model", "org/tiny"]);
    expect([gated.code, gated.stdout, errorCodes(gated.stderr)]).toEqual([2, "", ["model/gated"]]);
    expect(gated.stderr).toMatch("HF_TOKEN");
    await hub[Symbol.asyncDispose]();
    const gone = await stratum(["inspect", "org/tiny"]);
    expect([gone.code, gone.stdout, errorCodes(gone.stderr)]).toEqual([3, "", ["hub/unreachable"]]);
    hub = await startHub(files);
  });
});
