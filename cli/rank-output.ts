/** Where `rank` reads and writes: in one go to stdout, or to a file that a later run can go on with. */
import { existsSync } from "node:fs";
import { StratumError } from "../errors.ts";
import type { Machine, RunFacts } from "../scorer/journal.ts";
import type { LineSink } from "../scorer/line-sink.ts";
import { emptyFileError, type ListLine, readLists } from "../scorer/lists.ts";
import type { RankOutcome } from "../scorer/rank.ts";
import { toJsonLine } from "../scorer/rankings.ts";
import { openRankingsFile, type RankCounts, type RankState } from "../scorer/rankings-file.ts";
import type { InputPlan } from "../scorer/resume.ts";
import { writeManifest } from "../scorer/shard-manifest.ts";
import { counted } from "./format.ts";
import { checkOutput, withOutput, withOutputLock } from "./output.ts";
import { noteResumed } from "./run-facts.ts";
import { doneShard, type ShardFlags, shardOutput } from "./sharding.ts";
import { note, unfinished, warn } from "./terminal.ts";

/** The lists of a run. */
export interface RankSource {
  /** In words. */
  readonly name: string;
  /** A path or `-`; null for lists that are no file's. */
  readonly path: string | null;
  /** Reads them from the beginning. */
  readonly lines: () => AsyncIterable<ListLine>;
  /** How many there are and which of them are this run's. */
  readonly plan: () => Promise<InputPlan>;
}

export interface RankOutput {
  /** The lists that are left to rank. */
  readonly lines: AsyncIterable<ListLine>;
  readonly total: number | null;
  /** Of all lists so far, an earlier run's included. */
  readonly counts: RankCounts;
  /** Kernels of the run that is gone on with. */
  readonly machine: Machine | null;
  /** An earlier run did all of it; `finish` is what is left. */
  readonly finished: boolean;
  /** To be called before the first write. @throws {StratumError} `usage/other-machine` */
  begin(machine: Machine): void;
  /** @throws {StratumError} `file/write-failed`, `file/stdout` */
  write(outcome: RankOutcome): Promise<void>;
  finish(): Promise<void>;
}

export interface RankOutputFlags extends ShardFlags {
  readonly output?: string;
  readonly append?: boolean;
}

function added(counts: RankCounts, outcome: RankOutcome): RankCounts {
  const ranked = outcome.kind === "ranked";
  return {
    lists: counts.lists + 1,
    failed: counts.failed + (ranked ? 0 : 1),
    candidates: counts.candidates + (ranked ? outcome.list.candidates.length : 0),
    tokens: counts.tokens + (ranked ? outcome.tokens : 0),
    abstained: counts.abstained + (ranked && outcome.record.abstained ? 1 : 0),
  };
}

const NOTHING: RankCounts = { lists: 0, failed: 0, candidates: 0, tokens: 0, abstained: 0 };

/**
 * Runs `use` with the output; what is not finished by then is left for a later run.
 * @throws {StratumError} `usage/...` where what lies beside the output is of another run, `usage/in-use`
 */
export async function withRankOutput<T>(
  source: RankSource,
  facts: RunFacts,
  flags: RankOutputFlags,
  use: (output: RankOutput) => Promise<T>,
): Promise<T> {
  const { path } = source;
  const output = await shardOutput(path, flags);
  const plain = output === undefined || output === "-" || (await checkOutput(output, path === null ? [] : [path]));
  if (plain || path === null) return usePlain(source, flags, use);
  return withOutputLock(output, (held) => useFile(source, output, facts, flags, held, use));
}

async function usePlain<T>(
  source: RankSource,
  { output: path, append = false, restart = false }: RankOutputFlags,
  use: (output: RankOutput) => Promise<T>,
): Promise<T> {
  if (append) {
    throw new StratumError(
      "usage/append",
      `nothing can be appended to ${path ?? "stdout"}: --append is for lists of a file and an output that is one`,
      "leave --append out, or give -o FILE",
    );
  }
  const { total } = await source.plan();
  let counts = NOTHING;
  return withOutput(path, { keeps: true, restart }, (output) =>
    use({
      ...{ lines: source.lines(), total, machine: null, finished: false },
      get counts() {
        return counts;
      },
      begin: () => undefined,
      async write(outcome) {
        await output.write(toJsonLine(outcome.record));
        counts = added(counts, outcome);
      },
      async finish() {
        if (counts.lists === 0) throw emptyFileError(source.name);
        await output.finish();
      },
    }),
  );
}

async function useFile<T>(
  source: RankSource,
  output: string,
  run: RunFacts,
  flags: RankOutputFlags,
  held: () => Promise<boolean>,
  use: (output: RankOutput) => Promise<T>,
): Promise<T> {
  const input = source.path ?? "-";
  const { shard, append = false, restart = false } = flags;
  const done = await doneShard(flags, output, run, input);
  if (done !== null) {
    const counts = { ...NOTHING, ...done.counts };
    const nothing = { begin: () => undefined, write: async () => undefined, finish: async () => undefined };
    return use({ lines: source.lines(), total: counts.lists, counts, machine: null, finished: true, ...nothing });
  }
  const file = await openRankingsFile({ output, run, input, append, restart, held, plan: source.plan });
  const { resumed, partial } = file;
  const before = file.finished ?? resumed.state?.counts ?? NOTHING;
  let machine = resumed.machine;
  /** Says whose the rankings are, before they get their name. */
  const record = async () => {
    const { ranges, whole } = resumed.plan;
    if (shard === undefined || ranges === null || whole === null || machine === null) return;
    const { adapter, kernels } = machine;
    await writeManifest(input, output, [existsSync(partial) ? partial : output], {
      ...{ shard, ranges, whole, run, input: resumed.input, machine: { adapter, kernels } },
      ...{ counts, states: null },
    });
  };
  if (file.finished !== null) note(`resume  nothing is left to do, ${counted(before.lists, "list")} in ${output}`);
  else noteResumed(resumed, `${counted(before.lists, "list")} in ${partial}`);
  let counts = before;
  let sink: LineSink<RankState> | null = null;
  let finished = false;
  let refused = false;
  try {
    return await use({
      lines: readLists(input, resumed.read),
      total: resumed.plan.total,
      machine: resumed.machine,
      finished: file.finished !== null,
      get counts() {
        return counts;
      },
      begin(now) {
        sink = file.begin(now);
        machine = now;
      },
      async write(outcome) {
        if (sink === null || outcome.position === undefined) throw new Error("an output that was not begun");
        unfinished.add(partial);
        counts = added(counts, outcome);
        const { base } = sink.state;
        await sink.write(toJsonLine(outcome.record), { position: outcome.position, base, counts, finishing: false });
      },
      async finish() {
        // Of few lists a shard may get none.
        if (counts.lists === 0 && shard === undefined) throw emptyFileError(source.name);
        if (sink === null) await file.complete(record);
        else await sink.finish(record);
        finished = true;
      },
    });
  } catch (cause) {
    refused = cause instanceof StratumError && cause.code === "usage/other-input";
    throw cause;
  } finally {
    const open = sink as LineSink<RankState> | null;
    if (!finished && open !== null) {
      await open.leave();
      const how = refused ? "" : "; the same command goes on";
      if (open.written.counts.lists > 0) warn(`unfinished: what was done lies in ${partial}${how}`);
    }
    unfinished.delete(partial);
  }
}
