/** Abstaining: bounds against values from closed forms and tables, curves and thresholds worked out by hand. */
import { describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import {
  absoluteSafeFrom,
  abstainRecordOf,
  areaUnderCoverage,
  checkPointwise,
  chooseThreshold,
  coverageAt,
  coverageCurve,
  type FirstPlaces,
  firstPlaces,
  recordedThreshold,
  thinned,
} from "../../scorer/abstain.ts";
import { binomialAtMost, binomialUpper, trialsNeeded } from "../../scorer/binomial.ts";
import { failing } from "../support/failing.ts";

const places = (best: readonly number[], wrong: readonly number[]): FirstPlaces => ({
  best: Float32Array.from(best),
  wrong: Uint8Array.from(wrong),
});

describe("bounds of a rate", () => {
  it("the distribution by hand, and where its terms underflow", () => {
    // 3 trials at 1/4: (27 + 27) / 64 for at most one.
    expect(binomialAtMost(0, 3, 0.25)).toBeCloseTo(27 / 64, 14);
    expect(binomialAtMost(1, 3, 0.25)).toBeCloseTo(54 / 64, 14);
    expect([binomialAtMost(3, 3, 0.25), binomialAtMost(1, 3, 0), binomialAtMost(1, 3, 1)]).toEqual([1, 1, 0]);
    // 0.95^20000 is 0 as a double; the median of 20,000 trials at 0.05 is 1,000.
    expect(binomialAtMost(999, 20_000, 0.05)).toBeLessThan(0.5);
    expect(binomialAtMost(1000, 20_000, 0.05)).toBeGreaterThan(0.5);
  });

  it("Clopper and Pearson: closed forms at the ends, a table's value between", () => {
    // No failure: 1 - (1 - confidence)^(1/n). The rule of three is its approximation.
    expect(binomialUpper(0, 10, 0.95)).toBeCloseTo(1 - 0.05 ** (1 / 10), 12);
    // One less than all: confidence = rate^n at failures n - 1.
    expect(binomialUpper(4, 5, 0.95)).toBeCloseTo(0.95 ** (1 / 5), 12);
    expect([binomialUpper(5, 5, 0.95), binomialUpper(0, 0, 0.95)]).toEqual([1, 1]);
    // The two-sided 95% interval of 1 in 10 is 0.0025 to 0.4450 (Clopper and Pearson's).
    expect(binomialUpper(1, 10, 0.975)).toBeCloseTo(0.445, 4);
    for (const [failures, trials] of [
      [3, 2],
      [-1, 2],
      [0.5, 2],
    ]) {
      expect(() => binomialUpper(failures, trials, 0.95)).toThrowError(failing("usage/abstain"));
    }
  });

  it("trials that are needed: 59 for 5% with 95%, one for a half with a half", () => {
    expect(trialsNeeded(0.05, 0.95)).toBe(59);
    expect(0.95 ** 59 <= 0.05 && 0.95 ** 58 > 0.05).toBe(true);
    expect(trialsNeeded(0.5, 0.5)).toBe(1);
    expect(trialsNeeded(0.5, 0.75)).toBe(2);
  });
});

describe("coverage against error", () => {
  // Best first: right, wrong, right, right and wrong tied.
  const five = places([0.2, 0.9, 0.5, 0.2, 0.7], [1, 0, 0, 0, 1]);

  it("by hand, a point for each score", () => {
    const points = coverageCurve(five).map(({ threshold, answered, wrong, coverage, error }) => [
      Number(threshold.toFixed(2)),
      answered,
      wrong,
      coverage,
      error,
    ]);
    expect(points).toEqual([
      [0.9, 1, 0, 0.2, 0],
      [0.7, 2, 1, 0.4, 1 / 2],
      [0.5, 3, 1, 0.6, 1 / 3],
      [0.2, 5, 2, 1, 2 / 5],
    ]);
    // 0, 1/2, 1/3, then (1 + 1/2) / 4 where either of the tied two may come first, 2/5.
    expect(areaUnderCoverage(coverageCurve(five))).toBeCloseTo((0 + 1 / 2 + 1 / 3 + 1.5 / 4 + 2 / 5) / 5, 14);
    expect(coverageAt(five, 0.6)).toEqual({ threshold: 0.6, answered: 2, wrong: 1, coverage: 0.4, error: 0.5 });
    expect(coverageAt(five, 1).error).toBeNull();
    expect(coverageCurve(places([], []))).toEqual([]);
  });

  it("thinned: both ends, evenly between", () => {
    const curve = coverageCurve(
      places(
        Array.from({ length: 101 }, (_, i) => i),
        Array(101).fill(0),
      ),
    );
    expect(thinned(curve, 5).map(({ answered }) => answered)).toEqual([1, 26, 51, 76, 101]);
    expect(thinned(curve, 500)).toEqual(curve);
  });

  it("a list's first place: the first of a tie; a list without a safe candidate is wrong whoever leads", () => {
    const data = { offsets: Uint32Array.of(0, 2, 4, 6), labels: Float32Array.of(0, 1, 0.7, 0, 0, 0) };
    const found = firstPlaces([0.5, 0.5, 0.9, 0.1, 0.3, 0.4], data, [0, 1, 2], 0.7);
    expect(Array.from(found.wrong)).toEqual([1, 0, 1]);
    expect([...found.best]).toEqual([0.5, 0.9, 0.4].map(Math.fround));
    expect(Array.from(firstPlaces([0.5, 0.5, 0.9, 0.1, 0.3, 0.4], data, [2], 0).wrong)).toEqual([0]);
    expect(absoluteSafeFrom(data, [0, 2])).toBe(1);
    expect(absoluteSafeFrom(data, [1], 0.7)).toBe(0.7);
    expect(() => absoluteSafeFrom(data, [1])).toThrowError(failing("list/bad-labels"));
  });
});

describe("a threshold for an error rate", () => {
  it("by hand: the starts, upwards until a failure is too many", () => {
    // Level 1/4, rate 1/2: two right answers are needed (1/4 <= 1/4). Of 4 lists the places 2 and 3 can be tried. Two
    // starts need 3 right ones each (1/8), and both stand at place 3; three and more (1/12: 4) have no room.
    const record = chooseThreshold(places([0.9, 0.8, 0.7, 0.6], [0, 0, 0, 1]), { error: 0.5, confidence: 0.75 });
    expect(record).toMatchObject({ starts: 2, needed: 3, lists: 4, answered: 3, wrong: 0, coverage: 0.75 });
    // Just above the best score that is left out.
    expect(record.threshold).toBeGreaterThan(Math.fround(0.6));
    expect(record.threshold).toBeLessThan(Math.fround(0.6) + 1e-7);
    // At the level of a start: 1 - (1/8)^(1/3) = 1/2.
    expect(record.upper).toBeCloseTo(0.5, 12);
    // A wrong one among three: 1/2 for at most one, above every level.
    expect(chooseThreshold(places([0.9, 0.8, 0.7, 0.6], [0, 1, 0, 1]), { error: 0.5, confidence: 0.75 })).toMatchObject(
      {
        ...{ threshold: null, answered: 0, upper: null, starts: 2 },
      },
    );
  });

  it("says when there are too few lists, whatever they are", () => {
    const record = chooseThreshold(
      places(
        Array.from({ length: 59 }, (_, i) => i),
        Array(59).fill(0),
      ),
      { error: 0.05 },
    );
    expect(record).toMatchObject({ threshold: null, starts: 0, needed: 60, lists: 59, upper: null });
    const enough = chooseThreshold(
      places(
        Array.from({ length: 60 }, (_, i) => i),
        Array(60).fill(0),
      ),
      { error: 0.05 },
    );
    expect(enough).toMatchObject({ starts: 1, answered: 59, coverage: 59 / 60 });
    expect(enough.upper).toBeCloseTo(1 - 0.05 ** (1 / 59), 12);
    expect(chooseThreshold(places([], []), { error: 0.05 })).toMatchObject({ threshold: null, coverage: 0, lists: 0 });
  });

  it("leaves out what is tied with the first that is left out", () => {
    // Place 3 of 5 and 4: 0.6 ties with the fourth, so that two remain, too few for the level of a start.
    const record = chooseThreshold(places([0.9, 0.8, 0.6, 0.6, 0.1], [0, 0, 0, 0, 1]), {
      error: 0.5,
      confidence: 0.75,
    });
    expect(record).toMatchObject({ answered: 4, wrong: 0 });
    expect(record.threshold).toBeGreaterThan(Math.fround(0.1));
    expect(chooseThreshold(places([0.5, 0.5, 0.5, 0.5, 0.5], [0, 0, 0, 0, 0]), { error: 0.5 }).threshold).toBeNull();
  });

  it("negative scores, and 0 beside -0", () => {
    for (const below of [-0.25, -0, 0]) {
      const best = [0.9, 0.8, 0.7, below];
      const { threshold } = chooseThreshold(places(best, [0, 0, 0, 1]), { error: 0.5, confidence: 0.75 });
      expect(threshold).toBeGreaterThan(below);
      expect(threshold).toBeLessThan(below + 1e-7);
      expect(coverageAt(places(best, [0, 0, 0, 1]), threshold as number).answered).toBe(3);
    }
  });

  it("keeps its promise: over 2,000 draws the true error exceeds the asked one in at most a tenth, where a naive choice fails", () => {
    // A score s, uniform, is wrong with probability (1 - s)^2 / 2: among those above t it is (1 - t)^2 / 6.
    const [error, confidence, lists, rounds] = [0.1, 0.9, 150, 2000];
    const random = seededRandom(11);
    const counts = { bounded: 0, chosen: 0, naive: 0, coverage: 0 };
    for (let round = 0; round < rounds; round++) {
      const best = Float32Array.from({ length: lists }, random);
      const wrong = Uint8Array.from(best, (s) => (random() < (1 - s) ** 2 / 2 ? 1 : 0));
      const truth = (t: number) => (1 - t) ** 2 / 6;
      const record = chooseThreshold({ best, wrong }, { error, confidence });
      if (record.threshold !== null) {
        counts.chosen++;
        counts.coverage += record.coverage;
        if (truth(record.threshold) > error) counts.bounded++;
      }
      const naive = coverageCurve({ best, wrong }).filter((point) => (point.error ?? 1) <= error);
      const last = naive[naive.length - 1];
      if (last !== undefined && truth(last.threshold) > error) counts.naive++;
    }
    expect(counts.bounded / rounds).toBeLessThanOrEqual(1 - confidence);
    expect(counts.naive / rounds).toBeGreaterThan(0.25);
    // It is no promise kept by silence: 1 - sqrt(0.6) = 0.77 would be right to answer.
    expect(counts.chosen / rounds).toBeGreaterThan(0.6);
    expect(counts.coverage / counts.chosen).toBeGreaterThan(0.4);
  });

  it("refuses what has no meaning", () => {
    for (const options of [{ error: 0 }, { error: 1 }, { error: Number.NaN }, { error: 0.1, confidence: 1 }])
      expect(() => chooseThreshold(places([1], [0]), options)).toThrowError(failing("usage/abstain"));
    expect(() => checkPointwise("listwise")).toThrowError(failing("scorer/not-pointwise"));
    checkPointwise("pointwise");
  });
});

describe("a scorer's record", () => {
  const record = chooseThreshold(places([0.9, 0.8, 0.7, 0.6], [0, 0, 0, 1]), { error: 0.5, confidence: 0.75 });

  it("gives the threshold back, through JSON", () => {
    const training = JSON.parse(JSON.stringify({ abstain: { ...record, safe_from: 1 } })) as Record<string, unknown>;
    expect(recordedThreshold(training)).toBe(record.threshold);
    expect(abstainRecordOf({})).toBeNull();
  });

  it("says why there is none", () => {
    expect(() => recordedThreshold({})).toThrowError(failing("scorer/no-threshold"));
    const few = chooseThreshold(places([1], [0]), { error: 0.05 });
    expect(() => recordedThreshold({ abstain: few })).toThrowError(
      /at least 60 lists to say so with 95% confidence, and there were 1$/,
    );
    const bad = chooseThreshold(places([0.9, 0.8, 0.7, 0.6], [0, 1, 0, 1]), { error: 0.5, confidence: 0.75 });
    expect(() => recordedThreshold({ abstain: bad })).toThrowError(/50% of the answers wrong: on the 4 lists none/);
    expect(() => abstainRecordOf({ abstain: { threshold: 1 } })).toThrowError(failing("scorer/bad-config"));
  });
});
