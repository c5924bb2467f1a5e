/** A benchmark's rows against those of an earlier run: what became slower beyond the noise. */
import type { BenchRow } from "./bench-row.ts";

/** What identifies a row, and what is compared of it. */
export type ComparedRow = Pick<BenchRow, "name" | "shape" | "dtype" | "variant" | "median_ms" | "iqr_ms">;

export type Verdict = "slower" | "faster" | "same" | "new" | "gone";

export interface RowComparison {
  readonly row: ComparedRow;
  readonly verdict: Verdict;
  /** Median before; null for a new row. */
  readonly before_ms: number | null;
  /** Median now; null for a row that is gone. */
  readonly now_ms: number | null;
  /** What a difference must exceed to be more than noise; null where there is nothing to compare. */
  readonly noise_ms: number | null;
}

/** Of the earlier median: machines differ by as much from one minute to the next. */
const LEAST_SHARE = 0.1;
/** Quartile distances, of both runs together. */
const SPREADS = 3;

function keyOf({ name, shape, dtype, variant }: ComparedRow): string {
  return JSON.stringify([name, shape, dtype, variant]);
}

/**
 * Compares rows by name, shape, dtype and variant. A difference of medians counts beyond the larger of a tenth of the
 * earlier median and three times the joint quartile distance, sqrt(before^2 + now^2).
 * @returns the rows of now in their order, then those that are gone
 */
export function compareRows(before: readonly ComparedRow[], now: readonly ComparedRow[]): RowComparison[] {
  const old = new Map(before.map((row) => [keyOf(row), row]));
  const compared = now.map((row): RowComparison => {
    const earlier = old.get(keyOf(row));
    if (earlier === undefined) {
      return { row, verdict: "new", before_ms: null, now_ms: row.median_ms, noise_ms: null };
    }
    const noise = Math.max(LEAST_SHARE * earlier.median_ms, SPREADS * Math.hypot(earlier.iqr_ms, row.iqr_ms));
    const change = row.median_ms - earlier.median_ms;
    const verdict = change > noise ? "slower" : change < -noise ? "faster" : "same";
    return { row, verdict, before_ms: earlier.median_ms, now_ms: row.median_ms, noise_ms: Number(noise.toFixed(6)) };
  });
  const kept = new Set(now.map(keyOf));
  const gone = before.filter((row) => !kept.has(keyOf(row)));
  return [
    ...compared,
    ...gone.map(
      (row): RowComparison => ({
        row,
        verdict: "gone",
        before_ms: row.median_ms,
        now_ms: null,
        noise_ms: null,
      }),
    ),
  ];
}
