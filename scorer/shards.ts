/**
 * Shards: a file of lists divided for processes that know nothing of each other but their number.
 *
 * Lines are dealt in runs of neighbours, each to the shard that has the least so far, by bytes. Bytes stand for tokens:
 * to count those, every shard would have to encode every list, which costs more than its own share of the reading; and in
 * runs taken from the whole file, what makes a line's bytes many tokens or few (its language, fields that are passed
 * through) falls on all shards alike. Everything follows from the file and the count: the same on every machine.
 */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { basename, dirname } from "node:path";
import { messageOf, StratumError } from "../errors.ts";
import type { WholeInput } from "./journal.ts";
import type { LineRange } from "./json-lines.ts";
import { createLoads } from "./least-loaded.ts";
import { type InputPlan, journalPath } from "./resume.ts";

/** A share: number `index` of `count`, counted from 1. */
export interface Shard {
  readonly index: number;
  readonly count: number;
}

export interface ShardPlan extends InputPlan {
  /** Lines of the shard. */
  readonly total: number;
  /** The shard's stretches, in the order of the file. */
  readonly ranges: readonly LineRange[];
  readonly whole: WholeInput;
}

/** Runs a shard gets, about: as many as make the largest unfairness 1 in 64. */
const RUNS = 64;
export const MOST_SHARDS = 100_000;

/** @throws {StratumError} `usage/shard` */
export function checkShard({ index, count }: Shard): Shard {
  const whole = Number.isSafeInteger(index) && Number.isSafeInteger(count);
  if (whole && count >= 1 && count <= MOST_SHARDS && index >= 1 && index <= count) return { index, count };
  throw new StratumError(
    "usage/shard",
    `there is no shard ${index}/${count}`,
    `count shards from 1: 1/${whole && count >= 1 ? count : "n"} is the first, n/n the last; at most ${MOST_SHARDS}`,
  );
}

/**
 * The lines of one shard of a regular file.
 * @throws {StratumError} `file/unreadable`, `usage/shard` for a pipe
 */
export async function planShard(path: string, shard: Shard): Promise<ShardPlan> {
  try {
    const found = await stat(path);
    if (found.isFile()) return await deal(path, found.size, shard);
    throw new StratumError(
      "usage/shard",
      `${path} is no regular file: each shard reads all of it to know its own lines`,
      "write it to a file first, one that all shards can read",
    );
  } catch (cause) {
    if (cause instanceof StratumError) throw cause;
    throw new StratumError("file/unreadable", `cannot read ${path}: ${messageOf(cause)}`, "check the path", cause);
  }
}

async function deal(path: string, size: number, { index, count }: Shard): Promise<ShardPlan> {
  const hash = createHash("sha256");
  const runBytes = Math.max(1, Math.floor(size / (count * RUNS)));
  const loads = createLoads(count);
  const ranges: LineRange[] = [];
  let own = 0;
  let run = { line: 1, start: 0 };
  let line = 0;
  const dealRun = (end: number) => {
    if (loads.give(end - run.start) === index - 1) {
      own += line - run.line + 1;
      const last = ranges.at(-1);
      if (last?.end === run.start) ranges[ranges.length - 1] = { ...last, end };
      else ranges.push({ ...run, end });
    }
    run = { line: line + 1, start: end };
  };
  let offset = 0;
  let last = 0x0a;
  for await (const chunk of createReadStream(path, { highWaterMark: 2 ** 20 })) {
    const bytes = chunk as Buffer;
    hash.update(bytes);
    for (let at = bytes.indexOf(0x0a); at >= 0; at = bytes.indexOf(0x0a, at + 1)) {
      line++;
      const end = offset + at + 1;
      if (end - run.start >= runBytes) dealRun(end);
    }
    offset += bytes.length;
    last = bytes.at(-1) ?? last;
  }
  // The last line may have no newline.
  if (last !== 0x0a) line++;
  if (offset > run.start) dealRun(offset);
  return { total: own, ranges, whole: { lines: line, bytes: offset, sha256: hash.digest("hex") } };
}

/** `out-00002-of-00008.jsonl` for shard 2 of 8 of `out.jsonl`: as checkpoints name theirs. */
export function shardPath(output: string, { index, count }: Shard): string {
  const name = output.slice(Math.max(output.lastIndexOf("/"), output.lastIndexOf("\\")) + 1);
  const dot = name.lastIndexOf(".");
  const cut = dot > 0 ? output.length - name.length + dot : output.length;
  const number = (value: number) => String(value).padStart(5, "0");
  return `${output.slice(0, cut)}-${number(index)}-of-${number(count)}${output.slice(cut)}`;
}

