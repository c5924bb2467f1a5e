/** The record beside a shard's rankings: which run and which lines they are of. It appears when they are whole. */
import { rename, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { z } from "zod";
import { StratumError } from "../errors.ts";
import { hashFile, syncFolder, writeFailed, writeSynced } from "../weights/durable.ts";
import { readJsonFile } from "../weights/json.ts";
import { factsSchema, rangeSchema, type WholeInput, wholeSchema } from "./journal.ts";
import { isBlank, type LineRange, splitLines } from "./json-lines.ts";
import { MAX_LINE_BYTES } from "./lists.ts";
import { manifestPath, type Shard } from "./shards.ts";

const count = z.int().min(0);

const schema = z.object({
  stratum: z.literal("shard 1"),
  shard: z.object({ index: z.int().min(1), count: z.int().min(1) }),
  /** What must be the same for all shards. */
  run: factsSchema,
  whole: wholeSchema,
  /** What the system said of the input, for a shard that is begun again. */
  input: factsSchema.nullable(),
  /** The stretches of the input, how many lines they have, and which of them are blank: those have no record. */
  ranges: z.array(rangeSchema.extend({ lines: count, blank: z.array(count) })),
  machine: z.object({ adapter: z.string(), kernels: z.string() }),
  lists: count,
  failed: count,
  output: z.object({ bytes: count, sha256: z.string() }),
});

export type ShardManifest = Readonly<z.infer<typeof schema>>;
export type ShardRange = ShardManifest["ranges"][number];

const FILE = {
  what: "the record of a shard",
  maxBytes: 2 ** 28,
  missing: "usage/no-shard",
  bad: "usage/bad-shard",
  fix: "rank the shard again, with --restart",
} as const;

/** @throws {StratumError} `usage/no-shard`, `usage/bad-shard` */
export async function readManifest(output: string): Promise<ShardManifest> {
  const path = manifestPath(output);
  const parsed = schema.safeParse(await readJsonFile(path, FILE));
  if (parsed.success) return parsed.data;
  throw new StratumError("usage/bad-shard", `${path} is no record of a shard that this version can read`, FILE.fix);
}

export interface ShardRecord extends Pick<ShardManifest, "run" | "input" | "machine" | "lists" | "failed"> {
  readonly shard: Shard;
  readonly ranges: readonly LineRange[];
  readonly whole: WholeInput;
}

/**
 * Writes the record of a shard's rankings.
 * @param input the whole file of lists
 * @param lines where the rankings lie now
 * @param output their name
 * @throws {StratumError} `file/write-failed`, `file/unreadable`
 */
export async function writeManifest(input: string, lines: string, output: string, record: ShardRecord): Promise<void> {
  const path = manifestPath(output);
  const temporary = `${path}.partial`;
  try {
    const manifest: ShardManifest = {
      stratum: "shard 1",
      ...record,
      ranges: await surveyed(input, record.ranges),
      output: { bytes: (await stat(lines)).size, sha256: await hashFile(lines) },
    };
    await rm(temporary, { force: true });
    await writeSynced(temporary, `${JSON.stringify(manifest)}\n`);
    await rename(temporary, path);
    await syncFolder(dirname(path));
  } catch (cause) {
    throw writeFailed(path, cause);
  }
}

/** Counts the lines of stretches and finds the blank ones. */
async function surveyed(input: string, ranges: readonly LineRange[]): Promise<ShardRange[]> {
  const found: ShardRange[] = [];
  for (const range of ranges) {
    const from = { line: range.line - 1, bytes: range.start, hash: "" };
    const blank: number[] = [];
    let lines = 0;
    for await (const { line, bytes } of splitLines(input, MAX_LINE_BYTES, { from, until: range.end })) {
      lines++;
      if (bytes !== null && isBlank(bytes)) blank.push(line);
    }
    found.push({ ...range, lines, blank });
  }
  return found;
}
