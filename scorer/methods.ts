/** The methods that stand beside a scorer in an evaluation, as scores: those on its states, and those on the texts. */
import { rawCosine, type StateScorer, scoreStates, trainDifferenceOfMeans, trainLinearProbe } from "./baselines.ts";
import type { Method } from "./evaluate.ts";
import { type FeatureSource, listLength } from "./feature-source.ts";
import type { SafeOptions } from "./measures.ts";
import {
  refusalText,
  scoreTexts,
  shortestText,
  type TextList,
  type TextScorer,
  trainBagOfWords,
} from "./text-baselines.ts";

/** Lists with their states. */
export interface ListStates {
  readonly source: FeatureSource;
  /** (B), equal for lists of one instruction; null: every list is one of its own. */
  readonly clusters: readonly string[] | null;
}

/** Some lists of a file. */
export interface Chosen<T> {
  readonly of: T;
  /** Indices. */
  readonly lists: readonly number[];
}

export interface FitOptions extends SafeOptions {
  /** Of the division that chooses a regression's strength. */
  readonly seed?: number | undefined;
}

/** List by list scores of some lists as the scores of all (N), 0 elsewhere. */
export function spread(
  { offsets, labels }: Pick<FeatureSource, "offsets" | "labels">,
  lists: readonly number[],
  scores: readonly ArrayLike<number>[],
): Float64Array {
  const all = new Float64Array(labels.length);
  for (const [at, b] of lists.entries()) all.set(Array.from(scores[at]), offsets[b]);
  return all;
}

/** A method on states that is ready to score any lists. */
export interface FittedMethod {
  readonly name: string;
  readonly score: StateScorer;
}

/**
 * Raw cosine, and where there are lists to fit on, the difference of means and the linear probe.
 * @param dim D, the width of the states
 * @throws {StratumError} as `FeatureSource.readList` and `safeClasses`
 */
export async function fitStateMethods(
  dim: number,
  fit: Chosen<ListStates> | null,
  options: FitOptions = {},
): Promise<FittedMethod[]> {
  const cosine = { name: "raw cosine", score: rawCosine(dim) };
  if (fit === null) return [cosine];
  const means = await trainDifferenceOfMeans(fit.of.source, fit.lists, options);
  return [cosine, { name: "difference of means", score: means }, await fitProbe("linear probe", fit, options)];
}

/** A linear probe. @throws {StratumError} as `FeatureSource.readList` and `safeClasses` */
export async function fitProbe(name: string, fit: Chosen<ListStates>, options: FitOptions = {}): Promise<FittedMethod> {
  const { source, clusters } = fit.of;
  const { score } = await trainLinearProbe(source, fit.lists, { ...options, clusters: clusters ?? undefined });
  return { name, score };
}

/** Scores lists. @throws {StratumError} as `FeatureSource.readList` */
export async function scoreBy({ name, score }: FittedMethod, { of, lists }: Chosen<ListStates>): Promise<Method> {
  const flat = await scoreStates(of.source, lists, score);
  let end = 0;
  const scores = lists.map((b) => {
    end += listLength(of.source, b);
    return flat.subarray(end - listLength(of.source, b), end);
  });
  return { name, pointwise: true, scores: spread(of.source, lists, scores) };
}

/**
 * {@link fitStateMethods}, scored.
 * @throws {StratumError} as `FeatureSource.readList` and `safeClasses`
 */
export async function stateMethods(
  on: Chosen<ListStates>,
  fit: Chosen<ListStates> | null,
  options: FitOptions = {},
): Promise<Method[]> {
  const methods: Method[] = [];
  for (const fitted of await fitStateMethods(on.of.source.dim, fit, options)) methods.push(await scoreBy(fitted, on));
  return methods;
}

/**
 * A linear probe, fitted on one set of lists and scored on another.
 * @throws {StratumError} as `FeatureSource.readList` and `safeClasses`
 */
export async function probeMethod(
  name: string,
  on: Chosen<ListStates>,
  fit: Chosen<ListStates>,
  options: FitOptions = {},
): Promise<Method> {
  return scoreBy(await fitProbe(name, fit, options), on);
}

/** Lists of texts with their clusters. */
export interface ListTexts {
  readonly texts: readonly TextList[];
  readonly clusters: readonly string[];
}

/**
 * Bag of words where there are lists to fit on; refusal keywords, the shortest.
 * @throws {StratumError} as `safeClasses`
 */
export function fitTextMethods(
  fit: Chosen<ListTexts> | null,
  options: FitOptions = {},
): { readonly name: string; readonly score: TextScorer }[] {
  const fixed = [
    { name: "refusal keywords", score: refusalText },
    { name: "shortest", score: shortestText },
  ];
  if (fit === null) return fixed;
  const texts = fit.lists.map((b) => fit.of.texts[b]);
  const clusters = fit.lists.map((b) => fit.of.clusters[b]);
  return [{ name: "bag of words", score: trainBagOfWords(texts, { ...options, clusters }).score }, ...fixed];
}

/** {@link fitTextMethods}, scored on all lists. @throws {StratumError} as `safeClasses` */
export function textMethods(on: ListTexts, fit: Chosen<ListTexts> | null, options: FitOptions = {}): Method[] {
  return fitTextMethods(fit, options).map(({ name, score }) => ({
    name,
    pointwise: true,
    scores: scoreTexts(on.texts, score),
  }));
}

/** What ranking at random gives on average: equal scores. */
export function randomMethod(candidates: number): Method {
  return { name: "random", pointwise: true, scores: new Float64Array(candidates) };
}
