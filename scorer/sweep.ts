/**
 * Methods by layer: trained on one part of the lists, measured on the rest, over several seeds that split them anew. Each
 * method sees the same splits, so that differences are paired.
 */
import type { Engine } from "../engine/model.ts";
import { bootstrapDifference, bootstrapMean, type Estimate } from "./bootstrap.ts";
import type { FeatureSource } from "./feature-source.ts";
import { measureLists, randomMeasures } from "./measures.ts";
import { probeMethod, spread, stateMethods, textMethods } from "./methods.ts";
import { splitByInstruction } from "./sampling.ts";
import { scoreFeatures } from "./scorer.ts";
import type { TextList } from "./text-baselines.ts";
import { type AnchoredOptions, trainAnchored } from "./train-anchors.ts";

export interface SweepLayer {
  readonly layer: number;
  readonly source: FeatureSource;
  /** The same lists' states from the same architecture with random weights: a probe of them is the control. */
  readonly control?: FeatureSource | undefined;
}

export interface SweepOptions {
  readonly seeds: readonly number[];
  /** Share of the lists that is measured, by instruction. */
  readonly test: number;
  /** Scorers to train, by name. The seed is the split's; the width of the states the layer's. */
  readonly scorers: Readonly<Record<string, Omit<AnchoredOptions, "seed">>>;
  readonly signal?: AbortSignal | undefined;
  /** After each layer of each seed. */
  readonly onCell?: ((seed: number, layer: number | null) => void) | undefined;
}

/** What a method reached with a seed. */
export interface SweepCell {
  readonly method: string;
  /** Null for methods that look at texts alone. */
  readonly layer: number | null;
  readonly seed: number;
  /** Of the lists measured: the list's index. */
  readonly lists: readonly number[];
  /** Top-1 of each, NaN where it is left out. */
  readonly top1: Float64Array;
}

/** A method at a layer over all seeds. */
export interface SweepSummary {
  readonly method: string;
  readonly layer: number | null;
  /** Over lists and seeds; the interval by instruction. */
  readonly top1: Estimate | null;
  /** Of the seeds' means. */
  readonly deviation: number;
  readonly seeds: readonly number[];
}

/** Lists that can be measured: labelled, with two grades. */
function usable({ offsets, labels }: FeatureSource): number[] {
  return Array.from({ length: offsets.length - 1 }, (_, b) => b).filter((b) => {
    const own = labels.subarray(offsets[b], offsets[b + 1]);
    return !own.some(Number.isNaN) && own.some((label) => label !== own[0]);
  });
}

/**
 * Runs a sweep.
 * @param keys (B) equal for lists of one instruction
 * @throws {StratumError} as `trainAnchored`, `splitByInstruction` and the methods
 */
export async function* sweep(
  engine: Engine,
  layers: readonly SweepLayer[],
  texts: readonly TextList[],
  keys: readonly string[],
  options: SweepOptions,
): AsyncGenerator<SweepCell> {
  const [{ source: any }] = layers;
  const lists = usable(any);
  for (const seed of options.seeds) {
    const [train, test] = splitByInstruction(
      lists.map((b) => keys[b]),
      [1 - options.test, options.test],
      seed,
    ).map((part) => part.map((i) => lists[i]));
    const cell = (method: string, layer: number | null, scores: ArrayLike<number>): SweepCell => {
      const { top1 } = measureLists(scores, any);
      return { method, layer, seed, lists: test, top1: Float64Array.from(test, (b) => top1[b]) };
    };
    const { top1 } = randomMeasures(any);
    yield { method: "random", layer: null, seed, lists: test, top1: Float64Array.from(test, (b) => top1[b]) };
    const onTexts = { texts, clusters: keys };
    for (const { name, scores } of textMethods(onTexts, { of: onTexts, lists: train }, { seed }))
      yield cell(name, null, scores);
    options.onCell?.(seed, null);
    for (const { layer, source, control } of layers) {
      if (options.signal?.aborted) return;
      const of = { source, clusters: keys };
      for (const { name, scores } of await stateMethods({ of, lists: test }, { of, lists: train }, { seed }))
        yield cell(name, layer, scores);
      if (control !== undefined) {
        const drawn = { source: control, clusters: keys };
        const method = await probeMethod(
          "linear probe, random weights",
          { of: drawn, lists: test },
          { of: drawn, lists: train },
          { seed },
        );
        yield cell(method.name, layer, method.scores);
      }
      for (const [name, recipe] of Object.entries(options.scorers)) {
        const spec = { ...recipe.spec, dim: source.dim };
        const run = { instructions: keys, lists: train, signal: options.signal };
        const trained = await trainAnchored(engine, source, { ...recipe, spec, seed }, () => run);
        if (trained.interrupted) return;
        const { weights, standardisation } = trained;
        const scores = await scoreFeatures(engine, { spec, weights, standardisation }, source, test);
        yield cell(name, layer, spread(source, test, scores));
      }
      options.onCell?.(seed, layer);
    }
  }
}

/** Mean top-1 of every method at every layer, in the order of their appearance. */
export function summariseSweep(cells: readonly SweepCell[], keys: readonly string[]): SweepSummary[] {
  const groups = new Map<string, SweepCell[]>();
  for (const cell of cells) {
    const name = JSON.stringify([cell.method, cell.layer]);
    groups.set(name, [...(groups.get(name) ?? []), cell]);
  }
  return [...groups.values()].map((own) => {
    const means = own.map(({ top1 }) => meanOf(top1));
    const mean = meanOf(means);
    const { values, clusters } = pooled(own, keys);
    return {
      method: own[0].method,
      layer: own[0].layer,
      top1: bootstrapMean(values, { clusters }),
      deviation: Math.sqrt(means.reduce((sum, value) => sum + (value - mean) ** 2, 0) / Math.max(1, means.length - 1)),
      seeds: own.map(({ seed }) => seed),
    };
  });
}

/** The paired difference in top-1 of two methods at their layers, over all seeds, by instruction. */
export function compareCells(
  a: readonly SweepCell[],
  b: readonly SweepCell[],
  keys: readonly string[],
): Estimate | null {
  const [first, second] = [pooled(a, keys), pooled(b, keys)];
  return bootstrapDifference(first.values, second.values, { clusters: first.clusters });
}

function pooled(cells: readonly SweepCell[], keys: readonly string[]): { values: Float64Array; clusters: string[] } {
  return {
    values: Float64Array.from(cells.flatMap(({ top1 }) => [...top1])),
    clusters: cells.flatMap(({ lists }) => lists.map((b) => keys[b])),
  };
}

function meanOf(values: ArrayLike<number>): number {
  const finite = Array.from(values).filter(Number.isFinite);
  return finite.reduce((sum, value) => sum + value, 0) / Math.max(1, finite.length);
}
