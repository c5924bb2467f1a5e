/** Puts lists into a pool's queue, in chunks. */

import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { StratumError } from "../errors.ts";
import { hashFile } from "../weights/durable.ts";
import type { ListItem, ListLine } from "./lists.ts";
import { readLists } from "./lists.ts";
import { ATTEMPTS, beginRun, ofRedis, type Pool, saveRun } from "./pool.ts";
import { type ChunkEnd, chunkEnds, chunkInQueue, chunkState, type PoolJob, saveDone } from "./pool-chunks.ts";
import { type ChunkItem, makeChunk, type PoolRun, readChunk, readResult } from "./pool-records.ts";
import { errorRecord, toJsonLine } from "./rankings.ts";
import { inputFacts } from "./resume.ts";

export interface SubmitRequest {
  /** A file of lists. */
  readonly path: string;
  readonly run: Omit<PoolRun, "id" | "lists" | "chunks">;
  /** The trained scorer's folder. */
  readonly scorer: string | null;
  /** Bytes of texts after which a chunk ends, about; default a 64th of the file, 2 to 64 KiB. */
  readonly chunkBytes?: number | undefined;
  readonly onChunk?: (lists: number) => void;
  readonly signal?: AbortSignal | undefined;
}

export interface Submitted {
  readonly run: PoolRun;
  /** Chunks that the pool did not have, or only damaged. */
  readonly added: number;
  /** Chunks that had been set aside and are tried again. */
  readonly retried: number;
}

/** Chunks of a file, about: enough that the last ones leave no worker idle for long. */
const CHUNKS = 64;
/** A chunk that takes a second is far more than what handing it over costs. */
const [LEAST_BYTES, MOST_BYTES] = [2 ** 11, 2 ** 16];
/** Lists of a chunk, however short they are. */
const MOST_LISTS = 512;
/** Chunks that are handed over together. */
const BULK = 32;
/** A scorer has some hundred thousand numbers. */
const MOST_SCORER_BYTES = 2 ** 28;
export const SCORER_FILES = ["scorer.json", "scorer.safetensors"] as const;

/**
 * Submits a file of lists. Submitted again it is the same run: what is missing is added, what was set aside is retried.
 * @throws {StratumError} `file/unreadable`, `list/empty-file`, `usage/stopped`, `usage/other-input`, `queue/full`,
 *   `queue/refused`, `queue/lost-chunk`
 */
export async function submitLists(pool: Pool, request: SubmitRequest): Promise<Submitted> {
  try {
    return await submit(pool, request);
  } catch (cause) {
    throw ofRedis(cause, pool);
  }
}

async function submit(pool: Pool, request: SubmitRequest): Promise<Submitted> {
  const { path, run: words, scorer, onChunk, signal } = request;
  // Of what is hashed, and of what is read after that.
  const facts = await inputFacts(path);
  const share = Math.ceil((facts?.size ?? 0) / CHUNKS);
  const chunkBytes = request.chunkBytes ?? Math.min(MOST_BYTES, Math.max(LEAST_BYTES, share));
  const identity = JSON.stringify([words.facts, words.fingerprint, await hashFile(path), chunkBytes]);
  const id = createHash("sha256").update(identity).digest("hex").slice(0, 16);
  if (scorer !== null) await storeScorer(pool, id, scorer);
  // Workers may begin before the last chunk is there.
  await beginRun(pool, { id, ...words, lists: 0, chunks: 0 });
  const { handOver, counts } = handingOver(pool, id);
  let [lists, chunks] = [0, 0];
  let items: ChunkItem[] = [];
  let bytes = 0;
  let bulk: Chunk[] = [];
  const endChunk = async () => {
    bulk.push(makeChunk(id, chunks, items));
    chunks++;
    lists += items.length;
    onChunk?.(items.length);
    items = [];
    bytes = 0;
    if (bulk.length < BULK) return;
    await handOver(bulk);
    bulk = [];
  };
  for await (const line of readLists(path, { facts })) {
    if (signal?.aborted) {
      throw new StratumError(
        "usage/stopped",
        `stopped after ${chunks} chunks were handed over`,
        "submit the same lists again: what is missing is added",
      );
    }
    const item = itemOf(line);
    items.push(item);
    bytes += ("list" in item ? item.list : item.record).length;
    if (bytes >= chunkBytes || items.length === MOST_LISTS) await endChunk();
  }
  if (items.length > 0) await endChunk();
  if (bulk.length > 0) await handOver(bulk);
  const run: PoolRun = { id, ...words, lists, chunks };
  if (chunks === 0) throw new StratumError("list/empty-file", `${path} holds no lists`, "give one JSON object a line");
  const there = await pool.redis.hlen(pool.key("run", id, "chunks"));
  if (there < chunks) {
    throw new StratumError(
      "queue/lost-chunk",
      `of ${chunks} chunks of run ${id} ${there} are in the queue: they were taken out while they were submitted`,
      "submit the same lists again, which adds what is missing",
    );
  }
  await saveRun(pool, run);
  return { run, ...counts };
}

