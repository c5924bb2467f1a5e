import { describe, expect, it } from "vitest";
import { StratumError } from "../../errors.ts";
import { seededRandom } from "../../kernels/random.ts";
import { decodeFloats, encodeFloats, f16ToF32Bits, f32ToBf16Bits, f32ToF16Bits } from "../../weights/floats.ts";

const word = new DataView(new ArrayBuffer(4));

function floatOf(bits: number): number {
  word.setUint32(0, bits);
  return word.getFloat32(0);
}

function bitsOf(value: number): number {
  word.setFloat32(0, value);
  return word.getUint32(0);
}

/** A half's value from the definition, in float64. */
function halfByDefinition(half: number): number {
  const sign = half >>> 15 === 1 ? -1 : 1;
  const exponent = (half >>> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
}

/** A seeded generator of 32-bit words. */
function words(seed: number): () => number {
  const random = seededRandom(seed);
  return () => random() * 2 ** 32;
}

/** The nearest of the sorted finite values and the overflow bound, ties to the even encoding: by search, not by bits. */
function nearest(magnitude: number, table: readonly number[], overflow: number): number {
  if (magnitude >= overflow) return table.length;
  let low = 0;
  let high = table.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (table[middle]! <= magnitude) low = middle;
    else high = middle - 1;
  }
  const next = table[low + 1];
  if (next === undefined) return low;
  const below = magnitude - table[low]!;
  const above = next - magnitude;
  return below < above || (below === above && low % 2 === 0) ? low : low + 1;
}

describe("f16 to f32", () => {
  it("is exact for all 65,536 halves", () => {
    for (let half = 0; half < 65536; half++) {
      const value = floatOf(f16ToF32Bits(half));
      if (!Object.is(value, halfByDefinition(half))) expect.fail(`half ${half.toString(16)} gave ${value}`);
    }
  });

  it("keeps a NaN's payload and sign", () => {
    expect(f16ToF32Bits(0xfe01)).toBe(0xffc02000);
    expect(f16ToF32Bits(0x7c01)).toBe(0x7f802000);
  });

  it("comes back to the same half from f32", () => {
    for (let half = 0; half < 65536; half++) {
      const quiet = (half & 0x7fff) > 0x7c00 ? half | 0x200 : half;
      const back = f32ToF16Bits(f16ToF32Bits(half));
      if (back !== quiet) expect.fail(`half ${half.toString(16)} came back as ${back.toString(16)}`);
    }
  });
});

describe("rounding", () => {
  const halves = Array.from({ length: 0x7c00 }, (_, half) => halfByDefinition(half));

  it("f32 to f16 takes the nearest, ties to even (100,000 random words and all midpoints)", () => {
    const next = words(1);
    const candidates = Array.from({ length: 100_000 }, (_, i) =>
      // Every second word in the range of halves, where rounding happens.
      i % 2 === 0 ? next() : ((next() & 0x8fffffff) | 0x30000000) >>> 0,
    );
    for (let half = 0; half < 0x7bff; half++) {
      const middle = bitsOf((halves[half]! + halves[half + 1]!) / 2);
      candidates.push(middle - 1, middle, middle + 1);
    }
    for (const bits of candidates) {
      const value = floatOf(bits);
      if (Number.isNaN(value)) continue;
      const expected = nearest(Math.abs(value), halves, 65520) | (bits >>> 31 === 1 ? 0x8000 : 0);
      const got = f32ToF16Bits(bits);
      if (got !== expected) expect.fail(`${value}: ${got.toString(16)}, not ${expected.toString(16)}`);
    }
  });

  it("f32 to f16 at its edges", () => {
    const cases: [number, number][] = [
      [0, 0x0000],
      [-0, 0x8000],
      [65504, 0x7bff],
      [65519.99609375, 0x7bff],
      [65520, 0x7c00],
      [-65520, 0xfc00],
      [Number.POSITIVE_INFINITY, 0x7c00],
      [2 ** -24, 0x0001],
      [2 ** -25, 0x0000],
      [1.0001 * 2 ** -25, 0x0001],
      [2 ** -14, 0x0400],
      [2 ** -14 - 2 ** -26, 0x0400],
      [2 ** -149, 0x0000],
    ];
    for (const [value, half] of cases) expect([value, f32ToF16Bits(bitsOf(value))]).toEqual([value, half]);
    expect(f32ToF16Bits(0x7f800001) & 0x7fff).toBeGreaterThan(0x7c00);
    expect(f32ToF16Bits(0xffc00000)).toBe(0xfe00);
  });

  it("f32 to bf16 takes the nearer of its two neighbours, ties to even", () => {
    const next = words(2);
    for (let i = 0; i < 100_000; i++) {
      const bits = i % 4 === 0 ? ((next() & 0xffff0000) | 0x8000) >>> 0 : next();
      const value = floatOf(bits);
      if (Number.isNaN(value)) continue;
      const down = bits >>> 16;
      const below = Math.abs(value - floatOf((down << 16) >>> 0));
      // The largest values have infinity above them, which stands where the next power would.
      const nextUp = (down & 0x7fff) === 0x7f7f ? 2 ** 128 : Math.abs(floatOf(((down + 1) << 16) >>> 0));
      const above = nextUp - Math.abs(value);
      const infinite = Math.abs(value) === Number.POSITIVE_INFINITY;
      const expected = infinite || below < above || (below === above && down % 2 === 0) ? down : down + 1;
      if (f32ToBf16Bits(bits) !== expected) expect.fail(`${value}: ${f32ToBf16Bits(bits).toString(16)}`);
    }
  });

  it("f32 to bf16 at its edges", () => {
    expect(f32ToBf16Bits(0x7f7fffff)).toBe(0x7f80);
    expect(f32ToBf16Bits(0xff800000)).toBe(0xff80);
    expect(f32ToBf16Bits(0x3f808000)).toBe(0x3f80);
    expect(f32ToBf16Bits(0x3f818000)).toBe(0x3f82);
    // A NaN whose payload lies in the dropped half must not become an infinity.
    expect(f32ToBf16Bits(0x7f800001)).toBe(0x7fc0);
    expect(f32ToBf16Bits(0xffffffff)).toBe(0xffff);
  });
});

