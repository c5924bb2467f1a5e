/** A benchmark's rows as data and as cells of a table. */
import type { BenchRow, Ceilings } from "../engine/bench-row.ts";

/** What `--json` prints. */
export interface ReportDocument {
  readonly command: string;
  readonly adapter: string;
  readonly machine: string;
  readonly node: string;
  readonly version: string;
  readonly model?: string;
  readonly ceilings: Ceilings | null;
  readonly rows: readonly BenchRow[];
}

/** Names of a row's cells; the first column has none in a table of text. */
export const ROW_HEADER: readonly string[] = [
  "",
  "shape",
  "dtype",
  "variant",
  "median ms",
  "iqr ms",
  "GFLOP/s",
  "GB/s",
  "of ceiling",
];
/** Columns of numbers. */
export const NUMBER_COLUMNS = [4, 5, 6, 7, 8];

/** A number of about four digits. */
export function shortNumber(value: number | null | undefined): string {
  if (value == null) return "-";
  return value >= 100
    ? value.toFixed(0)
    : value >= 10
      ? value.toFixed(1)
      : value >= 0.1
        ? value.toFixed(2)
        : value.toPrecision(2);
}

function share(value: number | null): string {
  return value === null ? "-" : `${(100 * value).toFixed(value < 0.1 ? 1 : 0)}%`;
}

/** The cells of a row, as the table and the page show them. */
export function rowCells(row: BenchRow): string[] {
  return [
    row.name,
    row.shape,
    row.dtype,
    row.variant,
    shortNumber(row.median_ms),
    shortNumber(row.iqr_ms),
    shortNumber(row.gflops),
    shortNumber(row.gbps),
    row.gloads === undefined ? share(row.ceiling_share) : `${shortNumber(row.gloads)} G loads/s`,
  ];
}
