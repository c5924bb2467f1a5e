/**
 * Which layer to take, and why. The best place has the highest mean top-1; the recommended one is the cheapest of the
 * best's method that is not significantly below it. Intervals are of paired differences over the same lists and seeds, at
 * a level that leaves one chance in twenty for all places of the method together (Bonferroni). The best is chosen on the
 * lists that it is measured on, which flatters it: the comparison errs on the side of depth.
 */
import type {
  ReportCell,
  ReportCost,
  ReportDifference,
  ReportMethod,
  ReportPoint,
  ReportRecommendation,
} from "./report-data.ts";
import { placeName } from "./sweep.ts";
import { comparison, type Draws, estimateOf, groupCells, type KeysOf } from "./sweep-summary.ts";

/** A method at a place. */
interface Candidate {
  readonly cells: readonly ReportCell[];
  readonly point: ReportPoint;
}

/** Draws of an interval far out in the tails. */
const TAIL_SAMPLES = 10_000;
const CHANCE_OF_ERROR = 0.05;

/**
 * What to take.
 * @param cells of one file that is trained on and measured
 * @returns null where no method on states was measured
 */
export function recommend(
  cells: readonly ReportCell[],
  methods: readonly ReportMethod[],
  costs: readonly ReportCost[],
  keysOf: KeysOf,
  draws: Draws,
): ReportRecommendation | null {
  const kinds = new Map(methods.map(({ name, kind }) => [name, kind]));
  const groups = groupCells(cells);
  const candidates = groups.flatMap((own): Candidate[] => {
    const [{ method, layers, pooling }] = own;
    const kind = kinds.get(method);
    if (layers === null || pooling === null || (kind !== "scorer" && kind !== "baseline")) return [];
    const top1 = estimateOf(own, "top1", keysOf, draws);
    if (top1 === null) return [];
    return [{ cells: own, point: { method, layers, pooling, top1, ms: timeOf(layers, pooling, costs) } }];
  });
  if (candidates.length === 0) return null;
  const best = candidates.reduce((top, each) => (isBetter(each.point, top.point) ? each : top));
  const others = candidates.filter((each) => each !== best && each.point.method === best.point.method);
  const level = 1 - CHANCE_OF_ERROR / Math.max(1, others.length);
  const strict = { samples: Math.max(TAIL_SAMPLES, draws.samples ?? 0), level };
  const compared = others.flatMap((other) => {
    const found = comparison(best.cells, other.cells, keysOf, strict);
    return found === null ? [] : [{ other, found }];
  });
  const cheaper = compared.filter(({ other }) => isCheaper(other.point, best.point));
  const equal = cheaper.filter(({ found }) => found.verdict !== "above").map(({ other }) => other);
  const recommended = [best, ...equal].reduce((least, each) => {
    if (isCheaper(each.point, least.point)) return each;
    return !isCheaper(least.point, each.point) && isBetter(each.point, least.point) ? each : least;
  });
  const references = groups.filter(([{ method, layers }]) => {
    const kind = kinds.get(method);
    return (layers === null && kind !== undefined) || kind === "control";
  });
  const outside = bestByMethod(references, keysOf, draws).flatMap(
    (reference) => comparison(best.cells, reference, keysOf, draws) ?? [],
  );
  const frontier = frontierOf(candidates.map(({ point }) => point));
  const knee = kneeOf(frontier);
  const significant = compared.some(
    ({ other, found }) => found.verdict === "above" && isCheaper(other.point, recommended.point),
  );
  return {
    ...{ recommended: recommended.point, best: best.point, knee, frontier, significant },
    differences: [...compared.map(({ found }) => found), ...outside],
    reason: reasonOf(
      best.point,
      recommended.point,
      compared.map(({ found }) => found),
      outside,
      significant,
      knee,
      methods,
    ),
  };
}

/** The higher mean, and of equal ones the cheaper. */
function isBetter(a: ReportPoint, b: ReportPoint): boolean {
  return a.top1.mean > b.top1.mean || (a.top1.mean === b.top1.mean && isCheaper(a, b));
}

/** Shallower, then with fewer layers. Times are no part of it: they differ from run to run. */
function isCheaper(a: ReportPoint, b: ReportPoint): boolean {
  const depth = ({ layers }: ReportPoint) => Math.max(...layers);
  return depth(a) < depth(b) || (depth(a) === depth(b) && a.layers.length < b.layers.length);
}

/** Time of the deepest layer. */
export function timeOf(layers: readonly number[], pooling: string, costs: readonly ReportCost[]): number | null {
  const deepest = Math.max(...layers);
  return costs.find((cost) => cost.layer === deepest && cost.pooling === pooling)?.ms.median ?? null;
}

/** Of every method the cells with the highest mean. */
function bestByMethod(
  groups: readonly (readonly ReportCell[])[],
  keysOf: KeysOf,
  draws: Draws,
): (readonly ReportCell[])[] {
  const found = new Map<string, { readonly cells: readonly ReportCell[]; readonly mean: number }>();
  for (const cells of groups) {
    const mean = estimateOf(cells, "top1", keysOf, { ...draws, samples: 1 })?.mean;
    const [{ method }] = cells;
    if (mean !== undefined && mean > (found.get(method)?.mean ?? Number.NEGATIVE_INFINITY))
      found.set(method, { cells, mean });
  }
  return [...found.values()].map(({ cells }) => cells);
}

