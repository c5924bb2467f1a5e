/** Shards: who gets which lines, and how they come together again; without a model, a record a list. */
import { appendFileSync, chmodSync, readFileSync, renameSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { copyFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import { createLoads } from "../../scorer/least-loaded.ts";
import { type ListLine, readLists } from "../../scorer/lists.ts";
import { type FoundShard, machinesOf, openShards, shardFiles } from "../../scorer/merge.ts";
import { mergedLines } from "../../scorer/merge-rankings.ts";
import { type ErrorRecord, errorRecord, toJsonLine } from "../../scorer/rankings.ts";
import { inputFacts } from "../../scorer/resume.ts";
import { finishedShard, writeManifest } from "../../scorer/shard-manifest.ts";
import {
  checkDivision,
  checkShard,
  MOST_SHARDS,
  manifestPath,
  planShard,
  type Shard,
  shardOfEnvironment,
  shardPath,
} from "../../scorer/shards.ts";
import { errorCodes, FEW_FILES, type Folder, stratum, temporaryFolder } from "../support/cli.ts";
import { failing } from "../support/failing.ts";

let folder: Folder;
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());

const random = seededRandom(5);
const lines = (count: number, length: (i: number) => number) =>
  Array.from({ length: count }, (_, i) => "x".repeat(length(i)));

describe("a file's shards", () => {
  it.each([
    ["lines of all lengths", lines(2000, () => Math.floor(random() * 400)).join("\n"), [1, 2, 3, 7, 16]],
    ["lines sorted by length, the last one open", `${lines(3000, (i) => i / 10).join("\n")}\nend`, [4, 8]],
    ["a few lines", "a\n\nbb\nccc\n", [1, 2, 4, 9]],
    ["one long line among short ones", lines(500, (i) => (i === 100 ? 20_000 : 20)).join("\n"), [3]],
    ["nothing", "", [1, 2]],
  ])("%s: every line is in one, and none has much more than its share", async (name, text, counts) => {
    const path = await folder.write(`${name}.txt`, text);
    const all = text === "" ? [] : text.replace(/\n$/, "").split("\n");
    const longest = all.reduce((most, line) => Math.max(most, line.length + 1), 0);
    for (const count of counts) {
      const plans = await Promise.all(
        Array.from({ length: count }, (_, i) => planShard(path, { index: i + 1, count })),
      );
      const ranges = plans.flatMap((plan) => plan.ranges).sort((a, b) => a.start - b.start);
      let at = 0;
      for (const { line, start, end } of ranges) {
        expect(start).toBe(at);
        expect(text.slice(0, start).split("\n")).toHaveLength(line);
        at = end;
      }
      expect(at).toBe(text.length);
      expect(plans.reduce((sum, { total }) => sum + total, 0)).toBe(all.length);
      expect(plans.every(({ whole }) => whole.lines === all.length && whole.bytes === text.length)).toBe(true);
      const loads = plans.map((plan) => plan.ranges.reduce((sum, { start, end }) => sum + end - start, 0));
      expect(Math.max(...loads) - Math.min(...loads)).toBeLessThanOrEqual(longest + text.length / (64 * count) + 1);
      expect(await planShard(path, { index: 1, count })).toEqual(plans[0]);
    }
  });

  it.each([1, 2, 3, 64, 1000])("go each to the first of those of %d that have the least", (count) => {
    const loads = createLoads(count);
    const simple = new Array<number>(count).fill(0);
    for (let run = 0; run < 20 * count + 100; run++) {
      // Few values, so that many are even.
      const amount = Math.floor(random() * 4) + (run % 97 === 0 ? 50 : 0);
      const least = simple.indexOf(simple.reduce((a, b) => Math.min(a, b)));
      simple[least]! += amount;
      expect(loads.give(amount)).toBe(least);
    }
  });

  it("are found soon, however many there are", async () => {
    const path = await folder.write("many.txt", "{}\n".repeat(2e6));
    const begin = performance.now();
    const { total } = await planShard(path, { index: 1, count: 20_000 });
    // Going through all shards for every run takes half a minute.
    expect(performance.now() - begin).toBeLessThan(5000);
    expect(total).toBe(100);
  });

  it("are called like a checkpoint's", () => {
    expect(shardPath("a.b/rankings.jsonl", { index: 2, count: 8 })).toBe("a.b/rankings-00002-of-00008.jsonl");
    expect(shardPath("a.b/rankings", { index: 1, count: 1 })).toBe("a.b/rankings-00001-of-00001");
  });
});

it("are not begun in two divisions: begun or whole, the first one stands", async () => {
  const output = join(folder.path, "divided.jsonl");
  await checkDivision(output, { index: 1, count: 2 });
  const found = (shard: Shard) => checkDivision(output, shard).catch((thrown: Error) => thrown.message);
  for (const name of [
    shardPath(output, { index: 2, count: 8 }),
    `${shardPath(output, { index: 3, count: 8 })}.journal`,
  ]) {
    writeFileSync(name, "");
    await checkDivision(output, { index: 1, count: 8 });
    expect(await found({ index: 1, count: 1 })).toMatch(/shard 1\/1 of .*another division: into 8/);
    rmSync(name);
  }
});

describe("which shard a process is", () => {
  it.each([
    [{ SLURM_ARRAY_TASK_ID: "3", SLURM_ARRAY_TASK_COUNT: "8" }, 3, 8],
    [{ SLURM_ARRAY_TASK_ID: "0", SLURM_ARRAY_TASK_COUNT: "4", SLURM_ARRAY_TASK_MIN: "0" }, 1, 4],
    [
      {
        SLURM_ARRAY_TASK_ID: "14",
        SLURM_ARRAY_TASK_COUNT: "3",
        SLURM_ARRAY_TASK_MIN: "10",
        SLURM_ARRAY_TASK_MAX: "14",
        SLURM_ARRAY_TASK_STEP: "2",
      },
      3,
      3,
    ],
    [{ JOB_COMPLETION_INDEX: "0", JOB_COMPLETIONS: "5" }, 1, 5],
    [{ JOB_COMPLETION_INDEX: "4", JOB_COMPLETIONS: "5" }, 5, 5],
  ])("comes from the scheduler: %j", (env, index, count) => {
    expect(shardOfEnvironment(env)).toEqual({ index, count });
  });

  it.each([
    [{}, /neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX/],
    [{ SLURM_ARRAY_TASK_ID: "1" }, /SLURM_ARRAY_TASK_COUNT is not/],
    [
      { SLURM_ARRAY_TASK_ID: "7", SLURM_ARRAY_TASK_COUNT: "3", SLURM_ARRAY_TASK_MIN: "1" },
      /does not say which share is its own/,
    ],
    // Some tasks of an array that are submitted again: what Slurm says of --array=3,5, of 1-3,7 and of 4.
    ...[
      ["3", "2", "3", "5"],
      ["2", "4", "1", "7"],
      ["4", "1", "4", "4"],
    ].map(([id, count, min, max]): [Record<string, string>, RegExp] => [
      {
        ...{ SLURM_ARRAY_TASK_ID: id!, SLURM_ARRAY_TASK_COUNT: count!, SLURM_ARRAY_TASK_STEP: "1" },
        ...{ SLURM_ARRAY_TASK_MIN: min!, SLURM_ARRAY_TASK_MAX: max! },
      },
      /does not say which share is its own/,
    ]),
    [{ SLURM_ARRAY_TASK_ID: "x", SLURM_ARRAY_TASK_COUNT: "3" }, /is no number/],
    [{ JOB_COMPLETION_INDEX: "1" }, /JOB_COMPLETIONS is not/],
    [{ JOB_COMPLETION_INDEX: "5", JOB_COMPLETIONS: "5" }, /no shard 6\/5/],
  ])("is not guessed: %j", (env, message) => {
    expect(() => shardOfEnvironment(env)).toThrow(message);
  });

  it.each([
    [0, 4],
    [5, 4],
    [1, 0],
    [1.5, 2],
  ])("is counted from 1: there is no %d/%d", (index, count) => {
    expect(() => checkShard({ index, count })).toThrow(expect.objectContaining({ code: "usage/shard" }));
  });
});

/** Duplicates within and across shards, of many lines too, blank lines, lines that are no lists (one with another's id for
 * its number), ids and none. */
const TEXT = Array.from({ length: 600 }, (_, i) => {
  if (i % 37 === 5) return "";
  if (i % 41 === 7) return "{";
  if (i % 43 === 11) return "[]";
  const id =
    i === 2
      ? { id: "12" }
      : i % 50 === 20
        ? { id: "often" }
        : i % 13 === 9
          ? { id: `q"${i - 9 - ((i - 9) % 2)}` }
          : i % 5 === 0
            ? {}
            : { id: i % 2 === 0 ? `q"${i}` : i + 0.5 };
  return JSON.stringify({ ...id, instruction: "é".repeat(i % 90), candidates: i % 29 === 3 ? [] : ["a"] });
}).join("\n");

const record = (line: ListLine): string =>
  line.kind === "error"
    ? toJsonLine(errorRecord(line.id, line.error))
    : `${JSON.stringify({ id: line.id, results: [] })}\n`;

const RUN = { layer: 1 };
const MACHINE = { adapter: "a", kernels: "k" };

/** Ranks shards of the text. @returns the name of the whole */
async function rankShards(name: string, count: number, text = TEXT, run = RUN): Promise<string> {
  const input = await folder.write(`${name}.lists.jsonl`, text);
  const output = join(folder.path, `${name}.jsonl`);
  const rankShard = async (index: number) => {
    const { ranges, whole } = await planShard(input, { index, count });
    const path = shardPath(output, { index, count });
    const records: string[] = [];
    let failed = 0;
    for await (const line of readLists(input, { ranges })) {
      records.push(record(line));
      if (line.kind === "error") failed++;
    }
    writeFileSync(path, records.join(""));
    await writeManifest(input, path, [path], {
      ...{ shard: { index, count }, run, ranges, whole, machine: MACHINE, states: null },
      input: await inputFacts(input),
      counts: { lists: records.length, failed },
    });
  };
  await Promise.all(Array.from({ length: count }, (_, i) => rankShard(i + 1)));
  return output;
}

describe("a shard that is whole", () => {
  let input: string;
  let path: string;
  const finished = async (of = input) => (await finishedShard(path, RUN, of)) !== null;
  beforeEach(async () => {
    const output = await rankShards("whole", 2);
    input = join(folder.path, "whole.lists.jsonl");
    path = shardPath(output, { index: 2, count: 2 });
  });

  it.each([
    ["has another mode", () => chmodSync(input, 0o600)],
    ["was touched", () => utimesSync(input, 1, 1)],
    ["was written again as it was", () => writeFileSync(input, TEXT)],
    ["is a copy under the old name", async () => renameSync(await folder.write("copied.jsonl", TEXT), input)],
  ])("is not done again where the input %s", async (_, change) => {
    expect(await finished()).toBe(true);
    const before = await inputFacts(input);
    await change();
    expect(await inputFacts(input)).not.toEqual(before);
    expect(await finished()).toBe(true);
  });

  it("is not done again where the input lies elsewhere", async () => {
    expect(await finished(await folder.write("elsewhere.jsonl", TEXT))).toBe(true);
  });

  it.each([
    ["is longer", `${TEXT}\n`],
    ["has other bytes", TEXT.replace("é", "è")],
  ])("is done again where the input %s", async (_, text) => {
    writeFileSync(input, text);
    expect(await finished()).toBe(false);
  });

  it("is done again where its own output is cut", async () => {
    writeFileSync(path, readFileSync(path).subarray(1));
    expect(await finished()).toBe(false);
  });
});

async function merge(paths: readonly string[]): Promise<{ text: string; failed: number }> {
  let text = "";
  let failed = 0;
  for await (const line of mergedLines(await openShards(paths))) {
    text += line.text;
    if (line.failed) failed++;
  }
  return { text, failed };
}

describe("merging", () => {
  it.each([1, 2, 3, 8])("%d shards gives what one run over all of it gives", async (count) => {
    const output = await rankShards(`merge-${count}`, count);
    const input = join(folder.path, `merge-${count}.lists.jsonl`);
    let expected = "";
    let failed = 0;
    for await (const line of readLists(input)) {
      expected += record(line);
      if (line.kind === "error") failed++;
    }
    expect(expected).toContain("was used on line");
    expect(await merge(shardFiles(output, [count]).reverse())).toEqual({ text: expected, failed });
  });

  it.skipIf(process.platform === "win32")("takes more shards than files can be open", async () => {
    const text = Array.from({ length: 3000 }, (_, i) => `{"id": "${"i".repeat(i % 50)}${i}", "instruction": ""}`).join(
      "\n",
    );
    const output = await rankShards("open", 250, text);
    const run = await stratum(["merge", output], { below: FEW_FILES });
    expect([run.code, errorCodes(run.stderr)]).toEqual([1, []]);
    const [whole] = shardFiles(await rankShards("open-whole", 1, text), [1]) as [string];
    expect(readFileSync(output, "utf8")).toBe(readFileSync(whole, "utf8"));
  });

  it("takes ids as long as a line can have them", async () => {
    const long = `${"\\".repeat(1001)}"${"x".repeat(17e6)}`;
    const lists = [{ id: long }, { id: 1.5 }, { id: long }].map((list) => ({
      ...list,
      instruction: "a",
      candidates: ["a"],
    }));
    const output = await rankShards("long", 2, lists.map((list) => JSON.stringify(list)).join("\n"));
    const { text } = await merge(shardFiles(output, [2]));
    const records = text.split("\n", 3).map((line) => JSON.parse(line) as ErrorRecord);
    // What differs would be shown whole.
    expect(records.map(({ id, error }) => [id === long, error?.code])).toEqual([
      [true, undefined],
      [false, undefined],
      [true, "list/duplicate-id"],
    ]);
  });

  it.each([
    ["no id", '{"results":[]}'],
    ["an id that does not end", '{"id":"a'],
    ["an id with an escape that there is not", '{"id":"\\x","results":[]}'],
    ["an id that is no number", '{"id":1x,"results":[]}'],
    ["an id that is neither", '{"id":null,"results":[]}'],
  ])("refuses a record with %s", async (name, line) => {
    const [path] = shardFiles(await rankShards(name, 1), [1]) as [string];
    const { length } = readFileSync(path);
    writeFileSync(path, `${line}\n`.padEnd(length, " "));
    await expect(merge([path])).rejects.toThrow(failing("usage/bad-shard", "the record of line 1 has no id"));
  });

  it("says which machines did which of the most shards that there can be", async () => {
    const [path] = shardFiles(await rankShards("machines", 1), [1]) as [string];
    const [{ manifest }] = (await openShards([path])) as [FoundShard];
    const shards = Array.from({ length: MOST_SHARDS }, (_, i) => ({
      manifest: {
        ...manifest,
        shard: { index: i + 1, count: MOST_SHARDS },
        machine: { adapter: i % 3 === 1 ? "b" : "a", kernels: "k" },
      },
    }));
    const begin = performance.now();
    const machines = machinesOf(shards);
    // Half a minute where each shard copies those before it.
    expect(performance.now() - begin).toBeLessThan(2000);
    expect(machines.map(({ machine, shards }) => [machine, shards.length, ...shards.slice(0, 3)])).toEqual([
      ["a, kernels k", 66_667, 1, 3, 4],
      ["b, kernels k", 33_333, 2, 5, 8],
    ]);
  });

  it("wants every shard once", async () => {
    const output = await rankShards("once", 3);
    const [a, b, c] = shardFiles(output, [3]) as [string, string, string];
    await expect(merge([a, c])).rejects.toThrow(/1 of 3 shards is missing: 2/);
    const copy = join(folder.path, "copy.jsonl");
    await copyFile(b, copy);
    await copyFile(manifestPath(b), manifestPath(copy));
    await expect(merge([a, b, c, copy])).rejects.toThrow(/shard 2 of 3 is there twice: .*once-00002.*copy/);
    expect(() => shardFiles(join(folder.path, "none.jsonl"), [])).toThrow(/there is no shard of/);
    expect(() => shardFiles(output, [3, 4])).toThrow(/in shards of 2 divisions: into 3, into 4/);
  });

  it("wants shards of one run over one input", async () => {
    const [a] = shardFiles(await rankShards("first", 2), [2]) as [string];
    const [, b] = shardFiles(await rankShards("second", 2, TEXT, { layer: 2 }), [2]) as [string, string];
    await expect(merge([a, b])).rejects.toThrow(/are of two runs: layer was 1, is 2/);
    const [, c] = shardFiles(await rankShards("third", 2, TEXT.replace("é", "e")), [2]) as [string, string];
    await expect(merge([a, c])).rejects.toThrow(/are of two runs: input's bytes was .*input's sha256 was/);
    const [, d] = shardFiles(await rankShards("fourth", 3), [3]) as [string, string];
    await expect(merge([a, d])).rejects.toThrow(/shards was 2, is 3/);
  });

  it("notices rankings that are not those of their record", async () => {
    for (const [name, change] of Object.entries({
      more: (path: string) => appendFileSync(path, '{"id":"more","results":[]}\n'),
      less: (path: string) => writeFileSync(path, readFileSync(path, "utf8").split("\n").slice(0, -2).join("\n")),
      other: (path: string) => writeFileSync(path, readFileSync(path, "utf8").replace('"results":[]', '"results":[ ]')),
    })) {
      const paths = shardFiles(await rankShards(name, 2), [2]) as [string, string];
      change(paths[1]);
      await expect(merge(paths), name).rejects.toThrow(expect.objectContaining({ code: "usage/shard-changed" }));
    }
  });
});
