import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MIN_SEQUENCE_ROWS } from "../../engine/batch.ts";
import { MATRIX_ROLES } from "../../engine/decoder.ts";
import type { DeviceLimits } from "../../engine/device-info.ts";
import { type ModelFiles, openModelFiles } from "../../engine/model-files.ts";
import { batchBudget, DEFAULT_BATCH_TOKENS, planRun, planWorkspace } from "../../engine/plan.ts";
import { checkPlan, sumBytes } from "../../engine/planned-buffer.ts";
import { defaultPlatform } from "../../engine/platform.ts";
import { planWeights } from "../../engine/weight-plan.ts";
import { failing } from "../support/failing.ts";
import { goldenModel } from "../support/golden.ts";
import { writeTinyModel } from "../support/tiny-model.ts";

/** An adapter with WebGPU's own default limits, but for what is given. */
function limitsOf(more: Partial<DeviceLimits> = {}): DeviceLimits {
  return {
    maxBufferSize: 256 * 2 ** 20,
    maxStorageBufferBindingSize: 128 * 2 ** 20,
    maxStorageBuffersPerShaderStage: 8,
    maxComputeWorkgroupStorageSize: 16384,
    maxComputeInvocationsPerWorkgroup: 256,
    maxComputeWorkgroupSizeX: 256,
    maxComputeWorkgroupsPerDimension: 65535,
    maxTextureDimension2D: 8192,
    ...more,
  };
}

const inBuffers = (limits: DeviceLimits) => defaultPlatform(limits, { subgroupSize: 8, textures: false });
const weightsTo = ({ checkpoint, spec }: Pick<ModelFiles, "checkpoint" | "spec">, depth: number, limits = limitsOf()) =>
  planWeights(checkpoint, spec, depth, inBuffers(limits));

let files: ModelFiles;
beforeAll(async () => {
  files = await openModelFiles(goldenModel("demo").directory);
});
afterAll(() => files[Symbol.asyncDispose]());

describe("weights", () => {
  it("take what they take in the file, BF16 packed and norms widened", async () => {
    const plan = await weightsTo(files, 2);
    const [d, f] = [192, 512];
    const elements = 2 * d * (2 * 192 + 2 * 64 + 3 * f);
    expect(plan.bytes).toBe(2 * elements + 4 * 2 * 2 * d);
    expect(plan.diskBytes).toBe(2 * elements + 2 * 2 * 2 * d);
    expect(plan.blocks).toHaveLength(2);
    expect((await weightsTo(files, 0)).bytes).toBe(0);
  });

  it.each([1, 63, 64, 65, 100, 191, 192, 511, 512])(
    "that a binding of %i rows holds in part are split",
    async (rows) => {
      const limit = rows * 2 * 192;
      const { blocks } = await weightsTo(files, 1, limitsOf({ maxStorageBufferBindingSize: limit }));
      for (const role of MATRIX_ROLES) {
        const { parts, spec: matrix } = blocks[0].matrices[role]!;
        let next = 0;
        for (const { n0, n, buffer } of parts) {
          expect(n0).toBe(next);
          expect(buffer.bytes).toBe(n * 2 * matrix.k);
          // down's rows are longer than the limit's, and no part can be less than a row.
          expect(buffer.bytes).toBeLessThanOrEqual(Math.max(limit, 2 * matrix.k));
          if (matrix.k === 192 && rows >= 64) expect(n0 % 64).toBe(0);
          next = n0 + n;
        }
        expect(next).toBe(matrix.n);
        expect(new Set(parts.map(({ buffer }) => buffer.label)).size).toBe(parts.length);
        // As few parts as multiples of 64 allow.
        if (matrix.k === 192 && rows >= 64)
          expect(parts).toHaveLength(Math.ceil(matrix.n / (64 * Math.floor(rows / 64))));
      }
    },
  );

  it("that do not belong to the configuration are refused by name and both shapes", async () => {
    await using tiny = await writeTinyModel({ hidden: 34 });
    await using wrong = await openModelFiles(tiny.directory);
    const spec = { ...wrong.spec, config: { ...wrong.spec.config, hiddenSize: 32 } };
    await expect(weightsTo({ ...wrong, spec }, 1)).rejects.toThrow(
      failing("model/shape", "embed_tokens", "\\[50, 34\\]", "\\[50, 32\\]"),
    );
    const absent = { weight: "model.layers.0.no", bias: null, size: 34 };
    const missing = { ...wrong.spec, blocks: wrong.spec.blocks.map((block) => ({ ...block, ffnNorm: absent })) };
    await expect(weightsTo({ ...wrong, spec: missing }, 1)).rejects.toThrow(
      failing("model/missing-tensor", "model.layers.0.no"),
    );
  });

  it("in a type that is no float of 16 or 32 bits are refused", async () => {
    await using tiny = await writeTinyModel({ dtypeOf: { "1.mlp.up_proj.weight": "F64" } });
    await using wide = await openModelFiles(tiny.directory);
    await expect(weightsTo(wide, 2)).rejects.toThrow(
      failing("model/unsupported-dtype", "layers.1.mlp.up_proj.weight", "F64"),
    );
    // A block that is never computed may hold what it likes.
    expect((await weightsTo(wide, 1)).blocks).toHaveLength(1);
  });
});

