import { describe, expect, it } from "vitest";
import { StratumError } from "../../errors.ts";
import { dequantiseRows, quantiseRows } from "../../kernels/quantise.ts";
import { seededRandom } from "../../kernels/random.ts";
import { f16ToNumber, quantWords, weightRowWords } from "../../kernels/weight-load.ts";

const TYPES = ["int8", "int4"] as const;
const GROUP = 32;
const LEVELS = { int8: 127, int4: 8 } as const;

/** Numbers near a normal distribution of deviation `size`. */
function normals(seed: number, count: number, size = 1): Float32Array {
  const random = seededRandom(seed);
  return Float32Array.from(
    { length: count },
    () => size * Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random()),
  );
}

/** The scale of a group of a row, out of its words. */
function scaleOf(words: Uint32Array, type: (typeof TYPES)[number], k: number, row: number, group: number): number {
  const word = words[row * weightRowWords(type, k) + quantWords(type, k) + (group >> 1)];
  return f16ToNumber((word >>> (16 * (group & 1))) & 0xffff);
}

/** Faults of a round trip: an error above half of the group's scale, or a scale too large for the group's weights. */
function faults(values: Float32Array, rows: number, k: number, type: (typeof TYPES)[number]): string[] {
  const words = quantiseRows(values, rows, k, type);
  const back = dequantiseRows(words, rows, k, type);
  const wrong: string[] = [];
  for (let row = 0; row < rows; row++) {
    for (let from = 0; from < k; from += GROUP) {
      const scale = Math.abs(scaleOf(words, type, k, row, from / GROUP));
      const [begin, end] = [row * k + from, row * k + Math.min(from + GROUP, k)];
      const most = values.subarray(begin, end).reduce((size, v) => Math.max(size, Math.abs(v)), 0);
      const finest = most / (type === "int8" ? 127 : 7);
      if (scale > finest * (1 + 2 ** -10) + 2 ** -24) wrong.push(`row ${row} from ${from}: scale ${scale} for ${most}`);
      for (let i = begin; i < end; i++) {
        const error = Math.abs(values[i] - back[i]);
        if (!(error <= (scale / 2) * (1 + 1e-6))) wrong.push(`[${i}] ${values[i]} became ${back[i]}, scale ${scale}`);
      }
    }
  }
  return wrong.slice(0, 5);
}

