/** What states look like, layer by layer: their lengths, what each block changes, how far the classes lie apart, maps. */
import type { ReportStates, StateMap } from "../scorer/states-data.ts";
import {
  type Chart,
  type ChartPoint,
  type LineChart,
  numberCell,
  type Series,
  type ShownFigure,
  type ShownSection,
} from "./document.ts";
import { counted } from "./format.ts";
import { threeDigits } from "./report-words.ts";

/** Of the series here: safe, unsafe, unlabelled. */
const CLASSES = [
  { name: "safe", style: 0, of: 1 },
  { name: "not safe", style: 1, of: 0 },
  { name: "unlabelled", style: 5, of: null },
] as const;

interface Quartiles {
  readonly low: number;
  readonly median: number;
  readonly high: number;
}

const spread = ({ low, median, high }: Quartiles) =>
  `${threeDigits(median)} (${threeDigits(low)} to ${threeDigits(high)})`;

const quartilePoint = (x: number, own: Quartiles, what: string): ChartPoint => ({
  ...{ x, y: own.median, low: own.low, high: own.high, title: `${what}: ${spread(own)}` },
});

const quartileCells = (own: Quartiles) =>
  [own.median, own.low, own.high].map((value) => numberCell(threeDigits(value)));

/** The section. */
export function statesSection(states: ReportStates): ShownSection {
  const poolings = [...new Set(states.norms.map(({ pooling }) => pooling))];
  const titled = (title: string, pooling: string) => (poolings.length > 1 ? `${title}, pooling ${pooling}` : title);
  return {
    id: "states",
    title: "Looking at the states",
    words: [
      `${counted(states.responses, "response")} of ${counted(states.lists, "list")}, drawn with seed ${states.seed}. Bands and brackets are quartiles.`,
    ],
    figures: [
      ...poolings.flatMap((pooling) => [
        norms(states, pooling, titled("Norms", pooling)),
        ...changes(states, pooling, titled("What each block changes", pooling)),
        ...likeness(states, pooling, titled("Likeness of layers", pooling)),
        ...separation(states, pooling, titled("Separation of safe from unsafe", pooling)),
      ]),
      ...maps(states),
    ],
  };
}

const layerAxis = (layers: readonly number[]) => ({
  label: "layer",
  ticks: [...new Set(layers)].sort((a, b) => a - b),
});

function norms(states: ReportStates, pooling: string, title: string): ShownFigure {
  const own = states.norms.filter((norm) => norm.pooling === pooling);
  const series = (["response", "instruction"] as const).map((of, style): Series => {
    const points = own.filter((norm) => norm.of === of);
    return {
      ...{ name: of, style, band: true },
      points: points.map((norm) => quartilePoint(norm.layer, norm, `${of}, layer ${norm.layer}`)),
    };
  });
  const of = own.filter((norm) => norm.of === "response");
  const longest = of.reduce((a, b) => (b.median > a.median ? b : a));
  return {
    title,
    charts: [
      {
        ...{ kind: "lines", title, series, rules: [] },
        x: layerAxis(own.map(({ layer }) => layer)),
        y: { label: "Euclidean norm", log: own.every(({ low }) => low > 0) },
      },
    ],
    words: [
      `A response's state has a norm of ${threeDigits(of[0].median)} at layer ${of[0].layer} and ${threeDigits(of[of.length - 1].median)} at layer ${of[of.length - 1].layer}; the longest are at layer ${longest.layer}.`,
    ],
    tables: [
      {
        caption: `${title}, quartiles`,
        header: ["layer", "of", "median", "low", "high"],
        folded: true,
        rows: own.map((norm) => [numberCell(String(norm.layer)), norm.of, ...quartileCells(norm)]),
      },
    ],
  };
}

