/**
 * Inner products of states: norms, distances, spread between and within classes and principal components of a set all
 * follow from one (S, S) matrix, whatever the width of the states. Sums are in float64, after the mean of the set has
 * been taken away: a few entries of a hidden state are often a thousand times the rest, and would take its digits.
 */
import { shuffled } from "./sampling.ts";

/** Inner products of S rows: symmetric, row by row. */
export interface InnerProducts {
  /** S */
  readonly size: number;
  /** (S, S) */
  readonly values: Float64Array;
}

/** Columns that are summed at a time: as many rows of them as meet stay in a cache. */
const PANEL = 512;

/**
 * Inner products of rows around their mean.
 * @param rows - (S, D)
 */
export function innerProducts(rows: Float32Array, dim: number): InnerProducts {
  const size = rows.length / dim;
  const mean = new Float64Array(dim);
  for (let s = 0; s < size; s++) for (let d = 0; d < dim; d++) mean[d] += rows[s * dim + d] / size;
  const values = new Float64Array(size * size);
  for (let from = 0; from < dim; from += PANEL) {
    const width = Math.min(PANEL, dim - from);
    const panel = new Float64Array(size * width);
    for (let s = 0; s < size; s++)
      for (let d = 0; d < width; d++) panel[s * width + d] = rows[s * dim + from + d] - mean[from + d];
    for (let i = 0; i < size; i++) {
      const a = panel.subarray(i * width, (i + 1) * width);
      for (let j = 0; j <= i; j++) {
        const at = j * width;
        let sum = 0;
        for (let d = 0; d < width; d++) sum += a[d] * panel[at + d];
        values[i * size + j] += sum;
      }
    }
  }
  for (let i = 0; i < size; i++) for (let j = 0; j < i; j++) values[j * size + i] = values[i * size + j];
  return { size, values };
}

/**
 * Inner products of the same rows around the mean of their own group: what is left when that which a group has in common
 * (an instruction's topic, say) is taken away.
 * @param groups - (S) equal for rows of one group.
 */
export function withinGroups({ size, values }: InnerProducts, groups: ArrayLike<number>): InnerProducts {
  const members = indicesBy(groups);
  // (S, groups) sums over a group's columns, then (groups, groups) sums over both.
  const names = [...members.keys()];
  const at = new Map(names.map((name, g) => [name, g]));
  const own = Int32Array.from({ length: size }, (_, i) => at.get(groups[i]) ?? 0);
  const counts = names.map((name) => members.get(name)?.length ?? 0);
  const rowMeans = new Float64Array(size * names.length);
  for (let i = 0; i < size; i++)
    for (let j = 0; j < size; j++) rowMeans[i * names.length + own[j]] += values[i * size + j] / counts[own[j]];
  const means = new Float64Array(names.length ** 2);
  for (let i = 0; i < size; i++)
    for (let g = 0; g < names.length; g++)
      means[own[i] * names.length + g] += rowMeans[i * names.length + g] / counts[own[i]];
  const centred = new Float64Array(size * size);
  for (let i = 0; i < size; i++) {
    for (let j = 0; j < size; j++) {
      centred[i * size + j] =
        values[i * size + j] -
        rowMeans[i * names.length + own[j]] -
        rowMeans[j * names.length + own[i]] +
        means[own[i] * names.length + own[j]];
    }
  }
  return { size, values: centred };
}

/** Those of some of the rows. They stay around the mean of all. */
export function someOf({ size, values }: InnerProducts, rows: readonly number[]): InnerProducts {
  const some = new Float64Array(rows.length ** 2);
  for (const [i, a] of rows.entries())
    for (const [j, b] of rows.entries()) some[i * rows.length + j] = values[a * size + b];
  return { size: rows.length, values: some };
}

/** Those of the same rows around their mean. */
export function centred(products: InnerProducts): InnerProducts {
  return withinGroups(products, new Uint8Array(products.size));
}

/** (S, S) Euclidean distances. */
export function distances({ size, values }: InnerProducts): Float64Array {
  const found = new Float64Array(size * size);
  for (let i = 0; i < size; i++) {
    for (let j = 0; j < i; j++) {
      const squared = values[i * size + i] + values[j * size + j] - 2 * values[i * size + j];
      found[i * size + j] = found[j * size + i] = Math.sqrt(Math.max(0, squared));
    }
  }
  return found;
}

/**
 * Fisher's ratio in all dimensions: the scatter of the class means around the common one (classes weighted by their
 * size) over the scatter within classes, tr S_B / tr S_W.
 * @param classes - (S)
 * @returns null where there are fewer than two classes, or nothing varies within them
 */
export function fisherRatio(products: InnerProducts, classes: ArrayLike<number>): number | null {
  const { size, values } = products;
  const members = indicesBy(classes);
  if (members.size < 2) return null;
  let [all, trace, between] = [0, 0, 0];
  for (let i = 0; i < size; i++) trace += values[i * size + i];
  for (const rows of members.values()) {
    let sum = 0;
    for (const i of rows) for (const j of rows) sum += values[i * size + j];
    between += sum / rows.length;
  }
  for (const value of values) all += value;
  const within = trace - between;
  return within > 1e-12 * trace ? (between - all / size) / within : null;
}

/**
 * The highest of Fisher's ratios with labels shuffled within their groups: a ratio above that of 19 shuffles is one that
 * chance reaches in at most one case of twenty.
 * @param groups - (S) equal for rows whose classes may be exchanged.
 */
export function shuffledFisherRatio(
  products: InnerProducts,
  classes: ArrayLike<number>,
  groups: ArrayLike<number>,
  { shuffles, random }: { readonly shuffles: number; readonly random: () => number },
): number | null {
  const members = [...indicesBy(groups).values()];
  const drawn = Array.from(classes);
  let highest: number | null = null;
  for (let n = 0; n < shuffles; n++) {
    for (const rows of members) {
      const own = shuffled(
        rows.map((i) => drawn[i]),
        random,
      );
      for (const [k, i] of rows.entries()) drawn[i] = own[k];
    }
    const ratio = fisherRatio(products, drawn);
    if (ratio !== null) highest = Math.max(highest ?? ratio, ratio);
  }
  return highest;
}

/**
 * The mean silhouette (Rousseeuw 1987): for each row (b - a) / max(a, b), a its mean distance to the others of its class,
 * b that to the nearest other class; 0 for a class of one. 1: apart; 0: no boundary; below: nearer to the other class.
 * @param distance - (S, S)
 * @param classes - (S)
 * @returns null where there are fewer than two classes
 */
export function silhouette(distance: Float64Array, classes: ArrayLike<number>): number | null {
  const members = indicesBy(classes);
  const size = classes.length;
  if (members.size < 2) return null;
  let sum = 0;
  for (let i = 0; i < size; i++) {
    let [own, nearest, alone] = [0, Number.POSITIVE_INFINITY, false];
    for (const [name, rows] of members) {
      let total = 0;
      for (const j of rows) total += distance[i * size + j];
      if (name !== classes[i]) nearest = Math.min(nearest, total / rows.length);
      else if (rows.length === 1) alone = true;
      else own = total / (rows.length - 1);
    }
    const larger = Math.max(own, nearest);
    if (!alone && larger > 0) sum += (nearest - own) / larger;
  }
  return sum / size;
}

function indicesBy(names: ArrayLike<number>): Map<number, number[]> {
  const found = new Map<number, number[]>();
  for (let i = 0; i < names.length; i++) {
    const own = found.get(names[i]);
    if (own === undefined) found.set(names[i], [i]);
    else own.push(i);
  }
  return found;
}
