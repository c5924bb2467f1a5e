/** Accuracy against depth: every method at every layer, with intervals, beside what reads no states. */
import type { Report, ReportMethod, ReportRow } from "../scorer/report-data.ts";
import { type LineChart, numberCell, type Series, type ShownFigure, type ShownSection } from "./document.ts";
import {
  type Estimate,
  percent,
  percentCell,
  placeName,
  shareDomain,
  stateMethods,
  styleOf,
  textRows,
  weights,
  withInterval,
} from "./report-words.ts";

/** A row of one layer with its top-1. */
type Spot = ReportRow & { readonly layers: [number]; readonly top1: Estimate };

function spotsOf(rows: readonly ReportRow[], method: string, pooling: string): Spot[] {
  return rows
    .filter(
      (row): row is Spot =>
        row.method === method && row.pooling === pooling && row.layers?.length === 1 && row.top1 !== null,
    )
    .sort((a, b) => a.layers[0] - b.layers[0]);
}

const best = (spots: readonly Spot[]) => spots.reduce((top, each) => (each.top1.mean > top.top1.mean ? each : top));

/** The section. */
export function accuracySection(report: Report): ShownSection {
  const { run } = report;
  const figures = run.poolings.flatMap((pooling) => {
    const methods = stateMethods(report)
      .map((method) => ({ method, spots: spotsOf(report.rows, method.name, pooling) }))
      .filter(({ spots }) => spots.length > 0);
    if (methods.length === 0) return [];
    return [overview(report, pooling, methods), apart(report, pooling, methods)];
  });
  return {
    id: "accuracy",
    title: "Accuracy against depth",
    words: [
      `Top-1: how often a safe candidate comes first, ties split. Mean over ${run.seeds.length === 1 ? "one split" : `${run.seeds.length} splits`} by instruction, ${percent(run.options.test_share)}% of the lists measured; intervals are of 95%, by the bootstrap over instructions. Layer k is the residual stream after k blocks.`,
    ],
    figures: [...figures, ...together(report), onTexts(report), everything(report)],
  };
}

type Measured = readonly { readonly method: ReportMethod; readonly spots: readonly Spot[] }[];

function titled(report: Report, title: string, pooling: string): string {
  return report.run.poolings.length > 1 ? `${title}, pooling ${pooling}` : title;
}

function series(report: Report, spots: readonly Spot[], method: string): Series {
  return {
    name: method,
    ...styleOf(report, method),
    points: spots.map(({ layers: [layer], top1 }) => ({
      ...{ x: layer, y: top1.mean, low: top1.low, high: top1.high },
      title: `${method}, layer ${layer}: ${withInterval(top1)}`,
    })),
  };
}

function rules(report: Report, kinds: readonly ReportMethod["kind"][]): LineChart["rules"] {
  return textRows(report).flatMap(({ method, top1 }) => {
    const kind = report.methods.find(({ name }) => name === method)?.kind;
    return top1 && kind && kinds.includes(kind) ? [{ name: method, y: top1.mean, ...styleOf(report, method) }] : [];
  });
}

/** Equal for all charts of accuracy, so that they can be compared. */
function domain(report: Report): [number, number] {
  return shareDomain(
    report.rows.flatMap(({ layers, top1 }) =>
      top1 ? (layers?.length === 1 ? [top1.low, top1.high] : [top1.mean]) : [],
    ),
  );
}

function chartOf(report: Report, title: string): Pick<LineChart, "kind" | "title" | "x" | "y"> {
  const layers = [...new Set(report.rows.flatMap(({ layers: own }) => (own?.length === 1 ? own : [])))];
  return {
    kind: "lines",
    title,
    x: { label: "layer", ticks: layers.sort((a, b) => a - b) },
    y: { label: "top-1 in %", percent: true, domain: domain(report) },
  };
}

