import type { TwinBuffer, WeightType } from "./kernel.ts";

/** Words (u32 or f32) that a row of `k` weights takes. A packed row of odd length ends in half a word of padding. */
export function weightRowWords(weight: WeightType, k: number): number {
  return weight === "f32" ? k : Math.ceil(k / 2);
}

/** The WGSL element type of a weight buffer. */
export function weightElement(weight: WeightType): "f32" | "u32" {
  return weight === "f32" ? "f32" : "u32";
}

/**
 * WGSL functions `lowHalf(p)` and `highHalf(p)`: the two weights of a packed word as f32, exactly.
 * f16 is widened by integer arithmetic: `unpack2x16float` may flush subnormals to zero, and a tenth of a percent of a
 * trained matrix is subnormal in f16.
 */
export function unpackFunctions(weight: WeightType): string {
  if (weight === "bf16") {
    return `fn lowHalf(p: u32) -> f32 { return bitcast<f32>(p << 16u); }
fn highHalf(p: u32) -> f32 { return bitcast<f32>(p & 0xffff0000u); }`;
  }
  if (weight === "f16") {
    return `fn widen(h: u32) -> f32 {
  let m = h & 0x7fffu;
  let normal = (m << 13u) + select(0x38000000u, 0x70000000u, m >= 0x7c00u);
  let subnormal = bitcast<u32>(f32(m) * 5.9604644775390625e-8);
  return bitcast<f32>(select(normal, subnormal, m < 0x400u) | ((h & 0x8000u) << 16u));
}
fn lowHalf(p: u32) -> f32 { return widen(p & 0xffffu); }
fn highHalf(p: u32) -> f32 { return widen(p >> 16u); }`;
  }
  return "";
}

/** The CPU's way to the same value: weight `index` of a row that starts at word `start`. */
export function weightAt(weight: WeightType, words: TwinBuffer, start: number, index: number): number {
  if (weight === "f32") return words[start + index];
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

function f16ToNumber(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 0x1f;
  const mantissa = half & 0x3ff;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  if (exponent === 31) return mantissa === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
}
