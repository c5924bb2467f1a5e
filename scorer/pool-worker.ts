/**
 * A worker of a pool: takes chunks and ranks them with one loaded model, for as long as it is let.
 *
 * While one chunk is ranked the next is fetched and waits, so that the adapter never waits for Redis. A worker that dies
 * stops renewing its chunks' locks, and the others take them over after `stalledMs`.
 */
import { hostname } from "node:os";
import { WaitingError, Worker } from "bullmq";
import { messageOf, StratumError } from "../errors.ts";
import type { ListLine } from "./lists.ts";
import {
  connect,
  DEATHS,
  loadRun,
  ofRedis,
  type Pool,
  QUEUE_PREFIX,
  SHORTAGES,
  unlessStopped,
  withoutPassword,
} from "./pool.ts";
import { type PoolJob, saveDone } from "./pool-chunks.ts";
import { type ChunkData, type ChunkDone, type ChunkResult, type PoolRun, packText, readChunk } from "./pool-records.ts";
import type { Ranker } from "./rank.ts";
import { toJsonLine } from "./rankings.ts";

/** What ranks the lists of one run. */
export interface RunRanker extends AsyncDisposable {
  readonly ranker: Ranker;
  readonly adapter: string;
  readonly kernels: string;
}

export interface WorkerOptions {
  /** Loads a run's model and scorer. What it throws ends the worker, and its chunk goes back to the others. */
  readonly open: (run: PoolRun) => Promise<RunRanker>;
  /** Without a sign of life for so long, a worker is dead. */
  readonly stalledMs: number;
  readonly onChunk?: (done: ChunkDone) => void;
  readonly onFailure?: (error: unknown, attempt: number) => void;
  /** Told once of whatever keeps chunks from being taken or handed in. */
  readonly onTrouble?: (text: string) => void;
  /** Ends the worker after the chunks that it has begun. */
  readonly signal?: AbortSignal | undefined;
  /** End once nothing is left to do. */
  readonly drain?: boolean;
}

const POLL_MS = 250;
/** What another worker would find, too: such a chunk fails, and the worker goes on. */
const EVERYWHERE: ReadonlySet<string> = new Set(["queue/damaged", "queue/no-run"]);