describe("decodeFloats", () => {
  const values = Float32Array.of(1, -2.5, 0, 3.140625, -0, Number.POSITIVE_INFINITY);

  it.each(["F32", "F16", "BF16", "F64"] as const)("reads %s from any byte offset", (dtype) => {
    const bytes = encodeFloats(values, dtype);
    for (let offset = 0; offset < 9; offset++) {
      const shifted = new Uint8Array(bytes.length + offset + 3).subarray(offset, offset + bytes.length);
      shifted.set(bytes);
      expect(decodeFloats(shifted, dtype)).toEqual(values);
    }
  });

  it("reads little-endian bytes and keeps NaN payloads", () => {
    expect(decodeFloats(Uint8Array.of(0x80, 0x3f, 0x01, 0xff), "BF16")).toEqual(
      Float32Array.of(1, -(1 + 1 / 128) * 2 ** 127),
    );
    expect(decodeFloats(Uint8Array.of(0x01, 0x00), "F16")).toEqual(Float32Array.of(2 ** -24));
    const nan = decodeFloats(Uint8Array.of(0x81, 0x7f, 0xc1, 0xff), "BF16");
    expect([...new Uint32Array(nan.buffer)]).toEqual([0x7f810000, 0xffc10000]);
  });

  it("returns memory of its own", () => {
    const bytes = encodeFloats(values, "F32");
    const decoded = decodeFloats(bytes, "F32");
    bytes.fill(0xff);
    expect(decoded).toEqual(values);
    expect(decodeFloats(new Uint8Array(0), "F16")).toEqual(new Float32Array(0));
  });

  it("encodes a view at an offset of a larger array", () => {
    expect(encodeFloats(values.subarray(1, 3), "BF16")).toEqual(Uint8Array.of(0x20, 0xc0, 0, 0));
  });

  it.each(["I32", "F8_E4M3", "BOOL", "toString"])("refuses %s by name", (dtype) => {
    const refused = expect.objectContaining({
      code: "safetensors/not-floats",
      message: expect.stringContaining(dtype),
    });
    expect(() => decodeFloats(new Uint8Array(8), dtype)).toThrow(refused);
    expect(() => encodeFloats(values, dtype)).toThrow(StratumError);
  });

  it("refuses a broken last value", () => {
    expect(() => decodeFloats(new Uint8Array(7), "F32")).toThrow(
      expect.objectContaining({ code: "safetensors/size-mismatch", message: expect.stringContaining("7 bytes") }),
    );
  });
});
