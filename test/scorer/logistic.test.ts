import { describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import { fitLogistic, logisticObjective, logOdds, meanLogLoss } from "../../scorer/logistic.ts";
import { fitLogisticCrossValidated } from "../../scorer/logistic-strength.ts";
import { denseRows, type Rows, selectRows, sparseRows, standardisation } from "../../scorer/matrix-rows.ts";

const N = 40;
const D = 5;
const x = Float32Array.from({ length: N * D }, (_, at) => Math.sin(3 * Math.floor(at / D) + 7 * (at % D)) + (at % D));
const labels = Array.from({ length: N }, (_, i) => (Math.sin(5 * i) + x[i * D] > x[i * D + 1] - 1 ? 1 : 0));

function dense(data: Float32Array, columns: number): Rows {
  return denseRows(data.length / columns, columns, (i) => data.subarray(i * columns, (i + 1) * columns));
}

/** The same matrix with its zeros left out. */
function sparse(data: Float32Array, columns: number): Rows {
  const kept = Array.from(data, (_, at) => at).filter((at) => data[at] !== 0);
  return sparseRows(
    columns,
    Uint32Array.from({ length: data.length / columns + 1 }, (_, i) => kept.filter((at) => at < i * columns).length),
    Uint32Array.from(kept, (at) => at % columns),
    Float32Array.from(kept, (at) => data[at]),
  );
}

/*
 * scikit-learn 1.9.1:
 *   i, j = np.mgrid[0:40, 0:5]
 *   X = (np.sin(3 * i + 7 * j) + j).astype(np.float32)
 *   y = (np.sin(5 * np.arange(40)) + X[:, 0] > X[:, 1] - 1).astype(int)
 *   for l2, S in [(0.1, X), (0.001, X), (0.01, StandardScaler().fit_transform(X.astype(np.float64)))]:
 *       m = LogisticRegression(C=1 / (l2 * 40), tol=1e-12, max_iter=10000, solver='newton-cg').fit(S.astype(np.float64), y)
 *       print(m.coef_, m.intercept_)
 */
const REFERENCE = [
  {
    l2: 0.1,
    weights: [0.09938651485288297, -0.1394926283056807, -0.3097141820104819, -0.3274957586569936, -0.18408536329726577],
    bias: 2.589767982167066,
  },
  {
    l2: 0.001,
    weights: [
      0.11955606256887603, -0.22063592171673377, -0.45223708807340157, -0.4612437215080872, -0.24322481895148007,
    ],
    bias: 3.6025278778331233,
  },
];
const STANDARDISED = {
  l2: 0.01,
  weights: [0.09444879066896385, -0.1392416425435365, -0.3161545174257302, -0.3140483586628273, -0.17190754158899577],
  bias: 0.1146434245347351,
};

describe("fitLogistic", () => {
  it.each(REFERENCE)("gives scikit-learn's weights with l2 $l2, dense and sparse", ({ l2, weights, bias }) => {
    for (const rows of [dense(x, D), sparse(x, D)]) {
      const model = fitLogistic(rows, labels, { l2, tolerance: 1e-11 });
      expect(model.converged).toBe(true);
      for (const [j, w] of weights.entries()) expect(model.weights[j]).toBeCloseTo(w, 6);
      expect(model.bias).toBeCloseTo(bias, 6);
    }
  });

  it("standardises as scikit-learn's StandardScaler does, with weights for the raw columns", () => {
    const rows = dense(x, D);
    const standardise = standardisation(rows);
    const model = fitLogistic(rows, labels, { l2: STANDARDISED.l2, standardise, tolerance: 1e-11 });
    let bias = model.bias;
    for (let j = 0; j < D; j++) {
      expect(model.weights[j] * standardise.deviation[j]).toBeCloseTo(STANDARDISED.weights[j], 6);
      bias += model.weights[j] * standardise.mean[j];
    }
    expect(bias).toBeCloseTo(STANDARDISED.bias, 6);
  });

  it("the gradient is the objective's slope, and vanishes at the optimum", () => {
    const rows = dense(x, D);
    const theta = Float64Array.of(0.3, -0.2, 0.7, 0.1, -0.5);
    const at = (w: Float64Array, b: number) => logisticObjective(rows, labels, 0.05, w, b);
    const { gradient } = at(theta, 0.4);
    const h = 1e-5;
    for (let j = 0; j <= D; j++) {
      const nudge = (by: number) =>
        at(
          theta.map((w, k) => w + (k === j ? by : 0)),
          0.4 + (j === D ? by : 0),
        ).value;
      expect(gradient[j]).toBeCloseTo((nudge(h) - nudge(-h)) / (2 * h), 8);
    }
    const { weights, bias } = fitLogistic(rows, labels, { l2: 0.05, tolerance: 1e-10 });
    expect(Math.max(...at(weights, bias).gradient.map(Math.abs))).toBeLessThan(1e-9);
  });

  it("starts from a model and arrives at the same", () => {
    const rows = dense(x, D);
    const options = { l2: 0.01, standardise: standardisation(rows), tolerance: 1e-10 };
    const cold = fitLogistic(rows, labels, options);
    expect(fitLogistic(rows, labels, { ...options, start: cold }).iterations).toBe(0);
    const warm = fitLogistic(rows, labels, { ...options, start: fitLogistic(rows, labels, { ...options, l2: 1 }) });
    for (let j = 0; j < D; j++) expect(warm.weights[j]).toBeCloseTo(cold.weights[j], 7);
  });

  it("separable classes stay finite, and are separated", () => {
    const line = Float32Array.from({ length: 20 }, (_, i) => i);
    const classes = Array.from(line, (value) => (value > 9.5 ? 1 : 0));
    for (const l2 of [1, 1e-3, 1e-8]) {
      const model = fitLogistic(dense(line, 1), classes, { l2 });
      expect([model.weights[0], model.bias].every(Number.isFinite)).toBe(true);
      if (l2 < 1e-2) {
        const odds = logOdds(dense(line, 1), model);
        expect(Array.from(odds, (z) => (z > 0 ? 1 : 0))).toEqual(classes);
      }
    }
  });

  it("one class, no rows, no columns: finite", () => {
    const rows = dense(x, D);
    for (const label of [0, 1]) {
      const model = fitLogistic(rows, new Uint8Array(N).fill(label), { l2: 0.1 });
      expect([...model.weights, model.bias].every(Number.isFinite)).toBe(true);
      expect(Math.sign(model.bias)).toBe(label === 1 ? 1 : -1);
    }
    expect(fitLogistic(dense(new Float32Array(), D), [], { l2: 0.1 }).bias).toBe(0);
    const empty = sparseRows(0, new Uint32Array(5), new Uint32Array(), new Float32Array());
    expect(fitLogistic(empty, [1, 1, 1, 0], { l2: 0.1, tolerance: 1e-10 }).bias).toBeCloseTo(Math.log(3), 8);
  });

  it("converges on columns of very different scale, standardised: constant, offset by 1e4, huge, tiny", () => {
    const random = seededRandom(4);
    const n = 300;
    const scales = [1e6, 1e-6, 1, 30];
    const offset = [0, 0, 1e4, 0];
    const data = new Float32Array(n * 5);
    const classes = Array.from({ length: n }, (_, i) => {
      let sum = 0;
      for (let j = 0; j < 4; j++) {
        const value = random() + random() + random() - 1.5;
        data[i * 5 + j] = value * scales[j] + offset[j];
        sum += value;
      }
      data[i * 5 + 4] = 7.3;
      return sum + random() - 0.5 > 0 ? 1 : 0;
    });
    const rows = dense(data, 5);
    const model = fitLogistic(rows, classes, { l2: 1e-3, standardise: standardisation(rows) });
    expect(model.converged).toBe(true);
    expect(Math.abs(model.weights[4])).toBeLessThan(1e-12);
    expect(meanLogLoss(logOdds(rows, model), classes)).toBeLessThan(0.4);
  });

  it.each([0, -1, Number.NaN, Number.POSITIVE_INFINITY])("refuses an l2 of %s", (l2) => {
    expect(() => fitLogistic(dense(x, D), labels, { l2 })).toThrow(expect.objectContaining({ code: "usage/bad-l2" }));
  });

  it("refuses NaN", () => {
    const broken = x.slice();
    broken[7] = Number.NaN;
    expect(() => fitLogistic(dense(broken, D), labels, { l2: 0.1 })).toThrow(
      expect.objectContaining({ code: "state/not-finite" }),
    );
  });
});

describe("fitLogisticCrossValidated", () => {
  const random = seededRandom(6);
  const columns = 30;
  const n = 240;
  const data = Float32Array.from({ length: n * columns }, () => random() - 0.5);
  const noise = Array.from({ length: n }, () => (random() < 0.5 ? 1 : 0));
  const signal = Array.from({ length: n }, (_, i) => (data[i * columns] > 0 ? 1 : 0));
  const groups = Array.from({ length: n }, (_, i) => Math.floor(i / 3));
  const rows = dense(data, columns);

  it("takes a strong regularisation for noise and a weak one for a clean signal", () => {
    expect(fitLogisticCrossValidated(rows, noise, groups).l2).toBe(10);
    const clean = fitLogisticCrossValidated(rows, signal, groups);
    expect(clean.l2).toBeLessThanOrEqual(1e-3);
    expect(clean.heldOutLoss).toBeLessThan(0.25);
  });

  it("holds out whole groups: a row that names its group does not help", () => {
    // One column a group and labels equal inside a group: by rows this would be learnt, by groups it cannot be.
    const named = sparseRows(
      n / 3,
      Uint32Array.from({ length: n + 1 }, (_, i) => i),
      Uint32Array.from(groups),
      new Float32Array(n).fill(1),
    );
    const classes = groups.map((group) => noise[group]);
    expect(fitLogisticCrossValidated(named, classes, groups).heldOutLoss).toBeGreaterThan(0.65);
    const byRow = groups.map((_, i) => i);
    expect(fitLogisticCrossValidated(named, classes, byRow).heldOutLoss).toBeLessThan(0.2);
  });

  it("a single split; one group; one class", () => {
    const split = fitLogisticCrossValidated(rows, signal, groups, { folds: 1 });
    expect(split.l2).toBeLessThanOrEqual(1e-2);
    const single = fitLogisticCrossValidated(rows, signal, new Uint8Array(n), { grid: [1, 0.1, 0.01] });
    expect([single.l2, single.heldOutLoss]).toEqual([0.1, null]);
    const constant = fitLogisticCrossValidated(rows, new Uint8Array(n).fill(1), groups);
    expect(constant.weights.every((w) => w === 0) && Number.isFinite(constant.bias)).toBe(true);
  });

  it("equal seeds give equal models", () => {
    expect(fitLogisticCrossValidated(rows, signal, groups)).toEqual(fitLogisticCrossValidated(rows, signal, groups));
  });
});

it("selects rows", () => {
  const some = selectRows(dense(x, D), [3, 1]);
  const sum = new Float64Array(D);
  some.addTo(1, 2, sum);
  expect(some.count).toBe(2);
  expect([...sum]).toEqual([...x.subarray(D, 2 * D)].map((value) => 2 * value));
});
