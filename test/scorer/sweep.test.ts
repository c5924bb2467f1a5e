/** Sweeps over states at hand, without a GPU: baselines alone are fitted, so that every number can be worked out. */
import { describe, expect, it } from "vitest";
import type { Engine } from "../../engine/model.ts";
import { evaluate } from "../../scorer/evaluate.ts";
import { arraySource, besideOneAnother, type FeatureSource } from "../../scorer/feature-source.ts";
import { stateMethods } from "../../scorer/methods.ts";
import { type ReportCell, type ReportRun, reportSchema } from "../../scorer/report-data.ts";
import {
  divideBySeed,
  leastInstructions,
  placeList,
  placesOf,
  runUnit,
  type SweepFile,
  type SweepOptions,
  sweepMethods,
  sweepUnits,
} from "../../scorer/sweep.ts";
import { kneeOf } from "../../scorer/sweep-recommend.ts";
import { makeReport, reportCsv } from "../../scorer/sweep-report.ts";
import { summariseCoverage } from "../../scorer/sweep-summary.ts";
import { failing } from "../support/failing.ts";
import { plantedLists } from "../support/planted.ts";

/** No scorer is trained here, so that nothing asks for a device. */
const NO_ENGINE = new Proxy({} as Engine, {
  get() {
    throw new Error("a baseline asked for the engine");
  },
});

const OPTIONS: SweepOptions = { seeds: [0, 1, 2], test: 0.3, scorers: {}, depth: 5 };

async function sweepAll(
  files: readonly SweepFile[],
  { trained = [files[0]!.name], ...options }: SweepOptions & { readonly trained?: readonly string[] },
): Promise<ReportCell[]> {
  const cells: ReportCell[] = [];
  for (const unit of sweepUnits(trained, options.seeds, files[0]!.places))
    cells.push(...((await runUnit(NO_ENGINE, files, unit, options)) ?? []));
  return cells;
}

const RUN: ReportRun = {
  ...{ command: "stratum sweep", date: "2026-01-01T00:00:00.000Z", seconds: 1, kernels: "0" },
  model: {
    ...{
      name: "planted",
      revision: null,
      fingerprint: "0",
      type: "llama",
      layers: 3,
      hidden_size: 8,
      weights: "stored",
    },
  },
  data: {
    ...{ name: "a", sha256: "0", lists: 1, failed: 0, unlabelled: 0, no_contrast: 0, instructions: 1, candidates: 1 },
  },
  tests: [],
  adapter: { name: "none", source: "system", software: true },
  versions: { stratum: "0", node: "v0", webgpu: "0", platform: "linux x64" },
  ...{ seeds: [0, 1, 2], layers: [0, 1, 2, 3], poolings: ["last"], concat: [] },
  options: {
    ...{ test_share: 0.3, ndcg_depth: 5, safe_from: null, bootstrap: 500, system: null, date: null, truncate: false },
    ...{ control: false, scorers: {} },
  },
};

const reportOf = (
  files: readonly SweepFile[],
  cells: readonly ReportCell[],
  more: Partial<Parameters<typeof makeReport>[0]> = {},
) =>
  makeReport({
    ...{ run: RUN, files, trained: [files[0]!.name], methods: Object.values(sweepMethods({}, false)).flat(), cells },
    ...{ costs: [], costsNote: null, states: null, ...more },
  });

/** A file whose layers hold what `signal` says: the planted direction, or noise of the same shape under the same labels. */
function layered(signal: readonly boolean[], noise = 0.1): SweepFile {
  const lists = plantedLists({ lists: 120, dim: 8, noise });
  const sources = signal.map((planted, layer): FeatureSource => {
    const other = plantedLists({ lists: 120, dim: 8, seed: 100 + layer });
    return arraySource({
      ...lists,
      ...(planted ? {} : { inst: other.inst.slice(0, lists.inst.length), resp: noiseLike(lists.resp, layer) }),
    });
  });
  const taps = sources.map((source, layer) => ({ layer, pooling: "last" as const, source }));
  const layers = [...signal.keys()];
  return {
    name: "a",
    keys: Array.from({ length: 120 }, (_, b) => `question ${b}`),
    texts: Array.from({ length: 120 }, (_, b) => ({
      candidates: Array.from({ length: lists.offsets[b + 1]! - lists.offsets[b]! }, () => ({ text: "same" })),
    })),
    labels: sources[0]!,
    places: placesOf(layers, [], ["last"], taps),
  };
}

