/** Rotary embeddings: the spellings of config.json, and frequencies against transformers' formulas in float64. */
import { describe, expect, it } from "vitest";
import type { z } from "zod";
import {
  type RopeConfig,
  type RopeContext,
  type RopeEntries,
  readRope,
  ropeFrequencies,
  ropeScale,
  rotaryDims,
} from "../../weights/rope.ts";
import { failing } from "../support/failing.ts";

const CONTEXT: RopeContext = {
  path: "m/config.json",
  key: "rope_scaling",
  headDim: 16,
  maxPositions: 1024,
  theta: 10_000,
  partial: 1,
};
const read = (entries: z.infer<typeof RopeEntries>, context: Partial<RopeContext> = {}) =>
  readRope(entries, { ...CONTEXT, ...context });

/** Llama 3.1's. */
const LLAMA3 = {
  rope_type: "llama3",
  rope_theta: 500_000,
  factor: 8,
  low_freq_factor: 1,
  high_freq_factor: 4,
  original_max_position_embeddings: 8192,
};
const SHORT = [1, 1.25, 1.5, 2];
const LONG = [1.5, 3, 7.25, 20];
const LONGROPE = { rope_type: "longrope", short_factor: SHORT, long_factor: LONG };

describe("parsing", () => {
  it("default, of nothing but what the model says itself", () => {
    expect(read({})).toEqual({ type: "default", theta: 10_000, dims: 16 });
    expect(read({ rope_type: null, type: null, rope_theta: null })).toEqual({
      type: "default",
      theta: 10_000,
      dims: 16,
    });
    expect(read({ rope_type: "default", rope_theta: 7, factor: 3 })).toEqual({ type: "default", theta: 7, dims: 16 });
  });

  it("linear, under the old name of rope_type, too; the new one goes first", () => {
    const expected = { type: "linear", theta: 10_000, dims: 16, factor: 3 };
    expect(read({ type: "linear", factor: 3 })).toEqual(expected);
    expect(read({ rope_type: "linear", factor: 3 })).toEqual(expected);
    expect(read({ rope_type: "linear", type: "yarn", factor: 3 })).toEqual(expected);
  });

  it("dynamic", () => {
    const dynamic = { type: "dynamic", theta: 10_000, dims: 16, factor: 2 };
    expect(read({ type: "dynamic", factor: 2 })).toEqual(dynamic);
  });

  it("llama3", () => {
    expect(read(LLAMA3)).toEqual({
      type: "llama3",
      theta: 500_000,
      dims: 16,
      factor: 8,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPositions: 8192,
    });
  });

  it("yarn: what is left out follows from the lengths", () => {
    const yarn = { type: "yarn", theta: 10_000, dims: 16, betaFast: 32, betaSlow: 1, truncate: true };
    expect(read({ type: "yarn", factor: 8, original_max_position_embeddings: 128 })).toEqual({
      ...yarn,
      factor: 8,
      attentionFactor: 0.1 * Math.log(8) + 1,
      originalMaxPositions: 128,
    });
    const given = { beta_fast: 4, beta_slow: 2, truncate: false, attention_factor: 1.25 };
    expect(read({ rope_type: "yarn", factor: 1, ...given }, { originalMaxPositions: 512 })).toEqual({
      ...yarn,
      ...{ betaFast: 4, betaSlow: 2, truncate: false, attentionFactor: 1.25, factor: 1, originalMaxPositions: 512 },
    });
    expect(read({ rope_type: "yarn", factor: null, original_max_position_embeddings: 256 })).toMatchObject({
      factor: 4,
    });
    expect(read({ rope_type: "yarn", factor: 2 })).toMatchObject({ factor: 2, originalMaxPositions: 1024 });
    expect(ropeScale(read({ rope_type: "yarn", factor: 0.5 }))).toBe(1);
    // One of the two alone says nothing.
    for (const alone of [{ mscale: 0.5 }, { mscale_all_dim: 0.5 }, { mscale: 0, mscale_all_dim: 0.5 }])
      expect(ropeScale(read({ rope_type: "yarn", factor: 8, ...alone }))).toBe(0.1 * Math.log(8) + 1);
  });

  it("longrope: the length beside the entries goes before the one within", () => {
    const longrope = { type: "longrope", theta: 10_000, dims: 8, shortFactors: SHORT, longFactors: LONG };
    const sizes = { headDim: 8, maxPositions: 131_072 };
    const attentionFactor = Math.sqrt(1 + Math.log(32) / Math.log(4096));
    expect(read(LONGROPE, { ...sizes, originalMaxPositions: 4096 })).toEqual({
      ...longrope,
      attentionFactor,
      originalMaxPositions: 4096,
    });
    const within = { ...LONGROPE, original_max_position_embeddings: 8192 };
    expect(read(within, sizes)).toMatchObject({ originalMaxPositions: 8192 });
    expect(read(within, { ...sizes, originalMaxPositions: 4096 })).toMatchObject({ originalMaxPositions: 4096 });
    expect(read(LONGROPE, sizes)).toMatchObject({ originalMaxPositions: 131_072, attentionFactor: 1 });
    expect(read({ ...LONGROPE, attention_factor: 1.5 }, sizes)).toMatchObject({ attentionFactor: 1.5 });
  });

  it("names that a family has for a type", () => {
    const context = { headDim: 8, aliases: { su: "longrope", yarn: "longrope" } } as const;
    expect(read({ ...LONGROPE, rope_type: "su" }, context).type).toBe("longrope");
    expect(read({ ...LONGROPE, rope_type: undefined, type: "yarn" }, context).type).toBe("longrope");
    expect(() => read({ type: "toString" }, context)).toThrow(failing("config/unsupported-rope", '"toString"'));
  });

  it("a part of the head: rounded down, and turned in pairs", () => {
    expect(read({}, { partial: 0.25 }).dims).toBe(4);
    expect(read({ partial_rotary_factor: 0.75 }, { partial: 0.25 }).dims).toBe(12);
    const odd = read({}, { headDim: 20, partial: 0.25 });
    expect([odd.dims, rotaryDims(odd), ropeFrequencies(odd).length]).toEqual([5, 6, 3]);
    expect(rotaryDims(read({}))).toBe(16);
    expect(read({}, { headDim: 9, partial: 0.5 }).dims).toBe(4);
  });

  it("only yarn and longrope scale what they turn", () => {
    for (const entries of [{}, { type: "linear", factor: 2 }, { type: "dynamic", factor: 2 }, LLAMA3])
      expect(ropeScale(read(entries))).toBe(1);
    expect(ropeScale(read({ type: "yarn", factor: 2, attention_factor: 3 }))).toBe(3);
  });
});