function thrown(values: Float32Array, k: number, type: (typeof TYPES)[number]): StratumError {
  try {
    quantiseRows(values, values.length / k, k, type);
  } catch (error) {
    if (error instanceof StratumError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

describe.each(TYPES)("%s", (type) => {
  it.each([1, 3, 31, 32, 33, 57, 63, 64, 65, 172, 1001])("rows of %i: half a scale is the most that is lost", (k) => {
    expect(faults(normals(k, 7 * k, 0.02), 7, k, type)).toEqual([]);
  });

  it.each([1e-38, 1e-10, 2e-8, 1e-7, 1e-6, 1e-5, 1e-3, 1, 1e4, 1e5])("weights of about %f", (size) => {
    expect(faults(normals(5, 4 * 100, size), 4, 100, type)).toEqual([]);
  });

  it("sizes of every kind side by side: a group has its own scale", () => {
    const values = normals(6, 3 * 320);
    for (let i = 0; i < values.length; i++) values[i] *= 10 ** ((Math.floor(i / 32) % 10) - 7);
    expect(faults(values, 3, 320, type)).toEqual([]);
  });

  it("keeps zeros, and a group of them has the scale 0", () => {
    const values = new Float32Array(2 * 70);
    values[35] = -0;
    values[70 + 40] = 3;
    const words = quantiseRows(values, 2, 70, type);
    expect(words.subarray(0, weightRowWords(type, 70)).every((word) => word === 0)).toBe(true);
    expect([0, 1, 2].map((group) => scaleOf(words, type, 70, 1, group) === 0)).toEqual([true, false, true]);
    expect([...dequantiseRows(words, 2, 70, type)].findIndex((v) => v !== 0)).toBe(70 + 40);
  });

  it("keeps weights of half a subnormal scale and more apart from 0", () => {
    const tiny = Float32Array.of(2 ** -24, -(2 ** -24), 2 ** -26, 2 ** -149, 0);
    expect([...dequantiseRows(quantiseRows(tiny, 1, 5, type), 1, 5, type)].map((v) => v + 0)).toEqual([
      2 ** -24,
      -(2 ** -24),
      0,
      0,
      0,
    ]);
  });

  it("keeps what quants and a scale can say: quantising again changes no bit of rows with normal scales", () => {
    for (const [seed, size] of [
      [1, 1],
      [2, 0.05],
      [3, 3e4],
    ] as const) {
      const words = quantiseRows(normals(seed, 40 * 101, size), 40, 101, type);
      expect(quantiseRows(dequantiseRows(words, 40, 101, type), 40, 101, type)).toEqual(words);
    }
  });

  it("takes every quant to its place, and leaves the padding 0", () => {
    const k = 45;
    // The largest negative quant first, so that the scale is the 0.25 that the values were made with.
    const most = LEVELS[type];
    const quants = Array.from({ length: k }, (_, i) => (i % 32 === 0 ? -most : ((i * 11) % (2 * most)) - most + 1));
    const words = quantiseRows(
      Float32Array.from(quants, (q) => 0.25 * Math.min(q, most - 1)),
      1,
      k,
      type,
    );
    const width = type === "int8" ? 8 : 4;
    const read = Array.from({ length: 64 }, (_, i) => {
      const word = words[Math.floor((i * width) / 32)];
      return (word << (32 - width * ((i % (32 / width)) + 1))) >> (32 - width);
    });
    expect(read).toEqual([...quants.map((q) => Math.min(q, most - 1)), ...Array(64 - k).fill(0)]);
    expect([0, 1].map((group) => scaleOf(words, type, k, 0, group))).toEqual([0.25, 0.25]);
  });

  it("rows do not depend on their company", () => {
    const values = normals(8, 5 * 77);
    const whole = quantiseRows(values, 5, 77, type);
    const words = weightRowWords(type, 77);
    for (let row = 0; row < 5; row++) {
      const alone = quantiseRows(values.subarray(row * 77, (row + 1) * 77), 1, 77, type);
      expect(alone).toEqual(whole.slice(row * words, (row + 1) * words));
    }
  });

  it.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])(
    "refuses %f, and says where it is",
    (bad) => {
      for (const at of [0, 31, 32, 99, 100 + 70]) {
        const values = normals(9, 200);
        values[at] = bad;
        const error = thrown(values, 100, type);
        expect(error.code).toBe("model/not-finite");
        expect(error.message).toContain(`${bad}: row ${Math.floor(at / 100)}, column ${at % 100}`);
      }
    },
  );

  it("refuses weights whose scale no f16 holds, and takes the largest that fit", () => {
    const largest = 65504 * LEVELS[type];
    const values = new Float32Array(40);
    values[33] = -largest;
    expect(dequantiseRows(quantiseRows(values, 1, 40, type), 1, 40, type)[33]).toBe(-largest);
    values[33] = -1.001 * largest;
    expect(thrown(values, 40, type).code).toBe("model/weight-range");
    values[33] = 3e38;
    expect(thrown(values, 40, type).message).toContain("row 0, columns from 32");
  });
});

it("no rows give no words", () => {
  expect(quantiseRows(new Float32Array(0), 0, 64, "int8")).toHaveLength(0);
});

it("loses no more than the better of the ways to place 16 levels", () => {
  const values = normals(10, 64 * 512);
  const lost = (back: Float32Array) =>
    Math.sqrt(back.reduce((sum, v, i) => sum + (v - values[i]) ** 2, 0) / values.reduce((sum, v) => sum + v * v, 0));
  const share = TYPES.map((type) => lost(dequantiseRows(quantiseRows(values, 64, 512, type), 64, 512, type)));
  // A step of max|w| / 7 throughout loses 0.097 of a normal distribution.
  expect(share[0]).toBeLessThan(0.006);
  expect(share[1]).toBeLessThan(0.088);
});
