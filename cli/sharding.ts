/** Which share of an input is a process's own, and how to begin anew: what `rank` and `extract` have in common. */
import { type Command, InvalidArgumentError } from "commander";
import { StratumError } from "../errors.ts";
import type { RunFacts } from "../scorer/journal.ts";
import type { InputPlan } from "../scorer/resume.ts";
import { finishedShard, type ShardManifest } from "../scorer/shard-manifest.ts";
import { checkDivision, checkShard, planShard, type Shard, shardOfEnvironment, shardPath } from "../scorer/shards.ts";
import { countLines } from "./common.ts";
import { checkOutput } from "./output.ts";
import { note } from "./terminal.ts";

export interface ShardFlags {
  readonly restart?: boolean;
  readonly shard?: Shard;
}

/** Adds the options of {@link ShardFlags}. @param verb what the command does */
export function addShardOptions(command: Command, verb: string): Command {
  return addRestartOption(command).option(
    "--shard <i/n>",
    `${verb} share i of n, into OUT-0000i-of-0000n (auto: of a Slurm array or an indexed Job of Kubernetes); see merge`,
    parseShard,
  );
}

/** Adds `--restart`. */
export function addRestartOption(command: Command): Command {
  return command.option("--restart", "throw away what an earlier run left beside the output");
}

/** `2/8`, counted from 1, or `auto`: what a scheduler says. */
function parseShard(text: string): Shard {
  if (text === "auto") return shardOfEnvironment(process.env);
  const [, index, count] = /^(\d+)\/(\d+)$/.exec(text) ?? [];
  if (index === undefined) throw new InvalidArgumentError("i/n is needed, such as 1/8 for the first of 8, or auto.");
  return checkShard({ index: Number(index), count: Number(count) });
}

/** Says so where each task of a scheduler is about to do all of the work. */
export function noteUnsharded(shard: Shard | undefined): void {
  const { SLURM_ARRAY_TASK_COUNT: array, JOB_COMPLETION_INDEX: job } = process.env;
  if (shard !== undefined || (array === undefined && job === undefined)) return;
  const task = array === undefined ? "a pod of an indexed Job" : "a task of a Slurm array";
  note(`note    ${task} without --shard does all of the input; --shard auto does its share`);
}

/**
 * The output's name, or that of a share of it.
 * @param path the input; null for none
 * @throws {StratumError} `usage/shard` where it cannot be shared, or is shared otherwise; as `checkOutput`
 */
export async function shardOutput(
  path: string | null,
  { output, shard, append = false }: ShardFlags & { readonly output?: string; readonly append?: boolean },
): Promise<string | undefined> {
  if (shard === undefined) return output;
  const files = path !== null && path !== "-" && output !== undefined && output !== "-";
  const name = files ? shardPath(output, shard) : undefined;
  if (files && name !== undefined && !append && !(await checkOutput(name, [path]))) {
    await checkDivision(output, shard);
    return name;
  }
  throw new StratumError(
    "usage/shard",
    "a shard is of a file and goes into a file of its own",
    `give the file's name and -o FILE${append ? ", and no --append" : ""}`,
  );
}

/** How many lines there are, and which of them are the process's own. */
export async function planInput(path: string, shard: Shard | undefined): Promise<InputPlan> {
  if (shard !== undefined) return planShard(path, shard);
  return { total: (await countLines(path)) ?? null, ranges: null, whole: null };
}

/**
 * The record of a shard that an earlier run finished, said on stderr.
 * @throws {StratumError} `usage/other-run`, `usage/bad-shard`
 */
export async function doneShard(
  { shard, restart = false }: ShardFlags,
  output: string,
  run: RunFacts,
  input: string,
): Promise<ShardManifest | null> {
  const done = shard === undefined || restart ? null : await finishedShard(output, run, input);
  if (done !== null) note(`resume  shard ${shard?.index}/${shard?.count} was done: ${output}`);
  return done;
}
