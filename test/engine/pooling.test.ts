/** Pooling `mean`: a sequence's state is the mean over its tokens from some one on. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Batch, packBatches, pooledRows, rowOf, type SequenceGroup } from "../../engine/batch.ts";
import { batchFlops } from "../../engine/cost.ts";
import { createEngine, type LoadedModel, loadBlocks } from "../../engine/model.ts";
import { type ModelFiles, openModelFiles } from "../../engine/model-files.ts";
import { batchBudget, planRun, type RunOutput } from "../../engine/plan.ts";
import { platformOf } from "../../engine/platform.ts";
import { createRunner } from "../../engine/runner.ts";
import { blockBuffers } from "../../engine/weight-plan.ts";
import { seededRandom } from "../../kernels/random.ts";
import { compareWithin, firstBitDifference, parityFaults } from "../support/compare.ts";
import { goldenModel, readGolden } from "../support/golden.ts";
import { allStatesOf, pooledStatesOf, randomGroups, type StatesBySequence, shuffled } from "../support/states.ts";
import { writeTinyModel } from "../support/tiny-model.ts";

const engine = await createEngine();
afterAll(() => engine[Symbol.dispose]());

/** Lists as they come, the first sequence read at its last token, the others from anywhere on. */
function pooledGroups(seed: number, count: number, vocab: number): SequenceGroup[] {
  const random = seededRandom(seed);
  const below = (n: number) => Math.floor(random() * n);
  const groups = randomGroups(seed, count, vocab).map(({ sequences }) => ({
    sequences,
    poolFrom: sequences.map(({ length }, index) => (index === 0 && length > 1 ? null : below(length))),
  }));
  // More tokens than a block of the sum, and a prefix that ends inside it.
  const prefix = Array.from({ length: 290 }, () => below(vocab));
  const long = [30, 12, 9].map((own) =>
    Int32Array.from([...prefix, ...Array.from({ length: own }, () => below(vocab))]),
  );
  return [...groups, { sequences: long, poolFrom: [20, 0, 289] }];
}

const firstPooled = ({ sequences, poolFrom = [] }: SequenceGroup, index: number) =>
  poolFrom[index] ?? sequences[index].length - 1;

/** Where two runs over the same sequences differ, by sequence. */
function differences(actual: StatesBySequence, expected: StatesBySequence): string[] {
  expect([...actual.keys()].sort()).toEqual([...expected.keys()].sort());
  return [...expected].flatMap(([name, states]) => {
    const difference = firstBitDifference(actual.get(name)!, states);
    return difference === undefined ? [] : [`sequence ${name} ${difference}`];
  });
}

/** Every sequence as a batch of its own, under the name that it has in its group. */
function alone(groups: readonly SequenceGroup[]): Batch[] {
  return groups.flatMap((each, group) =>
    each.sequences.map((ids, index) => {
      const [batch] = packBatches([{ sequences: [ids], poolFrom: [firstPooled(each, index)] }], { budget: 512 });
      return { ...batch, sequences: batch.sequences.map((sequence) => ({ ...sequence, group, index })) };
    }),
  );
}

/** Means in float64 over rows `from` .. of states (K, T, D). */
function meanOf(states: Float32Array, layers: number, from: number, d: number): Float32Array {
  const length = states.length / layers / d;
  return Float32Array.from({ length: layers * d }, (_, at) => {
    const [k, i] = [Math.floor(at / d), at % d];
    let sum = 0;
    for (let t = from; t < length; t++) sum += states[(k * length + t) * d + i];
    return sum / (length - from);
  });
}

