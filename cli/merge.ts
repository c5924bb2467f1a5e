/** `stratum merge`: the rankings of all shards, in the order of the input. */
import type { Command } from "commander";
import { StratumError } from "../errors.ts";
import { mergedLines, openShards, shardFiles } from "../scorer/merge.ts";
import { divisions } from "../scorer/shards.ts";
import { addOutputOptions } from "./common.ts";
import { formatCount } from "./format.ts";
import { checkOutput, openOutput } from "./output.ts";
import { EXIT, note, startProgress, stopSignal } from "./terminal.ts";

interface MergeFlags {
  readonly output?: string;
  readonly json?: boolean;
}

const EXAMPLES = `
Examples:
  $ stratum rank lists.jsonl --shard 1/2 -o rankings.jsonl     # on one machine
  $ stratum rank lists.jsonl --shard 2/2 -o rankings.jsonl     # on another
  $ stratum merge rankings.jsonl
  $ stratum merge a/rankings-00001-of-00002.jsonl b/rankings-00002-of-00002.jsonl -o rankings.jsonl

All shards must be there, once, of one run over one input. Shards of different adapters agree within rounding only: which
did what is said.`;

/** Declares the command. */
export function mergeCommand(program: Command): void {
  const command = program
    .command("merge")
    .description("put the rankings of shards together, in the order of the input")
    .argument("<rankings...>", "the output that the shards were ranked to, or the shards' own files with -o")
    .option("-o, --output <file>", "write there (- for stdout)")
    .addHelpText("after", EXAMPLES);
  addOutputOptions(command, "a JSON summary as the last line on stderr").action(
    async (files: string[], flags: MergeFlags) => {
      process.exitCode = await runMerge(files, flags);
    },
  );
}

/** Runs the command. @returns the exit code */
async function runMerge(files: readonly string[], { output, json }: MergeFlags): Promise<number> {
  const byName = files.length === 1 && output === undefined;
  if (!byName && output === undefined) {
    throw new StratumError("usage/output", "several files and no output", "give -o FILE, or - for stdout");
  }
  const target = byName ? files[0] : output;
  const inputs = byName ? shardFiles(files[0], await divisions(files[0])) : files;
  if (target !== undefined && target !== "-") await checkOutput(target, inputs);
  const shards = await openShards(inputs);
  const adapters = new Map<string, number[]>();
  for (const { manifest } of shards) {
    const { adapter, kernels } = manifest.machine;
    const name = `${adapter}, kernels ${kernels}`;
    adapters.set(name, [...(adapters.get(name) ?? []), manifest.shard.index]);
  }
  if (adapters.size > 1) {
    note("note    the shards were ranked on different machines, which agree within rounding, not in every bit:");
    for (const [name, indices] of adapters) note(`        ${name}: shard ${indices.join(", ")}`);
  }
  const stop = stopSignal();
  const out = await openOutput(target, { inputs, keeps: false });
  const total = shards.reduce((sum, { manifest }) => sum + manifest.lists, 0);
  const progress = startProgress(total, "lists");
  const counts = { lists: 0, failed: 0 };
  let waiting = "";
  let finished = false;
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
      finished = true;
    }
  } finally {
    progress.stop();
    // A half of a merge is of no use: the shards are still there.
    if (!finished) await out.leave();
  }
  const machines = [...adapters].map(([machine, own]) => ({ machine, shards: own }));
  const summary = { ...counts, shards: shards.length, machines, output: target ?? null, stopped: !finished };
  if (json) process.stderr.write(`${JSON.stringify(summary)}\n`);
  else
    note(
      `${finished ? "merged" : "stopped"}  ${formatCount(counts.lists)} lists of ${shards.length} shards${counts.failed > 0 ? `; ${formatCount(counts.failed)} failed` : ""}`,
    );
  return stop.exitCode() ?? (counts.failed > 0 ? EXIT.someFailed : EXIT.ok);
}
