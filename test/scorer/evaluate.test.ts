/** Methods side by side: what the rows hold, on which lists, and what a slice leaves. */
import { describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import { bootstrapDifference, bootstrapMean } from "../../scorer/bootstrap.ts";
import { evaluate, evaluateSlices, type Method } from "../../scorer/evaluate.ts";
import { type LabelledLists, measureLists, randomMeasures } from "../../scorer/measures.ts";

function ragged(lists: readonly (readonly number[])[]): LabelledLists {
  const offsets = new Uint32Array(lists.length + 1);
  for (const [b, list] of lists.entries()) offsets[b + 1] = offsets[b]! + list.length;
  return { offsets, labels: Float32Array.from(lists.flat()) };
}

const random = seededRandom(11);
const LISTS = Array.from({ length: 40 }, (_, b) => [
  1,
  0,
  ...Array.from({ length: b % 4 }, () => (random() < 0.5 ? 1 : 0)),
]);
const DATA = ragged(LISTS);
const N = DATA.labels.length;
const noise = Float64Array.from({ length: N }, () => random());
const noisy = Float64Array.from(DATA.labels, (label) => label + 2 * random());
const METHODS: readonly Method[] = [
  { name: "scorer", scores: noisy },
  { name: "oracle", scores: DATA.labels, pointwise: true },
  { name: "noise", scores: noise, pointwise: true },
  { name: "random", scores: new Float64Array(N), pointwise: true },
];
const FEW = { samples: 200, seed: 3 };
const rowOf = ({ rows }: ReturnType<typeof evaluate>, name: string) => rows.find((row) => row.name === name)!;

describe("evaluate", () => {
  it("gives what the measures and the bootstrap give, method by method", () => {
    const found = evaluate(METHODS, DATA, { ...FEW, depth: 3 });
    expect(found).toMatchObject({ lists: 40, instructions: 40, candidates: N, depth: 3, reference: "scorer" });
    expect(found.rows.map(({ name, pointwise }) => [name, pointwise])).toEqual([
      ["scorer", false],
      ["oracle", true],
      ["noise", true],
      ["random", true],
    ]);
    const [own, reference] = [noise, noisy].map((scores) => measureLists(scores, DATA, { depths: [3] }));
    const row = rowOf(found, "noise");
    for (const [name, measure] of [
      ["top1", "top1"],
      ["pairwise", "pairwise"],
      ["mrr", "mrr"],
      ["ndcg", "ndcg@3"],
    ] as const)
      expect(row[name], name).toEqual(bootstrapMean(own![measure], FEW));
    expect(row.difference).toEqual(bootstrapDifference(own!.top1, reference!.top1, FEW));
  });

  it("measures the oracle as perfect, and equal scores as random on average", () => {
    const found = evaluate(METHODS, DATA, FEW);
    const perfect = { mean: 1, low: 1, high: 1, lists: 40 };
    const { difference, ...oracle } = rowOf(found, "oracle");
    expect(oracle).toEqual({
      ...{ name: "oracle", pointwise: true, top1: perfect, pairwise: perfect, mrr: perfect, ndcg: perfect },
      ...{ auc: perfect, auprc: perfect },
    });
    const top1 = rowOf(found, "scorer").top1!.mean;
    expect(difference!.mean).toBeCloseTo(1 - top1, 12);
    const expected = bootstrapMean(randomMeasures(DATA).top1, FEW);
    expect(rowOf(found, "random").top1).toEqual(expected);
    expect(rowOf(found, "random").auc!.mean).toBe(0.5);
    const { auc, auprc, difference: own } = rowOf(found, "scorer");
    expect([auc, auprc, own]).toEqual([null, null, null]);
  });

  it("looks at the chosen lists only, as if there were no others", () => {
    const lists = [1, 4, 5, 19];
    const part = ragged(lists.map((b) => LISTS[b]!));
    const own = (scores: ArrayLike<number>) =>
      Float64Array.from(lists.flatMap((b) => Array.from(scores).slice(DATA.offsets[b], DATA.offsets[b + 1])));
    // What stands outside of them may even be no number.
    const poisoned = METHODS.map((method) => {
      const scores = Float64Array.from(method.scores);
      for (let b = 0; b < LISTS.length; b++)
        if (!lists.includes(b)) scores.fill(Number.NaN, DATA.offsets[b], DATA.offsets[b + 1]);
      return { ...method, scores };
    });
    const alone = METHODS.map((method) => ({ ...method, scores: own(method.scores) }));
    expect(evaluate(poisoned, DATA, { ...FEW, lists })).toEqual(evaluate(alone, part, FEW));
  });

  it("draws the lists of one instruction together, by the clusters of all lists", () => {
    const clusters = LISTS.map((_, b) => `q${b >> 2}`);
    const found = evaluate(METHODS, DATA, { ...FEW, clusters, lists: [0, 1, 2, 3, 8, 9] });
    expect(found).toMatchObject({ lists: 6, instructions: 2 });
    const one = evaluate(METHODS, DATA, { ...FEW, clusters, lists: [0, 1, 2, 3] });
    for (const { top1 } of one.rows) expect([top1!.low, top1!.high]).toEqual([top1!.mean, top1!.mean]);
  });

  it("compares with the named method, and takes safe from a grade", () => {
    const graded = ragged([
      [2, 1, 0],
      [1, 2],
      [0, 0.5],
    ]);
    const scores = Float64Array.of(1, 2, 0, 1, 0, 1, 0);
    const methods = [
      { name: "a", scores },
      { name: "b", scores: scores.map((score) => -score) },
    ];
    expect(rowOf(evaluate(methods, graded, { reference: "b" }), "a").difference).not.toBeNull();
    expect(rowOf(evaluate(methods, graded, FEW), "a").top1).toMatchObject({ mean: 0, lists: 3 });
    expect(rowOf(evaluate(methods, graded, { ...FEW, safeFrom: 1 }), "a").top1).toMatchObject({ mean: 1, lists: 1 });
  });

  it("gives null where no list counts", () => {
    const same = ragged([[1, 1], [0]]);
    const [row] = evaluate([{ name: "a", scores: [1, 2, 3], pointwise: true }], same).rows;
    expect(row).toMatchObject({ top1: null, pairwise: null, mrr: null, ndcg: null, auc: null });
    expect(
      evaluate([{ name: "a", scores: [1, 2, 0], pointwise: true }], same, { safeFrom: 1 }).rows[0]!.auc!.mean,
    ).toBe(1);
  });

  it.each([
    ["usage/bad-reference", METHODS, { reference: "x" }],
    ["usage/bad-reference", [], {}],
    ["usage/bad-depth", METHODS, { depth: 0 }],
    ["usage/bad-bootstrap", METHODS, { samples: 0 }],
    ["state/score-count", [{ name: "a", scores: [1] }], {}],
    ["state/not-finite", [{ name: "a", scores: new Float64Array(N).fill(Number.NaN) }], {}],
  ] as const)("refuses %s", (code, methods, options) => {
    expect(() => evaluate(methods, DATA, options)).toThrow(expect.objectContaining({ code }));
  });
});

describe("evaluateSlices", () => {
  const texts = LISTS.map((list, b) => ({
    candidates: list.map((label) => ({ text: b % 2 === 0 && label === 0 ? "I'm sorry, no." : "Yes.", label })),
  }));

  it("gives the rows of each slice's lists", () => {
    const slices = evaluateSlices(METHODS, DATA, FEW, texts);
    expect(slices.map(({ name }) => name)).toEqual([
      "exactly one safe",
      "no refusal phrase",
      "2 candidates",
      "3-4 candidates",
      "5-8 candidates",
    ]);
    const members = [
      (list: number[]) => list.filter((label) => label === 1).length === 1,
      (_: number[], b: number) => b % 2 === 1,
      (list: number[]) => list.length === 2,
      (list: number[]) => list.length === 3 || list.length === 4,
      (list: number[]) => list.length === 5,
    ];
    for (const [at, { name: _, ...slice }] of slices.entries()) {
      const lists = LISTS.flatMap((list, b) => (members[at]!(list, b) ? [b] : []));
      expect(slice).toEqual(evaluate(METHODS, DATA, { ...FEW, lists }));
    }
  });

  it("stays within the chosen lists, leaves out empty slices, and needs texts for refusals", () => {
    const slices = evaluateSlices(METHODS, DATA, { ...FEW, lists: [0, 4] });
    expect(slices.map(({ name, lists }) => [name, lists])).toEqual([
      ["exactly one safe", 2],
      ["2 candidates", 2],
    ]);
  });
});