describe("packing", () => {
  it("names the rows of the pooled tokens, in the prefix and past it", () => {
    let both = 0;
    for (const sharePrefix of [true, false]) {
      for (const batch of packBatches(pooledGroups(3, 30, 20), { budget: 400, sharePrefix })) {
        for (const sequence of batch.sequences) {
          const { length, poolFrom } = sequence;
          const [a0, an, b0, bn] = pooledRows(sequence);
          const rows = [
            ...Array.from({ length: an }, (_, t) => a0 + t),
            ...Array.from({ length: bn }, (_, t) => b0 + t),
          ];
          expect(rows).toEqual(Array.from({ length: length - poolFrom }, (_, t) => rowOf(sequence, poolFrom + t)));
          if (an > 0 && bn > 0) both++;
        }
      }
    }
    expect(both).toBeGreaterThan(10);
  });

  it("takes the last token where nothing is said, and refuses what is no token", () => {
    const sequences = [Int32Array.of(1, 2, 3), Int32Array.of(1, 2)];
    for (const poolFrom of [undefined, [], [null, null], [2]]) {
      const [batch] = packBatches([{ sequences, ...(poolFrom && { poolFrom }) }], { budget: 64 });
      expect(batch.sequences.map((sequence) => sequence.poolFrom)).toEqual([2, 1]);
    }
    for (const poolFrom of [[3], [-1], [0.5], [null, 2], [Number.NaN]])
      expect(() => packBatches([{ sequences, poolFrom }], { budget: 64 })).toThrow(
        expect.objectContaining({ code: "usage/pool-from" }),
      );
  });
});

describe("means are those of all tokens' states", () => {
  for (const { name, directory, golden } of ["llama", "llama3-rope", "mistral-window", "gpt2", "olmo2", "demo"].map(
    goldenModel,
  )) {
    it(`${name}: in float64, and of the reference`, async () => {
      await using files = await openModelFiles(directory);
      const depth = files.spec.blocks.length;
      const d = files.spec.config.hiddenSize;
      using model = await loadBlocks(engine, files.checkpoint, files.spec, { depth });
      const layers = Array.from({ length: depth + 1 }, (_, k) => k);
      const sequences = await readGolden(golden);
      const groups = sequences.map(({ ids }, i) => ({ sequences: [ids], poolFrom: [(i * 7) % ids.length] }));
      const batches = packBatches(groups, { budget: 512 });
      using runner = await createRunner(model, { layers, output: "pooled", pooling: "mean", batchTokens: 512 });
      const means = await pooledStatesOf(runner, batches);
      using all = await createRunner(model, { layers, output: "all", batchTokens: 512 });
      const states = await allStatesOf(all, batches);
      expect(means.size).toBe(sequences.length);
      for (const [i, sequence] of sequences.entries()) {
        const [from] = groups[i].poolFrom;
        const mean = means.get(`${i}/0`)!;
        const ours = meanOf(states.get(`${i}/0`)!, layers.length, from, d);
        expect(compareWithin(mean, ours, { element: 1e-6, nmse: 1e-13 }).wrong).toEqual([]);
        const reference = Float32Array.from(sequence.layers.flatMap((layer) => [...meanOf(layer, 1, from, d)]));
        expect(parityFaults(mean, reference, d, `${name}, sequence ${i}`)).toEqual([]);
      }
    });
  }
});

