/**
 * How rows of weights lie in words, and how a weight comes out of them.
 *
 * A quantised row is `[quants][scales]`: whole groups of `GROUP` quants along k (the last one padded with zeros), two's
 * complement, the first in the lowest bits of a word; then an f16 scale a group, two a word. weight = quant * scale.
 */
import type { TwinBuffer, WeightType } from "./kernel.ts";
import { wgslFloat } from "./wgsl.ts";

/** Weights along k that share a scale. */
export const GROUP = 32;

const PER_WORD: Readonly<Record<WeightType, number>> = { f32: 1, bf16: 2, f16: 2, int8: 4, int4: 8 };

/** Weights in a word. */
export function weightsPerWord(weight: WeightType): number {
  return PER_WORD[weight];
}

/** The types whose rows end in scales. */
export function isQuantised(weight: WeightType): weight is "int8" | "int4" {
  return weight === "int8" || weight === "int4";
}

/** Words of a row before its scales. */
export function quantWords(weight: "int8" | "int4", k: number): number {
  return Math.ceil(k / GROUP) * (GROUP / PER_WORD[weight]);
}

/** Words (u32 or f32) that a row of `k` weights takes. A packed row of odd length ends in half a word of padding. */
export function weightRowWords(weight: WeightType, k: number): number {
  if (isQuantised(weight)) return quantWords(weight, k) + Math.ceil(Math.ceil(k / GROUP) / 2);
  return Math.ceil(k / PER_WORD[weight]);
}

/** The WGSL element type of a weight buffer. */
export function weightElement(weight: WeightType): "f32" | "u32" {
  return weight === "f32" ? "f32" : "u32";
}

/** Length of a row of a weight buffer, in the project's letters. */
export function weightRowShape(weight: WeightType): string {
  return { f32: "K", bf16: "K/2", f16: "K/2", int8: "K/4 + K/64", int4: "K/8 + K/64" }[weight];
}

/**
 * f16 is widened by integer arithmetic: `unpack2x16float` may flush subnormals to zero, and a tenth of a percent of a
 * trained matrix is subnormal in f16, as are the int8 scales of groups below 0.008.
 */
const WIDEN = `fn widen(h: u32) -> f32 {
  let m = h & 0x7fffu;
  let normal = (m << 13u) + select(0x38000000u, 0x70000000u, m >= 0x7c00u);
  let subnormal = bitcast<u32>(f32(m) * 5.9604644775390625e-8);
  return bitcast<f32>(select(normal, subnormal, m < 0x400u) | ((h & 0x8000u) << 16u));
}`;

/**
 * WGSL functions: for bf16 and f16 `lowHalf(p)` and `highHalf(p)`, the two weights of a packed word as f32, exactly;
 * for int8 and int4 `scaleOf(p, group)`, the scale of a group out of its word, for quants as `unpackText` leaves them.
 */
export function unpackFunctions(weight: WeightType): string {
  if (weight === "bf16") {
    return `fn lowHalf(p: u32) -> f32 { return bitcast<f32>(p << 16u); }
fn highHalf(p: u32) -> f32 { return bitcast<f32>(p & 0xffff0000u); }`;
  }
  if (weight === "f16") {
    return `${WIDEN}
fn lowHalf(p: u32) -> f32 { return widen(p & 0xffffu); }
fn highHalf(p: u32) -> f32 { return widen(p >> 16u); }`;
  }
  if (isQuantised(weight)) {
    return `${WIDEN}
fn scaleOf(p: u32, group: u32) -> f32 {
  return widen((p >> ((group & 1u) * 16u)) & 0xffffu) * ${wgslFloat(2 ** (32 / PER_WORD[weight] - 32))};
}`;
  }
  return "";
}

/**
 * WGSL: weight `index` of the packed word `p` as f32. Of a quantised type the quant times 2^24 (int8) or 2^28 (int4),
 * exactly: the bits stay at the top of the word, where the sign is in its place, which saves a shift a weight (a fifth of
 * a matmul's time on SwiftShader).
 */
export function unpackText(weight: Exclude<WeightType, "f32">, p: string, index: number): string {
  if (!isQuantised(weight)) return `${index === 0 ? "lowHalf" : "highHalf"}(${p})`;
  const width = 32 / PER_WORD[weight];
  const mask = width === 8 ? "0xff000000u" : "0xf0000000u";
  return `f32(bitcast<i32>((${p} << ${32 - width * (index + 1)}u) & ${mask}))`;
}

/** The CPU's way to the same value: weight `index` of a row of `k` that starts at word `start`. */
export function weightAt(weight: WeightType, words: TwinBuffer, start: number, index: number, k: number): number {
  if (weight === "f32") return words[start + index];
  if (isQuantised(weight)) {
    const [perWord, group] = [PER_WORD[weight], Math.floor(index / GROUP)];
    const width = 32 / perWord;
    const place = index % perWord;
    const quant = (words[start + Math.floor(index / perWord)] << (32 - width * (place + 1))) >> (32 - width);
    const scales = words[start + quantWords(weight, k) + (group >> 1)];
    return quant * f16ToNumber(group & 1 ? scales >>> 16 : scales & 0xffff);
  }
  const word = words[start + (index >> 1)];
  const half = index & 1 ? word >>> 16 : word & 0xffff;
  return weight === "bf16" ? bf16ToNumber(half) : f16ToNumber(half);
}

const bits = new Uint32Array(1);
const float = new Float32Array(bits.buffer);

function bf16ToNumber(half: number): number {
  bits[0] = half << 16;
  return float[0];
}

/** The value of an f16's bits. */
export function f16ToNumber(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 0x1f;
  const mantissa = half & 0x3ff;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  if (exponent === 31) return mantissa === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
}
