/** The door for what computes with states on the GPU: lent to a function, in one pass with the cosines. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type Batch, packBatches, type SequenceGroup } from "../../engine/batch.ts";
import type { DeviceBuffer } from "../../engine/device-memory.ts";
import { createEngine, type LoadedModel, loadBlocks } from "../../engine/model.ts";
import { type ModelFiles, openModelFiles } from "../../engine/model-files.ts";
import { createRunner } from "../../engine/runner.ts";
import { firstBitDifference } from "../support/compare.ts";
import { goldenModel } from "../support/golden.ts";
import { writeTinyModel } from "../support/tiny-model.ts";

const engine = await createEngine();
const { device } = engine;
afterAll(() => engine[Symbol.dispose]());

const list = (...tokens: number[][]): SequenceGroup => ({
  sequences: tokens.map((ids) => Int32Array.from(ids)),
  poolFrom: tokens.map((_, i) => (i === 0 ? null : 3)),
});
const GROUPS = [list([1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 3, 9, 8, 7]), list([7], [7, 8, 2, 1, 1])];
const LASTS = GROUPS.map(({ sequences }) => ({ sequences }));
const D = 64;

/** (K, S, D) out of a buffer on the GPU. */
async function readBack(states: DeviceBuffer, floats: number): Promise<Float32Array> {
  const staging = device.createBuffer("test readback", floats * 4, "readback");
  try {
    return new Float32Array(await device.read(states, floats * 4, staging));
  } finally {
    staging.destroy();
  }
}

/** States (S, K, D) as (K, S, D). */
function byLayer(states: Float32Array, layers: number): Float32Array {
  const count = states.length / layers / D;
  const out = new Float32Array(states.length);
  for (let s = 0; s < count; s++)
    for (let k = 0; k < layers; k++)
      out.set(states.subarray((s * layers + k) * D, (s * layers + k + 1) * D), (k * count + s) * D);
  return out;
}

