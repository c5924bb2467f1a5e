/** CPU twin of listLoss: each loss as its formula reads, in float64. */
import type { TwinBuffer } from "./kernel.ts";
import type { ListLossVariant, LossName } from "./list-loss.ts";

interface ListResult {
  readonly loss: number;
  /** Derivatives by z, a candidate each. */
  readonly slopes: readonly number[];
  /** What the kernel's candidates leave for each other. */
  readonly aux?: readonly (readonly number[])[];
}

type ListFunction = (s: readonly number[], y: readonly number[], tau: number) => ListResult;

const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
const softplus = (x: number) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const sigmoid = (x: number) => (x >= 0 ? 1 : Math.exp(x)) / (1 + Math.exp(-Math.abs(x)));
const largest = (values: readonly number[]) => values.reduce((top, value) => Math.max(top, value), -Infinity);

function logSumExp(values: readonly number[]): number {
  const top = largest(values);
  return values.length === 0 ? -Infinity : top + Math.log(sum(values.map((value) => Math.exp(value - top))));
}

/** Places 1.. by falling value, ties by index. */
function ranks(values: readonly number[]): number[] {
  const places = new Array<number>(values.length);
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a] || a - b);
  for (const [place, i] of order.entries()) places[i] = place + 1;
  return places;
}

const gains = (y: readonly number[]) => y.map((value) => 2 ** value - 1);
const discount = (rank: number) => 1 / Math.log2(1 + rank);
const idealDcg = (y: readonly number[]) => {
  const places = ranks(y);
  return sum(gains(y).map((gain, i) => gain * discount(places[i])));
};

/** Cross-entropy of a target with softmax(z); null: there is none. */
function crossEntropy(z: readonly number[], target: readonly number[] | null, entropy: boolean): ListResult {
  if (target === null) return { loss: 0, slopes: z.map(() => 0) };
  const whole = logSumExp(z);
  const terms = target.map((q, i) => q * (whole - z[i] + (entropy && q > 0 ? Math.log(q) : 0)));
  return { loss: sum(terms), slopes: z.map((value, i) => Math.exp(value - whole) - target[i]) };
}

const kl: ListFunction = (s, y, tau) => {
  const whole = sum(y);
  const target = whole > 0 ? y.map((value) => value / whole) : null;
  return crossEntropy(scaled(s, tau), target, true);
};

const listnet: ListFunction = (s, y, tau) => {
  const whole = logSumExp(y);
  const target = y.map((value) => Math.exp(value - whole));
  return crossEntropy(scaled(s, tau), target, false);
};

const anyPositive: ListFunction = (s, y, tau) => {
  const z = scaled(s, tau);
  const [safe, others] = [true, false].map((side) => logSumExp(z.filter((_, i) => y[i] > 0.5 === side)));
  if (!Number.isFinite(safe) || !Number.isFinite(others)) return { loss: 0, slopes: z.map(() => 0) };
  const unsafeP = sigmoid(others - safe);
  return {
    loss: softplus(others - safe),
    slopes: z.map((value, i) => unsafeP * (y[i] > 0.5 ? -Math.exp(value - safe) : Math.exp(value - others))),
  };
};

const bce: ListFunction = (s, y, tau) => {
  const z = scaled(s, tau);
  const count = Math.max(1, z.length);
  return {
    // softplus(z) - y z with the large terms apart.
    loss: sum(z.map((x, i) => softplus(-Math.abs(x)) + Math.max(x, 0) * (1 - y[i]) - Math.min(x, 0) * y[i])) / count,
    slopes: z.map((x, i) => (sigmoid(x) - y[i]) / count),
  };
};

const listmle: ListFunction = (s, y, tau) => {
  const places = ranks(y);
  const rests = s.map((_, i) => s.filter((_, j) => places[j] >= places[i]));
  const aux = rests.map((rest) => {
    const top = largest(rest);
    return [top, sum(rest.map((value) => Math.exp((value - top) / tau)))];
  });
  return {
    loss: sum(s.map((value, i) => Math.log(aux[i][1]) + (aux[i][0] - value) / tau)),
    slopes: s.map((value, i) => {
      const terms = aux.map(([top, whole], j) => (places[j] <= places[i] ? Math.exp((value - top) / tau) / whole : 0));
      return sum(terms) - 1;
    }),
    aux,
  };
};