/** Works until it is stopped. @throws {StratumError} what `open` throws, and what a device throws that is gone */
export async function work(pool: Pool, options: WorkerOptions): Promise<void> {
  const { open, stalledMs, onChunk, onFailure, onTrouble, signal, drain = false } = options;
  const name = `${hostname()}:${process.pid}`;
  let loaded: { readonly run: PoolRun; readonly ranker: RunRanker } | null = null;
  let fault: unknown;
  let turn: Promise<unknown> = Promise.resolve();

  /** The ranker of a run; the one before makes room for it. */
  async function rankerOf(id: string): Promise<RunRanker> {
    if (loaded?.run.id === id) return loaded.ranker;
    await loaded?.ranker[Symbol.asyncDispose]();
    loaded = null;
    const run = await loadRun(pool, id);
    loaded = { run, ranker: await open(run) };
    return loaded.ranker;
  }

  async function rankChunk(job: PoolJob, runRanker: RunRanker): Promise<ChunkResult> {
    const begin = performance.now();
    const chunk = readChunk(job.data, job.id ?? "");
    const records: string[] = [];
    const counts = { lists: chunk.length, failed: 0, tokens: 0 };
    let next = 0;
    /** What is known of the lines that are no lists. */
    const passOn = () => {
      for (let item = chunk[next]; item?.kind === "record"; item = chunk[next]) {
        records.push(item.record);
        counts.failed++;
        next++;
      }
    };
    passOn();
    async function* source(): AsyncGenerator<ListLine> {
      for (const item of chunk) if (item.kind === "list") yield item;
    }
    for await (const outcome of runRanker.ranker.rank(source())) {
      records.push(toJsonLine(outcome.record));
      next++;
      if (outcome.kind === "failed") counts.failed++;
      else counts.tokens += outcome.tokens;
      passOn();
    }
    const { adapter, kernels } = runRanker;
    const seconds = Number(((performance.now() - begin) / 1000).toFixed(3));
    const lines: [number, number] = [chunk[0].line, chunk[chunk.length - 1].line];
    const done: ChunkDone = { index: job.data.index, lines, ...counts, worker: name, adapter, kernels, seconds };
    return { text: packText(records.join("")), done };
  }

  async function takeChunk(job: PoolJob, token?: string): Promise<ChunkResult> {
    const waited = turn;
    let release: () => void = () => undefined;
    turn = new Promise<void>((resolve) => {
      release = resolve;
    });
    await waited;
    try {
      const ranker = fault === undefined ? await rankerOf(job.data.run).catch(ownFault) : null;
      // It is this machine's fault: the chunk goes back as it was.
      if (ranker === null) return await giveBack(job, token);
      return await rankChunk(job, ranker);
    } catch (cause) {
      if (!(cause instanceof StratumError && cause.kind === "environment") || EVERYWHERE.has(cause.code)) throw cause;
      // A device that is gone does not come back; the chunk is tried elsewhere.
      broken(cause);
      // Short memory is no failure of the chunk's, until it has been to many.
      if (cause.code === "memory/out-of-memory" && job.attemptsStarted < SHORTAGES) return await giveBack(job, token);
      throw cause;
    } finally {
      release();
    }
  }

  async function giveBack(job: PoolJob, token: string | undefined): Promise<never> {
    await job.moveToWait(token);
    throw new WaitingError();
  }

  /** What keeps this machine from a run. */
  function ownFault(cause: unknown): null {
    if (cause instanceof StratumError && EVERYWHERE.has(cause.code)) throw cause;
    return broken(cause);
  }

  /** Takes no more chunks. */
  function broken(cause: unknown): null {
    fault ??= cause;
    void worker.pause(true);
    return null;
  }

  const connection = connect(pool.address.url);
  const worker = new Worker<ChunkData, ChunkResult>(pool.address.name, takeChunk, {
    connection,
    prefix: QUEUE_PREFIX,
    name,
    concurrency: 2,
    lockDuration: stalledMs,
    stalledInterval: stalledMs,
    maxStalledCount: DEATHS,
  });
  const told = new Set<string>();
  worker.on("error", (error) => {
    const text = troubleOf(error, pool);
    if (text === null || told.has(text)) return;
    told.add(text);
    onTrouble?.(text);
  });
  // One that was finished by another meanwhile, because this one gave no sign of life, does not come here.
  const saving = new Set<Promise<void>>();
  worker.on("completed", ({ id = "", data }, { done }) => {
    const saved = saveDone(pool, data.run, id, done)
      .catch(() => undefined)
      .finally(() => saving.delete(saved));
    saving.add(saved);
    onChunk?.(done);
  });
  worker.on("failed", (job, error) => onFailure?.(error, job?.attemptsMade ?? 0));
  try {
    while (fault === undefined && !signal?.aborted) {
      if (drain && (await unlessStopped(isDrained(pool), signal))) break;
      await pause();
    }
    await closed(worker, pool);
    // Only said: the results are handed in.
    await Promise.race([Promise.all(saving), new Promise((resolve) => setTimeout(resolve, AWAY_MS).unref())]);
  } finally {
    connection.disconnect();
    await (loaded as { readonly ranker: RunRanker } | null)?.ranker[Symbol.asyncDispose]();
  }
  if (fault !== undefined) throw fault instanceof Error ? fault : new Error(messageOf(fault));
}

/** What a worker's error means for people; null for connections, of which the pool tells. */
function troubleOf(error: Error, pool: Pool): string | null {
  if (/\block\b/i.test(error.message)) {
    return "this worker gave no sign of life for too long: chunks of its may be done again by others; give --stalled-after more seconds";
  }
  const known = ofRedis(error, pool);
  return known instanceof StratumError ? `${known.message}; ${known.fix}` : null;
}

const pause = () => new Promise((resolve) => setTimeout(resolve, POLL_MS));

/** How long the end waits for a Redis that is away. */
const AWAY_MS = 5000;

/** Ends a worker after the chunks that it has begun. @throws {StratumError} `queue/unreachable` where they cannot be handed in */
async function closed(worker: Worker, { answers, address }: Pool): Promise<void> {
  let open = true;
  const closing = worker.close().finally(() => {
    open = false;
  });
  let answered = performance.now();
  while (open) {
    await Promise.race([closing, pause()]);
    if (answers()) answered = performance.now();
    if (performance.now() - answered < AWAY_MS) continue;
    closing.catch(() => undefined);
    await Promise.race([worker.disconnect(), pause()]);
    throw new StratumError(
      "queue/unreachable",
      `the Redis at ${withoutPassword(address.url)} is away, and what this worker was doing cannot be handed in`,
      "start the Redis again: other workers do those chunks",
    );
  }
  await closing;
}

async function isDrained({ queue }: Pool): Promise<boolean> {
  const counts = await queue.getJobCounts("waiting", "active", "delayed", "prioritized");
  return Object.values(counts).every((count) => count === 0);
}