describe("refused", () => {
  it("types that are not known, by name", () => {
    for (const type of ["ntk", "su", "mrope", "proportional", "Linear", ""])
      for (const key of ["type", "rope_type"])
        expect(() => read({ [key]: type, factor: 2 })).toThrow(
          failing("config/unsupported-rope", `rope_scaling has rope_type "${type}"`, "llama3, yarn, longrope"),
        );
  });

  it("settings by kind of layer where a family has one for all", () => {
    const nested = { full_attention: { rope_type: "default", rope_theta: 1e6 } };
    expect(() => read(nested)).toThrow(failing("config/unsupported-rope", "full_attention"));
  });

  it("bad values, with the outer key", () => {
    const wrong: readonly (readonly [object, string])[] = [
      [{ type: "linear" }, "rope_scaling.factor is missing"],
      [{ type: "linear", factor: -2 }, "rope_scaling.factor is -2"],
      [{ type: "dynamic", factor: "2" }, 'rope_scaling.factor is "2"'],
      [{ type: "yarn", factor: 0 }, "rope_scaling.factor is 0"],
      [{ type: "yarn", factor: 2, beta_fast: -1 }, "rope_scaling.beta_fast is -1"],
      [{ type: "yarn", factor: 2, truncate: 1 }, "rope_scaling.truncate is 1"],
      [{ type: "yarn", factor: 2, mscale: "1" }, 'rope_scaling.mscale is "1"'],
      [{ ...LONGROPE, long_factor: undefined }, "rope_scaling.long_factor is missing"],
      [{ ...LONGROPE, short_factor: [1, 1, 1, 1, 0, 1, 1, 1] }, "rope_scaling.short_factor.4 is 0"],
      [LONGROPE, "rope_scaling.short_factor has 4 factors; 16 elements of a head need 8"],
      [{ ...LLAMA3, low_freq_factor: 4 }, "high_freq_factor 4"],
      ...["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"].map(
        (key) => [{ ...LLAMA3, [key]: undefined }, `rope_scaling.${key} is missing`] as const,
      ),
    ];
    for (const [entries, text] of wrong)
      expect(() => read(entries as z.infer<typeof RopeEntries>)).toThrow(failing("config/bad-value", text));
  });

  it("two original lengths that differ", () => {
    const yarn = { type: "yarn", factor: 2, original_max_position_embeddings: 8192 };
    for (const entries of [LLAMA3, yarn]) {
      expect(() => read(entries, { originalMaxPositions: 4096 })).toThrow(failing("config/bad-value", "4096", "8192"));
      expect(read(entries, { originalMaxPositions: 8192 })).toMatchObject({ originalMaxPositions: 8192 });
    }
  });

  it("heads that cannot turn in pairs", () => {
    const yarn = { rope_type: "yarn", factor: 4, beta_fast: 4, beta_slow: 0.5, original_max_position_embeddings: 32 };
    expect(() => read({ ...yarn, rope_theta: 1 })).toThrow(
      failing("config/bad-value", "frequency of NaN", "rope_theta 1"),
    );
    expect(() => read({ ...yarn, factor: 1e-320 })).toThrow(
      failing("config/bad-value", "pair 0 at a frequency of NaN"),
    );
    expect(() => read({ rope_type: "linear", factor: 1e-320 })).toThrow(failing("config/bad-value", "of Infinity"));
    expect(() => read({ ...yarn, mscale: 1e308, mscale_all_dim: -10 / Math.log(4) })).toThrow(
      failing("config/bad-value", "scales by"),
    );
    expect(() => read({}, { headDim: 15 })).toThrow(failing("config/bad-value", "head_dim 15"));
    expect(() => read({}, { headDim: 3, partial: 0.25 })).toThrow(failing("config/bad-value", "partial_rotary_factor"));
    for (const type of ["yarn", "longrope"])
      expect(() => read({ ...LONGROPE, type, rope_type: type, factor: 2 }, { headDim: 20, partial: 0.25 })).toThrow(
        failing("config/bad-value", "odd"),
      );
  });
});

