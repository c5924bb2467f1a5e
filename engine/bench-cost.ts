/**
 * What kernels cost by their definitions: operations (a multiply-add counts two), and bytes with every operand moved
 * once. A kernel may load more; the difference shows as a low share of the ceiling.
 */
import type { AttentionVariant } from "../kernels/attention.ts";
import type { MatmulVariant } from "../kernels/matmul.ts";
import type { NormVariant } from "../kernels/norm.ts";
import type { RopeVariant } from "../kernels/rope.ts";
import { weightRowWords } from "../kernels/weight-load.ts";
import type { WorkCost } from "./bench-row.ts";

/** matmul of T rows. */
export function matmulCost({ k, n, weight, epilogue, bias }: MatmulVariant, rows: number): WorkCost {
  const weights = epilogue === "glu" ? 2 : 1;
  const words = weights * n * (weightRowWords(weight, k) + (bias ? 1 : 0));
  const outputs = (epilogue === "add" ? 2 : 1) * rows * n;
  return { flops: 2 * weights * rows * k * n, bytes: 4 * (rows * k + words + outputs) };
}

/**
 * attention of R rows.
 * @param keys keys that the rows see, all rows together
 * @param keyRows rows of kv that are read
 */
export function attentionCost(
  { heads, kvHeads, headDim }: AttentionVariant,
  { rows, keys, keyRows }: { readonly rows: number; readonly keys: number; readonly keyRows: number },
): WorkCost {
  return {
    flops: 4 * keys * heads * headDim,
    bytes: 4 * headDim * (2 * rows * heads + 2 * keyRows * kvHeads),
  };
}

/** norm of T rows: square, sum, two products; the layer kind also sums and centres. */
export function normCost({ kind, d, groups, output, bias }: NormVariant, rows: number): WorkCost {
  const elements = rows * groups * d;
  return {
    flops: elements * ((kind === "layer" ? 6 : 4) + (bias ? 1 : 0) + (output === "add" ? 1 : 0)),
    bytes: 4 * (elements * (output === "add" ? 3 : 2) + (bias ? 2 : 1) * d),
  };
}

/** rope of T rows: four products and two sums a pair. */
export function ropeCost({ heads, rotary }: RopeVariant, rows: number): WorkCost {
  const elements = rows * heads * rotary;
  return { flops: 3 * elements, bytes: 4 * (2 * elements + rows * (rotary + 1)) };
}

/** rowGather of R rows. */
export function gatherCost(d: number, rows: number): WorkCost {
  return { flops: 0, bytes: 4 * rows * (2 * d + 1) };
}