describe("the budget of a batch", () => {
  const run = { taps: 1, output: "scores" } as const;

  it("is what was asked for, or a default that may grow, and never more than the limits allow", () => {
    const { spec } = files;
    // The widest row of the demo is its FFN's: 512 floats.
    const fitting = (rows: number) => limitsOf({ maxStorageBufferBindingSize: rows * 4 * 512 });
    expect(batchBudget(spec, limitsOf(), run)).toEqual({ budget: DEFAULT_BATCH_TOKENS, maxBudget: 32768 });
    expect(batchBudget(spec, fitting(5000), run)).toEqual({ budget: DEFAULT_BATCH_TOKENS, maxBudget: 5000 });
    expect(batchBudget(spec, fitting(100), run)).toEqual({ budget: 100, maxBudget: 100 });
    expect(batchBudget(spec, limitsOf(), { ...run, batchTokens: 8 })).toEqual({ budget: 8, maxBudget: 8 });
    expect(batchBudget(spec, fitting(100), { ...run, batchTokens: 100 })).toEqual({ budget: 100, maxBudget: 100 });
    for (const tokens of [-1, 0, 7, 8.5, 101, Number.NaN])
      expect(() => batchBudget(spec, fitting(100), { ...run, batchTokens: tokens })).toThrow(
        expect.objectContaining({ code: "usage/batch-tokens", fix: expect.stringContaining("8 to 100") }),
      );
  });

  it("of a wide model grows to 2 GiB of working buffers and no further, unless it was asked for", () => {
    const { spec } = files;
    const wide = { ...spec, config: { ...spec.config, hiddenSize: 16_384, heads: 128, headDim: 128, ffn: 53_248 } };
    const limits = limitsOf({ maxBufferSize: 2 ** 34, maxStorageBufferBindingSize: 2 ** 34 });
    const { maxBudget } = batchBudget(wide, limits, run);
    expect(maxBudget).toBeGreaterThan(DEFAULT_BATCH_TOKENS);
    const held = (rows: number) => sumBytes([...planWorkspace(wide, { rows, taps: 1, output: "scores" }).values()]);
    expect(held(maxBudget)).toBeGreaterThan(1.9 * 2 ** 30);
    expect(held(maxBudget)).toBeLessThan(2.2 * 2 ** 30);
    expect(batchBudget(wide, limits, { ...run, batchTokens: 3 * maxBudget }).maxBudget).toBe(3 * maxBudget);
  });

  it("fits its plan, in every buffer, at the largest size that the limits allow", async () => {
    const { checkpoint, spec } = files;
    for (const output of ["pooled", "all", "scores"] as const) {
      for (const rows of [8, 9, 100, 1000]) {
        const limits = limitsOf({ maxStorageBufferBindingSize: 4 * 512 * rows });
        const { maxBudget } = batchBudget(spec, limits, { taps: 6, output });
        expect(maxBudget).toBe(rows);
        const plan = planWorkspace(spec, { rows: maxBudget, taps: 6, output });
        expect(() => checkPlan([...plan.values()], limits)).not.toThrow();
      }
    }
    const wanted = { layers: [1, 2], output: "pooled", batchTokens: 1000 } as const;
    const plan = await planRun(checkpoint, spec, wanted, inBuffers(limitsOf()));
    expect(plan.bytes).toBe(plan.weights.bytes + sumBytes([...plan.workspace.values()]));
    expect(plan.rows).toBe(1000);
    expect(plan.weights.depth).toBe(2);
  });
});

describe("working buffers", () => {
  it("grow with rows and taps, and hold only what the output needs", () => {
    const { spec } = files;
    const plan = (rows: number, taps: number, output: "pooled" | "all" | "scores") =>
      planWorkspace(spec, { rows, taps, output });
    const bytes = (workspace: ReturnType<typeof plan>, name: "states" | "staging" | "x" | "read") =>
      workspace.get(name)?.bytes;
    expect([...plan(64, 1, "all").keys()]).not.toContain("states");
    expect([...plan(64, 1, "pooled").keys()]).not.toContain("scores");
    expect([...plan(64, 1, "scores").keys()]).toEqual(expect.arrayContaining(["pairs", "scores", "states"]));
    expect(bytes(plan(64, 1, "all"), "x")).toBe(64 * 192 * 4);
    expect(bytes(plan(64, 1, "all"), "staging")).toBe(64 * 192 * 4);
    const read = 64 / MIN_SEQUENCE_ROWS;
    expect(bytes(plan(64, 3, "pooled"), "states")).toBe(3 * read * 192 * 4);
    expect(bytes(plan(64, 3, "pooled"), "staging")).toBe(3 * read * 192 * 4);
    expect(bytes(plan(64, 3, "scores"), "staging")).toBe(2 * read * 4);
    // A batch of single tokens costs 8 rows each: the last of a budget that is no multiple of 8 has room, too.
    expect(bytes(plan(65, 1, "pooled"), "read")).toBe(Math.ceil(65 / 8) * 192 * 4);
  });

  it("beyond a limit are refused by name, size and limit; storage by the binding's, others by the buffer's", () => {
    const limits = limitsOf({ maxBufferSize: 1000, maxStorageBufferBindingSize: 500 });
    const buffer = (use: "storage" | "readback", bytes: number) => ({ label: `some ${use}`, bytes, use });
    expect(() => checkPlan([buffer("storage", 500), buffer("readback", 1000)], limits)).not.toThrow();
    expect(() => checkPlan([buffer("storage", 504)], limits)).toThrow(
      failing("memory/buffer-limit", "'some storage'", "504", "500"),
    );
    expect(() => checkPlan([buffer("readback", 1004)], limits)).toThrow(failing("memory/buffer-limit", "1004"));
  });
});
