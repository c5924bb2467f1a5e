/**
 * A pool of workers over a queue: BullMQ on Redis. What a run is lies beside the queue: its words, its chunks in order,
 * its scorer's files, and who has done what. Chunks are named by their content, so that whatever is done twice (a run
 * that is submitted again, a chunk that a slow worker finishes after another) changes nothing.
 */
import { createHash } from "node:crypto";
import { gunzipSync, gzipSync } from "node:zlib";
import { Queue } from "bullmq";
import { Redis } from "ioredis";
import { z } from "zod";
import { messageOf, StratumError } from "../errors.ts";
import { factsSchema } from "./journal.ts";
import { type ListLine, parseList } from "./lists.ts";
import { errorRecord, toJsonLine } from "./rankings.ts";

/** Where a pool meets. */
export interface PoolAddress {
  /** `redis://[user:password@]host[:port][/db]`, or `rediss://`. */
  readonly url: string;
  /** Several pools share one Redis by name. */
  readonly name: string;
}

/** How often a chunk is tried before it is set aside. */
export const ATTEMPTS = 3;
/** How many workers a chunk may see die. A death is no failure of the chunk's, until it has been there too often. */
export const DEATHS = 5;
const PREFIX = "stratum";

const count = z.int().min(0);

const runSchema = z.object({
  stratum: z.literal("run 1"),
  id: z.string(),
  /** What must be the same on every machine. */
  facts: factsSchema,
  /** As it was submitted: a name of the hub, or a folder that a worker may have elsewhere. */
  model: z.string(),
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
  lists: count,
  chunks: count,
});

/** A run as it was submitted. */
export type PoolRun = Readonly<z.infer<typeof runSchema>>;

/** A line of a chunk: a list as it is written, or the record of a line that is none. */
export interface ChunkItem {
  readonly line: number;
  readonly list?: string;
  readonly record?: string;
}

export interface ChunkData {
  readonly run: string;
  readonly index: number;
  /** {@link packItems} */
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
  seconds: z.number(),
});

/** Who has done a chunk, and what it came to. */
export type ChunkDone = Readonly<z.infer<typeof doneSchema>>;

export interface ChunkResult {
  /** The chunk's records, packed. */
  readonly text: string;
  readonly done: ChunkDone;
}

export interface Pool extends AsyncDisposable {
  readonly address: PoolAddress;
  readonly redis: Redis;
  readonly queue: Queue<ChunkData, ChunkResult>;
  key(...parts: readonly string[]): string;
}

/** A connection that waits for a Redis that is away for a while, as BullMQ's workers need it. */
export function connect(url: string): Redis {
  const redis = new Redis(url, { maxRetriesPerRequest: null, lazyConnect: true });
  redis.on("error", () => undefined);
  return redis;
}

/** Called when the Redis goes away, with why, and when it is back, with null. */
export type OnAway = (reason: string | null) => void;

/** @throws {StratumError} `usage/queue`, `queue/unreachable`, `queue/refused` */
export async function openPool(address: PoolAddress, onAway?: OnAway): Promise<Pool> {
  const { url, name } = address;
  if (!/^rediss?:\/\/./.test(url) || !URL.canParse(url)) {
    throw new StratumError(
      "usage/queue",
      `${withoutPassword(url)} is not the address of a Redis`,
      "give redis://[user:password@]host:6379, with / @ : # and % of a password as %2F %40 %3A %23 %25",
    );
  }
  if (!/^[\w.-]+$/.test(name)) {
    throw new StratumError("usage/queue", `a pool cannot be called ${name}`, "use letters, digits, - _ and .");
  }
  const redis = connect(url);
  // The promise says only that the connection closed; why was told before.
  let reason: unknown;
  redis.on("error", (error) => {
    reason = error;
  });
  try {
    await within(redis.connect(), 10_000);
  } catch (closed) {
    redis.disconnect();
    const cause = reason ?? closed;
    if (/NOAUTH|WRONGPASS|NOPERM/.test(messageOf(cause))) {
      throw new StratumError(
        "queue/refused",
        `the Redis at ${withoutPassword(url)} refuses: ${messageOf(cause)}`,
        "give user and password with --queue or STRATUM_QUEUE: redis://user:password@host:6379",
        cause,
      );
    }
    throw new StratumError(
      "queue/unreachable",
      `no Redis answers at ${withoutPassword(url)}: ${messageOf(cause)}`,
      "start one (redis-server), or give its address with --queue",
      cause,
    );
  }
  if (onAway !== undefined) tellAway(redis, onAway);
  const queue = new Queue<ChunkData, ChunkResult>(name, { connection: redis, prefix: PREFIX });
  queue.on("error", () => undefined);
  return {
    address,
    redis,
    queue,
    key: (...parts) => [`${PREFIX}-pool`, name, ...parts].join(":"),
    async [Symbol.asyncDispose]() {
      // What is asked of a Redis that is away is answered when it is back.
      if (redis.status === "ready") await queue.close().catch(() => undefined);
      redis.disconnect();
    },
  };
}

