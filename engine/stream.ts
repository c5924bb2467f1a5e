/**
 * Streams items through a room: batches are filled to the budget, results come in the order of the input. While the GPU
 * has a batch, the host takes, and so encodes, the items of the next.
 */
import { StratumError } from "../errors.ts";
import { type Batch, groupCost, MIN_SEQUENCE_ROWS, packBatches, type SequenceGroup } from "./batch.ts";
import type { Furniture, Room } from "./room.ts";
import type { Runner } from "./runner.ts";

/** An item on its way; without a group it only waits for its turn. */
export interface Job<T> {
  readonly item: T;
  readonly group: SequenceGroup | null;
}

/** What a room must hold to be streamed through. */
export interface Streaming extends Furniture {
  readonly runner: Pick<Runner, "budget" | "maxBudget" | "grantedBudget" | "packing" | "grow">;
}

export interface StreamOptions {
  /** Compute a group's common prefix once; default true. */
  readonly sharePrefix?: boolean;
  /** Stops between batches; items that have not run are not yielded. */
  readonly signal?: AbortSignal | undefined;
}

/** Items without a group that may wait before they are passed on. */
const MAX_WAITING = 256;
/** A source that pauses this long gets what it has given so far answered: a state does not depend on its batch. */
const PAUSE_MS = 50;

/** What of a runner decides which groups can be packed, on an adapter whose memory is not short. */
export interface Packer {
  readonly grantedBudget: number;
  readonly packing: Pick<Runner["packing"], "longFrom">;
}

/** The sequence of a group that needs the largest batch, together with the group's first where that is needed, and how large. */
function neediest(
  group: SequenceGroup,
  longFrom: Runner["packing"]["longFrom"],
  sharePrefix: boolean,
): { readonly index: number; readonly rows: number } {
  const [first, ...others] = group.sequences;
  let most = { index: 0, rows: 0 };
  for (const [index, sequence] of group.sequences.entries()) {
    const members = group.anchored && others.length > 0 && index > 0 ? [first, sequence] : [sequence];
    const rows = groupCost({ sequences: members }, { sharePrefix, longFrom });
    if (rows > most.rows) most = { index, rows };
  }
  return most;
}

/**
 * Whether every sequence of a group fits a batch of a budget.
 * @throws {StratumError} `list/over-budget`
 */
export function checkFits(
  group: SequenceGroup,
  { grantedBudget, packing: { longFrom } }: Packer,
  sharePrefix = true,
): void {
  const { index, rows } = neediest(group, longFrom, sharePrefix);
  if (rows <= grantedBudget) return;
  throw new StratumError(
    "list/over-budget",
    `sequence ${index} needs a batch of ${rows} tokens; at most ${grantedBudget} fit`,
    `raise --batch-tokens to ${rows} where the adapter allows it (stratum doctor shows its limits), or shorten the text`,
  );
}

/** A job that runs. */
type Member<T> = Job<T> & { readonly group: SequenceGroup };

/**
 * Runs jobs batch by batch.
 * @param run is called once a batch with the jobs that its groups index, and once more for a batch that a fault has ended:
 *   what it stores of a sequence must be stored by the sequence
 */
