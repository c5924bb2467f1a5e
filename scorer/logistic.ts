/**
 * L2-regularised logistic regression:
 *
 *   min over w, b of  1/n sum_i log(1 + exp(-y_i (w . x_i + b))) + l2/2 |w|^2      (y = +-1; the bias is free)
 *
 * by L-BFGS (Nocedal and Wright 2006, algorithm 7.4). Margins z = Xw + b are carried along, so a step costs one pass
 * X d and one pass X^T r, and the search along d is on n numbers only. In scikit-learn's terms C = 1 / (l2 n).
 */

import { StratumError } from "../errors.ts";
import type { Rows, Standardisation } from "./matrix-rows.ts";

export interface LogisticOptions {
  /** Strength of the regularisation, > 0: only with one do separable classes have a finite solution. */
  readonly l2: number;
  /** Regularises the columns as (x - mean) / deviation, without a copy of them. The weights returned are for x itself. */
  readonly standardise?: Standardisation | undefined;
  /** Stops where no element of the gradient is larger; 1e-6 by default. */
  readonly tolerance?: number | undefined;
  /** 500 by default. */
  readonly maxIterations?: number | undefined;
  /** A model to start from, of the same columns and standardisation. */
  readonly start?: LogisticModel | undefined;
}

/** P(y = 1 | x) = 1 / (1 + exp(-(weights . x + bias))). */
export interface LogisticModel {
  /** (D) */
  readonly weights: Float64Array;
  readonly bias: number;
  readonly l2: number;
  readonly iterations: number;
  /** The gradient's largest element, where it stopped. */
  readonly gradient: number;
  readonly converged: boolean;
}

/** Pairs of steps and gradient changes that L-BFGS keeps. */
const MEMORY = 10;

/** w . x + b for every row, (n): the log odds. */
export function logOdds(rows: Rows, { weights, bias }: Pick<LogisticModel, "weights" | "bias">): Float64Array {
  return Float64Array.from({ length: rows.count }, (_, i) => rows.dot(i, weights) + bias);
}

/** Mean of -log P(label), given the log odds z (n) and the labels (n). */
export function meanLogLoss(z: ArrayLike<number>, labels: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < z.length; i++) {
    const against = labels[i] > 0 ? -z[i] : z[i];
    sum += Math.max(against, 0) + Math.log1p(Math.exp(-Math.abs(against)));
  }
  return z.length === 0 ? 0 : sum / z.length;
}

/**
 * The objective of raw columns and its gradient: (D) weights, then the bias.
 *
 * @param labels - (n) 1 or 0.
 */
export function logisticObjective(
  rows: Rows,
  labels: ArrayLike<number>,
  l2: number,
  weights: Float64Array,
  bias: number,
): { readonly value: number; readonly gradient: Float64Array } {
  const z = logOdds(rows, { weights, bias });
  const parameters = new Float64Array(weights.length + 1).fill(bias);
  parameters.set(weights);
  const penalty = (l2 / 2) * dot(weights, weights);
  return { value: meanLogLoss(z, labels) + penalty, gradient: gradientAt(rows, labels, l2, parameters, z) };
}

/**
 * Fits the model. With one class only the optimum lies at infinity: the weights are then 0 and the bias the log odds
 * of the counts plus 1/2.
 *
 * @param labels - (n) 1 or 0.
 * @throws StratumError `usage/bad-l2`, `state/not-finite` for values that overflow
 */
export function fitLogistic(rows: Rows, labels: ArrayLike<number>, options: LogisticOptions): LogisticModel {
  const { l2, standardise, tolerance = 1e-6, maxIterations = 500, start } = options;
  if (!(l2 > 0 && l2 < Number.POSITIVE_INFINITY)) {
    throw new StratumError("usage/bad-l2", `a regularisation of ${l2}`, "give a positive number");
  }
  const { count: n, columns: D } = rows;
  let positives = 0;
  for (let i = 0; i < n; i++) positives += labels[i] > 0 ? 1 : 0;
  if (positives === 0 || positives === n) {
    const bias = Math.log((positives + 0.5) / (n - positives + 0.5));
    return { weights: new Float64Array(D), bias, l2, iterations: 0, gradient: 0, converged: true };
  }

  const theta = toInner(start, D, standardise);
  const z = margins(rows, theta, standardise);
  const history: { readonly step: Float64Array; readonly change: Float64Array; readonly product: number }[] = [];
  let gradient = gradientAt(rows, labels, l2, theta, z, standardise);
  let iterations = 0;
  while (largest(gradient) > tolerance && iterations < maxIterations) {
    let direction = descent(gradient, history);
    if (dot(direction, gradient) >= 0) {
      // Rounding only: near the optimum the history may no longer describe a descent.
      history.length = 0;
      direction = gradient.map((g) => -g);
    }
    const along = margins(rows, direction, standardise);
    const t = searchLine(z, along, theta, direction, labels, l2);
    const step = direction.map((d) => t * d);
    for (let j = 0; j <= D; j++) theta[j] += step[j];
    for (let i = 0; i < n; i++) z[i] += t * along[i];
    const next = gradientAt(rows, labels, l2, theta, z, standardise);
    const change = next.map((g, j) => g - gradient[j]);
    const product = dot(step, change);
    iterations++;
    gradient = next;
    if (!(product > 0)) {
      if (history.length === 0) break;
      history.length = 0;
      continue;
    }
    history.push({ step, change, product });
    if (history.length > MEMORY) history.shift();
  }
  if (!theta.every(Number.isFinite) || !Number.isFinite(largest(gradient))) {
    throw new StratumError(
      "state/not-finite",
      "the logistic regression met values that are not finite, or too large for a double",
      "check the features; standardise them",
    );
  }
  const outer = toOuter(theta, standardise);
  const last = largest(gradient);
  return { weights: outer.slice(0, D), bias: outer[D], l2, iterations, gradient: last, converged: last <= tolerance };
}

