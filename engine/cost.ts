/** What a run costs: floating-point operations, and a measured rate to turn them into time. */

import { matmul, matmulRowWords } from "../kernels/matmul.ts";
import { seededRandom } from "../kernels/random.ts";
import { type Batch, rowOf } from "./batch.ts";
import type { BlockSpec, DecoderConfig, ModelSpec } from "./decoder.ts";
import type { Engine } from "./model.ts";
import type { RunPooling } from "./plan.ts";
import { platformOf } from "./platform.ts";
import { timeKernel } from "./run-kernel.ts";

/**
 * Operations (a multiply-add counts two) of a batch down to `layer`, the last block pruned to the rows that are read out:
 * the last tokens'. Means are taken over the whole last block.
 */
export function batchFlops(spec: ModelSpec, batch: Batch, layer: number, pooling: RunPooling = "last"): number {
  const all = Array.from({ length: batch.ids.length }, (_, row) => row);
  const last = batch.sequences.map((sequence) => rowOf(sequence, sequence.length - 1));
  return spec.blocks.slice(0, layer).reduce((sum, block, i) => {
    const past = i === layer - 1 && pooling === "last" ? last : all;
    return sum + blockFlops(spec.config, block, batch, past);
  }, 0);
}

/** Operations of a block whose rows `past` are computed past their keys and values. */
function blockFlops(config: DecoderConfig, block: BlockSpec, { ids, spans }: Batch, past: readonly number[]): number {
  const { hiddenSize, heads, kvHeads, headDim, ffn } = config;
  const keysOf = (row: number) => Math.min(spans[row * 4 + 3] + 1, block.window ?? Number.POSITIVE_INFINITY);
  const keyValue = 2 * hiddenSize * 2 * kvHeads * headDim;
  const rest = 2 * hiddenSize * (2 * heads * headDim + (block.gate === null ? 2 : 3) * ffn);
  const keys = past.reduce((sum, row) => sum + keysOf(row), 0);
  return ids.length * keyValue + past.length * rest + 4 * keys * heads * headDim;
}

/** Rows of the calibration's matmul: enough tiles to keep every core busy, few enough to end soon on slow adapters. */
const CALIBRATION_ROWS = 256;
const CALIBRATION_COLUMNS = 2048;

/**
 * Measures what this adapter reaches on the model's widest matmul, in operations a second: the median of five runs of
 * random numbers of the model's shape.
 */
export async function measureRate(engine: Engine, { hiddenSize: k, ffn }: DecoderConfig): Promise<number> {
  const n = Math.min(ffn, CALIBRATION_COLUMNS);
  const variant = {
    k,
    n,
    weight: "bf16",
    epilogue: "store",
    bias: false,
    outStride: n,
    outOffset: 0,
    ...platformOf(engine).tile({ k, n, weight: "bf16", epilogue: "store" }),
  } as const;
  const kernel = matmul(variant);
  const random = seededRandom(1);
  const buffers = {
    x: Float32Array.from({ length: CALIBRATION_ROWS * k }, random),
    weight: new Uint32Array(n * matmulRowWords(variant)).fill(0x3c003c00),
    out: new Float32Array(CALIBRATION_ROWS * n),
  };
  const times = await timeKernel(engine.device, engine.pipelines, kernel, buffers, CALIBRATION_ROWS, 5);
  times.sort((a, b) => a - b);
  return (2 * CALIBRATION_ROWS * k * n) / (times[2] / 1000);
}
