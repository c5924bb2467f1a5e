/**
 * Measures of a ranking, list by list. Tied scores count as what a random order of them would give on average, exactly:
 * a method gains nothing by tying, and lists of tied scores give what random ranking gives (`randomMeasures`).
 *
 * A list in which no choice is better than another (one candidate, equal labels, a missing label) says nothing about a
 * method: it is left out of the measure and counted.
 */

import { StratumError } from "../errors.ts";

/** Labels of B lists: list b's are offsets[b] .. offsets[b + 1] - 1 of N. A feature source is one. */
export interface LabelledLists {
  /** (B + 1) */
  readonly offsets: Uint32Array;
  /** (N), NaN where a candidate has none. */
  readonly labels: Float32Array;
}

export interface SafeOptions {
  /** A candidate with this label or a higher one is safe; by default one with its list's highest. */
  readonly safeFrom?: number | undefined;
}

export interface MeasureOptions extends SafeOptions {
  /** The depths k of NDCG@k; 1, 3, 5, 10 by default. */
  readonly depths?: readonly number[] | undefined;
}

export type MeasureName = "top1" | "pairwise" | "mrr" | `ndcg@${number}`;

/** (B) a measure, in [0, 1]; NaN for a list that is left out. */
export type ListMeasures = Readonly<Record<MeasureName, Float64Array>>;

/** The mean over the lists that count. */
export interface Summary {
  /** Null where no list counts. */
  readonly mean: number | null;
  readonly lists: number;
  readonly leftOut: number;
}

/** Ranks of tied candidates: `order[start .. end - 1]`. */
type VisitTie = (start: number, end: number) => void;

export const SAFE = 1;
export const UNSAFE = 0;
export const UNKNOWN = -1;

const DEPTHS = [1, 3, 5, 10];

/**
 * Each candidate's class (N): `SAFE`, `UNSAFE` or `UNKNOWN`.
 *
 * With `safeFrom` a class is a candidate's own, unknown where it has no label. Without, it is relative to its list, and
 * unknown in a list with a missing label or with equal ones: [0, 0] holds no safe candidate, and [1, 1] nothing but.
 *
 * @throws StratumError `list/bad-labels`, `usage/bad-safe-from`
 */
export function safeClasses(data: LabelledLists, { safeFrom }: SafeOptions = {}): Int8Array {
  checkLabels(data);
  if (safeFrom !== undefined && Number.isNaN(safeFrom)) {
    throw new StratumError("usage/bad-safe-from", "the lowest safe label is NaN", "give --safe-from a number");
  }
  const { offsets, labels } = data;
  const classes = new Int8Array(labels.length).fill(UNKNOWN);
  for (let b = 0; b + 1 < offsets.length; b++) {
    const grades = labels.subarray(offsets[b], offsets[b + 1]);
    const differ = gradesDiffer(grades);
    if (safeFrom === undefined && !differ) continue;
    // Labels are f32: 0.7 as a label is below 0.7 as a number.
    const from = safeFrom === undefined ? highest(grades) : Math.fround(safeFrom);
    for (let i = 0; i < grades.length; i++) {
      if (!Number.isNaN(grades[i])) classes[offsets[b] + i] = grades[i] >= from ? SAFE : UNSAFE;
    }
  }
  return classes;
}

/**
 * All measures of all lists.
 *
 * `top1`: the best-scored candidate is safe. `mrr`: 1 / rank of the first safe one. Both want a safe and an unsafe
 * candidate. `pairwise`: pairs with different labels in the right order, a tie being half of one. `ndcg@k`: see {@link ndcg}.
 *
 * @param scores - (N) higher is better.
 * @throws StratumError `state/score-count`, `state/not-finite` for a NaN, `list/bad-labels`, `usage/bad-safe-from`, `usage/bad-depth`
 */
