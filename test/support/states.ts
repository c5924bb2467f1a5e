/** Runs of the engine as tests look at them: states by sequence, not by packed row. */
import { type Batch, type PackOptions, packBatches, rowOf, type SequenceGroup } from "../../engine/batch.ts";
import { Device } from "../../engine/device.ts";
import type { DeviceLimits } from "../../engine/device-info.ts";
import type { Engine, LoadedModel } from "../../engine/model.ts";
import { createRunner, type Runner } from "../../engine/runner.ts";
import { seededRandom } from "../../kernels/random.ts";

/** Lists as they come: a common beginning, candidates of any length, some identical, some of one token. */
export function randomGroups(seed: number, count: number, vocab: number): SequenceGroup[] {
  const random = seededRandom(seed);
  const below = (n: number) => Math.floor(random() * n);
  const tokens = (length: number) => Array.from({ length }, () => below(vocab));
  return Array.from({ length: count }, () => {
    const kind = below(6);
    if (kind === 0) return { sequences: [Int32Array.from(tokens(1))] };
    if (kind === 1) return { sequences: [Int32Array.from(tokens(1 + below(40)))] };
    const prompt = tokens(kind === 2 ? 0 : 1 + below(25));
    const sequences = Array.from({ length: 1 + below(5) }, () => [...prompt, ...tokens(1 + below(12))]);
    if (prompt.length > 0) sequences.unshift(prompt);
    if (kind === 3) sequences.push([...sequences[below(sequences.length)]]);
    return { sequences: sequences.map((ids) => Int32Array.from(ids)) };
  });
}

/** The same things in another, seeded order, each with its old place. */
export function shuffled<T>(items: readonly T[], seed: number): { readonly item: T; readonly from: number }[] {
  const random = seededRandom(seed);
  const order = items.map((item, from) => ({ item, from }));
  for (let i = order.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/** Pooled states, (K, D) for every sequence, under `group/index`. */
export type StatesBySequence = ReadonlyMap<string, Float32Array>;

/** Runs batches through a runner with output `pooled`. */
export async function pooledStatesOf(runner: Runner, batches: readonly Batch[]): Promise<StatesBySequence> {
  const found = new Map<string, Float32Array>();
  for (const batch of batches) {
    const states = await runner.pooledStates(batch);
    const size = states.length / batch.sequences.length;
    for (const [s, { group, index }] of batch.sequences.entries())
      found.set(`${group}/${index}`, states.subarray(s * size, (s + 1) * size));
  }
  return found;
}

/** States of all tokens, (K, T, D) for every sequence, under `group/index`; layers ascending. */
export async function allStatesOf(runner: Runner, batches: readonly Batch[]): Promise<StatesBySequence> {
  const found = new Map<string, Float32Array>();
  for (const batch of batches) {
    const layers: Float32Array[] = [];
    await runner.allStates(batch, (_, states) => layers.push(states));
    for (const sequence of batch.sequences) {
      const d = layers[0].length / batch.ids.length;
      const rows = layers.flatMap((states) =>
        Array.from({ length: sequence.length }, (_, t) => {
          const row = rowOf(sequence, t);
          return states.subarray(row * d, (row + 1) * d);
        }),
      );
      const flat = new Float32Array(rows.length * d);
      for (const [i, row] of rows.entries()) flat.set(row, i * d);
      found.set(`${sequence.group}/${sequence.index}`, flat);
    }
  }
  return found;
}

/** Packs groups by the runner's budget and gives the last states at `layers`. */
export async function lastStates(
  model: LoadedModel,
  groups: readonly SequenceGroup[],
  layers: readonly number[],
  options: Partial<PackOptions> = {},
): Promise<StatesBySequence> {
  using runner = await createRunner(model, { layers, output: "pooled", batchTokens: 512 });
  return await pooledStatesOf(runner, packBatches(groups, { budget: 512, ...options }));
}

/**
 * The same GPU and kernels behind a planner that believes in smaller limits: what a weaker adapter would make it do. It
 * counts its own buffers, owns no GPU, and is not to be disposed of.
 */
export function limitedEngine(engine: Engine, limits: Partial<DeviceLimits>): Engine {
  const { gpu, info } = engine.device;
  return { ...engine, device: new Device(gpu, {} as GPU, { ...info, limits: { ...info.limits, ...limits } }) };
}
