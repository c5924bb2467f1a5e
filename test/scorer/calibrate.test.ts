import { describe, expect, it } from "vitest";
import { calibrationLists, checkCalibration, oneAnInstruction } from "../../scorer/calibrate.ts";
import { arraySource } from "../../scorer/feature-source.ts";
import { failing } from "../support/failing.ts";

describe("lists for a threshold", () => {
  // 0: trained on, 1: validates, then lists whose labels are alike: of the trained instruction, of the validating one, of
  // others, one held out, one with a missing label.
  const labels = [
    [1, 0],
    [0, 1],
    [0, 0],
    [1, 1],
    ...Array.from({ length: 200 }, () => [0, 0]),
    [1, 1],
    [0, Number.NaN],
  ];
  const keys = ["t", "v", "t", "w", ...Array.from({ length: 200 }, (_, i) => `k${i}`), "held", "missing"];
  const flat = labels.flat();
  const source = arraySource({
    ...{ dim: 1, inst: new Float32Array(labels.length), resp: new Float32Array(flat.length) },
    ...{ labels: Float32Array.from(flat), offsets: Uint32Array.from({ length: labels.length + 1 }, (_, b) => 2 * b) },
  });
  const lists = keys.flatMap((key, b) => (key === "held" ? [] : [b]));
  const found = (changes: object = {}) =>
    calibrationLists({
      ...{ source, keys, lists, trainLists: [0], validationLists: [1], validation: 0.25, seed: 1, ...changes },
    });

  it("those that validate, and the same share of those that teach nothing; none that was trained on or held out", () => {
    const chosen = found();
    expect(chosen.slice(0, 1)).toEqual([1]);
    expect(chosen.some((b) => ["t", "held", "missing"].includes(keys[b] as string))).toBe(false);
    // 201 are drawn with 1/4 each: 50 on average, a deviation of 6.
    expect(chosen.length).toBeGreaterThan(25);
    expect(chosen.length).toBeLessThan(75);
    expect(found()).toEqual(chosen);
    expect(found({ seed: 2 })).not.toEqual(chosen);
    expect(found({ validation: 0 })).toEqual([1]);
  });

  it("can be chosen from labels 0 and 1, from grades with the one that is safe, for a pointwise head", () => {
    checkCalibration("pointwise", source, lists);
    const graded = { offsets: Uint32Array.of(0, 2, 4), labels: Float32Array.of(1, 0, 2, 1) };
    checkCalibration("pointwise", graded, [0]);
    checkCalibration("pointwise", graded, [0, 1], { safeFrom: 2 });
    expect(() => checkCalibration("pointwise", graded, [0, 1])).toThrowError(failing("list/bad-labels"));
    expect(() => checkCalibration("listwise", source, lists)).toThrowError(failing("scorer/not-pointwise"));
  });

  it("one list an instruction", () => {
    expect(
      found({ validation: 0, validationLists: [1, 3], keys: keys.map((key) => (key === "w" ? "v" : key)) }),
    ).toEqual([1]);
    expect(oneAnInstruction([3, 1, 0, 2], ["a", "b", "c", "a"])).toEqual([3, 1, 2]);
    expect(oneAnInstruction([0, 1], null)).toEqual([0, 1]);
  });
});
