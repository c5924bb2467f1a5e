/** Norms, distances and separation out of inner products, against values worked out here from the rows themselves. */
import { describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import {
  distances,
  fisherRatio,
  innerProducts,
  shuffledFisherRatio,
  silhouette,
  someOf,
  withinGroups,
} from "../../scorer/inner-products.ts";

/** Rows around a mean far from 0, wider than a panel. */
const [S, D] = [13, 700];
const random = seededRandom(3);
const rows = Float32Array.from({ length: S * D }, (_, i) => (i % D === 5 ? 1000 : 0) + 2 * random() - 1);
const row = (i: number) => Array.from(rows.subarray(i * D, (i + 1) * D));
const classes = Array.from({ length: S }, (_, i) => (i % 3 === 0 ? 1 : 0));
const groups = Array.from({ length: S }, (_, i) => (i < 4 ? 7 : i < 9 ? 2 : 5));

type Vector = readonly number[];
const minus = (a: Vector, b: Vector) => a.map((value, d) => value - b[d]!);
const dot = (a: Vector, b: Vector) => a.reduce((sum, value, d) => sum + value * b[d]!, 0);
const meanOf = (vectors: readonly Vector[]) =>
  vectors[0]!.map((_, d) => vectors.reduce((sum, vector) => sum + vector[d]!, 0) / vectors.length);
const squared = (a: Vector) => dot(a, a);

const all = Array.from({ length: S }, (_, i) => row(i));
/** The same with each group's mean taken away. */
const within = all.map((vector, i) => minus(vector, meanOf(all.filter((_, j) => groups[j] === groups[i]))));

function fisherByHand(vectors: readonly Vector[], labels: readonly number[]): number {
  const common = meanOf(vectors);
  let [between, inside] = [0, 0];
  for (const label of new Set(labels)) {
    const own = vectors.filter((_, i) => labels[i] === label);
    const mean = meanOf(own);
    between += own.length * squared(minus(mean, common));
    inside += own.reduce((sum, vector) => sum + squared(minus(vector, mean)), 0);
  }
  return between / inside;
}

describe("inner products", () => {
  const products = innerProducts(rows, D);

  it("are those of the rows around their mean", () => {
    const common = meanOf(all);
    for (let i = 0; i < S; i++)
      for (let j = 0; j < S; j++)
        expect(products.values[i * S + j]).toBeCloseTo(dot(minus(all[i]!, common), minus(all[j]!, common)), 6);
  });

  it("give distances", () => {
    const found = distances(products);
    for (let i = 0; i < S; i++)
      for (let j = 0; j < S; j++) expect(found[i * S + j]).toBeCloseTo(Math.sqrt(squared(minus(all[i]!, all[j]!))), 6);
  });

  it("within groups are those around each group's mean", () => {
    const found = withinGroups(products, groups);
    for (let i = 0; i < S; i++)
      for (let j = 0; j < S; j++) expect(found.values[i * S + j]).toBeCloseTo(dot(within[i]!, within[j]!), 6);
  });

  it("give Fisher's ratio, of all rows, within groups, and of some rows around a mean that is not theirs", () => {
    expect(fisherRatio(products, classes)).toBeCloseTo(fisherByHand(all, classes), 8);
    expect(fisherRatio(withinGroups(products, groups), classes)).toBeCloseTo(fisherByHand(within, classes), 8);
    const some = [1, 3, 4, 8, 9];
    const picked = fisherByHand(
      some.map((i) => all[i]!),
      some.map((i) => classes[i]!),
    );
    expect(
      fisherRatio(
        someOf(products, some),
        some.map((i) => classes[i]!),
      ),
    ).toBeCloseTo(picked, 8);
  });

  it("give no ratio of one class, nor where nothing varies within classes", () => {
    expect(fisherRatio(products, new Uint8Array(S))).toBeNull();
    expect(fisherRatio(innerProducts(Float32Array.of(0, 0, 1, 1), 1), [0, 0, 1, 1])).toBeNull();
  });
});

describe("Fisher's ratio of shuffled labels", () => {
  /** Two groups of four; a class is apart from the other by 2 on one axis, groups by 50 on another. */
  const planted = Float32Array.from([0, 0, 0, 0.1, 2, 0, 2, 0.1, 0, 50, 0, 50.1, 2, 50, 2, 50.1]);
  const own = [0, 0, 1, 1, 0, 0, 1, 1];
  const lists = [0, 0, 0, 0, 1, 1, 1, 1];

  it("stays below that of labels that tell something, and is the same for equal seeds", () => {
    const products = withinGroups(innerProducts(planted, 2), lists);
    const draw = (seed: number) =>
      shuffledFisherRatio(products, own, lists, { shuffles: 5, random: seededRandom(seed) })!;
    expect(draw(1)).toBe(draw(1));
    // The true labels put both pairs of a group on their own sides: no placing tells more.
    expect(draw(1)).toBeLessThanOrEqual(fisherRatio(products, own)!);
  });

  it("exchanges labels within groups only", () => {
    // A class is a group here: no shuffle changes anything.
    const products = innerProducts(planted, 2);
    const ratio = fisherRatio(products, lists);
    expect(shuffledFisherRatio(products, lists, lists, { shuffles: 4, random: seededRandom(2) })).toBe(ratio);
  });
});

describe("the silhouette", () => {
  it("is Rousseeuw's, worked out for three points on a line", () => {
    // Points 0, 1 of one class and 5 of the other: (5 - 1) / 5, (4 - 1) / 4, and 0 for a class of one.
    const distance = distances(innerProducts(Float32Array.of(0, 1, 5), 1));
    expect(silhouette(distance, [0, 0, 1])).toBeCloseTo((0.8 + 0.75 + 0) / 3, 10);
  });

  it("takes the nearest of several other classes", () => {
    // Of the points at 0 and 1: b is the distance to 3, not to 9; the classes of one point count as 0.
    const distance = distances(innerProducts(Float32Array.of(0, 1, 3, 9), 1));
    expect(silhouette(distance, [0, 0, 1, 2])).toBeCloseTo(((3 - 1) / 3 + (2 - 1) / 2) / 4, 10);
  });

  it("is null for one class, and 0 where all points are one", () => {
    expect(silhouette(new Float64Array(4), [1, 1])).toBeNull();
    expect(silhouette(new Float64Array(16), [0, 0, 1, 1])).toBe(0);
  });
});
