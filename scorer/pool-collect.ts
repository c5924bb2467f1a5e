/** Reads a run's results out of a pool, in the order of the input, and says how far it is. */
import { messageOf, StratumError } from "../errors.ts";
import { loadRun, type Pool, unlessStopped } from "./pool.ts";
import { type ChunkEnd, chunkEnds, chunkInQueue, chunkState, ofQueue, whoHasDone } from "./pool-chunks.ts";
import { type ChunkDone, damaged, type PoolRun, readChunk, readResult, recordsSetAside } from "./pool-records.ts";

export interface PoolStatus {
  readonly run: PoolRun;
  readonly chunks: number;
  readonly done: number;
  /** Chunks that failed too often. */
  readonly setAside: number;
  /** Chunks that Redis has not any more: to be submitted again. */
  readonly lost: number;
  /** Under way now. */
  readonly active: number;
  readonly lists: number;
  readonly listsDone: number;
  readonly failed: number;
  /** What each worker has done. */
  readonly workers: readonly WorkerShare[];
}

export interface WorkerShare {
  readonly worker: string;
  readonly adapter: string;
  readonly kernels: string;
  readonly chunks: number;
  readonly lists: number;
  readonly seconds: number;
}

/** How far a run is, from any machine. @throws {StratumError} `queue/no-run`, `queue/damaged` */
export async function poolStatus(pool: Pool, id: string | undefined): Promise<PoolStatus> {
  const { redis, key, queue } = pool;
  const run = await loadRun(pool, id);
  const submitted = Object.entries(await redis.hgetall(key("run", run.id, "chunks")))
    .map(([index, jobId]) => ({ index: Number(index), jobId }))
    .sort((a, b) => a.index - b.index);
  const ends = await chunkEnds(
    pool,
    submitted.map(({ jobId }) => jobId),
  );
  const count = (end: ChunkEnd) => ends.filter((each) => each === end).length;
  const done = await whoHasDone(
    pool,
    run.id,
    submitted.filter((_, i) => ends[i] === "done"),
  );
  const active = await ofQueue(`a chunk of run ${run.id}`, () => queue.getJobs(["active"]));
  const shares = new Map<string, WorkerShare>();
  for (const { worker, adapter, kernels, lists, seconds } of done) {
    // Its kernels may have been tuned between two runs.
    const share = JSON.stringify([worker, adapter, kernels]);
    const before = shares.get(share) ?? { worker, adapter, kernels, chunks: 0, lists: 0, seconds: 0 };
    shares.set(share, {
      ...before,
      chunks: before.chunks + 1,
      lists: before.lists + lists,
      seconds: Number((before.seconds + seconds).toFixed(3)),
    });
  }
  return {
    run,
    chunks: run.chunks,
    done: done.length,
    setAside: count("failed"),
    lost: count("absent"),
    active: active.filter((job) => job?.data.run === run.id).length,
    lists: run.lists,
    listsDone: done.reduce((sum, { lists }) => sum + lists, 0),
    failed: done.reduce((sum, { failed }) => sum + failed, 0),
    workers: [...shares.values()],
  };
}

/** A chunk's records, or why it was set aside. */
export interface CollectedChunk {
  readonly text: string;
  readonly lists: number;
  readonly failed: number;
  readonly tokens: number;
  readonly done: ChunkDone | null;
  readonly setAside: string | null;
}

export interface CollectOptions {
  readonly signal?: AbortSignal | undefined;
}

const POLL_MS = 300;

/**
 * Chunks in the order of the input; waits for those that are not done. Ends early where it is stopped.
 * @throws {StratumError} `queue/lost-chunk` for one that Redis has lost, `queue/damaged`, `queue/no-run`
 */
export async function* collectChunks(
  pool: Pool,
  id: string,
  { signal }: CollectOptions = {},
): AsyncGenerator<CollectedChunk> {
  let lists = 0;
  for (let index = 0; ; ) {
    const found = await unlessStopped(lookFor(pool, id, index), signal);
    if (found === undefined || signal?.aborted) return;
    if (found === "waits") await unlessStopped(pause(), signal);
    else if ("end" in found) {
      if (found.end.lists === lists) return;
      throw damaged(`run ${id}`, new Error(`it has ${found.end.lists} lists, and its chunks have ${lists}`));
    } else {
      lists += found.lists;
      yield found;
      index++;
    }
  }
}

/** A chunk, whether it is still waited for, or the run where it has no such chunk. */
async function lookFor(
  pool: Pool,
  id: string,
  index: number,
): Promise<CollectedChunk | "waits" | { readonly end: PoolRun }> {
  const run = await loadRun(pool, id);
  // Until all is submitted the record says 0.
  if (run.chunks > 0 && index >= run.chunks) return { end: run };
  const jobId = await pool.redis.hget(pool.key("run", id, "chunks"), String(index));
  if (jobId === null) {
    if (run.chunks > 0) throw lostChunk(index, id);
    return "waits";
  }
  // An end is final: what is read after it belongs to it.
  const state = await chunkState(pool, jobId);
  // It was in the queue before its name was here.
  if (state === "absent" || state === "lost") throw lostChunk(index, id);
  if (state === "queued") return "waits";
  const job = await chunkInQueue(pool, jobId);
  if (job === undefined) throw lostChunk(index, id);
  if (state === "done") {
    const { text, done } = readResult(job.returnvalue, index);
    const { lists, failed, tokens } = done;
    return { text, lists, failed, tokens, done, setAside: null };
  }
  const lines = readChunk(job.data, jobId);
  const reason = messageOf(job.failedReason ?? "no reason given");
  const text = recordsSetAside(lines, reason);
  return { text, lists: lines.length, failed: lines.length, tokens: 0, done: null, setAside: reason };
}

function lostChunk(index: number, id: string): StratumError {
  return new StratumError(
    "queue/lost-chunk",
    `chunk ${index} of run ${id} is not in the queue any more`,
    "submit the same lists again, which adds what is missing; and let Redis evict nothing (maxmemory-policy noeviction)",
  );
}

const pause = () => new Promise<null>((resolve) => setTimeout(() => resolve(null), POLL_MS));

/** The names of a pool's runs, the newest first. */
export async function poolRuns({ redis, key }: Pool): Promise<string[]> {
  return redis.zrevrange(key("runs"), 0, -1);
}

/**
 * Takes a run and all that belongs to it out of the queue; waits for chunks that are under way.
 * @returns how many of those were left when it was stopped: then the run is there still
 */
export async function removeRun(pool: Pool, id: string, { signal }: CollectOptions = {}): Promise<number> {
  const { redis, key, queue } = pool;
  let left = await redis.hvals(key("run", id, "chunks"));
  for (;;) {
    const locked: string[] = [];
    for (const jobId of left) {
      // 0 for one that a worker holds, and for one that is not there.
      if ((await queue.remove(jobId)) === 0 && (await redis.exists(queue.toKey(jobId))) === 1) locked.push(jobId);
    }
    left = locked;
    if (left.length === 0) break;
    await unlessStopped(pause(), signal);
    if (signal?.aborted) return left.length;
  }
  const parts = ["chunks", "done", "scorer"].map((part) => key("run", id, part));
  // What the last ends left among the events holds their results.
  await redis.del(...parts, key("run", id), queue.toKey("events"));
  await redis.zrem(key("runs"), id);
  return 0;
}
