/** From a sweep's cells to what a report says of them: rows over seeds, slices, transfer, paired differences. */
import { coverageCurve, thinned } from "./abstain.ts";
import { type BootstrapOptions, bootstrapDifference, bootstrapMean, type Estimate } from "./bootstrap.ts";
import type {
  ReportCell,
  ReportCoverage,
  ReportDifference,
  ReportMethod,
  ReportRow,
  ReportSlice,
  ReportTransfer,
} from "./report-data.ts";
import { type Slice, slicesOf } from "./slices.ts";
import type { SweepFile } from "./sweep.ts";

/** What the intervals need of the files: which lists share an instruction, by the file's name. */
export type KeysOf = ReadonlyMap<string, readonly string[]>;

export type Draws = Pick<BootstrapOptions, "samples" | "level">;

/** The seed of every bootstrap: that of `stratum eval`. */
const DRAW_SEED = 0;

const MEASURES = ["top1", "pairwise", "mrr", "ndcg"] as const;
type Measure = (typeof MEASURES)[number];

/** Cells by method, place and files, in the order of their appearance; a group holds a cell a seed. */
export function groupCells(cells: readonly ReportCell[]): ReportCell[][] {
  const groups = new Map<string, ReportCell[]>();
  for (const cell of cells) {
    const { method, layers, pooling, trained, measured } = cell;
    const name = JSON.stringify([method, layers, pooling, trained, measured]);
    const group = groups.get(name);
    if (group) group.push(cell);
    else groups.set(name, [cell]);
  }
  return [...groups.values()];
}

/** A measure over several cells of one file, and the instruction of each value. */
function pooledValues(
  cells: readonly ReportCell[],
  measure: Measure,
  keysOf: KeysOf,
  among?: ReadonlySet<number>,
): { readonly values: Float64Array; readonly clusters: string[] } {
  const values: number[] = [];
  const clusters: string[] = [];
  for (const cell of cells) {
    const keys = keysOf.get(cell.measured);
    if (keys === undefined) throw new Error(`no keys of ${cell.measured}`);
    for (const [i, b] of cell.lists.entries()) {
      if (among !== undefined && !among.has(b)) continue;
      values.push(cell[measure][i] ?? Number.NaN);
      clusters.push(keys[b]);
    }
  }
  return { values: Float64Array.from(values), clusters };
}

/** A measure's mean over lists and seeds, with its interval by instruction. */
export function estimateOf(
  cells: readonly ReportCell[],
  measure: Measure,
  keysOf: KeysOf,
  draws: Draws,
  among?: ReadonlySet<number>,
): Estimate | null {
  const { values, clusters } = pooledValues(cells, measure, keysOf, among);
  return bootstrapMean(values, { ...draws, clusters, seed: DRAW_SEED });
}

/** The paired difference in top-1 of two groups of cells, over all their seeds, by instruction. */
export function differenceOf(
  a: readonly ReportCell[],
  b: readonly ReportCell[],
  keysOf: KeysOf,
  draws: Draws,
): Estimate | null {
  const [first, second] = [pooledValues(a, "top1", keysOf), pooledValues(b, "top1", keysOf)];
  return bootstrapDifference(first.values, second.values, { ...draws, clusters: first.clusters, seed: DRAW_SEED });
}

/** A difference with its words. */
export function comparison(
  a: readonly ReportCell[],
  b: readonly ReportCell[],
  keysOf: KeysOf,
  draws: Draws,
): ReportDifference | null {
  const difference = differenceOf(a, b, keysOf, draws);
  if (difference === null) return null;
  const place = ([{ method, layers, pooling }]: readonly ReportCell[]) => ({ method, layers, pooling });
  const verdict = difference.low > 0 ? "above" : difference.high < 0 ? "below" : "no significant difference";
  return { a: place(a), b: place(b), difference, level: draws.level ?? 0.95, verdict };
}

/** Standard deviation of the seeds' mean top-1. */
function deviationOf(cells: readonly ReportCell[]): number {
  const means = cells.flatMap(({ top1 }) => {
    const known = top1.filter((value) => value !== null);
    return known.length === 0 ? [] : [known.reduce((sum, value) => sum + value, 0) / known.length];
  });
  const mean = means.reduce((sum, value) => sum + value, 0) / Math.max(1, means.length);
  return Math.sqrt(means.reduce((sum, value) => sum + (value - mean) ** 2, 0) / Math.max(1, means.length - 1));
}

