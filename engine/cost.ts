/** What a run costs: floating-point operations, and a measured rate to turn them into time. */

import { matmul, matmulTile } from "../kernels/matmul.ts";
import { seededRandom } from "../kernels/random.ts";
import type { DecoderConfig } from "../weights/config.ts";
import { type Batch, rowOf } from "./batch.ts";
import type { Engine } from "./model.ts";
import type { RunPooling } from "./plan.ts";
import { timeKernel } from "./run-kernel.ts";

/**
 * Operations (a multiply-add counts two) of a batch down to `layer`, the last block pruned to the rows that are read out:
 * the last tokens'. Means are taken over the whole last block.
 */
export function batchFlops(config: DecoderConfig, batch: Batch, layer: number, pooling: RunPooling = "last"): number {
  const { hiddenSize, heads, kvHeads, headDim, ffn, slidingWindow } = config;
  const keysOf = (row: number) => Math.min(batch.spans[row * 4 + 3] + 1, slidingWindow ?? Number.POSITIVE_INFINITY);
  const keyValue = 2 * hiddenSize * 2 * kvHeads * headDim;
  const rest = 2 * hiddenSize * (2 * heads * headDim + 3 * ffn);
  const attended = (keys: number) => 4 * keys * heads * headDim;
  const rows = batch.ids.length;
  let keys = 0;
  for (let row = 0; row < rows; row++) keys += keysOf(row);
  const lastRows = batch.sequences.map((sequence) => rowOf(sequence, sequence.length - 1));
  const lastKeys = lastRows.reduce((sum, row) => sum + keysOf(row), 0);
  const whole = rows * (keyValue + rest) + attended(keys);
  const pruned = rows * keyValue + lastRows.length * rest + attended(lastKeys);
  return layer === 0 ? 0 : (layer - 1) * whole + (pooling === "mean" ? whole : pruned);
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
  const kernel = matmul({
    k,
    n,
    weight: "bf16",
    epilogue: "store",
    bias: false,
    outStride: n,
    outOffset: 0,
    ...matmulTile(engine.target, "store", n),
  });
  const random = seededRandom(1);
  const buffers = {
    x: Float32Array.from({ length: CALIBRATION_ROWS * k }, random),
    weight: new Uint32Array(n * Math.ceil(k / 2)).fill(0x3c003c00),
    out: new Float32Array(CALIBRATION_ROWS * n),
  };
  const times = await timeKernel(engine.device, engine.pipelines, kernel, buffers, CALIBRATION_ROWS, 5);
  times.sort((a, b) => a - b);
  return (2 * CALIBRATION_ROWS * k * n) / (times[2] / 1000);
}
