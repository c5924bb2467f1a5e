import { describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import { pooledMeasure } from "../../scorer/pooled-measures.ts";

/** Lists of two. */
function pairs(labels: readonly number[]) {
  return {
    offsets: Uint32Array.from({ length: labels.length / 2 + 1 }, (_, b) => 2 * b),
    labels: Float32Array.from(labels),
  };
}

describe("pooledMeasure", () => {
  it("by hand: 0.9 safe, 0.8 unsafe, 0.7 safe, 0.6 unsafe", () => {
    // Right pairs 3 of 4; precision 1 at the first safe one, 2/3 at the second.
    const values = pooledMeasure([0.9, 0.8, 0.7, 0.6], pairs([1, 0, 1, 0])).measure();
    expect(values?.auc).toBe(3 / 4);
    expect(values?.auprc).toBeCloseTo((1 + 2 / 3) / 2, 14);
  });

  it("all tied: 1/2, and the share of safe candidates", () => {
    expect(pooledMeasure([1, 1, 1, 1], pairs([1, 0, 1, 0])).measure()).toEqual({ auc: 0.5, auprc: 0.5 });
  });

  it("with ties as scikit-learn", () => {
    // roc_auc_score and average_precision_score of s = round(4 x0) / 4, scikit-learn 1.9.1, with x and y as in
    // logistic.test.ts.
    const x = (i: number, j: number) => Math.fround(Math.sin(3 * i + 7 * j) + j);
    const rows = Array.from({ length: 40 }, (_, i) => i);
    const labels = rows.map((i) => (Math.sin(5 * i) + x(i, 0) > x(i, 1) - 1 ? 1 : 0));
    const scores = rows.map((i) => Math.round(4 * x(i, 0)) / 4);
    const values = pooledMeasure(scores, pairs(labels), { safeFrom: 1 }).measure();
    expect(values?.auc).toBeCloseTo(0.5877192982456141, 12);
    expect(values?.auprc).toBeCloseTo(0.5805926622342662, 12);
  });

  it("a weight is a list that often", () => {
    const random = seededRandom(2);
    for (let round = 0; round < 30; round++) {
      const labels = Array.from({ length: 12 }, (_, i) => (i < 2 ? i : Math.floor(random() * 2)));
      const scores = labels.map(() => Math.floor(random() * 4));
      const weights = Float64Array.from({ length: 6 }, (_, b) => (b === 0 ? 1 : Math.floor(random() * 3)));
      const copies = [...weights].flatMap((times, b) => Array.from({ length: times }, () => [2 * b, 2 * b + 1]).flat());
      const copied = pooledMeasure(
        copies.map((i) => scores[i]),
        pairs(copies.map((i) => labels[i])),
        { safeFrom: 1 },
      ).measure();
      const weighted = pooledMeasure(scores, pairs(labels), { safeFrom: 1 }).measure(weights);
      expect(weighted?.auc).toBeCloseTo(copied?.auc ?? -1, 12);
      expect(weighted?.auprc).toBeCloseTo(copied?.auprc ?? -1, 12);
    }
  });

  it("leaves out candidates of unknown class and counts them; null without both classes", () => {
    const some = pooledMeasure([1, 0, 5, 5], pairs([1, 0, 1, 1]));
    expect([some.used, some.lists, some.leftOut, some.measure()?.auc]).toEqual([1, 2, 2, 1]);
    expect(pooledMeasure([1, 0], pairs([1, 1])).measure()).toBeNull();
    expect(pooledMeasure([1, 0], pairs([1, 1]), { safeFrom: 1 }).measure()).toBeNull();
    expect(pooledMeasure([], { offsets: Uint32Array.of(0), labels: new Float32Array() }).measure()).toBeNull();
  });
});
