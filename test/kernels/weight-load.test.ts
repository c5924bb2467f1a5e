import { afterAll, describe, expect, it } from "vitest";
import { createEngine } from "../../engine/model.ts";
import { runKernel } from "../../engine/run-kernel.ts";
import type { WeightType } from "../../kernels/kernel.ts";
import { matmul, matmulTile } from "../../kernels/matmul.ts";
import { weightAt, weightElement, weightRowWords } from "../../kernels/weight-load.ts";
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

describe.each(HALVES)("%s", (weight) => {
  it("reads all 65,536 patterns on the host as weights/floats.ts does, in both halves of a word", () => {
    const wrong: string[] = [];
    for (let pattern = 0; pattern < PATTERNS; pattern++) {
      const wanted = decoded(weight, pattern);
      const other = PATTERNS - 1 - pattern;
      const low = weightAt(weight, Uint32Array.of(0, (pattern | (other << 16)) >>> 0), 1, 0);
      const high = weightAt(weight, Uint32Array.of(0, (other | (pattern << 16)) >>> 0), 1, 1);
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
    const kernel = matmul({ ...shape, ...matmulTile(engine.target, "store", PATTERNS), subgroup });
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