/** Numbers that have nothing to do with the labels: the same ones in another order. */
function noiseLike(values: Float32Array, seed: number): Float32Array {
  const shift = 8 * (37 + 11 * seed);
  return Float32Array.from(values, (_, i) => values[(i + shift) % values.length]!);
}

describe("a signal that was planted in one layer", () => {
  it("is found there, significantly", async () => {
    const file = layered([false, false, true, false]);
    const report = reportOf([file], await sweepAll([file], OPTIONS));
    expect(reportSchema.parse(report)).toEqual(report);
    const { recommended, best, significant, reason, differences } = report.recommendation!;
    expect(best).toMatchObject({ method: "linear probe", layers: [2], pooling: "last" });
    expect(recommended).toEqual(best);
    expect(best.top1.mean).toBeGreaterThan(0.8);
    expect(significant).toBe(true);
    expect(reason.join(" ")).toMatch(/significantly above 3 of the other 3 places.*every cheaper place/);
    const others = differences.filter(({ b }) => b.method === "linear probe");
    expect(others.map(({ b, verdict }) => [b.layers, verdict])).toEqual([
      [[0], "above"],
      [[1], "above"],
      [[3], "above"],
    ]);
    expect(others[0]!.level).toBeCloseTo(1 - 0.05 / 3, 12);
    // What every other layer reaches is chance: random ranking's rate lies in its interval.
    const rate = (name: string) => report.rows.find(({ method }) => method === name)!.top1!.mean;
    for (const { method, layers, top1 } of report.rows) {
      if (method !== "linear probe" || layers![0] === 2) continue;
      expect([top1!.low < rate("random"), rate("random") < top1!.high]).toEqual([true, true]);
    }
  });

  it("in two layers: the cheaper one is recommended, with the difference told", async () => {
    const file = layered([false, true, true, false]);
    const { recommended, significant, reason } = reportOf([file], await sweepAll([file], OPTIONS)).recommendation!;
    expect(recommended.layers).toEqual([1]);
    expect(significant).toBe(true);
    expect(reason.join(" ")).toMatch(/significantly above 2 of the other 3 places/);
  });

  it("in none: no significant difference is what is said, and the cheapest place is recommended", async () => {
    const file = layered([false, false, false]);
    const { recommended, significant, reason } = reportOf([file], await sweepAll([file], OPTIONS)).recommendation!;
    expect([recommended.layers, significant]).toEqual([[0], false]);
    expect(reason[1]).toContain("No significant difference between it and any of the other 2 places");
    expect(reason.join(" ")).toContain("not significantly different from chance");
  });
});

/** Rows (cos, sin) of angles in degrees: raw cosine ranks the smallest first. */
const rays = (angles: readonly number[]) =>
  Float32Array.from(angles.flatMap((a) => [Math.cos((a * Math.PI) / 180), Math.sin((a * Math.PI) / 180)]));

/** A list by hand: the angle and label of each candidate, and its instruction. */
type HandList = readonly [key: string, candidates: readonly (readonly [angle: number, label: number, text?: string])[]];

function handFile(name: string, lists: readonly HandList[]): SweepFile {
  const offsets = Uint32Array.from([0, ...lists.map((_, b) => lists.slice(0, b + 1).flatMap(([, own]) => own).length)]);
  const own = lists.flatMap(([, candidates]) => candidates);
  const source = arraySource({
    ...{ dim: 2, inst: rays(lists.map(() => 0)), resp: rays(own.map(([angle]) => angle)), offsets },
    labels: Float32Array.from(own, ([, label]) => label),
  });
  return {
    ...{ name, keys: lists.map(([key]) => key), labels: source },
    texts: lists.map(([, candidates]) => ({ candidates: candidates.map(([, , text = "Well."]) => ({ text })) })),
    places: [{ layers: [1], pooling: "last", source }],
  };
}

/** Right: the safe candidate lies nearest. Wrong: farthest. Tied: as near as the other one. */
const right: HandList[1] = [
  [10, 1],
  [40, 0],
];
const wrong: HandList[1] = [
  [40, 1],
  [10, 0],
];
const tied: HandList[1] = [
  [20, 1],
  [20, 0],
];

