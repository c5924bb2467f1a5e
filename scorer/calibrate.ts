/** A freshly trained scorer's threshold for abstaining, chosen on lists that gave no gradient. */
import type { Engine } from "../engine/model.ts";
import {
  type AbstainOptions,
  type AbstainRecord,
  absoluteSafeFrom,
  checkPointwise,
  chooseThreshold,
  firstPlaces,
} from "./abstain.ts";
import type { FeatureSource } from "./feature-source.ts";
import type { SafeOptions } from "./measures.ts";
import { spread } from "./methods.ts";
import { streamRandom } from "./sampling.ts";
import { scoreFeatures } from "./scorer.ts";
import type { SavedScorer } from "./scorer-file.ts";

/** What a training leaves for the choice of a threshold. */
export interface CalibrationLists {
  readonly source: FeatureSource;
  /** (B) a list's instruction. */
  readonly keys: readonly string[];
  /** Those that training may look at: not held out. */
  readonly lists: readonly number[];
  readonly trainLists: readonly number[];
  readonly validationLists: readonly number[];
  /** The share of lists that validates. */
  readonly validation: number;
  readonly seed: number;
}

/**
 * The lists to choose on: those that validated, and of the fully labelled ones that teach nothing (all safe, none safe) the
 * same share, so that lists without a safe candidate are as frequent as they come. One list of an instruction: lists that
 * share it are not independent.
 */
export function calibrationLists({
  source: { offsets, labels },
  keys,
  lists,
  trainLists,
  validationLists,
  validation,
  seed,
}: CalibrationLists): number[] {
  const trained = new Set(trainLists.map((b) => keys[b]));
  const validated = new Set(validationLists.map((b) => keys[b]));
  const alike = lists.filter((b) => {
    const own = labels.subarray(offsets[b], offsets[b + 1]);
    return own.length > 0 && own.every((label) => label === own[0]);
  });
  const drawn = (b: number) => !trained.has(keys[b]) && streamRandom("abstain", seed, keys[b])() < validation;
  const chosen = [...validationLists, ...alike.filter((b) => validated.has(keys[b]) || drawn(b))];
  return oneAnInstruction(
    chosen.sort((a, b) => a - b),
    keys,
  );
}

/**
 * Whether a threshold can be chosen at all, before anything is trained.
 * @throws {StratumError} `scorer/not-pointwise`, `list/bad-labels` for graded labels without `safeFrom`
 */
export function checkCalibration(
  head: string,
  source: Pick<FeatureSource, "offsets" | "labels">,
  lists: readonly number[],
  { safeFrom }: SafeOptions = {},
): void {
  checkPointwise(head);
  const { offsets, labels } = source;
  const labelled = lists.filter((b) => !labels.subarray(offsets[b], offsets[b + 1]).some(Number.isNaN));
  absoluteSafeFrom(source, labelled, safeFrom);
}

/** The first list of each instruction. */
export function oneAnInstruction(lists: readonly number[], keys: readonly string[] | null): number[] {
  if (keys === null) return [...lists];
  const seen = new Set<string>();
  return lists.filter((b) => !seen.has(keys[b]) && seen.add(keys[b]));
}

/**
 * Chooses the threshold of a pointwise scorer.
 * @returns the record, with the label from which a candidate counted as safe
 * @throws {StratumError} `scorer/not-pointwise`, `usage/abstain`, `list/bad-labels` for graded labels without `safeFrom`
 */
export async function calibrateScorer(
  engine: Engine,
  { spec, weights, standardise }: Pick<SavedScorer, "spec" | "weights" | "standardise">,
  found: CalibrationLists,
  { safeFrom, ...options }: AbstainOptions & SafeOptions,
): Promise<AbstainRecord> {
  checkPointwise(spec.head);
  const { source } = found;
  const lists = calibrationLists(found);
  const from = absoluteSafeFrom(source, lists, safeFrom);
  const made = { spec, weights, standardisation: standardise };
  const scores = spread(source, lists, await scoreFeatures(engine, made, source, lists));
  return { ...chooseThreshold(firstPlaces(scores, source, lists, from), options), safe_from: from };
}
