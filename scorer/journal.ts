/**
 * The file beside an output that says how far a run has come, so that it can be stopped at any time and go on.
 *
 * Its first line holds what makes the run this run and the last state that is known to be on the disk, written under
 * another name, synced and renamed. A line is appended for every chunk since: a state, and a hash of what the chunk put
 * into the run's files. Every line carries a hash of itself: a digit that has changed would move where the work goes on.
 * These lines are not synced. A killed process loses none of them; after a power cut those count
 * whose bytes are there. Once in a while a new first line takes the place of them all, so that the file stays small.
 */
import { closeSync, openSync, writeSync } from "node:fs";
import { open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { z } from "zod";
import { tileSchema } from "../engine/tuner-cache.ts";
import { StratumError } from "../errors.ts";
import { syncFolder, writeSynced } from "../weights/durable.ts";
import { isSystemError, show } from "../weights/json.ts";
import { sealed, unsealed } from "../weights/seal.ts";

/** What makes a run this run, by names that a message can show. */
export type RunFacts = Readonly<Record<string, string | number | boolean | null>>;

export const factsSchema = z.record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.null()]));

/** Position of a reader, as it is kept. */
export const positionSchema = z.object({
  line: z.int().min(0),
  bytes: z.int().min(0),
  items: z.int().min(0),
  hash: z.string(),
});

export const rangeSchema = z.object({ line: z.int().min(1), start: z.int().min(0), end: z.int().min(0) });

export const wholeSchema = z.object({ lines: z.int().min(0), bytes: z.int().min(0), sha256: z.string() });

/** What an input is, whatever it is called and wherever it lies. */
export type WholeInput = Readonly<z.infer<typeof wholeSchema>>;

const machineSchema = z.object({
  /** The adapter with its driver. */
  adapter: z.string(),
  /** Of the kernels that ran. */
  kernels: z.string(),
  /** Matmul variants in the place of the defaults, by shape. */
  tiles: z.array(z.tuple([z.string(), tileSchema])),
});

/** What gives the same bits: a run goes on with the kernels that it began with. */
export type Machine = Readonly<z.infer<typeof machineSchema>>;

const headSchema = z.object({
  stratum: z.literal("journal 2"),
  run: factsSchema,
  /** What the system says of the input, which changes whenever its bytes do; null for a pipe. */
  input: factsSchema.nullable(),
  /** Lines of the input, where they were counted. */
  total: z.int().nullable(),
  /** The stretches of the input that are the run's: those of a shard. */
  ranges: z.array(rangeSchema).nullable(),
  /** The input whole, where it was read to be divided. */
  whole: wholeSchema.nullable(),
  machine: machineSchema,
  state: z.unknown(),
});

/** The first line, but for the state. */
export type JournalHead = Readonly<Omit<z.infer<typeof headSchema>, "state" | "stratum">>;

export interface JournalOptions<S> {
  readonly path: string;
  readonly state: z.ZodType<S>;
  /** Hash of what the run's files hold of the work between two states; null where it is not all there. */
  readonly digest: (from: S, to: S) => Promise<string | null>;
  /** The run that is to go on. */
  readonly expected?: { readonly run: RunFacts; readonly output: string } | undefined;
}

/** What an earlier run left. */
export interface FoundJournal<S> {
  readonly head: JournalHead;
  readonly state: S;
}

/** Its errors are the system's own. */
export interface Journal<S> {
  /** Adds a chunk whose bytes are written. Waits for no turn of the event loop. */
  append(state: S, digest: string): void;
  /** Chunks since the last checkpoint. */
  readonly appended: number;
  /** Starts the journal anew from a state that is on the disk. */
  checkpoint(state: S): Promise<void>;
  /** The run is over. */
  remove(): Promise<void>;
  close(): void;
}

/**
 * Reads a journal: the last state whose bytes are there, or null where there is no journal.
 * @throws {StratumError} `usage/bad-journal`, `usage/other-run`
 */
export async function readJournal<S>({
  path,
  state,
  digest,
  expected,
}: JournalOptions<S>): Promise<FoundJournal<S> | null> {
  const text = await readText(path);
  if (text === null) return null;
  const [first = "", ...rest] = text.split("\n");
  const head = headSchema.safeParse(parse(first));
  // Another command's journal is none that is damaged.
  if (head.success && expected !== undefined) checkSameFacts(head.data.run, expected.run, expected.output);
  const begun = state.safeParse(head.data?.state);
  if (!head.success || !begun.success) {
    throw new StratumError(
      "usage/bad-journal",
      `${path} is damaged, or no journal that this version can read`,
      "go on with the version that wrote it, give -o another name, or throw away what there is with --restart (of an output that was appended to: by hand)",
    );
  }
  const line = z.object({ state, digest: z.string() });
  let last = begun.data;
  for (const each of rest) {
    const chunk = line.safeParse(parse(each));
    if (!chunk.success || (await digest(last, chunk.data.state)) !== chunk.data.digest) break;
    last = chunk.data.state;
  }
  const { stratum: _, state: __, ...kept } = head.data;
  return { head: kept, state: last };
}

/** Prepares a journal; the file appears with the first checkpoint. */
export function createJournal<S>(path: string, head: JournalHead): Journal<S> {
  let file: number | null = null;
  let appended = 0;
  const close = () => {
    if (file !== null) closeSync(file);
    file = null;
  };
  return {
    get appended() {
      return appended;
    },
    append(state, digest) {
      file ??= openSync(path, "a");
      writeSync(file, `${sealed({ state, digest })}\n`);
      appended++;
    },
    async checkpoint(state) {
      // One name: a process that is killed here leaves one file, which the next one takes.
      const next = `${path}.next`;
      await rm(next, { force: true });
      await writeSynced(next, `${sealed({ stratum: "journal 2", ...head, state })}\n`);
      close();
      await rename(next, path);
      await syncFolder(dirname(path));
      appended = 0;
    },
    async remove() {
      close();
      await rm(path, { force: true });
    },
    close,
  };
}

/** @throws {StratumError} `usage/other-run` that names each fact that differs */
export function checkSameFacts(before: RunFacts, now: RunFacts, output: string): void {
  const names = [...new Set([...Object.keys(before), ...Object.keys(now)])];
  const differs = names.filter((name) => before[name] !== now[name]);
  if (differs.length === 0) return;
  const value = (found: RunFacts, name: string) => (name in found ? show(found[name]) : "absent");
  throw new StratumError(
    "usage/other-run",
    `what lies beside ${output} is of another run: ${differs.map((name) => `${name} was ${value(before, name)}, is ${value(now, name)}`).join("; ")}`,
    "go on with the words of the earlier run, give -o another name, or throw away what there is with --restart",
  );
}

async function readText(path: string): Promise<string | null> {
  try {
    await using file = await open(path, "r");
    return await file.readFile("utf8");
  } catch (cause) {
    if (isSystemError(cause, "ENOENT")) return null;
    throw new StratumError("file/unreadable", `${path} cannot be read`, "check its permissions", cause);
  }
}

function parse(text: string): unknown {
  try {
    return unsealed(JSON.parse(text));
  } catch {
    return null;
  }
}
