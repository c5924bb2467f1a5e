/**
 * AUC and AUPRC over the candidates of all lists together: for scores that are comparable across lists (a pointwise
 * head, a probe), with safe as the positive class.
 */

import {
  checkScores,
  forEachTie,
  type LabelledLists,
  rank,
  SAFE,
  type SafeOptions,
  safeClasses,
  UNKNOWN,
} from "./measures.ts";

export interface PooledValues {
  /** P(a safe candidate's score > an unsafe one's), a tie being half. */
  readonly auc: number;
  /** Average precision: over falling thresholds, the sum of precision x gain in recall. Ties share a threshold. */
  readonly auprc: number;
}

/** Scores sorted once, measured under any weights of the lists. */
export interface PooledMeasure {
  /** B. */
  readonly lists: number;
  /** Lists with at least one candidate that counts. */
  readonly used: number;
  /** Candidates of unknown class, which do not count. */
  readonly leftOut: number;
  /**
   * @param weights - (B) how often each list counts; once by default.
   * @returns null where either class is absent.
   */
  measure(weights?: ArrayLike<number>): PooledValues | null;
}

/**
 * @param scores - (N) higher is safer.
 * @param options - without `safeFrom` the candidates of a list with equal labels do not count, see `safeClasses`.
 * @throws StratumError `state/score-count`, `state/not-finite`, `list/bad-labels`, `usage/bad-safe-from`
 */
export function pooledMeasure(
  scores: ArrayLike<number>,
  data: LabelledLists,
  options: SafeOptions = {},
): PooledMeasure {
  const classes = safeClasses(data, options);
  checkScores(scores, classes.length);
  const { offsets } = data;
  const listOf = new Uint32Array(classes.length);
  for (let b = 0; b + 1 < offsets.length; b++) listOf.fill(b, offsets[b], offsets[b + 1]);
  const order = rank(scores).filter((i) => classes[i] !== UNKNOWN);
  const ends: number[] = [];
  forEachTie(scores, order, (_, end) => ends.push(end));
  const lists = order.map((i) => listOf[i]);
  const safe = Uint8Array.from(order, (i) => (classes[i] === SAFE ? 1 : 0));
  return {
    lists: offsets.length - 1,
    used: new Set(lists).size,
    leftOut: classes.length - order.length,
    measure(weights) {
      let [positives, negatives, area, precisions] = [0, 0, 0, 0];
      let at = 0;
      for (const end of ends) {
        let [up, down] = [0, 0];
        for (; at < end; at++) {
          const weight = weights === undefined ? 1 : weights[lists[at]];
          if (safe[at] === 1) up += weight;
          else down += weight;
        }
        area += down * (positives + up / 2);
        positives += up;
        negatives += down;
        if (up > 0) precisions += (up * positives) / (positives + negatives);
      }
      if (positives === 0 || negatives === 0) return null;
      return { auc: area / (positives * negatives), auprc: precisions / positives };
    },
  };
}