describe.each([
  ["mistral-window, F16", async () => ({ directory: goldenModel("mistral-window").directory })],
  [
    "odd sizes, BF16 with biases",
    () => writeTinyModel({ dtype: "BF16", biases: true, hidden: 33, ffn: 69, headDim: 10 }),
  ],
] as const)("a mean does not depend on company: %s", (title, write) => {
  const place: { directory: string; [Symbol.asyncDispose]?: () => PromiseLike<void> } = { directory: "" };
  const layers = [2, 0, 1];
  const mean = { output: "pooled", pooling: "mean", batchTokens: 512 } as const;
  let files: ModelFiles;
  let model: LoadedModel;
  let groups: SequenceGroup[];
  let expected: StatesBySequence;

  beforeAll(async () => {
    Object.assign(place, await write());
    files = await openModelFiles(place.directory);
    model = await loadBlocks(engine, files.checkpoint, files.spec, { depth: 2 });
    groups = pooledGroups(title.length, 9, files.spec.config.vocab);
    using runner = await createRunner(model, { layers, ...mean });
    expected = await pooledStatesOf(runner, alone(groups));
  });
  afterAll(async () => {
    model[Symbol.dispose]();
    await files[Symbol.asyncDispose]();
    await place[Symbol.asyncDispose]?.();
  });

  const run = async (batches: readonly Batch[], on = model, tapped: readonly number[] = layers) => {
    using runner = await createRunner(on, { layers: tapped, ...mean });
    return await pooledStatesOf(runner, batches);
  };

  it("packed with strangers, sharing prefixes or nothing: as alone", async () => {
    const shared = packBatches(groups, { budget: 512 });
    expect(shared.length).toBeLessThan(groups.length);
    expect(differences(await run(shared), expected)).toEqual([]);
    expect(differences(await run(packBatches(groups, { budget: 512, sharePrefix: false })), expected)).toEqual([]);
  });

  it("lists and candidates in another order: as before", async () => {
    const order = shuffled(groups, 1).map(({ item, from }) => ({ item, from, inside: shuffled(item.sequences, from) }));
    const moved = order.map(({ item, inside }) => ({
      sequences: inside.map((each) => each.item),
      poolFrom: inside.map((each) => firstPooled(item, each.from)),
    }));
    const states = await run(packBatches(moved, { budget: 512 }));
    const back = [...states].map(([name, values]) => {
      const [group, index] = name.split("/").map(Number);
      return [`${order[group].from}/${order[group].inside[index].from}`, values] as const;
    });
    expect(differences(new Map(back), expected)).toEqual([]);
  });

  it.each([8, 40])("cut by a budget of %i rows, with and without the first repeated: as whole", async (budget) => {
    for (const anchored of [false, true]) {
      const cut = packBatches(
        groups.map((group) => ({ ...group, anchored })),
        { budget },
      );
      expect(cut.length).toBeGreaterThan(groups.length / 3);
      expect(differences(await run(cut), expected)).toEqual([]);
    }
  });

  it("in dispatches of 64 rows, 16 attention tiles and 16 means: as in one", async () => {
    const cut: LoadedModel = { ...model, engine: { ...engine, dispatchFlops: 1 } };
    const short = groups.slice(0, -1);
    const [batch] = packBatches(short, { budget: 512 });
    expect(batch.sequences.length).toBeGreaterThan(16);
    const states = await run([batch], cut);
    const same = new Map([...states.keys()].map((name) => [name, expected.get(name)!]));
    expect(differences(states, same)).toEqual([]);
  });

  it("one layer a pass: as several, in the asked order", async () => {
    const d = files.spec.config.hiddenSize;
    for (const [k, layer] of layers.entries()) {
      const single = await run(packBatches(groups, { budget: 512 }), model, [layer]);
      const part = new Map([...expected].map(([name, rows]) => [name, rows.subarray(k * d, (k + 1) * d)]));
      expect([layer, differences(single, part)]).toEqual([layer, []]);
    }
  });

  it("means of one token: the states of last tokens, bit for bit", async () => {
    const lasts = groups.map(({ sequences }) => ({ sequences }));
    const said = groups.map(({ sequences }) => ({ sequences, poolFrom: sequences.map(({ length }) => length - 1) }));
    using runner = await createRunner(model, { layers, output: "pooled", batchTokens: 512 });
    const last = await pooledStatesOf(runner, packBatches(lasts, { budget: 512 }));
    for (const group of [lasts, said])
      expect(differences(await run(packBatches(group, { budget: 512 })), last)).toEqual([]);
    // Sequences of several pooled tokens have other states.
    expect(differences(last, expected).length).toBeGreaterThan(5);
  });

  it("cosines are those of the means, alone as packed", async () => {
    const d = files.spec.config.hiddenSize;
    using runner = await createRunner(model, { layers: [2], output: "scores", pooling: "mean", batchTokens: 1024 });
    let seen = 0;
    for (const [g, group] of groups.entries()) {
      if (group.sequences.length < 2) continue;
      const [batch] = packBatches([group, groups[0]], { budget: 1024 });
      const pairs = group.sequences.slice(1).map((_, i) => [0, i + 1] as const);
      const scores = await runner.cosines(batch, pairs);
      for (const [i, [a, b]] of pairs.entries()) {
        const [x, y] = [a, b].map((index) => expected.get(`${g}/${index}`)!.subarray(0, d));
        const dot = (p: Float32Array, q: Float32Array) => p.reduce((sum, value, at) => sum + value * q[at], 0);
        expect(scores[i]).toBeCloseTo(dot(x, y) / Math.sqrt(dot(x, x) * dot(y, y)), 5);
        const [two] = packBatches(
          [{ sequences: [group.sequences[a], group.sequences[b]], poolFrom: [a, b].map((s) => firstPooled(group, s)) }],
          { budget: 1024, sharePrefix: false },
        );
        expect((await runner.cosines(two, [[0, 1]]))[0]).toBe(scores[i]);
        seen++;
      }
    }
    expect(seen).toBeGreaterThan(8);
  });

  it("a runner that reads last tokens refuses a batch to be averaged, unless it reads all tokens anyway", async () => {
    const batches = packBatches(groups, { budget: 512 });
    using last = await createRunner(model, { layers, output: "pooled", batchTokens: 512 });
    await expect(last.pooledStates(batches[0])).rejects.toMatchObject({ code: "usage/pooling" });
    using all = await createRunner(model, { layers: [0], output: "all", pooling: "mean", batchTokens: 512 });
    await expect(all.allStates(batches[0], () => undefined)).resolves.toBeUndefined();
  });
});

