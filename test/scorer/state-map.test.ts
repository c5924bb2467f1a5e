/** Maps of states: principal components worked out here, and neighbours that stay neighbours. */
import { describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import { innerProducts } from "../../scorer/inner-products.ts";
import { neighbourMap, principalMap } from "../../scorer/state-map.ts";

describe("principal components", () => {
  it("of an ellipse along known axes are its coordinates", () => {
    // Points 3 a, -3 a, b, -b around (10, -4, 2) with a = (0.6, 0, 0.8) and b = (0, 1, 0): eigenvalues 18 and 2.
    const [a, b] = [
      [0.6, 0, 0.8],
      [0, 1, 0],
    ];
    const along = [
      [3, 0],
      [-3, 0],
      [0, 1],
      [0, -1],
    ];
    const rows = Float32Array.from(
      along.flatMap(([u, v]) => [10, -4, 2].map((centre, d) => centre + u! * a![d]! + v! * b![d]!)),
    );
    const { x, y, explained } = principalMap(innerProducts(rows, 3));
    expect(explained![0]).toBeCloseTo(0.9, 5);
    expect(explained![1]).toBeCloseTo(0.1, 5);
    const sign = [Math.sign(x[0]!), Math.sign(y[2]!)];
    for (const [i, [u, v]] of along.entries()) {
      expect(sign[0]! * x[i]!).toBeCloseTo(u!, 5);
      expect(sign[1]! * y[i]!).toBeCloseTo(v!, 5);
    }
  });

  it("point their longer tail to the right", () => {
    for (const flip of [1, -1]) {
      const { x } = principalMap(
        innerProducts(
          Float32Array.from([0, 0, 0, 10], (value) => flip * value),
          1,
        ),
      );
      expect(x[3]).toBeCloseTo(7.5, 6);
    }
  });

  it("of one point, of equal points and of a line hold no NaN", () => {
    expect(principalMap(innerProducts(Float32Array.of(4, 4), 2))).toEqual({ x: [0], y: [0], explained: [0, 0] });
    expect(principalMap(innerProducts(new Float32Array(6).fill(2), 2)).x).toEqual([0, 0, 0]);
    const line = principalMap(innerProducts(Float32Array.of(1, 1, 2, 2, 4, 4), 2));
    expect(line.explained![0]).toBeCloseTo(1, 10);
    expect(line.y).toEqual([0, 0, 0]);
  });
});

describe("neighbours", () => {
  const random = seededRandom(1);
  /** Two clouds of 20 in 6 dimensions, 8 apart. */
  const clouds = Float32Array.from({ length: 40 * 6 }, (_, i) => random() + (i % 6 === 0 && i >= 120 ? 8 : 0));

  it("stay near each other, and equal seeds draw equal maps", () => {
    const products = innerProducts(clouds, 6);
    const map = neighbourMap(products, 4)!;
    expect(neighbourMap(products, 4)).toEqual(map);
    expect(neighbourMap(products, 5)!.x).not.toEqual(map.x);
    // Whatever the map's axes, a point's nearest is of its own cloud.
    for (let i = 0; i < 40; i++) {
      const others = Array.from({ length: 40 }, (_, j) => j).filter((j) => j !== i);
      const far = (j: number) => Math.hypot(map.x[j]! - map.x[i]!, map.y[j]! - map.y[i]!);
      const nearest = others.reduce((best, j) => (far(j) < far(best) ? j : best));
      expect(nearest < 20).toBe(i < 20);
    }
  });

  it("of equal states are finite, and of fewer than four there is no map", () => {
    const map = neighbourMap(innerProducts(new Float32Array(30).fill(1), 1), 0)!;
    expect([...map.x, ...map.y].every(Number.isFinite)).toBe(true);
    expect(neighbourMap(innerProducts(Float32Array.of(1, 2, 3), 1), 0)).toBeNull();
  });
});