describe("transfer and slices, worked out by hand", () => {
  // Ten instructions a file, "shared" in both; what raw cosine reaches on each list is known.
  const HITS_A = [1, 0, 1, 0.5, 1, 0, 1, 1, 0.5, 0];
  const listOf = (hit: number) => (hit === 1 ? right : hit === 0 ? wrong : tied);
  const a = handFile(
    "a",
    HITS_A.map((hit, b) => [b === 4 ? "shared" : `a${b}`, listOf(hit)]),
  );
  const HITS_B = [0, 0, 1, 1];
  const b = handFile("b", [
    ["b0", [...wrong, [80, 0]]],
    [
      "b1",
      [
        [40, 1],
        [10, 0, "I'm sorry, I cannot help."],
        [70, 1],
      ],
    ],
    ["b2", [...right, [70, 0]]],
    ["shared", right],
  ]);

  it("measures each file on what was not trained on", async () => {
    const cells = await sweepAll([a, b], { ...OPTIONS, seeds: [0, 1], trained: ["a", "b"] });
    const cosine = cells.filter(({ method }) => method === "raw cosine");
    expect(cosine.map(({ trained, measured, seed }) => [trained, measured, seed])).toEqual([
      ["a", "a", 0],
      ["a", "b", 0],
      ["a", "a", 1],
      ["a", "b", 1],
      ["b", "a", 0],
      ["b", "b", 0],
      ["b", "a", 1],
      ["b", "b", 1],
    ]);
    for (const { trained, measured, seed, lists, top1 } of cosine) {
      const { train } = divideBySeed(trained === "a" ? a : b, OPTIONS, seed);
      const file = measured === "a" ? a : b;
      const seen = new Set(train.map((at) => (trained === "a" ? a : b).keys[at]));
      // Three of ten or one of four held out; of another file all but the shared instruction, where that was trained on.
      expect(lists).toEqual([...file.keys.keys()].filter((at) => !seen.has(file.keys[at]!)));
      const size = file.keys.length;
      expect(lists).toHaveLength(measured === trained ? (size === 10 ? 3 : 1) : size - (seen.has("shared") ? 1 : 0));
      expect(top1).toEqual(lists.map((at) => (measured === "a" ? HITS_A : HITS_B)[at]));
    }
    const report = reportOf([a, b], cells, { trained: ["a", "b"] });
    expect(reportSchema.parse(report)).toEqual(report);
    expect([report.transfer!.trained, report.transfer!.measured]).toEqual([
      ["a", "b"],
      ["a", "b"],
    ]);
    for (const row of report.transfer!.rows.filter(({ method }) => method === "raw cosine")) {
      const own = cosine.filter(({ trained, measured }) => trained === row.trained && measured === row.measured);
      const values = own.flatMap(({ top1 }) => top1 as number[]);
      expect(row.top1!.mean).toBeCloseTo(values.reduce((sum, value) => sum + value, 0) / values.length, 12);
      expect(row.top1!.lists).toBe(values.length);
    }
    // The rows are those of the first file alone.
    const row = report.rows.find(({ method }) => method === "raw cosine")!;
    const diagonal = report.transfer!.rows.find(
      ({ method, trained, measured }) => method === "raw cosine" && trained === "a" && measured === "a",
    )!;
    expect(row.top1).toEqual(diagonal.top1);
  });

  it("measures slices on the lists that belong to them", async () => {
    // Every list of b is measured where a is trained on; b0 and b2 have one safe of three, b1 two and a refusal.
    const c = handFile("c", [
      ["c0", [...wrong, [80, 0]]],
      [
        "c1",
        [
          [40, 1],
          [10, 0, "I'm sorry, I cannot help."],
          [70, 1],
        ],
      ],
      ["c2", [...right, [70, 0]]],
      ["c3", right],
      ["c4", right],
      [
        "c5",
        [
          [30, 1, "As an AI, I do not."],
          [60, 0],
          [61, 0],
          [62, 0],
          [63, 0],
        ],
      ],
      ["c6", wrong],
    ]);
    const hits = [0, 0, 1, 1, 1, 1, 0];
    const slices = { one: [0, 2, 3, 4, 5, 6], plain: [0, 2, 3, 4, 6], two: [3, 4, 6], three: [0, 1, 2], five: [5] };
    const seeds = [0, 1, 2, 3, 4, 5, 6, 7];
    const cells = await sweepAll([c], { ...OPTIONS, seeds });
    const report = reportOf([c], cells);
    const measured = cells.filter(({ method }) => method === "raw cosine").flatMap(({ lists }) => lists);
    const expected = Object.entries({
      "exactly one safe": slices.one,
      "no refusal phrase": slices.plain,
      "2 candidates": slices.two,
      "3-4 candidates": slices.three,
      "5-8 candidates": slices.five,
    }).flatMap(([name, lists]) => {
      const own = measured.filter((at) => lists.includes(at));
      return own.length === 0
        ? []
        : [[name, new Set(own).size, own.reduce((sum, at) => sum + hits[at]!, 0) / own.length] as const];
    });
    expect(expected.length).toBeGreaterThanOrEqual(4);
    for (const [at, [name, lists, mean]] of expected.entries()) {
      const slice = report.slices[at]!;
      expect([slice.name, slice.lists]).toEqual([name, lists]);
      expect(slice.rows.find(({ method }) => method === "raw cosine")!.top1!.mean).toBeCloseTo(mean, 12);
    }
    expect(report.slices).toHaveLength(expected.length);
  });

  it("refuses a file whose instructions were all trained on", async () => {
    const same = handFile("same", [
      ["a0", right],
      ["a1", wrong],
      ["a2", right],
    ]);
    const trainAll = Array.from({ length: 100 }, (_, seed) => seed).find((seed) => {
      const { train } = divideBySeed(a, OPTIONS, seed);
      return [0, 1, 2].every((at) => train.includes(at));
    })!;
    await expect(sweepAll([a, same], { ...OPTIONS, seeds: [trainAll] })).rejects.toThrow(
      failing("list/all-seen", /seed \d+ the instructions of all 3 lists of same are trained on in a/),
    );
  });
});