describe("what is held and what it costs", () => {
  it.each(["pooled", "scores", "all"] satisfies RunOutput[])(
    "output %s: the plan, buffer by buffer",
    async (output) => {
      await using files = await openModelFiles(goldenModel("mistral-window").directory);
      const { checkpoint, spec } = files;
      const layers = output === "scores" ? [2] : [2, 0];
      const { device } = engine;
      const run = { layers, output, pooling: "mean", batchTokens: 100 } as const;
      const plan = await planRun(checkpoint, spec, run, platformOf(engine));
      using model = await loadBlocks(engine, checkpoint, spec, { depth: 2 });
      using runner = await createRunner(model, run);
      const planned = [...plan.weights.blocks.flatMap(blockBuffers), ...plan.workspace.values()];
      const bySize = (buffers: readonly { label: string; size?: number; bytes?: number }[]) =>
        buffers.map(({ label, size, bytes }) => `${label} ${size ?? bytes}`).sort();
      expect(bySize(device.liveBuffers)).toEqual(bySize(planned));
      expect([device.liveBytes, runner.bytes]).toEqual([plan.bytes, plan.bytes]);
      // Rows are not compacted for means, and with all states nothing is pooled.
      const names = [...plan.workspace.keys()];
      expect(names.filter((name) => /^(read|poolSpans)/.test(name))).toEqual(output === "all" ? [] : ["poolSpans"]);
      const group = { sequences: [Int32Array.of(1, 2), Int32Array.of(1, 3)], poolFrom: [null, 0] };
      const [batch] = packBatches([group], { budget: 100 });
      if (output === "scores") await runner.cosines(batch, [[0, 1]]);
      else if (output === "pooled") await runner.pooledStates(batch);
      else await runner.allStates(batch, () => undefined);
      expect(device.liveBytes).toBe(plan.bytes);
    },
  );

  it("fits the limits at the largest batch", async () => {
    await using files = await openModelFiles(goldenModel("demo").directory);
    for (const rows of [8, 9, 100]) {
      const limits = { ...engine.device.info.limits, maxStorageBufferBindingSize: 4 * 512 * rows };
      const { maxBudget } = batchBudget(files.spec, limits, { taps: 6, output: "pooled", pooling: "mean" });
      expect(maxBudget).toBe(rows);
    }
  });

  it("counts the last block whole", async () => {
    await using files = await openModelFiles(goldenModel("demo").directory);
    const { spec } = files;
    const [batch] = packBatches(randomGroups(3, 8, 30), { budget: 1e6 });
    const block = batchFlops(spec, batch, 3) - batchFlops(spec, batch, 2);
    expect(batchFlops(spec, batch, 2, "mean")).toBe(2 * block);
    expect(batchFlops(spec, batch, 0, "mean")).toBe(0);
  });
});
