/**
 * Baselines on the hidden states that the scorer also gets: what they reach, attention between candidates need not be
 * thanked for. Each is a function from a list's states to its scores, higher is safer; scores are comparable across lists.
 */

import { type FeatureSource, listLength } from "./feature-source.ts";
import { type ChosenLogistic, fitLogisticCrossValidated, type StrengthOptions } from "./logistic-strength.ts";
import { denseRows, standardisation } from "./matrix-rows.ts";
import { SAFE, type SafeOptions, safeClasses, UNKNOWN } from "./measures.ts";

/** (1 + M, D) states of a list, the instruction's first -> (M) scores. */
export type StateScorer = (states: Float32Array) => Float64Array;

export interface ProbeOptions extends SafeOptions, Omit<StrengthOptions, "standardise"> {
  /** (B) lists with equal ids (the instruction, say) are held out together; each by itself by default. */
  readonly clusters?: ArrayLike<string | number> | undefined;
}

export interface LinearProbe {
  readonly score: StateScorer;
  readonly model: ChosenLogistic;
}

/** Candidates of known class of the training lists. */
interface Training {
  /** n views of (D), one a candidate. */
  readonly rows: readonly Float32Array[];
  /** (n) 1 safe, 0 not. */
  readonly labels: readonly number[];
  /** (n) the list. */
  readonly lists: readonly number[];
}

/**
 * Linear probe: logistic regression on the response states, standardised by the training rows' mean and deviation. Its
 * strength is chosen by cross-validation over the given lists. Reads them into memory, 4 D bytes a candidate.
 *
 * @param lists - indices of the training lists. Candidates of unknown class (see `safeClasses`) are not trained on.
 * @throws StratumError as `FeatureSource.readList` and `safeClasses`
 */
export async function trainLinearProbe(
  source: FeatureSource,
  lists: ArrayLike<number>,
  options: ProbeOptions = {},
): Promise<LinearProbe> {
  const { clusters, safeFrom, ...fitting } = options;
  const { rows, labels, lists: ofList } = await readTraining(source, lists, { safeFrom });
  const matrix = denseRows(rows.length, source.dim, (i) => rows[i]);
  const groups = clusters === undefined ? ofList : ofList.map((b) => clusters[b]);
  const model = fitLogisticCrossValidated(matrix, labels, groups, {
    ...fitting,
    standardise: standardisation(matrix),
  });
  return { score: projection(source.dim, model.weights, model.bias), model };
}

/**
 * Difference of means: the projection on mean(safe) - mean(unsafe) of the standardised response states.
 *
 * The means are over all candidates of the lists, as the field takes them (Marks and Tegmark 2024, "The geometry of
 * truth"): inside a list a mean is of one or two states, and a list of one class would not count.
 *
 * @param lists - indices of the training lists. Without candidates of both classes all scores are 0.
 * @throws StratumError as `FeatureSource.readList` and `safeClasses`
 */
export async function trainDifferenceOfMeans(
  source: FeatureSource,
  lists: ArrayLike<number>,
  options: SafeOptions = {},
): Promise<StateScorer> {
  const { rows, labels } = await readTraining(source, lists, options);
  const weights = new Float64Array(source.dim);
  const safe = labels.reduce((sum, label) => sum + label, 0);
  const unsafe = labels.length - safe;
  if (safe === 0 || unsafe === 0) return projection(source.dim, weights, 0);
  const matrix = denseRows(rows.length, source.dim, (i) => rows[i]);
  const { mean, deviation } = standardisation(matrix);
  for (const [i, label] of labels.entries()) matrix.addTo(i, label === 1 ? 1 / safe : -1 / unsafe, weights);
  let bias = 0;
  for (let j = 0; j < weights.length; j++) {
    // Once for the direction, once for the state that is projected on it.
    weights[j] /= deviation[j] ** 2;
    bias -= weights[j] * mean[j];
  }
  return projection(source.dim, weights, bias);
}

/** Raw cosine between the instruction's state and each response's; 0 where one of them is zero. Nothing is trained. */
export function rawCosine(dim: number): StateScorer {
  return (states) =>
    Float64Array.from({ length: states.length / dim - 1 }, (_, i) => {
      let [product, inst, resp] = [0, 0, 0];
      for (let j = 0; j < dim; j++) {
        const [a, b] = [states[j], states[(i + 1) * dim + j]];
        product += a * b;
        inst += a * a;
        resp += b * b;
      }
      return inst === 0 || resp === 0 ? 0 : product / Math.sqrt(inst) / Math.sqrt(resp);
    });
}

/**
 * Scores of the given lists, one list after the other.
 *
 * @throws StratumError as `FeatureSource.readList`
 */
export async function scoreStates(
  source: FeatureSource,
  lists: ArrayLike<number>,
  score: StateScorer,
): Promise<Float64Array> {
  const scores: number[] = [];
  for (const b of Array.from(lists)) scores.push(...score(await readStates(source, b)));
  return Float64Array.from(scores);
}

/** Scores weights . state + bias. */
function projection(dim: number, weights: Float64Array, bias: number): StateScorer {
  return (states) => {
    const { count, dot } = denseRows(states.length / dim - 1, dim, (i) =>
      states.subarray((i + 1) * dim, (i + 2) * dim),
    );
    return Float64Array.from({ length: count }, (_, i) => dot(i, weights) + bias);
  };
}

async function readTraining(source: FeatureSource, lists: ArrayLike<number>, options: SafeOptions): Promise<Training> {
  const classes = safeClasses(source, options);
  const training = { rows: [] as Float32Array[], labels: [] as number[], lists: [] as number[] };
  for (const b of Array.from(lists)) {
    const known = classes.subarray(source.offsets[b], source.offsets[b + 1]);
    if (known.every((of) => of === UNKNOWN)) continue;
    const states = await readStates(source, b);
    for (const [i, of] of known.entries()) {
      if (of === UNKNOWN) continue;
      training.rows.push(states.subarray((i + 1) * source.dim, (i + 2) * source.dim));
      training.labels.push(of === SAFE ? 1 : 0);
      training.lists.push(b);
    }
  }
  return training;
}

async function readStates(source: FeatureSource, b: number): Promise<Float32Array> {
  const states = new Float32Array((1 + listLength(source, b)) * source.dim);
  await source.readList(b, states);
  return states;
}