/** Sum over pairs above[i] > above[j] of weight(i, j) softplus(z_j - z_i). */
function pairs(
  s: readonly number[],
  above: readonly number[],
  tau: number,
  weight: (i: number, j: number) => number,
): ListResult {
  const slopes = s.map(() => 0);
  let loss = 0;
  for (let i = 0; i < s.length; i++) {
    for (let j = 0; j < s.length; j++) {
      if (!(above[i] > above[j])) continue;
      const x = (s[j] - s[i]) / tau;
      const slope = weight(i, j) * sigmoid(x);
      loss += weight(i, j) * softplus(x);
      slopes[i] -= slope;
      slopes[j] += slope;
    }
  }
  return { loss, slopes };
}

const ranknet: ListFunction = (s, y, tau) => {
  const count = sum(y.map((above) => y.filter((below) => above > below).length));
  return pairs(s, y, tau, () => 1 / count);
};

const lambdaloss: ListFunction = (s, y, tau) => {
  const [gain, discounts, ideal] = [gains(y), ranks(s).map(discount), idealDcg(y)];
  const weight = (i: number, j: number) =>
    Math.abs((gain[i] - gain[j]) * (discounts[i] - discounts[j])) / (ideal > 0 ? ideal : Infinity);
  return { ...pairs(s, y, tau, weight), aux: gain.map((value, i) => [value, discounts[i]]) };
};

const approxndcg: ListFunction = (s, y, tau) => {
  const [gain, ideal] = [gains(y), idealDcg(y)];
  const rank = s.map((own, i) => 1 + sum(s.map((other, j) => (j === i ? 0 : sigmoid((other - own) / tau)))));
  const rise = rank.map((r, i) => (gain[i] * Math.LN2) / ((1 + r) * Math.log1p(r) ** 2));
  const bell = (x: number) => sigmoid(x) * sigmoid(-x);
  const slopes = s.map((own, i) => sum(s.map((other, j) => (rise[j] - rise[i]) * bell((own - other) / tau))));
  const aux = rise.map((value) => [value]);
  if (!(ideal > 0)) return { loss: 0, slopes: s.map(() => 0), aux };
  const dcg = sum(gain.map((value, i) => value * discount(rank[i])));
  return { loss: 1 - dcg / ideal, slopes: slopes.map((value) => value / ideal), aux };
};

const scaled = (s: readonly number[], tau: number) => s.map((value) => value / tau);

const FUNCTIONS: Readonly<Record<LossName, ListFunction>> = {
  kl,
  listnet,
  listmle,
  ranknet,
  lambdaloss,
  approxndcg,
  any_positive: anyPositive,
  bce,
};

/** CPU twin of `listLoss`; `aux` is filled where it is given. Rows: B. */
export function listLossTwin(
  { loss: name }: Pick<ListLossVariant, "loss">,
  { cosines, labels, lists, hyper, losses, grads, aux }: Readonly<Record<string, TwinBuffer>>,
  rows: number,
): void {
  const [tau, weight] = hyper;
  for (let b = 0; b < rows; b++) {
    const [first, end] = [lists[2 * b], lists[2 * b + 1]];
    const candidates = Array.from({ length: end - first - 1 }, (_, i) => first + 1 + i);
    const list = FUNCTIONS[name](
      candidates.map((r) => cosines[2 * r]),
      candidates.map((r) => labels[r]),
      tau,
    );
    losses[b] = list.loss;
    grads[first] = 0;
    for (const [i, r] of candidates.entries()) grads[r] = (weight * list.slopes[i]) / tau;
    if (aux === undefined || list.aux === undefined) continue;
    for (const [i, r] of candidates.entries()) aux.set(list.aux[i], r * list.aux[i].length);
  }
}
