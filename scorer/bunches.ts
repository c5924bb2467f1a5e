/** Lines on their way, as many at a time as are there. */
import { underSharedClock } from "../weights/time-bound.ts";

/** Lines that are looked at together, at most. */
const MOST_LINES = 256;
/** Encoding pauses after so long for whatever else the process has to do. */
const PAUSE_MS = 20;

/**
 * Maps lines by synchronous work under clocks (`weights/time-bound.ts`), many under one. A line that is there is not kept
 * waiting for one that is not.
 *
 * @param prepare is called before a bunch is mapped, for what its lines need and what cannot be had at once
 * @throws what the lines, `prepare` and `work` throw
 */
export async function* mapBunches<T, R>(
  lines: AsyncIterable<T>,
  work: (line: T) => R,
  prepare?: (bunch: readonly T[]) => Promise<void>,
): AsyncGenerator<R> {
  for await (const bunch of bunches(lines)) {
    await prepare?.(bunch);
    for (let at = 0; at < bunch.length; ) {
      const results = underSharedClock(bunch.slice(at), PAUSE_MS, work);
      at += results.length;
      yield* results;
    }
  }
}

/** What a source gives without a turn of the event loop goes into one bunch. An error comes behind what came before it. */
async function* bunches<T>(lines: AsyncIterable<T>): AsyncGenerator<T[]> {
  const iterator = lines[Symbol.asyncIterator]();
  let next = iterator.next();
  try {
    for (;;) {
      const first = await next;
      if (first.done) return;
      const bunch = [first.value];
      const turn = new Promise<undefined>((resolve) => setImmediate(() => resolve(undefined)));
      const settled = (step: Promise<IteratorResult<T>>) => step.catch(() => undefined);
      next = iterator.next();
      while (bunch.length < MOST_LINES) {
        const step = await Promise.race([settled(next), turn]);
        if (step === undefined || step.done) break;
        bunch.push(step.value);
        next = iterator.next();
      }
      yield bunch;
    }
  } finally {
    // A reader that still waits for its source must not hold the end up.
    next.catch(() => undefined);
    void iterator.return?.().catch(() => undefined);
  }
}
