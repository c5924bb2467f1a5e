/** Hidden states of shards, merged into what one run writes; without a model, with states that follow from the line. */
import { existsSync, mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { StratumError } from "../../errors.ts";
import type { ExtractedSequence } from "../../scorer/extract.ts";
import { readSequences, type SequenceLine } from "../../scorer/lists.ts";
import { openShards, shardFiles } from "../../scorer/merge.ts";
import { openMergedStates } from "../../scorer/merge-states.ts";
import { openStatesFile, type StatesRecord } from "../../scorer/resumable-states.ts";
import { outputFiles, writeManifest } from "../../scorer/shard-manifest.ts";
import { manifestPath, planShard, type Shard, shardPath } from "../../scorer/shards.ts";
import { openSafetensors } from "../../weights/safetensors.ts";
import { sealed } from "../../weights/seal.ts";
import { errorCodes, FEW_FILES, type Folder, stratum, temporaryFolder } from "../support/cli.ts";
import { failing } from "../support/failing.ts";
import { type Contents, contents, instantsOf, layOut } from "../support/instants.ts";

let folder: Folder;
let places = 0;
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());

const [K, D] = [2, 3];
const OUT = "st.safetensors";

/** A folder of a test's own. */
function newPlace(): string {
  const place = join(folder.path, `place-${++places}`);
  mkdirSync(place);
  return place;
}

/** Lists, texts, ids, blank lines, what is no line, ids that are used again, near and far, one of a line that is none. */
const TEXT = Array.from({ length: 120 }, (_, i) => {
  if (i % 23 === 5) return i % 2 === 0 ? "" : "  ";
  if (i % 31 === 7) return "{";
  if (i % 37 === 9) return "[]";
  const id =
    i % 20 === 11
      ? { id: "used" }
      : i === 3
        ? { id: "10" }
        : i % 17 === 4
          ? { id: `q${i - 1}` }
          : i % 5 === 0
            ? {}
            : { id: `q${i}` };
  if (i % 3 === 0) return JSON.stringify({ ...id, ids: Array.from({ length: 1 + (i % 7) }, (_, t) => t) });
  if (i % 3 === 1) return JSON.stringify({ ...id, text: "x".repeat(i % 60) });
  return JSON.stringify({ ...id, instruction: "é".repeat(i % 40), candidates: Array(1 + (i % 4)).fill("a") });
}).join("\n");

interface Layout {
  readonly tokens?: "last" | "all";
  readonly partBytes?: number;
  readonly adapter?: string;
  readonly layer?: number;
}

function recordOf(item: SequenceLine, tokens: "last" | "all"): StatesRecord {
  const { line, id, position } = item;
  if (item.kind === "error") return { kind: "failed", line, id, error: item.error, position };
  const count = item.kind === "list" ? 1 + item.list.candidates.length : 1;
  const sequences = Array.from({ length: count }, (_, k): ExtractedSequence => {
    const ids = Int32Array.from({ length: 1 + ((line + k) % 5) }, (_, t) => 100 * line + 10 * k + t);
    const rows = K * (tokens === "all" ? ids.length : 1);
    const states = Float32Array.from({ length: rows * D }, (_, i) => (i % 7 === 0 ? -0 : line + k / 8 + i / 1024));
    return { candidate: item.kind === "list" && k > 0 ? k - 1 : null, ids, states };
  });
  const notes = line % 10 === 2 ? { truncated: [0] } : {};
  return { kind: "extracted", line, id, source: item.kind, notes, sequences, position };
}