export async function* streamJobs<T, F extends Streaming>(
  jobs: AsyncIterable<Job<T>>,
  room: Room<F>,
  run: (batch: Batch, jobs: readonly Job<T>[], current: F) => Promise<void>,
  { sharePrefix = true, signal }: StreamOptions = {},
): AsyncGenerator<T> {
  const sharing = { sharePrefix, longFrom: room.current.runner.packing.longFrom };
  /** The jobs that run now. */
  let running: Promise<unknown> | undefined;

  /** Runs jobs. @returns false where it was stopped before all were done */
  async function runJobs(filled: readonly Job<T>[]): Promise<boolean> {
    const members = filled.filter((job): job is Member<T> => job.group !== null);
    const groups = members.map(({ group }) => group);
    const dearest = groups.reduce((most, group) => Math.max(most, groupCost(group, sharing)), 0);
    const needed = groups.reduce(
      (most, group) => Math.max(most, neediest(group, sharing.longFrom, sharePrefix).rows),
      0,
    );
    // Of the batches by this budget, so many are done.
    let [budget, done] = [0, 0];
    const step = async (current: F): Promise<boolean | "short"> => {
      const { runner } = current;
      await runner.grow(Math.min(dearest, runner.maxBudget));
      if (runner.budget !== budget) [budget, done] = [runner.budget, 0];
      if (needed > runner.budget) return "short";
      for (const batch of packBatches(groups, { ...runner.packing, sharePrefix }).slice(done)) {
        if (signal?.aborted) return false;
        await run(batch, members, current);
        done++;
      }
      return true;
    };
    const first = await room.run(step);
    if (first !== "short") return first;
    // Memory was short before: it may be there again, and what a list comes to must not hang on that.
    await room.widen(needed);
    const second = await room.run(step);
    if (second !== "short") return second;
    const { grantedBudget } = room.current.runner;
    throw new StratumError(
      "memory/out-of-memory",
      `a sequence needs a batch of ${needed} tokens; the GPU has memory for ${budget}, of ${grantedBudget} that would be possible`,
      "free memory of the GPU, or take a shallower --layer or --weights int8; a run into a file goes on with the same command",
    );
  }

  const iterator = jobs[Symbol.asyncIterator]();
  let next = iterator.next();
  let left = false;

  /** Takes jobs until a batch is full, the source pauses while nothing runs, or it ends. Takes nothing once left. */
  async function fill(): Promise<Filled<T>> {
    const filled: Job<T>[] = [];
    let cost = 0;
    while (!left) {
      if (filled.length > 0 && (await paused(next))) {
        if (running === undefined) return { jobs: filled, ended: false };
        await Promise.race([settled(next), running]);
        continue;
      }
      let step: IteratorResult<Job<T>>;
      try {
        step = await next;
      } catch (cause) {
        // What the source gave before it failed is answered first.
        return { jobs: filled, ended: true, cause };
      }
      if (step.done) break;
      const { group } = step.value;
      const own = group === null ? 0 : Math.max(groupCost(group, sharing), MIN_SEQUENCE_ROWS);
      const full = cost + own > room.current.runner.budget || filled.length >= MAX_WAITING;
      if (filled.length > 0 && full) return { jobs: filled, ended: false };
      filled.push(step.value);
      cost += own;
      next = iterator.next();
    }
    return { jobs: filled, ended: true };
  }

  let filling = fill();
  try {
    for (;;) {
      const filled = await orAborted(filling, signal);
      if (filled === undefined || signal?.aborted) return;
      const whole = runJobs(filled.jobs);
      running = settled(whole);
      // The host prepares the next batch while the GPU has this one.
      if (!filled.ended) filling = fill();
      if (!(await whole)) return;
      running = undefined;
      for (const { item } of filled.jobs) yield item;
      if ("cause" in filled) throw filled.cause;
      if (filled.ended) return;
    }
  } finally {
    left = true;
    // A reader that still waits for its source must not hold the end up.
    void settled(next);
    void settled(filling);
    void iterator.return?.().catch(() => undefined);
  }
}

/** Jobs for a batch or more; `cause`: what the source failed with behind them. */
interface Filled<T> {
  readonly jobs: readonly Job<T>[];
  readonly ended: boolean;
  readonly cause?: unknown;
}

async function settled(awaited: Promise<unknown>): Promise<void> {
  await awaited.catch(() => undefined);
}

async function paused(next: Promise<unknown>): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const pause = new Promise<true>((resolve) => {
    timer = setTimeout(() => resolve(true), PAUSE_MS);
  });
  try {
    return await Promise.race([settled(next).then(() => false), pause]);
  } finally {
    clearTimeout(timer);
  }
}

async function orAborted<T>(next: Promise<T>, signal: AbortSignal | undefined): Promise<T | undefined> {
  if (signal === undefined) return next;
  // An abort that came before leaves no event to wait for.
  if (signal.aborted) return undefined;
  let stop: (() => void) | undefined;
  const aborted = new Promise<undefined>((resolve) => {
    stop = () => resolve(undefined);
    signal.addEventListener("abort", stop);
  });
  try {
    return await Promise.race([next, aborted]);
  } finally {
    if (stop) signal.removeEventListener("abort", stop);
  }
}
