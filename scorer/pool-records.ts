/**
 * What a pool keeps in Redis, as text: runs, chunks, results, and who has done what. Redis may lose or change any of it,
 * and another version may have written it: what is read is checked, and is not taken for what was written where it is not.
 */
import { createHash } from "node:crypto";
import { gunzipSync, gzipSync } from "node:zlib";
import { z } from "zod";
import { messageOf, StratumError } from "../errors.ts";
import { clip, isJsonObject, show } from "../weights/json.ts";
import { factsSchema } from "./journal.ts";
import { type ListItem, parseLine, parseList } from "./lists.ts";
import { errorRecord, toJsonLine } from "./rankings.ts";

const RUN_FORMAT = "run 1";
/** Of a chunk's texts or records: far above what submit puts into one. */
const MAX_TEXT_BYTES = 2 ** 28;

const count = z.int().min(0);

const runSchema = z.object({
  stratum: z.literal(RUN_FORMAT),
  id: z.string(),
  /** What must be the same on every machine. */
  facts: factsSchema,
  /** As it was submitted: a name of the hub, or a folder that a worker may have elsewhere; null for the embedded model. */
  model: z.string().nullable(),
  fingerprint: z.string(),
  weights: z.string(),
  layer: count,
  options: z.object({
    system: z.string().nullable(),
    date: z.string().nullable(),
    pooling: z.string(),
    truncate: z.boolean(),
    topN: z.int().min(1).nullable(),
    returnDocuments: z.boolean(),
    abstainBelow: z.number().nullable(),
    batchTokens: z.int().min(1).nullable(),
    sharePrefix: z.boolean(),
  }),
  /** Name of the file of lists, for people. */
  input: z.string(),
  /** 0 until it is submitted whole, as `chunks`. */
  lists: count,
  chunks: count,
});

/** A run as it was submitted. */
export type PoolRun = Readonly<Omit<z.infer<typeof runSchema>, "stratum">>;

/** A line of a chunk: a list as it is written, or the record of a line that is none. */
export type ChunkItem =
  | { readonly line: number; readonly list: string }
  | { readonly line: number; readonly record: string };

/** A line of a chunk that was read: a list, or the record of a line that is none. */
export type ChunkLine = ListItem | { readonly kind: "record"; readonly line: number; readonly record: string };

export interface ChunkData {
  readonly run: string;
  readonly index: number;
  /** Lines of JSON, packed: {@link ChunkItem}. */
  readonly items: string;
}

const doneSchema = z.object({
  index: count,
  /** First and last line. */
  lines: z.tuple([count, count]),
  lists: count,
  failed: count,
  tokens: count,
  worker: z.string(),
  adapter: z.string(),
  kernels: z.string(),
  seconds: z.number().min(0),
});

/** Who has done a chunk, and what it came to. */
export type ChunkDone = Readonly<z.infer<typeof doneSchema>>;

export interface ChunkResult {
  /** The chunk's records, packed. */
  readonly text: string;
  readonly done: ChunkDone;
}

/** A run's record as it is kept. */
export function runRecord(run: PoolRun): string {
  return JSON.stringify({ stratum: RUN_FORMAT, ...run });
}

/** @throws {StratumError} `queue/other-version`, `queue/damaged` */
export function readRun(text: string, id: string): PoolRun {
  return whole(`the record of run ${id}`, () => {
    const value: unknown = JSON.parse(text);
    if (isJsonObject(value) && /^run \d+$/.test(String(value["stratum"])) && value["stratum"] !== RUN_FORMAT) {
      throw new StratumError(
        "queue/other-version",
        `run ${id} was submitted by a Stratum that writes ${show(value["stratum"])}, and this one reads "${RUN_FORMAT}"`,
        "use the same version on every machine, or submit the lists again with this one",
      );
    }
    const { stratum: _, ...run } = runSchema.parse(value);
    if (run.id !== id) throw new Error(`it is that of run ${run.id}`);
    return run;
  });
}

/** @throws {StratumError} `queue/damaged` */
export function readDone(text: string): ChunkDone {
  return whole("the record of a chunk that is done", () => doneSchema.parse(JSON.parse(text)));
}