/** Extracts all lines, or a share of them. */
async function extract(
  input: string,
  output: string,
  shard: Shard | null,
  { tokens = "all", partBytes = 1e6, adapter = "a", layer = 1 }: Layout = {},
): Promise<void> {
  const run = { command: "extract", layer };
  const states = { layers: K, tokens, d: D, partBytes };
  const metadata = { model: "m", adapter, kernels: "k" };
  const name = shard === null ? output : shardPath(output, shard);
  const file = await openStatesFile({
    ...{ output: name, run, input, restart: false, held: async () => true, states },
    plan: async () => (shard === null ? { total: null, ranges: null, whole: null } : planShard(input, shard)),
  });
  const sink = await file.begin({ adapter, kernels: "k", tiles: [] }, metadata);
  for await (const item of readSequences(input, file.resumed.read)) await sink.write(recordOf(item, tokens));
  await sink.finish(async (files) => {
    const { ranges, whole } = file.resumed.plan;
    if (shard === null || ranges === null || whole === null) return;
    expect(files.map((each) => each.name)).toEqual(outputFiles(name, { parts: sink.parts }));
    const paths = files.map(({ at }) => at);
    await writeManifest(input, name, paths, {
      ...{ shard, ranges, whole, run, input: null, machine: { adapter, kernels: "k" }, counts: sink.counts },
      states: { ...states, metadata, parts: sink.parts },
    });
  });
}

/** Extracts in shards. @returns their names */
async function extractShards(place: string, count: number, layout: Layout = {}, text = TEXT): Promise<string[]> {
  const input = await folder.write("lines.jsonl", text);
  const shards = Array.from({ length: count }, (_, i) => ({ index: i + 1, count }));
  await Promise.all(shards.map((shard) => extract(input, join(place, OUT), shard, layout)));
  return shardFiles(join(place, OUT), [count]);
}

async function merge(paths: readonly string[], output: string, stopAfter = Number.POSITIVE_INFINITY): Promise<number> {
  const held = async () => true;
  const merged = await openMergedStates(await openShards(paths), { output, restart: false, held });
  const sink = await merged.begin();
  let lines = 0;
  try {
    if (!merged.finished) {
      for await (const record of merged.records()) {
        await sink.write(record);
        if (++lines === stopAfter) {
          await sink.leave();
          return lines;
        }
      }
    }
    await sink.finish();
  } catch (cause) {
    await sink.leave();
    throw cause;
  }
  return lines;
}

/** What one run over all of it writes. */
async function whole(layout: Layout = {}, text = TEXT): Promise<Contents> {
  const place = newPlace();
  await extract(await folder.write("lines.jsonl", text), join(place, OUT), null, layout);
  return contents(place);
}

