/** The kernels that measure an adapter do the work that they are counted for: their results are their twins'. */
import { afterAll, describe, expect, it } from "vitest";
import { createEngine } from "../../engine/model.ts";
import { runKernel } from "../../engine/run-kernel.ts";
import type { Kernel, TwinBuffer } from "../../kernels/kernel.ts";
import {
  LOAD_ROWS,
  LOAD_TABLE,
  type PeakFmaVariant,
  peakCopy,
  peakFma,
  peakFmaTwin,
  peakLoad,
  peakLoadTwin,
  peakRead,
  peakReadTwin,
  peakTextureLoad,
  streamWords,
} from "../../kernels/peak.ts";
import { seededRandom } from "../../kernels/random.ts";

const engine = await createEngine();
afterAll(() => engine[Symbol.dispose]());

async function run(kernel: Kernel, buffers: Record<string, TwinBuffer>, rows: number, rounds: number) {
  const { out } = await runKernel(engine.device, engine.pipelines, kernel, buffers, rows, rounds);
  return out;
}

function expectClose(actual: TwinBuffer, expected: TwinBuffer, relative: number): void {
  expect(actual.length).toBe(expected.length);
  const worst = Array.from(expected, (value, i) => Math.abs(actual[i] - value) / Math.abs(value));
  expect(Math.max(...worst)).toBeLessThan(relative);
}

describe("multiply-adds", () => {
  const types = engine.device.info.features.includes("shader-f16") ? (["f32", "f16"] as const) : (["f32"] as const);
  it.each(types)("in %s", async (type) => {
    for (const [vec, accumulators] of [
      [1, 3],
      [4, 2],
    ] as const) {
      const variant: PeakFmaVariant = { type, vec, accumulators, lanes: 32 };
      // Factors near 1: after three rounds a sum still tells of every step.
      const x = Float32Array.from({ length: 64 }, (_, i) => (i < 32 ? 1 - i / 4096 : 1 / 64));
      const expected = new Float32Array(5 * 32);
      peakFmaTwin(variant, { x, out: expected }, 5, 3);
      const out = await run(peakFma(variant), { x, out: new Float32Array(5 * 32) }, 5, 3);
      // f16 keeps 11 bits, and 48 roundings go one way at worst.
      expectClose(out, expected, type === "f16" ? 0.03 : 1e-5);
    }
  });
});

it("reads and copies every element once", async () => {
  const variant = { lanes: 32 };
  const [rows, rounds] = [3, 2];
  const random = seededRandom(1);
  const x = Uint32Array.from({ length: streamWords(variant) * rows * rounds }, () => Math.floor(random() * 2 ** 32));
  const sums = new Uint32Array(rows * 4 * 32);
  peakReadTwin(variant, { x, out: sums }, rows, rounds);
  expect(await run(peakRead(variant), { x, out: new Uint32Array(sums.length) }, rows, rounds)).toEqual(sums);
  expect(await run(peakCopy(variant), { x, out: new Uint32Array(x.length) }, rows, rounds)).toEqual(x);
});

describe("loads", () => {
  const random = seededRandom(1);
  const row = Float32Array.from({ length: LOAD_TABLE * 4 }, random);
  it.each(["f32", "vec4<f32>"] as const)("of %s out of a buffer", async (element) => {
    const variant = { element, lanes: 32 };
    const expected = new Float32Array(4 * 32);
    peakLoadTwin(variant, { x: row, out: expected }, 4, 5);
    expectClose(await run(peakLoad(variant), { x: row, out: new Float32Array(4 * 32) }, 4, 5), expected, 1e-5);
  });

  it("out of a texture", async () => {
    const expected = new Float32Array(4 * 32);
    const table = Float32Array.from({ length: LOAD_ROWS * 4 * LOAD_TABLE }, seededRandom(3));
    peakLoadTwin({ element: "vec4<f32>", lanes: 32 }, { x: table, out: expected }, 4, 5, LOAD_ROWS);
    const buffers = { x: new Uint32Array(table.buffer), out: new Float32Array(4 * 32) };
    expectClose(await run(peakTextureLoad(32), buffers, 4, 5), expected, 1e-5);
  });
});
