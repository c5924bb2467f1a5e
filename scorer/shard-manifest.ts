/** The record beside a shard's output: which run and which lines it is of. It appears when the output is whole. */
import { existsSync } from "node:fs";
import { rename, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { z } from "zod";
import { StratumError } from "../errors.ts";
import { hashFile, syncFolder, writeFailed, writeSynced } from "../weights/durable.ts";
import { readJsonFile, unreadable } from "../weights/json.ts";
import { nonEmpty } from "../weights/schema.ts";
import { sealed, unsealed } from "../weights/seal.ts";
import { checkSameFacts, factsSchema, type RunFacts, rangeSchema, type WholeInput, wholeSchema } from "./journal.ts";
import { isBlank, type LineRange, splitLines } from "./json-lines.ts";
import { MAX_LINE_BYTES } from "./lists.ts";
import { inputFacts, journalPath } from "./resume.ts";
import { MOST_SHARDS, manifestPath, type Shard } from "./shards.ts";
import { indexPath, statesPaths } from "./states-writer.ts";

const count = z.int().min(0);

const fileSchema = z.object({ bytes: count, sha256: z.string() });

const statesSchema = z.object({
  /** Numbered parts; 0 where one file holds all. */
  parts: count,
  /** K */
  layers: z.int().min(1),
  tokens: z.enum(["last", "all"]),
  /** D */
  d: z.int().min(1),
  partBytes: z.int().min(1),
  /** Of the files. */
  metadata: z.record(z.string(), z.string()),
});

const schema = z.object({
  stratum: z.literal("shard 2"),
  shard: z.object({ index: z.int().min(1), count: z.int().min(1).max(MOST_SHARDS) }),
  /** What must be the same for all shards. */
  run: factsSchema,
  whole: wholeSchema,
  /** What the system said of the input, for a shard that is begun again. */
  input: factsSchema.nullable(),
  /** The stretches of the input, how many lines they have, and which of them are blank: those have no record. */
  ranges: z.array(rangeSchema.extend({ lines: count, blank: z.array(count) })),
  machine: z.object({ adapter: z.string(), kernels: z.string() }),
  counts: z.record(z.string(), count),
  /** How the states lie in their files; null for rankings. */
  states: statesSchema.nullable(),
  /** In the order of {@link outputFiles}. */
  files: nonEmpty(z.array(fileSchema)),
});

export type ShardManifest = Readonly<z.infer<typeof schema>>;
export type ShardRange = ShardManifest["ranges"][number];
export type ShardStates = NonNullable<ShardManifest["states"]>;
export type ShardFile = Readonly<z.infer<typeof fileSchema>>;

const FILE = {
  what: "the record of a shard",
  maxBytes: 2 ** 28,
  missing: "usage/no-shard",
  bad: "usage/bad-shard",
  fix: "give what `rank` or `extract` finished with --shard; where the record is lost, give that command again with --restart",
} as const;

/** The files of a shard's output: rankings are one; states have theirs, and the lines that say whose they are, last. */
export function outputFiles(output: string, states: Pick<ShardStates, "parts"> | null): string[] {
  return states === null ? [output] : [...statesPaths(output, states.parts), indexPath(output)];
}

/** @throws {StratumError} `usage/no-shard`, `usage/bad-shard` */
export async function readManifest(output: string): Promise<ShardManifest> {
  const path = manifestPath(output);
  const parsed = schema.safeParse(unsealed(await readJsonFile(path, FILE)));
  if (parsed.success && parsed.data.files.length === outputFiles(output, parsed.data.states).length) return parsed.data;
  throw new StratumError(
    "usage/bad-shard",
    `${path} is damaged, or no record of a shard that this version can read`,
    FILE.fix,
  );
}

/** Checks that the files have the lengths that their record says. @throws {StratumError} `usage/shard-changed` */
export async function checkSizes(output: string, { files, states }: ShardManifest): Promise<void> {
  for (const [i, path] of outputFiles(output, states).entries()) {
    const size = await stat(path).then(
      (found) => (found.isFile() ? found.size : null),
      () => null,
    );
    if (size !== files[i].bytes)
      throw changedFile(path, files[i], size === null ? "is not there" : `has ${size} bytes`);
  }
}

/** What is wrong with a file that has the right length. */
export const CHANGED = "is not what it was";

/** The error of a file that is not what its shard's record says. */
export function changedFile(path: string, { bytes }: ShardFile, found: string): StratumError {
  return new StratumError(
    "usage/shard-changed",
    `${path} ${found}; it had ${bytes} bytes when its shard was finished`,
    "copy it again, or give the command of this shard again with --restart",
  );
}

/**
 * The record of a shard that is whole: of this run, and of an input that is what it was.
 * @throws {StratumError} `usage/other-run`, `usage/bad-shard`, `usage/no-input`, `file/unreadable`
 */
export async function finishedShard(output: string, run: RunFacts, input: string): Promise<ShardManifest | null> {
  if (!existsSync(manifestPath(output)) || existsSync(journalPath(output))) return null;
  const manifest = await readManifest(output);
  if (outputFiles(output, manifest.states).some((file) => !existsSync(file))) return null;
  checkSameFacts(manifest.run, run, output);
  const whole = await checkSizes(output, manifest).then(
    () => true,
    () => false,
  );
  return whole && (await isSameInput(manifest, input)) ? manifest : null;
}

/** What the system says changes with a file's mode, owner or name too, and from mount to mount: then the content decides. */
async function isSameInput({ input: before, whole }: ShardManifest, input: string): Promise<boolean> {
  const now = await inputFacts(input);
  if (now === null) return false;
  if (JSON.stringify(before) === JSON.stringify(now)) return true;
  if (now.size !== whole.bytes) return false;
  const sha256 = await hashFile(input).catch((cause: unknown) => {
    throw unreadable(input, cause);
  });
  return sha256 === whole.sha256;
}

export interface ShardRecord extends Pick<ShardManifest, "run" | "input" | "machine" | "counts" | "states"> {
  readonly shard: Shard;
  readonly ranges: readonly LineRange[];
  readonly whole: WholeInput;
}

/**
 * Writes the record of a shard's output.
 * @param input the whole file of lists
 * @param output the output's name
 * @param paths where its files lie now, in the order of {@link outputFiles}
 * @throws {StratumError} `file/write-failed`, `file/unreadable`
 */
export async function writeManifest(
  input: string,
  output: string,
  paths: readonly string[],
  record: ShardRecord,
): Promise<void> {
  const path = manifestPath(output);
  const temporary = `${path}.partial`;
  try {
    const files: ShardFile[] = [];
    for (const file of paths) files.push({ bytes: (await stat(file)).size, sha256: await hashFile(file) });
    const manifest: ShardManifest = {
      stratum: "shard 2",
      ...record,
      ranges: await surveyed(input, record.ranges),
      files,
    };
    await rm(temporary, { force: true });
    await writeSynced(temporary, `${sealed(manifest)}\n`);
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