describe("merged states", () => {
  it.each([
    [1, "all", 1e6],
    [3, "all", 1e6],
    [3, "last", 1e6],
    [2, "all", 700],
    [8, "last", 200],
    [3, "all", 1],
  ] as const)(
    "of %d shards with --tokens %s in parts of %d bytes are one run's, byte for byte",
    async (count, tokens, partBytes) => {
      const layout = { tokens, partBytes };
      const expected = await whole(layout);
      const index = Buffer.from(expected[`${OUT}.index.jsonl`]!, "base64").toString("utf8");
      expect(index.match(/was used on line/g)!.length).toBeGreaterThan(5);
      expect(Object.keys(expected).length > 2).toBe(partBytes < 1e6);
      const place = newPlace();
      await merge((await extractShards(newPlace(), count, layout)).reverse(), join(place, OUT));
      expect(contents(place)).toEqual(expected);
    },
  );

  it("of more shards than lines are one run's: a shard without a line is a shard", async () => {
    const text = `{"ids": [1]}\n\n{"ids": [2, 3]}\n`;
    const place = newPlace();
    await merge(await extractShards(newPlace(), 7, {}, text), join(place, OUT));
    expect(contents(place)).toEqual(await whole({}, text));
  });

  it("of lines that all failed are one run's", async () => {
    const text = "{\n[]\n{\n";
    const place = newPlace();
    await merge(await extractShards(newPlace(), 2, {}, text), join(place, OUT));
    expect(contents(place)).toEqual(await whole({}, text));
  });

  it("keep an error's words as they are, however long", async () => {
    const text = `{"ids": [1]}\n{"ids": [1], "\u0001${"x".repeat(20_000)}": 1, "text": "a"}\n${JSON.stringify({ id: `\u202e${"y".repeat(30_000)}`, text: 1 })}\n`;
    const place = newPlace();
    await merge(await extractShards(newPlace(), 2, {}, text), join(place, OUT));
    expect(contents(place)).toEqual(await whole({}, text));
  });

  it.skipIf(process.platform === "win32")("of more shards than files can be open are one run's", async () => {
    const place = newPlace();
    const paths = await extractShards(newPlace(), 120);
    const records = paths.map((path) => manifestPath(path));
    const run = await stratum(["merge", ...records, "-o", join(place, OUT)], { below: FEW_FILES });
    expect([run.code, errorCodes(run.stderr)]).toEqual([1, []]);
    expect(contents(place)).toEqual(await whole());
  });

  it("name every machine that there was", async () => {
    const from = newPlace();
    const input = await folder.write("lines.jsonl", TEXT);
    for (const [i, adapter] of ["one", "two", "one"].entries())
      await extract(input, join(from, OUT), { index: i + 1, count: 3 }, { adapter });
    const place = newPlace();
    await merge(shardFiles(join(from, OUT), [3]), join(place, OUT));
    await using file = await openSafetensors(join(place, OUT));
    expect(file.metadata).toEqual({ model: "m", adapter: "one; two", kernels: "k" });
  });

  it("end in the same bytes whenever the merge is lost", async () => {
    const layout = { partBytes: 2500 };
    const text = TEXT.split("\n").slice(0, 40).join("\n");
    const expected = await whole(layout, text);
    const shards = await extractShards(newPlace(), 3, { ...layout, partBytes: 2500 }, text);
    const place = newPlace();
    const seen = await instantsOf(place, async () => void (await merge(shards, join(place, OUT))));
    expect(contents(place)).toEqual(expected);
    expect(Object.keys(expected).length).toBeGreaterThan(4);
    expect(seen.length).toBeGreaterThan(20);
    // A fair choice of them: each takes half a second of waiting for the disk.
    const chosen = Array.from({ length: 14 }, (_, i) => Math.round((i * (seen.length - 1)) / 13));
    const lines: number[] = [];
    for (const instant of chosen) {
      const found = seen[instant]!;
      const copy = join(folder.path, `instant-${instant}`);
      layOut(copy, found);
      lines.push(await merge(shards, join(copy, OUT)));
      expect([instant, contents(copy)]).toEqual([instant, expected]);
    }
    // What was done is not done again: the later it was lost, the less was left.
    expect(lines[0]).toBe(38);
    expect(lines.filter((count) => count > 0 && count < 38).length).toBeGreaterThan(3);
  });
});

describe("shards that are not those of their records", () => {
  const flip = (at: number) => (path: string) => {
    const bytes = readFileSync(path);
    bytes[at < 0 ? bytes.length + at : at]! ^= 1;
    writeFileSync(path, bytes);
  };
  let sound: Contents;
  beforeAll(async () => {
    const place = newPlace();
    await extractShards(place, 2, { partBytes: 1500 });
    sound = contents(place);
  });

  it.each([
    ["a state of the first part", 0, flip(-20)],
    ["the header of the second part", 1, flip(60)],
    ["the length of the header", 0, flip(0)],
    ["the end of the last part", -3, flip(-1)],
    ["a part that is cut", 1, (path: string) => truncateSync(path, 500)],
    ["a part that is gone", 1, (path: string) => rmSync(path)],
    ["the number of tokens in the index", -1, (path: string) => write(path, '"tokens":5', '"tokens":6')],
    ["another id in the index", -1, (path: string) => write(path, '"id":"q', '"id":"r')],
    ["another line in the index", -1, (path: string) => write(path, '"line":2', '"line":3')],
    ["an index that is no JSON", -1, flip(0)],
  ] as const)("are refused, and nothing has its name: %s", async (_, file, change) => {
    const from = join(folder.path, `damaged-${++places}`);
    layOut(from, sound);
    const paths = shardFiles(join(from, OUT), [2]);
    const [first] = (await openShards(paths)) as [Awaited<ReturnType<typeof openShards>>[number]];
    const files = outputFiles(first.path, first.manifest.states);
    expect(files.length).toBeGreaterThan(4);
    change(files.at(file)!);
    const place = newPlace();
    await expect(merge(paths, join(place, OUT))).rejects.toThrow(failing("usage/shard-changed"));
    expect(Object.keys(contents(place)).filter((name) => !/partial|journal/.test(name))).toEqual([]);
  });

  it("and a record whose files are no list is refused, whatever it says of its length", async () => {
    const paths = await extractShards(newPlace(), 2);
    const record = manifestPath(paths[0]!);
    const { check: _, ...value } = JSON.parse(readFileSync(record, "utf8")) as Record<string, unknown>;
    writeFileSync(record, sealed({ ...value, files: { length: { toString: 1, valueOf: 2 } } }));
    await expect(openShards(paths)).rejects.toThrow(failing("usage/bad-shard"));
  });

  it("are noticed in what a merge took before it was lost", async () => {
    const paths = await extractShards(newPlace(), 2);
    const place = newPlace();
    expect(await merge(paths, join(place, OUT), 20)).toBe(20);
    const [first] = paths as [string];
    const { size } = (await openShards(paths))[0]!.manifest.files.map(({ bytes }) => ({ size: bytes }))[0]!;
    const header = Number(readFileSync(first).readBigUInt64LE(0)) + 8;
    expect(header).toBeLessThan(size);
    flip(header)(first);
    await expect(merge(paths, join(place, OUT))).rejects.toThrow(failing("usage/shard-changed"));
    expect(existsSync(join(place, OUT))).toBe(false);
  });

  it("and other shards than those of a merge that was lost are not gone on with", async () => {
    const place = newPlace();
    await merge(await extractShards(newPlace(), 2), join(place, OUT), 20);
    const others = await extractShards(newPlace(), 2, {}, TEXT.replace("xxxx", "xxxy"));
    await expect(merge(others, join(place, OUT))).rejects.toThrow(failing("usage/other-run"));
  });
});