/** Digits that doubles of one formula in another order share. */
const close = (got: ArrayLike<number>, expected: readonly number[]) => {
  expect(got.length).toBe(expected.length);
  expected.forEach((value, i) => {
    expect(Math.abs((got[i] ?? Number.NaN) / value - 1), `frequency ${i}`).toBeLessThan(1e-14);
  });
};

// Values of transformers 5.18: the functions of modeling_rope_utils.py with float64 in place of float32.
describe("ropeFrequencies", () => {
  const theta = 10_000;

  it("default: theta^(-2i / dims)", () => {
    const expected = [1, 10 ** -0.5, 0.1, 10 ** -1.5, 0.01, 10 ** -2.5, 0.001, 10 ** -3.5];
    close(ropeFrequencies({ type: "default", theta, dims: 16 }), expected);
    close(ropeFrequencies({ type: "default", theta, dims: 4 }), [1, 0.01]);
    close(ropeFrequencies({ type: "default", theta, dims: 5 }), [1, theta ** (-2 / 5), theta ** (-4 / 5)]);
  });

  it("linear: divided by the factor", () => {
    close(ropeFrequencies({ type: "linear", theta, dims: 8, factor: 4 }), [0.25, 0.025, 0.0025, 0.00025]);
  });

  it("dynamic: as default, within the positions of the model", () => {
    const rope: RopeConfig = { type: "dynamic", theta, dims: 8, factor: 2 };
    close(ropeFrequencies(rope), [1, 0.1, 0.01, 0.001]);
  });

  it("llama3: Llama 3.1's own numbers", () => {
    const got = ropeFrequencies(read(LLAMA3, { headDim: 128 }));
    const at = [0, 1, 28, 29, 30, 31, 32, 33, 34, 35, 36, 63];
    close(
      at.map((i) => got[i] ?? Number.NaN),
      [
        1.0, 0.8146172338565447, 0.0032114459947525913, 0.002166570763503359, 0.0013718935677611381,
        0.0008567514129196321, 0.0005248461609929547, 0.00031269375038406517, 0.00017850781276799638,
        9.556212353964683e-5, 7.78465527393245e-5, 3.068925988914511e-7,
      ],
    );
  });

  it("llama3: all three regions in a small head", () => {
    close(
      ropeFrequencies(read({ ...LLAMA3, original_max_position_embeddings: 64 })),
      [
        1.0, 0.0794030091792082, 0.004700753866357992, 0.0009115830921521386, 0.00017677669529663688,
        3.428102195952591e-5, 6.647869871181236e-6, 1.2891731721515574e-6,
      ],
    );
  });

  const yarn = { rope_type: "yarn", original_max_position_embeddings: 128 };
  it.each([
    {
      title: "the numbers of a published model",
      entries: { ...yarn, rope_theta: 1e6, factor: 4, original_max_position_embeddings: 32_768 },
      scale: 1.138629436111989,
      expected: [
        1.0, 0.17782794100389226, 0.03162277660168379, 0.004217559938927618, 0.0005, 4.445698525097307e-5,
        7.905694150420949e-6, 1.4058533129758728e-6,
      ],
    },
    {
      title: "bounds in whole pairs",
      entries: { ...yarn, factor: 8, beta_fast: 4, beta_slow: 1 },
      scale: 1.2079441541679836,
      expected: [
        1.0, 0.31622776601683794, 0.05625, 0.003952847075210474, 0.00125, 0.00039528470752104737, 0.000125,
        3.952847075210474e-5,
      ],
    },
    {
      title: "bounds between pairs",
      entries: { ...yarn, factor: 8, beta_fast: 4, beta_slow: 1, truncate: false },
      scale: 1.2079441541679836,
      expected: [
        1.0, 0.31622776601683794, 0.05741269018426393, 0.003952847075210474, 0.00125, 0.00039528470752104737, 0.000125,
        3.952847075210474e-5,
      ],
    },
    {
      title: "mscale over mscale_all_dim",
      entries: { ...yarn, factor: 40, mscale: 1, mscale_all_dim: 0.8, beta_fast: 8, beta_slow: 2 },
      scale: 1.0569662567531275,
      expected: [
        1.0, 0.21345374206136564, 0.035, 0.000790569415042095, 0.00025, 7.905694150420948e-5, 2.5e-5,
        7.905694150420947e-6,
      ],
    },
  ])("yarn: $title", ({ entries, scale, expected }) => {
    const rope = read(entries);
    close(ropeFrequencies(rope), expected);
    close([ropeScale(rope)], [scale]);
  });

  it("yarn: a factor out of the lengths; bounds that fall together", () => {
    const sizes = { headDim: 8, maxPositions: 2048 };
    const entries = { ...yarn, original_max_position_embeddings: 256 };
    const derived = read({ ...entries, factor: null }, sizes);
    close(ropeFrequencies(derived), [1.0, 0.05625, 0.00125, 0.000125]);
    close([ropeScale(derived)], [1.2079441541679836]);
    const edge = read({ ...entries, factor: 2, beta_fast: 3, beta_slow: 3, truncate: false }, sizes);
    close(ropeFrequencies(edge), [1.0, 0.1, 0.005, 0.0005]);
    close([ropeScale(edge)], [1.0693147180559945]);
  });

  it("longrope: short factors up to the original length, long ones beyond", () => {
    const rope = read(LONGROPE, { headDim: 8, maxPositions: 131_072, originalMaxPositions: 4096 });
    close(ropeFrequencies(rope), [1.0, 0.08, 0.006666666666666667, 0.0005]);
    close(ropeFrequencies(rope, true), [0.6666666666666666, 0.03333333333333333, 0.001379310344827586, 5e-5]);
    close([ropeScale(rope)], [1.1902380714238083]);
  });

  it("longrope: over a part of the head", () => {
    const factors = { short_factor: [1, 1.1, 1.2, 1.3, 1.4, 1.5], long_factor: [1, 2, 4, 8, 16, 32] };
    const entries = { rope_type: "longrope", rope_theta: 5e5, partial_rotary_factor: 0.75, factor: 32, ...factors };
    const rope = read(entries, { originalMaxPositions: 4096 });
    close(
      ropeFrequencies(rope, true),
      [
        1.0, 0.05612310241546866, 0.0031498026247371836, 0.00017677669529663688, 9.921256574801251e-6,
        5.568116988377118e-7,
      ],
    );
    close([ropeScale(rope)], [1.1902380714238083]);
  });
});
