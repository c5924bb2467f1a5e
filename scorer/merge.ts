/** Shards that belong together, and the order in which their lines make up one output again. */
import { existsSync } from "node:fs";
import { StratumError } from "../errors.ts";
import type { IdRegister } from "./id-register.ts";
import { checkSameFacts, type RunFacts } from "./journal.ts";
import { atLine, duplicateId, type Id, isIdUnread } from "./lists.ts";
import { journalPath } from "./resume.ts";
import { checkSizes, readManifest, type ShardManifest } from "./shard-manifest.ts";
import { manifestPath, shardPath } from "./shards.ts";

/** A shard's output with its record. */
export interface FoundShard {
  /** The output's name: of states in parts, the one that the parts are numbered from. */
  readonly path: string;
  readonly manifest: ShardManifest;
}

/**
 * Reads the records of shards and checks that they are all shards of one run, each once, and that their files have the
 * lengths that they had.
 * @param paths outputs of shards, or their records
 * @returns them in order
 * @throws {StratumError} `usage/no-shard`, `usage/bad-shard`, `usage/mixed-shards`, `usage/other-run`, `usage/shard-twice`,
 *   `usage/shard-missing`, `usage/shard-changed`
 */
export async function openShards(paths: readonly string[]): Promise<FoundShard[]> {
  const found: FoundShard[] = [];
  for (const each of paths) {
    const path = each.endsWith(RECORD) ? each.slice(0, -RECORD.length) : each;
    found.push({ path, manifest: await readManifest(path) });
  }
  const [first] = found;
  if (first === undefined)
    throw new StratumError("usage/shard-missing", "no shard was given", "give the files of all shards");
  for (const each of found.slice(1)) checkSameRun(first, each);
  const { count } = first.manifest.shard;
  const places = new Map<number, FoundShard>();
  for (const each of found) {
    const { index } = each.manifest.shard;
    const other = places.get(index);
    if (other !== undefined) {
      throw new StratumError(
        "usage/shard-twice",
        `shard ${index} of ${count} is there twice: ${other.path} and ${each.path}`,
        "give each shard once",
      );
    }
    places.set(index, each);
  }
  const missing = Array.from({ length: count }, (_, i) => i + 1).filter((index) => !places.has(index));
  if (missing.length > 0) throw missingShards(missing, count);
  for (const { path, manifest } of found) await checkSizes(path, manifest);
  return [...places].sort(([a], [b]) => a - b).map(([, each]) => each);
}

const RECORD = manifestPath("");

function checkSameRun(first: FoundShard, other: FoundShard): void {
  const kind = ({ manifest }: FoundShard) => (manifest.states === null ? "rankings" : "hidden states");
  if (kind(first) !== kind(other)) {
    throw new StratumError(
      "usage/mixed-shards",
      `${first.path} holds ${kind(first)} and ${other.path} ${kind(other)}`,
      "merge the shards of `rank` and those of `extract` one after the other, each into an output of its own",
    );
  }
  const factsOf = ({ manifest: { run, whole, shard } }: FoundShard): RunFacts => ({
    ...run,
    shards: shard.count,
    "input's bytes": whole.bytes,
    "input's sha256": whole.sha256.slice(0, 16),
  });
  try {
    checkSameFacts(factsOf(first), factsOf(other), other.path);
  } catch (cause) {
    if (!(cause instanceof StratumError)) throw cause;
    const message = cause.message.slice(cause.message.indexOf(": ") + 2);
    throw new StratumError(
      "usage/other-run",
      `${first.path} and ${other.path} are of two runs: ${message}`,
      "give the shards of one run; those made with other words have to be made again",
    );
  }
}

function missingShards(missing: readonly number[], count: number, why = ""): StratumError {
  const some = missing.slice(0, 20).join(", ");
  return new StratumError(
    "usage/shard-missing",
    `${missing.length} of ${count} shards ${missing.length === 1 ? "is" : "are"} missing${why}: ${some}${missing.length > 20 ? ", ..." : ""}`,
    "make them, with the words of the others and --shard i/n, and merge again",
  );
}

/**
 * The shards of an output, by their names.
 * @param counts into how many shards it lies divided
 * @throws {StratumError} `usage/shard-missing`
 */
