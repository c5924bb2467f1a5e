/** Accuracy against what it costs: time and memory by layer, what nothing beats in both, and where more buys little. */
import type { Report, ReportCost, ReportPoint } from "../scorer/report-data.ts";
import {
  type ChartPoint,
  type LineChart,
  numberCell,
  type PointChart,
  type ShownFigure,
  type ShownSection,
} from "./document.ts";
import { formatCount } from "./format.ts";
import {
  type Estimate,
  type Place,
  percent,
  placeName,
  samePlace,
  shareDomain,
  stateMethods,
  styleOf,
  threeDigits,
  withInterval,
} from "./report-words.ts";

const MEBI = 2 ** 20;
const mebibytes = (bytes: number | undefined) => numberCell(bytes === undefined ? "-" : threeDigits(bytes / MEBI));

/** The section. */
export function costSection(report: Report): ShownSection {
  const about = { id: "cost", title: "Accuracy against time and memory" };
  if (report.costs.length === 0)
    return { ...about, words: ["Time and memory were not measured in this run."], figures: [] };
  return {
    ...about,
    words: report.costs_note === null ? [] : [report.costs_note],
    figures: [tradeOff(report), costs(report)],
  };
}

/** What a place costs: its deepest layer decides. */
function costOf({ costs: all }: Report, { layers, pooling }: Place): ReportCost | undefined {
  if (layers === null) return undefined;
  const deepest = Math.max(...layers);
  return all.find((cost) => cost.layer === deepest && cost.pooling === pooling);
}

interface Spot extends Place {
  readonly method: string;
  readonly top1: Estimate;
  readonly cost: ReportCost;
}

function spotsOf(report: Report): Spot[] {
  return report.rows.flatMap((row): Spot[] => {
    const cost = costOf(report, row);
    return row.top1 === null || cost === undefined ? [] : [{ ...row, top1: row.top1, cost }];
  });
}

/** What a point of the frontier is called: recommended, knee, best. */
function roles({ recommendation }: Report, point: ReportPoint): string {
  if (recommendation === null) return "";
  const { recommended, knee, best } = recommendation;
  const same = (other: ReportPoint | null) =>
    other !== null && other.method === point.method && samePlace(other, point);
  return [same(recommended) && "recommended", same(knee) && "knee", same(best) && "best"].filter(Boolean).join(", ");
}

