/** Exact bounds on a rate from counted failures. */
import { StratumError } from "../errors.ts";

/** Halvings of [0, 1]: to the last bit of a double. */
const HALVINGS = 60;
/** Rounding of a probability, relative: one that equals a level does not exceed it. */
export const SLACK = 1 + 1e-9;

/**
 * P(X <= failures) of X ~ Binomial(trials, rate), summed in logarithms: (1 - rate)^trials underflows where there are many.
 *
 * @param rate - in [0, 1].
 */
export function binomialAtMost(failures: number, trials: number, rate: number): number {
  if (failures >= trials || rate <= 0) return 1;
  if (rate >= 1) return 0;
  const odds = Math.log(rate) - Math.log1p(-rate);
  let term = trials * Math.log1p(-rate);
  const terms = [term];
  for (let i = 0; i < failures; i++) {
    term += Math.log((trials - i) / (i + 1)) + odds;
    terms.push(term);
  }
  const largest = terms.reduce((most, each) => Math.max(most, each), Number.NEGATIVE_INFINITY);
  const sum = terms.reduce((all, each) => all + Math.exp(each - largest), 0);
  return Math.min(1, Math.exp(largest) * sum);
}

/**
 * The upper end of the one-sided interval of Clopper and Pearson (1934): the rate at which so few failures have the
 * probability 1 - confidence. The true rate lies above it in at most that share of experiments, whatever it is.
 *
 * @param confidence - in (0, 1), 0.95 say.
 * @returns 1 where nothing was tried.
 * @throws StratumError `usage/abstain` unless 0 <= failures <= trials are whole numbers
 */
export function binomialUpper(failures: number, trials: number, confidence: number): number {
  if (!Number.isInteger(failures) || !Number.isInteger(trials) || failures < 0 || failures > trials) {
    throw new StratumError(
      "usage/abstain",
      `${failures} failures of ${trials}`,
      "give whole numbers, the first at most the second",
    );
  }
  if (failures === trials) return 1;
  let [low, high] = [0, 1];
  for (let i = 0; i < HALVINGS; i++) {
    const middle = (low + high) / 2;
    if (binomialAtMost(failures, trials, middle) > 1 - confidence) low = middle;
    else high = middle;
  }
  return high;
}

/** Trials without a failure that are needed before the rate is below `rate` with this confidence: ln(1 - confidence) / ln(1 - rate). */
export function trialsNeeded(rate: number, confidence: number): number {
  const trials = Math.ceil(Math.log(1 - confidence) / Math.log1p(-rate));
  // The quotient may be rounded to either side of a whole number.
  return binomialAtMost(0, trials - 1, rate) <= (1 - confidence) * SLACK ? trials - 1 : trials;
}
