import { afterAll, afterEach, describe, expect, it } from "vitest";
import { packBatches } from "../../engine/batch.ts";
import { finiteFault, hiddenStates, loadModel } from "../../engine/hidden-states.ts";
import { createEngine, type Engine, loadBlocks } from "../../engine/model.ts";
import { openModelFiles } from "../../engine/model-files.ts";
import { createRunner } from "../../engine/runner.ts";
import { StratumError } from "../../errors.ts";
import { firstBitDifference, parityFaults } from "../support/compare.ts";
import { failing } from "../support/failing.ts";
import { goldenModel, readGolden } from "../support/golden.ts";
import { type TinyModelOptions, writeTinyModel } from "../support/tiny-model.ts";

const engine = await createEngine();
afterAll(() => engine[Symbol.dispose]());
afterEach(() => expect(engine.device.liveBytes).toBe(0));

/** The same device, its kernels chosen as on an adapter without subgroups. */
const plain: Engine = { ...engine, target: { subgroupSize: 0, textures: false } };

const ids = (...tokens: number[]) => Int32Array.from(tokens);

/** Cosines of a list's prompt with its candidates at the last of two blocks. */
async function scores(options: TinyModelOptions, sequences: readonly Int32Array[], on = engine): Promise<number[]> {
  await using tiny = await writeTinyModel({ layers: 2, ...options });
  await using files = await openModelFiles(tiny.directory);
  using model = await loadBlocks(on, files.checkpoint, files.spec, { depth: 2 });
  using runner = await createRunner(model, { layers: [2], output: "scores", batchTokens: 64 });
  const [batch] = packBatches([{ sequences }], { budget: 64 });
  return [
    ...(await runner.cosines(
      batch,
      sequences.slice(1).map((_, i) => [0, i + 1] as const),
    )),
  ];
}

describe("cosines", () => {
  const list = [ids(1, 2, 3), ids(1, 2, 3, 4, 5), ids(1, 2, 3, 6), ids(1, 2, 3)];

  it.each([
    ["with this adapter's kernels", engine],
    ["with the kernels that need no subgroups", plain],
  ])("are those of the states, %s", async (_, on) => {
    await using model = await loadModel(on, goldenModel("llama").directory, { layer: 2 });
    const states = await hiddenStates(model, list);
    using runner = await createRunner(model.loaded, { layers: [2], output: "scores", batchTokens: 64 });
    const [batch] = packBatches([{ sequences: list }], { budget: 64 });
    const got = await runner.cosines(batch, [
      [0, 1],
      [0, 2],
      [0, 3],
      [2, 1],
    ]);
    const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, value, i) => sum + value * b[i], 0);
    const cosine = (a: Float32Array, b: Float32Array) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
    const wanted = [
      [0, 1],
      [0, 2],
      [0, 3],
      [2, 1],
    ].map(([a, b]) => cosine(states[a], states[b]));
    for (const [i, value] of wanted.entries()) expect(got[i]).toBeCloseTo(value, 5);
    expect(Math.abs(wanted[0])).toBeLessThan(0.999);
    expect(got[2]).toBeCloseTo(1, 6);
    expect(got[3]).not.toBe(got[0]);
  });

  const TENSORS = [
    "layers.0.input_layernorm.weight",
    "layers.0.self_attn.q_proj.weight",
    "layers.0.self_attn.k_proj.weight",
    "layers.0.self_attn.v_proj.weight",
    "layers.0.self_attn.o_proj.weight",
    "layers.1.post_attention_layernorm.weight",
    "layers.1.mlp.gate_proj.weight",
    "layers.1.mlp.up_proj.weight",
    "layers.1.mlp.down_proj.weight",
  ];

  it.each(TENSORS)("of a model with one bad number in %s are NaN, not numbers", async (name) => {
    for (const on of [engine, plain]) {
      for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
        const change = (tensor: string, values: Float32Array) => {
          if (tensor.endsWith(name)) values[0] = bad;
        };
        expect([bad, await scores({ change }, list, on)]).toEqual([bad, [NaN, NaN, NaN]]);
      }
    }
  });

  it("a bad embedding spoils the candidates that hold the token, and no other", async () => {
    const change = (tensor: string, values: Float32Array) => {
      if (tensor === "model.embed_tokens.weight") values[6 * 64 + 32] = Number.NaN;
    };
    for (const on of [engine, plain]) {
      const got = await scores({ change }, list, on);
      expect(got.map(Number.isFinite)).toEqual([true, false, true]);
      expect(got[1]).toBeNaN();
    }
  });
});

