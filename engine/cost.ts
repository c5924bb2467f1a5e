/** What a run costs: floating-point operations, and a measured rate to turn them into time. */

import { seededRandom } from "../kernels/cases.ts";
import { matmul, matmulTile } from "../kernels/matmul.ts";
import type { DecoderConfig } from "../weights/config.ts";
import type { Batch } from "./batch.ts";
import type { Engine } from "./model.ts";
import { runKernel } from "./run-kernel.ts";

/** Operations (a multiply-add counts two) of `rows` rows through one block, attention's quadratic part apart. */
export function blockFlops({ hiddenSize, heads, kvHeads, headDim, ffn }: DecoderConfig, rows: number): number {
  return 2 * rows * hiddenSize * (2 * heads * headDim + 2 * kvHeads * headDim + 3 * ffn);
}

/** Operations of a batch down to `layer`, the pruning of the last block left out of account. */
export function batchFlops(config: DecoderConfig, batch: Batch, layer: number): number {
  const { heads, headDim, slidingWindow } = config;
  let keys = 0;
  for (let row = 0; row < batch.ids.length; row++) {
    const position = batch.spans[row * 4 + 3];
    keys += Math.min(position + 1, slidingWindow ?? Number.POSITIVE_INFINITY);
  }
  return layer * (blockFlops(config, batch.ids.length) + 4 * keys * heads * headDim);
}

/** Rows of the calibration's matmul: enough tiles to keep every core busy, few enough to end soon on slow adapters. */
const CALIBRATION_ROWS = 64;

/**
 * Measures what this adapter reaches on the model's widest matmul, in operations a second: the median of three runs of
 * random numbers of the model's shape.
 */
export async function measureRate(engine: Engine, { hiddenSize: k, ffn: n }: DecoderConfig): Promise<number> {
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
  const times: number[] = [];
  for (let run = 0; run < 4; run++) {
    const begin = performance.now();
    await runKernel(engine.device, engine.pipelines, kernel, buffers, CALIBRATION_ROWS);
    // The first run pays for compilation.
    if (run > 0) times.push((performance.now() - begin) / 1000);
  }
  times.sort((a, b) => a - b);
  return (2 * CALIBRATION_ROWS * k * n) / times[1];
}
