/** Times and results as rows, for people, programs and the README. */
import { formatTable } from "../cli/format.ts";
import { describeJob, flopsOf, type Job, widthOf } from "./jobs.ts";
import { CPU } from "./protocol.ts";
import type { PeerTimes } from "./rounds.ts";

/** Results of float32 sums in different orders; a wrong kernel is off by far more (LLM states: cosine 0.98-0.997). */
export const TOLERANCE = { cosine: 0.99999, maxError: 1e-3 } as const;

export interface Agreement {
  /** The lowest cosine of a row with Stratum's. */
  readonly cosine: number;
  /** The largest difference of an element, in units of the root mean square of Stratum's result. */
  readonly max_error: number;
}

export interface PeerRow {
  readonly name: string;
  readonly job: string;
  readonly adapter: string;
  readonly median_ms: number | null;
  /** Distance of the quartiles; null of a single run. */
  readonly iqr_ms: number | null;
  /** Nominal: the whole job's operations over the time. */
  readonly gflops: number | null;
  /** Times slower than Stratum in the same run. */
  readonly ratio: number | null;
  /** Counted runs; 0: the first run alone, compilation included. */
  readonly runs: number;
  readonly first_ms: number | null;
  /** `same` within the tolerance, `WRONG`, or `not compared`: it is Stratum itself, another depth, or has no result. */
  readonly result: "same" | "WRONG" | "not compared";
  readonly agreement: Agreement | null;
  readonly error: string | null;
}

/** A share of sorted values, interpolated. */
function quantile(sorted: readonly number[], share: number): number {
  const place = share * (sorted.length - 1);
  const low = Math.floor(place);
  return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

/**
 * Compares results.
 * @param width elements of a row
 */
export function agreement(reference: Float32Array, result: Float32Array, width: number): Agreement {
  if (reference.length !== result.length) return { cosine: Number.NaN, max_error: Number.POSITIVE_INFINITY };
  let [worst, largest, squares] = [1, 0, 0];
  for (let row = 0; row < reference.length; row += width) {
    let [ab, aa, bb] = [0, 0, 0];
    for (let i = row; i < row + width; i++) {
      ab += reference[i] * result[i];
      aa += reference[i] ** 2;
      bb += result[i] ** 2;
      largest = Math.max(largest, Math.abs(reference[i] - result[i]));
    }
    // NaN stays: Math.min hands it on.
    worst = Math.min(worst, ab / Math.sqrt(aa * bb));
    squares += aa;
  }
  return { cosine: worst, max_error: largest / Math.sqrt(squares / reference.length) };
}

/** Whether results count as the same. */
export function agrees({ cosine, max_error }: Agreement): boolean {
  return cosine > TOLERANCE.cosine && max_error <= TOLERANCE.maxError;
}

export interface Ran {
  readonly times: PeerTimes;
  /** What it ran: its own job where that is another. */
  readonly job: Job;
}

/** Of the counted runs, or the first where there are none. */
function median({ times, first }: PeerTimes): number | null {
  const sorted = [...times].sort((a, b) => a - b);
  return sorted.length > 0 ? quantile(sorted, 0.5) : first;
}

/**
 * One row a peer.
 * @param job the run's own
 * @param stratum the name of the one that the others are compared with
 * @param chosen the adapter of the run, as far as it is known without Stratum
 */
export function peerRows(ran: readonly Ran[], job: Job, stratum: string, chosen: string): PeerRow[] {
  const own = ran.find(({ times }) => times.name === stratum)?.times;
  const reference = own?.error === null ? own : undefined;
  const base = reference === undefined ? null : median(reference);
  const shared = own?.adapter ?? chosen;
  return ran.map(({ times: entry, job: itsJob }) => {
    const { name, first, times, output } = entry;
    const adapter = entry.adapter ?? shared;
    // What runs elsewhere is no peer.
    const elsewhere = adapter !== CPU && adapter !== shared ? `it ran on ${adapter}` : null;
    const error = entry.error ?? elsewhere;
    const ms = error === null ? median(entry) : null;
    const sorted = [...times].sort((a, b) => a - b);
    const comparable = itsJob === job && name !== stratum;
    const found =
      comparable && output !== null && reference?.output ? agreement(reference.output, output, widthOf(itsJob)) : null;
    return {
      name,
      job: describeJob(itsJob),
      adapter,
      median_ms: rounded(ms, 3),
      iqr_ms: error === null && times.length > 1 ? rounded(quantile(sorted, 0.75) - quantile(sorted, 0.25), 3) : null,
      gflops: ms === null ? null : rounded(flopsOf(itsJob) / ms / 1e6, 3),
      ratio: ms === null || base === null ? null : rounded(ms / base, 3),
      runs: times.length,
      first_ms: rounded(first, 3),
      result: found === null ? "not compared" : agrees(found) ? "same" : "WRONG",
      agreement: found,
      error,
    };
  });
}

function rounded(value: number | null, digits: number): number | null {
  return value === null ? null : Number(value.toFixed(digits));
}

const HEADER = ["peer", "ms", "iqr", "GFLOP/s", "x Stratum", "runs", "result"] as const;

function cells(row: PeerRow): string[] {
  const { name, median_ms, iqr_ms, gflops, ratio, runs, result, agreement: found, error } = row;
  if (error !== null) return [name, "-", "-", "-", "-", String(runs), `failed: ${error.replaceAll(/\s+/g, " ")}`];
  const number = (value: number | null, digits: number) => (value === null ? "-" : value.toFixed(digits));
  const off =
    found === null ? "" : ` (cosine ${found.cosine.toFixed(7)}, off by ${found.max_error.toExponential(1)} rms)`;
  return [
    name,
    number(median_ms, 1),
    number(iqr_ms, 1),
    number(gflops, 2),
    number(ratio, 2),
    runs === 0 ? "first only" : String(runs),
    `${result}${off}`,
  ];
}

const NUMBERS = [1, 2, 3, 4, 5];

/** A table for a terminal. */
export function textTable(rows: readonly PeerRow[]): string {
  return formatTable(HEADER, rows.map(cells), NUMBERS);
}

/** A table for a document. */
export function markdownTable(rows: readonly PeerRow[]): string {
  const line = (values: readonly string[]) => `| ${values.map((value) => value.replaceAll("|", "\\|")).join(" | ")} |`;
  const rule = HEADER.map((_, column) => (NUMBERS.includes(column) ? "---:" : "---"));
  return [HEADER, rule, ...rows.map(cells)].map(line).join("\n");
}