function tellAway(redis: Redis, onAway: OnAway): void {
  let away = false;
  let reason = "the connection closed";
  redis.on("error", (error: Error) => {
    reason = error.message;
  });
  redis.on("reconnecting", () => {
    if (!away) onAway(reason);
    away = true;
  });
  redis.on("ready", () => {
    if (away) onAway(null);
    away = false;
  });
}

/** What was awaited, or undefined once the signal stops: a Redis that is away answers when it is back. */
export async function unlessStopped<T>(awaited: Promise<T>, signal: AbortSignal | undefined): Promise<T | undefined> {
  if (signal?.aborted) {
    awaited.catch(() => undefined);
    return undefined;
  }
  let stop: () => void = () => undefined;
  const stopped = new Promise<undefined>((resolve) => {
    stop = () => resolve(undefined);
    signal?.addEventListener("abort", stop);
  });
  try {
    return await Promise.race([awaited, stopped]);
  } finally {
    signal?.removeEventListener("abort", stop);
    awaited.catch(() => undefined);
  }
}

/** The prefix that workers need, too. */
export const QUEUE_PREFIX = PREFIX;

/** An address that may be shown: a password may hold @ and /, and may stand in the query. */
export function withoutPassword(url: string): string {
  return url.replace(/^([a-z]+:\/\/)?.*@/is, "$1***@").replace(/\?.*/s, "?***");
}

async function within<T>(work: Promise<T>, milliseconds: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${milliseconds / 1000} s`)), milliseconds);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
    work.catch(() => undefined);
  }
}

export function pack(text: string): string {
  return gzipSync(text).toString("base64");
}

export function unpack(packed: string): string {
  return gunzipSync(Buffer.from(packed, "base64")).toString("utf8");
}

export function packItems(items: readonly ChunkItem[]): string {
  return pack(items.map((item) => JSON.stringify(item)).join("\n"));
}

const itemSchema = z.object({ line: count, list: z.string().optional(), record: z.string().optional() });

export function unpackItems(packed: string): ChunkItem[] {
  return unpack(packed)
    .split("\n")
    .map((text) => itemSchema.parse(JSON.parse(text)) as ChunkItem);
}

/** A list of a chunk as a reader would give it. */
export function listOf({ line, list = "" }: ChunkItem): ListLine {
  const parsed = parseList(JSON.parse(list) as Record<string, unknown>, String(line));
  return { kind: "list", line, id: parsed.id, list: parsed };
}

/** The name of a chunk: its run, its place and its content. */
export function chunkId({ run, index, items }: ChunkData): string {
  return createHash("sha256").update(`${run} ${index} ${items}`).digest("hex").slice(0, 32);
}

/** The records of a chunk that is set aside: an error in each list's place. */
export function recordsSetAside(items: readonly ChunkItem[], reason: string): string {
  return items
    .map((item) => {
      if (item.record !== undefined) return item.record;
      const error = new StratumError(
        "list/set-aside",
        `line ${item.line}: its chunk failed again and again: ${reason}`,
        "mend what is wrong and submit the lists again: what was set aside is tried anew",
      );
      return toJsonLine(errorRecord(listOf(item).id, error));
    })
    .join("");
}

/** Those of a run's chunks and lists that are known: 0 until it is submitted whole. */
export async function submittedCounts({ redis, key }: Pool, id: string): Promise<Pick<PoolRun, "lists" | "chunks">> {
  const text = await redis.hget(key("run", id), "record");
  if (text === null) return { lists: 0, chunks: 0 };
  const { lists, chunks } = runSchema.parse(JSON.parse(text));
  return { lists, chunks };
}

/** Keeps a run's record; the newest is the one that is meant where none is named. */
export async function saveRun({ redis, key }: Pool, run: PoolRun): Promise<void> {
  await redis.hset(key("run", run.id), "record", JSON.stringify(run));
  await redis.zadd(key("runs"), Date.now(), run.id);
}

/** @throws {StratumError} `queue/no-run` */
export async function loadRun({ redis, key, address }: Pool, id: string | undefined): Promise<PoolRun> {
  const wanted = id ?? (await redis.zrevrange(key("runs"), 0, 0)).at(0);
  const text = wanted === undefined ? null : await redis.hget(key("run", wanted), "record");
  if (text === null) {
    throw new StratumError(
      "queue/no-run",
      id === undefined
        ? `nothing was submitted to ${withoutPassword(address.url)}, pool ${address.name}`
        : `there is no run ${id}`,
      "submit lists first, or name a run as submit printed it",
    );
  }
  return runSchema.parse(JSON.parse(text));
}

/** Who has done what of a run so far. */
export async function chunksDone({ redis, key }: Pool, run: string): Promise<ChunkDone[]> {
  const all = await redis.hvals(key("run", run, "done"));
  return all.map((text) => doneSchema.parse(JSON.parse(text))).sort((a, b) => a.index - b.index);
}
