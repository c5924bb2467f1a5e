/** Random choices about lists: what each promises, and that none depends on what was drawn before. */
import { describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import {
  epochOrder,
  epochSubList,
  splitByInstruction,
  streamRandom,
  streamSeed,
  subList,
} from "../../scorer/sampling.ts";
import { failing } from "../support/failing.ts";

describe("streamSeed", () => {
  it("is another for every tuple, and a 32-bit integer", () => {
    const tuples: (number | string)[][] = [[], [0], [1], [-1], [0.5], [2 ** 32], [2 ** 40], [0, 0], [0, 1], [1, 0]];
    tuples.push(
      [""],
      ["0"],
      ["a"],
      ["b"],
      ["a", "b"],
      ["ab"],
      ["b", "a"],
      ["a", 0],
      [0, "a"],
      ["", ""],
      ["a", "", "b"],
    );
    const seeds = tuples.map((tuple) => streamSeed(...tuple));
    expect(new Set(seeds).size).toBe(tuples.length);
    for (const seed of seeds) expect(seed).toBe(seed >>> 0);
    expect(streamSeed(-0)).toBe(streamSeed(0));
  });

  it("never changes: a resumed run repeats the choices of an older one", () => {
    expect([streamSeed("order", 1, 2), streamSeed("weights", 7, "proj.weight")]).toMatchInlineSnapshot(`
      [
        3480953710,
        2744987568,
      ]
    `);
    expect([...epochOrder(8, 3, 1)]).toMatchInlineSnapshot(`
      [
        1,
        3,
        0,
        6,
        7,
        5,
        2,
        4,
      ]
    `);
  });

  it("spreads neighbours: bits are even, and streams of neighbouring lists do not follow each other", () => {
    const ones = new Array<number>(32).fill(0);
    for (let list = 0; list < 4000; list++) {
      const seed = streamSeed(1, 0, list);
      for (let bit = 0; bit < 32; bit++) ones[bit]! += (seed >>> bit) & 1;
    }
    for (const count of ones) expect(Math.abs(count - 2000)).toBeLessThan(160);
    let product = 0;
    for (let list = 0; list < 4000; list++)
      product += (streamRandom(1, 0, list)() - 0.5) * (streamRandom(1, 0, list + 1)() - 0.5);
    expect(Math.abs(product / 4000) * 12).toBeLessThan(0.08);
  });
});

describe("epochOrder", () => {
  it.each([0, 1, 2, 57, 1001])("is a permutation of %i lists, another one an epoch and a seed", (count) => {
    const order = epochOrder(count, 1, 0);
    expect([...order].sort((a, b) => a - b)).toEqual(Array.from({ length: count }, (_, i) => i));
    expect(epochOrder(count, 1, 0)).toEqual(order);
    if (count < 57) return;
    for (const other of [epochOrder(count, 1, 1), epochOrder(count, 2, 0)]) expect(other).not.toEqual(order);
  });

  it("gives every order of three lists equally often", () => {
    const counts = new Map<string, number>();
    for (let epoch = 0; epoch < 6000; epoch++) {
      const key = epochOrder(3, 5, epoch).join();
      counts.set(key, (counts.get(key) ?? 0) + 1);
    }
    expect(counts.size).toBe(6);
    for (const count of counts.values()) expect(Math.abs(count - 1000)).toBeLessThan(150);
  });
});

describe("subList", () => {
  const NONE = Number.NaN;
  it.each([
    ["two candidates", [1, 0]],
    ["one safe among ten", [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]],
    ["grades", [2, 0, 1, 2, -1]],
    ["some without a label", [NONE, 1, NONE, 0, 1, NONE]],
    ["300 candidates", Array.from({ length: 300 }, (_, i) => i % 3)],
  ])("holds a highest and a lower label, any size from 2: %s", (_, labels) => {
    const highest = Math.max(...labels.filter((label) => !Number.isNaN(label)));
    const sizes = new Set<number>();
    const seen = new Set<number>();
    for (let list = 0; list < 500; list++) {
      const indices = [...epochSubList(labels, 1, 0, list)];
      expect(indices).toEqual([...new Set(indices)].sort((a, b) => a - b));
      expect(indices.some((i) => labels[i] === highest)).toBe(true);
      expect(indices.some((i) => labels[i]! < highest)).toBe(true);
      sizes.add(indices.length);
      for (const i of indices) seen.add(i);
    }
    expect(seen.size).toBe(labels.length);
    expect([Math.min(...sizes), Math.max(...sizes)]).toEqual([2, expect.any(Number)]);
    if (labels.length <= 10) expect(sizes.size).toBe(labels.length - 1);
  });

  it.each([
    ["none", []],
    ["one candidate", [1]],
    ["one grade", [0, 0, 0]],
    ["one grade beside none", [1, NONE, 1]],
    ["no label", [NONE, NONE]],
  ])("comes whole where there is nothing to tell apart: %s", (_, labels) => {
    expect([...subList(labels, seededRandom(1))]).toEqual(labels.map((_, i) => i));
  });

  it("depends on seed, epoch and list alone", () => {
    const labels = [1, 0, 0, 1, 0, 0, 0, 1];
    const drawn = Array.from({ length: 20 }, (_, list) => epochSubList(labels, 9, 4, list));
    for (let list = 19; list >= 0; list--) expect(epochSubList(labels, 9, 4, list)).toEqual(drawn[list]);
    expect(Array.from({ length: 20 }, (_, list) => epochSubList(labels, 9, 5, list))).not.toEqual(drawn);
    expect(Array.from({ length: 20 }, (_, list) => epochSubList(labels, 8, 4, list))).not.toEqual(drawn);
  });
});

describe("splitByInstruction", () => {
  const distinct = (count: number) => Array.from({ length: count }, (_, i) => `question ${i}`);

  it("puts every list into one part, and no instruction into two", () => {
    const random = seededRandom(2);
    for (let run = 0; run < 200; run++) {
      const keys = Array.from({ length: 12 + Math.floor(60 * random()) }, () => `k${Math.floor(10 * random())}`);
      const fractions = [[0.7, 0.3], [8, 1, 1], [0.5, 0, 0.5], [1]][run % 4]!;
      if (new Set(keys).size < 3) continue;
      const parts = splitByInstruction(keys, fractions, run);
      expect(parts.flat().sort((a, b) => a - b)).toEqual(keys.map((_, i) => i));
      const owners = new Map<string, number>();
      for (const [p, part] of parts.entries()) {
        expect(part.length > 0).toBe(fractions[p]! > 0);
        expect(part).toEqual([...part].sort((a, b) => a - b));
        for (const list of part) {
          expect(owners.get(keys[list]!) ?? p).toBe(p);
          owners.set(keys[list]!, p);
        }
      }
    }
  });

  it.each([
    [100, [0.7, 0.3], [70, 30]],
    [101, [0.8, 0.1, 0.1], [81, 10, 10]],
    [3, [0.98, 0.01, 0.01], [1, 1, 1]],
    [2, [1, 1], [1, 1]],
    [879, [0.7, 0.15, 0.15], [615, 132, 132]],
  ])("splits %i lists of different instructions by %j", (count, fractions, sizes) => {
    for (let seed = 0; seed < 10; seed++)
      expect(splitByInstruction(distinct(count), fractions, seed).map((part) => part.length)).toEqual(sizes);
  });

  it("comes as near as whole instructions allow, however large they are", () => {
    // 40 lists of one instruction, 30 of another, 30 alone: 0.6 / 0.4 can be hit.
    const keys = [...new Array<string>(40).fill("a"), ...new Array<string>(30).fill("b"), ...distinct(30)];
    for (let seed = 0; seed < 10; seed++)
      expect(splitByInstruction(keys, [0.6, 0.4], seed).map((part) => part.length)).toEqual([60, 40]);
    // One instruction is larger than its part: the other part takes what is left.
    const skewed = [...new Array<string>(90).fill("a"), ...distinct(10)];
    for (let seed = 0; seed < 10; seed++)
      expect(
        splitByInstruction(skewed, [0.5, 0.5], seed)
          .map((part) => part.length)
          .sort(),
      ).toEqual([10, 90]);
  });

  it("is the same for a seed, another for another, and follows the lists when they change places", () => {
    const keys = distinct(50).flatMap((key, i) => new Array<string>(1 + (i % 3)).fill(key));
    const parts = splitByInstruction(keys, [0.7, 0.3], 4);
    expect(splitByInstruction(keys, [0.7, 0.3], 4)).toEqual(parts);
    expect(splitByInstruction(keys, [0.7, 0.3], 5)).not.toEqual(parts);
    const reversed = splitByInstruction([...keys].reverse(), [0.7, 0.3], 4);
    const named = (split: number[][], from: string[]) => split.map((part) => new Set(part.map((list) => from[list])));
    expect(named(reversed, [...keys].reverse())).toEqual(named(parts, keys));
  });

  it("does not send large instructions to one side", () => {
    const keys = [...new Array<string>(5).fill("large"), ...distinct(95)];
    let small = 0;
    for (let seed = 0; seed < 300; seed++) if (splitByInstruction(keys, [0.7, 0.3], seed)[1]!.includes(0)) small++;
    expect(small).toBeGreaterThan(60);
    expect(small).toBeLessThan(125);
  });

  it("splits 100,000 lists in seconds", () => {
    const random = seededRandom(8);
    const keys = Array.from({ length: 100_000 }, () => `k${Math.floor(40_000 * random() ** 3)}`);
    const begin = performance.now();
    const sizes = splitByInstruction(keys, [0.8, 0.1, 0.1], 1).map((part) => part.length);
    expect(sizes).toEqual([80_000, 10_000, 10_000]);
    expect(performance.now() - begin).toBeLessThan(10_000);
  });

  it("says how many instructions are needed", () => {
    expect(() => splitByInstruction(["a", "a", "a"], [0.8, 0.2], 1)).toThrow(
      failing("list/too-few", "3 lists of 1 different instructions; 2 parts need at least 2"),
    );
    expect(() => splitByInstruction([], [1], 1)).toThrow(failing("list/too-few", "0 lists"));
    for (const fractions of [[], [0, 0], [-1, 2], [Number.NaN, 1], [Number.POSITIVE_INFINITY, 1]])
      expect(() => splitByInstruction(["a", "b"], fractions, 1)).toThrow(failing("usage/fractions", /\[/));
  });
});