describe("a cell", () => {
  it("is what the evaluation of the same split gives, intervals included", async () => {
    const file = layered([true, false], 0.5);
    const cells = await sweepAll([file], OPTIONS);
    const report = reportOf([file], cells);
    for (const { layers, source } of file.places) {
      const { fit, measured } = divideBySeed(file, OPTIONS, 1);
      const of = { source, clusters: file.keys };
      const methods = await stateMethods({ of, lists: measured }, { of, lists: fit }, { seed: 0 });
      const { rows } = evaluate(methods, source, { lists: measured, clusters: file.keys, seed: 0, samples: 500 });
      for (const { name, top1, pairwise, mrr, ndcg } of rows) {
        const row = report.rows.find((each) => each.method === name && each.layers?.[0] === layers[0])!;
        expect(row.seeds[1]).toEqual({ seed: 1, top1, pairwise, mrr, ndcg });
      }
    }
  });
});

describe("several layers side by side", () => {
  it("hold each layer's columns, and their probe knows what both know", async () => {
    const [first, second] = [plantedLists({ lists: 4, dim: 3 }), plantedLists({ lists: 4, dim: 3, seed: 9 })];
    const resp = second.resp.slice(0, first.resp.length);
    const both = besideOneAnother([arraySource(first), arraySource({ ...first, resp })]);
    expect(both.dim).toBe(6);
    const m = first.offsets[2]! - first.offsets[1]!;
    const states = new Float32Array(2 + (1 + m) * 6);
    await both.readList(1, states, 2);
    const row = first.offsets[1]!;
    expect([...states.subarray(8, 14)]).toEqual([
      ...first.resp.subarray(row * 3, row * 3 + 3),
      ...resp.subarray(row * 3, row * 3 + 3),
    ]);
    expect(
      placeList([1, 2], [[1, 2]], ["last", "mean"]).map(({ layers, pooling }) => [layers.join("+"), pooling]),
    ).toEqual(["last", "mean"].flatMap((pooling) => ["1", "2", "1+2"].map((layers) => [layers, pooling])));
  });
});

describe("too little", () => {
  const few = (count: number) =>
    handFile(
      "a",
      Array.from({ length: count }, (_, i) => [`q${i}`, right]),
    );

  it("says how many instructions a split needs", () => {
    expect([0.1, 0.3, 0.5, 0.9].map(leastInstructions)).toEqual([3, 3, 4, 16]);
    expect(() => divideBySeed(few(2), OPTIONS, 0)).toThrow(
      failing("list/too-few", /2 lists of 2 different instructions can be used.*needs at least 3/),
    );
    expect(divideBySeed(few(3), OPTIONS, 0)).toMatchObject({ measured: { length: 1 }, fit: { length: 2 } });
    // Forty lists of one instruction are one instruction.
    const same = handFile(
      "a",
      Array.from({ length: 40 }, () => ["q", right]),
    );
    expect(() => divideBySeed(same, OPTIONS, 0)).toThrow(
      failing("list/too-few", "40 lists of 1 different instruction"),
    );
  });

  it("refuses lists of one class", () => {
    const one = handFile(
      "a",
      Array.from({ length: 20 }, (_, i) => [
        `q${i}`,
        [
          [1, 1],
          [2, 1],
        ],
      ]),
    );
    expect(() => divideBySeed(one, OPTIONS, 0)).toThrow(failing("list/no-contrast", "none of 20 lists"));
  });
});

