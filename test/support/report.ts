/** A report as a sweep would write it, of any depth, without a model: seeded numbers that obey the schema. */
import { seededRandom } from "../../kernels/random.ts";
import { type Report, reportSchema } from "../../scorer/report-data.ts";

export interface ReportOptions {
  /** Deepest layer; every layer from 0 on is there. Default 6. */
  readonly depth?: number;
  readonly poolings?: readonly string[];
  /** Points of a map. Default 60. */
  readonly points?: number;
  /** Of the recommended method's layer. */
  readonly recommended?: number;
}

type Estimate = Report["recommendation"] extends infer R ? (R extends { best: { top1: infer E } } ? E : never) : never;

/** Makes the report. */
export function makeReport({
  depth = 6,
  poolings = ["mean"],
  points = 60,
  recommended = 2,
}: ReportOptions = {}): Report {
  const random = seededRandom(11);
  const layers = Array.from({ length: depth + 1 }, (_, k) => k);
  const estimate = (mean: number): Estimate => ({ mean, low: mean - 0.05, high: mean + 0.04, lists: 450 });
  const measured = (mean: number) => ({
    ...{
      top1: estimate(mean),
      pairwise: estimate(mean - 0.02),
      mrr: estimate(mean + 0.1),
      ndcg: estimate(mean + 0.15),
    },
  });
  const row = (method: string, mean: number, place: { layers: number[] | null; pooling: string | null }) => ({
    ...{ method, ...place, ...measured(mean), deviation: 0.02 },
    seeds: [0, 1, 2].map((seed) => ({ seed, ...measured(mean + 0.01 * (seed - 1)) })),
  });
  const methods: Report["methods"] = [
    { name: "scorer (srr)", kind: "scorer", pointwise: false },
    { name: "scorer (pointwise)", kind: "scorer", pointwise: true },
    { name: "linear probe", kind: "baseline", pointwise: true },
    { name: "difference of means", kind: "baseline", pointwise: true },
    { name: "raw cosine", kind: "baseline", pointwise: true },
    { name: "linear probe, random weights", kind: "control", pointwise: true },
    { name: "bag of words", kind: "text", pointwise: true },
    { name: "refusal keywords", kind: "text", pointwise: true },
    { name: "random", kind: "chance", pointwise: false },
  ];
  const onStates = methods.slice(0, 6);
  const level: Readonly<Record<string, number>> = { "raw cosine": 0.48, "linear probe, random weights": 0.54 };
  const rows = [
    row("random", 0.5, { layers: null, pooling: null }),
    row("bag of words", 0.61, { layers: null, pooling: null }),
    row("refusal keywords", 0.53, { layers: null, pooling: null }),
    ...poolings.flatMap((pooling) =>
      onStates.flatMap(({ name }) => [
        ...layers.map((layer) => {
          const rise = name in level ? 0 : 0.18 * Math.min(1, layer / Math.max(1, recommended));
          return row(name, (level[name] ?? 0.52) + rise + 0.02 * random(), { layers: [layer], pooling });
        }),
        row(name, 0.66 + 0.02 * random(), { layers: [1, depth], pooling }),
      ]),
    ),
  ];
  const costs = poolings.flatMap((pooling) =>
    layers.map((layer) => {
      const median = 3 + 11 * layer;
      const weights = 4e6 + 5e6 * layer;
      return {
        ...{
          layer,
          pooling,
          ms: { median, low: 0.9 * median, high: 1.2 * median },
          lists: 20,
          tokens_per_s: 40_000 / (1 + layer),
        },
        ...{ gpu_bytes: weights + 3e6, weight_bytes: weights, disk_bytes: weights + 1e5 },
      };
    }),
  );
  const point = (layer: number, mean: number) => ({
    ...{ method: "scorer (srr)", layers: [layer], pooling: poolings[0]!, top1: estimate(mean), ms: 3 + 11 * layer },
  });
  const at = (layer: number) => ({ method: "scorer (srr)", layers: [layer], pooling: poolings[0]! });
  const frontier = [point(0, 0.53), point(1, 0.62), point(recommended, 0.71), point(depth, 0.72)];
  const name = "lists.jsonl";
  const data = (file: string) => ({
    ...{ name: file, sha256: "ab".repeat(32), lists: 497, failed: 1, unlabelled: 2, no_contrast: 3 },
    ...{ instructions: 480, candidates: 1450 },
  });
  const pooling = poolings[0]!;
  const quartiles = (median: number) => ({ low: 0.9 * median, median, high: 1.1 * median });
  const report: Report = {
    ...{ format: "stratum-report", version: 1 },
    run: {
      ...{
        command: `stratum sweep ${name} --model 'a <model> & co' -o report`,
        date: "2026-01-02T03:04:05Z",
        seconds: 512,
      },
      model: {
        ...{ name: "a <model> & co", revision: null, fingerprint: "f".repeat(64), type: "llama", layers: depth },
        ...{ hidden_size: 192, weights: "stored" },
      },
      ...{ data: data(name), tests: [data("other.jsonl")] },
      ...{ adapter: { name: "llvmpipe", source: "system", software: true }, kernels: "defaults" },
      versions: { stratum: "0.1.0", node: "v20.20.2", webgpu: "0.6.2", platform: "linux x64" },
      ...{ seeds: [0, 1, 2], layers, poolings: [...poolings], concat: [[1, depth]] },
      options: {
        ...{ test_share: 0.3, ndcg_depth: 10, safe_from: null, bootstrap: 2000, system: null, date: null },
        ...{ truncate: false, control: true, scorers: {} },
      },
    },
    ...{ methods, rows, costs, costs_note: "A list alone, 20 lists, the median of 3 runs each." },
    recommendation: {
      ...{ recommended: point(recommended, 0.71), best: point(depth, 0.72), knee: point(recommended, 0.71), frontier },
      significant: true,
      differences: [
        {
          ...{ a: at(depth), b: at(recommended), level: 0.95, verdict: "no significant difference" },
          difference: { mean: 0.01, low: -0.02, high: 0.04, lists: 450 },
        },
        {
          ...{ a: at(depth), b: { method: "random", layers: null, pooling: null }, level: 0.95, verdict: "above" },
          difference: { mean: 0.22, low: 0.17, high: 0.27, lists: 450 },
        },
      ],
      reason: [
        `Use scorer (srr) at layer ${recommended}: 71.0% top-1 (66.0 to 75.0).`,
        `No deeper layer is significantly better: the highest, layer ${depth}, is 1.0 points above it (-2.0 to 4.0).`,
      ],
    },
    transfer: {
      ...{ trained: [name], measured: [name, "other.jsonl"] },
      rows: onStates.flatMap(({ name: method }) =>
        [name, "other.jsonl"].map((measured, i) => ({
          ...{ trained: name, measured, method, layers: [recommended], pooling, deviation: 0.02 },
          ...{ top1: estimate(0.7 - 0.06 * i), pairwise: estimate(0.68 - 0.06 * i) },
        })),
      ),
    },
    slices: ["exactly one safe", "no refusal phrase", "2 candidates", "3-4 candidates"].map((slice, i) => ({
      ...{ name: slice, lists: 100 + 7 * i },
      rows: [
        ...onStates.map(({ name: method }) => ({ method, layers: [recommended], pooling })),
        { method: "random", layers: null, pooling: null },
      ].map((place, j) => ({ ...place, top1: estimate(0.5 + 0.03 * j), pairwise: null })),
    })),
    states: {
      ...{ lists: 100, responses: 300, seed: 0 },
      norms: poolings.flatMap((of) =>
        layers.flatMap((layer) => [
          { layer, pooling: of, of: "instruction" as const, ...quartiles(5 + layer) },
          { layer, pooling: of, of: "response" as const, ...quartiles(4 + 1.3 ** layer) },
        ]),
      ),
      cosines: poolings.flatMap((of) =>
        layers.flatMap((to) =>
          layers.slice(0, to).map((from) => ({ from, to, pooling: of, ...quartiles(0.9 ** (to - from)) })),
        ),
      ),
      changes: poolings.flatMap((of) =>
        layers.slice(1).map((to) => ({ from: to - 1, to, pooling: of, ...quartiles(0.3 + 0.1 / to) })),
      ),
      separation: poolings.flatMap((of) =>
        layers.map((layer) => ({
          ...{ layer, pooling: of, fisher: 0.01 * layer, silhouette: 0.02, responses: 280 },
          ...{ fisher_within: 0.02 * layer, silhouette_within: 0.03, shuffled_within: 0.015 },
        })),
      ),
      points: {
        class: Array.from({ length: points }, (_, i) => ([1, 0, null] as const)[i % 3]!),
        list: Array.from({ length: points }, (_, i) => `list ${Math.floor(i / 4)}`),
        candidate: Array.from({ length: points }, (_, i) => i % 4),
      },
      maps: [...new Set([0, Math.round(depth / 3), Math.round((2 * depth) / 3), depth])].flatMap((layer) =>
        (["pca", "umap"] as const).map((method) => ({
          ...{ layer, pooling, method, explained: method === "pca" ? [0.3, 0.1] : null },
          x: Array.from({ length: points }, () => 10 * random()),
          y: Array.from({ length: points }, () => 10 * random()),
        })),
      ),
    },
    coverage: [0, 1, 2].flatMap((seed) =>
      ["scorer (pointwise)", "linear probe"].map((method, i) => ({
        ...{ method, layers: [recommended], pooling, seed },
        curve: Array.from({ length: 21 }, (_, k) => ({
          ...{ threshold: 1 - k / 20, coverage: k / 20, error: (0.1 + 0.1 * i) * (k / 20) + 0.05 + 0.01 * seed },
        })).slice(1),
      })),
    ),
  };
  return reportSchema.parse(report);
}
