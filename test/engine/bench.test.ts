/** Benchmarks: verdicts and fits on made-up numbers, checks that can fail, rows of real runs, random models. */
import { afterAll, describe, expect, it } from "vitest";
import { sampled, sampleFault } from "../../engine/bench-check.ts";
import { type ComparedRow, compareRows } from "../../engine/bench-compare.ts";
import { linearFit } from "../../engine/bench-fit.ts";
import { benchForward, benchForwardFits, randomBatch } from "../../engine/bench-forward.ts";
import { benchCases, casesFor, productCase } from "../../engine/bench-kernels.ts";
import { measurePeak } from "../../engine/bench-peak.ts";
import { rates, withCeilings } from "../../engine/bench-row.ts";
import { interleaveTimed, spreadOf, type Timed } from "../../engine/bench-timer.ts";
import { CONFIGURATIONS, readConfiguration } from "../../engine/configurations.ts";
import { loadModel } from "../../engine/hidden-states.ts";
import { createEngine } from "../../engine/model.ts";
import { randomModel } from "../../engine/random-weights.ts";
import { createRunner } from "../../engine/runner.ts";
import { configFile } from "../../weights/config.ts";

const engine = await createEngine();
afterAll(() => engine[Symbol.dispose]());

const TINY = {
  ...{ model_type: "llama", hidden_size: 64, intermediate_size: 172, num_hidden_layers: 3, num_attention_heads: 4 },
  ...{ num_key_value_heads: 2, vocab_size: 50, rms_norm_eps: 1e-5, max_position_embeddings: 4096 },
};
const tiny = (options = {}) => randomModel(configFile(TINY, "tiny"), options);

const row = (name: string, median_ms: number, iqr_ms = 0): ComparedRow => ({
  ...{ name, shape: "1 x 2 x 3", dtype: "bf16", variant: "8x2", median_ms, iqr_ms },
});

describe("compareRows", () => {
  const verdict = (before: ComparedRow, now: ComparedRow) => compareRows([before], [now]).map((each) => each.verdict);

  it("takes a tenth, or three times the joint spread, for noise", () => {
    expect(verdict(row("a", 100), row("a", 109.9))).toEqual(["same"]);
    expect(verdict(row("a", 100), row("a", 110.1))).toEqual(["slower"]);
    expect(verdict(row("a", 100), row("a", 89.9))).toEqual(["faster"]);
    // 3 x sqrt(3^2 + 4^2) = 15 ms.
    expect(verdict(row("a", 100, 3), row("a", 114.9, 4))).toEqual(["same"]);
    expect(verdict(row("a", 100, 3), row("a", 115.1, 4))).toEqual(["slower"]);
  });

  it("tells rows of another variant or shape apart", () => {
    const other = { ...row("a", 1), variant: "4x4" };
    expect(verdict(row("a", 1), other)).toEqual(["new", "gone"]);
    expect(compareRows([row("a", 1), row("b", 1)], [row("b", 9)])).toMatchObject([
      { row: { name: "b" }, verdict: "slower", before_ms: 1, now_ms: 9 },
      { row: { name: "a" }, verdict: "gone", now_ms: null },
    ]);
  });
});