describe("the knee", () => {
  const point = (ms: number, mean: number) => ({
    ...{ method: "linear probe", layers: [ms], pooling: "last", ms },
    top1: { mean, low: mean, high: mean, lists: 10 },
  });

  it("is the point that lies farthest above the line from the cheapest to the best", () => {
    // Lines of slope 0.02 a millisecond: 4 ms lies 0.12 above, 2 ms 0.06, 8 ms 0.04.
    const frontier = [point(0, 0.5), point(2, 0.6), point(4, 0.7), point(8, 0.7 + 1e-9), point(10, 0.7 + 2e-9)];
    expect(kneeOf(frontier)).toEqual(frontier[2]);
  });

  it("is none where accuracy grows evenly, late, or hardly at all", () => {
    expect(kneeOf([point(0, 0.5), point(5, 0.6), point(10, 0.7)])).toBeNull();
    expect(kneeOf([point(0, 0.5), point(8, 0.52), point(10, 0.7)])).toBeNull();
    expect(kneeOf([point(0, 0.5), point(10, 0.7)])).toBeNull();
  });
});

it("tells coverage against error of a pointwise scorer, seed by seed, at its best place", () => {
  const hits = [1, 1, 0, 0.5];
  const cell = (layer: number, seed: number, top1: number[], highest: number[]): ReportCell => ({
    ...{ method: "scorer (pointwise)", pointwise: true, layers: [layer], pooling: "last", seed },
    ...{
      trained: "a",
      measured: "a",
      lists: [0, 1, 2, 3],
      top1,
      pairwise: top1,
      mrr: top1,
      ndcg: top1,
      highest,
      ms: 1,
    },
  });
  const methods = [{ name: "scorer (pointwise)", kind: "scorer", pointwise: true }] as const;
  const cells = [
    cell(1, 0, [0, 0, 0, 1], [1, 2, 3, 4]),
    cell(2, 0, hits, [4, 3, 2, 1]),
    cell(2, 1, hits, [1, 2, 3, 3]),
  ];
  const keysOf = new Map([["a", ["w", "x", "y", "z"]]]);
  const found = summariseCoverage(cells, methods, keysOf)!;
  expect(found.map(({ layers, seed }) => [layers, seed])).toEqual([
    [[2], 0],
    [[2], 1],
  ]);
  expect(found[0]!.curve).toEqual([
    { threshold: 4, coverage: 0.25, error: 0 },
    { threshold: 3, coverage: 0.5, error: 0 },
    { threshold: 2, coverage: 0.75, error: 1 / 3 },
    { threshold: 1, coverage: 1, error: 0.5 },
  ]);
  expect(found[1]!.curve.map(({ error }) => error)).toEqual([1, 2 / 3, 0.5]);
  expect(summariseCoverage(cells, [], keysOf)).toBeNull();
});

it("writes rows as CSV that a spreadsheet reads", async () => {
  const file = layered([true]);
  const cost = { layer: 0, pooling: "last", lists: 3, ms: { median: 1.5, low: 1, high: 2 }, tokens_per_s: 10 };
  const report = reportOf([file], await sweepAll([file], { ...OPTIONS, seeds: [0] }), {
    costs: [{ ...cost, gpu_bytes: 99, weight_bytes: 9, disk_bytes: 9 }],
    methods: [{ name: 'a "quoted", one', kind: "baseline", pointwise: true }],
  });
  const renamed = { ...report, rows: [{ ...report.rows.at(-1)!, method: 'a "quoted", one' }, report.rows[0]!] };
  const lines = reportCsv(renamed).split("\r\n");
  expect(lines).toHaveLength(4);
  expect(lines[1]).toMatch(/^"a ""quoted"", one",baseline,0,last,0\.\d+,.*,36,1,1\.5,99$/);
  expect(lines[2]).toMatch(/^random,,,,0\.1\d+,.*,36,1,,$/);
});