function write(path: string, from: string, to: string): void {
  const text = readFileSync(path, "utf8");
  expect(text).toContain(from);
  writeFileSync(path, text.replace(from, to));
}

describe("what is given to a merge", () => {
  it("is shards of one kind", async () => {
    const place = newPlace();
    const [a] = (await extractShards(place, 2)) as [string, string];
    const input = await folder.write("lines.jsonl", TEXT);
    const rankings = join(place, "r-00002-of-00002.jsonl");
    writeFileSync(rankings, "");
    const { ranges, whole: all } = await planShard(input, { index: 2, count: 2 });
    await writeManifest(input, rankings, [rankings], {
      ...{ shard: { index: 2, count: 2 }, run: { command: "rank" }, ranges, whole: all, input: null, counts: {} },
      ...{ machine: { adapter: "a", kernels: "k" }, states: null },
    });
    const thrown = await openShards([a, rankings]).catch((cause: unknown) => cause as StratumError);
    expect(thrown).toBeInstanceOf(StratumError);
    expect(thrown).toMatchObject({
      code: "usage/mixed-shards",
      message: `${a} holds hidden states and ${rankings} rankings`,
    });
  });

  it("is all shards, once, of one run over one input", async () => {
    const [a, b] = (await extractShards(newPlace(), 2)) as [string, string];
    const [, other] = (await extractShards(newPlace(), 2, { layer: 2 })) as [string, string];
    const [, input] = (await extractShards(newPlace(), 2, {}, `${TEXT}\n{"ids": [1]}`)) as [string, string];
    await expect(openShards([a])).rejects.toThrow(/1 of 2 shards is missing: 2/);
    await expect(openShards([a, b, b])).rejects.toThrow(failing("usage/shard-twice"));
    await expect(openShards([a, other])).rejects.toThrow(/are of two runs: layer was 1, is 2/);
    await expect(openShards([a, input])).rejects.toThrow(/are of two runs: input's bytes was/);
    expect((await openShards([manifestPath(b), a])).map(({ path }) => path)).toEqual([a, b]);
  });

  it("is found by the output's name where a shard is in parts, and one that is not finished is said to be", async () => {
    const place = newPlace();
    const paths = await extractShards(place, 2, { partBytes: 700 });
    expect(paths.map((path) => existsSync(path))).toEqual([false, false]);
    writeFileSync(`${paths[1]}.journal`, "");
    expect(() => shardFiles(join(place, OUT), [2])).toThrow(/1 of 2 shards is missing \(1 begun and not finished\): 2/);
  });
});