export function measureLists(
  scores: ArrayLike<number>,
  data: LabelledLists,
  { safeFrom, depths = DEPTHS }: MeasureOptions = {},
): ListMeasures {
  const classes = safeClasses(data, { safeFrom });
  checkScores(scores, data.labels.length);
  for (const k of depths) {
    if (Number.isInteger(k) && k >= 1) continue;
    throw new StratumError("usage/bad-depth", `NDCG@${k} has no meaning`, "give depths that are whole numbers from 1");
  }
  const lists = data.offsets.length - 1;
  const blank = () => new Float64Array(lists).fill(Number.NaN);
  const measures = { top1: blank(), pairwise: blank(), mrr: blank() };
  const atDepth = depths.map(() => blank());
  for (let b = 0; b < lists; b++) {
    const [from, to] = [data.offsets[b], data.offsets[b + 1]];
    const own = Float64Array.from({ length: to - from }, (_, i) => scores[from + i]);
    const grades = data.labels.subarray(from, to);
    const safe = classes.subarray(from, to);
    if (!gradesDiffer(grades)) continue;
    const order = rank(own);
    measures.pairwise[b] = pairwiseAccuracy(own, grades);
    for (const [at, k] of depths.entries()) atDepth[at][b] = ndcg(own, order, grades, k);
    if (!safe.includes(SAFE) || !safe.includes(UNSAFE)) continue;
    measures.top1[b] = topOne(own, order, safe);
    measures.mrr[b] = reciprocalRank(own, order, safe);
  }
  return { ...measures, ...Object.fromEntries(depths.map((k, at) => [`ndcg@${k}`, atDepth[at]])) };
}

/** What ranking at random reaches, exactly: the expectation over all orders. For top-1, a list's share of safe candidates. */
export function randomMeasures(data: LabelledLists, options: MeasureOptions = {}): ListMeasures {
  return measureLists(new Float64Array(data.labels.length), data, options);
}

/** @param values - (B) one measure, or any part of its lists. */
export function summarise(values: Float64Array): Summary {
  let sum = 0;
  let lists = 0;
  for (const value of values) {
    if (Number.isNaN(value)) continue;
    sum += value;
    lists++;
  }
  return { mean: lists === 0 ? null : sum / lists, lists, leftOut: values.length - lists };
}

/** @throws StratumError `state/score-count`, `state/not-finite` for a NaN (infinite scores can be ranked) */
export function checkScores(scores: ArrayLike<number>, count: number): void {
  if (scores.length !== count) {
    throw new StratumError("state/score-count", `${count} candidates have ${scores.length} scores`, "give one each");
  }
  for (let i = 0; i < count; i++) {
    if (!Number.isNaN(scores[i])) continue;
    throw new StratumError(
      "state/not-finite",
      `the score of candidate ${i} of ${count} is NaN`,
      "score all candidates before measuring",
    );
  }
}

/** Candidates by falling score, ties in any order: (M) indices. */
export function rank(scores: ArrayLike<number>): Uint32Array {
  return Uint32Array.from({ length: scores.length }, (_, i) => i).sort((i, j) =>
    scores[i] > scores[j] ? -1 : scores[i] < scores[j] ? 1 : 0,
  );
}

/** Runs of equal scores, best first. */
export function forEachTie(scores: ArrayLike<number>, order: Uint32Array, visit: VisitTie): void {
  for (let start = 0, end = 0; start < order.length; start = end) {
    do end++;
    while (end < order.length && scores[order[end]] === scores[order[start]]);
    visit(start, end);
  }
}

function topOne(scores: Float64Array, order: Uint32Array, safe: Int8Array): number {
  const best = scores[order[0]];
  const tied = order.filter((i) => scores[i] === best);
  return tied.filter((i) => safe[i] === SAFE).length / tied.length;
}

/**
 * E[1 / rank of the first safe one]. In the first tie of g candidates that holds s > 0 safe ones, the first of them
 * stands at place j with probability s / (g - j) times the product of (g - s - i) / (g - i) over i < j.
 */