describe("numbers", () => {
  it("fits a line and says how well", () => {
    const exact = linearFit([
      [1, 5],
      [2, 7],
      [4, 11],
    ]);
    expect(exact.slope).toBeCloseTo(2, 12);
    expect(exact.intercept).toBeCloseTo(3, 12);
    expect(exact.r2).toBeCloseTo(1, 12);
    // A parabola on 0, 1, 2: the line 1/3 short of it, by hand: r^2 = 1 - (2/3) / (26/3).
    expect(
      linearFit([
        [0, 0],
        [1, 1],
        [2, 4],
      ]).r2,
    ).toBeCloseTo(12 / 13, 12);
  });

  it("interpolates quartiles", () => {
    expect(spreadOf([4, 1, 3, 2])).toEqual({ median_ms: 2.5, iqr_ms: 1.5 });
    expect(spreadOf([7])).toEqual({ median_ms: 7, iqr_ms: 0 });
  });

  it("takes the nearer ceiling for the share", () => {
    const ceilings = { gflops: 100, gbps: 10 };
    const of = (flops: number, bytes: number) => rates({ median_ms: 1, iqr_ms: 0 }, { flops, bytes }, ceilings);
    expect(of(50e6, 1e6)).toMatchObject({ gflops: 50, gbps: 1, ceiling_share: 0.5 });
    expect(of(10e6, 8e6)).toMatchObject({ gflops: 10, gbps: 8, ceiling_share: 0.8 });
    expect(of(0, 8e6)).toMatchObject({ gflops: null, gbps: 8, ceiling_share: 0.8 });
  });

  it("gives later ceilings to rows that have no share yet", () => {
    const row = (gflops: number | null, gbps: number | null, ceiling_share: number | null) => ({
      ...{ name: "a", shape: "s", dtype: "f32", variant: "v", median_ms: 1, iqr_ms: 0, runs: 1 },
      ...{ gflops, gbps, ceiling_share },
    });
    const rows = [row(50, 1, null), row(null, 8, null), row(null, null, null), row(50, 1, 1)];
    const shares = withCeilings(rows, { gflops: 100, gbps: 10 }).map(({ ceiling_share }) => ceiling_share);
    expect(shares).toEqual([0.5, 0.8, null, 1]);
  });

  it("runs works in turn, and each once when the time is over", async () => {
    const log: string[] = [];
    const work = (name: string): Timed => ({
      run: async (times) => {
        log.push(name);
        return times * 5;
      },
      [Symbol.dispose]: () => undefined,
    });
    const times = await interleaveTimed([work("a"), work("b")], {
      runs: 3,
      minMs: 12,
      deadline: Number.POSITIVE_INFINITY,
    });
    expect(times).toEqual([
      [5, 5, 5],
      [5, 5, 5],
    ]);
    expect(log.join("").endsWith("ababab")).toBe(true);
    expect(await interleaveTimed([work("a")], { runs: 3, minMs: 0, deadline: 0 })).toEqual([[5]]);
  });
});

describe("the check of a kernel", () => {
  it("samples ends and middle", () => {
    expect(sampled(3, 9, 1)).toEqual([0, 1, 2]);
    const some = sampled(1000, 9, 1);
    expect([some[0], some.at(-1), new Set(some).size]).toEqual([0, 999, 9]);
  });

  it("sees a wrong value, a missing NaN and one too many", () => {
    const values = Float32Array.of(1, -2, 3, Number.NaN);
    expect(sampleFault(values, { places: null, values })).toBeNull();
    expect(sampleFault(Float32Array.of(1, -2, 3.1, Number.NaN), { places: null, values })).toContain("1 of 4");
    expect(sampleFault(Float32Array.of(1, -2, 3, 4), { places: null, values })).toContain("[3] is 4");
    expect(sampleFault(Float32Array.of(1, Number.NaN, 3, Number.NaN), { places: null, values })).toContain(
      "[1] is NaN",
    );
  });

  it("drops a kernel that computes something else", async () => {
    const sound = productCase(engine, [9, 40, 33], "bf16", "default");
    const other = productCase(engine, [9, 40, 33], "f16", "default");
    // The words of bf16 weights read as f16: every sum is another.
    const broken = { ...sound, variants: [{ ...sound.variants[0], kernel: other.variants[0].kernel }] };
    const { rows, wrong } = await benchCases(engine, [broken, sound], { runs: 1, minMs: 0 });
    expect(wrong).toMatchObject([{ name: "matmul", shape: "9 x 40 x 33" }]);
    expect(rows).toMatchObject([{ name: "matmul", runs: 1 }]);
  });
});

