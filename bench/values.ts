/**
 * Values that every process draws for itself from a seed: no file passes between the peers, and all of them hold the same
 * numbers. A value is a function of seed, tensor name and index alone, so that rows can be drawn without the others.
 */
import { createHash } from "node:crypto";

/** Two keys of 32 bits for a tensor. */
function keysOf(seed: number, name: string): readonly [number, number] {
  const digest = createHash("sha256")
    .update(JSON.stringify([seed, name]))
    .digest();
  return [digest.readInt32LE(0), digest.readInt32LE(4)];
}

/** Calls `each` with a hash of 32 bits for indices `first`, `first + 1`, ...: lowbias32, with a key between its rounds. */
function hashes(seed: number, name: string, count: number, first: number, each: (i: number, hash: number) => void) {
  const [before, between] = keysOf(seed, name);
  for (let i = 0; i < count; i++) {
    let hash = (first + i) ^ before;
    hash = Math.imul(hash ^ (hash >>> 16), 0x7feb352d);
    hash = Math.imul(hash ^ (hash >>> 15) ^ between, 0x846ca68b);
    each(i, (hash ^ (hash >>> 16)) >>> 0);
  }
}

export interface Draw {
  readonly seed: number;
  readonly name: string;
  readonly count: number;
  /** Standard deviation; the values are uniform. */
  readonly deviation: number;
  readonly mean?: number;
  /** Index of the first value. */
  readonly first?: number;
}

/** Uniform float32 values. */
export function drawFloats({ seed, name, count, deviation, mean = 0, first = 0 }: Draw): Float32Array<ArrayBuffer> {
  const values = new Float32Array(count);
  const width = Math.sqrt(12) * deviation;
  hashes(seed, name, count, first, (i, hash) => {
    values[i] = mean + width * (hash / 2 ** 32 - 0.5);
  });
  return values;
}

/** The same, cut to the 8 bits that a bfloat16 keeps: float32 and bfloat16 hold them alike. */
export function drawBf16(draw: Draw): Float32Array<ArrayBuffer> {
  const values = drawFloats(draw);
  const bits = new Uint32Array(values.buffer);
  for (let i = 0; i < bits.length; i++) bits[i] &= 0xffff0000;
  return values;
}

/** Token ids below `vocab`. */
export function drawIds(seed: number, name: string, count: number, vocab: number): Int32Array<ArrayBuffer> {
  const ids = new Int32Array(count);
  hashes(seed, name, count, 0, (i, hash) => {
    ids[i] = Math.floor((hash / 2 ** 32) * vocab);
  });
  return ids;
}

/** (rows, columns) as (columns, rows). */
export function transpose(values: Float32Array, rows: number, columns: number): Float32Array<ArrayBuffer> {
  const result = new Float32Array(values.length);
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) result[c * rows + r] = values[r * columns + c];
  return result;
}
