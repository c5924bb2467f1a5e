/**
 * States as points in a plane, from their inner products alone: principal components, which keep what varies most, and
 * UMAP (McInnes et al. 2018), which keeps who is near whom and little else. Equal products and seeds give equal maps.
 */
import { EigenvalueDecomposition, Matrix } from "ml-matrix";
import { UMAP } from "umap-js";
import { centred, distances, type InnerProducts } from "./inner-products.ts";
import { streamRandom } from "./sampling.ts";

export interface PlaneMap {
  /** (S) */
  readonly x: readonly number[];
  /** (S) */
  readonly y: readonly number[];
  /** Shares of the variance along x and y; null where the map has no such thing. */
  readonly explained: readonly [number, number] | null;
}

/**
 * The first two principal components: eigenvectors of the centred inner products, each as long as its spread. The sign of
 * an axis is that which makes the sum of cubes positive: the longer tail points to the right and upwards.
 */
export function principalMap(products: InnerProducts): PlaneMap {
  const { size, values } = centred(products);
  const matrix = Matrix.from1DArray(size, size, values);
  const { realEigenvalues, eigenvectorMatrix } = new EigenvalueDecomposition(matrix, { assumeSymmetric: true });
  const order = realEigenvalues.map((_, i) => i).sort((a, b) => realEigenvalues[b] - realEigenvalues[a]);
  const total = realEigenvalues.reduce((sum, value) => sum + Math.max(0, value), 0);
  const axis = (n: number): number[] => {
    const at = order[n];
    // A cloud on a line, or on a point, has no second or first axis.
    if (at === undefined || realEigenvalues[at] <= 1e-12 * total) return new Array<number>(size).fill(0);
    const length = Math.sqrt(realEigenvalues[at]);
    const found = Array.from({ length: size }, (_, i) => length * eigenvectorMatrix.get(i, at));
    const sign = found.reduce((sum, value) => sum + value ** 3, 0) < 0 ? -1 : 1;
    return found.map((value) => sign * value);
  };
  const share = (n: number) => (total > 0 ? Math.max(0, realEigenvalues[order[n]] ?? 0) / total : 0);
  return { x: axis(0), y: axis(1), explained: [share(0), share(1)] };
}

/** Neighbours whose nearness a map keeps. */
const NEIGHBOURS = 15;

/** UMAP of the Euclidean distances, its neighbours exact; null for fewer than four rows. */
export function neighbourMap(products: InnerProducts, seed: number): PlaneMap | null {
  const { size } = products;
  if (size < 4) return null;
  const distance = distances(products);
  const neighbours = Math.min(NEIGHBOURS, size - 1);
  const nearest = Array.from({ length: size }, (_, i) =>
    // A row is its own first neighbour.
    Array.from({ length: size }, (_, j) => j)
      .sort((a, b) => (a === i ? -1 : b === i ? 1 : distance[i * size + a] - distance[i * size + b]))
      .slice(0, neighbours),
  );
  const umap = new UMAP({ nNeighbors: neighbours, random: streamRandom("map", seed) });
  umap.setPrecomputedKNN(
    nearest,
    nearest.map((own, i) => own.map((j) => distance[i * size + j])),
  );
  const points = umap.fit(nearest.map((_, i) => [i]));
  return { x: points.map(([x]) => x), y: points.map(([, y]) => y), explained: null };
}
