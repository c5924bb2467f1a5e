/**
 * Abstaining: a list whose best score stays below a threshold gets no winner. How often that is (coverage is the rest)
 * against how often a winner is not safe (error), and a threshold for an error rate that is asked for.
 *
 * A list is one trial: it is answered wrong where the candidate in its first place is not safe, so a list without a safe
 * candidate is wrong whenever it is answered. Only scores that compare across lists can have a threshold: a pointwise head's.
 */
import { z } from "zod";
import { StratumError } from "../errors.ts";
import { binomialAtMost, binomialUpper, SLACK, trialsNeeded } from "./binomial.ts";
import type { LabelledLists } from "./measures.ts";

/** The first places of B lists. */
export interface FirstPlaces {
  /** (B) the best score of each list. */
  readonly best: Float32Array;
  /** (B) 1 where the candidate that has it (the first of them in a tie, as in a ranking) is not safe. */
  readonly wrong: Uint8Array;
}

/** What a threshold comes to: a list is answered where its best score reaches it. */
export interface CoveragePoint {
  readonly threshold: number;
  readonly answered: number;
  readonly wrong: number;
  /** Answered lists as a share of all. */
  readonly coverage: number;
  /** Wrong ones as a share of the answered; null where none is. */
  readonly error: number | null;
}

export interface AbstainOptions {
  /** The share of answered lists that may be wrong, in (0, 1). */
  readonly error: number;
  /** How sure that is to be, in (0, 1); 0.95 by default. */
  readonly confidence?: number | undefined;
}

const abstainRecord = z.object({
  error: z.number(),
  confidence: z.number(),
  /** Abstain below it; null where no threshold gives the error with this confidence. */
  threshold: z.number().nullable(),
  lists: z.int(),
  answered: z.int(),
  wrong: z.int(),
  coverage: z.number(),
  /** The upper bound of the error that the threshold was accepted with; null without one. */
  upper: z.number().nullable(),
  /** Among so many fixed places the level 1 - confidence is shared. */
  starts: z.int(),
  /** Lists that the error and the confidence need at the very least, all of them answered right. */
  needed: z.int(),
  /** The label from which a candidate counted as safe, where it was noted. */
  safe_from: z.number().optional(),
});

/** A threshold and what it was chosen on; in a scorer's training record as `abstain`. */
export type AbstainRecord = Readonly<z.infer<typeof abstainRecord>>;

const CONFIDENCE = 0.95;
/** Fixed places to begin the search at: with more, each has less of the level; with fewer, one failure early ends more. */
const STARTS = 5;

/**
 * The first places of some lists, all of whose candidates have labels.
 *
 * @param scores - (N) higher is better.
 * @param safeFrom - a candidate with this label or a higher one is safe.
 */
export function firstPlaces(
  scores: ArrayLike<number>,
  { offsets, labels }: LabelledLists,
  lists: readonly number[],
  safeFrom: number,
): FirstPlaces {
  const best = new Float32Array(lists.length);
  const wrong = new Uint8Array(lists.length);
  // Labels are f32: 0.7 as a label is below 0.7 as a number.
  const from = Math.fround(safeFrom);
  for (const [at, b] of lists.entries()) {
    let first = offsets[b];
    for (let i = first + 1; i < offsets[b + 1]; i++) if (scores[i] > scores[first]) first = i;
    best[at] = scores[first];
    wrong[at] = labels[first] >= from ? 0 : 1;
  }
  return { best, wrong };
}

/**
 * The label from which a candidate is safe whatever its list holds: 1 where labels are 0 and 1.
 * @throws StratumError `list/bad-labels` for graded labels without `safeFrom`
 */
export function absoluteSafeFrom(
  { offsets, labels }: LabelledLists,
  lists: readonly number[],
  safeFrom?: number,
): number {
  if (safeFrom !== undefined) return safeFrom;
  for (const b of lists) {
    const graded = labels.subarray(offsets[b], offsets[b + 1]).find((label) => label !== 0 && label !== 1);
    if (graded === undefined) continue;
    throw new StratumError(
      "list/bad-labels",
      `the label ${graded} is a grade: whether a list holds a safe candidate is not said`,
      "give --safe-from: a candidate with that label or a higher one is safe",
    );
  }
  return 1;
}

