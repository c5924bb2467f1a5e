/**
 * What a stopped run left and a later one reads: journals of rankings and of states, records of shards, a sweep's folder,
 * the hub's refs. Damage gives the undisturbed output or an error; what somebody wrote on purpose, with the hash that
 * belongs to it, gives whatever it says or an error, in bounded time and memory.
 */
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import fc from "fast-check";
import type { Machine } from "../../../scorer/journal.ts";
import { readLists } from "../../../scorer/lists.ts";
import { openShards } from "../../../scorer/merge.ts";
import { mergedLines } from "../../../scorer/merge-rankings.ts";
import { openRankingsFile } from "../../../scorer/rankings-file.ts";
import type { ReportCell } from "../../../scorer/report-data.ts";
import { openStatesFile } from "../../../scorer/resumable-states.ts";
import { writeManifest } from "../../../scorer/shard-manifest.ts";
import { planShard, shardPath } from "../../../scorer/shards.ts";
import { openJournal } from "../../../scorer/sweep-journal.ts";
import { hubRepository, readRef } from "../../../weights/hub-cache.ts";
import { sealed } from "../../../weights/seal.ts";
import { fuzzFolder } from "./folder.ts";
import { type FuzzTarget, fuzzTarget, outcomeOf } from "./harness.ts";
import { changedJson, damaged } from "./mutations.ts";

const folder = fuzzFolder("journals");
const at = (...names: readonly string[]) => join(folder, ...names);
const text = (...names: readonly string[]) => readFileSync(at(...names), "utf8");

const MACHINE: Machine = { adapter: "a", kernels: "k", tiles: [] };
const LISTS = Array.from({ length: 12 }, (_, i) =>
  JSON.stringify({ id: `q${i % 11}`, instruction: "x", candidates: ["a"] }),
);
const lists = at("lists.jsonl");
writeFileSync(lists, `${LISTS.join("\n")}\n`);
/** Where a run is tried on what an earlier one left. */
const STAGE = at("stage");

function stage(from: string): void {
  rmSync(STAGE, { recursive: true, force: true });
  cpSync(from, STAGE, { recursive: true });
}

const counts = { lists: 0, failed: 0, candidates: 0, tokens: 0, abstained: 0 };