describe("hidden states", () => {
  it("of the kernels that need no subgroups agree with the reference", async () => {
    const { directory, golden } = goldenModel("llama");
    const sequences = await readGolden(golden);
    await using model = await loadModel(plain, directory);
    const layers = [0, 1, 2, 3, 4];
    const inputs = sequences.map((sequence) => sequence.ids);
    const all = await hiddenStates(model, inputs, { layers, tokens: "all" });
    const faults = sequences.flatMap(({ layers: expected }, i) =>
      expected.flatMap((reference, k) => {
        const states = all[i].subarray(k * reference.length, (k + 1) * reference.length);
        return parityFaults(states, reference, 64, `sequence ${i}, layer ${k}`);
      }),
    );
    expect(faults).toEqual([]);
    // Reference values of the last layer alone, so that the loop above cannot have been empty.
    expect(all.map(({ length }) => length)).toEqual(inputs.map((tokens) => 5 * tokens.length * 64));
  });

  it("come in the order of the input and of the asked layers, whatever the batches", async () => {
    await using model = await loadModel(engine, goldenModel("llama").directory, { layer: "50%" });
    expect(model.depth).toBe(2);
    const inputs = [ids(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), ids(5), ids(1, 2, 3), ids(9, 9, 9, 9)];
    const both = await hiddenStates(model, inputs, { layers: [2, 0], batchTokens: 16 });
    for (const [i, layer] of [2, 0].entries()) {
      const single = await hiddenStates(model, inputs, { layers: [layer] });
      for (const [s, states] of single.entries())
        expect(firstBitDifference(both[s].subarray(i * 64, (i + 1) * 64), states)).toBeUndefined();
    }
    expect(await hiddenStates(model, [])).toEqual([]);
  });

  it("of a layer that is asked for twice are given twice, or the request is refused", async () => {
    await using model = await loadModel(engine, goldenModel("llama").directory, { layer: 2 });
    const inputs = [ids(1, 2, 3)];
    const [once] = await hiddenStates(model, inputs, { layers: [2] });
    const asked = await hiddenStates(model, inputs, { layers: [2, 2] }).catch((error: StratumError) => error);
    if (asked instanceof StratumError) expect(asked.code).toBe("usage/layer");
    else expect(firstBitDifference(asked[0], Float32Array.from([...once, ...once]))).toBeUndefined();
  });

  it("that are not finite are an error which names the layer", async () => {
    const change = (tensor: string, values: Float32Array) => {
      if (tensor === "model.layers.1.mlp.up_proj.weight") values[0] = Number.NaN;
    };
    await using tiny = await writeTinyModel({ change });
    await using model = await loadModel(engine, tiny.directory);
    const fault = failing("state/not-finite", "layer 2", "NaN");
    const inputs = [ids(1, 2, 3)];
    await expect(hiddenStates(model, inputs, { layers: [1, 2], tokens: "all" })).rejects.toThrow(fault);
    await expect(hiddenStates(model, inputs, { layers: [1, 2] })).rejects.toThrow(fault);
    await expect(hiddenStates(model, inputs, { layers: [1] })).resolves.toHaveLength(1);
    const states = new Float32Array(2 * 3 * 4);
    states[4 * 4 + 1] = Number.NEGATIVE_INFINITY;
    expect(finiteFault(states, [7, 9], 4)?.message).toContain("layer 9 holds -Infinity");
    expect(finiteFault(new Float32Array(8), [0], 4)).toBeNull();
  });

  it("of what cannot run are refused before the GPU is asked", async () => {
    await using model = await loadModel(engine, goldenModel("llama").directory, { layer: 1 });
    const run = (sequence: Int32Array, options = {}) => hiddenStates(model, [ids(1), sequence], options);
    await expect(run(new Int32Array(0))).rejects.toThrow(failing("list/empty-sequence"));
    await expect(run(new Int32Array(257))).rejects.toThrow(failing("list/too-long", "257", "256"));
    await expect(run(ids(1, 256))).rejects.toThrow(failing("tokenizer/mismatch", "256"));
    await expect(run(new Int32Array(50), { batchTokens: 40 })).rejects.toThrow(failing("list/over-budget", "50", "40"));
    await expect(run(ids(1), { layers: [2] })).rejects.toThrow(failing("usage/layer", "\\[2\\].*layer 1"));
    await expect(run(ids(1), { layers: [] })).rejects.toThrow(failing("usage/layer"));
    for (const batchTokens of [0, 7, 8.5, 1e12])
      await expect(run(ids(1), { batchTokens })).rejects.toThrow(failing("usage/batch-tokens", String(batchTokens)));
  });

  it("a model that cannot be loaded closes its files and holds nothing", async () => {
    const files = await openModelFiles(goldenModel("llama").directory);
    await expect(loadModel(engine, files, { layer: 9 })).rejects.toThrow(failing("usage/layer", "9"));
    await expect(files.checkpoint.read("model.norm.weight")).rejects.toThrow(failing("safetensors/closed"));
  });
});

