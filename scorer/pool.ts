/**
 * A pool of workers over a queue: BullMQ on Redis. What a run is lies beside the queue: its words, its chunks in order,
 * its scorer's files, and who has done what. Chunks are named by their content, so that whatever is done twice (a run
 * that is submitted again, a chunk that a slow worker finishes after another) changes nothing.
 */
import { Queue } from "bullmq";
import { Redis } from "ioredis";
import { messageOf, StratumError } from "../errors.ts";
import { type ChunkData, type ChunkResult, type PoolRun, readRun, runRecord } from "./pool-records.ts";

/** Where a pool meets. */
export interface PoolAddress {
  /** `redis://[user:password@]host[:port][/db]`, or `rediss://`. */
  readonly url: string;
  /** Several pools share one Redis by name. */
  readonly name: string;
}

/** How often a chunk is tried before it is set aside. */
export const ATTEMPTS = 3;
/**
 * How many workers a chunk may see die. A death is rarely the chunk's doing: one that is fetched, or whose model is being
 * loaded, is there too, and what one worker leaves the next one takes first. Machines may come and go as they like.
 */
export const DEATHS = 20;
/** How many workers may have no memory for a chunk. */
export const SHORTAGES = 5;
const PREFIX = "stratum";

export interface Pool extends AsyncDisposable {
  readonly address: PoolAddress;
  readonly redis: Redis;
  readonly queue: Queue<ChunkData, ChunkResult>;
  key(...parts: readonly string[]): string;
  /** False while the Redis is away: its connection is closed, or nothing is answered on it. */
  answers(): boolean;
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
  const watch = watchRedis(redis, onAway);
  // Its events would keep every result a second time, and after its run has gone.
  const streams = { events: { maxLen: 0 } };
  const queue = new Queue<ChunkData, ChunkResult>(name, { connection: redis, prefix: PREFIX, streams });
  queue.on("error", () => undefined);
  return {
    address,
    redis,
    queue,
    key: (...parts) => [`${PREFIX}-pool`, name, ...parts].join(":"),
    answers: watch.answers,
    async [Symbol.asyncDispose]() {
      watch.stop();
      // What is asked of a Redis that is away is answered when it is back.
      if (redis.status === "ready") await within(queue.close(), CLOSING_MS).catch(() => undefined);
      redis.disconnect();
    },
  };
}

/** A Redis is asked for a sign of life this often, and is away after so many without an answer. */
const BEAT_MS = 1000;
const MISSED_BEATS = 5;
/** How long the end waits for an answer. */
const CLOSING_MS = 2000;

/** Notices that a Redis is away, by its connection or by its silence. */
function watchRedis(redis: Redis, onAway: OnAway = () => undefined): { answers(): boolean; stop(): void } {
  let away = false;
  let reason = "the connection closed";
  // Beats and not time: a process that stood still itself has missed one.
  let missed = 0;
  let asking = false;
  const tell = (now: boolean, why: string | null) => {
    if (away !== now) onAway(why);
    away = now;
  };
  redis.on("error", (error: Error) => {
    reason = error.message;
  });
  redis.on("reconnecting", () => tell(true, reason));
  redis.on("ready", () => tell(false, null));
  const beat = setInterval(() => {
    if (redis.status !== "ready") return;
    if (asking) {
      if (++missed >= MISSED_BEATS) tell(true, `no answer for ${(MISSED_BEATS * BEAT_MS) / 1000} s`);
      return;
    }
    asking = true;
    redis
      .ping()
      .then(
        () => {
          missed = 0;
          tell(false, null);
        },
        () => undefined,
      )
      .finally(() => {
        asking = false;
      });
  }, BEAT_MS);
  beat.unref();
  return { answers: () => !away && redis.status === "ready", stop: () => clearInterval(beat) };
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

/**
 * Keeps that a run is being submitted: one that is known stays as it is. The newest is the one that is meant where none is
 * named.
 */
export async function beginRun({ redis, key }: Pool, run: PoolRun): Promise<void> {
  const record = runRecord({ ...run, lists: 0, chunks: 0 });
  if ((await redis.hsetnx(key("run", run.id), "record", record)) === 0) {
    const known = await redis.hget(key("run", run.id), "record");
    if (known === null || !isWhole(known, run.id)) await redis.hset(key("run", run.id), "record", record);
  }
  await redis.zadd(key("runs"), Date.now(), run.id);
}

function isWhole(record: string, id: string): boolean {
  try {
    readRun(record, id);
    return true;
  } catch {
    return false;
  }
}

/** Keeps the record of a run that is submitted whole. */
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

/** An error of Redis's own as one of ours. */
export function ofRedis(cause: unknown, { address }: Pool): unknown {
  if (!(cause instanceof Error) || cause.name !== "ReplyError") return cause;
  const where = `the Redis at ${withoutPassword(address.url)}`;
  if (cause.message.startsWith("OOM")) {
    return new StratumError(
      "queue/full",
      `${where} has no memory left: ${cause.message}`,
      "give it more (maxmemory), or take runs out with collect --remove or --discard; nothing that it has is lost",
      cause,
    );
  }
  return new StratumError(
    "queue/refused",
    `${where} refuses: ${cause.message}`,
    "see to that Redis, then go on",
    cause,
  );
}
