/** What an evaluation counts: labelled lists that the scorer has not seen. */
import { describe, expect, it } from "vitest";
import { canFit, divideLists, seenInstructions } from "../../scorer/seen.ts";

const NaN_ = Number.NaN;
const DATA = {
  offsets: Uint32Array.of(0, 2, 4, 6, 8, 10),
  labels: Float32Array.of(1, 0, 0, 1, 1, NaN_, 1, 1, 0, 1),
};
const KEYS = ["a", "b", "c", "d", "b"];

describe("seenInstructions", () => {
  it("are those of the training and of the validation, not the held-out ones", () => {
    const instructions = { train: ["a"], validation: ["b"], test: ["c"] };
    expect(seenInstructions({ instructions })).toEqual(new Set(["a", "b"]));
    expect([seenInstructions({}), seenInstructions({ instructions: null })]).toEqual([null, null]);
    expect(() => seenInstructions({ instructions: { train: "a" } })).toThrow(
      expect.objectContaining({ code: "scorer/bad-config" }),
    );
  });
});

describe("divideLists", () => {
  it("tells lists to evaluate from seen ones, unlabelled ones and those whose labels are all alike", () => {
    const counts = { unlabelled: 1, noContrast: 1 };
    expect(divideLists(DATA)).toEqual({ evaluated: [0, 1, 4], seen: [], ...counts });
    const seen = new Set(["b"]);
    expect(divideLists(DATA, { keys: KEYS, seen })).toEqual({ evaluated: [0], seen: [1, 4], ...counts });
    expect(divideLists(DATA, { keys: KEYS, seen, includeSeen: true }).evaluated).toEqual([0, 1, 4]);
    expect(divideLists(DATA, { safeFrom: 1 }).evaluated).toEqual([0, 1, 3, 4]);
  });

  it("says why nothing is left", () => {
    const seen = new Set(["a", "b"]);
    const refused = (code: string, ...words: string[]) =>
      expect.objectContaining({ code, message: expect.stringMatching(words.map((word) => `(?=.*${word})`).join("")) });
    expect(() => divideLists(DATA, { keys: KEYS, seen })).toThrow(refused("list/all-seen", "all 3 labelled lists"));
    expect(divideLists(DATA, { keys: KEYS, seen, includeSeen: true }).evaluated).toEqual([0, 1, 4]);
    const alike = { offsets: Uint32Array.of(0, 2, 3), labels: Float32Array.of(1, 1, NaN_) };
    for (const safeFrom of [undefined, 1])
      expect(() => divideLists(alike, { safeFrom })).toThrow(refused("list/no-contrast", "none of 2", "1 with"));
  });
});

describe("canFit", () => {
  it("needs a list whose labels differ", () => {
    expect([canFit(DATA, [3, 1]), canFit(DATA, [3]), canFit(DATA, [])]).toEqual([true, false, false]);
  });
});
