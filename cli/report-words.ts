/** How a report's numbers, methods and places are written, everywhere alike. */
import type { Report, ReportMethod, ReportRow } from "../scorer/report-data.ts";
import { numberCell, type Series, type ShownCell } from "./document.ts";

export type Estimate = NonNullable<ReportRow["top1"]>;
/** Which states were read: null for a method that reads texts alone. */
export interface Place {
  readonly layers: readonly number[] | null;
  readonly pooling: string | null;
}

/** `63.5` */
export function percent(value: number): string {
  return (100 * value).toFixed(1);
}

/** `63.5% (59.0 to 68.1)` */
export function withInterval({ mean, low, high }: Estimate): string {
  return `${percent(mean)}% (${percent(low)} to ${percent(high)})`;
}

/** A number of about three digits. */
export function threeDigits(value: number): string {
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

/** A share as a cell, or a dash. */
export function percentCell(estimate: Estimate | null | undefined, weight?: number, strong?: boolean): ShownCell {
  if (!estimate) return numberCell("-");
  return numberCell(percent(estimate.mean), { weight, strong: strong === true });
}

/** `layer 4`, `layers 4 + 8, mean`; the pooling only where the report has several. */
export function placeName({ layers, pooling }: Place, poolings: readonly string[]): string {
  if (layers === null) return "texts alone";
  const name = layers.length === 1 ? `layer ${layers[0]}` : `layers ${layers.join(" + ")}`;
  return poolings.length > 1 ? `${name}, ${pooling}` : name;
}

/** Whether two places are one. */
export function samePlace(a: Place, b: Place): boolean {
  return a.pooling === b.pooling && JSON.stringify(a.layers) === JSON.stringify(b.layers);
}

/** Scorers have the first colours, what reads no states the last. */
const KINDS: readonly ReportMethod["kind"][] = ["scorer", "baseline", "control", "text", "chance"];

/** The colour and line of a method, the same in all of a report. */
export function styleOf({ methods }: Report, method: string): Pick<Series, "style" | "line"> {
  const ordered = [...methods].sort((a, b) => KINDS.indexOf(a.kind) - KINDS.indexOf(b.kind));
  const style = ordered.findIndex(({ name }) => name === method);
  return { style: Math.max(0, style), ...(ordered[style]?.kind === "control" ? { line: "dashed" } : {}) };
}

/** Methods that read states. */
export function stateMethods({ methods }: Report): ReportMethod[] {
  return methods.filter(({ kind }) => kind === "scorer" || kind === "baseline" || kind === "control");
}

/** Rows of methods that read no states. */
export function textRows({ rows }: Report): ReportRow[] {
  return rows.filter(({ layers }) => layers === null);
}

/** From the lowest to the highest, with some air; within [0, 1]. */
export function shareDomain(values: readonly number[]): [number, number] {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const air = Math.max(0.02, 0.06 * (high - low));
  return [Math.max(0, low - air), Math.min(1, high + air)];
}

/** Where a value lies between the lowest and the highest of its table, for a tint. */
export function weights(values: readonly (number | undefined)[]): (value: number | undefined) => number | undefined {
  const known = values.filter((value) => value !== undefined);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  return (value) => (value === undefined || high === low ? undefined : (value - low) / (high - low));
}