describe("a runner", () => {
  it("refuses a batch that is larger than its working buffers", async () => {
    await using model = await loadModel(engine, goldenModel("llama").directory, { layer: 1 });
    using runner = await createRunner(model.loaded, { layers: [1], output: "pooled", batchTokens: 16 });
    const [batch] = packBatches([{ sequences: [new Int32Array(17)] }], { budget: 64 });
    await expect(runner.pooledStates(batch)).rejects.toThrow(failing("memory/batch", "17", "16"));
  });

  it("gives what it was made for and nothing else, and goes on after a wrong call", async () => {
    await using model = await loadModel(engine, goldenModel("llama").directory, { layer: 1 });
    const [batch] = packBatches([{ sequences: [ids(1), ids(2)] }], { budget: 16 });
    const make = (output: "scores" | "pooled" | "all") =>
      createRunner(model.loaded, { layers: [1], output, batchTokens: 16 });
    using pooled = await make("pooled");
    using all = await make("all");
    using scores = await make("scores");
    await expect(pooled.cosines(batch, [[0, 1]])).rejects.toThrow(failing("usage/output-kind", "'pooled'"));
    await expect(all.pooledStates(batch)).rejects.toThrow(failing("usage/output-kind", "'all'"));
    await expect(scores.allStates(batch, () => undefined)).rejects.toThrow(failing("usage/output-kind", "'scores'"));
    await expect(scores.cosines(batch, [[0, 2]])).rejects.toThrow(failing("usage/pairs", "sequence 2"));
    await expect(
      scores.cosines(batch, [
        [0, 1],
        [0, 1],
        [1, 0],
      ]),
    ).rejects.toThrow(failing("usage/pairs", "3 pairs"));
    expect((await scores.cosines(batch, [[0, 1]]))[0]).toBeGreaterThan(-1.0001);
    pooled[Symbol.dispose]();
    await expect(pooled.pooledStates(batch)).rejects.toThrow(failing("device/disposed"));
  });

  it("answers calls that overlap one after the other, as if they did not", async () => {
    await using model = await loadModel(engine, goldenModel("llama").directory, { layer: 1 });
    using runner = await createRunner(model.loaded, { layers: [1], output: "pooled", batchTokens: 64 });
    const batches = [3, 9, 17].map(
      (length) =>
        packBatches([{ sequences: [Int32Array.from({ length }, (_, i) => (7 * i + length) % 250)] }], {
          budget: 64,
        })[0]!,
    );
    const alone: Float32Array[] = [];
    for (const batch of batches) alone.push(await runner.pooledStates(batch));
    expect(await Promise.all(batches.map((batch) => runner.pooledStates(batch)))).toEqual(alone);
  });
});