function reciprocalRank(scores: Float64Array, order: Uint32Array, safe: Int8Array): number {
  let expected = 0;
  let found = false;
  forEachTie(scores, order, (start, end) => {
    const size = end - start;
    const hits = order.subarray(start, end).filter((i) => safe[i] === SAFE).length;
    if (found || hits === 0) return;
    found = true;
    for (let j = 0, noneYet = 1; j <= size - hits; j++) {
      expected += (noneYet * hits) / (size - j) / (start + j + 1);
      noneYet *= (size - hits - j) / (size - j);
    }
  });
  return expected;
}

function pairwiseAccuracy(scores: Float64Array, grades: Float32Array): number {
  let pairs = 0;
  let right = 0;
  for (let i = 0; i < grades.length; i++) {
    for (let j = 0; j < grades.length; j++) {
      if (grades[i] <= grades[j]) continue;
      pairs++;
      if (scores[i] > scores[j]) right += 1;
      else if (scores[i] === scores[j]) right += 0.5;
    }
  }
  return right / pairs;
}

/**
 * NDCG@k: sum of gain / log2(rank + 1) over the best k, relative to the best order's. A tie gives each of its ranks the
 * mean of its gains, which is the expectation over its orders (McSherry and Najork 2008, "Computing information
 * retrieval performance measures efficiently in the presence of tied scores").
 */
function ndcg(scores: Float64Array, order: Uint32Array, grades: Float32Array, k: number): number {
  const gains = relativeGains(grades);
  const ideal = Float64Array.from(gains).sort().reverse();
  let best = 0;
  for (let r = 0; r < Math.min(k, ideal.length); r++) best += ideal[r] / Math.log2(r + 2);
  let sum = 0;
  forEachTie(scores, order, (start, end) => {
    let gain = 0;
    for (let r = start; r < end; r++) gain += gains[order[r]];
    for (let r = start; r < Math.min(k, end); r++) sum += gain / (end - start) / Math.log2(r + 2);
  });
  return sum / best;
}

/**
 * 2^label - 1, divided by the list's largest, which cancels in NDCG and keeps high grades finite. Where labels are
 * negative (-1 for unsafe) the lowest counts as 0: a negative gain would give a negative ideal.
 */
function relativeGains(grades: Float32Array): Float64Array {
  const base = grades.reduce((least, grade) => Math.min(least, grade), 0);
  const top = highest(grades) - base;
  return Float64Array.from(grades, (grade) =>
    // expm1 keeps small differences of grades; beyond 2^1000 the -1 is lost anyway.
    top > 1000 ? 2 ** (grade - base - top) : Math.expm1((grade - base) * Math.LN2) / Math.expm1(top * Math.LN2),
  );
}

function highest(grades: Float32Array): number {
  return grades.reduce((most, grade) => Math.max(most, grade), Number.NEGATIVE_INFINITY);
}

/** All known, and not all equal. */
function gradesDiffer(grades: Float32Array): boolean {
  return !grades.some(Number.isNaN) && grades.some((grade) => grade !== grades[0]);
}

function checkLabels({ offsets, labels }: LabelledLists): void {
  const ragged =
    offsets[0] === 0 && offsets.at(-1) === labels.length && offsets.every((at, b) => b === 0 || offsets[b - 1] <= at);
  if (!ragged) {
    throw new StratumError(
      "list/bad-labels",
      `${offsets.length} offsets from ${offsets[0]} to ${offsets.at(-1)} do not divide ${labels.length} labels`,
      "give offsets that rise from 0 to the number of labels",
    );
  }
  const infinite = labels.findIndex((label) => Math.abs(label) === Number.POSITIVE_INFINITY);
  if (infinite !== -1) {
    throw new StratumError(
      "list/bad-labels",
      `the label of candidate ${infinite} is ${labels[infinite]} as a 32-bit float`,
      "give labels below 3.4e38",
    );
  }
}
