/** `stratum merge`: what shards wrote, rankings or hidden states, in the order of the input. */
import { existsSync } from "node:fs";
import type { Command } from "commander";
import { StratumError } from "../errors.ts";
import {
  countPlaced,
  type FoundShard,
  type MachineShards,
  machinesOf,
  openShards,
  shardFiles,
} from "../scorer/merge.ts";
import { mergedLines } from "../scorer/merge-rankings.ts";
import { outputFiles } from "../scorer/shard-manifest.ts";
import { divisions, manifestPath } from "../scorer/shards.ts";
import { indexPath } from "../scorer/states-writer.ts";
import { addOutputOptions } from "./common.ts";
import { counted, formatCount } from "./format.ts";
import { checkStatesOutput, mergeStates } from "./merge-states.ts";
import { checkOutput, type LineOutput, withOutput, withOutputLock } from "./output.ts";
import { addRestartOption } from "./sharding.ts";
import { EXIT, note, type StopSignal, startProgress, stopSignal } from "./terminal.ts";

interface MergeFlags {
  readonly output?: string;
  readonly restart?: boolean;
  readonly json?: boolean;
}

const EXAMPLES = `
Examples:
  $ stratum rank lists.jsonl --shard 1/2 -o rankings.jsonl     # on one machine
  $ stratum rank lists.jsonl --shard 2/2 -o rankings.jsonl     # on another
  $ stratum merge rankings.jsonl
  $ stratum merge a/rankings-00001-of-00002.jsonl b/rankings-00002-of-00002.jsonl -o rankings.jsonl
  $ stratum merge states.safetensors                           # of stratum extract --shard i/n -o states.safetensors
  $ stratum merge a/*.shard.json b/*.shard.json -o states.safetensors

What the shards hold is seen from their records, OUT-0000i-of-0000n.shard.json. All must be there, once, of one run over one
input; the result is what one run writes, byte for byte where one kind of machine did all. Shards of different adapters
agree within rounding only: which did what is said. The shards stay, so a merge takes their room once more.`;

/** Declares the command. */
export function mergeCommand(program: Command): void {
  const command = program
    .command("merge")
    .description("put the rankings or hidden states of shards together, in the order of the input")
    .argument("<files...>", "the output that the shards were made for; or, with -o, their own files or records")
    .option("-o, --output <file>", "write there (- for stdout: rankings); states: stopped, the same command goes on")
    .addHelpText("after", EXAMPLES);
  addRestartOption(command);
  addOutputOptions(command, "a JSON summary as the last line on stderr").action(
    async (files: string[], flags: MergeFlags) => {
      process.exitCode = await runMerge(files, flags);
    },
  );
}

/** Says which machines did which shards, where they are not all of one kind. */
function noteMachines(machines: readonly MachineShards[]): void {
  if (machines.length < 2) return;
  note("note    the shards were made on different machines, which agree within rounding, not in every bit:");
  for (const { machine, shards } of machines) note(`        ${machine}: shard ${shards.join(", ")}`);
}

/** Runs the command. @returns the exit code */
async function runMerge(files: readonly string[], { output, restart = false, json }: MergeFlags): Promise<number> {
  const [first] = files;
  const byName = files.length === 1 && !first.endsWith(manifestPath("")) && !existsSync(manifestPath(first));
  if (!byName && output === undefined) {
    throw new StratumError(
      "usage/output",
      `${files.length === 1 ? "one shard" : "several files"} and no output`,
      "give -o FILE, or - for stdout",
    );
  }
  const target = output ?? first;
  const shards = await openShards(byName ? shardFiles(first, await divisions(first)) : files);
  const states = shards[0].manifest.states !== null;
  const inputs = shards.flatMap(({ path, manifest }) => outputFiles(path, manifest.states));
  const special = target !== undefined && target !== "-" && (await checkOutput(target, inputs));
  const machines = machinesOf(shards);
  noteMachines(machines);
  const stop = stopSignal();
  const about = { shards: shards.length, machines, output: target ?? null };
  if (states) {
    const path = checkStatesOutput(target, special);
    await checkOutput(indexPath(path), inputs);
    const { counts, resumed, written } = await withOutputLock(path, (held) =>
      mergeStates(shards, path, restart, held, stop),
    );
    return tell({ ...counts, resumed, ...about, written }, `${counted(counts.sequences, "sequence")} of `, json, stop);
  }
  const counts = await withOutput(target, { inputs, restart }, (out) => mergeRankings(shards, out, stop));
  return tell({ ...counts, ...about }, "", json, stop);
}

/** Writes all rankings. A half of them is of no use: the shards are still there. */
async function mergeRankings(shards: readonly FoundShard[], out: LineOutput, stop: StopSignal) {
  const progress = startProgress(countPlaced(shards), "lists");
  const counts = { lists: 0, failed: 0 };
  let waiting = "";
  try {
    for await (const { text, failed } of mergedLines(shards)) {
      if (stop.signal.aborted) break;
      counts.lists++;
      if (failed) counts.failed++;
      progress.add(1, 0);
      waiting += text;
      if (waiting.length < 2 ** 18) continue;
      await out.write(waiting);
      waiting = "";
    }
    if (!stop.signal.aborted) {
      await out.write(waiting);
      await out.finish();
    }
  } finally {
    progress.stop();
  }
  return counts;
}

interface MergeSummary {
  readonly lists?: number;
  readonly lines?: number;
  readonly failed: number;
  readonly shards: number;
  readonly resumed?: number;
  readonly written?: readonly string[];
}

/** Says what was done. @returns the exit code */
function tell(summary: MergeSummary, what: string, json: boolean | undefined, stop: StopSignal): number {
  const stopped = stop.exitCode();
  const { lists, lines = 0, failed, shards, written = [] } = summary;
  if (json) process.stderr.write(`${JSON.stringify({ ...summary, stopped: stopped !== undefined })}\n`);
  else {
    const items = lists === undefined ? `${counted(lines, "line")}` : `${counted(lists, "list")}`;
    note(
      `${stopped === undefined ? "merged" : "stopped"}  ${what}${items} of ${shards} shards${failed > 0 ? `; ${formatCount(failed)} failed` : ""}`,
    );
    for (const name of written) note(`wrote   ${name}`);
  }
  return stopped ?? (failed > 0 ? EXIT.someFailed : EXIT.ok);
}