/** X w + b (n) of parameters (D + 1) for standardised columns. */
function margins(rows: Rows, theta: Float64Array, standardise?: Standardisation): Float64Array {
  const outer = toOuter(theta, standardise);
  return logOdds(rows, { weights: outer.subarray(0, rows.columns), bias: outer[rows.columns] });
}

/** The gradient (D + 1) at margins z. */
function gradientAt(
  rows: Rows,
  labels: ArrayLike<number>,
  l2: number,
  theta: Float64Array,
  z: Float64Array,
  standardise?: Standardisation,
): Float64Array {
  const { count: n, columns: D } = rows;
  const gradient = new Float64Array(D + 1);
  let total = 0;
  for (let i = 0; i < n; i++) {
    const residual = (sigmoid(z[i]) - (labels[i] > 0 ? 1 : 0)) / n;
    total += residual;
    rows.addTo(i, residual, gradient);
  }
  for (let j = 0; j < D; j++) {
    if (standardise) gradient[j] = (gradient[j] - total * standardise.mean[j]) / standardise.deviation[j];
    gradient[j] += l2 * theta[j];
  }
  gradient[D] = total;
  return gradient;
}

/** The two-loop recursion: minus the inverse Hessian's estimate times the gradient. */
function descent(
  gradient: Float64Array,
  history: readonly { readonly step: Float64Array; readonly change: Float64Array; readonly product: number }[],
): Float64Array {
  const q = gradient.map((g) => -g);
  const shares = new Float64Array(history.length);
  for (let h = history.length - 1; h >= 0; h--) {
    const { step, change, product } = history[h];
    shares[h] = dot(step, q) / product;
    addScaled(q, -shares[h], change);
  }
  const newest = history.at(-1);
  if (newest !== undefined) {
    const scale = newest.product / dot(newest.change, newest.change);
    for (let j = 0; j < q.length; j++) q[j] *= scale;
  }
  for (const [h, { step, change, product }] of history.entries()) {
    addScaled(q, shares[h] - dot(change, q) / product, step);
  }
  return q;
}

/** The step t > 0 at which the objective along the direction is nearly flat: Newton's method, kept inside a bracket. */
function searchLine(
  z: Float64Array,
  along: Float64Array,
  theta: Float64Array,
  direction: Float64Array,
  labels: ArrayLike<number>,
  l2: number,
): number {
  const w = theta.subarray(0, -1);
  const d = direction.subarray(0, -1);
  const [wd, dd] = [dot(w, d), dot(d, d)];
  const slopes = (t: number): [slope: number, curvature: number] => {
    let [slope, curvature] = [0, 0];
    for (let i = 0; i < z.length; i++) {
      const p = sigmoid(z[i] + t * along[i]);
      slope += (p - (labels[i] > 0 ? 1 : 0)) * along[i];
      curvature += p * (1 - p) * along[i] ** 2;
    }
    return [slope / z.length + l2 * (wd + t * dd), curvature / z.length + l2 * dd];
  };
  const [atStart, curvature] = slopes(0);
  let [low, high] = [0, Number.POSITIVE_INFINITY];
  let t = curvature > 0 ? -atStart / curvature : 1;
  for (let trial = 0; trial < 40; trial++) {
    const [slope, bend] = slopes(t);
    if (Math.abs(slope) <= 0.01 * Math.abs(atStart)) break;
    if (slope < 0) low = t;
    else high = t;
    const newton = t - slope / bend;
    const middle = high === Number.POSITIVE_INFINITY ? 4 * t : (low + high) / 2;
    t = newton > low && newton < high && newton <= 16 * t ? newton : middle;
  }
  return t;
}

/** Parameters for raw columns (D + 1) from those for standardised ones. */
function toOuter(theta: Float64Array, standardise?: Standardisation): Float64Array {
  if (standardise === undefined) return theta.slice();
  const D = theta.length - 1;
  const outer = theta.slice();
  for (let j = 0; j < D; j++) {
    outer[j] /= standardise.deviation[j];
    outer[D] -= outer[j] * standardise.mean[j];
  }
  return outer;
}

function toInner(model: LogisticModel | undefined, D: number, standardise?: Standardisation): Float64Array {
  const theta = new Float64Array(D + 1);
  if (model === undefined) return theta;
  theta.set(model.weights);
  theta[D] = model.bias;
  if (standardise === undefined) return theta;
  for (let j = 0; j < D; j++) {
    theta[D] += theta[j] * standardise.mean[j];
    theta[j] *= standardise.deviation[j];
  }
  return theta;
}

function sigmoid(z: number): number {
  return 1 / (1 + Math.exp(-z));
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let j = 0; j < a.length; j++) sum += a[j] * b[j];
  return sum;
}

function addScaled(target: Float64Array, factor: number, x: Float64Array): void {
  for (let j = 0; j < target.length; j++) target[j] += factor * x[j];
}

function largest(values: Float64Array): number {
  return values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
}
