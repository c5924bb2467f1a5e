/** Stratum as a peer: it runs the job that the others are given. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { sharedAdapter } from "../../bench/adapter.ts";
import { type Job, type LlamaShape, wholeSequences } from "../../bench/jobs.ts";
import { writeModel } from "../../bench/llama.ts";
import { matmulOperands } from "../../bench/operands.ts";
import { prepare } from "../../bench/peers/stratum.ts";
import { agreement, agrees } from "../../bench/report.ts";
import { hiddenStates, loadModel } from "../../engine/hidden-states.ts";
import { createEngine } from "../../engine/model.ts";

const SHAPE: LlamaShape = {
  hidden: 64,
  heads: 4,
  kvHeads: 2,
  headDim: 16,
  ffn: 96,
  vocab: 50,
  layers: 4,
  ropeTheta: 1e4,
  eps: 1e-5,
};

const before = process.env["XDG_CACHE_HOME"];
let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "stratum-bench-"));
  process.env["XDG_CACHE_HOME"] = folder;
});
afterAll(async () => {
  if (before === undefined) delete process.env["XDG_CACHE_HOME"];
  else process.env["XDG_CACHE_HOME"] = before;
  await rm(folder, { recursive: true, force: true });
});

async function resultOf(job: Job): Promise<Float32Array> {
  const prepared = await prepare(job, await sharedAdapter(process.env["STRATUM_ADAPTER"] ?? "auto"));
  const { output } = await prepared.run(true);
  const again = await prepared.run(false);
  expect(again.output).toBeNull();
  expect(again.ms).toBeGreaterThan(0);
  return output!;
}

it("multiplies the operands of the job", async () => {
  const job = { kind: "matmul", rows: 5, k: 24, n: 7, seed: 3 } as const;
  const { x, weight } = matmulOperands(job);
  const product = Float32Array.from({ length: 35 }, (_, i) => {
    const [row, column] = [Math.floor(i / 7), i % 7];
    return Array.from({ length: 24 }, (_, k) => x[row * 24 + k] * weight[column * 24 + k]).reduce((a, b) => a + b);
  });
  expect(agreement(product, await resultOf(job), 7).max_error).toBeLessThan(1e-5);
});

it.each<Job>([
  { kind: "stack", shape: SHAPE, batch: 3, tokens: 9, layer: 2, seed: 4 },
  { kind: "rank", shape: SHAPE, prompt: 11, candidates: 3, tokens: 5, layer: 2, seed: 4 },
])("gives the last states of the whole sequences in their order: $kind", async (job) => {
  if (job.kind === "matmul") throw new Error("a Llama job");
  const model = join(folder, `reference-${job.kind}`);
  await writeModel(model, SHAPE, 4, 2);
  using engine = await createEngine();
  await using loaded = await loadModel(engine, model, { layer: 2 });
  // One at a time: nothing is shared, and nothing is packed.
  const rows: number[] = [];
  for (const ids of wholeSequences(job)) rows.push(...(await hiddenStates(loaded, [ids]))[0]);
  const found = agreement(Float32Array.from(rows), await resultOf(job), SHAPE.hidden);
  expect(agrees(found)).toBe(true);
  expect(found.max_error).toBeLessThan(1e-6);
});
