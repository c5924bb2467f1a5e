/** Chunks in a pool's queue: what has become of them, and who has done them. */
import type { Job } from "bullmq";
import type { Pool } from "./pool.ts";
import { type ChunkData, type ChunkDone, type ChunkResult, damaged, readDone, readResult } from "./pool-records.ts";

export type PoolJob = Job<ChunkData, ChunkResult>;

/** What a chunk's own hash says has become of it. */
export type ChunkEnd = "absent" | "unfinished" | "done" | "failed";

/** `lost`: Redis has the chunk, and no longer its place in the queue. */
export type ChunkState = Exclude<ChunkEnd, "unfinished"> | "queued" | "lost";

/** Chunks that are asked for together. */
const BULK = 1000;

/**
 * What has become of chunks. A job's end stands in its own hash, whatever Redis has lost of BullMQ's lists: when it
 * finished, and a result unless it failed. Whether one that has not ended is queued or lost is not asked here.
 */
export async function chunkEnds({ redis, queue }: Pool, jobIds: readonly string[]): Promise<ChunkEnd[]> {
  const ends: ChunkEnd[] = [];
  for (let begin = 0; begin < jobIds.length; begin += BULK) {
    const pipeline = redis.pipeline();
    const ids = jobIds.slice(begin, begin + BULK);
    for (const jobId of ids)
      for (const field of ["data", "finishedOn", "returnvalue"]) pipeline.hexists(queue.toKey(jobId), field);
    const answers = (await pipeline.exec()) ?? [];
    const has = answers.map(([error, value]) => {
      if (error !== null) throw error;
      return value === 1;
    });
    for (let i = 0; i < ids.length; i++) {
      const [data, finished, result] = has.slice(3 * i, 3 * i + 3);
      ends.push(!data ? "absent" : !finished ? "unfinished" : result ? "done" : "failed");
    }
  }
  return ends;
}

export async function chunkState(pool: Pool, jobId: string): Promise<ChunkState> {
  for (;;) {
    const [end] = await chunkEnds(pool, [jobId]);
    if (end !== "unfinished") return end;
    const state = await pool.queue.getJobState(jobId);
    if (state === "unknown") {
      // Not one that ended, or was taken out, between the two questions.
      if ((await chunkEnds(pool, [jobId]))[0] === "unfinished") return "lost";
    } else if (state !== "completed" && state !== "failed") return "queued";
  }
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

/** Keeps a record only where its run is there still. */
const SAVE = `if redis.call("EXISTS", KEYS[1]) == 1 then redis.call("HSET", KEYS[2], ARGV[1], ARGV[2]) end`;

/** Keeps who has done a chunk: so that it is known without the chunk's result. */
export async function saveDone({ redis, key }: Pool, run: string, jobId: string, done: ChunkDone): Promise<void> {
  await redis.eval(SAVE, 2, key("run", run), key("run", run, "done"), jobId, JSON.stringify(done));
}

/**
 * Who has done a run's chunks, in their order.
 * @param done names of chunks that are done, and their places
 * @throws {StratumError} `queue/damaged`
 */
export async function whoHasDone(
  pool: Pool,
  run: string,
  done: readonly { readonly jobId: string; readonly index: number }[],
): Promise<ChunkDone[]> {
  const kept = await pool.redis.hgetall(pool.key("run", run, "done"));
  const found: ChunkDone[] = [];
  for (const { jobId, index } of done) {
    // The worker may have died between the two, or Redis have had no room.
    const record = readKept(kept[jobId]) ?? readResult((await chunkInQueue(pool, jobId))?.returnvalue, index).done;
    found.push(record);
  }
  return found;
}

function readKept(text: string | undefined): ChunkDone | null {
  try {
    return text === undefined ? null : readDone(text);
  } catch {
    return null;
  }
}