/** Coverage against error: a point for each distinct best score, from the strictest threshold to the one that answers all. */
export function coverageCurve({ best, wrong }: FirstPlaces): CoveragePoint[] {
  const order = byScore(best);
  const points: CoveragePoint[] = [];
  let failures = 0;
  for (const [at, b] of order.entries()) {
    failures += wrong[b];
    if (at + 1 < order.length && best[order[at + 1]] === best[b]) continue;
    points.push(pointOf(best[b], at + 1, failures, order.length));
  }
  return points;
}

/** What a given threshold comes to. */
export function coverageAt({ best, wrong }: FirstPlaces, threshold: number): CoveragePoint {
  let [answered, failures] = [0, 0];
  for (let b = 0; b < best.length; b++) {
    if (best[b] < threshold) continue;
    answered++;
    failures += wrong[b];
  }
  return pointOf(threshold, answered, failures, best.length);
}

/** The area under the curve: the mean over k of the error of the k best-scored lists, tied lists in a random order. */
export function areaUnderCoverage(curve: readonly CoveragePoint[]): number {
  let [sum, answered, wrong] = [0, 0, 0];
  for (const point of curve) {
    const [more, failures] = [point.answered - answered, point.wrong - wrong];
    for (let k = 1; k <= more; k++) sum += (wrong + (failures * k) / more) / (answered + k);
    ({ answered, wrong } = point);
  }
  return sum / answered;
}

/** At most so many points of a curve, evenly by the lists answered, its ends among them. */
export function thinned(curve: readonly CoveragePoint[], most: number): CoveragePoint[] {
  if (curve.length <= most) return [...curve];
  const all = curve[curve.length - 1].answered;
  const kept = new Set<CoveragePoint>();
  let at = 0;
  for (let i = 0; i < most; i++) {
    const from = 1 + (i * (all - 1)) / (most - 1);
    while (curve[at].answered < from) at++;
    kept.add(curve[at]);
  }
  return [...kept];
}

/**
 * The threshold that answers most lists while, with the asked confidence, at most the asked share of answered lists is wrong.
 *
 * Candidates are the thresholds just above the (k + 1)-th best score: given that score, the k lists above it are a sample of
 * all lists above it, so the bound of Clopper and Pearson holds on them exactly. Trying many thresholds on the same lists
 * would void it. So the tries are in an order that was fixed before: from at most 5 places k, spread evenly, each upwards
 * until the first refusal, each at its share of the level (fixed-sequence testing with several starts, Angelopoulos et al.
 * 2021, "Learn then test", https://arxiv.org/abs/2110.01052). The lists must be independent and like those to come.
 *
 * @throws StratumError `usage/abstain` for an error or a confidence outside (0, 1)
 */
export function chooseThreshold(
  places: FirstPlaces,
  { error, confidence = CONFIDENCE }: AbstainOptions,
): AbstainRecord {
  for (const [name, value] of Object.entries({ error, confidence })) {
    if (value > 0 && value < 1) continue;
    throw new StratumError("usage/abstain", `the ${name} is ${value}`, "give a number above 0 and below 1");
  }
  const { best } = places;
  const order = byScore(best);
  const last = order.length - 1;
  const failures = runningSum(order.map((b) => places.wrong[b]));
  const least = (starts: number) => trialsNeeded(error, 1 - (1 - confidence) / starts);
  let starts = STARTS;
  while (starts > 0 && least(starts) > last) starts--;
  const record = { error, confidence, lists: order.length, starts, needed: least(1) + 1 };
  const level = (1 - confidence) / starts;
  let chosen: { threshold: number; answered: number; wrong: number } | null = null;
  let reached = 0;
  for (let s = 0; s < starts; s++) {
    const from = starts === 1 ? least(1) : Math.round(least(starts) + (s * (last - least(starts))) / (starts - 1));
    // What an earlier start went through, this one would, too.
    if (from <= reached) continue;
    let accepted = -1;
    for (let k = from; k <= last; k++) {
      const below = best[order[k]];
      // Lists tied with the first that is left out are left out.
      let answered = k;
      while (answered > 0 && best[order[answered - 1]] === below) answered--;
      const wrong = failures[answered];
      // More lists and no more failures: no worse than what was accepted.
      if (wrong !== accepted && (answered === 0 || binomialAtMost(wrong, answered, error) > level * SLACK)) break;
      accepted = wrong;
      reached = k;
      if (chosen === null || answered > chosen.answered) chosen = { threshold: nextFloat(below), answered, wrong };
    }
  }
  if (chosen === null) return { ...record, threshold: null, answered: 0, wrong: 0, coverage: 0, upper: null };
  const { threshold, answered, wrong } = chosen;
  const upper = binomialUpper(wrong, answered, 1 - level);
  return { ...record, threshold, answered, wrong, coverage: answered / order.length, upper };
}

