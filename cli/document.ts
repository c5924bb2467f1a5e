/**
 * What is shown of a measurement, apart from how: sections of words, charts and tables. One document becomes a page, a
 * text for a pull request or lines for a terminal, so that all three say the same.
 */

export interface ShownDocument {
  readonly title: string;
  /** What was run, on what. */
  readonly facts: readonly (readonly [name: string, value: string])[];
  readonly sections: readonly ShownSection[];
  /** Files beside the page: name and what it holds. */
  readonly files: readonly (readonly [name: string, holds: string])[];
  /** Goes into a page as JSON, for a page that has no files beside it. */
  readonly data?: unknown;
}

export interface ShownSection {
  /** Of the page's anchors. */
  readonly id: string;
  readonly title: string;
  readonly words: readonly string[];
  readonly figures: readonly ShownFigure[];
}

/** Charts of one matter with the same in words and as tables. */
export interface ShownFigure {
  readonly title: string;
  /** What the charts show, for those who do not see them. */
  readonly words: readonly string[];
  /** How the charts are to be read, where they are drawn. */
  readonly reading?: string;
  /** One is drawn over the whole width, several side by side. */
  readonly charts: readonly Chart[];
  readonly tables: readonly ShownTable[];
}

export interface ShownTable {
  readonly caption: string;
  readonly header: readonly string[];
  readonly rows: readonly (readonly ShownCell[])[];
  /** Folded away on a page, and left out in a terminal: the charts or another table show the same. */
  readonly folded?: boolean;
  /** Rows are anchors `PREFIX-1`, `PREFIX-2`, ... */
  readonly anchors?: string;
}

/** A number stands to the right. `weight` in [0, 1] colours the cell, `strong` prints it bold. */
export type ShownCell =
  | string
  | { readonly number: string; readonly weight?: number | undefined; readonly strong?: boolean };

export type Chart = LineChart | PointChart | MatrixChart;

export interface Axis {
  readonly label: string;
  /** Values are shares, shown as per cent. */
  readonly percent?: boolean;
  readonly log?: boolean;
  /** Ticks where they are to be: whole layers. */
  readonly ticks?: readonly number[];
  /** Equal in charts that are to be compared. */
  readonly domain?: readonly [number, number];
}

export interface Series {
  readonly name: string;
  readonly points: readonly ChartPoint[];
  /** Its colour and symbol; series of one document that are the same have the same. */
  readonly style: number;
  /** `faint`: there to compare with; `dashed`: a control. */
  readonly line?: "plain" | "dashed" | "faint";
  /** Draws the intervals of its points as a band. */
  readonly band?: boolean;
}

export interface ChartPoint {
  readonly x: number;
  readonly y: number;
  readonly low?: number | undefined;
  readonly high?: number | undefined;
  /** What the pointer is told. */
  readonly title?: string;
  /** Leads to a row of a table. */
  readonly href?: string;
}

export interface LineChart {
  readonly kind: "lines";
  readonly title: string;
  readonly x: Axis;
  readonly y: Axis;
  readonly series: readonly Series[];
  /** Level lines. */
  readonly rules: readonly { readonly name: string; readonly y: number; readonly style: number }[];
}

export interface PointChart {
  readonly kind: "points";
  readonly title: string;
  readonly x: Axis;
  readonly y: Axis;
  readonly series: readonly Series[];
  /** Joined from point to point. */
  readonly path?: readonly ChartPoint[];
  /** Names beside places of the chart, with or without a ring around the place. */
  readonly labels?: readonly {
    readonly x: number;
    readonly y: number;
    readonly label: string;
    readonly ring?: boolean;
  }[];
  /** Axes without numbers: the plane of a map. */
  readonly bare?: boolean;
}

/** Values of pairs, such as layers by layers. */
export interface MatrixChart {
  readonly kind: "matrix";
  readonly title: string;
  readonly label: string;
  readonly names: readonly string[];
  /** Row by row, null where there is none. */
  readonly values: readonly (readonly (number | null)[])[];
  readonly domain: readonly [number, number];
}

/** A number's cell. */
export function numberCell(number: string, more: { weight?: number | undefined; strong?: boolean } = {}): ShownCell {
  return { number, ...more };
}

/** The text of a cell. */
export function cellText(cell: ShownCell): string {
  return typeof cell === "string" ? cell : cell.number;
}

/** Columns whose cells are numbers, by the first row. */
export function numberColumns({ header, rows }: ShownTable): number[] {
  return header.map((_, i) => i).filter((i) => rows.some((row) => typeof row[i] === "object"));
}
