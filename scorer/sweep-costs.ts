/**
 * What depth costs: a few lists, each alone, down to every layer and no deeper, in the run that measures accuracy. The
 * model is loaded to its deepest layer; a run to layer k uses the blocks below k and no other.
 */
import { groupCost, packBatches } from "../engine/batch.ts";
import type { Model } from "../engine/hidden-states.ts";
import { sumBytes } from "../engine/planned-buffer.ts";
import { platformOf } from "../engine/platform.ts";
import { overLosses } from "../engine/room.ts";
import { createRunner } from "../engine/runner.ts";
import { planWeights } from "../engine/weight-plan.ts";
import {
  createListEncoder,
  type EncodedGroup,
  type EncodeOptions,
  type ListEncoder,
  type Pooling,
  runPooling,
} from "./encode.ts";
import type { List } from "./lists.ts";
import type { ReportCost } from "./report-data.ts";

export interface CostOptions extends Omit<EncodeOptions, "pooling"> {
  /** Each at most the model's depth. */
  readonly layers: readonly number[];
  readonly poolings: readonly Pooling[];
  readonly batchTokens?: number | undefined;
  readonly sharePrefix?: boolean | undefined;
  /** Lists to time, at most, spread over the file; default 16. */
  readonly lists?: number | undefined;
  /** About how long it may take: fewer lists are timed where that is not enough, at least three. Default 60. */
  readonly seconds?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Every list is timed so often at every layer: once on the way from the deepest, once on the way back. */
const ROUNDS = 2;
const [MOST_LISTS, LEAST_LISTS, SECONDS] = [16, 3, 60];

/** How it was measured, for the report. */
export function costsNote(lists: number): string {
  return `Each of ${lists} lists alone, from token ids to its states on the host, in a run that ends at the layer; twice, once from the deepest layer to the shallowest and once back. Texts are not encoded in that time, and no scorer runs. Bytes as planned for such a run, working buffers as they were held.`;
}

/**
 * Times lists down to each layer.
 * @param lists that can be encoded; those that need a larger batch than the others are timed as well
 * @returns a row a layer and pooling, a layer's poolings side by side; what was timed before the signal came is not told
 * @throws {StratumError} as `createRunner` and `ListEncoder.encode`; the signal's reason
 */
export async function measureCosts(model: Model, lists: readonly List[], options: CostOptions): Promise<ReportCost[]> {
  const { layers, poolings, seconds = SECONDS, lists: most = MOST_LISTS, signal } = options;
  const encoders = new Map<Pooling, ListEncoder>();
  for (const pooling of poolings) encoders.set(pooling, await createListEncoder(model.files, { ...options, pooling }));
  const encode = (pooling: Pooling, some: readonly List[]) =>
    some.map((list) => (encoders.get(pooling) as ListEncoder).encode(list));
  const taps = layers.flatMap((layer) => poolings.map((pooling) => ({ layer, pooling })));
  const order = [...taps].sort((a, b) => b.layer - a.layer);
  // A device that is lost takes its times with it: the layer is timed again on the next one.
  const timed = (tap: Tap, some: readonly List[]) =>
    overLosses(model.engine.device, () => timeLists(model, tap, encode(tap.pooling, some), options));
  const trial = await timed(order[0], spreadOver(lists, LEAST_LISTS));
  const chosen = spreadOver(lists, affordable(trial.times, taps.length, seconds, most));
  const times = new Map<string, number[]>(taps.map((tap) => [nameOf(tap), []]));
  const bytes = new Map<string, number>();
  for (let round = 0; round < ROUNDS; round++) {
    for (const tap of round % 2 === 0 ? order : [...order].reverse()) {
      signal?.throwIfAborted();
      const found = await timed(tap, chosen);
      times.get(nameOf(tap))?.push(...found.times);
      bytes.set(nameOf(tap), found.bytes);
    }
  }
  const { checkpoint, spec } = model.files;
  const costs: ReportCost[] = [];
  for (const tap of taps) {
    const { layer, pooling } = tap;
    const weights = await planWeights(checkpoint, spec, layer, platformOf(model.engine));
    const sorted = Float64Array.from(times.get(nameOf(tap)) ?? []).sort();
    const at = (share: number) => sorted[Math.round(share * (sorted.length - 1))];
    const tokens = encode(pooling, chosen).reduce((sum, each) => sum + each.tokens, 0);
    costs.push({
      ...{ layer, pooling, lists: chosen.length, ms: { median: at(0.5), low: at(0.25), high: at(0.75) } },
      tokens_per_s: (1000 * ROUNDS * tokens) / sorted.reduce((sum, ms) => sum + ms, 0),
      gpu_bytes: weights.bytes + (bytes.get(nameOf(tap)) ?? 0),
      ...{ weight_bytes: weights.bytes, disk_bytes: weights.diskBytes },
    });
  }
  return costs;
}

interface Tap {
  readonly layer: number;
  readonly pooling: Pooling;
}

function nameOf({ layer, pooling }: Tap): string {
  return `${layer} ${pooling}`;
}

/** Times each list alone down to a layer, in milliseconds, and says what the working buffers held. */
async function timeLists(
  model: Model,
  { layer, pooling }: Tap,
  lists: readonly EncodedGroup[],
  { batchTokens, sharePrefix = true }: CostOptions,
): Promise<{ readonly times: number[]; readonly bytes: number }> {
  using runner = await createRunner(await model.onDevice(), {
    ...{ layers: [layer], output: "pooled", pooling: runPooling(pooling), batchTokens },
  });
  const sharing = { sharePrefix, longFrom: runner.packing.longFrom };
  const dearest = lists.reduce((most, { group }) => Math.max(most, groupCost(group, sharing)), runner.budget);
  await runner.grow(Math.min(dearest, runner.maxBudget));
  const time = async ({ group }: EncodedGroup) => {
    const batches = packBatches([group], { ...runner.packing, sharePrefix });
    const begin = performance.now();
    for (const batch of batches) await runner.pooledStates(batch);
    return performance.now() - begin;
  };
  // Compiles what is not compiled yet, and touches every buffer.
  await time(lists[0]);
  const times: number[] = [];
  for (const list of lists) times.push(await time(list));
  return { times, bytes: sumBytes([...runner.plan]) };
}

/** Lists from the whole file: it may be sorted by length. */
function spreadOver(lists: readonly List[], most: number): List[] {
  const count = Math.min(lists.length, most);
  return Array.from({ length: count }, (_, i) => lists[Math.floor(((i + 0.5) * lists.length) / count)]);
}

/** How many lists can be timed at every place, by what a few took at the deepest. */
function affordable(times: readonly number[], places: number, seconds: number, most: number): number {
  const mean = times.reduce((sum, ms) => sum + ms, 0) / times.length;
  // Layers from the first to the deepest take half of the deepest's time on average; each warms up with one list.
  const count = Math.floor((1000 * seconds) / (mean * places * ROUNDS * 0.5)) - 1;
  return Math.max(Math.min(LEAST_LISTS, most), Math.min(most, count));
}
