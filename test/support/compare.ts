import { PARITY, type Tolerance } from "./tolerances.ts";

/** What a comparison saw, so that a test can tell a match from an empty one. */
export interface Comparison {
  /** Every place outside the tolerance, in words; at most `MOST_NAMED`. */
  readonly wrong: readonly string[];
  readonly nmse: number;
}

const MOST_NAMED = 5;

/** Root of the mean square of the finite values. */
export function rootMeanSquare(values: Float32Array): number {
  let sum = 0;
  let count = 0;
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    sum += value * value;
    count++;
  }
  return Math.sqrt(sum / Math.max(1, count));
}

/** Compares element by element; NaN and infinities must stand where `expected` has them. */
export function compareWithin(actual: Float32Array, expected: Float32Array, tolerance: Tolerance): Comparison {
  const wrong: string[] = [];
  const rms = rootMeanSquare(expected);
  let [errors, squares] = [0, 0];
  if (actual.length !== expected.length) wrong.push(`${actual.length} elements instead of ${expected.length}`);
  for (let i = 0; i < expected.length; i++) {
    const [x, t] = [actual[i], expected[i]];
    const error = Math.abs(x - t);
    const fits = Number.isFinite(t) ? error <= tolerance.element * Math.max(Math.abs(t), rms) : Object.is(x, t);
    if (!fits && wrong.length < MOST_NAMED) wrong.push(`[${i}]: ${x} instead of ${t} (rms ${rms})`);
    if (!Number.isFinite(t)) continue;
    errors += error * error;
    squares += t * t;
  }
  const nmse = squares === 0 ? errors : errors / squares;
  // Written so that NaN fails.
  if (!(nmse <= tolerance.nmse)) wrong.push(`NMSE ${nmse} > ${tolerance.nmse}`);
  return { wrong, nmse };
}

/** Compares hidden states (T, D) with their reference by the parity promise; `where` names model, layer and sequence. */
export function parityFaults(states: Float32Array, reference: Float32Array, d: number, where: string): string[] {
  const faults: string[] = [];
  const rows = reference.length / d;
  let [errors, squares] = [0, 0];
  if (states.length !== reference.length) return [`${where}: ${states.length} numbers instead of ${reference.length}`];
  for (let t = 0; t < rows; t++) {
    const row = reference.subarray(t * d, (t + 1) * d);
    const room = PARITY.ofRow * Math.max(1, rootMeanSquare(row));
    let worst = { over: 0, text: "" };
    for (let i = 0; i < d; i++) {
      const [x, r] = [states[t * d + i], row[i]];
      const error = Math.abs(x - r);
      const over = error / (PARITY.relative * Math.abs(r) + room);
      if (!(over <= 1) && !(over <= worst.over)) worst = { over, text: `[${i}] ${x} instead of ${r}` };
      errors += error * error;
      squares += r * r;
    }
    if (worst.text !== "") faults.push(`${where}, position ${t}: ${worst.text}, ${worst.over.toFixed(2)} of the room`);
  }
  if (!(errors / squares <= PARITY.nmse)) faults.push(`${where}: NMSE ${errors / squares} > ${PARITY.nmse}`);
  return faults;
}

/** The first place where two arrays differ in their bits, in words; undefined where they are the same. */
export function firstBitDifference(actual: Float32Array, expected: Float32Array): string | undefined {
  if (actual.length !== expected.length) return `${actual.length} numbers instead of ${expected.length}`;
  const bits = (values: Float32Array) => new Uint32Array(values.buffer, values.byteOffset, values.length);
  const [a, b] = [bits(actual), bits(expected)];
  const at = a.findIndex((word, i) => word !== b[i]);
  return at < 0 ? undefined : `[${at}]: ${actual[at]} instead of ${expected[at]}`;
}
