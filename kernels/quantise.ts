/**
 * Weight-only quantisation on the host: groups of 32 along k, one f16 scale each, no zero point: w ~ quant * scale.
 *
 * - int8: quants -127..127, scale = max|w| / 127.
 * - int4: quants -8..7. The scale's sign puts the group's largest weight on -8, scale = -+max|w| / 8; where that would
 *   take a weight of the other sign by more than half a step (it would need 8), scale = max|w| / 7. Against max|w| / 7
 *   throughout, the root mean square error falls by 5 to 12% (uniform, normal and heavy-tailed weights).
 *
 * A scale is rounded away from 0 to an f16, so that no quotient passes the last quant and |w - quant * scale| is at most
 * half of |scale|. Below 2^-14 it is subnormal, the smallest 2^-24: weights below 2^-25 may become 0. A group of zeros
 * has the scale 0. A quantised row that is widened and quantised again stays the same, where its scales are normal.
 */
import { StratumError } from "../errors.ts";
import { GROUP, quantWords, weightAt, weightRowWords } from "./weight-load.ts";

type Quantised = "int8" | "int4";

/** Weights of a word are gathered as unsigned fields: a quant plus this, which two's complement undoes by an xor. */
const LIFT: Readonly<Record<Quantised, number>> = { int8: 128, int4: 8 };
const SIGN_BITS: Readonly<Record<Quantised, number>> = { int8: 0x80808080, int4: 0x88888888 };

const bits = new Uint32Array(1);
const float = new Float32Array(bits.buffer);

/** The largest finite f16, and the bits of infinity. */
const F16_MAX = 65504;
const F16_INFINITY = 0x7c00;

/** The bits of the least f16 that is not below `size` >= 0, give or take float32's rounding. */
function f16Above(size: number): number {
  if (size > F16_MAX) return F16_INFINITY;
  if (size < 2 ** -14) return Math.ceil(size * 2 ** 24);
  float[0] = size;
  return (bits[0] - 0x38000000 + 0x1fff) >>> 13;
}

/** The bits of the scale of a group whose weights lie between `low` <= 0 and `high` >= 0. */
function scaleBits(type: Quantised, low: number, high: number): number {
  const size = Math.max(-low, high);
  if (type === "int8") return f16Above(size / 127);
  const scale = f16Above(size / 8);
  if (Math.min(-low, high) > 7.5 * magnitude(scale)) return f16Above(size / 7);
  // Minus the scale puts a positive extreme on -8. A scale of 0 stays without sign.
  return high > -low ? scale | 0x8000 : scale;
}

/** The value of a finite f16 without its sign. */
function magnitude(half: number): number {
  const m = half & 0x7fff;
  if (m < 0x400) return m * 2 ** -24;
  bits[0] = (m << 13) + 0x38000000;
  return float[0];
}

/**
 * Quantises rows of weights, each on its own.
 * @param values (rows, k), row-major
 * @returns (rows, `weightRowWords(type, k)`), the layout of weight-load.ts
 * @throws {StratumError} `model/not-finite` for NaN and infinities, `model/weight-range` where a scale would pass 65,504
 */
export function quantiseRows(values: Float32Array, rows: number, k: number, type: Quantised): Uint32Array<ArrayBuffer> {
  const rowWords = weightRowWords(type, k);
  const words = new Uint32Array(rows * rowWords);
  const scales = quantWords(type, k);
  const [lift, signs] = [LIFT[type], SIGN_BITS[type]];
  const width = type === "int8" ? 8 : 4;
  const perWord = 32 / width;
  for (let row = 0; row < rows; row++) {
    const end = (row + 1) * k;
    let word = row * rowWords;
    const scaleWord = word + scales;
    for (let first = row * k, group = 0; first < end; first += GROUP, group++) {
      const last = Math.min(first + GROUP, end);
      let low = 0;
      let high = 0;
      // 0 as long as all are finite: v - v is NaN for the others.
      let finite = 0;
      for (let i = first; i < last; i++) {
        const v = values[i];
        if (v < low) low = v;
        if (v > high) high = v;
        finite += v - v;
      }
      if (finite !== 0) throw notFinite(values, first, last, k);
      const half = scaleBits(type, low, high);
      if ((half & 0x7fff) === F16_INFINITY) throw outOfRange(Math.max(-low, high), row, first - row * k);
      words[scaleWord + (group >> 1)] |= group & 1 ? half << 16 : half;
      const scale = half & 0x8000 ? -magnitude(half) : magnitude(half);
      const inverse = scale === 0 ? 0 : 1 / scale;
      for (let i = first; i < last; i += perWord) {
        const stop = Math.min(i + perWord, last);
        let packed = 0;
        // Positive before it is cut to an integer: rounds to the nearest, halves up.
        for (let j = i, shift = 0; j < stop; j++, shift += width)
          packed |= ((values[j] * inverse + (lift + 0.5)) | 0) << shift;
        // Fields behind a row's end hold no lift: they must stay 0.
        const used = stop - i === perWord ? -1 : (1 << ((stop - i) * width)) - 1;
        words[word++] = packed ^ (signs & used);
      }
      // Whole words of padding in a last group.
      if (last === end) word = scaleWord;
    }
  }
  return words;
}

/** The weights that quantised rows stand for, exactly: (rows, k). */
export function dequantiseRows(
  words: Uint32Array,
  rows: number,
  k: number,
  type: Quantised,
): Float32Array<ArrayBuffer> {
  const rowWords = weightRowWords(type, k);
  const values = new Float32Array(rows * k);
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < k; i++) values[row * k + i] = weightAt(type, words, row * rowWords, i, k);
  }
  return values;
}

function notFinite(values: Float32Array, first: number, last: number, k: number): StratumError {
  const at = first + values.subarray(first, last).findIndex((v) => !Number.isFinite(v));
  return new StratumError(
    "model/not-finite",
    `a weight to be quantised is ${values[at]}: row ${Math.floor(at / k)}, column ${at % k}`,
    "download the weights again; if they are as published, run the checkpoint without quantisation to see where it shows",
  );
}

function outOfRange(size: number, row: number, column: number): StratumError {
  return new StratumError(
    "model/weight-range",
    `a weight to be quantised is as large as ${size} (row ${row}, columns from ${column}): its scale passes ${F16_MAX}, the largest f16`,
    "run the checkpoint without quantisation",
  );
}
