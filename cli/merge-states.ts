/** Merging hidden states: where a merge was stopped, the same command goes on. */
import { StratumError } from "../errors.ts";
import { countPlaced, type FoundShard } from "../scorer/merge.ts";
import { mergedLayout, mergedStates, mergeFacts } from "../scorer/merge-states.ts";
import { type ExtractCounts, forgetStates, openStatesFile } from "../scorer/resumable-states.ts";
import { formatCount } from "./format.ts";
import { note, type StopSignal, startProgress, unfinished, warn } from "./terminal.ts";

const DAMAGED: readonly string[] = ["usage/shard-changed", "usage/bad-shard"];

export interface MergedStates {
  readonly counts: ExtractCounts;
  /** Lines that an earlier merge did. */
  readonly resumed: number;
  /** Empty where it was stopped. */
  readonly written: readonly string[];
}

/**
 * Merges states into `output`.
 * @throws {StratumError} as `openStatesFile` and `mergedStates`
 */
export async function mergeStates(
  shards: readonly FoundShard[],
  output: string,
  restart: boolean,
  held: () => Promise<boolean>,
  stop: StopSignal,
): Promise<MergedStates> {
  const total = countPlaced(shards);
  const { metadata, ...states } = mergedLayout(shards);
  const { adapter = "", kernels = "" } = metadata;
  const file = await openStatesFile({
    ...{ output, run: mergeFacts(shards), restart, held, states },
    // The facts name the shards by their content: nothing else is asked of the input.
    input: "-",
    plan: async () => ({ total, ranges: null, whole: null }),
  });
  const { state, read } = file.resumed;
  if (state !== null) note(`resume  after ${formatCount(file.counts.lines)} lines that an earlier merge did`);
  const sink = await file.begin({ adapter, kernels, tiles: [] }, metadata);
  const { line, items } = read.from;
  const progress = startProgress(total, "lines", file.counts.lines);
  let written: readonly string[] = [];
  unfinished.add(`${output}.partial.body`);
  try {
    if (!file.finished) {
      for await (const record of mergedStates(shards, { line, items, register: read.register })) {
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
  if (written.length === 0) await sink.leave();
  if (written.length === 0) warn(`unfinished: what was done lies beside ${output}; the same command goes on`);
  return { counts: sink.counts, resumed: file.counts.lines, written };
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