/** Beside a shard's output: whose it is. */
export function manifestPath(output: string): string {
  return `${output}.shard.json`;
}

/** Into how many shards an output lies divided beside its name: shards that are whole, and begun ones. */
export async function divisions(output: string): Promise<number[]> {
  const names = await readdir(dirname(output)).catch(() => []);
  const counts = new Set<number>();
  for (const name of names) {
    const [, index, count] = /-(\d{5,})-of-(\d{5,})/.exec(name) ?? [];
    if (index === undefined || Number(count) < 1) continue;
    const own = basename(shardPath(output, { index: Number(index), count: Number(count) }));
    if ([own, manifestPath(own), journalPath(own)].includes(name)) counts.add(Number(count));
  }
  return [...counts].sort((a, b) => a - b);
}

/**
 * Refuses a shard of another division than the one that lies there: a part of a Slurm array that is submitted again is
 * an array of its own, whose tasks would do all lists once more, and no merge would take them.
 * @throws {StratumError} `usage/shard`
 */
export async function checkDivision(output: string, { index, count }: Shard): Promise<void> {
  const others = (await divisions(output)).filter((other) => other !== count);
  if (others.length === 0) return;
  throw new StratumError(
    "usage/shard",
    `shard ${index}/${count} of ${output}, which lies there in shards of another division: into ${others.join(", into ")}`,
    `go on with --shard i/${others[0]} (of a Slurm array submit all tasks again: shards that are whole end at once), give -o another name, or remove the others`,
  );
}

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * The shard that a scheduler gave this process: of a Slurm array, or of an indexed Job of Kubernetes (whose size is no
 * variable of its own: `JOB_COMPLETIONS` is for the manifest to set).
 * @throws {StratumError} `usage/shard` where there is none, or it is incomplete
 */
export function shardOfEnvironment(env: Environment): Shard {
  const number = (name: string): number | undefined => {
    const text = env[name];
    if (text === undefined || text === "") return undefined;
    if (/^\d+$/.test(text)) return Number(text);
    throw new StratumError("usage/shard", `${name}=${text} is no number`, "give --shard i/n");
  };
  const task = number("SLURM_ARRAY_TASK_ID");
  if (task !== undefined) {
    const count = number("SLURM_ARRAY_TASK_COUNT");
    const first = number("SLURM_ARRAY_TASK_MIN") ?? 1;
    const step = number("SLURM_ARRAY_TASK_STEP") ?? 1;
    if (count === undefined) {
      throw new StratumError(
        "usage/shard",
        "SLURM_ARRAY_TASK_ID is set, and SLURM_ARRAY_TASK_COUNT is not",
        "run it as a Slurm array, or give --shard i/n",
      );
    }
    const last = number("SLURM_ARRAY_TASK_MAX") ?? first + (count - 1) * step;
    const index = (task - first) / step + 1;
    // Some tasks of an array, submitted again by their numbers, are an array to Slurm, and a smaller one.
    const even = last === first + (count - 1) * step && (count > 1 || first <= 1);
    if (even && Number.isInteger(index) && index >= 1 && index <= count) return checkShard({ index, count });
    throw new StratumError(
      "usage/shard",
      `task ${task} of an array of ${count} from ${first} to ${last} in steps of ${step} does not say which share is its own`,
      "number the array evenly, as in --array=1-8; to repeat some of its tasks submit all of it, since shards that are whole end at once, or give --shard $SLURM_ARRAY_TASK_ID/8",
    );
  }
  const completion = number("JOB_COMPLETION_INDEX");
  const completions = number("JOB_COMPLETIONS");
  if (completion !== undefined && completions !== undefined)
    return checkShard({ index: completion + 1, count: completions });
  throw new StratumError(
    "usage/shard",
    completion === undefined
      ? "--shard auto finds neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX"
      : "JOB_COMPLETION_INDEX is set, and JOB_COMPLETIONS is not",
    completion === undefined
      ? "run it as a Slurm array or as an indexed Job, or give --shard i/n"
      : "set JOB_COMPLETIONS in the Job's manifest to its completions, or give --shard i/n",
  );
}
