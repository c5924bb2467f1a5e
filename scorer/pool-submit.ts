/** Puts lists into a pool's queue, in chunks. */

import { createHash } from "node:crypto";
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { StratumError } from "../errors.ts";
import { hashFile } from "../weights/durable.ts";
import type { ListItem, ListLine } from "./lists.ts";
import { readLists } from "./lists.ts";
import { ATTEMPTS, chunkInQueue, type Pool, type PoolJob, saveDone, saveRun, submittedCounts } from "./pool.ts";
import {
  type ChunkData,
  type ChunkDone,
  type ChunkItem,
  chunkId,
  type PoolRun,
  packItems,
  readChunk,
  readResult,
} from "./pool-records.ts";
import { errorRecord, toJsonLine } from "./rankings.ts";

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
 * @throws {StratumError} `file/unreadable`, `list/empty-file`, `usage/stopped`
 */
export async function submitLists(pool: Pool, request: SubmitRequest): Promise<Submitted> {
  const { path, run: words, scorer, onChunk, signal } = request;
  const { redis, key, queue } = pool;
  const share = Math.ceil((await stat(path)).size / CHUNKS);
  const chunkBytes = request.chunkBytes ?? Math.min(MOST_BYTES, Math.max(LEAST_BYTES, share));
  const identity = JSON.stringify([words.facts, words.fingerprint, await hashFile(path), chunkBytes]);
  const id = createHash("sha256").update(identity).digest("hex").slice(0, 16);
  if (scorer !== null) await storeScorer(pool, id, scorer);
  // Workers may begin before the last chunk is there. What was submitted whole has as many chunks again.
  await saveRun(pool, { id, ...words, ...(await submittedCounts(pool, id)) });
  let [added, retried, lists, chunks] = [0, 0, 0, 0];
  let items: ChunkItem[] = [];
  let bytes = 0;
  let bulk: { name: string; data: ChunkData; opts: object }[] = [];
  const handOver = async () => {
    const ids = bulk.map(({ data }) => chunkId(data));
    for (const [i, jobId] of ids.entries()) {
      const known = await wholeChunk(pool, jobId, bulk[i].data.index);
      if (known === undefined) {
        added++;
        // Its result may be lost, too.
        await redis.hdel(key("run", id, "done"), jobId);
      } else if (known.state === "failed") {
        await known.job.retry("failed", { resetAttemptsMade: true, resetAttemptsStarted: true });
        retried++;
      } else if (known.done !== null) await saveDone(pool, id, jobId, known.done);
    }
    await queue.addBulk(bulk);
    // By place: what was handed over before stays what it is.
    await redis.hset(key("run", id, "chunks"), ...bulk.flatMap(({ data }, i) => [String(data.index), ids[i]]));
    bulk = [];
  };
  const endChunk = async () => {
    const data: ChunkData = { run: id, index: chunks, items: packItems(items) };
    chunks++;
    bulk.push({
      name: "chunk",
      data,
      // What is done stays until it is collected.
      opts: { jobId: chunkId(data), attempts: ATTEMPTS, backoff: { type: "fixed", delay: 1000 }, stackTraceLimit: 1 },
    });
    lists += items.length;
    onChunk?.(items.length);
    items = [];
    bytes = 0;
    if (bulk.length === BULK) await handOver();
  };
  for await (const line of readLists(path)) {
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
  if (bulk.length > 0) await handOver();
  const run: PoolRun = { id, ...words, lists, chunks };
  if (chunks === 0) throw new StratumError("list/empty-file", `${path} holds no lists`, "give one JSON object a line");
  await saveRun(pool, run);
  return { run, added, retried };
}

interface KnownChunk {
  readonly job: PoolJob;
  readonly state: string;
  /** Who has done it. */
  readonly done: ChunkDone | null;
}

/** A chunk as the queue has it; undefined where it has none. One that is damaged is taken out, unless somebody ranks it. */
async function wholeChunk(pool: Pool, jobId: string, index: number): Promise<KnownChunk | undefined> {
  try {
    const job = await chunkInQueue(pool, jobId);
    if (job === undefined) return undefined;
    readChunk(job.data, jobId);
    const state = await job.getState();
    return { job, state, done: state === "completed" ? readResult(job.returnvalue, index).done : null };
  } catch (cause) {
    if (!(cause instanceof StratumError && cause.code === "queue/damaged")) throw cause;
    await pool.queue.remove(jobId);
    return undefined;
  }
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
