import { describe, expect, it } from "vitest";
import {
  checkScorerSpec,
  elementCount,
  initialWeights,
  parameterCount,
  parameterShapes,
  type ScorerSpec,
} from "../../scorer/scorer-spec.ts";
import { openSafetensors } from "../../weights/safetensors.ts";
import { rootMeanSquare } from "../support/compare.ts";
import { SCORER_GOLDEN } from "../support/scorer-golden.ts";

const LISTWISE: ScorerSpec = { head: "listwise", dim: 32, width: 16, heads: 2, ffn: 64, tau: 0.2 };
const POINTWISE: ScorerSpec = { ...LISTWISE, head: "pointwise" };

describe("parameterShapes", () => {
  it("has a PyTorch encoder block's names and shapes", () => {
    const at = "encoder.layers.0.";
    expect(parameterShapes(LISTWISE).map(({ name, shape }) => [name, ...shape])).toEqual([
      ["proj.weight", 16, 32],
      ["proj.bias", 16],
      [`${at}self_attn.in_proj_weight`, 48, 16],
      [`${at}self_attn.in_proj_bias`, 48],
      [`${at}self_attn.out_proj.weight`, 16, 16],
      [`${at}self_attn.out_proj.bias`, 16],
      [`${at}linear1.weight`, 64, 16],
      [`${at}linear1.bias`, 64],
      [`${at}linear2.weight`, 16, 64],
      [`${at}linear2.bias`, 16],
      [`${at}norm1.weight`, 16],
      [`${at}norm1.bias`, 16],
      [`${at}norm2.weight`, 16],
      [`${at}norm2.bias`, 16],
    ]);
    expect(parameterShapes(POINTWISE).map(({ name }) => name.replace(/\.(weight|bias)$/, ""))).toEqual(
      ["proj", "linear1", "linear2", "norm"].flatMap((name) => [name, name]),
    );
    expect([parameterCount(LISTWISE), parameterCount(POINTWISE)]).toEqual([
      16 * 33 + 48 * 17 + 16 * 17 + 64 * 17 + 16 * 65 + 64,
      16 * 33 + 64 * 17 + 16 * 65 + 32,
    ]);
  });

  it("is what PyTorch wrote into the golden scorer", async () => {
    await using file = await openSafetensors(SCORER_GOLDEN);
    const found = [...file.tensors.values()].filter(({ name }) => name.startsWith("init."));
    const expected = parameterShapes(LISTWISE).map(({ name, shape }) => [`init.${name}`, shape] as const);
    expect(new Map(found.map(({ name, shape }) => [name, shape]))).toEqual(new Map(expected));
  });
});

describe("checkScorerSpec", () => {
  it.each<[string, Partial<ScorerSpec>]>([
    ["as published", {}],
    ["heads of 64", { width: 256, heads: 4 }],
    ["one of everything", { dim: 1, width: 1, heads: 1, ffn: 1 }],
    ["a wide pointwise head", { head: "pointwise", width: 300, heads: 7 }],
  ])("takes sizes %s", (_, change) => {
    expect(() => checkScorerSpec({ ...LISTWISE, ...change })).not.toThrow();
  });

  it.each<[Partial<ScorerSpec>, string]>([
    [{ dim: 0 }, "dim is 0"],
    [{ width: 16.5 }, "width is 16.5"],
    [{ heads: -2 }, "heads is -2"],
    [{ ffn: Number.NaN }, "ffn is NaN"],
    [{ ffn: 2 ** 60 }, "ffn is"],
    [{ tau: 0 }, "tau is 0"],
    [{ tau: -0.2 }, "tau is -0.2"],
    [{ tau: Number.NaN }, "tau is NaN"],
    [{ tau: Number.POSITIVE_INFINITY }, "tau is Infinity"],
    [{ heads: 3 }, "3 heads do not divide a width of 16"],
    [{ width: 130, heads: 2 }, "65 wide each"],
    [{ dim: 2 ** 20, width: 64 }, "parameters; at most 67108864"],
    [{ dim: 2 ** 40, width: 2 ** 12, heads: 64 }, "parameters"],
    [{ head: "both" as "listwise" }, "no head 'both'"],
  ])("refuses %j", (change, words) => {
    expect(() => checkScorerSpec({ ...LISTWISE, ...change })).toThrow(
      expect.objectContaining({ code: "scorer/bad-size", message: expect.stringContaining(words) }),
    );
  });
});

describe("initialWeights", () => {
  const spec: ScorerSpec = { head: "listwise", dim: 300, width: 64, heads: 4, ffn: 128, tau: 0.2 };
  const at = "encoder.layers.0.";

  it("draws PyTorch's default distributions", () => {
    const weights = initialWeights(spec, 1);
    expect([...weights].map(([name, values]) => [name, values.length])).toEqual(
      parameterShapes(spec).map(({ name, shape }) => [name, elementCount(shape)]),
    );
    const bounds = {
      "proj.weight": 1 / Math.sqrt(300),
      "proj.bias": 1 / Math.sqrt(300),
      [`${at}self_attn.in_proj_weight`]: Math.sqrt(6 / (64 + 192)),
      [`${at}self_attn.out_proj.weight`]: 1 / 8,
      [`${at}linear1.weight`]: 1 / 8,
      [`${at}linear1.bias`]: 1 / 8,
      [`${at}linear2.weight`]: 1 / Math.sqrt(128),
      [`${at}linear2.bias`]: 1 / Math.sqrt(128),
    };
    for (const [name, bound] of Object.entries(bounds)) {
      const values = weights.get(name)!;
      const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      expect(largest, name).toBeLessThanOrEqual(Math.fround(bound));
      expect(largest, name).toBeGreaterThan(0.93 * bound);
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      expect(Math.abs(mean) / bound, name).toBeLessThan(3 / Math.sqrt(values.length));
      expect(Math.abs((rootMeanSquare(values) * Math.sqrt(3)) / bound - 1), name).toBeLessThan(
        2 / Math.sqrt(values.length),
      );
    }
    for (const name of ["in_proj_bias", "out_proj.bias"])
      expect(weights.get(`${at}self_attn.${name}`)!.every((value) => value === 0)).toBe(true);
    for (const name of ["norm1", "norm2"]) {
      expect(weights.get(`${at}${name}.weight`)!.every((value) => value === 1)).toBe(true);
      expect(weights.get(`${at}${name}.bias`)!.every((value) => value === 0)).toBe(true);
    }
    const pointwise = initialWeights({ ...spec, head: "pointwise" }, 1);
    expect(pointwise.get("norm.weight")!.every((value) => value === 1)).toBe(true);
    expect(pointwise.get("linear1.bias")!.some((value) => value !== 0)).toBe(true);
  });

  it("draws each tensor from a stream of its own", () => {
    const weights = initialWeights(spec, 1);
    expect(initialWeights(spec, 1)).toEqual(weights);
    expect(initialWeights(spec, 2).get("proj.weight")).not.toEqual(weights.get("proj.weight"));
    // Other heads and other widths elsewhere: the same projection.
    expect(initialWeights({ ...spec, head: "pointwise" }, 1).get("proj.weight")).toEqual(weights.get("proj.weight"));
    expect(initialWeights({ ...spec, ffn: 3 }, 1).get("proj.bias")).toEqual(weights.get("proj.bias"));
    expect(weights.get(`${at}linear1.bias`)!.subarray(0, 64)).not.toEqual(weights.get("proj.bias"));
  });
});
