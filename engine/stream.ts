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
  readonly runner: Pick<Runner, "budget" | "maxBudget" | "packing" | "grow">;
}

export interface StreamOptions<T = unknown> {
  /** Compute a group's common prefix once; default true. */
  readonly sharePrefix?: boolean;
  /** Stops between batches; items that have not run are not yielded. */
  readonly signal?: AbortSignal | undefined;
  /** Told of an item that no batch holds any more, as memory was short; it is yielded in its turn. Default: its error is thrown. */
  readonly onOverBudget?: ((item: T, error: StratumError) => void) | undefined;
}

/** Items without a group that may wait before they are passed on. */
const MAX_WAITING = 256;
/** A source that pauses this long gets what it has given so far answered: a state does not depend on its batch. */
const PAUSE_MS = 50;

/** What of a runner decides how groups are packed. */
export interface Packer {
  readonly maxBudget: number;
  readonly packing: Pick<Runner["packing"], "longFrom">;
}

/**
 * Whether every sequence of a group fits a batch of a budget, together with the group's first where that is needed.
 * @throws {StratumError} `list/over-budget`
 */
export function checkFits(
  group: SequenceGroup,
  { maxBudget, packing: { longFrom } }: Packer,
  sharePrefix = true,
): void {
  const [first, ...others] = group.sequences;
  for (const [i, sequence] of group.sequences.entries()) {
    const members = group.anchored && others.length > 0 && i > 0 ? [first, sequence] : [sequence];
    const cost = groupCost({ sequences: members }, { sharePrefix, longFrom });
    if (cost <= maxBudget) continue;
    throw new StratumError(
      "list/over-budget",
      `sequence ${i} needs a batch of ${cost} tokens; at most ${maxBudget} fit`,
      `raise --batch-tokens to ${cost} where the adapter allows it (stratum doctor shows its limits), or shorten the text`,
    );
  }
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
  { sharePrefix = true, signal, onOverBudget }: StreamOptions<T> = {},
): AsyncGenerator<T> {
  const sharing = { sharePrefix, longFrom: room.current.runner.packing.longFrom };
  /** The jobs that run now. */
  let running: Promise<unknown> | undefined;

  /** Those of the members that fit a batch; a budget that has shrunk holds less than when they came. */
  function fitting(members: readonly Member<T>[], packer: Packer): Member<T>[] {
    return members.filter(({ item, group }) => {
      try {
        checkFits(group, packer, sharePrefix);
        return true;
      } catch (thrown) {
        if (!(thrown instanceof StratumError) || onOverBudget === undefined) throw thrown;
        onOverBudget(item, thrown);
        return false;
      }
    });
  }

  /** Runs jobs. @returns false where it was stopped before all were done */
  async function runJobs(filled: readonly Job<T>[]): Promise<boolean> {
    let members = filled.filter((job): job is Member<T> => job.group !== null);
    // Of the batches by this budget, so many are done.
    let [budget, done] = [0, 0];
    return await room.run(async (current) => {
      const { runner } = current;
      const dearest = members.reduce((most, { group }) => Math.max(most, groupCost(group, sharing)), 0);
      await runner.grow(Math.min(dearest, runner.maxBudget));
      if (runner.budget !== budget) {
        [budget, done] = [runner.budget, 0];
        members = fitting(members, runner);
      }
      const groups = members.map(({ group }) => group);
      for (const batch of packBatches(groups, { ...runner.packing, sharePrefix }).slice(done)) {
        if (signal?.aborted) return false;
        await run(batch, members, current);
        done++;
      }
      return true;
    });
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
