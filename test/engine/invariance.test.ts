/** A hidden state does not depend on company: the same state, bit for bit, on one adapter (DESIGN.md, promise 3). */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { packBatches, type SequenceGroup } from "../../engine/batch.ts";
import { createEngine, type LoadedModel, loadBlocks } from "../../engine/model.ts";
import { type ModelFiles, openModelFiles } from "../../engine/model-files.ts";
import { createRunner } from "../../engine/runner.ts";
import { firstBitDifference } from "../support/compare.ts";
import { goldenModel } from "../support/golden.ts";
import {
  allStatesOf,
  lastStates,
  limitedEngine,
  pooledStatesOf,
  randomGroups,
  type StatesBySequence,
  shuffled,
} from "../support/states.ts";
import { writeTinyModel } from "../support/tiny-model.ts";

/** No size is a multiple of anything, rows of packed weights end in half a word. */
const ODD = { hidden: 33, ffn: 69, headDim: 10 };

const engine = await createEngine();
afterAll(() => engine[Symbol.dispose]());

/** Where two runs over the same sequences differ, by sequence. */
function differences(actual: StatesBySequence, expected: StatesBySequence): string[] {
  expect([...actual.keys()].sort()).toEqual([...expected.keys()].sort());
  return [...expected].flatMap(([name, states]) => {
    const difference = firstBitDifference(actual.get(name)!, states);
    return difference === undefined ? [] : [`sequence ${name} ${difference}`];
  });
}

/** Every sequence as a batch of its own. */
function alone(groups: readonly SequenceGroup[]) {
  return groups.flatMap(({ sequences }, group) =>
    sequences.flatMap((ids, index) =>
      packBatches([{ sequences: [ids] }], { budget: 512 }).map((batch) => ({
        ...batch,
        sequences: batch.sequences.map((sequence) => ({ ...sequence, group, index })),
      })),
    ),
  );
}

/** A run over reordered groups, under the names that the sequences had before. */
function renamed(states: StatesBySequence, name: (group: number, index: number) => string): StatesBySequence {
  return new Map(
    [...states].map(([key, value]) => {
      const [group, index] = key.split("/").map(Number);
      return [name(group, index), value];
    }),
  );
}

