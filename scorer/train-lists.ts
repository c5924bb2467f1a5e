/** Which lists a training takes, in which order, and what they look like: functions of the lists and the seed. */
import { StratumError } from "../errors.ts";
import { checkLabels, type LossName } from "../kernels/list-loss.ts";
import { listLossTwin } from "../kernels/list-loss-twin.ts";
import { type FeatureSource, listLength } from "./feature-source.ts";
import { type DrawnList, identity, measureStandardisation, type Standardisation } from "./feeder.ts";
import { epochOrder, epochSubList, splitByInstruction, streamRandom } from "./sampling.ts";
import { checkListLength } from "./scorer-spec.ts";
import type { TrainOptions, TrainRun } from "./train-options.ts";

/** Lists that teach: every candidate labelled, and two grades. @throws {StratumError} `list/bad-labels`, `list/no-contrast` */
export function trainableLists(source: FeatureSource, loss: LossName, lists?: readonly number[]): number[] {
  const asked = lists ?? Array.from({ length: source.lists }, (_, b) => b);
  let unlabelled = 0;
  const usable = asked.filter((b) => {
    const labels = source.labels.subarray(source.offsets[b], source.offsets[b + 1]);
    if (labels.some(Number.isNaN)) {
      unlabelled++;
      return false;
    }
    if (labels.every((label) => label === labels[0])) return false;
    checkListLength(labels.length);
    const fault = checkLabels(loss, labels);
    if (fault !== null) {
      throw new StratumError(
        "list/bad-labels",
        `list ${b + 1}: ${fault}`,
        `mend the labels, or choose a --loss that takes them (listnet, ranknet and listmle take any grade)`,
      );
    }
    return true;
  });
  if (usable.length > 0) return usable;
  throw new StratumError(
    "list/no-contrast",
    `none of ${asked.length} lists has candidates of two grades (${unlabelled} with a missing label)`,
    'give lists whose candidates carry labels, "label": 1 for safe and 0 for not, both in one list',
  );
}

/**
 * The statistics that features enter with. With a learned anchor a scale of 0 makes every instruction the same: the
 * projection's bias.
 */
export async function standardisationOf(
  source: FeatureSource,
  lists: readonly number[],
  { standardise, anchor, instructionOffset }: TrainOptions,
): Promise<Standardisation> {
  const { dim } = source;
  const found = standardise ? await measureStandardisation(source, lists) : identity(dim);
  if (anchor === "learned") found.scale.fill(0, 0, dim);
  else if (standardise) for (let i = 0; i < dim; i++) found.mean[i] -= instructionOffset / found.scale[i];
  return found;
}

/**
 * Mean loss of lists whose scores are all equal, what an untrained scorer can be expected to have, and its deviation: sums
 * over long lists make losses that differ by orders of magnitude.
 */
export function chanceLoss(
  source: FeatureSource,
  lists: readonly number[],
  { loss, spec }: TrainOptions,
): { readonly mean: number; readonly deviation: number } {
  let [sum, squares] = [0, 0];
  const longest = lists.reduce((most, b) => Math.max(most, listLength(source, b)), 1);
  // From everywhere: a file may be sorted by length. Fewer long ones: some losses look at every pair.
  const stride = Math.ceil(lists.length / Math.max(8, Math.min(256, 1e7 / longest ** 2)));
  const some = lists.filter((_, i) => i % stride === 0);
  for (const b of some) {
    const m = listLength(source, b);
    const losses = new Float64Array(1);
    const labels = new Float64Array(m + 1);
    labels.set(source.labels.subarray(source.offsets[b], source.offsets[b + 1]), 1);
    listLossTwin(
      { loss },
      {
        cosines: new Float64Array(2 * (m + 1)),
        labels,
        lists: Uint32Array.of(0, m + 1),
        hyper: Float64Array.of(spec.tau, 1),
        losses,
        grads: new Float64Array(m + 1),
        aux: new Float64Array(2 * (m + 1)),
      },
      1,
    );
    sum += losses[0];
    squares += losses[0] ** 2;
  }
  const mean = sum / some.length;
  return { mean, deviation: Math.sqrt(Math.max(0, squares / some.length - mean ** 2)) };
}

/** Labels of some lists, as measures want them. */
export function labelsOf(
  source: FeatureSource,
  lists: readonly number[],
): { offsets: Uint32Array; labels: Float32Array } {
  const offsets = new Uint32Array(lists.length + 1);
  for (const [i, b] of lists.entries()) offsets[i + 1] = offsets[i] + listLength(source, b);
  const labels = new Float32Array(offsets[lists.length]);
  for (const [i, b] of lists.entries())
    labels.set(source.labels.subarray(source.offsets[b], source.offsets[b + 1]), offsets[i]);
  return { offsets, labels };
}

/** Training and validation lists. */
export function splitLists(
  usable: readonly number[],
  { validation, seed }: TrainOptions,
  { instructions }: TrainRun,
): [readonly number[], readonly number[]] {
  if (validation === 0) return [usable, []];
  const keys = usable.map((b) => instructions?.[b] ?? String(b));
  const [train, held] = splitByInstruction(keys, [1 - validation, validation], seed);
  return [train.map((i) => usable[i]), held.map((i) => usable[i])];
}

/** The training lists in an epoch's order. */
export function orderOf(
  lists: readonly number[],
  { batchLists, seed }: TrainOptions,
  epoch: number,
): readonly number[] {
  return batchLists === "all" ? lists : Array.from(epochOrder(lists.length, seed, epoch), (i) => lists[i]);
}

/** The lists of a step, whole or in part. */
export function drawLists(
  source: FeatureSource,
  lists: readonly number[],
  { seed, subLists }: TrainOptions,
  epoch: number,
): DrawnList[] {
  return lists.map((list) => {
    if (subLists === 0) return { list };
    return { list, candidates: partOf(source, list, seed, epoch, subLists) };
  });
}

/** A random part of a list, as often as `share` says. */
export function partOf(
  source: FeatureSource,
  list: number,
  seed: number,
  epoch: number,
  share: number,
): number[] | undefined {
  if (streamRandom("part", seed, epoch, list)() >= share) return undefined;
  const labels = source.labels.subarray(source.offsets[list], source.offsets[list + 1]);
  return Array.from(epochSubList(labels, seed, epoch, list));
}
