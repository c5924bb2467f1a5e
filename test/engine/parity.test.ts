import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { packBatches, rowOf } from "../../engine/batch.ts";
import { createEngine, loadBlocks } from "../../engine/model.ts";
import { openModelFiles } from "../../engine/model-files.ts";
import { createRunner } from "../../engine/runner.ts";
import { compareWithin, parityFaults } from "../support/compare.ts";
import { GOLDEN_MODELS, type GoldenSequence, goldenModel, readGolden } from "../support/golden.ts";
import { referenceStates } from "../support/reference.ts";
import { writeTinyModel } from "../support/tiny-model.ts";

const engine = await createEngine();
afterAll(() => engine[Symbol.dispose]());

/** States of every sequence, [sequence][layer] (T, D), all sequences in one batch. */
async function engineStates(directory: string, sequences: readonly Int32Array[]): Promise<Float32Array[][]> {
  await using files = await openModelFiles(directory);
  const depth = files.spec.blocks.length;
  using model = await loadBlocks(engine, files.checkpoint, files.spec, { depth });
  const layers = Array.from({ length: depth + 1 }, (_, k) => k);
  using runner = await createRunner(model, { layers, output: "all", batchTokens: 512 });
  const [batch, ...more] = packBatches(
    sequences.map((ids) => ({ sequences: [ids] })),
    { budget: 512 },
  );
  expect(more).toEqual([]);
  const d = files.spec.config.hiddenSize;
  const states: Float32Array[][] = sequences.map(() => []);
  await runner.allStates(batch, (_, rows) => {
    for (const sequence of batch.sequences) {
      const first = rowOf(sequence, 0);
      states[sequence.group].push(rows.slice(first * d, (first + sequence.length) * d));
    }
  });
  return states;
}

describe("hidden states of all layers and tokens", () => {
  for (const { name, directory, golden, outside, present } of GOLDEN_MODELS) {
    const where = outside && !present ? " (skipped: kept outside this repository, in ../shared, which is absent)" : "";
    describe.skipIf(outside && !present)(`${name}${where}`, () => {
      let sequences: GoldenSequence[] = [];
      let states: Float32Array[][] = [];
      beforeAll(async () => {
        sequences = await readGolden(golden);
        states = await engineStates(
          directory,
          sequences.map(({ ids }) => ids),
        );
      });
      const config = present ? readFileSync(join(directory, "config.json"), "utf8") : '{"num_hidden_layers":0}';
      const layers = (JSON.parse(config) as { num_hidden_layers: number }).num_hidden_layers;

      it.each(Array.from({ length: layers + 1 }, (_, k) => k))("layer %i", (k) => {
        const d = sequences[0].layers[0].length / sequences[0].ids.length;
        const faults = sequences.flatMap((sequence, i) =>
          parityFaults(states[i][k], sequence.layers[k], d, `${name}, layer ${k}, sequence ${i}`),
        );
        expect(faults).toEqual([]);
      });

      it("goes through all layers of the reference", () => {
        for (const [i, sequence] of sequences.entries())
          expect([sequence.layers.length, states[i].length]).toEqual([layers + 1, layers + 1]);
      });
    });
  }
});

describe("hidden states of checkpoints that no golden file has, against float64 loops", () => {
  const ids = [[7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], Array.from({ length: 41 }, (_, i) => (i * 17) % 50)];
  const sequences = ids.map((tokens) => Int32Array.from(tokens));

  it("the loops agree with a golden file", async () => {
    await using files = await openModelFiles(goldenModel("mistral-window").directory);
    const [, , golden] = await readGolden(goldenModel("mistral-window").golden);
    const states = await referenceStates(files, golden.ids);
    for (const [k, expected] of golden.layers.entries())
      expect(compareWithin(states[k], expected, { element: 1e-6, nmse: 1e-13 }).wrong).toEqual([]);
  });

  it.each([
    ["F32, with biases, odd sizes", { dtype: "F32", biases: true, hidden: 35, ffn: 71 }],
    ["BF16, odd K in packed rows, with biases", { dtype: "BF16", biases: true, hidden: 33, ffn: 69, headDim: 14 }],
    ["F16, odd K in packed rows, a window", { dtype: "F16", window: 5, hidden: 33, ffn: 69 }],
    [
      "F16, one key-value head, heads together wider than the state",
      { dtype: "F16", kvHeads: 1, headDim: 36, hidden: 32 },
    ],
    ["BF16 with F32 norms", { dtype: "BF16", dtypeOf: { "layernorm.weight": "F32" } }],
    ["F32 gate beside a BF16 up", { dtype: "BF16", dtypeOf: { "gate_proj.weight": "F32" } }],
    ["F16 gate beside a BF16 up", { dtype: "BF16", dtypeOf: { "gate_proj.weight": "F16" } }],
  ] as const)("%s", async (name, options) => {
    await using tiny = await writeTinyModel(options);
    await using files = await openModelFiles(tiny.directory);
    const states = await engineStates(tiny.directory, sequences);
    const faults: string[] = [];
    for (const [i, tokens] of sequences.entries()) {
      for (const [k, expected] of (await referenceStates(files, tokens)).entries()) {
        const d = files.spec.config.hiddenSize;
        faults.push(...parityFaults(states[i][k], expected, d, `${name}, layer ${k}, sequence ${i}`));
      }
    }
    expect(faults).toEqual([]);
  });
});
