import { afterAll, describe, expect, it } from "vitest";
import { createEngine } from "../../engine/model.ts";
import { runKernel } from "../../engine/run-kernel.ts";
import type { WeightType } from "../../kernels/kernel.ts";
import { matmul, matmulRowWords, matmulTile } from "../../kernels/matmul.ts";
import { f16ToNumber, weightAt, weightElement, weightRowWords } from "../../kernels/weight-load.ts";
import { f16ToF32Bits } from "../../weights/floats.ts";

const PATTERNS = 65_536;
const HALVES = ["bf16", "f16"] as const satisfies readonly WeightType[];

/** The float32 of a 16-bit pattern, by the code that reads checkpoints on the host. */
function decoded(weight: (typeof HALVES)[number], pattern: number): number {
  const bits = Uint32Array.of(weight === "bf16" ? pattern << 16 : f16ToF32Bits(pattern));
  return new Float32Array(bits.buffer)[0];
}

it("rows of packed weights end on whole words", () => {
  const words = (weight: WeightType) => [1, 2, 3, 64, 65].map((k) => weightRowWords(weight, k));
  expect(words("f32")).toEqual([1, 2, 3, 64, 65]);
  for (const weight of HALVES) expect(words(weight)).toEqual([1, 1, 2, 32, 33]);
  expect([...HALVES, "f32" as const].map(weightElement)).toEqual(["u32", "u32", "f32"]);
});

it("rows of quants end on whole groups, and their scales on whole words", () => {
  const words = (weight: WeightType) => [1, 32, 33, 64, 65, 1001].map((k) => weightRowWords(weight, k));
  expect(words("int8")).toEqual([9, 9, 17, 17, 26, 272]);
  expect(words("int4")).toEqual([5, 5, 9, 9, 14, 144]);
  expect((["int8", "int4"] as const).map(weightElement)).toEqual(["u32", "u32"]);
});

it("a weight of a quantised row is its quant, a two's complement number, times the scale of its group", () => {
  // 40 weights: two groups, with the scales 0.5 (0x3800) and -2^-24 (0x8001) in one word behind their quants.
  const int8 = new Uint32Array(1 + 16 + 1);
  int8.set([0x80ff017f], 1);
  int8.set([0x0200], 1 + 8);
  int8[1 + 16] = 0x80013800;
  expect([0, 1, 2, 3, 4].map((i) => weightAt("int8", int8, 1, i, 40))).toEqual([63.5, 0.5, -0.5, -64, 0]);
  expect([33, 39].map((i) => weightAt("int8", int8, 1, i, 40))).toEqual([-(2 ** -23), -0]);
  const int4 = new Uint32Array(8 + 1);
  int4.set([0x7f108f10]);
  int4.set([0x90000000], 4);
  int4[8] = 0x80013800;
  const row = [0, 1, 2, 3, 4, 5, 6, 7, 39].map((i) => weightAt("int4", int4, 0, i, 40));
  expect(row).toEqual([0, 0.5, -0.5, -4, 0, 0.5, -0.5, 3.5, 7 * 2 ** -24]);
});

describe.each(HALVES)("%s", (weight) => {
  it("reads all 65,536 patterns on the host as weights/floats.ts does, in both halves of a word", () => {
    const wrong: string[] = [];
    for (let pattern = 0; pattern < PATTERNS; pattern++) {
      const wanted = decoded(weight, pattern);
      const other = PATTERNS - 1 - pattern;
      const low = weightAt(weight, Uint32Array.of(0, (pattern | (other << 16)) >>> 0), 1, 0, 2);
      const high = weightAt(weight, Uint32Array.of(0, (other | (pattern << 16)) >>> 0), 1, 1, 2);
      if (!Object.is(low, wanted) || !Object.is(high, wanted)) wrong.push(`${pattern}: ${low}, ${high}, not ${wanted}`);
    }
    expect(wrong.slice(0, 5)).toEqual([]);
  });
});