function changes(states: ReportStates, pooling: string, title: string): ShownFigure[] {
  const own = states.changes.filter((change) => change.pooling === pooling);
  if (own.length === 0) return [];
  const rows = own.map((change) => ({
    change,
    cosine: states.cosines.find(
      ({ from, to, pooling: of }) => from === change.from && to === change.to && of === pooling,
    ),
  }));
  const between = ({ from, to }: { from: number; to: number }) => `layer ${from} to ${to}`;
  const ranked = rows
    .flatMap(({ cosine }) => (cosine === undefined ? [] : [cosine]))
    .sort((a, b) => b.median - a.median);
  const least = ranked.slice(0, Math.max(1, Math.min(3, ranked.length - 1)));
  const most = ranked[ranked.length - 1];
  const chart = (name: string, points: readonly ChartPoint[]): LineChart => ({
    ...{ kind: "lines", title: name, rules: [] },
    ...{ x: { ...layerAxis(own.map(({ to }) => to)), label: "to layer" }, y: { label: "" } },
    series: [{ name, style: 0, band: true, points }],
  });
  return [
    {
      title,
      charts: [
        chart(
          "Cosine with the layer before",
          rows.flatMap(({ cosine }) => (cosine ? [quartilePoint(cosine.to, cosine, between(cosine))] : [])),
        ),
        chart(
          "Length of the step, over the state's norm",
          own.map((change) => quartilePoint(change.to, change, between(change))),
        ),
      ],
      words: [
        ...(least.length > 0
          ? [
              `Least changed in direction: ${least.map((each) => `${between(each)}, cosine ${threeDigits(each.median)}`).join("; ")}.`,
            ]
          : []),
        ...(most !== undefined && ranked.length > 1
          ? [`Most: ${between(most)}, cosine ${threeDigits(most.median)}.`]
          : []),
      ],
      tables: [
        {
          caption: `${title}, quartiles`,
          header: ["from", "to", "cosine", "low", "high", "step", "low", "high"],
          folded: true,
          rows: rows.map(({ change, cosine }) => [
            numberCell(String(change.from)),
            numberCell(String(change.to)),
            ...(cosine ? quartileCells(cosine) : ["-", "-", "-"]),
            ...quartileCells(change),
          ]),
        },
      ],
    },
  ];
}

function likeness(states: ReportStates, pooling: string, title: string): ShownFigure[] {
  const own = states.cosines.filter((cosine) => cosine.pooling === pooling);
  const layers = [...new Set(own.flatMap(({ from, to }) => [from, to]))].sort((a, b) => a - b);
  // Of two layers the cosine stands among the changes already.
  if (layers.length < 3) return [];
  const known = new Map(
    own.flatMap(({ from, to, median }) => [[`${from} ${to}`, median] as const, [`${to} ${from}`, median] as const]),
  );
  const values = layers.map((a) => layers.map((b) => (a === b ? 1 : (known.get(`${a} ${b}`) ?? null))));
  const flat = values.flat().filter((value) => value !== null);
  const low = Math.min(...flat);
  const names = layers.map(String);
  return [
    {
      title,
      charts: [{ kind: "matrix", title, label: "layer", names, values, domain: [Math.min(0, low), 1] }],
      words: [
        `The cosine between a response's states at every two layers, median; the least alike are at ${threeDigits(low)}.`,
      ],
      reading: "The stronger the colour, the more alike.",
      tables: [
        {
          caption: `${title}, median cosines`,
          header: ["layer", ...names],
          folded: true,
          rows: values.map((row, i) => [
            numberCell(names[i]),
            ...row.map((value) => numberCell(value === null ? "-" : value.toFixed(3))),
          ]),
        },
      ],
    },
  ];
}

