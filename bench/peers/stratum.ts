/** Stratum itself, through the library. */
import { existsSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { packBatches } from "../../engine/batch.ts";
import { loadModel } from "../../engine/hidden-states.ts";
import { createEngine, type Engine } from "../../engine/model.ts";
import { platformOf } from "../../engine/platform.ts";
import { runKernel, timeKernel } from "../../engine/run-kernel.ts";
import { createRunner } from "../../engine/runner.ts";
import { type MatmulVariant, matmul, matmulRowWords } from "../../kernels/matmul.ts";
import { padRows } from "../../kernels/texture.ts";
import { encodeFloats } from "../../weights/floats.ts";
import type { Job, LlamaJob, MatmulJob } from "../jobs.ts";
import { listsOf } from "../jobs.ts";
import { writeModel } from "../llama.ts";
import { matmulOperands } from "../operands.ts";
import type { Prepared, SharedAdapter } from "../protocol.ts";

export async function prepare(job: Job, { source }: SharedAdapter): Promise<Prepared> {
  const engine = await createEngine({ adapter: source });
  return job.kind === "matmul" ? prepareMatmul(engine, job) : prepareLlama(engine, job);
}

/** The kernel that the engine would take for this shape on this adapter. */
function chosenVariant(engine: Engine, { k, n }: MatmulJob): MatmulVariant {
  const shape = { k, n, weight: "bf16", epilogue: "store" } as const;
  return { ...shape, bias: false, outStride: n, outOffset: 0, ...platformOf(engine).tile(shape) };
}

async function prepareMatmul(engine: Engine, job: MatmulJob): Promise<Prepared> {
  const { device, pipelines } = engine;
  const variant = chosenVariant(engine, job);
  const kernel = matmul(variant);
  const { x, weight } = matmulOperands(job);
  const buffers = {
    x,
    weight: padRows(new Uint32Array(encodeFloats(weight, "BF16").buffer), job.n, matmulRowWords(variant)),
    out: new Float32Array(job.rows * job.n),
  };
  return {
    adapter: device.info.name,
    async run(full) {
      if (full) {
        const begin = performance.now();
        const { out } = await runKernel(device, pipelines, kernel, buffers, job.rows);
        return { ms: performance.now() - begin, output: out as Float32Array };
      }
      const [ms] = await timeKernel(device, pipelines, kernel, buffers, job.rows, 1);
      return { ms, output: null };
    },
  };
}

async function prepareLlama(engine: Engine, job: LlamaJob): Promise<Prepared> {
  const model = await loadModel(engine, await modelFolder(job), { layer: job.layer });
  const lists = listsOf(job);
  const rows = lists.flatMap(({ sequences }) => sequences).reduce((sum, { length }) => sum + length, 0);
  const runner = await createRunner(model.loaded, { layers: [job.layer], output: "pooled", batchTokens: rows });
  const d = job.shape.hidden;
  return {
    adapter: engine.device.info.name,
    async run(full) {
      const begin = performance.now();
      const [batch] = packBatches(lists, runner.packing);
      const states = await runner.pooledStates(batch);
      const ms = performance.now() - begin;
      if (!full) return { ms, output: null };
      // In the order of the job's sequences; a list's prompt is not among them.
      const wanted = batch.sequences.flatMap(({ group, index }, i) => {
        if (job.kind === "rank") return index === 0 ? [] : [{ place: index - 1, i }];
        return [{ place: group, i }];
      });
      const output = new Float32Array(wanted.length * d);
      for (const { place, i } of wanted) output.set(states.subarray(i * d, (i + 1) * d), place * d);
      return { ms, output };
    },
  };
}

/** The checkpoint of a job's model, written once. */
async function modelFolder({ shape, seed, layer }: LlamaJob): Promise<string> {
  const sizes = Object.values(shape).join("-");
  const cache = process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache");
  const folder = join(cache, "stratum", "bench", `llama-${sizes}-seed-${seed}-layer-${layer}`);
  if (existsSync(join(folder, "config.json"))) return folder;
  await rm(folder, { recursive: true, force: true });
  const scratch = `${folder}.partial`;
  await rm(scratch, { recursive: true, force: true });
  await writeModel(scratch, shape, seed, layer);
  await rename(scratch, folder);
  return folder;
}
