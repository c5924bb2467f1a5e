/** Which lists an evaluation may count: labelled ones whose instruction the scorer has not seen. */
import { z } from "zod";
import { StratumError } from "../errors.ts";
import type { LabelledLists, SafeOptions } from "./measures.ts";

const record = z.object({ train: z.array(z.string()), validation: z.array(z.string()) });

/**
 * The instructions that a scorer was trained with or chosen by, as `instructionKey`s.
 * @param training - a scorer's training record.
 * @returns null where the record does not say.
 * @throws StratumError `scorer/bad-config`
 */
export function seenInstructions(training: Readonly<Record<string, unknown>>): ReadonlySet<string> | null {
  const found = training["instructions"];
  if (found === undefined || found === null) return null;
  const parsed = record.safeParse(found);
  if (parsed.success) return new Set([...parsed.data.train, ...parsed.data.validation]);
  throw new StratumError(
    "scorer/bad-config",
    "the scorer's training record has 'instructions' that are no lists of keys",
    "give a folder that `stratum train` wrote, or take 'instructions' out of its scorer.json",
    parsed.error,
  );
}

export interface DivideOptions extends SafeOptions {
  /** (B) `instructionKey`s, where known. */
  readonly keys?: readonly string[] | undefined;
  readonly seen?: ReadonlySet<string> | null | undefined;
  /** Evaluate lists that were seen, too. */
  readonly includeSeen?: boolean | undefined;
}

/** Lists by what they are good for, as indices. */
export interface DividedLists {
  /** To be evaluated. */
  readonly evaluated: readonly number[];
  /** Labelled, and seen: to fit baselines on. */
  readonly seen: readonly number[];
  /** Lists with a candidate that has no label. */
  readonly unlabelled: number;
  /** Lists whose labels are all alike; with `safeFrom` their candidates count for AUC. */
  readonly noContrast: number;
}

/**
 * Divides lists into those to evaluate, those that were seen and those that say nothing.
 * @throws StratumError `list/no-contrast` without a list whose labels differ, `list/all-seen` where all of them were seen
 */
export function divideLists(
  { offsets, labels }: LabelledLists,
  { keys, seen, includeSeen = false, safeFrom }: DivideOptions = {},
): DividedLists {
  const divided = { evaluated: [] as number[], seen: [] as number[], unlabelled: 0, noContrast: 0 };
  const differing = { unseen: 0, seen: 0 };
  for (let b = 0; b + 1 < offsets.length; b++) {
    const own = labels.subarray(offsets[b], offsets[b + 1]);
    if (own.some(Number.isNaN)) {
      divided.unlabelled++;
      continue;
    }
    const differ = own.some((label) => label !== own[0]);
    if (!differ) divided.noContrast++;
    const isSeen = keys !== undefined && (seen?.has(keys[b]) ?? false);
    if (differ) differing[isSeen ? "seen" : "unseen"]++;
    if (!differ && safeFrom === undefined) continue;
    if (isSeen) divided.seen.push(b);
    if (!isSeen || includeSeen) divided.evaluated.push(b);
  }
  if (differing.unseen + differing.seen === 0) {
    throw new StratumError(
      "list/no-contrast",
      `none of ${offsets.length - 1} lists has candidates of two grades (${divided.unlabelled} with a missing label)`,
      'give lists whose candidates carry labels, "label": 1 for safe and 0 for not, both in one list',
    );
  }
  if (differing.unseen === 0 && !includeSeen) {
    throw new StratumError(
      "list/all-seen",
      `the scorer was trained or chosen with the instructions of all ${differing.seen} labelled lists: what it reaches on them says nothing`,
      "give lists of other instructions, train with --hold-out, or count them all the same with --include-seen",
    );
  }
  return divided;
}

/** Whether a baseline can be fitted on the lists: some list's labels differ. */
export function canFit({ offsets, labels }: LabelledLists, lists: readonly number[]): boolean {
  return lists.some((b) => {
    const own = labels.subarray(offsets[b], offsets[b + 1]);
    return own.some((label) => label !== own[0]);
  });
}
