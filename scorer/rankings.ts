/** Records of the output: one JSON line a list, in the shape that hosted rerank services return. */

import { StratumError } from "../errors.ts";
import type { Fields, Id, List } from "./lists.ts";

export interface RankedResult {
  /** Position in the input's candidates, from 0. */
  readonly index: number;
  readonly id?: Id;
  readonly relevance_score: number;
  /** The candidate as it was written, with `returnDocuments`. */
  readonly document?: Fields;
}

/** Beside these two, the unknown fields of the list. */
export interface RankingRecord {
  readonly id: Id;
  readonly results: readonly RankedResult[];
  /** With `abstainBelow`: whether the best score stays below it, so that the first place is no answer. */
  readonly abstained?: boolean;
  readonly notes?: RankingNotes;
  readonly [field: string]: unknown;
}

export interface ErrorRecord {
  readonly id: Id;
  readonly error: { readonly code: string; readonly message: string; readonly fix: string };
}

export interface RankingOptions {
  /** Keep the best n; all by default, and when there are fewer. */
  readonly topN?: number | undefined;
  readonly returnDocuments?: boolean | undefined;
  /** A list whose best score is below this has no winner: `abstained`. The results stay. */
  readonly abstainBelow?: number | undefined;
  /** What a reader of the scores must know; written as `notes` where there is any. */
  readonly notes?: RankingNotes | undefined;
}

/** What was unusual about a list's way to its states. */
export interface RankingNotes {
  /** The model has no chat template: the prompt is plain concatenation. */
  readonly template?: "none";
  /** The date that the template's clock showed. */
  readonly date?: string;
  /** Candidates that were cut to the model's length. */
  readonly truncated?: readonly number[];
}

const RESERVED: readonly string[] = ["id", "results", "abstained", "error", "notes"];

/**
 * The record of a ranked list: candidates by falling score, ties by index.
 *
 * The list's unknown fields stand beside `results`. One named `results`, `abstained`, `error` or `notes` would be taken
 * for ours, so it is written as `input_results` and so on; if the line also has a field of that name, that one is kept and
 * the clashing one is left out. (`id` is the list's own.)
 *
 * @param scores - (M) one score a candidate, in the input's order; higher is better.
 * @throws StratumError `state/not-finite` for a NaN or infinite score, `state/score-count` unless there are M,
 *   `usage/bad-top-n` unless `topN` is a positive integer.
 */
export function rankingRecord(list: List, scores: ArrayLike<number>, options: RankingOptions = {}): RankingRecord {
  const { topN = list.candidates.length, returnDocuments = false, abstainBelow } = options;
  checkTopN(topN);
  if (scores.length !== list.candidates.length) {
    throw new StratumError(
      "state/score-count",
      `list ${JSON.stringify(list.id)} has ${list.candidates.length} candidates and ${scores.length} scores`,
      "report this as a bug",
    );
  }
  const results = list.candidates.map((candidate, index): RankedResult => {
    const score = scores[index] ?? Number.NaN;
    if (!Number.isFinite(score)) {
      throw new StratumError(
        "state/not-finite",
        `the score of candidate ${index} of list ${JSON.stringify(list.id)} is ${score}`,
        "run `stratum doctor`; check that model and scorer belong together",
      );
    }
    return {
      index,
      ...(candidate.id === undefined ? {} : { id: candidate.id }),
      relevance_score: score,
      ...(returnDocuments ? { document: candidate.document } : {}),
    };
  });
  results.sort((a, b) => b.relevance_score - a.relevance_score || a.index - b.index);
  return Object.fromEntries([
    ["id", list.id],
    ...passedThrough(list.extra),
    ["results", results.slice(0, topN)],
    ...(abstainBelow === undefined ? [] : [["abstained", results[0].relevance_score < abstainBelow]]),
    ...(Object.keys(options.notes ?? {}).length === 0 ? [] : [["notes", options.notes]]),
  ]) as RankingRecord;
}

/** @throws StratumError `usage/bad-top-n` unless it is undefined or a positive integer */
export function checkTopN(topN: number | undefined): void {
  if (topN === undefined || (Number.isInteger(topN) && topN >= 1)) return;
  throw new StratumError("usage/bad-top-n", `cannot keep the best ${topN}`, "give --top-n a positive whole number");
}

/** The record that stands in a list's place when it cannot be ranked. */
export function errorRecord(id: Id, error: StratumError): ErrorRecord {
  return { id, error: { code: error.code, message: error.message, fix: error.fix } };
}

/** One line of JSONL, newline included. */
export function toJsonLine(record: RankingRecord | ErrorRecord): string {
  return `${JSON.stringify(record)}\n`;
}

function passedThrough(extra: Fields): [string, unknown][] {
  return Object.entries(extra).flatMap(([name, value]): [string, unknown][] => {
    if (!RESERVED.includes(name)) return [[name, value]];
    const moved = `input_${name}`;
    return Object.hasOwn(extra, moved) ? [] : [[moved, value]];
  });
}
