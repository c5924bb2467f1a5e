/** Merging hidden states: where a merge was stopped, the same command goes on. */
import { StratumError } from "../errors.ts";
import type { FoundShard } from "../scorer/merge.ts";
import { openMergedStates } from "../scorer/merge-states.ts";
import { type ExtractCounts, forgetStates } from "../scorer/resumable-states.ts";
import { counted } from "./format.ts";
import { note, type StopSignal, startProgress, unfinished, warn } from "./terminal.ts";

const DAMAGED: readonly string[] = ["usage/shard-changed", "usage/bad-shard"];

export interface StatesMerge {
  readonly counts: ExtractCounts;
  /** Lines that an earlier merge did. */
  readonly resumed: number;
  /** Empty where it was stopped. */
  readonly written: readonly string[];
}

/**
 * Merges states into `output`.
 * @throws {StratumError} as `openMergedStates`
 */
export async function mergeStates(
  shards: readonly FoundShard[],
  output: string,
  restart: boolean,
  held: () => Promise<boolean>,
  stop: StopSignal,
): Promise<StatesMerge> {
  const merge = await openMergedStates(shards, { output, restart, held });
  const before = merge.counts.lines;
  if (before > 0) note(`resume  after ${counted(before, "line")} that an earlier merge did`);
  const sink = await merge.begin();
  const progress = startProgress(merge.total, "lines", before);
  let written: readonly string[] = [];
  unfinished.add(`${output}.partial.body`);
  try {
    if (!merge.finished) {
      for await (const record of merge.records()) {
        if (stop.signal.aborted) break;
        await sink.write(record);
        progress.add(1, 0);
      }
    }
    if (!stop.signal.aborted) written = await sink.finish();
  } catch (cause) {
    await sink.leave();
    // What came out of a damaged shard is not to be gone on with.
    if (cause instanceof StratumError && DAMAGED.includes(cause.code)) await forgetStates(output);
    throw cause;
  } finally {
    progress.stop();
    unfinished.clear();
  }
  if (written.length === 0) {
    await sink.leave();
    warn(`unfinished: what was done lies beside ${output}; the same command goes on`);
  }
  return { counts: sink.counts, resumed: before, written };
}

/** States are not lines: they need a name. @throws {StratumError} `usage/output` */
export function checkStatesOutput(target: string | undefined, special: boolean): string {
  if (target !== undefined && target !== "-" && !special) return target;
  throw new StratumError(
    "usage/output",
    `hidden states go into a file, not to ${target === undefined || target === "-" ? "stdout" : target}`,
    "give -o the name of a safetensors file",
  );
}
