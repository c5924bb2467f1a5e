import { describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import { bootstrapDifference, bootstrapMean, bootstrapPooled } from "../../scorer/bootstrap.ts";
import { pooledMeasure } from "../../scorer/pooled-measures.ts";

const random = seededRandom(3);
const coins = (count: number, p: number) => Float64Array.from({ length: count }, () => (random() < p ? 1 : 0));

describe("bootstrapMean", () => {
  it("agrees with the normal interval for many lists", () => {
    const values = coins(2000, 0.3);
    const found = bootstrapMean(values);
    const mean = values.reduce((sum, v) => sum + v, 0) / 2000;
    const half = 1.96 * Math.sqrt((mean * (1 - mean)) / 2000);
    expect(found?.mean).toBeCloseTo(mean, 14);
    expect(found?.lists).toBe(2000);
    expect(Math.abs((found?.low ?? 0) - (mean - half))).toBeLessThan(0.15 * half);
    expect(Math.abs((found?.high ?? 0) - (mean + half))).toBeLessThan(0.15 * half);
  });

  it("covers the truth in about 95% of data sets", () => {
    let covered = 0;
    for (let set = 0; set < 400; set++) {
      const found = bootstrapMean(coins(100, 0.6), { samples: 400, seed: set });
      if (found !== null && found.low <= 0.6 && 0.6 <= found.high) covered++;
    }
    // Binomial: 380 expected, standard deviation 4.4; the percentile interval runs a little short.
    expect(covered).toBeGreaterThan(360);
    expect(covered).toBeLessThan(396);
  });

  it("draws clusters whole: copies of a list add nothing", () => {
    const values = coins(200, 0.5);
    const tripled = Float64Array.from({ length: 600 }, (_, i) => values[i % 200]);
    const clusters = Array.from({ length: 600 }, (_, i) => `q${i % 200}`);
    const [once, cluster] = [bootstrapMean(values), bootstrapMean(tripled, { clusters })];
    expect([cluster?.low, cluster?.high, cluster?.lists]).toEqual([once?.low, once?.high, 600]);
    const naive = bootstrapMean(tripled);
    expect((naive?.high ?? 0) - (naive?.low ?? 0)).toBeLessThan(0.7 * ((once?.high ?? 0) - (once?.low ?? 0)));
  });

  it("equal seeds give equal intervals", () => {
    const values = Float64Array.from({ length: 50 }, () => random());
    expect(bootstrapMean(values, { seed: 5 })).toEqual(bootstrapMean(values, { seed: 5 }));
    expect(bootstrapMean(values, { seed: 5 })).not.toEqual(bootstrapMean(values, { seed: 6 }));
  });

  it("leaves out lists without a value; null where none is left; a point for a single list", () => {
    expect(bootstrapMean(Float64Array.of(Number.NaN, 0.25))).toEqual({ mean: 0.25, low: 0.25, high: 0.25, lists: 1 });
    expect(bootstrapMean(Float64Array.of(Number.NaN))).toBeNull();
    expect(bootstrapMean(new Float64Array())).toBeNull();
  });

  it.each([{ samples: 0 }, { samples: 1.5 }, { level: 1 }, { level: Number.NaN }, { clusters: [1] }])(
    "refuses %j",
    (options) => {
      expect(() => bootstrapMean(Float64Array.of(1, 2), options)).toThrow(
        expect.objectContaining({ code: "usage/bad-bootstrap" }),
      );
    },
  );
});

describe("bootstrapDifference", () => {
  it("is paired: a constant gain has no spread", () => {
    const a = Float64Array.from({ length: 40 }, () => random());
    const found = bootstrapDifference(
      a.map((value) => value + 0.25),
      a,
    );
    expect(found?.mean).toBeCloseTo(0.25, 12);
    expect((found?.high ?? 1) - (found?.low ?? 0)).toBeLessThan(1e-12);
  });

  it("is over the lists that both have", () => {
    const found = bootstrapDifference(Float64Array.of(1, Number.NaN, 3), Float64Array.of(0, 5, Number.NaN));
    expect(found).toEqual({ mean: 1, low: 1, high: 1, lists: 1 });
    expect(() => bootstrapDifference(new Float64Array(1), new Float64Array(2))).toThrow(/cannot be paired/);
  });
});

describe("bootstrapPooled", () => {
  const lists = 300;
  const offsets = Uint32Array.from({ length: lists + 1 }, (_, b) => 2 * b);
  const labels = Float32Array.from({ length: 2 * lists }, (_, i) => i % 2);
  const scores = labels.map((label) => label + 3 * random());
  const pooled = pooledMeasure(scores, { offsets, labels });

  it("holds the value, and is as wide as theory says", () => {
    const found = bootstrapPooled(pooled, { samples: 500 });
    const { auc, auprc } = pooled.measure() ?? { auc: -1, auprc: -1 };
    expect([found?.auc.mean, found?.auprc.mean, found?.auc.lists]).toEqual([auc, auprc, lists]);
    // Hanley and McNeil 1982, for independent scores.
    const [q1, q2] = [auc / (2 - auc), (2 * auc * auc) / (1 + auc)];
    const error = Math.sqrt((auc * (1 - auc) + (lists - 1) * (q1 + q2 - 2 * auc * auc)) / lists ** 2);
    const width = ((found?.auc.high ?? 0) - (found?.auc.low ?? 0)) / (2 * 1.96 * error);
    expect(width).toBeGreaterThan(0.8);
    expect(width).toBeLessThan(1.2);
  });

  it("the difference to itself is 0", () => {
    const zero = { mean: 0, low: 0, high: 0, lists };
    expect(bootstrapPooled(pooled, { samples: 20 }, pooled)).toEqual({ auc: zero, auprc: zero });
  });

  it("null without both classes; finite where most samples lack one", () => {
    const one = { offsets: Uint32Array.of(0, 1, 2), labels: Float32Array.of(1, 1) };
    expect(bootstrapPooled(pooledMeasure([1, 2], one, { safeFrom: 1 }))).toBeNull();
    const two = { offsets: Uint32Array.of(0, 1, 2), labels: Float32Array.of(1, 0) };
    const found = bootstrapPooled(pooledMeasure([2, 1], two, { safeFrom: 1 }), { samples: 1, seed: 1 });
    expect(Object.values(found?.auc ?? {}).every(Number.isFinite)).toBe(true);
  });
});

it("10,000 lists x 2000 samples take seconds", () => {
  const start = performance.now();
  bootstrapMean(coins(10_000, 0.5));
  expect(performance.now() - start).toBeLessThan(10_000);
});
