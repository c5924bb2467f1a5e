/** Models of the hub: what is fetched, where it lies, what is never asked for again. */
import { lstat, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { openModelFiles } from "../../engine/model-files.ts";
import { openCheckpoint } from "../../weights/checkpoint.ts";
import type { HubProgress } from "../../weights/hub.ts";
import { placeOfProcess } from "../../weights/process.ts";
import { randomCheckpoint } from "../../weights/random-checkpoint.ts";
import { failing } from "../support/failing.ts";
import { type HubPlace, hubPlace, LAYERS, tinyFiles } from "../support/hub.ts";
import { blobHash, COMMIT, shardName } from "../support/hub-server.ts";
import { writeTinyModel } from "../support/tiny-model.ts";

const OTHER_COMMIT = "f".repeat(40);
const SHARDS = Array.from({ length: LAYERS }, (_, i) => shardName(i, LAYERS));
const [FIRST, SECOND, LAST] = SHARDS as [string, string, string];
const INDEX = "model.safetensors.index.json";
const normOf = (layer: number) => `model.layers.${layer}.input_layernorm.weight`;
const EMBEDDING = "model.embed_tokens.weight";

/** `toEqual` looks at every byte on its own. */
const same = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0;

let files: ReadonlyMap<string, Uint8Array>;
let place: HubPlace;
beforeAll(async () => {
  files = await tinyFiles();
});
beforeEach(async () => {
  place = await hubPlace(files);
});
afterEach(() => place[Symbol.asyncDispose]());

/** Opens the model's checkpoint as a command does. */
async function openWeights(name?: string) {
  const model = await place.open(name);
  await model.fetchSmallFiles();
  return openCheckpoint(model.directory, model.remote);
}

describe("the cache", () => {
  it("gets Python's layout: refs, blobs by the hub's hash, relative links, marks of absence", async () => {
    const model = await place.open();
    await model.fetchSmallFiles();
    await model.fetch([FIRST]);
    expect(model).toMatchObject({ id: "org/tiny", revision: "main", commit: COMMIT, name: `org/tiny@${COMMIT}` });
    expect(model.directory).toBe(join(place.repository, "snapshots", COMMIT));
    expect(await readFile(join(place.repository, "refs", "main"), "utf8")).toBe(COMMIT);
    const here = ["config.json", FIRST, INDEX, "tokenizer_config.json"];
    const blobs = here.map((name) => blobHash(name, files.get(name)!));
    expect(await place.links()).toEqual(Object.fromEntries(here.map((name, i) => [name, `../../blobs/${blobs[i]}`])));
    expect((await readdir(join(place.repository, "blobs"))).sort()).toEqual([...blobs].sort());
    for (const name of here) expect(same(await readFile(join(model.directory, name)), files.get(name)!)).toBe(true);
    expect((await readdir(join(place.repository, ".no_exist", COMMIT))).sort()).toEqual(
      ["chat_template.jinja", "chat_template.json", "special_tokens_map.json", "tokenizer.json"].sort(),
    );
    expect(await readdir(join(place.cache, ".locks", "models--org--tiny"))).toEqual([]);
  });

  it("serves a second time: one request for the revision, none for bytes", async () => {
    await (await place.open()).fetchSmallFiles();
    place.hub.forget();
    const again = await place.open();
    await again.fetchSmallFiles();
    await again.fetch(["config.json"]);
    expect(place.hub.requests.map(({ route }) => route)).toEqual(["revision"]);
  });

  it("serves a commit without any request", async () => {
    await (await place.open()).fetchSmallFiles();
    place.hub.forget();
    const pinned = await place.open(`org/tiny@${COMMIT}`);
    await pinned.fetchSmallFiles();
    expect(place.hub.requests).toEqual([]);
  });

  it("serves what Python put there", async () => {
    const snapshot = join(place.repository, "snapshots", COMMIT);
    await mkdir(snapshot, { recursive: true });
    await mkdir(join(place.repository, "refs"));
    await writeFile(join(place.repository, "refs", "main"), COMMIT);
    for (const name of ["config.json", FIRST, INDEX]) await writeFile(join(snapshot, name), files.get(name)!);
    const model = await place.open(undefined, { offline: true });
    await model.fetchSmallFiles();
    await using checkpoint = await openCheckpoint(model.directory, model.remote);
    expect((await checkpoint.read(normOf(0))).byteLength).toBe(256);
    expect(place.hub.requests).toEqual([]);
    // Nobody looked for it: that it is not here does not say that the model has none.
    expect(place.notes).toEqual([expect.stringMatching("does not say whether .* has tokenizer.json, .*chat_template")]);
  });

  it("takes a new commit for a branch that moved, and only the bytes that are new", async () => {
    await (await place.open()).fetch([FIRST]);
    place.hub.forget();
    place.hub.commit = OTHER_COMMIT;
    place.hub.files.set("config.json", Buffer.from('{"model_type":"llama"}'));
    const moved = await place.open();
    await moved.fetch([FIRST]);
    expect(moved.commit).toBe(OTHER_COMMIT);
    expect(place.hub.fetched()).toEqual(["config.json"]);
    expect(same(await readFile(join(moved.directory, FIRST)), files.get(FIRST)!)).toBe(true);
    expect(await readFile(join(place.repository, "refs", "main"), "utf8")).toBe(OTHER_COMMIT);
    place.hub.forget();
    expect((await place.open(`org/tiny@${COMMIT}`)).commit).toBe(COMMIT);
    expect(place.hub.requests).toEqual([]);
  });

  it("mends a link whose blob is gone", async () => {
    const model = await place.open();
    await rm(join(place.repository, "blobs", blobHash("config.json", files.get("config.json")!)));
    await model.fetch(["config.json"]);
    expect(same(await readFile(join(model.directory, "config.json")), files.get("config.json")!)).toBe(true);
    expect((await lstat(join(model.directory, "config.json"))).isSymbolicLink()).toBe(true);
  });
});

describe("shards", () => {
  it("are fetched only where a tensor of them is read, and not for a look at the headers", async () => {
    await using checkpoint = await openWeights();
    place.hub.forget();
    expect([...checkpoint.names()]).toHaveLength(2 + 9 * LAYERS + 1);
    for (const name of checkpoint.names()) await checkpoint.info(name);
    const looks = place.hub.requests.filter(({ route }) => route === "bytes");
    expect(looks.map(({ file }) => file)).toEqual([FIRST, SECOND, LAST]);
    for (const { range } of looks) expect(range).toMatch(/^bytes=0-/);
    expect(Object.keys(await place.links())).toEqual(["config.json", INDEX, "tokenizer_config.json"]);

    place.hub.forget();
    await checkpoint.read(normOf(1));
    expect(place.hub.fetched()).toEqual([SECOND]);
    expect(await checkpoint.info(normOf(1))).toMatchObject({ shape: [64], byteLength: 256 });
    place.hub.forget();
    await checkpoint.readRows(EMBEDDING, [3]);
    expect(place.hub.fetched()).toEqual([FIRST]);
  });

  it("that are required come together, with a total, once", async () => {
    const seen: HubProgress[] = [];
    const model = await place.open(undefined, {}, { onProgress: (progress) => seen.push(progress) });
    await model.fetchSmallFiles();
    await using checkpoint = await openCheckpoint(model.directory, model.remote);
    place.hub.forget();
    seen.length = 0;
    const names = [EMBEDDING, normOf(0), normOf(1)];
    await Promise.all([checkpoint.require(names), checkpoint.read(normOf(0)), checkpoint.require(names)]);
    expect(place.hub.requests.filter(({ route }) => route === "bytes").map(({ file }) => file)).toEqual([
      FIRST,
      SECOND,
    ]);
    const totalAll = files.get(FIRST)!.byteLength + files.get(SECOND)!.byteLength;
    for (const progress of seen) expect(progress).toMatchObject({ files: [FIRST, SECOND], totalAll });
    expect(seen.at(-1)).toMatchObject({ file: SECOND, doneAll: totalAll });
    for (const [i, { doneAll }] of seen.entries()) expect(doneAll).toBeGreaterThanOrEqual(seen[i - 1]?.doneAll ?? 0);
  });

  it("are not fetched for random weights", async () => {
    await using checkpoint = randomCheckpoint(await openWeights(), 1);
    place.hub.forget();
    await checkpoint.require([normOf(0)]);
    await checkpoint.read(normOf(0));
    expect(place.hub.requests.filter(({ route }) => route === "bytes")).toMatchObject([
      { file: FIRST, range: expect.stringMatching("bytes=0-") },
    ]);
    expect(Object.keys(await place.links())).not.toContain(FIRST);
  });

  it("give the values of the same files in a folder", async () => {
    await using tiny = await writeTinyModel({ layers: LAYERS });
    await using local = await openCheckpoint(tiny.directory);
    await using checkpoint = await openWeights();
    expect(new Set(checkpoint.names())).toEqual(new Set(local.names()));
    for (const name of local.names()) {
      expect(await checkpoint.info(name)).toMatchObject({ shape: (await local.info(name)).shape });
      expect(same(await checkpoint.read(name), await local.read(name)), name).toBe(true);
    }
  });
});

describe("a model in one file", () => {
  beforeEach(async () => {
    await using tiny = await writeTinyModel({ layers: LAYERS });
    place.hub.files.clear();
    for (const name of ["config.json", "model.safetensors"]) {
      place.hub.files.set(name, await readFile(join(tiny.directory, name)));
    }
  });

  it("is looked at by its header, and fetched whole", async () => {
    await using checkpoint = await openWeights();
    await checkpoint.info(normOf(2));
    expect(Object.keys(await place.links())).toEqual(["config.json"]);
    await checkpoint.read(normOf(0));
    expect(Object.keys(await place.links())).toEqual(["config.json", "model.safetensors"]);
    place.hub.forget();
    await using again = await openWeights();
    await again.read(normOf(1));
    expect(place.hub.requests.map(({ route }) => route)).toEqual(["revision"]);
  });

  it("is preferred to shards, as transformers does", async () => {
    place.hub.files.set(INDEX, files.get(INDEX)!);
    await using checkpoint = await openWeights();
    await checkpoint.read(normOf(0));
    expect(Object.keys(await place.links())).toEqual(["config.json", "model.safetensors"]);
  });
});

describe("a repository without safetensors", () => {
  it.each([
    ["with a config.json", ["config.json", "pytorch_model.bin"]],
    ["without", ["model-Q4_K_M.gguf"]],
  ])("is refused by what it holds, %s", async (_, names) => {
    place.hub.files.clear();
    for (const name of names) place.hub.files.set(name, files.get(name) ?? Buffer.from("GGUF"));
    await expect(openWeights()).rejects.toThrow(failing("model/no-weights", names.at(-1)!, "org/tiny"));
    expect(place.hub.fetched()).not.toContain(names.at(-1));
  });
});

describe("without the hub", () => {
  it("offline, the cache serves; what it lacks is named", async () => {
    const online = await place.open();
    await online.fetchSmallFiles();
    await online.fetch([FIRST]);
    place.hub.forget();
    const model = await place.open(undefined, { offline: true });
    await model.fetchSmallFiles();
    await using checkpoint = await openCheckpoint(model.directory, model.remote);
    await checkpoint.require([EMBEDDING, normOf(0)]);
    expect((await checkpoint.read(normOf(0))).byteLength).toBe(256);
    await expect(checkpoint.require([normOf(2)])).rejects.toThrow(failing("hub/not-cached", LAST, "HF_HUB_OFFLINE"));
    await expect(checkpoint.read(normOf(1))).rejects.toThrow(failing("hub/not-cached", SECOND));
    await expect(checkpoint.info(normOf(1))).rejects.toThrow(failing("hub/not-cached", SECOND));
    expect([place.hub.requests, place.notes]).toEqual([[], []]);
  });

  it("offline, a model that was never fetched is an error", async () => {
    const opening = place.open(undefined, { offline: true });
    await expect(opening).rejects.toThrow(failing("hub/not-cached", "config.json", "org/tiny@main"));
  });

  it("unreachable, the cache serves with a note; what it lacks is an error with the reason", async () => {
    await (await place.open()).fetchSmallFiles();
    await place.hub[Symbol.asyncDispose]();
    const model = await place.open();
    await model.fetchSmallFiles();
    expect(place.notes).toEqual([expect.stringMatching(`cannot be reached.*ECONNREFUSED.*org/tiny@${COMMIT}`)]);
    await expect(model.fetch([FIRST])).rejects.toThrow(failing("hub/not-cached", FIRST, "ECONNREFUSED"));
  });

  it("unreachable and not in the cache, it says how", async () => {
    await place.hub[Symbol.asyncDispose]();
    await expect(place.open()).rejects.toThrow(failing("hub/unreachable", "127.0.0.1", "ECONNREFUSED"));
  });
});

describe("two at the same time", () => {
  it("fetch the same file once", async () => {
    const [a, b] = [await place.open(), await place.open()];
    place.hub.forget();
    await Promise.all([a.fetch([LAST]), b.fetch([LAST])]);
    expect(place.hub.requests.filter(({ route }) => route === "bytes")).toHaveLength(1);
    expect(same(await readFile(join(b.directory, LAST)), files.get(LAST)!)).toBe(true);
    expect(place.notes).toEqual([expect.stringMatching(`another process downloads ${LAST}`)]);
  });

  const lockOf = (name: string) =>
    join(place.cache, ".locks", "models--org--tiny", `${blobHash(name, files.get(name)!)}.stratum.lock`);

  it("take away a lock of a process that is gone", async () => {
    const model = await place.open();
    await mkdir(dirname(lockOf(LAST)), { recursive: true });
    await writeFile(lockOf(LAST), `4194305 ${hostname()} 0 ${placeOfProcess()} 1`);
    await model.fetch([LAST]);
    expect(place.notes).toEqual([]);
  });

  it("wait for one who lives, until they are told to stop", async () => {
    const stop = new AbortController();
    const model = await place.open(undefined, {}, { signal: stop.signal });
    await mkdir(dirname(lockOf(LAST)), { recursive: true });
    await writeFile(lockOf(LAST), "1 elsewhere 0");
    setTimeout(() => stop.abort(new Error("enough")), 100);
    await expect(model.fetch([LAST])).rejects.toThrow("enough");
    expect(await readFile(lockOf(LAST), "utf8")).toBe("1 elsewhere 0");
  });
});

describe("a model by its name", () => {
  it("opens as a folder does, and names its commit", async () => {
    await using opened = await openModelFiles("org/tiny", { settings: place.settings() });
    expect(opened).toMatchObject({ name: `org/tiny@${COMMIT}`, pinned: true, spec: { config: { layers: LAYERS } } });
    expect(opened.directory).toBe(join(place.repository, "snapshots", COMMIT));
  });

  it("is refused for its family before its tokenizer is fetched", async () => {
    place.hub.files.set("config.json", Buffer.from('{"model_type": "no-such"}'));
    place.hub.files.set("tokenizer.json", Buffer.from("{}"));
    const opening = openModelFiles("org/tiny", { settings: place.settings() });
    await expect(opening).rejects.toThrow(failing("config/unsupported-model", "no-such"));
    expect(place.hub.fetched()).toEqual(["config.json"]);
  });

  it("is not asked for where a folder has it", async () => {
    await using tiny = await writeTinyModel();
    await using opened = await openModelFiles(tiny.directory, { settings: place.settings() });
    expect(opened).toMatchObject({ name: tiny.directory, pinned: false });
    await expect(openModelFiles(join(tiny.directory, "nowhere"))).rejects.toThrow(failing("model/missing", "nowhere"));
    expect(place.hub.requests).toEqual([]);
  });
});
