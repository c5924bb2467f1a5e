/**
 * A pool of workers over a queue: BullMQ on Redis. What a run is lies beside the queue: its words, its chunks in order,
 * its scorer's files, and who has done what. Chunks are named by their content, so that whatever is done twice (a run
 * that is submitted again, a chunk that a slow worker finishes after another) changes nothing.
 */
import { type Job, Queue } from "bullmq";
import { Redis } from "ioredis";
import { messageOf, StratumError } from "../errors.ts";
import {
  type ChunkData,
  type ChunkDone,
  type ChunkResult,
  damaged,
  type PoolRun,
  readDone,
  readRun,
  runRecord,
} from "./pool-records.ts";

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

export type PoolJob = Job<ChunkData, ChunkResult>;

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

/** Those of a run's chunks and lists that are known: 0 until it is submitted whole. */
export async function submittedCounts({ redis, key }: Pool, id: string): Promise<Pick<PoolRun, "lists" | "chunks">> {
  const text = await redis.hget(key("run", id), "record");
  try {
    if (text !== null) return readRun(text, id);
  } catch (cause) {
    // It is written anew.
    if (!(cause instanceof StratumError)) throw cause;
  }
  return { lists: 0, chunks: 0 };
}

/** Keeps a run's record; the newest is the one that is meant where none is named. */
export async function saveRun({ redis, key }: Pool, run: PoolRun): Promise<void> {
  await redis.hset(key("run", run.id), "record", runRecord(run));
  await redis.zadd(key("runs"), Date.now(), run.id);
}

/** @throws {StratumError} `queue/no-run`, `queue/other-version`, `queue/damaged` */
export async function loadRun({ redis, key, address }: Pool, id: string | undefined): Promise<PoolRun> {
  const wanted = id ?? (await redis.zrevrange(key("runs"), 0, 0)).at(0);
  const text = wanted === undefined ? null : await redis.hget(key("run", wanted), "record");
  if (wanted === undefined || text === null) {
    throw new StratumError(
      "queue/no-run",
      id === undefined
        ? `nothing was submitted to ${withoutPassword(address.url)}, pool ${address.name}`
        : `there is no run ${id}`,
      "submit lists first, or name a run as submit printed it",
    );
  }
  return readRun(text, wanted);
}

/** Keeps who has done a chunk. */
export async function saveDone({ redis, key }: Pool, run: string, jobId: string, done: ChunkDone): Promise<void> {
  await redis.hset(key("run", run, "done"), jobId, JSON.stringify(done));
}

/** Who has done what of a run so far, by the chunks' places. @throws {StratumError} `queue/damaged` */
export async function chunksDone({ redis, key }: Pool, run: string): Promise<ChunkDone[]> {
  const all = await redis.hvals(key("run", run, "done"));
  return all.map(readDone).sort((a, b) => a.index - b.index);
}

/** A chunk in the queue, by its name. @throws {StratumError} `queue/damaged` */
export async function chunkInQueue({ queue }: Pool, jobId: string): Promise<PoolJob | undefined> {
  return ofQueue(`chunk ${jobId}`, () => queue.getJob(jobId));
}

/** BullMQ parses what it reads. @throws {StratumError} `queue/damaged` */
export async function ofQueue<T>(what: string, ask: () => Promise<T>): Promise<T> {
  try {
    return await ask();
  } catch (cause) {
    throw cause instanceof SyntaxError ? damaged(what, cause) : cause;
  }
}