const measuresOf = (cells: readonly ReportCell[], keysOf: KeysOf, draws: Draws) => {
  const of = (measure: Measure) => estimateOf(cells, measure, keysOf, draws);
  return { top1: of("top1"), pairwise: of("pairwise"), mrr: of("mrr"), ndcg: of("ndcg") };
};

/**
 * A row a method and place, over seeds and each seed by itself.
 * @param cells of one file that is trained on and measured
 */
export function summariseRows(cells: readonly ReportCell[], keysOf: KeysOf, draws: Draws): ReportRow[] {
  return groupCells(cells).map((own) => {
    const [{ method, layers, pooling }] = own;
    return {
      ...{ method, layers, pooling },
      ...measuresOf(own, keysOf, draws),
      deviation: deviationOf(own),
      seeds: own.map((cell) => ({ seed: cell.seed, ...measuresOf([cell], keysOf, draws) })),
    };
  });
}

/** Top-1 and pairwise accuracy on the slices of a file; slices without a measured list are left out. */
export function summariseSlices(
  cells: readonly ReportCell[],
  { labels, texts, keys, name }: Pick<SweepFile, "labels" | "texts" | "keys" | "name">,
  draws: Draws,
  safeFrom?: number,
): ReportSlice[] {
  const measured = new Set(cells.flatMap(({ lists }) => lists));
  const keysOf = new Map([[name, keys]]);
  return slicesOf(labels, texts, { safeFrom }).flatMap((slice: Slice) => {
    const among = new Set([...slice.lists].filter((b) => measured.has(b)));
    if (among.size === 0) return [];
    const rows = groupCells(cells).map((own) => {
      const [{ method, layers, pooling }] = own;
      const of = (measure: Measure) => estimateOf(own, measure, keysOf, draws, among);
      return { method, layers, pooling, top1: of("top1"), pairwise: of("pairwise") };
    });
    return [{ name: slice.name, lists: among.size, rows }];
  });
}

/** Every trained file against every measured one. */
export function summariseTransfer(
  cells: readonly ReportCell[],
  trained: readonly string[],
  measured: readonly string[],
  keysOf: KeysOf,
  draws: Draws,
): ReportTransfer {
  const rows = groupCells(cells).map((own) => {
    const [{ method, layers, pooling, trained: from, measured: on }] = own;
    const of = (measure: Measure) => estimateOf(own, measure, keysOf, draws);
    return {
      ...{ trained: from, measured: on, method, layers, pooling },
      ...{ top1: of("top1"), pairwise: of("pairwise"), deviation: deviationOf(own) },
    };
  });
  return { trained: [...trained], measured: [...measured], rows };
}

/** Points of a curve, at most. */
const CURVE_POINTS = 60;

/**
 * Coverage against error of every pointwise scorer, at the place where its top-1 is highest.
 * @param cells of one file that is trained on and measured
 * @returns null without such a scorer
 */
export function summariseCoverage(
  cells: readonly ReportCell[],
  methods: readonly ReportMethod[],
  keysOf: KeysOf,
): ReportCoverage[] | null {
  const groups = groupCells(cells);
  const found = methods
    .filter(({ kind, pointwise }) => kind === "scorer" && pointwise)
    .flatMap(({ name }) => {
      const mean = (own: readonly ReportCell[]) => estimateOf(own, "top1", keysOf, { samples: 1 })?.mean ?? 0;
      const own = groups.filter(([{ method }]) => method === name);
      return own.length === 0 ? [] : own.reduce((top, each) => (mean(each) > mean(top) ? each : top));
    });
  const curves = found.flatMap(({ method, layers, pooling, seed, highest, top1 }): ReportCoverage[] => {
    if (layers === null || pooling === null || highest === null) return [];
    const counted = [...top1.keys()].filter((i) => top1[i] !== null);
    // A tie in the first place counts as wrong where any of the tied is: which one is shown is chance.
    const places = {
      best: Float32Array.from(counted, (i) => highest[i]),
      wrong: Uint8Array.from(counted, (i) => ((top1[i] ?? 0) < 1 ? 1 : 0)),
    };
    const curve = thinned(coverageCurve(places), CURVE_POINTS).flatMap(({ threshold, coverage, error }) =>
      error === null ? [] : [{ threshold, coverage, error }],
    );
    return [{ method, layers, pooling, seed, curve }];
  });
  return curves.length === 0 ? null : curves;
}
