/** What `stratum compare` prints. */
import type { ComparedMeasure, Comparison } from "../scorer/compare.ts";
import type { Id } from "../scorer/lists.ts";
import type { LabelledLists } from "../scorer/measures.ts";
import type { EvalFlags } from "./eval-measure.ts";
import { interval } from "./eval-output.ts";
import { counted, formatTable, plainText } from "./format.ts";
import { styled } from "./terminal.ts";

/** A candidate in the first place. */
export interface First {
  readonly index: number;
  readonly id: Id | null;
  readonly label: number | null;
  readonly text: string | null;
}

/** What the numbers are about. */
export interface Sides {
  /** Of a and b, as they were given. */
  readonly names: readonly [string, string];
  /** (B) */
  readonly ids: readonly Id[];
  /** (B) the first places of a and b. */
  readonly first: readonly (readonly [First, First])[];
  /** (B) what is asked, where known. */
  readonly instructions: readonly (string | null)[];
}

const NAMES: Readonly<Record<ComparedMeasure, string>> = { top1: "top-1", pairwise: "pairwise", mrr: "MRR" };

/** As typed. */
export interface CompareFlags extends Omit<EvalFlags, "scorer"> {
  readonly flips?: boolean;
}

/** Two ways to rank, as scores of the same lists. */
export interface Compared {
  readonly data: LabelledLists;
  readonly a: ArrayLike<number>;
  readonly b: ArrayLike<number>;
  /** (B), equal for lists of one instruction; null: not known. */
  readonly clusters: readonly string[] | null;
  readonly sides: Sides;
  /** Lists that were left out, by why. */
  readonly leftOut: Readonly<Record<string, number>>;
}

/** Both measured, their difference, and what it says in words. */
export function comparisonTable({ names, ids }: Sides, found: Comparison, instructions: number | null): string {
  const rows = found.rows.map(({ measure, a, b, difference, verdict }) => [
    NAMES[measure],
    interval(a),
    interval(b),
    interval(difference, true),
    verdict === null ? "-" : verdict === "no significant difference" ? verdict : `a is ${verdict} b`,
  ]);
  const over = instructions === null ? "lists" : counted(instructions, "instruction");
  const [top1] = found.rows;
  const points = (value: number) => `${Math.abs(100 * value).toFixed(1)} points`;
  const { verdict, difference } = top1;
  const words =
    difference === null || verdict === null
      ? "No list has a safe and an unsafe candidate: top-1 says nothing."
      : verdict === "no significant difference"
        ? `No significant difference in top-1: a is ${points(difference.mean)} ${difference.mean < 0 ? "below" : "above"} b, and the interval holds 0.`
        : `a is ${verdict} b in top-1, by ${points(difference.mean)}.`;
  return [
    `a  ${plainText(names[0])}`,
    `b  ${plainText(names[1])}`,
    styled("bold", `${counted(ids.length, "list")}; measures in %, intervals over ${over}`),
    formatTable(["measure", "a [95%]", "b [95%]", "a - b [95%]", ""], rows, [1, 2, 3]),
    words,
  ].join("\n");
}

/** The lists that flipped, one a line. */
export function flipLines({ ids, first, instructions }: Sides, found: Comparison, most: number): string {
  const { flips, lists, bothRight, bothWrong } = found;
  const of = (side: "a" | "b") => flips.filter(({ right }) => right === side).length;
  const head = `${counted(flips.length, "list")} of ${lists} flipped: a right ${of("a")}, b right ${of("b")}; both right ${bothRight}, both wrong ${bothWrong}`;
  const shown = flips.slice(0, most).map(({ list, right }) => {
    const [a, b] = first[list].map(({ index, id }) => (id === null ? `#${index}` : plainText(String(id), 20)));
    return [
      `${right} right`,
      plainText(String(ids[list]), 40),
      `a: ${a}`,
      `b: ${b}`,
      plainText(instructions[list] ?? "", 60),
    ];
  });
  const rest = flips.length - shown.length;
  return [
    "",
    styled("bold", head),
    ...(shown.length === 0 ? [] : [formatTable(["", "list", "first", "", ""], shown)]),
    ...(rest > 0 ? [`... and ${rest} more (--flips)`] : []),
    "",
  ].join("\n");
}

/** As it stands in the JSON object. */
export function jsonComparison(
  { names, ids, first }: Sides,
  { rows, flips, bothRight, bothWrong }: Comparison,
  instructions: number | null,
  leftOut: Readonly<Record<string, number>>,
): unknown {
  const place = ({ index, id, label }: First) => ({ index, id, label });
  return {
    ...{ a: names[0], b: names[1], lists: ids.length, instructions, left_out: leftOut, measures: rows },
    ...{ both_right: bothRight, both_wrong: bothWrong },
    flips: flips.map(({ list, right }) => {
      const [a, b] = first[list];
      return { id: ids[list], right, a: place(a), b: place(b) };
    }),
  };
}