describe.each([
  ["mistral-window, F16", async () => ({ directory: goldenModel("mistral-window").directory })],
  ["odd sizes, BF16 with biases", () => writeTinyModel({ dtype: "BF16", biases: true, ...ODD })],
  ["demo, BF16", async () => ({ directory: goldenModel("demo").directory })],
] as const)("%s", (title, write) => {
  const place: { directory: string; [Symbol.asyncDispose]?: () => PromiseLike<void> } = { directory: "" };
  let files: ModelFiles;
  let model: LoadedModel;
  let groups: SequenceGroup[];
  let layers: number[];
  let expected: StatesBySequence;

  beforeAll(async () => {
    Object.assign(place, await write());
    files = await openModelFiles(place.directory);
    const depth = Math.min(2, files.spec.blocks.length);
    model = await loadBlocks(engine, files.checkpoint, files.spec, { depth });
    groups = randomGroups(title.length, 9, files.spec.config.vocab);
    layers = Array.from({ length: depth + 1 }, (_, k) => k);
    using runner = await createRunner(model, { layers, output: "pooled", batchTokens: 512 });
    expected = await pooledStatesOf(runner, alone(groups));
  });
  afterAll(async () => {
    model[Symbol.dispose]();
    await files[Symbol.asyncDispose]();
    await place[Symbol.asyncDispose]?.();
  });

  it("the lists share prefixes, and their states differ from each other", () => {
    const batches = packBatches(groups, { budget: 512 });
    expect(batches.flatMap(({ sequences }) => sequences).filter((s) => s.prefixLength > 0).length).toBeGreaterThan(8);
    expect(Math.max(...batches.map(({ sequences }) => sequences.length))).toBeGreaterThan(8);
    expect(new Set([...expected.values()].map((states) => states.join())).size).toBeGreaterThan(expected.size / 2);
  });

  it("packed with strangers, sharing prefixes: as alone", async () => {
    expect(differences(await lastStates(model, groups, layers), expected)).toEqual([]);
  });

  it("packed with strangers, sharing nothing: as alone", async () => {
    expect(differences(await lastStates(model, groups, layers, { sharePrefix: false }), expected)).toEqual([]);
  });

  it.each([1, 2])("lists in another order, candidates in another order (%i): as before", async (seed) => {
    const order = shuffled(groups, seed).map(({ item, from }) => ({
      from,
      inside: shuffled(item.sequences, seed + from),
    }));
    const moved = order.map(({ inside }) => ({ sequences: inside.map(({ item }) => item) }));
    const states = await lastStates(model, moved, layers);
    const back = (group: number, index: number) => `${order[group].from}/${order[group].inside[index].from}`;
    expect(differences(renamed(states, back), expected)).toEqual([]);
  });

  it.each([8, 24, 50])("cut by a budget of %i rows: as whole", async (budget) => {
    const cut = packBatches(groups, { budget });
    expect(cut.length).toBeGreaterThan(groups.length / 3);
    using runner = await createRunner(model, { layers, output: "pooled", batchTokens: 128 });
    expect(differences(await pooledStatesOf(runner, cut), expected)).toEqual([]);
  });

  it("cut lists that repeat their first sequence: as whole, every time", async () => {
    const cut = packBatches(
      groups.map((group) => ({ ...group, anchored: true })),
      { budget: 32 },
    );
    const runs = cut.flatMap(({ sequences }) => sequences);
    expect(runs.length).toBeGreaterThan(expected.size);
    using runner = await createRunner(model, { layers, output: "pooled", batchTokens: 128 });
    for (const batch of cut) {
      const states = await pooledStatesOf(runner, [batch]);
      const same = new Map([...states.keys()].map((name) => [name, expected.get(name)!]));
      expect(differences(states, same)).toEqual([]);
    }
  });

  it("in dispatches of 64 rows and 16 attention tiles, a command buffer each: as in one", async () => {
    const cut: LoadedModel = { ...model, engine: { ...engine, dispatchFlops: 1, submitFlops: 1 } };
    const [batch] = packBatches(groups, { budget: 512 });
    // More than two steps of each kind.
    expect(batch.ids.length).toBeGreaterThan(128);
    using runner = await createRunner(cut, { layers, output: "pooled", batchTokens: 512 });
    const states = await pooledStatesOf(runner, [batch]);
    const same = new Map([...states.keys()].map((name) => [name, expected.get(name)!]));
    expect(differences(states, same)).toEqual([]);
    using all = await createRunner(cut, { layers, output: "all", batchTokens: 512 });
    using whole = await createRunner(model, { layers, output: "all", batchTokens: 512 });
    expect(differences(await allStatesOf(all, [batch]), await allStatesOf(whole, [batch]))).toEqual([]);
  });

  it("all tokens: shared and packed as alone, and the last of them as the pruned block gives it", async () => {
    using runner = await createRunner(model, { layers, output: "all", batchTokens: 512 });
    const lone = await allStatesOf(runner, alone(groups));
    expect(differences(await allStatesOf(runner, packBatches(groups, { budget: 512 })), lone)).toEqual([]);
    const d = files.spec.config.hiddenSize;
    const lastOf = (states: Float32Array) => {
      const t = states.length / layers.length / d;
      const rows = layers.map((_, k) => states.subarray((k * t + t - 1) * d, (k + 1) * t * d));
      return Float32Array.from(rows.flatMap((row) => [...row]));
    };
    expect(differences(new Map([...lone].map(([name, states]) => [name, lastOf(states)])), expected)).toEqual([]);
  });

  it("several layers in one pass: as one pass a layer, in the asked order", async () => {
    const d = files.spec.config.hiddenSize;
    for (const layer of layers) {
      const single = await lastStates(model, groups, [layer]);
      const cut = new Map([...expected].map(([name, rows]) => [name, rows.subarray(layer * d, (layer + 1) * d)]));
      expect([layer, differences(single, cut)]).toEqual([layer, []]);
    }
    const [first, last] = [layers[0], layers[layers.length - 1]];
    const backwards = await lastStates(model, groups, [last, first]);
    const swapped = [...expected].map(([name, rows]) => {
      const both = new Float32Array(2 * d);
      both.set(rows.subarray(last * d, (last + 1) * d));
      both.set(rows.subarray(first * d, (first + 1) * d), d);
      return [name, both] as const;
    });
    expect(differences(backwards, new Map(swapped))).toEqual([]);
  });

  it("a batch run again, after others and in a grown workspace: as the first time", async () => {
    using runner = await createRunner(model, { layers, output: "pooled" });
    const batches = packBatches(groups, { budget: 100 });
    await pooledStatesOf(runner, batches);
    expect(differences(await pooledStatesOf(runner, batches), expected)).toEqual([]);
    await runner.grow(runner.budget + 64);
    expect(differences(await pooledStatesOf(runner, batches), expected)).toEqual([]);
  });

  it("cosines do not depend on company either", async () => {
    using runner = await createRunner(model, {
      layers: [layers[layers.length - 1]],
      output: "scores",
      batchTokens: 512,
    });
    const lists = groups.filter(({ sequences }) => sequences.length > 1);
    const together = new Map<string, number>();
    for (const batch of packBatches(lists, { budget: 512 })) {
      const pairs = batch.sequences.slice(1).map((_, i) => [i, i + 1] as const);
      const own = pairs.filter(([a, b]) => batch.sequences[a].group === batch.sequences[b].group);
      const scores = await runner.cosines(batch, own);
      for (const [i, [a]] of own.entries())
        together.set(`${batch.sequences[a].group}/${batch.sequences[a].index}`, scores[i]);
    }
    const apart = new Map<string, number>();
    for (const [group, { sequences }] of lists.entries()) {
      for (let index = 0; index + 1 < sequences.length; index++) {
        const [batch] = packBatches([{ sequences: sequences.slice(index, index + 2) }], { budget: 512 });
        apart.set(`${group}/${index}`, (await runner.cosines(batch, [[0, 1]]))[0]);
      }
    }
    expect(apart.size).toBeGreaterThan(8);
    expect([...apart.values()].every((score) => score >= -1.000001 && score <= 1.000001)).toBe(true);
    expect(together).toEqual(apart);
  });
});

