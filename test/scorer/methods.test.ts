/** The methods beside a scorer: fitted on some lists, scored on others, their scores in the right places. */
import { describe, expect, it } from "vitest";
import { rawCosine, scoreStates } from "../../scorer/baselines.ts";
import { arraySource } from "../../scorer/feature-source.ts";
import { measureLists, summarise } from "../../scorer/measures.ts";
import { probeMethod, randomMethod, spread, stateMethods, textMethods } from "../../scorer/methods.ts";
import { randomFeatures } from "../support/features.ts";

const DIM = 8;
const LENGTHS = Array.from({ length: 60 }, (_, b) => 2 + (b % 3));

/** Features whose first coordinate tells safe from unsafe. */
function planted(seed: number) {
  const features = randomFeatures(LENGTHS, DIM, seed);
  const labels = Float32Array.from(features.labels, (_, i) => i % 2);
  for (const [i, label] of labels.entries()) features.resp[i * DIM]! += 4 * label;
  return arraySource({ ...features, labels });
}
const source = planted(1);
const N = source.labels.length;
const all = (count: number) => Array.from({ length: count }, (_, b) => b);
const held = all(60).slice(40);
const on = { of: { source, clusters: null }, lists: held };
const fit = { of: { source, clusters: null }, lists: all(40) };
const accuracy = (scores: ArrayLike<number>) => {
  const { pairwise } = measureLists(scores, source);
  return summarise(Float64Array.from(held, (b) => pairwise[b]!)).mean;
};

describe("stateMethods", () => {
  it("are the raw cosine, the difference of means and the linear probe, scored on the chosen lists", async () => {
    const methods = await stateMethods(on, fit);
    expect(methods.map(({ name, pointwise }) => [name, pointwise])).toEqual([
      ["raw cosine", true],
      ["difference of means", true],
      ["linear probe", true],
    ]);
    const first = source.offsets[40]!;
    for (const { scores } of methods) {
      expect(scores.length).toBe(N);
      expect(Array.from(scores).slice(0, first)).toEqual(new Array(first).fill(0));
    }
    expect(Array.from(methods[0]!.scores).slice(first)).toEqual([...(await scoreStates(source, held, rawCosine(DIM)))]);
    for (const { scores } of methods.slice(1)) expect(accuracy(scores)).toBeGreaterThan(0.9);
  });

  it("are the raw cosine alone where there is nothing to fit on", async () => {
    expect((await stateMethods(on, null)).map(({ name }) => name)).toEqual(["raw cosine"]);
  });

  it("may be fitted on another file", async () => {
    const other = { of: { source: planted(2), clusters: LENGTHS.map((_, b) => `q${b % 30}`) }, lists: all(60) };
    const probe = await probeMethod("a probe", on, other);
    expect(probe.name).toBe("a probe");
    expect(accuracy(probe.scores)).toBeGreaterThan(0.9);
  });
});

describe("textMethods", () => {
  const texts = all(20).map((b) => ({
    candidates: [
      { text: `Take care with number ${b}.`, label: 1 },
      { text: `Run at number ${b}!`, label: 0 },
    ],
  }));
  const clusters = texts.map((_, b) => String(b));

  it("score all lists in their order; a bag of words where there are lists to fit on", () => {
    const of = { texts, clusters };
    const methods = textMethods(of, { of, lists: all(10) });
    expect(methods.map(({ name }) => name)).toEqual(["bag of words", "refusal keywords", "shortest"]);
    expect(textMethods(of, null).map(({ name }) => name)).toEqual(["refusal keywords", "shortest"]);
    const [words, refusal, shortest] = methods;
    for (const b of all(20)) expect(words!.scores[2 * b]).toBeGreaterThan(words!.scores[2 * b + 1]!);
    expect(new Set(Array.from(refusal!.scores))).toEqual(new Set([0]));
    expect(Array.from(shortest!.scores).slice(0, 2)).toEqual([-24, -16]);
  });
});

describe("spread and randomMethod", () => {
  it("put scores in their lists' places, and give all candidates the same", () => {
    const offsets = Uint32Array.of(0, 2, 3, 5);
    const labels = new Float32Array(5);
    expect([
      ...spread(
        { offsets, labels },
        [2, 0],
        [
          [1, 2],
          [3, 4],
        ],
      ),
    ]).toEqual([3, 4, 0, 1, 2]);
    expect(Array.from(randomMethod(3).scores)).toEqual([0, 0, 0]);
  });
});