/**
 * What a scorer's training record says of abstaining.
 * @returns null where it says nothing
 * @throws StratumError `scorer/bad-config`
 */
export function abstainRecordOf(training: Readonly<Record<string, unknown>>): AbstainRecord | null {
  const found = training["abstain"];
  if (found === undefined || found === null) return null;
  const parsed = abstainRecord.safeParse(found);
  if (parsed.success) return parsed.data;
  throw new StratumError(
    "scorer/bad-config",
    "the scorer's training record has an 'abstain' that is no threshold's record",
    "give a folder that `stratum train` wrote, or take 'abstain' out of its scorer.json",
    parsed.error,
  );
}

/**
 * The threshold that a scorer was trained with.
 * @throws StratumError `scorer/no-threshold`, `scorer/bad-config`
 */
export function recordedThreshold(training: Readonly<Record<string, unknown>>): number {
  const record = abstainRecordOf(training);
  if (record === null) {
    throw new StratumError(
      "scorer/no-threshold",
      "the scorer's record holds no threshold",
      "train with --abstain-error RATE, or give --abstain-below a number (stratum eval shows what each comes to)",
    );
  }
  if (record.threshold !== null) return record.threshold;
  throw new StratumError(
    "scorer/no-threshold",
    `no threshold of this scorer was found that leaves at most ${percent(record.error)} of the answers wrong: ${whyNone(record)}`,
    "train again with a higher --abstain-error or more lists, or give --abstain-below a number",
  );
}

/** Why no threshold was found. */
export function whyNone({ lists, needed, confidence, starts }: AbstainRecord): string {
  return starts === 0
    ? `it takes at least ${needed} lists to say so with ${percent(confidence)} confidence, and there were ${lists}`
    : `on the ${lists} lists none is that good with ${percent(confidence)} confidence`;
}

/** @throws StratumError `scorer/not-pointwise` for a scorer whose scores are comparable inside a list only */
export function checkPointwise(head: string): void {
  if (head === "pointwise") return;
  throw new StratumError(
    "scorer/not-pointwise",
    `a ${head} scorer's scores are comparable inside a list only: no threshold has a meaning for them`,
    "train a pointwise head, with --preset pointwise or few-lists",
  );
}

function percent(share: number): string {
  return `${Number((100 * share).toPrecision(4))}%`;
}

function pointOf(threshold: number, answered: number, wrong: number, all: number): CoveragePoint {
  return { threshold, answered, wrong, coverage: answered / all, error: answered === 0 ? null : wrong / answered };
}

/** Lists by falling best score. */
function byScore(best: Float32Array): number[] {
  return Array.from(best, (_, b) => b).sort((i, j) => best[j] - best[i] || i - j);
}

/** (n + 1) sums of the first 0, 1, ... n. */
function runningSum(values: readonly number[]): number[] {
  const sums = [0];
  for (const [i, value] of values.entries()) sums.push(sums[i] + value);
  return sums;
}

/** The next 32-bit float above: scores are of that type. */
function nextFloat(value: number): number {
  const float = new Float32Array(1);
  const bits = new Int32Array(float.buffer);
  // Adding 0 makes -0 one with 0.
  float[0] = value + 0;
  bits[0] += float[0] < 0 ? -1 : 1;
  return float[0];
}