/** What no other point beats in accuracy and time, the cheapest first; without times by depth. */
function frontierOf(points: readonly ReportPoint[]): ReportPoint[] {
  const cost = costOf(points);
  const sorted = [...points].sort((a, b) => cost(a) - cost(b) || b.top1.mean - a.top1.mean);
  let highest = Number.NEGATIVE_INFINITY;
  return sorted.filter(({ top1 }) => {
    if (top1.mean <= highest) return false;
    highest = top1.mean;
    return true;
  });
}

/** Milliseconds where all points have them, else layers. */
function costOf(points: readonly ReportPoint[]): (point: ReportPoint) => number {
  return points.every(({ ms }) => ms !== null) ? ({ ms }) => ms ?? 0 : ({ layers }) => Math.max(...layers);
}

/**
 * The point of the frontier that lies farthest above the line from its cheapest to its best, both axes scaled to [0, 1]
 * (Satopaa et al. 2011, "Finding a 'kneedle' in a haystack"). Null where none lies above it.
 */
export function kneeOf(frontier: readonly ReportPoint[]): ReportPoint | null {
  const [first, last] = [frontier[0], frontier.at(-1)];
  if (first === undefined || last === undefined || frontier.length < 3) return null;
  const cost = costOf(frontier);
  const along = (value: number, from: number, to: number) => (value - from) / (to - from);
  const rise = (point: ReportPoint) =>
    along(point.top1.mean, first.top1.mean, last.top1.mean) - along(cost(point), cost(first), cost(last));
  const knee = frontier.slice(1, -1).reduce<ReportPoint | null>((top, each) => {
    return rise(each) > (top === null ? 0 : rise(top)) ? each : top;
  }, null);
  return knee;
}

const percent = (value: number) => `${(100 * value).toFixed(1)}%`;
const points = (value: number) => (100 * value).toFixed(1);

function pointName(point: ReportPoint): string {
  return `${point.method} at ${placeName(point)}`;
}

/** The reason in sentences. */
function reasonOf(
  best: ReportPoint,
  recommended: ReportPoint,
  own: readonly ReportDifference[],
  outside: readonly ReportDifference[],
  significant: boolean,
  knee: ReportPoint | null,
  methods: readonly ReportMethod[],
): string[] {
  const reason = [
    `Highest top-1: ${pointName(best)} with ${percent(best.top1.mean)} (95% ${percent(best.top1.low)} to ${percent(best.top1.high)}).`,
  ];
  const named = ({ b }: ReportDifference) => placeName(b);
  const interval = ({ difference }: ReportDifference) =>
    `${points(difference.mean)} points, ${points(difference.low)} to ${points(difference.high)}`;
  const below = own.filter(({ verdict }) => verdict === "above");
  if (own.length === 0) reason.push("It is the only place that was measured with this method.");
  else if (own.length === 1) {
    reason.push(
      below.length === 0
        ? "No significant difference between it and the other place of this method."
        : `It is significantly above the other place of this method (${interval(own[0])}).`,
    );
  } else if (below.length === 0) {
    reason.push(
      `No significant difference between it and any of the other ${own.length} places of this method, all compared at once.`,
    );
  } else {
    const nearest = below.reduce((least, each) => (each.difference.mean < least.difference.mean ? each : least));
    reason.push(
      `It is significantly above ${below.length} of the other ${own.length} places of this method, all compared at once; the nearest of them is ${named(nearest)} (${interval(nearest)}).`,
    );
  }
  if (recommended !== best) {
    const saved =
      recommended.ms !== null && best.ms !== null && best.ms > 0
        ? ` for ${(100 * (recommended.ms / best.ms)).toFixed(0)}% of its time`
        : "";
    const told = own.find(({ b }) => placeName(b) === placeName(recommended));
    reason.push(
      `Recommended: ${placeName(recommended)}, the cheapest place that is not significantly below the best (${told === undefined ? "equal" : interval(told)})${saved}.`,
    );
  } else if (significant) reason.push("Recommended: the same, for every cheaper place is significantly below it.");
  else reason.push("Recommended: the same, for no cheaper place was measured.");
  const kind = (name: string) => methods.find((method) => method.name === name)?.kind;
  for (const difference of outside) {
    const { b, verdict } = difference;
    const what =
      kind(b.method) === "chance" ? "chance" : b.layers === null ? b.method : `${b.method} at ${placeName(b)}`;
    const words =
      verdict === "no significant difference" ? "not significantly different from" : `significantly ${verdict}`;
    reason.push(`The best is ${words} ${what} (${interval(difference)}).`);
  }
  if (knee !== null)
    reason.push(
      `The knee of accuracy against ${knee.ms === null ? "depth" : "time"}: ${pointName(knee)} with ${percent(knee.top1.mean)}${knee.ms === null ? "" : ` in ${knee.ms.toFixed(1)} ms a list`}.`,
    );
  reason.push("The best was chosen on the lists that it is measured on, which flatters it.");
  return reason;
}
