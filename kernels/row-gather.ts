/**
 * rowGather: out[offset + r, :] = x[index[r], :]
 *
 * One lane an element. Compacts the rows that are read out, so that the last block computes no others.
 */
import { elementKernel } from "./element.ts";
import { type Binding, type Kernel, kernelKey, type TwinBuffer } from "./kernel.ts";

export interface RowGatherVariant {
  /** Row length D. */
  readonly d: number;
}

const BINDINGS: readonly Binding[] = [
  { name: "x", access: "read", type: "array<f32>", shape: ["T", "D"] },
  { name: "index", access: "read", type: "array<u32>", shape: ["R"] },
  { name: "out", access: "read_write", type: "array<f32>", shape: ["R", "D"] },
];

/** The kernel of a variant. Rows: R, the rows gathered; `params.offset`: the first row of `out`. */
export function rowGather({ d }: RowGatherVariant): Kernel {
  return elementKernel({
    name: "rowGather",
    key: kernelKey("rowGather", { d }),
    bindings: BINDINGS,
    width: d,
    statement: `out[params.offset * ${d}u + at] = x[index[row] * ${d}u + column];`,
    work: { flops: 0, words: 2 * d + 1 },
  });
}

/** CPU twin of `rowGather`. */
export function rowGatherTwin(
  variant: RowGatherVariant,
  buffers: Readonly<Record<string, TwinBuffer>>,
  rows: number,
  offset = 0,
): void {
  const { d } = variant;
  const { x, index, out } = buffers;
  for (let r = 0; r < rows; r++) {
    for (let i = 0; i < d; i++) out[(offset + r) * d + i] = x[index[r] * d + i];
  }
}