type Chunk = ReturnType<typeof makeChunk>;

/** Puts chunks of a run into the queue, those that it does not have; the same may be done by another process meanwhile. */
function handingOver(pool: Pool, run: string) {
  const { redis, key, queue } = pool;
  const counts = { added: 0, retried: 0 };
  let queued: ReadonlySet<string> | undefined;

  /** Whether Redis has lost a chunk's place in the queue. */
  async function isLost(jobId: string): Promise<boolean> {
    // Looking for each by itself takes as long as the queue is.
    queued ??= new Set(await queue.getRanges(["wait", "active", "delayed", "prioritized"], 0, -1));
    return !queued.has(jobId) && (await chunkState(pool, jobId)) === "lost";
  }

  /** What the queue has of a chunk that is as it was written, and null for any other. */
  async function wholeChunk({ jobId, data: { index } }: Chunk): Promise<PoolJob | null> {
    try {
      const job = await chunkInQueue(pool, jobId);
      if (job === undefined) return null;
      readChunk(job.data, jobId);
      if (job.finishedOn !== undefined && job.returnvalue !== undefined && job.returnvalue !== null) {
        // Where the worker died before it could say so.
        await saveDone(pool, run, jobId, readResult(job.returnvalue, index).done);
      }
      return job;
    } catch (cause) {
      if (!(cause instanceof StratumError && cause.code === "queue/damaged")) throw cause;
      return null;
    }
  }

  async function retry(job: PoolJob, jobId: string): Promise<boolean> {
    // Its deaths are forgotten as its failures are.
    await redis.hdel(queue.toKey(jobId), "stc");
    try {
      await job.retry("failed", { resetAttemptsMade: true, resetAttemptsStarted: true });
      return true;
    } catch (cause) {
      // Another submit was first, or Redis has lost that it failed.
      if ((await chunkState(pool, jobId)) === "failed") return false;
      if (cause instanceof Error && /not in the failed state|Missing key/.test(cause.message)) return true;
      throw cause;
    }
  }

  /** Whether the queue has a chunk already, so that it will be done or is. */
  async function isThere(chunk: Chunk, end: Exclude<ChunkEnd, "absent">): Promise<boolean> {
    const { jobId } = chunk;
    const job = await wholeChunk(chunk);
    if (job === null) return false;
    if (end === "unfinished") return !(await isLost(jobId));
    if (end === "done") return job.returnvalue !== undefined && job.returnvalue !== null;
    if (!(await retry(job, jobId))) return false;
    counts.retried++;
    return true;
  }

  async function handOver(chunks: readonly Chunk[]): Promise<void> {
    const ends = await chunkEnds(
      pool,
      chunks.map(({ jobId }) => jobId),
    );
    for (const [i, chunk] of chunks.entries()) {
      const { jobId } = chunk;
      const end = ends[i];
      if (end !== "absent" && (await isThere(chunk, end))) continue;
      // One that is damaged, unless somebody ranks it.
      if (end !== "absent") await queue.remove(jobId);
      await redis.hdel(key("run", run, "done"), jobId);
      counts.added++;
    }
    await queue.addBulk(
      chunks.map(({ jobId, data }) => ({
        name: "chunk",
        data,
        // At once: clocks of workers differ. What is done stays until it is collected.
        opts: { jobId, attempts: ATTEMPTS, stackTraceLimit: 1 },
      })),
    );
    // By place: what was handed over before stays what it is.
    const places = chunks.flatMap(({ jobId, data }) => [String(data.index), jobId]);
    await redis.hset(key("run", run, "chunks"), ...places);
  }

  return { handOver, counts };
}

function itemOf(line: ListLine): ChunkItem {
  if (line.kind === "error") return { line: line.line, record: toJsonLine(errorRecord(line.id, line.error)) };
  return { line: line.line, list: JSON.stringify(written(line)) };
}

/** A list as it was written, but for the spelling of its JSON. */
function written({ id, line, list }: ListItem): object {
  const { messages, candidates, extra } = list;
  return {
    // Without an id of its own a list has its line's number, wherever it is ranked.
    ...(id === String(line) ? {} : { id }),
    ...extra,
    messages,
    candidates: candidates.map(({ document }) => document),
  };
}

async function storeScorer({ redis, key }: Pool, run: string, folder: string): Promise<void> {
  for (const name of SCORER_FILES) {
    const bytes = await readFile(join(folder, name));
    if (bytes.length > MOST_SCORER_BYTES) {
      throw new StratumError(
        "usage/scorer",
        `${join(folder, name)} has ${bytes.length} bytes; at most ${MOST_SCORER_BYTES} go through the queue`,
        "train a smaller scorer",
      );
    }
    await redis.hset(key("run", run, "scorer"), name, bytes);
  }
}