describe("weights split over several bindings", () => {
  it.each([
    {
      title: "BF16 with biases: parts begin at multiples of 64 rows",
      sizes: { hidden: 128, ffn: 144, heads: 4, kvHeads: 4, headDim: 32, layers: 1, dtype: "BF16", biases: true },
      textures: false,
      limits: { maxStorageBufferBindingSize: 20_000 },
      budget: 16,
      parts: { query: 2, key: 2, value: 2, attentionOut: 2, gate: 3, up: 3, down: 2 },
    },
    {
      title: "F32, where not even 64 rows fit",
      sizes: { hidden: 64, ffn: 144, heads: 2, kvHeads: 1, headDim: 32, layers: 1, dtype: "F32" },
      textures: false,
      limits: { maxStorageBufferBindingSize: 20_000 },
      budget: 32,
      parts: { query: 1, key: 1, value: 1, attentionOut: 1, gate: 3, up: 3, down: 2 },
    },
    {
      title: "BF16 in textures, more rows than a texture has",
      sizes: { hidden: 64, ffn: 5000, heads: 2, kvHeads: 1, headDim: 32, layers: 1, dtype: "BF16", biases: true },
      textures: true,
      limits: { maxTextureDimension2D: 4096 },
      budget: 64,
      parts: { query: 1, key: 1, value: 1, attentionOut: 1, gate: 2, up: 2, down: 1 },
    },
  ] as const)(
    "$title: the states of weights that lie in one piece",
    async ({ sizes, textures, limits, budget, parts }) => {
      await using tiny = await writeTinyModel(sizes);
      await using files = await openModelFiles(tiny.directory);
      const forced = { ...engine, target: { ...engine.target, textures } };
      const limited = limitedEngine(forced, limits);
      using whole = await loadBlocks(forced, files.checkpoint, files.spec, { depth: 1 });
      using split = await loadBlocks(limited, files.checkpoint, files.spec, { depth: 1 });
      const count = ({ blocks }: LoadedModel) =>
        Object.fromEntries(Object.entries(blocks[0].matrices).map(([role, matrix]) => [role, matrix!.parts.length]));
      expect(count(split)).toEqual(parts);
      expect(new Set(Object.values(count(whole)))).toEqual(new Set([1]));

      const batches = packBatches(randomGroups(5, 30, tiny.vocab), { budget }).filter(
        ({ ids }) => ids.length <= budget,
      );
      expect(batches.flatMap(({ sequences }) => sequences).length).toBeGreaterThan(20);
      const run = async (model: LoadedModel) => {
        using runner = await createRunner(model, { layers: [1], output: "all", batchTokens: budget });
        return await allStatesOf(runner, batches);
      };
      expect(differences(await run(split), await run(whole))).toEqual([]);
    },
  );
});
