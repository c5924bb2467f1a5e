import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { packBatches, rowOf } from "../../engine/batch.ts";
import { createEngine, type LoadedModel, loadBlocks } from "../../engine/model.ts";
import { openModelFiles } from "../../engine/model-files.ts";
import { createRunner } from "../../engine/runner.ts";
import { compareWithin, firstBitDifference, parityFaults } from "../support/compare.ts";
import { GOLDEN_MODELS, type GoldenSequence, goldenModel, readGolden } from "../support/golden.ts";
import { referenceStates } from "../support/reference.ts";
import { writeTinyModel } from "../support/tiny-model.ts";

const engine = await createEngine();
afterAll(() => engine[Symbol.dispose]());

/** States of every sequence, [sequence][layer] (T, D), all sequences in one batch. */
async function engineStates(
  directory: string,
  sequences: readonly Int32Array[],
  onModel?: (model: LoadedModel, states: Float32Array[][]) => Promise<void>,
): Promise<Float32Array[][]> {
  await using files = await openModelFiles(directory);
  const depth = files.spec.blocks.length;
  using model = await loadBlocks(engine, files.checkpoint, files.spec, { depth });
  const layers = Array.from({ length: depth + 1 }, (_, k) => k);
  using runner = await createRunner(model, { layers, output: "all", batchTokens: 512 });
  const [batch, ...more] = packBatches(
    sequences.map((ids) => ({ sequences: [ids] })),
    runner.packing,
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
  await onModel?.(model, states);
  return states;
}

/**
 * Where the states of last tokens, from a last block that is pruned to them and with beginnings shared, differ in a bit
 * from those of a run over all tokens.
 */
async function prunedDifferences(
  model: LoadedModel,
  sequences: readonly Int32Array[],
  states: readonly (readonly Float32Array[])[],
): Promise<string[]> {
  const depth = model.blocks.length;
  const d = model.spec.config.hiddenSize;
  using runner = await createRunner(model, { layers: [depth, 0], output: "pooled", batchTokens: 512 });
  // A sequence beside its own beginning: the shorter one is the prefix of the longer.
  const longest = sequences.reduce((a, b) => (b.length > a.length ? b : a));
  const groups = [{ sequences: [...sequences] }, { sequences: [longest.slice(0, longest.length - 1), longest] }];
  const differences: string[] = [];
  for (const batch of packBatches(groups, runner.packing)) {
    const pooled = await runner.pooledStates(batch);
    for (const [i, { group, index }] of batch.sequences.entries()) {
      const sequence = group === 0 ? index : index === 1 ? sequences.indexOf(longest) : -1;
      if (sequence < 0) continue;
      for (const [tap, layer] of runner.layers.entries()) {
        const got = pooled.subarray((2 * i + tap) * d, (2 * i + tap + 1) * d);
        const difference = firstBitDifference(got, states[sequence][layer].slice(-d));
        if (difference !== undefined)
          differences.push(`layer ${layer}, sequence ${sequence}, group ${group}: ${difference}`);
      }
    }
  }
  return differences;
}

describe("hidden states of all layers and tokens", () => {
  for (const { name, directory, golden, outside, present } of GOLDEN_MODELS) {
    const where = outside && !present ? " (skipped: kept outside this repository, in ../shared, which is absent)" : "";
    describe.skipIf(outside && !present)(`${name}${where}`, () => {
      let sequences: GoldenSequence[] = [];
      let states: Float32Array[][] = [];
      let pruned: string[] = [];
      beforeAll(async () => {
        sequences = await readGolden(golden);
        states = await engineStates(
          directory,
          sequences.map(({ ids }) => ids),
          async (model, all) => {
            const ids = sequences.map((sequence) => sequence.ids);
            pruned = await prunedDifferences(model, ids, all);
          },
        );
      });

      it("every layer and position agrees", () => {
        const d = sequences[0].layers[0].length / sequences[0].ids.length;
        // From the shallowest layer on: the first disagreement is named with its layer, sequence and position.
        const faults = sequences[0].layers.flatMap((_, k) =>
          sequences.flatMap((sequence, i) =>
            parityFaults(states[i][k], sequence.layers[k], d, `${name}, layer ${k}, sequence ${i}`),
          ),
        );
        expect(faults.slice(0, 5)).toEqual([]);
      });

      it("last tokens alone, with shared beginnings, have the same bits", () => {
        expect(pruned).toEqual([]);
      });

      it("goes through all layers of the reference", () => {
        for (const [i, sequence] of sequences.entries()) expect(states[i].length).toBe(sequence.layers.length);
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
