/** What `stratum eval` prints: tables for people, one object for programs. */
import type { Estimate } from "../scorer/bootstrap.ts";
import type { Evaluation, MethodRow } from "../scorer/evaluate.ts";
import { counted, formatTable } from "./format.ts";

/** `58.3`, ` 100`: percent in four characters, five with a sign. */
function percent(value: number, signed = false): string {
  const rounded = (100 * value).toFixed(1).replace(/^-0\.0$/, "0.0");
  const text = Math.abs(value) > 0.9995 ? rounded.replace(/\.0$/, "") : rounded;
  return signed ? (value < 0 && text !== "0.0" ? text : `+${text}`).padStart(5) : text.padStart(4);
}

/** `58.3 [50.1, 66.0]`, in percent. */
export function interval(estimate: Estimate | null, signed = false): string {
  if (estimate === null) return "-";
  const { mean, low, high } = estimate;
  return `${percent(mean, signed)} [${percent(low, signed)}, ${percent(high, signed)}]`;
}

function plain(estimate: Estimate | null): string {
  return estimate === null ? "-" : percent(estimate.mean).trim();
}

/**
 * `36 lists of 30 instructions, 190 candidates`
 * @param clustered whether it is known which lists share an instruction
 */
export function sizeOf({ lists, instructions, candidates }: Evaluation, clustered: boolean): string {
  const of = clustered ? ` of ${counted(instructions, "instruction")}` : "";
  return `${counted(lists, "list")}${of}, ${counted(candidates, "candidate")}`;
}

/** The methods as rows, in percent; 100 columns at most. */
export function evaluationTable({ rows, depth, reference }: Evaluation): string {
  const header = ["method", "top-1 [95%]", `vs ${reference} [95%]`, "pairwise", "MRR", `NDCG@${depth}`, "AUC"];
  const cells = rows.map(({ name, top1, difference, pairwise, mrr, ndcg, auc }) => [
    name,
    interval(top1),
    name === reference ? "" : interval(difference, true),
    ...[pairwise, mrr, ndcg, auc].map(plain),
  ]);
  return formatTable(header, cells, [1, 2, 3, 4, 5, 6]);
}

function jsonRow({ difference, ...row }: MethodRow): unknown {
  return { ...row, top1_minus_scorer: difference };
}

/** An evaluation as it stands in the JSON object. */
export function jsonEvaluation({
  lists,
  instructions,
  candidates,
  rows,
}: Evaluation): Readonly<Record<string, unknown>> {
  return { lists, instructions, candidates, methods: rows.map(jsonRow) };
}
