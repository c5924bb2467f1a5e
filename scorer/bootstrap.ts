/**
 * 95% intervals by the percentile bootstrap over lists: candidates of one list are not independent, lists are. Lists
 * with the same instruction are not either; given as one cluster, they are drawn together.
 *
 * The interval is about new instructions, not about new training runs. Of a single cluster it is a point: nothing in it
 * says how much another would differ.
 */

import { StratumError } from "../errors.ts";
import { seededRandom } from "../kernels/random.ts";
import type { PooledMeasure, PooledValues } from "./pooled-measures.ts";

export interface Estimate {
  readonly mean: number;
  readonly low: number;
  readonly high: number;
  /** Lists that count. */
  readonly lists: number;
}

export interface BootstrapOptions {
  /** 2000 by default. */
  readonly samples?: number | undefined;
  /** 0 by default; equal seeds draw equal lists. */
  readonly seed?: number | undefined;
  /** 0.95 by default. */
  readonly level?: number | undefined;
  /** (B) lists with equal ids (the instruction, say) are drawn together; each by itself by default. */
  readonly clusters?: ArrayLike<string | number> | undefined;
}

export interface PooledEstimates {
  readonly auc: Estimate;
  readonly auprc: Estimate;
}

/**
 * The mean of a per-list measure.
 *
 * @param values - (B), NaN for lists that do not count.
 * @returns null where no list counts.
 * @throws StratumError `usage/bad-bootstrap`
 */
export function bootstrapMean(values: Float64Array, options: BootstrapOptions = {}): Estimate | null {
  const counted = indicesWhere(values.length, (b) => !Number.isNaN(values[b]));
  if (counted.length === 0) return null;
  const { members, size } = clustersOf(counted, values.length, options.clusters);
  const sums = new Float64Array(size);
  const counts = new Float64Array(size);
  for (const [at, b] of counted.entries()) {
    sums[members[at]] += values[b];
    counts[members[at]]++;
  }
  const means: number[] = [];
  resample(size, options, (drawn) => {
    let [sum, count] = [0, 0];
    for (const cluster of drawn) {
      sum += sums[cluster];
      count += counts[cluster];
    }
    means.push(sum / count);
  });
  const total = counted.reduce((sum, b) => sum + values[b], 0);
  return estimate(total / counted.length, means, counted.length, options);
}

/**
 * The mean of a - b, paired: over the lists that count for both.
 *
 * @param a - (B)
 * @param b - (B)
 * @throws StratumError `usage/bad-bootstrap`
 */
export function bootstrapDifference(a: Float64Array, b: Float64Array, options: BootstrapOptions = {}): Estimate | null {
  if (a.length !== b.length) {
    throw bad(`${a.length} and ${b.length} lists cannot be paired`, "measure both methods on the same lists");
  }
  return bootstrapMean(
    a.map((value, at) => value - b[at]),
    options,
  );
}

/**
 * AUC and AUPRC, with whole lists drawn; or, with `minus`, how much larger they are than another method's on the same
 * lists. Samples without both classes are left out.
 *
 * @returns null where either class is absent.
 * @throws StratumError `usage/bad-bootstrap`
 */
export function bootstrapPooled(
  pooled: PooledMeasure,
  options: BootstrapOptions = {},
  minus?: PooledMeasure,
): PooledEstimates | null {
  if (minus !== undefined && minus.lists !== pooled.lists) {
    throw bad(`${pooled.lists} and ${minus.lists} lists cannot be paired`, "measure both methods on the same lists");
  }
  const values = (weights?: Float64Array): PooledValues | null => {
    const own = pooled.measure(weights);
    const other = minus === undefined ? { auc: 0, auprc: 0 } : minus.measure(weights);
    return own && other && { auc: own.auc - other.auc, auprc: own.auprc - other.auprc };
  };
  const whole = values();
  if (whole === null) return null;
  const all = indicesWhere(pooled.lists, () => true);
  const { members, size } = clustersOf(all, pooled.lists, options.clusters);
  const times = new Float64Array(size);
  const weights = new Float64Array(pooled.lists);
  const samples: PooledValues[] = [];
  resample(size, options, (drawn) => {
    times.fill(0);
    for (const cluster of drawn) times[cluster]++;
    for (let b = 0; b < weights.length; b++) weights[b] = times[members[b]];
    const value = values(weights);
    if (value !== null) samples.push(value);
  });
  const of = (name: keyof PooledValues) =>
    estimate(
      whole[name],
      samples.map((sample) => sample[name]),
      pooled.used,
      options,
    );
  return { auc: of("auc"), auprc: of("auprc") };
}

/** Calls `visit` with `size` clusters drawn with replacement, once a sample; the array is used again. */
function resample(size: number, options: BootstrapOptions, visit: (drawn: Uint32Array) => void): void {
  const { samples = 2000, seed = 0 } = options;
  if (!Number.isInteger(samples) || samples < 1) throw bad(`${samples} samples`, "draw a whole number from 1");
  const random = seededRandom(seed);
  const drawn = new Uint32Array(size);
  for (let s = 0; s < samples; s++) {
    for (let at = 0; at < size; at++) drawn[at] = Math.floor(random() * size);
    visit(drawn);
  }
}

function estimate(mean: number, samples: readonly number[], lists: number, options: BootstrapOptions): Estimate {
  const { level = 0.95 } = options;
  if (!(level > 0 && level < 1)) throw bad(`a level of ${level}`, "give a level between 0 and 1, 0.95 say");
  const sorted = Float64Array.from(samples).sort();
  if (sorted.length === 0) return { mean, low: mean, high: mean, lists };
  return { mean, low: quantile(sorted, (1 - level) / 2), high: quantile(sorted, (1 + level) / 2), lists };
}

/** Linear between the two nearest, as NumPy's default. */
function quantile(sorted: Float64Array, share: number): number {
  const place = share * (sorted.length - 1);
  const low = sorted[Math.floor(place)];
  return low + (sorted[Math.ceil(place)] - low) * (place - Math.floor(place));
}

/** The cluster of each list of `lists`, numbered from 0. */
function clustersOf(
  lists: readonly number[],
  count: number,
  ids: BootstrapOptions["clusters"],
): { readonly members: Uint32Array; readonly size: number } {
  if (ids !== undefined && ids.length !== count) {
    throw bad(`${ids.length} cluster ids for ${count} lists`, "give one id a list");
  }
  const numbers = new Map<string | number, number>();
  const members = Uint32Array.from(lists, (b) => {
    const id = ids === undefined ? b : ids[b];
    const number = numbers.get(id) ?? numbers.size;
    numbers.set(id, number);
    return number;
  });
  return { members, size: numbers.size };
}

function indicesWhere(count: number, holds: (b: number) => boolean): number[] {
  return Array.from({ length: count }, (_, b) => b).filter(holds);
}

function bad(what: string, fix: string): StratumError {
  return new StratumError("usage/bad-bootstrap", what, fix);
}