describe("kernels of a model", () => {
  const request = { batch: 2, tokens: 9, variants: "default" } as const;

  it.each(["BF16", "F32"] as const)("in %s are what their twins are, role by role", async (dtype) => {
    const cases = await casesFor(engine, tiny({ dtype }), request);
    const { rows, wrong, left } = await benchCases(engine, cases, {
      ...{ runs: 1, minMs: 0, ceilings: { gflops: 10, gbps: 10 } },
    });
    expect({ wrong, left }).toEqual({ wrong: [], left: [] });
    const roles = ["query", "key", "value", "attentionOut", "gate", "down"].map((role) => `matmul ${role}`);
    expect(rows.map(({ name }) => name)).toEqual([
      ...roles,
      ...["attention", "norm attentionNorm", "norm ffnNorm", "rope query", "rope key", "rowGather"],
    ]);
    for (const each of rows) expect(each.median_ms).toBeGreaterThan(0);
    for (const { ceiling_share, gflops, gbps } of rows.slice(0, 7))
      expect(ceiling_share).toBeCloseTo(Math.max(gflops ?? 0, gbps ?? 0) / 10, 2);
  });

  it.each(["int8", "int4"] as const)("in %s", async (weights) => {
    const cases = await casesFor(engine, tiny({ weights }), { ...request, op: "matmul" });
    const { rows, wrong } = await benchCases(engine, cases.slice(0, 1), { runs: 1, minMs: 0 });
    expect([rows.length, rows[0].dtype, wrong]).toEqual([1, weights, []]);
  });

  it("in every variant", async () => {
    const cases = await casesFor(engine, tiny(), { ...request, op: "attention", variants: "all" });
    const { rows, wrong } = await benchCases(engine, cases, { runs: 1, minMs: 0 });
    expect(wrong).toEqual([]);
    expect(rows.length).toBeGreaterThan(2);
    expect(new Set(rows.map(({ variant }) => variant)).size).toBe(rows.length);
  });

  it("of other ops come from the test cases; unknown ones are refused", async () => {
    const [cosine] = await casesFor(engine, tiny(), { ...request, op: "cosine" });
    const { rows, wrong } = await benchCases(engine, [cosine], { runs: 1, minMs: 0 });
    expect([rows.length, wrong]).toEqual([1, []]);
    await expect(casesFor(engine, tiny(), { ...request, op: "convolution" })).rejects.toMatchObject({
      code: "usage/op",
    });
  });
});

describe("a model of a configuration alone", () => {
  async function states(seed: number): Promise<Float32Array> {
    await using model = await loadModel(engine, tiny({ seed }), { layer: 2 });
    using runner = await createRunner(model.loaded, { layers: [2], output: "pooled" });
    return await runner.pooledStates(randomBatch(50, { batch: 2, tokens: 7 }, 1));
  }

  it("gives equal states for equal seeds, and others for others", async () => {
    const first = await states(1);
    expect(first.length).toBe(2 * 64);
    expect(first.some((value) => value !== 0)).toBe(true);
    expect(await states(1)).toEqual(first);
    expect(await states(2)).not.toEqual(first);
  });

  it("is described for every ready configuration", async () => {
    for (const name of CONFIGURATIONS) {
      const { spec, checkpoint } = randomModel(await readConfiguration(name.toUpperCase()));
      const last = spec.blocks[spec.config.layers - 1];
      expect((await checkpoint.info(last.down.weight)).shape).toEqual([spec.config.hiddenSize, spec.config.ffn]);
    }
    await expect(readConfiguration("gpt-9")).rejects.toMatchObject({ code: "config/missing" });
  });

  it("has no tokenizer", async () => {
    await expect(tiny().tokenizer()).rejects.toMatchObject({ code: "tokenizer/missing" });
  });

  it("is timed", async () => {
    await using model = await loadModel(engine, tiny(), { layer: 3 });
    const options = { batch: 2, tokens: 16, layer: 3, dtype: "bf16", runs: 1, maxSeconds: 1 };
    const timed = await benchForward(model, options);
    expect(timed).toMatchObject({ name: "forward", shape: "2 x 16 tokens to layer 3", rows: 32, runs: 1 });
    expect(timed.gflops).toBeGreaterThan(0);
    const fits = await benchForwardFits(model, options);
    expect(fits.rows.map(({ shape }) => shape).slice(0, 3)).toEqual([
      ...["2 x 16 tokens to layer 1", "2 x 16 tokens to layer 2", "2 x 16 tokens to layer 3"],
    ]);
    for (const value of [fits.attentionShare512, fits.attentionLongFactor]) expect(value).toBeGreaterThan(0);
    expect(fits.layers.r2).toBeLessThanOrEqual(1);
  });
});

it("measures ceilings", async () => {
  const peak = await measurePeak(engine, { only: "roofline", runs: 1, minMs: 1, maxSeconds: 1 });
  expect(peak.rows.map(({ name }) => name)).toEqual(["fma", "memory read", "memory copy"]);
  expect(peak.gflops).toBeGreaterThan(0);
  expect(peak.gbps).toBe(Math.max(peak.readGbps, peak.copyGbps));
  expect(peak.storageGloads).toBeNull();
});

it("frees its buffers", () => {
  expect(engine.device.liveBytes).toBe(0);
});
