/**
 * Conversions between the bytes of a checkpoint (little endian) and float32, exact or rounded to nearest, ties to even.
 * Node 20 has no Float16Array. Every host that Dawn runs on is little endian, so typed arrays read file bytes as they are.
 */

import { StratumError } from "../errors.ts";

/** The element types that are read as floats. */
export type FloatDtype = "F64" | "F32" | "F16" | "BF16";

const FLOAT_BYTES: Readonly<Record<FloatDtype, number>> = { F64: 8, F32: 4, F16: 2, BF16: 2 };

const F32_INF = 0x7f800000;

/** Whether tensors of this dtype can be read as floats. */
export function isFloatDtype(dtype: string): dtype is FloatDtype {
  return Object.hasOwn(FLOAT_BYTES, dtype);
}

/**
 * The float32 bits of a float16: exact for every input, subnormals, infinities and NaN payloads included.
 *
 * @param half the 16 bits of an IEEE 754 binary16
 */
export function f16ToF32Bits(half: number): number {
  const sign = (half & 0x8000) << 16;
  const exponent = (half >>> 10) & 0x1f;
  const fraction = half & 0x3ff;
  if (exponent === 0x1f) return (sign | F32_INF | (fraction << 13)) >>> 0;
  if (exponent !== 0) return (sign | ((exponent + 112) << 23) | (fraction << 13)) >>> 0;
  if (fraction === 0) return sign >>> 0;
  // A subnormal half is a normal float: move its leading 1 to the implicit place.
  const shift = Math.clz32(fraction) - 21;
  return (sign | ((113 - shift) << 23) | (((fraction << shift) & 0x3ff) << 13)) >>> 0;
}

/**
 * The float16 bits nearest to a float32, ties to even; past 65519.99 that is an infinity, and a NaN stays a NaN.
 *
 * @param bits the 32 bits of an IEEE 754 binary32
 */
export function f32ToF16Bits(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > F32_INF) return sign | 0x7e00 | ((magnitude >>> 13) & 0x3ff);
  // 65520 is halfway between the largest half (65504) and 2^16: it ties to the even neighbour, infinity.
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude >= 0x38800000) return sign | ((roundOff(magnitude, 13) - (112 << 10)) & 0x7fff);
  const exponent = magnitude >>> 23;
  // Below 2^-25 everything rounds to zero, and so does 2^-25 itself, a tie with the even 0.
  if (exponent < 102) return sign;
  return sign | roundOff((magnitude & 0x7fffff) | 0x800000, 126 - exponent);
}

/**
 * The bfloat16 bits nearest to a float32, ties to even; a NaN stays a (quiet) NaN.
 *
 * @param bits the 32 bits of an IEEE 754 binary32
 */
export function f32ToBf16Bits(bits: number): number {
  if ((bits & 0x7fffffff) > F32_INF) return (bits >>> 16) | 0x40;
  return roundOff(bits >>> 0, 16);
}

/** `value` / 2^drop, rounded to the nearest integer, ties to even; `value` is below 2^32 and `drop` is 1 to 24. */
function roundOff(value: number, drop: number): number {
  const even = (value >>> drop) & 1;
  return Math.floor((value + 2 ** (drop - 1) - 1 + even) / 2 ** drop);
}

/**
 * File bytes as float32 in memory of their own. F32, F16 and BF16 are exact, bit for bit; F64 is rounded to nearest.
 *
 * @param bytes little endian, at any byte offset
 * @throws StratumError `safetensors/not-floats` for any other dtype, `safetensors/size-mismatch` for a broken last value
 */
export function decodeFloats(bytes: Uint8Array, dtype: string): Float32Array<ArrayBuffer> {
  if (!isFloatDtype(dtype)) throw notFloats(dtype);
  const size = FLOAT_BYTES[dtype];
  if (bytes.byteLength % size !== 0) {
    throw new StratumError(
      "safetensors/size-mismatch",
      `${bytes.byteLength} bytes are not a whole number of ${dtype} values (${size} bytes each)`,
      "pass whole values",
    );
  }
  const count = bytes.byteLength / size;
  if (dtype === "F32") return new Float32Array(bytes.slice().buffer, 0, count);
  const aligned = bytes.byteOffset % size === 0 ? bytes : bytes.slice();
  if (dtype === "F64") return new Float32Array(new Float64Array(aligned.buffer, aligned.byteOffset, count));
  const halves = new Uint16Array(aligned.buffer, aligned.byteOffset, count);
  // The bits go through integers: a NaN's payload need not survive a trip through a JavaScript number.
  const bits = new Uint32Array(count);
  if (dtype === "BF16") for (let i = 0; i < count; i++) bits[i] = (halves[i] ?? 0) << 16;
  else for (let i = 0; i < count; i++) bits[i] = f16ToF32Bits(halves[i] ?? 0);
  return new Float32Array(bits.buffer);
}

/**
 * float32 as file bytes, little endian, in memory of their own; F16 and BF16 are rounded to nearest, ties to even.
 *
 * @throws StratumError `safetensors/not-floats` for any other dtype
 */
export function encodeFloats(values: Float32Array, dtype: string): Uint8Array<ArrayBuffer> {
  if (!isFloatDtype(dtype)) throw notFloats(dtype);
  if (dtype === "F64") return new Uint8Array(new Float64Array(values).buffer);
  if (dtype === "F32") return new Uint8Array(values.slice().buffer);
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const halves = new Uint16Array(values.length);
  const convert = dtype === "F16" ? f32ToF16Bits : f32ToBf16Bits;
  for (let i = 0; i < halves.length; i++) halves[i] = convert(bits[i] ?? 0);
  return new Uint8Array(halves.buffer);
}

function notFloats(dtype: string): StratumError {
  return new StratumError(
    "safetensors/not-floats",
    `tensors of dtype ${dtype} cannot be read as floats; F32, F16, BF16 and F64 can`,
    "use a checkpoint stored in bf16, f16 or f32 (quantised weights must be dequantised first)",
  );
}
