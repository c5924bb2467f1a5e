/** Everyone has the same weights and inputs: those that the peers draw are those in Stratum's checkpoint. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { flopsOf, type LlamaShape, listsOf, type RankJob, SMOLLM2_135M, wholeSequences } from "../../bench/jobs.ts";
import { blockWeights, causalMask, embeddedSequences, writeModel } from "../../bench/llama.ts";
import { drawBf16, drawFloats, transpose } from "../../bench/values.ts";
import { type Checkpoint, openCheckpoint } from "../../weights/checkpoint.ts";
import { decodeFloats } from "../../weights/floats.ts";

const SHAPE: LlamaShape = {
  hidden: 12,
  heads: 4,
  kvHeads: 2,
  headDim: 4,
  ffn: 20,
  vocab: 30,
  layers: 3,
  ropeTheta: 1e4,
  eps: 1e-5,
};
const RANK: RankJob = { kind: "rank", shape: SHAPE, prompt: 3, candidates: 2, tokens: 2, layer: 2, seed: 7 };

let folder = "";
let checkpoint: Checkpoint;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "stratum-bench-"));
  await writeModel(folder, SHAPE, 7, 2);
  checkpoint = await openCheckpoint(folder);
});
afterAll(async () => {
  await checkpoint.close();
  await rm(folder, { recursive: true, force: true });
});

const stored = async (name: string) => decodeFloats(await checkpoint.read(name), "BF16");

describe("the model of the benchmark", () => {
  it("has the peers' matrices, turned, and norms", async () => {
    const block = blockWeights(SHAPE, 7, 1);
    expect(block.gate.dims).toEqual([12, 20]);
    expect(await stored("model.layers.1.mlp.gate_proj.weight")).toEqual(transpose(block.gate.values, 12, 20));
    expect(await stored("model.layers.1.self_attn.k_proj.weight")).toEqual(transpose(block.k.values, 12, 8));
    expect(await stored("model.layers.1.input_layernorm.weight")).toEqual(block.inputNorm.values);
    expect([...checkpoint.names()].length).toBe(1 + 2 * 9);
  });

  it("embeds the sequences as the peers are given them", async () => {
    const table = await stored("model.embed_tokens.weight");
    const { dims, values } = embeddedSequences(RANK);
    expect(dims).toEqual([2, 5, 12]);
    const ids = wholeSequences(RANK).flatMap((sequence) => [...sequence]);
    expect([...values]).toEqual(ids.flatMap((id) => [...table.subarray(id * 12, (id + 1) * 12)]));
  });

  it("differs by seed, tensor and place", () => {
    const of = (seed: number, name: string, first: number) =>
      drawFloats({ seed, name, count: 64, deviation: 1, first }).join();
    expect(new Set([of(1, "a", 0), of(2, "a", 0), of(1, "b", 0), of(1, "a", 1)]).size).toBe(4);
    const values = drawBf16({ seed: 1, name: "a", count: 2 ** 16, mean: 1, deviation: 0.5 });
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
    expect(Math.abs(mean - 1)).toBeLessThan(0.02);
    expect(Math.abs(Math.sqrt(variance) - 0.5)).toBeLessThan(0.01);
  });

  it("masks every head's later tokens", () => {
    const { dims, values } = causalMask(SHAPE, 3);
    expect(dims).toEqual([6, 3]);
    const rows = [0, 1, 1, 0, 0, 1, 0, 0, 0];
    expect([...values].map((value) => Number(value < 0))).toEqual([...rows, ...rows]);
  });
});

describe("the jobs", () => {
  it("give a ranker the prompt and every candidate behind it", () => {
    const [{ sequences }] = listsOf(RANK);
    expect(sequences.map(({ length }) => length)).toEqual([3, 5, 5]);
    for (const sequence of sequences) expect([...sequence.subarray(0, 3)]).toEqual([...sequences[0]]);
    expect([...sequences[1]]).not.toEqual([...sequences[2]]);
  });

  it("cost what their whole sequences cost", () => {
    const stack = { kind: "stack", shape: SMOLLM2_135M, batch: 8, tokens: 128, layer: 8, seed: 1 } as const;
    expect(flopsOf(stack) / 1e9).toBeCloseTo(60.4, 1);
    expect(flopsOf({ ...stack, layer: 30 }) / 1e9).toBeCloseTo(226.5, 1);
    expect(flopsOf({ kind: "matmul", rows: 2, k: 3, n: 5, seed: 1 })).toBe(60);
  });
});
