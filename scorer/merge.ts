/** Rankings of shards, put together in the order of the input: what one run over all of it would have written. */
import { createHash, type Hash } from "node:crypto";
import { existsSync } from "node:fs";
import { StratumError } from "../errors.ts";
import { show } from "../weights/json.ts";
import { createIdRegister } from "./id-register.ts";
import { checkSameFacts, type RunFacts } from "./journal.ts";
import { splitLines } from "./json-lines.ts";
import { atLine, duplicateId, type Id } from "./lists.ts";
import { errorRecord, toJsonLine } from "./rankings.ts";
import { journalPath } from "./resume.ts";
import { readManifest, type ShardManifest, type ShardRange } from "./shard-manifest.ts";
import { shardPath } from "./shards.ts";

/** A shard's rankings with their record. */
export interface FoundShard {
  readonly path: string;
  readonly manifest: ShardManifest;
}

export interface MergedLine {
  /** With its newline. */
  readonly text: string;
  readonly failed: boolean;
}

/**
 * Reads the records of shards and checks that they are all shards of one run, each once.
 * @param paths rankings of shards
 * @returns them in order
 * @throws {StratumError} `usage/no-shard`, `usage/bad-shard`, `usage/other-run`, `usage/shard-twice`, `usage/shard-missing`
 */
export async function openShards(paths: readonly string[]): Promise<FoundShard[]> {
  const found: FoundShard[] = [];
  for (const path of paths) found.push({ path, manifest: await readManifest(path) });
  const [first] = found;
  if (first === undefined)
    throw new StratumError("usage/shard-missing", "no shard was given", "give the files of all shards");
  const factsOf = ({ manifest: { run, whole, shard } }: FoundShard): RunFacts => ({
    ...run,
    shards: shard.count,
    "input's bytes": whole.bytes,
    "input's sha256": whole.sha256.slice(0, 16),
  });
  for (const each of found.slice(1)) {
    try {
      checkSameFacts(factsOf(first), factsOf(each), each.path);
    } catch (cause) {
      if (!(cause instanceof StratumError)) throw cause;
      const message = cause.message.slice(cause.message.indexOf(": ") + 2);
      throw new StratumError(
        "usage/other-run",
        `${first.path} and ${each.path} are of two runs: ${message}`,
        "give the shards of one run; rank again what was ranked with other words",
      );
    }
  }
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
  return [...places].sort(([a], [b]) => a - b).map(([, each]) => each);
}

function missingShards(missing: readonly number[], count: number, why = ""): StratumError {
  const some = missing.slice(0, 20).join(", ");
  return new StratumError(
    "usage/shard-missing",
    `${missing.length} of ${count} shards are missing${why}: ${some}${missing.length > 20 ? ", ..." : ""}`,
    "rank them, with the words of the others and --shard i/n, and merge again",
  );
}

/**
 * The files of the shards of an output, by their names.
 * @param names the folder's files
 * @throws {StratumError} `usage/shard-missing`
 */
export function shardFiles(output: string, counts: readonly number[]): string[] {
  const [count] = counts;
  if (count === undefined) {
    throw new StratumError(
      "usage/shard-missing",
      `there is no shard of ${output}`,
      `rank with --shard i/n -o ${output} first, or give the shards' files and -o`,
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
  const missing = paths.flatMap((path, i) => (existsSync(path) ? [] : [i + 1]));
  if (missing.length === 0) return paths;
  const unfinished = paths.filter((path) => existsSync(journalPath(path))).length;
  throw missingShards(missing, count, unfinished > 0 ? ` (${unfinished} begun and not finished)` : "");
}

/** A shard's lines, read on where the last stretch ended. */
interface Reading {
  readonly shard: FoundShard;
  readonly lines: AsyncGenerator<{ readonly bytes: Uint8Array | null }>;
  readonly hash: Hash;
  bytes: number;
}

/**
 * The lines of all shards in the order of the input. Ids that two shards use are found here, and give the error that one
 * run would have given.
 * @throws {StratumError} `usage/shard-changed` where a shard's rankings are not those of its record
 */
export async function* mergedLines(shards: readonly FoundShard[]): AsyncGenerator<MergedLine> {
  const register = createIdRegister();
  const readings = shards.map((shard): Reading => {
    const lines = splitLines(shard.path, Number.POSITIVE_INFINITY);
    return { shard, lines, hash: createHash("sha256"), bytes: 0 };
  });
  const stretches = readings
    .flatMap((reading) => reading.shard.manifest.ranges.map((range) => ({ reading, range })))
    .sort((a, b) => a.range.start - b.range.start);
  checkTiling(
    stretches.map(({ range }) => range),
    shards[0].manifest.whole.bytes,
  );
  try {
    for (const { reading, range } of stretches) {
      const blank = new Set(range.blank);
      for (let line = range.line; line < range.line + range.lines; line++) {
        if (blank.has(line)) continue;
        const text = await nextLine(reading);
        yield merged(text, line, (id) => register.claim(id, line));
      }
    }
    for (const { shard, lines, hash, bytes } of readings) {
      const { output } = shard.manifest;
      if (!(await lines.next()).done || bytes !== output.bytes || hash.digest("hex") !== output.sha256)
        throw changed(shard);
    }
  } finally {
    for (const { lines } of readings) await lines.return(undefined);
  }
}

function checkTiling(ranges: readonly ShardRange[], size: number): void {
  let at = 0;
  for (const { start, end } of ranges) {
    if (start !== at) break;
    at = end;
  }
  if (at === size) return;
  throw new StratumError(
    "usage/bad-shard",
    `the shards leave out or share what lies at byte ${at} of the input`,
    "rank the shards again: their records contradict each other",
  );
}

async function nextLine(reading: Reading): Promise<string> {
  const { value, done } = await reading.lines.next();
  if (done || value.bytes === null) throw changed(reading.shard);
  const text = `${Buffer.from(value.bytes).toString("utf8")}\n`;
  reading.hash.update(text);
  reading.bytes += Buffer.byteLength(text);
  return text;
}

function changed({ path, manifest }: FoundShard): StratumError {
  return new StratumError(
    "usage/shard-changed",
    `${path} is not what its record says: ${manifest.lists} rankings in ${manifest.output.bytes} bytes`,
    "rank this shard again, with --restart",
  );
}

/** Every record begins with its id. */
const HEAD = /^\{"id":("(?:[^"\\]|\\.)*"|-?[0-9][^,}]*),("error":\{"code":"([^"]*)","message":"((?:[^"\\]|\\.)*)")?/;
/** Errors of lines whose id could not be read: their number stands for it, and nothing is said of it. */
const UNREAD = ["list/bad-utf8", "list/bad-json", "list/too-long"];

function merged(text: string, line: number, claim: (id: Id) => number | undefined): MergedLine {
  const head = HEAD.exec(text);
  if (head === null) {
    throw new StratumError(
      "usage/bad-shard",
      `the record of line ${line} has no id: ${show(text.slice(0, 80))}`,
      "give files that `stratum rank --shard` wrote",
    );
  }
  const [, idText, failed, code = "", message = ""] = head;
  const id = JSON.parse(idText) as Id;
  const earlier = claim(id);
  const unread = UNREAD.includes(code) || message.startsWith(`line ${line}: id:`);
  if (earlier === undefined || unread || code === "list/duplicate-id") return { text, failed: failed !== undefined };
  return { text: toJsonLine(errorRecord(id, atLine(duplicateId(id, earlier), line))), failed: true };
}