/** Ranks what is left, with records of its own; to so many lists, or to the end. */
async function rank(place: string, most = Number.POSITIVE_INFINITY): Promise<void> {
  const file = await openRankingsFile({
    ...{ output: join(place, "out"), input: lists, run: { layer: 1 }, append: false, restart: false },
    ...{ held: async () => true, plan: async () => ({ total: LISTS.length, ranges: null, whole: null }) },
  });
  if (file.finished !== null) return await file.complete();
  const sink = file.begin(MACHINE);
  let made = 0;
  try {
    for await (const line of readLists(lists, file.resumed.read)) {
      if (made++ === most) return await sink.leave();
      const record = { id: line.id, line: line.line, failed: line.kind === "error" };
      const next = { ...counts, lists: sink.state.counts.lists + 1 };
      await sink.write(`${JSON.stringify(record)}\n`, {
        ...{ position: line.position!, base: sink.state.base, counts: next, finishing: false },
      });
      // A chunk of its own, which no checkpoint follows.
      if (made % 2 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    await sink.finish();
  } catch (cause) {
    await sink.leave();
    throw cause;
  }
}

/** Puts states of lists away; what is left of them. */
async function extract(place: string, most = Number.POSITIVE_INFINITY): Promise<void> {
  const file = await openStatesFile({
    ...{ output: join(place, "out.safetensors"), input: lists, run: { layer: 1 }, restart: false },
    ...{ held: async () => true, plan: async () => ({ total: LISTS.length, ranges: null, whole: null }) },
    states: { layers: 1, tokens: "all", d: 2, partBytes: 200 },
  });
  const sink = await file.begin(MACHINE, { model: "m" });
  try {
    let made = 0;
    for await (const line of readLists(lists, file.resumed.read)) {
      if (file.finished || made++ === most) break;
      const { position, id } = line;
      const ids = Int32Array.from({ length: 1 + (line.line % 3) }, (_, i) => i);
      const states = Float32Array.from({ length: 2 * ids.length }, (_, i) => line.line + i);
      const notes = { truncated: [] } as never;
      await sink.write(
        line.kind === "error"
          ? { kind: "failed", line: line.line, id, error: line.error, position }
          : {
              kind: "extracted",
              line: line.line,
              id,
              source: "list",
              notes,
              position,
              sequences: [{ candidate: 0, ids, states } as never],
            },
      );
    }
    if (most === Number.POSITIVE_INFINITY) await sink.finish();
    else await sink.leave();
  } catch (cause) {
    await sink.leave();
    throw cause;
  }
}

/** An undisturbed run's output, and what one that was stopped in the middle left. */
async function prepare(name: string, work: (place: string, most?: number) => Promise<void>): Promise<void> {
  for (const [place, most] of [
    [`${name}-whole`, undefined],
    [`${name}-stopped`, 7],
  ] as const) {
    mkdirSync(at(place));
    await work(at(place), most);
  }
}
await prepare("rank", rank);
await prepare("extract", extract);

const RANKED = text("rank-whole", "out");
const STATES = ["out.safetensors.index.json", "out.safetensors.index.jsonl", "out-00002.safetensors"];
const parsed = (line: string) => {
  const { check: _, ...value } = JSON.parse(line) as Record<string, unknown>;
  return value;
};
const headOf = (place: string, journal: string) => parsed(text(place, journal).split("\n")[0]!);
const HEADS = {
  rank: headOf("rank-stopped", "out.journal"),
  extract: headOf("extract-stopped", "out.safetensors.journal"),
};
const KEYS = [
  "state",
  "position",
  "bytes",
  "items",
  "line",
  "out",
  "base",
  "finishing",
  "part",
  "parts",
  "run",
  "ranges",
];
const NUMBERS = [4, 5, 6, 100, 2 ** 40, { line: 1, bytes: 1, items: 2 ** 40, hash: "" }];
/** One of the numbers of a state is another one. */
const otherNumber = (head: Readonly<Record<string, unknown>>) =>
  fc.tuple(fc.nat(30), fc.oneof(fc.nat(1000), fc.constantFrom(2 ** 31, 2 ** 40, 2 ** 52))).map(([place, number]) => {
    const state = JSON.stringify(head["state"]);
    const count = state.match(/(?<=":)\d+/g)?.length ?? 1;
    let i = 0;
    return {
      ...head,
      state: JSON.parse(state.replace(/(?<=":)\d+/g, (old) => (i++ === place % count ? `${number}` : old))),
    };
  });
const forged = (head: Readonly<Record<string, unknown>>) =>
  fc
    .oneof(changedJson([head], KEYS, NUMBERS), otherNumber(head))
    .map((value) => Buffer.from(`${typeof value === "object" && value !== null ? sealed({ ...value }) : "0"}\n`));

/** Two shards, whole, and what merging them gives. */
const shards = [1, 2].map((index) => shardPath(at("shards", "out"), { index, count: 2 }));
mkdirSync(at("shards"));
for (const [i, path] of shards.entries()) {
  const shard = { index: i + 1, count: 2 };
  const { ranges, whole } = await planShard(lists, shard);
  let own = 0;
  for await (const { id, line } of readLists(lists, { ranges })) {
    writeFileSync(path, `${JSON.stringify({ id, line })}\n`, { flag: "a" });
    own++;
  }
  const record = { shard, ranges, whole, run: { layer: 1 }, input: null, machine: { adapter: "a", kernels: "k" } };
  await writeManifest(lists, path, [path], { ...record, counts: { lists: own, failed: 0 }, states: null });
}
async function merge(): Promise<string> {
  let all = "";
  for await (const line of mergedLines(await openShards(shards))) all += line.text;
  return all;
}
const MERGED = await merge();
const MANIFEST = readFileSync(`${shards[0]}.shard.json`);

const cell = (seed: number): ReportCell => ({
  ...{ method: "raw cosine", seed, layers: [1], pooling: "last", trained: "a", measured: "a", pointwise: true },
  ...{
    lists: [3, 5],
    top1: [1, null],
    pairwise: [0.5, 0.25],
    mrr: [1, 0.5],
    ndcg: [1, 0.9],
    highest: [0.25, -1],
    ms: 7,
  },
});
const UNITS = [[cell(0)], [cell(1)], [cell(2), cell(3)]];
const openSweep = (place: string) => openJournal(place, { model: "m" }, { overwrite: false, units: UNITS });
{
  await using sweep = await openSweep(at("sweep"));
  for (const unit of UNITS) await sweep.add(unit);
  await sweep.keepCosts([]);
}
const sweepFiles = fc
  .constantFrom("cells.jsonl", "cells.sums", "costs.json", "run.json")
  .chain((name) => fc.tuple(fc.constant(name), damaged([readFileSync(at("sweep", name))])));

const COMMIT = "0123456789abcdef0123456789abcdef01234567";

/** One file of those that a stopped run left, damaged; of the output only where it ends: what it holds is not read again. */
const damagedJournal = (place: string, journal: string) => damaged([readFileSync(at(place, journal))]);

export const JOURNAL_TARGETS: readonly FuzzTarget[] = [
  fuzzTarget(
    "journals of rankings: damaged",
    200,
    ["ok", "usage/bad-journal"],
    fc.tuple(damagedJournal("rank-stopped", "out.journal"), fc.nat(300), fc.nat(200)),
    async ([journal, lines, ids]) => {
      stage(at("rank-stopped"));
      writeFileSync(join(STAGE, "out.journal"), journal);
      // Cut where the numbers are small enough to mean that.
      for (const [name, length] of [
        ["out.partial", lines],
        ["out.journal.ids", ids],
      ] as const)
        writeFileSync(
          join(STAGE, name),
          readFileSync(join(STAGE, name)).subarray(0, length % 3 === 0 ? length : undefined),
        );
      return outcomeOf(async () => {
        await rank(STAGE);
        if (text("stage", "out") !== RANKED) throw new Error("another output");
      });
    },
  ),
  fuzzTarget(
    "journals of rankings: forged",
    200,
    ["ok", "usage/bad-journal", "usage/output-changed"],
    forged(HEADS.rank),
    (journal) => {
      stage(at("rank-stopped"));
      writeFileSync(join(STAGE, "out.journal"), journal);
      return outcomeOf(() => rank(STAGE));
    },
  ),
  fuzzTarget(
    "journals of states: damaged, or their lines",
    100,
    ["ok", "usage/bad-journal"],
    fc.oneof(
      fc.tuple(fc.constant("out.safetensors.journal"), damagedJournal("extract-stopped", "out.safetensors.journal")),
      fc.tuple(
        fc.constant("out.safetensors.index.jsonl.partial"),
        damagedJournal("extract-stopped", "out.safetensors.index.jsonl.partial"),
      ),
    ),
    async ([name, bytes]) => {
      stage(at("extract-stopped"));
      writeFileSync(join(STAGE, name), bytes);
      return outcomeOf(async () => {
        await extract(STAGE);
        // The lines are nobody's input; the states are.
        for (const file of STATES.filter((each) => !each.endsWith(".jsonl")))
          if (!readFileSync(join(STAGE, file)).equals(readFileSync(at("extract-whole", file))))
            throw new Error(`another ${file}`);
      });
    },
  ),
  fuzzTarget("journals of states: forged", 100, ["ok", "usage/bad-journal"], forged(HEADS.extract), (journal) => {
    stage(at("extract-stopped"));
    writeFileSync(join(STAGE, "out.safetensors.journal"), journal);
    return outcomeOf(() => extract(STAGE));
  }),
  fuzzTarget("records of shards: damaged", 200, ["ok", "usage/bad-shard"], damaged([MANIFEST]), (bytes) => {
    writeFileSync(`${shards[0]}.shard.json`, bytes);
    return outcomeOf(async () => {
      if ((await merge()) !== MERGED) throw new Error("another output");
    });
  }),
  fuzzTarget(
    "records of shards: forged",
    200,
    ["ok", "usage/bad-shard", "usage/other-run"],
    changedJson(
      [parsed(MANIFEST.toString())],
      ["ranges", "blank", "lines", "count"],
      [10 ** 9, 2 ** 31, { index: 1, count: 10 ** 9 }],
    ),
    (value) => {
      writeFileSync(`${shards[0]}.shard.json`, sealed((value ?? {}) as Record<string, unknown>));
      return outcomeOf(merge);
    },
  ),
  fuzzTarget("a sweep's folder: damaged", 100, ["ok", "report/damaged"], sweepFiles, ([name, bytes]) => {
    stage(at("sweep"));
    writeFileSync(join(STAGE, name), bytes);
    return outcomeOf(async () => {
      await using sweep = await openSweep(STAGE);
      if (!isDeepStrictEqual(sweep.cells, UNITS.slice(0, sweep.units).flat())) throw new Error("other cells");
      if (sweep.costs !== null && sweep.costs.length > 0) throw new Error("other costs");
    });
  }),
  fuzzTarget(
    "refs of the hub's cache: damaged",
    200,
    ["ok", "none"],
    damaged([Buffer.from(COMMIT), Buffer.from(`${COMMIT}\n`)]),
    async (bytes) => {
      const repository = hubRepository(at("hub"), "a/b");
      mkdirSync(join(repository.root, "refs"), { recursive: true });
      writeFileSync(repository.ref("main"), bytes);
      const commit = await readRef(repository, "main");
      if (commit !== null && !/^[0-9a-f]{40}$/.test(commit)) throw new Error(commit);
      return commit === null ? "none" : "ok";
    },
  ),
];
