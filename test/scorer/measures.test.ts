import { describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import {
  type LabelledLists,
  type MeasureOptions,
  measureLists,
  randomMeasures,
  safeClasses,
  summarise,
} from "../../scorer/measures.ts";

const NaN_ = Number.NaN;

function ragged(lists: readonly (readonly number[])[]): LabelledLists {
  const offsets = new Uint32Array(lists.length + 1);
  for (const [b, list] of lists.entries()) offsets[b + 1] = offsets[b] + list.length;
  return { offsets, labels: Float32Array.from(lists.flat()) };
}

/** All measures of one list, as plain numbers. */
function measureOne(scores: readonly number[], labels: readonly number[], options: MeasureOptions = {}) {
  const all = measureLists(scores, ragged([labels]), options);
  return Object.fromEntries(Object.entries(all).map(([name, values]) => [name, values[0]]));
}

function* permutations<T>(items: readonly T[]): Generator<T[]> {
  if (items.length === 0) yield [];
  for (const [at, item] of items.entries()) {
    for (const rest of permutations([...items.slice(0, at), ...items.slice(at + 1)])) yield [item, ...rest];
  }
}

/** The measures by their plain definitions in one strict order of labels, best first. */
function ofOrder(ranked: readonly number[], isSafe: (label: number) => boolean) {
  const dcg = (labels: readonly number[], k: number) =>
    labels.slice(0, k).reduce((sum, label, r) => sum + (2 ** label - 1) / Math.log2(r + 2), 0);
  const ideal = [...ranked].sort((a, b) => b - a);
  let [pairs, right] = [0, 0];
  for (let i = 0; i < ranked.length; i++) {
    for (let j = i + 1; j < ranked.length; j++) {
      pairs += ranked[i] === ranked[j] ? 0 : 1;
      right += ranked[i] > ranked[j] ? 1 : 0;
    }
  }
  return {
    top1: isSafe(ranked[0]) ? 1 : 0,
    pairwise: right / pairs,
    mrr: 1 / (1 + ranked.findIndex(isSafe)),
    ...Object.fromEntries([1, 3, 5, 10].map((k) => [`ndcg@${k}`, dcg(ranked, k) / dcg(ideal, k)])),
  };
}

/** The mean over all orders of the tied. */
function enumerated(scores: readonly number[], labels: readonly number[], isSafe: (label: number) => boolean) {
  const sums: Record<string, number> = {};
  let orders = 0;
  for (const order of permutations(labels.map((_, i) => i))) {
    if (order.some((i, r) => r > 0 && scores[order[r - 1]] < scores[i])) continue;
    orders++;
    const ranked = order.map((i) => labels[i]);
    for (const [name, value] of Object.entries(ofOrder(ranked, isSafe))) sums[name] = (sums[name] ?? 0) + value;
  }
  return Object.fromEntries(Object.entries(sums).map(([name, sum]) => [name, sum / orders]));
}

function expectClose(found: Record<string, number>, expected: Record<string, number>) {
  expect(Object.keys(found).sort()).toEqual(Object.keys(expected).sort());
  for (const [name, value] of Object.entries(expected)) expect(found[name], name).toBeCloseTo(value, 12);
}

describe("measureLists, by hand", () => {
  it("a strict order: unsafe, safe, unsafe, safe", () => {
    // Pairs safe-unsafe: 4; right: the safe one at rank 2 above the unsafe one at rank 3.
    const ideal = 1 + 1 / Math.log2(3);
    expectClose(measureOne([4, 3, 2, 1], [0, 1, 0, 1]), {
      top1: 0,
      pairwise: 1 / 4,
      mrr: 1 / 2,
      "ndcg@1": 0,
      "ndcg@3": 1 / Math.log2(3) / ideal,
      "ndcg@5": (1 / Math.log2(3) + 1 / Math.log2(5)) / ideal,
      "ndcg@10": (1 / Math.log2(3) + 1 / Math.log2(5)) / ideal,
    });
  });

  it("a tie at the top: one safe among three, an unsafe one below", () => {
    // The safe one is at rank 1, 2 or 3 with 1/3 each; two half pairs and a right one.
    const found = measureOne([5, 5, 5, 0], [0, 1, 0, 0], { depths: [1, 2] });
    expectClose(found, {
      top1: 1 / 3,
      pairwise: 2 / 3,
      mrr: (1 + 1 / 2 + 1 / 3) / 3,
      "ndcg@1": 1 / 3,
      "ndcg@2": (1 + 1 / Math.log2(3)) / 3,
    });
  });

  it("graded labels with ties, against scikit-learn", () => {
    // ndcg_score(2.0 ** [[3, 0, 2, 1, 2, 0]] - 1, [[.5, .5, .2, .9, .2, .2]], k=k), scikit-learn 1.9.1
    const found = measureOne([0.5, 0.5, 0.2, 0.9, 0.2, 0.2], [3, 0, 2, 1, 2, 0]);
    expect(found["ndcg@1"]).toBeCloseTo(0.14285714285714285, 14);
    expect(found["ndcg@3"]).toBeCloseTo(0.4770859884788315, 14);
    expect(found["ndcg@5"]).toBeCloseTo(0.6091683549894948, 14);
  });
});

describe("measureLists, against all orders of the tied", () => {
  const random = seededRandom(1);
  const below = (n: number) => Math.floor(random() * n);
  const cases = Array.from({ length: 150 }, () => {
    const m = 2 + below(5);
    const [grades, values] = [2 + below(3), 1 + below(5)];
    return {
      scores: Array.from({ length: m }, () => below(values)),
      labels: [0, 1, ...Array.from({ length: m - 2 }, () => below(grades))],
    };
  });

  it("safe is the highest grade", () => {
    for (const { scores, labels } of cases) {
      const highest = Math.max(...labels);
      expectClose(
        measureOne(scores, labels),
        enumerated(scores, labels, (label) => label === highest),
      );
    }
  });

  it("safe from a grade on", () => {
    for (const { scores, labels } of cases) {
      expectClose(
        measureOne(scores, labels, { safeFrom: 1 }),
        enumerated(scores, labels, (label) => label >= 1),
      );
    }
  });

  it("random ranking is the mean over all orders, and top-1 the share of safe candidates", () => {
    for (const { labels } of cases.slice(0, 40)) {
      const random = randomMeasures(ragged([labels]));
      const highest = Math.max(...labels);
      const all = enumerated(
        labels.map(() => 0),
        labels,
        (label) => label === highest,
      );
      for (const [name, values] of Object.entries(random)) expect(values[0], name).toBeCloseTo(all[name], 12);
      expect(random.top1[0]).toBeCloseTo(labels.filter((label) => label === highest).length / labels.length, 14);
      expect(random.pairwise[0]).toBe(0.5);
    }
  });

  it("does not depend on the candidates' order, nor on the scores' scale", () => {
    for (const { scores, labels } of cases) {
      const plain = measureOne(scores, labels);
      // A permutation: 7 divides no length here.
      const order = labels.map((_, i) => (i * 7 + 3) % labels.length);
      const permuted = measureOne(
        order.map((i) => scores[i]),
        order.map((i) => labels[i]),
      );
      expectClose(permuted, plain);
      const stretched = scores.map((score) => Math.exp(3 * score) - 100);
      expect(measureOne(stretched, labels)).toEqual(plain);
    }
  });
});

describe("which lists count", () => {
  it.each([
    ["one candidate", [1]],
    ["none", []],
    ["all safe", [1, 1]],
    ["all unsafe", [0, 0]],
    ["a label missing", [1, 0, NaN_]],
  ])("leaves out a list with %s, and counts it", (_what, labels) => {
    const data = ragged([labels, [1, 0]]);
    const scores = Float64Array.from(data.labels, () => 1);
    scores[scores.length - 2] = 2;
    for (const values of Object.values(measureLists(scores, data))) {
      expect(values[0]).toBeNaN();
      expect(summarise(values)).toEqual({ mean: 1, lists: 1, leftOut: 1 });
    }
    expect(summarise(measureLists(new Float64Array(labels.length), ragged([labels])).top1)).toEqual({
      mean: null,
      lists: 0,
      leftOut: 1,
    });
  });

  it("top-1 and MRR want both classes, pairs and NDCG different grades", () => {
    for (const [labels, safeFrom] of [
      [[2, 3], 1],
      [[2, 3], 4],
    ] as const) {
      const { top1, mrr, pairwise, "ndcg@1": ndcg } = measureOne([0, 1], labels, { safeFrom });
      expect([top1, mrr, pairwise, ndcg]).toEqual([NaN_, NaN_, 1, 1]);
    }
  });

  it("takes a threshold as the 32-bit float that labels are", () => {
    expect([...safeClasses(ragged([[0.7, 0.6]]), { safeFrom: 0.7 })]).toEqual([1, 0]);
  });

  it("classes: relative to the list by default, a candidate's own with a threshold", () => {
    const data = ragged([[2, 1, 0], [0, 0], [1], [1, NaN_]]);
    expect([...safeClasses(data)]).toEqual([1, 0, 0, -1, -1, -1, -1, -1]);
    expect([...safeClasses(data, { safeFrom: 1 })]).toEqual([1, 1, 0, 0, 0, 1, 1, -1]);
  });
});

describe("unusual values", () => {
  it("negative grades: the lowest counts as 0", () => {
    expect(measureOne([1, 2, 3], [-1, 1, -1])).toEqual(measureOne([1, 2, 3], [0, 2, 0]));
  });

  it("huge and tiny grades stay finite", () => {
    for (const labels of [
      [3e38, 1, 0],
      [1e-40, 0, 0],
      [1500, 1499, 0],
      [-3e38, 3e38, 0],
    ]) {
      for (const value of Object.values(measureOne([1, 2, 3], labels))) {
        expect(value).toBeGreaterThanOrEqual(0);
        expect(value).toBeLessThanOrEqual(1);
      }
    }
    expect(measureOne([2, 1], [1499, 1500])["ndcg@1"]).toBe(0.5);
  });

  it("infinite scores are ranked, and tie", () => {
    const { top1, pairwise } = measureOne([Infinity, Infinity, -Infinity], [1, 0, 0]);
    expect([top1, pairwise]).toEqual([0.5, 0.75]);
  });

  it.each([
    ["a NaN score", () => measureOne([NaN_, 1], [0, 1]), "state/not-finite"],
    ["too few scores", () => measureOne([1], [0, 1]), "state/score-count"],
    ["an infinite label", () => measureOne([1, 2], [0, 1e39]), "list/bad-labels"],
    ["a NaN threshold", () => measureOne([1, 2], [0, 1], { safeFrom: NaN_ }), "usage/bad-safe-from"],
    ["a depth of 0", () => measureOne([1, 2], [0, 1], { depths: [0] }), "usage/bad-depth"],
    [
      "offsets that do not fit",
      () => measureLists([1], { offsets: Uint32Array.of(0, 2), labels: Float32Array.of(1) }),
      "list/bad-labels",
    ],
  ])("refuses %s", (_what, run, code) => {
    expect(run).toThrow(expect.objectContaining({ code }));
  });
});