describe("states that are lent", () => {
  let files: ModelFiles;
  let model: LoadedModel;
  let held: number;
  beforeAll(async () => {
    files = await openModelFiles(goldenModel("llama").directory);
    model = await loadBlocks(engine, files.checkpoint, files.spec, { depth: 2 });
    held = device.liveBytes;
  });
  afterEach(() => expect(device.liveBytes).toBe(held));
  afterAll(async () => {
    model[Symbol.dispose]();
    await files[Symbol.asyncDispose]();
  });

  it.each(["last", "mean"] as const)("are those that are read back otherwise, bit for bit: %s", async (pooling) => {
    const layers = [2, 0, 1];
    const [batch] = packBatches(pooling === "mean" ? GROUPS : LASTS, { budget: 64 });
    using pooled = await createRunner(model, { layers, output: "pooled", pooling, batchTokens: 64 });
    const wanted = byLayer(await pooled.pooledStates(batch), layers.length);
    using runner = await createRunner(model, { layers, output: "scores", pooling, batchTokens: 64 });
    const [count, got] = await runner.withStates(batch, async (states, count) => [
      count,
      await readBack(states, layers.length * count * D),
    ]);
    expect(count).toBe(6);
    expect(firstBitDifference(got, wanted)).toBeUndefined();
    expect(new Set(got).size).toBeGreaterThan(wanted.length / 3);
  });

  it("come with the cosines of the same run, asked for as often as is liked, and are not changed by them", async () => {
    const [batch] = packBatches(LASTS, { budget: 64 });
    using runner = await createRunner(model, { layers: [2], output: "scores", batchTokens: 64 });
    const pairs = [1, 2, 3].map((i): [number, number] => [0, i]).concat([[4, 5]]);
    const alone = await runner.cosines(batch, pairs);
    expect(new Set(alone).size).toBe(4);
    await runner.withStates(batch, async (states, count, cosines) => {
      const before = await readBack(states, count * D);
      expect(await cosines(pairs)).toEqual(alone);
      for (let n = 0; n <= pairs.length; n++) expect(await cosines(pairs.slice(0, n))).toEqual(alone.slice(0, n));
      expect(firstBitDifference(await readBack(states, count * D), before)).toBeUndefined();
    });
    await expect(runner.withStates(batch, (_, __, cosines) => cosines([[0, 6]]))).rejects.toMatchObject({
      code: "usage/pairs",
    });
  });

  it("cost one pass over the model", async () => {
    const [batch] = packBatches(LASTS, { budget: 64 });
    using runner = await createRunner(model, { layers: [2], output: "scores", batchTokens: 64 });
    const submitted = async (step: () => Promise<unknown>) => {
      const { submit } = device;
      let count = 0;
      device.submit = (encoder) => {
        count++;
        submit.call(device, encoder);
      };
      await step();
      device.submit = submit;
      return count;
    };
    const pass = await submitted(() => runner.withStates(batch, async () => undefined));
    expect(pass).toBe(1);
    // The cosines and their way back.
    expect(await submitted(() => runner.withStates(batch, (_, __, cosines) => cosines([[0, 1]])))).toBe(pass + 2);
  });

  it("stay as they are until the function has ended: other calls wait", async () => {
    const [batch] = packBatches(LASTS, { budget: 64 });
    const [other] = packBatches(
      [list([9, 9, 9, 9], [9, 9, 9, 9, 1])].map(({ sequences }) => ({ sequences })),
      {
        budget: 64,
      },
    );
    using runner = await createRunner(model, { layers: [2], output: "scores", batchTokens: 64 });
    const wanted = await runner.cosines(other, [[0, 1]]);
    const order: string[] = [];
    const first = runner.withStates(batch, async (states, count) => {
      const before = await readBack(states, count * D);
      await new Promise((resolve) => setTimeout(resolve, 50));
      order.push("lent");
      return firstBitDifference(await readBack(states, count * D), before);
    });
    const second = runner.cosines(other, [[0, 1]]).then((scores) => {
      order.push("cosines");
      return scores;
    });
    expect(await first).toBeUndefined();
    expect(await second).toEqual(wanted);
    expect(order).toEqual(["lent", "cosines"]);
  });

  it("are given back when the function fails, and their cosines with them", async () => {
    const [batch] = packBatches(LASTS, { budget: 64 });
    using runner = await createRunner(model, { layers: [2], output: "scores", batchTokens: 64 });
    let late: (pairs: readonly (readonly [number, number])[]) => Promise<Float32Array> = async () => new Float32Array();
    const failing = runner.withStates(batch, async (_, __, cosines) => {
      late = cosines;
      throw new Error("no scorer");
    });
    await expect(failing).rejects.toThrow("no scorer");
    await expect(late([[0, 1]])).rejects.toMatchObject({ code: "usage/lent" });
    expect(await runner.cosines(batch, [[0, 1]])).toHaveLength(1);
  });

  it("are those of a runner for scores alone", async () => {
    const [batch] = packBatches(LASTS, { budget: 64 });
    using runner = await createRunner(model, { layers: [2], output: "pooled", batchTokens: 64 });
    await expect(runner.withStates(batch, async () => 1)).rejects.toMatchObject({ code: "usage/output-kind" });
  });
});

it("a state that is not finite is known by the cosine of the same run", async () => {
  const change = (tensor: string, values: Float32Array) => {
    if (tensor === "model.embed_tokens.weight") values[6 * D + 32] = Number.NaN;
  };
  await using tiny = await writeTinyModel({ layers: 1, change });
  await using files = await openModelFiles(tiny.directory);
  using model = await loadBlocks(engine, files.checkpoint, files.spec, { depth: 1 });
  const [batch]: Batch[] = packBatches(GROUPS.slice(0, 1), { budget: 64 });
  using runner = await createRunner(model, { layers: [1], output: "scores", pooling: "mean", batchTokens: 64 });
  const finite = await runner.withStates(batch, async (_, count, cosines) => {
    const pairs = Array.from({ length: count - 1 }, (_, i) => [0, i + 1] as const);
    return [...(await cosines(pairs))].map(Number.isFinite);
  });
  expect(finite).toEqual([true, false, true]);
});