export function shardFiles(output: string, counts: readonly number[]): string[] {
  const [count] = counts;
  if (count === undefined) {
    throw new StratumError(
      "usage/shard-missing",
      `there is no shard of ${output}`,
      `give \`rank\` or \`extract\` --shard i/n -o ${output} first, or give the shards' files and -o`,
    );
  }
  if (counts.length > 1) {
    throw new StratumError(
      "usage/shard-missing",
      `${output} lies there in shards of ${counts.length} divisions: into ${counts.join(", into ")}`,
      "give the files of one division and -o, or remove the others",
    );
  }
  const paths = Array.from({ length: count }, (_, i) => shardPath(output, { index: i + 1, count }));
  // States in parts have no file of the shard's own name. A journal goes last: while it is there, names may be missing.
  const begun = (path: string) => existsSync(journalPath(path));
  const there = (path: string) => !begun(path) && (existsSync(path) || existsSync(manifestPath(path)));
  const missing = paths.flatMap((path, i) => (there(path) ? [] : [i + 1]));
  if (missing.length === 0) return paths;
  const unfinished = paths.filter(begun).length;
  throw missingShards(missing, count, unfinished > 0 ? ` (${unfinished} begun and not finished)` : "");
}

/** A line of the input that is not blank, and so has its place in the output. */
export interface PlacedLine {
  /** Of the shards, from 0. */
  readonly shard: number;
  /** Counted from 1. */
  readonly line: number;
  /** Where the line's stretch ends in the input. */
  readonly end: number;
}

/**
 * The lines of the input in its order, and which shard has each.
 * @throws {StratumError} `usage/bad-shard` where the shards' stretches are not the whole input, each once
 */
export function* placedLines(shards: readonly FoundShard[]): Generator<PlacedLine> {
  const stretches = shards
    .flatMap(({ manifest }, shard) => manifest.ranges.map((range) => ({ shard, range })))
    .sort((a, b) => a.range.start - b.range.start);
  let at = 0;
  for (const { range } of stretches) {
    if (range.start !== at) break;
    at = range.end;
  }
  if (at !== shards[0].manifest.whole.bytes) {
    throw new StratumError(
      "usage/bad-shard",
      `the shards leave out or share what lies at byte ${at} of the input`,
      "make the shards again: their records contradict each other",
    );
  }
  for (const { shard, range } of stretches) {
    const blank = new Set(range.blank);
    for (let line = range.line; line < range.line + range.lines; line++)
      if (!blank.has(line)) yield { shard, line, end: range.end };
  }
}

/** How many lines of the input have a place in the output. */
export function countPlaced(shards: readonly FoundShard[]): number {
  return shards
    .flatMap(({ manifest }) => manifest.ranges)
    .reduce((sum, { lines, blank }) => sum + lines - blank.length, 0);
}

/** Shards of machines of one kind. */
export interface MachineShards {
  readonly machine: string;
  /** Their numbers, from 1. */
  readonly shards: readonly number[];
}

/** Which machines did which shards. */
export function machinesOf(shards: readonly Pick<FoundShard, "manifest">[]): MachineShards[] {
  const machines = new Map<string, number[]>();
  for (const { manifest } of shards) {
    const { adapter, kernels } = manifest.machine;
    const machine = `${adapter}, kernels ${kernels}`;
    const known = machines.get(machine);
    if (known === undefined) machines.set(machine, [manifest.shard.index]);
    else known.push(manifest.shard.index);
  }
  return [...machines].map(([machine, own]) => ({ machine, shards: own }));
}

export interface PlacedRecord {
  readonly line: number;
  readonly id: Id;
  /** Of a line that could not be used. */
  readonly error?: { readonly code: string; readonly message: string } | undefined;
}

/**
 * Claims the id of a record, in the order of the input: shards know nothing of each other's ids.
 * @returns the error that one run would have given, where an earlier line has the id
 */
export function claimPlaced(register: IdRegister, { line, id, error }: PlacedRecord): StratumError | null {
  const earlier = register.claim(id, line);
  if (earlier === undefined || (error !== undefined && isIdUnread(error.code, error.message, line))) return null;
  return atLine(duplicateId(id, earlier), line);
}
