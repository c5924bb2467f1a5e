/** The strength of a logistic regression's regularisation, chosen on the training lists only. */

import { seededRandom } from "../kernels/random.ts";
import { fitLogistic, type LogisticModel, type LogisticOptions, logOdds, meanLogLoss } from "./logistic.ts";
import { type Rows, selectRows } from "./matrix-rows.ts";

export interface StrengthOptions extends Omit<LogisticOptions, "l2" | "start"> {
  /** The strengths to choose from. */
  readonly grid?: readonly number[] | undefined;
  /**
   * Parts of the groups, each held out once. 1: a fifth is held out, once. By default 5, and 1 where the matrix has
   * more than 5e7 elements.
   */
  readonly folds?: number | undefined;
  /** Of the division into parts; 0 by default. */
  readonly seed?: number | undefined;
}

/** `loss`: the mean log loss of held-out rows at the chosen strength; null where nothing could be held out. */
export interface ChosenLogistic extends LogisticModel {
  readonly heldOutLoss: number | null;
}

const GRID = [10, 1, 0.1, 1e-2, 1e-3, 1e-4, 1e-5];
const MANY_ELEMENTS = 5e7;
/** Enough to compare strengths. */
const ROUGH = 1e-4;

/**
 * Fits with the strength of the grid that gives the smallest log loss on held-out groups (all rows of one instruction are
 * one group: held out by rows, its other candidates would give the answer away). From strong to weak, each fit starting
 * from the one before, until the loss has risen twice.
 *
 * @param labels - (n) 1 or 0.
 * @param groups - (n) equal for rows of one instruction.
 * @throws StratumError `usage/bad-l2`, `state/not-finite`
 */
export function fitLogisticCrossValidated(
  rows: Rows,
  labels: ArrayLike<number>,
  groups: ArrayLike<string | number>,
  options: StrengthOptions = {},
): ChosenLogistic {
  const { grid = GRID, folds = rows.count * rows.columns > MANY_ELEMENTS ? 1 : 5, seed = 0, ...fitting } = options;
  const strengths = [...grid].sort((a, b) => b - a);
  const parts = divide(groups, folds, seed).map((held) => part(rows, labels, held));
  let best = { l2: strengths[Math.floor(strengths.length / 2)], loss: Number.POSITIVE_INFINITY };
  let previous: (LogisticModel | undefined)[] = [];
  for (let at = 0, risen = 0, before = Number.POSITIVE_INFINITY; at < strengths.length && risen < 2; at++) {
    const l2 = strengths[at];
    previous = parts.map(({ train, trainLabels }, fold) =>
      fitLogistic(train, trainLabels, { ...fitting, l2, tolerance: ROUGH, start: previous[fold] }),
    );
    const loss = parts.reduce(
      (sum, { test, testLabels }, fold) =>
        sum + meanLogLoss(logOdds(test, previous[fold] as LogisticModel), testLabels) * test.count,
      0,
    );
    if (parts.length > 0 && loss < best.loss) best = { l2, loss };
    risen = loss > before ? risen + 1 : 0;
    before = loss;
  }
  const heldOut = parts.reduce((sum, { test }) => sum + test.count, 0);
  return {
    ...fitLogistic(rows, labels, { ...fitting, l2: best.l2 }),
    heldOutLoss: heldOut === 0 ? null : best.loss / heldOut,
  };
}

function part(rows: Rows, labels: ArrayLike<number>, held: ReadonlySet<number>) {
  const all = Array.from({ length: rows.count }, (_, i) => i);
  const [train, test] = [all.filter((i) => !held.has(i)), all.filter((i) => held.has(i))];
  return {
    train: selectRows(rows, train),
    trainLabels: train.map((i) => labels[i]),
    test: selectRows(rows, test),
    testLabels: test.map((i) => labels[i]),
  };
}

/** The rows that each part holds out; none where there is but one group. */
function divide(groups: ArrayLike<string | number>, folds: number, seed: number): Set<number>[] {
  const names = [...new Set(Array.from(groups))];
  if (names.length < 2) return [];
  const random = seededRandom(seed);
  for (let i = names.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [names[i], names[j]] = [names[j], names[i]];
  }
  const parts = Math.min(folds === 1 ? 5 : folds, names.length);
  const partOf = new Map(names.map((name, at) => [name, at % parts]));
  const held = Array.from({ length: folds === 1 ? 1 : parts }, () => new Set<number>());
  for (let i = 0; i < groups.length; i++) held[partOf.get(groups[i]) ?? 0]?.add(i);
  return held;
}