function tradeOff(report: Report): ShownFigure {
  const spots = spotsOf(report);
  const { poolings } = report.run;
  const shares = shareDomain(spots.map(({ top1 }) => top1.mean));
  const of = (title: string, x: PointChart["x"], cost: (spot: Spot) => number): PointChart => ({
    ...{ kind: "points", title, x, y: { label: "top-1 in %", percent: true, domain: shares } },
    series: stateMethods(report).flatMap(({ name, kind }) => {
      // A control costs what the same method costs on the model itself.
      if (kind === "control") return [];
      const points = spots
        .filter(({ method }) => method === name)
        .map((spot) => ({
          ...{ x: cost(spot), y: spot.top1.mean },
          title: `${name}, ${placeName(spot, poolings)}: ${percent(spot.top1.mean)}%, ${threeDigits(spot.cost.ms.median)} ms a list, ${threeDigits(spot.cost.gpu_bytes / MEBI)} MiB`,
        }));
      return points.length > 0 ? [{ name, ...styleOf(report, name), points }] : [];
    }),
  });
  const marked = [...(report.recommendation?.frontier ?? [])];
  const { recommended, knee, best } = report.recommendation ?? {};
  for (const point of [recommended, knee, best]) {
    if (!point || marked.some((other) => other.method === point.method && samePlace(other, point))) continue;
    marked.push(point);
  }
  const frontier: ChartPoint[] = (report.recommendation?.frontier ?? []).flatMap((point) =>
    point.ms === null ? [] : [{ x: point.ms, y: point.top1.mean }],
  );
  const labels = marked.flatMap((point) => {
    const label = roles(report, point);
    return point.ms === null || label === "" ? [] : [{ x: point.ms, y: point.top1.mean, label, ring: true }];
  });
  return {
    title: "Top-1 against time",
    charts: [
      {
        ...of("Top-1 against time", { label: "ms a list" }, ({ cost }) => cost.ms.median),
        path: frontier,
        labels,
      },
    ],
    reading: "A point is a method at a place. The line joins what nothing beats in both accuracy and time.",
    words: [
      ...marked.flatMap((point) => {
        const role = roles(report, point);
        return role === "" ? [] : [`${capital(role)}: ${point.method} at ${inWords(report, point)}.`];
      }),
    ],
    tables: [
      {
        caption: "What nothing beats in both accuracy and time, the cheapest first",
        header: ["method", "place", "ms a list", "MiB on the GPU", "top-1 in %", "95% interval", "called"],
        rows: marked.map((point) => [
          point.method,
          placeName(point, poolings),
          numberCell(point.ms === null ? "-" : threeDigits(point.ms)),
          mebibytes(costOf(report, point)?.gpu_bytes),
          numberCell(percent(point.top1.mean)),
          numberCell(`${percent(point.top1.low)} to ${percent(point.top1.high)}`),
          roles(report, point),
        ]),
      },
      {
        caption: "Every method and place",
        header: ["method", "place", "ms a list", "MiB on the GPU", "top-1 in %"],
        folded: true,
        rows: spots.map((spot) => [
          spot.method,
          placeName(spot, poolings),
          numberCell(threeDigits(spot.cost.ms.median)),
          mebibytes(spot.cost.gpu_bytes),
          numberCell(percent(spot.top1.mean)),
        ]),
      },
    ],
  };
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function inWords(report: Report, point: ReportPoint): string {
  const time = point.ms === null ? "" : ` for ${threeDigits(point.ms)} ms a list`;
  return `${placeName(point, report.run.poolings)}, ${withInterval(point.top1)}${time}`;
}

function costs(report: Report): ShownFigure {
  const { poolings } = report.run;
  const ticks = [...new Set(report.costs.map(({ layer }) => layer))].sort((a, b) => a - b);
  const lines = (title: string, label: string, value: (cost: ReportCost) => Omit<ChartPoint, "x">): LineChart => ({
    ...{ kind: "lines", title, x: { label: "layer", ticks }, y: { label }, rules: [] },
    series: poolings.flatMap((pooling, style) => {
      const own = report.costs.filter((cost) => cost.pooling === pooling).sort((a, b) => a.layer - b.layer);
      const points = own.map((cost) => ({ x: cost.layer, ...value(cost) }));
      return points.length > 0 ? [{ name: `pooling ${pooling}`, style, points, band: true }] : [];
    }),
  });
  const deepest = report.costs.reduce((a, b) => (b.layer > a.layer ? b : a));
  return {
    title: "Cost by layer",
    charts: [
      lines("Time of a list alone", "ms", ({ layer, ms }) => ({
        ...{ y: ms.median, low: ms.low, high: ms.high },
        title: `layer ${layer}: ${threeDigits(ms.median)} ms (${threeDigits(ms.low)} to ${threeDigits(ms.high)})`,
      })),
      lines("Memory of the device", "MiB", ({ layer, gpu_bytes: bytes }) => ({
        y: bytes / MEBI,
        title: `layer ${layer}: ${threeDigits(bytes / MEBI)} MiB`,
      })),
      lines("Read from disk", "MiB", ({ layer, disk_bytes: bytes }) => ({
        y: bytes / MEBI,
        title: `layer ${layer}: ${threeDigits(bytes / MEBI)} MiB`,
      })),
    ],
    words: [
      `To layer ${deepest.layer} a list takes ${threeDigits(deepest.ms.median)} ms, the device holds ${threeDigits(deepest.gpu_bytes / MEBI)} MiB. Weights and working buffers are as planned for one list at a time.`,
    ],
    tables: [
      {
        caption: "A pass to a layer and no deeper, a list at a time",
        header: [
          "layer",
          "pooling",
          "ms",
          "low to high",
          "tokens/s",
          "MiB on the GPU",
          "of it weights",
          "MiB from disk",
        ],
        folded: true,
        rows: report.costs.map(({ layer, pooling, ms, tokens_per_s: rate, ...bytes }) => [
          numberCell(String(layer)),
          pooling,
          numberCell(threeDigits(ms.median)),
          numberCell(`${threeDigits(ms.low)} to ${threeDigits(ms.high)}`),
          numberCell(formatCount(Math.round(rate))),
          mebibytes(bytes.gpu_bytes),
          mebibytes(bytes.weight_bytes),
          mebibytes(bytes.disk_bytes),
        ]),
      },
    ],
  };
}