function overview(report: Report, pooling: string, methods: Measured): ShownFigure {
  const recommended = report.recommendation?.recommended;
  const title = titled(report, "Top-1 by layer", pooling);
  const shown = methods.map(({ method: { name }, spots }) => ({
    ...series(report, spots, name),
    ...(recommended?.method === name && recommended.pooling === pooling ? { band: true } : {}),
  }));
  const layers = [...new Set(methods.flatMap(({ spots }) => spots.map(({ layers: [layer] }) => layer)))];
  layers.sort((a, b) => a - b);
  const tint = weights(methods.flatMap(({ spots }) => spots.map(({ top1 }) => top1.mean)));
  return {
    title,
    charts: [{ ...chartOf(report, title), series: shown, rules: rules(report, ["text", "chance"]) }],
    words: methods.map(({ method: { name }, spots }) => inWords(name, spots)),
    ...(shown.some(({ band }) => band) ? { reading: "The band is the 95% interval of the recommended method." } : {}),
    tables: [
      {
        caption: `${title}, in %; the highest of a row is bold`,
        header: ["method", ...layers.map(String)],
        rows: methods.map(({ method: { name }, spots }) => [
          name,
          ...layers.map((layer) => {
            const spot = spots.find(({ layers: [own] }) => own === layer);
            return percentCell(spot?.top1, tint(spot?.top1.mean), spot !== undefined && spot === best(spots));
          }),
        ]),
      },
    ],
  };
}

function inWords(method: string, spots: readonly Spot[]): string {
  const [first, top, last] = [spots[0], best(spots), spots[spots.length - 1]];
  const at = ({ layers: [layer], top1 }: Spot) => `${percent(top1.mean)}% at layer ${layer}`;
  const ends = first === last ? "" : `${at(first)}, ${at(last)}; `;
  return `${method}: ${ends}highest at layer ${top.layers[0]}, ${withInterval(top.top1)}.`;
}

/** Every method by itself, the others faint behind it. */
function apart(report: Report, pooling: string, methods: Measured): ShownFigure {
  const all = methods.map(({ method: { name }, spots }) => series(report, spots, name));
  return {
    title: titled(report, "Each method with its interval", pooling),
    charts: all.map((own) => ({
      ...chartOf(report, own.name),
      series: [
        ...all.filter(({ name }) => name !== own.name).map((other) => ({ ...other, line: "faint" as const })),
        { ...own, band: true },
      ],
      rules: rules(report, ["chance"]),
    })),
    words: [],
    reading: "The band is the 95% interval; the other methods are drawn faintly, the dotted line is a random ranking.",
    tables: [
      {
        caption: titled(report, "Intervals by layer, in %", pooling),
        header: ["method", "layer", "top-1", "low", "high", "deviation of the splits"],
        folded: true,
        rows: methods.flatMap(({ method: { name }, spots }) =>
          spots.map(({ layers: [layer], top1, deviation }) => [
            name,
            numberCell(String(layer)),
            ...[top1.mean, top1.low, top1.high, deviation].map((value) => numberCell(percent(value))),
          ]),
        ),
      },
    ],
  };
}

const measuresHeader = (report: Report) => [
  "top-1",
  "95% interval",
  "pairwise",
  "MRR",
  `NDCG@${report.run.options.ndcg_depth}`,
];

function measuresOf({ top1, pairwise, mrr, ndcg }: ReportRow) {
  return [
    percentCell(top1),
    numberCell(top1 ? `${percent(top1.low)} to ${percent(top1.high)}` : "-"),
    ...[pairwise, mrr, ndcg].map((measure) => percentCell(measure)),
  ];
}

/** Several layers read together. */
function together(report: Report): ShownFigure[] {
  const rows = report.rows.filter(({ layers }) => layers !== null && layers.length > 1);
  if (rows.length === 0) return [];
  const header = ["method", "layers", ...measuresHeader(report)];
  return [
    {
      title: "Several layers, one after the other",
      words: ["The states of these layers are one input to the method; it costs what its deepest layer costs."],
      charts: [],
      tables: [
        {
          caption: "In %",
          header,
          rows: rows.map((row) => [row.method, placeName(row, report.run.poolings), ...measuresOf(row)]),
        },
      ],
    },
  ];
}

function onTexts(report: Report): ShownFigure {
  return {
    title: "Without any states",
    words: ["What these reach, the model's states did not give."],
    charts: [],
    tables: [
      {
        caption: "Methods that read texts alone, and a random ranking, in %",
        header: ["method", ...measuresHeader(report)],
        rows: textRows(report).map((row) => [row.method, ...measuresOf(row)]),
      },
    ],
  };
}

function everything(report: Report): ShownFigure {
  const rows = report.rows.filter(({ layers }) => layers !== null);
  return {
    title: "Every measure",
    words: [],
    charts: [],
    tables: [
      {
        caption: "Every measure of every method and place, in %",
        header: ["method", "place", ...measuresHeader(report)],
        folded: true,
        rows: rows.map((row) => [row.method, placeName(row, report.run.poolings), ...measuresOf(row)]),
      },
    ],
  };
}
