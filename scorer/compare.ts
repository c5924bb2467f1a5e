/** Two ways to rank the same lists, compared list by list. */
import { type BootstrapOptions, bootstrapDifference, bootstrapMean, type Estimate } from "./bootstrap.ts";
import { type LabelledLists, type ListMeasures, measureLists, type SafeOptions } from "./measures.ts";

export const COMPARED = ["top1", "pairwise", "mrr"] as const;
export type ComparedMeasure = (typeof COMPARED)[number];

export type Verdict = "above" | "below" | "no significant difference";

/** A measure of both, over the lists that count, and a minus b, paired. */
export interface ComparedRow {
  readonly measure: ComparedMeasure;
  /** Null where no list counts. */
  readonly a: Estimate | null;
  readonly b: Estimate | null;
  readonly difference: Estimate | null;
  /** Of a; null where no list counts. */
  readonly verdict: Verdict | null;
}

/** A list whose first place is safe under one and not under the other; with ties, safe more often. */
export interface Flip {
  /** Index of the list. */
  readonly list: number;
  readonly right: "a" | "b";
}

export interface Comparison {
  /** In the order of {@link COMPARED}. */
  readonly rows: readonly ComparedRow[];
  /** In the order of the lists. */
  readonly flips: readonly Flip[];
  /** Lists that count for top-1, and of those, where both are right and where neither is (ties not counted). */
  readonly lists: number;
  readonly bothRight: number;
  readonly bothWrong: number;
}

export interface CompareOptions extends SafeOptions, BootstrapOptions {}

/**
 * Compares two sets of scores of the same lists. The interval is that of the mean paired difference, by the bootstrap over
 * clusters (instructions).
 *
 * @param a - (N) higher is better.
 * @param b - (N)
 * @throws StratumError as `measureLists` and `bootstrapMean`
 */
export function compareScores(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  data: LabelledLists,
  { safeFrom, ...draws }: CompareOptions = {},
): Comparison {
  const [first, second] = [a, b].map((scores) => measureLists(scores, data, { safeFrom, depths: [] })) as [
    ListMeasures,
    ListMeasures,
  ];
  const rows = COMPARED.map((measure): ComparedRow => {
    const difference = bootstrapDifference(first[measure], second[measure], draws);
    return {
      measure,
      a: bootstrapMean(first[measure], draws),
      b: bootstrapMean(second[measure], draws),
      difference,
      verdict: difference && verdictOf(difference),
    };
  });
  const flips: Flip[] = [];
  let [lists, bothRight, bothWrong] = [0, 0, 0];
  for (const [list, own] of first.top1.entries()) {
    const other = second.top1[list];
    if (Number.isNaN(own) || Number.isNaN(other)) continue;
    lists++;
    if (own !== other) flips.push({ list, right: own > other ? "a" : "b" });
    else if (own === 1) bothRight++;
    else if (own === 0) bothWrong++;
  }
  return { rows, flips, lists, bothRight, bothWrong };
}

/** What an interval says: its sign, where it does not hold 0. */
export function verdictOf({ low, high }: Estimate): Verdict {
  return low > 0 ? "above" : high < 0 ? "below" : "no significant difference";
}
