/** Work on what strangers wrote, under a clock. */
import { createContext, Script } from "node:vm";

const context = createContext({ task: undefined });
const script = new Script("task()");

/** What {@link withinTime} throws when the time is up. */
export class TimeUp extends Error {}

/** A clock that work shares; `short` once a piece has needed more than was left of it. */
interface SharedClock {
  readonly ends: number;
  short: boolean;
}
let shared: SharedClock | undefined;

/**
 * Runs synchronous work under a clock: V8 stops it wherever it is, in the middle of a regular expression too, and the
 * process goes on. A clock is a thread that is started and ended, and costs 40 to 400 us; within
 * {@link underSharedClock} no other is needed.
 *
 * @throws TimeUp after `milliseconds`; what `work` throws
 */
export function withinTime<T>(milliseconds: number, work: () => T): T {
  if (shared === undefined) return underClock(milliseconds, work);
  const begin = performance.now();
  if (begin + milliseconds > shared.ends) {
    shared.short = true;
    throw new TimeUp("the shared clock has less time left");
  }
  const result = work();
  if (performance.now() - begin > milliseconds) throw timeUp(milliseconds);
  return result;
}

function timeUp(milliseconds: number): TimeUp {
  return new TimeUp(`it ran for more than ${Math.ceil(milliseconds)} ms`);
}

function underClock<T>(milliseconds: number, work: () => T): T {
  const result: T[] = [];
  context["task"] = () => {
    result.push(work());
  };
  try {
    script.runInContext(context, { timeout: Math.ceil(milliseconds), displayErrors: false });
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException | null)?.code !== "ERR_SCRIPT_EXECUTION_TIMEOUT") throw cause;
    throw timeUp(milliseconds);
  } finally {
    context["task"] = undefined;
  }
  return result[0] as T;
}

/** What a shared clock lasts: twice what a piece of work may take, so that half of it is used before too little is left. */
const SHARED_MS = 20_000;

/**
 * Maps items whose work uses {@link withinTime}, under one clock for all. An item that the clock stops, or for which too
 * little of it is left, is begun again with clocks of its own: its work must not show that it was begun before.
 *
 * @param pause milliseconds after which no other item is begun
 * @param lasts milliseconds of the clock
 * @returns results of the first items, of one at least
 * @throws what `work` throws
 */
export function underSharedClock<T, R>(
  items: readonly T[],
  pause: number,
  work: (item: T) => R,
  lasts: number = SHARED_MS,
): R[] {
  const results: R[] = [];
  const begin = performance.now();
  const clock: SharedClock = { ends: begin + lasts, short: false };
  const step = () => {
    for (const item of items) {
      const result = work(item);
      if (clock.short) return;
      results.push(result);
      if (performance.now() - begin > pause) return;
    }
  };
  if (shared !== undefined) throw new Error("a shared clock within a shared clock");
  shared = clock;
  let stopped = false;
  try {
    underClock(lasts, step);
  } catch (thrown) {
    if (!(thrown instanceof TimeUp)) throw thrown;
    stopped = true;
  } finally {
    shared = undefined;
  }
  const next = items[results.length];
  if ((stopped || clock.short) && next !== undefined) results.push(work(next));
  return results;
}
