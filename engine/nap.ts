/**
 * Waiting for the GPU without taking a core. Dawn's binding for Node looks for what has ended at every turn of the event
 * loop, and keeps the loop turning as fast as it can. A software adapter computes on the same cores, and lacks one
 * then. So while something is waited for, a turn of the loop sleeps.
 */

/** A sleep is this share of the time that was waited for already: how much later an end may be seen. */
const SHARE = 0.1;
/** Milliseconds of a sleep, at most: what else the loop has to do waits so long a turn. */
const MOST_MS = 1;
/** Milliseconds below which no sleep is worth a call. */
const LEAST_MS = 0.02;

const never = new Int32Array(new SharedArrayBuffer(4));
let waiting = 0;
let began = 0;
let turning = false;

function turn(): void {
  turning = waiting > 0;
  if (!turning) return;
  const ms = Math.min(MOST_MS, SHARE * (performance.now() - began));
  if (ms > LEAST_MS) Atomics.wait(never, 0, 0, ms);
  setImmediate(turn);
}

/** Waits for what the GPU, or its driver, will end. @throws what `ending` ends with */
export async function napping<T>(ending: Promise<T>): Promise<T> {
  if (waiting++ === 0) began = performance.now();
  if (!turning) setImmediate(turn);
  turning = true;
  try {
    return await ending;
  } finally {
    waiting--;
  }
}