describe("on the device", async () => {
  const engine = await createEngine();
  afterAll(() => engine[Symbol.dispose]());
  const subgroups = engine.target.subgroupSize > 0 ? [engine.target.subgroupSize, 0] : [0];
  const variants = HALVES.flatMap((weight) =>
    subgroups.flatMap((subgroup) => (["low", "high"] as const).map((half) => ({ weight, subgroup, half }))),
  );

  const quantised = (["int8", "int4"] as const).flatMap((weight) =>
    subgroups.flatMap((subgroup) => [false, true].map((textures) => ({ weight, subgroup, textures }))),
  );

  it.each(quantised)(
    "$weight, subgroup $subgroup, textures $textures: every quant, and every finite scale, is its value",
    async (variant) => {
      const { weight, subgroup, textures } = variant;
      // A texture has 8,192 rows at the least.
      const scales = [...Array(0x7c00).keys()]
        .flatMap((bits) => [bits, bits | 0x8000])
        .filter((_, i) => !textures || i % 8 === 0);
      // Two groups of 32; row r is read by a one in column r % 64, and its quants are other ones than its neighbours'.
      const k = 64;
      const n = scales.length;
      const rowWords = matmulRowWords({ weight, k, textures });
      const scaleWord = weightRowWords(weight, k) - 1;
      const words = new Uint32Array(n * rowWords);
      for (let row = 0; row < n; row++) {
        for (let w = 0; w < scaleWord; w++) words[row * rowWords + w] = Math.imul(row * 37 + w + 1, 0x9e3779b1) >>> 0;
        words[row * rowWords + scaleWord] = (scales[row] | (scales[n - 1 - row] << 16)) >>> 0;
      }
      const shape = { k, n, weight, epilogue: "store", bias: false, outStride: n, outOffset: 0 } as const;
      const kernel = matmul({
        ...shape,
        ...matmulTile({ ...engine.target, textures }, { k, n, epilogue: "store" }),
        subgroup,
      });
      const x = Float32Array.from({ length: k * k }, (_, i) => (i % (k + 1) === 0 ? 1 : 0));
      const given = { x, weight: words, out: new Float32Array(k * n) };
      const { out } = await runKernel(engine.device, engine.pipelines, kernel, given, k);

      const wrong: string[] = [];
      const seen = new Set<number>();
      for (let t = 0; t < k; t++) {
        for (let row = 0; row < n; row++) {
          const wanted = weightAt(weight, words, row * rowWords, t, k);
          seen.add(Math.round(wanted / f16ToNumber(t < 32 ? scales[row] : scales[n - 1 - row])));
          if (out[t * n + row] !== wanted && !(out[t * n + row] === 0 && wanted === 0))
            wrong.push(`row ${row}, column ${t}: ${out[t * n + row]}, not ${wanted}`);
        }
      }
      seen.delete(Number.NaN);
      expect(seen.size).toBe(weight === "int8" ? 256 : 16);
      expect(wrong.slice(0, 5)).toEqual([]);
    },
  );

  it.each(variants)("$weight, $half half, subgroup $subgroup: every pattern is its value", async (variant) => {
    const { weight, subgroup, half } = variant;
    // A row of one weight lies in a low half; a row (0, w) times (0, 1) is w out of a high one.
    const k = half === "low" ? 1 : 2;
    const shape = {
      k,
      n: PATTERNS,
      weight,
      epilogue: "store",
      bias: false,
      outStride: PATTERNS,
      outOffset: 0,
    } as const;
    const kernel = matmul({ ...shape, ...matmulTile(engine.target, { k, n: PATTERNS, epilogue: "store" }), subgroup });
    const words = Uint32Array.from({ length: PATTERNS }, (_, p) => (half === "low" ? p : (p << 16) >>> 0));
    const x = half === "low" ? Float32Array.of(1) : Float32Array.of(0, 1);
    const given = { x, weight: words, out: new Float32Array(PATTERNS) };
    const { out } = await runKernel(engine.device, engine.pipelines, kernel, given, 1);

    const wrong: string[] = [];
    for (let pattern = 0; pattern < PATTERNS; pattern++) {
      const wanted = decoded(weight, pattern);
      // A sum that starts at 0 loses the sign of -0; WGSL lets float32 subnormals, which only bf16 holds, become 0.
      const flushed = Math.abs(wanted) < 2 ** -126 && out[pattern] === 0;
      const same = Number.isFinite(wanted) ? out[pattern] === wanted || flushed : Object.is(out[pattern], wanted);
      if (!same) wrong.push(`${pattern}: ${out[pattern]}, not ${wanted}`);
    }
    expect(wrong.slice(0, 5)).toEqual([]);
  });
});