/** @throws {StratumError} `list/too-long` for more than is unpacked again */
export function packText(text: string): string {
  const bytes = Buffer.from(text);
  if (bytes.length <= MAX_TEXT_BYTES) return gzipSync(bytes).toString("base64");
  throw new StratumError(
    "list/too-long",
    `a chunk comes to ${bytes.length} bytes; at most ${MAX_TEXT_BYTES} go through the queue`,
    "submit with a smaller --chunk-kib, or split its longest list",
  );
}

function unpackText(packed: unknown): string {
  const bytes = gunzipSync(Buffer.from(z.string().parse(packed), "base64"), { maxOutputLength: MAX_TEXT_BYTES });
  return bytes.toString("utf8");
}

/** A chunk, and its name in the queue: that of its run, its place and its content, however that is packed. */
export function makeChunk(run: string, index: number, items: readonly ChunkItem[]): { jobId: string; data: ChunkData } {
  const text = items.map((item) => JSON.stringify(item)).join("\n");
  return { jobId: chunkId(run, index, text), data: { run, index, items: packText(text) } };
}

function chunkId(run: string, index: number, text: string): string {
  return createHash("sha256").update(`${run} ${index} ${text}`).digest("hex").slice(0, 32);
}

const dataSchema = z.object({ run: z.string(), index: count, items: z.string() });
const itemSchema = z.union([
  z.strictObject({ line: count, list: z.string() }),
  z.strictObject({ line: count, record: z.string() }),
]);

/**
 * The lines of a chunk.
 * @param jobId the name that it has in the queue, which is its content's
 * @throws {StratumError} `queue/damaged`
 */
export function readChunk(data: unknown, jobId: string): readonly [ChunkLine, ...ChunkLine[]] {
  return whole(`chunk ${jobId}`, () => {
    const { run, index, items } = dataSchema.parse(data);
    const packed = unpackText(items);
    if (chunkId(run, index, packed) !== jobId) throw new Error("its content has another name");
    const [first, ...rest] = packed.split("\n").map((text) => lineOf(itemSchema.parse(JSON.parse(text))));
    return [first, ...rest];
  });
}

/** A list as a reader of the file would give it. */
function lineOf(item: ChunkItem): ChunkLine {
  if ("record" in item) return { kind: "record", ...item };
  const { line } = item;
  const list = parseList(parseLine(Buffer.from(item.list)), String(line));
  return { kind: "list", line, id: list.id, list };
}

/**
 * A chunk's records, and who has made them.
 * @param index of the chunk in its run
 * @throws {StratumError} `queue/damaged`
 */
export function readResult(value: unknown, index: number): { readonly text: string; readonly done: ChunkDone } {
  return whole(`the result of chunk ${index}`, () => {
    const { text: packed, done: told } = z.object({ text: z.string(), done: doneSchema }).parse(value);
    const text = unpackText(packed);
    if (told.index !== index) throw new Error(`it is that of chunk ${told.index}`);
    const records = text.split("\n").length - 1;
    if (records !== told.lists || !text.endsWith("\n")) throw new Error(`it has ${records} of ${told.lists} records`);
    return { text, done: told };
  });
}

/** The records of a chunk that is set aside: an error in each list's place. */
export function recordsSetAside(lines: readonly ChunkLine[], reason: string): string {
  return lines
    .map((item) => {
      if (item.kind === "record") return item.record;
      const error = new StratumError(
        "list/set-aside",
        `line ${item.line}: its chunk failed again and again: ${reason}`,
        "mend what is wrong and submit the lists again: what was set aside is tried anew",
      );
      return toJsonLine(errorRecord(item.id, error));
    })
    .join("");
}

/** What was read, or that it is damaged. */
function whole<T>(what: string, read: () => T): T {
  try {
    return read();
  } catch (cause) {
    throw cause instanceof StratumError && cause.code.startsWith("queue/") ? cause : damaged(what, cause);
  }
}

/** `queue/damaged`, with what was stumbled over. */
export function damaged(what: string, cause: unknown): StratumError {
  const how = cause instanceof z.ZodError ? z.prettifyError(cause) : messageOf(cause);
  return new StratumError(
    "queue/damaged",
    `${what} is damaged in the queue: ${clip(how)}`,
    "submit the same lists again, which puts it right",
    cause,
  );
}
