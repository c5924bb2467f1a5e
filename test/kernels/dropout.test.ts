/** Dropout's masks: drawn at their rate, without a pattern along any of the numbers they follow from, the same on every adapter. */
import { afterAll, describe, expect, it } from "vitest";
import { createEngine } from "../../engine/model.ts";
import { runKernel } from "../../engine/run-kernel.ts";
import { type DropoutVariant, dropoutFactor, NO_DROPOUT } from "../../kernels/dropout.ts";
import { gelu } from "../../kernels/gelu.ts";

const RATES = [0.01, 0.1, 0.5] as const;

interface Place {
  readonly row: number;
  readonly element: number;
  readonly step: number;
  readonly seed: number;
  readonly site: number;
}
const AXES = ["row", "element", "step", "seed", "site"] as const;
type Axis = (typeof AXES)[number];

/** Places around which the axes are walked: training's first, and one of large numbers. */
const PLACES: readonly Place[] = [
  { row: 0, element: 0, step: 0, seed: 0, site: 1 },
  { row: 5, element: 63, step: 700, seed: 1, site: 4 },
  { row: 1000, element: 4000, step: 31_299, seed: 0xfffffff0, site: 2 },
];

function kept(rate: number, { row, element, step, seed, site }: Place): number {
  return dropoutFactor({ rate, site }, [step, seed, 0], row, element) === 0 ? 0 : 1;
}

/** Whether each of (A, B) places is kept, of mean 0 and variance 1: `first` and `second` go up from a place. */
function mask(rate: number, place: Place, [first, a]: readonly [Axis, number], [second, b]: readonly [Axis, number]) {
  const deviation = Math.sqrt(rate * (1 - rate));
  return Float64Array.from({ length: a * b }, (_, i) => {
    const [up, across] = [Math.floor(i / b), i % b];
    const value = kept(rate, { ...place, [first]: place[first] + up, [second]: place[second] + across });
    return (value - (1 - rate)) / deviation;
  });
}

/** Sum of n independent values of variance 1, in standard deviations. */
const inDeviations = (sum: number, n: number) => sum / Math.sqrt(n);

describe.each(RATES)("dropoutFactor at rate %f", (rate) => {
  it("is 0 or 1 / (1 - rate)", () => {
    const found = new Set(
      Array.from({ length: 1000 }, (_, row) => dropoutFactor({ rate, site: 3 }, [0, 0, 0], row, 0)),
    );
    expect(found).toEqual(new Set([0, 1 / (1 - rate)]));
  });

  it.each(AXES)("keeps its share along the %s, and neighbours are independent", (axis) => {
    const count = 20_000;
    for (const place of PLACES) {
      const line = mask(rate, place, [axis, count], [axis === "row" ? "element" : "row", 1]);
      const where = `along the ${axis} from ${JSON.stringify(place)}`;
      const total = line.reduce((sum, u) => sum + u, 0);
      expect(Math.abs(inDeviations(total, count)), where).toBeLessThan(4);
      for (const lag of [1, 2, 3, 4, 8, 16, 64, 256]) {
        let sum = 0;
        for (let i = lag; i < count; i++) sum += line[i] * line[i - lag];
        expect(Math.abs(inDeviations(sum, count - lag)), `${where}, lag ${lag}`).toBeLessThan(5);
      }
    }
  });

  it.each([
    ["row", "element"],
    ["row", "step"],
    ["element", "step"],
    ["row", "site"],
    ["element", "seed"],
    ["step", "site"],
  ] as const)("has no pattern over %s and %s", (first, second) => {
    const [a, b] = [160, 200];
    for (const place of PLACES) {
      const values = mask(rate, place, [first, a], [second, b]);
      const where = `from ${JSON.stringify(place)}`;
      // Chi-square of the sums of lines: no line is kept more often than another.
      const up = new Float64Array(a);
      const across = new Float64Array(b);
      for (const [i, u] of values.entries()) {
        up[Math.floor(i / b)] += u;
        across[i % b] += u;
      }
      for (const [sums, length, axis] of [
        [up, b, first],
        [across, a, second],
      ] as const) {
        const chi = sums.reduce((sum, s) => sum + s ** 2 / length, 0);
        expect(Math.abs(chi - sums.length) / Math.sqrt(2 * sums.length), `${where}, by ${axis}`).toBeLessThan(5);
      }
      for (const [du, da] of [
        [1, 0],
        [0, 1],
        [1, 1],
        [1, -1],
        [2, 1],
        [4, 0],
        [0, 4],
        [64, 0],
        [0, 64],
      ]) {
        let [sum, n] = [0, 0];
        for (let i = du; i < a; i++) {
          for (let j = Math.max(0, da); j < b + Math.min(0, da); j++, n++)
            sum += values[i * b + j] * values[(i - du) * b + j - da];
        }
        expect(Math.abs(inDeviations(sum, n)), `${where}, lag ${du}, ${da}`).toBeLessThan(5);
      }
    }
  });
});

it("keeps everything as it is at rate 0", () => {
  for (const [row, element] of [
    [0, 0],
    [7, 1],
    [1e6, 1e6],
  ])
    expect(dropoutFactor(NO_DROPOUT, [0, 0, 0], row, element)).toBe(1);
});

it("counts the rows from the step's row that a batch begins with", () => {
  const variant: DropoutVariant = { rate: 0.5, site: 1 };
  for (let row = 0; row < 200; row++)
    expect(dropoutFactor(variant, [3, 9, 40], row, 2)).toBe(dropoutFactor(variant, [3, 9, 0], 40 + row, 2));
});

// Both software adapters where both are there; the embedded one always is on Linux x64.
for (const adapter of ["auto", "embedded"]) {
  const engine = await createEngine({ adapter });
  afterAll(() => engine[Symbol.dispose]());

  describe(`${adapter}: ${engine.device.info.name}`, () => {
    it.each([
      [0.1, 1, [0, 0, 0]],
      [0.1, 3, [31_299, 17, 1000]],
      [0.5, 4, [1, 0xffffffff, 0]],
      [0.01, 2, [0xffffffff, 0x80000000, 0xffffff00]],
      [0, 3, [5, 6, 7]],
    ] as const)("drops what its twin drops: rate %f, site %i, counter %j", async (rate, site, counter) => {
      const [rows, width] = [331, 65];
      const dropout: DropoutVariant = { rate, site };
      const x = new Float32Array(rows * width).fill(2);
      const { out } = await runKernel(
        engine.device,
        engine.pipelines,
        gelu({ width, dropout }),
        { x, counter: Uint32Array.from(counter), out: new Float32Array(rows * width) },
        rows,
      );
      const expected = Array.from(x, (_, i) => dropoutFactor(dropout, counter, Math.floor(i / width), i % width) > 0);
      expect(Array.from(out, (value) => value > 0)).toEqual(expected);
      expect(new Set(expected).size).toBe(rate > 0 ? 2 : 1);
      // What is kept is scaled alike.
      expect(new Set(out).size).toBe(rate > 0 ? 2 : 1);
    });
  });
}