function separation(states: ReportStates, pooling: string, title: string): ShownFigure[] {
  const own = states.separation.filter((each) => each.pooling === pooling);
  if (own.length === 0) return [];
  type Measure = "fisher" | "silhouette" | "fisher_within" | "silhouette_within" | "shuffled_within";
  const line = (measure: Measure, name: string, style: number, kind: Series["line"] = "plain"): Series => ({
    ...{ name, style, line: kind },
    points: own.flatMap(({ layer, [measure]: value }) =>
      value === null ? [] : [{ x: layer, y: value, title: `${name}, layer ${layer}: ${threeDigits(value)}` }],
    ),
  });
  const chart = (name: string, series: readonly Series[]): LineChart => ({
    ...{ kind: "lines", title: name, rules: [], x: layerAxis(own.map(({ layer }) => layer)), y: { label: "" } },
    series: series.filter(({ points }) => points.length > 0),
  });
  const within = own.flatMap((each) => (each.fisher_within === null ? [] : [{ ...each, ratio: each.fisher_within }]));
  const above = within.filter(({ ratio, shuffled_within: shuffled }) => shuffled !== null && ratio > shuffled);
  const top = within.reduce<(typeof within)[number] | undefined>(
    (best, each) => (best === undefined || each.ratio > best.ratio ? each : best),
    undefined,
  );
  const charts = [
    chart("Fisher ratio within lists", [
      line("fisher_within", "within lists", 0),
      line("shuffled_within", "highest of 19 shuffles", 5, "dashed"),
    ]),
    chart("Fisher ratio", [line("fisher", "of all states", 1)]),
    chart("Silhouette", [line("silhouette_within", "within lists", 0), line("silhouette", "of all states", 1)]),
  ].filter(({ series }) => series.length > 0);
  if (charts.length === 0) return [];
  return [
    {
      title,
      charts,
      words: [
        "Fisher ratio: the scatter of the two class means over the scatter within the classes. Silhouette: 1 apart, 0 no boundary. Within lists: after the mean of its list has been taken from each state, so that what an instruction's responses have in common does not count.",
        ...(top === undefined
          ? []
          : [
              `Within lists the classes lie furthest apart at layer ${top.layer} (${threeDigits(top.ratio)}). ${above.length === 0 ? "At no layer" : above.length === within.length ? "At every layer" : `At ${above.length} of ${within.length} layers`} that is more than the highest of 19 shuffles of the labels within their lists, which chance alone passes in one case of twenty.`,
            ]),
      ],
      tables: [
        {
          caption: `${title}, of ${counted(own[0].responses, "response")}`,
          header: [
            "layer",
            "Fisher within lists",
            "highest of 19 shuffles",
            "Fisher",
            "silhouette within lists",
            "silhouette",
          ],
          folded: true,
          rows: own.map((each) => [
            numberCell(String(each.layer)),
            ...[each.fisher_within, each.shuffled_within, each.fisher, each.silhouette_within, each.silhouette].map(
              (value) => numberCell(value === null ? "-" : threeDigits(value)),
            ),
          ]),
        },
      ],
    },
  ];
}

const METHODS = { pca: "PCA", umap: "UMAP" } as const;

function maps(states: ReportStates): ShownFigure[] {
  if (states.maps.length === 0) return [];
  const { points } = states;
  const name = ({ layer, method }: StateMap) => `${METHODS[method]}, layer ${layer}`;
  const called = (i: number) => `list ${points.list[i]}, candidate ${points.candidate[i]}`;
  const charts = [...states.maps]
    .sort((a, b) => (a.method === b.method ? a.layer - b.layer : a.method < b.method ? -1 : 1))
    .map(
      (map): Chart => ({
        ...{ kind: "points", title: name(map), bare: true, x: { label: "x" }, y: { label: "y" } },
        series: CLASSES.map(({ name: of, style, of: label }) => ({
          ...{ name: of, style },
          points: map.x.flatMap((x, i) =>
            points.class[i] === label ? [{ x, y: map.y[i], title: `${called(i)}: ${of}` }] : [],
          ),
        })).filter(({ points: own }) => own.length > 0),
      }),
    );
  const explained = states.maps.flatMap(({ layer, explained: shares }) =>
    shares === null ? [] : [`layer ${layer}: ${shares.map((share) => `${(100 * share).toFixed(0)}%`).join(" and ")}`],
  );
  const labels = CLASSES.flatMap(({ name: of, of: label }) => {
    const own = points.class.filter((each) => each === label).length;
    return own === 0 ? [] : [`${own} ${of}`];
  });
  return [
    {
      title: "Maps",
      charts,
      words: [
        `${points.class.length} responses: ${labels.join(", ")}.`,
        ...(explained.length > 0 ? [`Of the variance the two axes of the PCA hold, ${explained.join("; ")}.`] : []),
        ...(states.maps.some(({ method }) => method === "umap")
          ? ["UMAP keeps who is near whom; its distances and the sizes of its clouds mean nothing."]
          : []),
      ],
      tables: [
        {
          caption: "Coordinates of the maps",
          header: ["list", "candidate", "class", ...states.maps.flatMap((map) => [`${name(map)}: x`, "y"])],
          folded: true,
          rows: points.list.map((list, i) => [
            String(list),
            numberCell(String(points.candidate[i])),
            CLASSES.find(({ of }) => of === points.class[i])?.name ?? "",
            ...states.maps.flatMap(({ x, y }) => [x[i], y[i]].map((value) => numberCell(threeDigits(value)))),
          ]),
        },
      ],
    },
  ];
}
