import { expect, it } from "vitest";
import { byLength, oneSafe, slice, withoutRefusal } from "../../scorer/slices.ts";

const lists = (...lengths: readonly number[]) =>
  Uint32Array.from([0, ...lengths.map((_, b) => lengths.slice(0, b + 1).reduce((sum, m) => sum + m, 0))]);

it("exactly one safe candidate, by the highest grade or from one on", () => {
  const data = { offsets: lists(2, 3, 2, 3, 1), labels: Float32Array.of(1, 0, 1, 1, 0, 0, 0, 2, 1, 0, 1) };
  expect([...oneSafe(data)]).toEqual([0, 3]);
  expect([...oneSafe(data, { safeFrom: 1 })]).toEqual([0, 4]);
});

it("no candidate with a refusal phrase", () => {
  const texts = (...all: readonly string[]) => ({ candidates: all.map((text) => ({ text })) });
  expect([...withoutRefusal([texts("Yes", "I cannot"), texts("Yes", "No"), texts()])]).toEqual([1, 2]);
});

it("by length: every list in one bucket, none of them empty", () => {
  const found = byLength({ offsets: lists(2, 1, 4, 3, 8, 17, 100, 16) });
  expect(found.map(({ name, lists }) => [name, ...lists])).toEqual([
    ["1", 1],
    ["2", 0],
    ["3-4", 2, 3],
    ["5-8", 4],
    ["9-16", 7],
    ["17+", 5, 6],
  ]);
});

it("takes a slice's values", () => {
  expect([...slice(Float64Array.of(5, 6, 7), [2, 0])]).toEqual([7, 5]);
});
