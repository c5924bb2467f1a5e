/**
 * standardise: out[r, :] = (x[index[r], :] - mean[kind, :]) * scale[kind, :], kind 0 where row r opens its list (the
 * instruction), else 1 (a response).
 *
 * One lane an element. Gathers on the way, so that rows come in the order that the scorer wants them.
 */
import { elementKernel } from "./element.ts";
import { type Binding, type Kernel, kernelKey, type TwinBuffer } from "./kernel.ts";
import { LIST_SPANS } from "./list-attention.ts";

export interface StandardiseVariant {
  /** Row length D. */
  readonly d: number;
}

const BINDINGS: readonly Binding[] = [
  { name: "x", access: "read", type: "array<f32>", shape: ["S", "D"] },
  { name: "index", access: "read", type: "array<u32>", shape: ["R"] },
  LIST_SPANS,
  { name: "mean", access: "read", type: "array<f32>", shape: ["2", "D"] },
  { name: "scale", access: "read", type: "array<f32>", shape: ["2", "D"] },
  { name: "out", access: "read_write", type: "array<f32>", shape: ["R", "D"] },
];

/** The kernel of a variant. Rows: R. */
export function standardise({ d }: StandardiseVariant): Kernel {
  return elementKernel({
    name: "standardise",
    key: kernelKey("standardise", { d }),
    bindings: BINDINGS,
    width: d,
    statement: `let entry = select(${d}u, 0u, spans[row].x == row) + column;
  out[at] = (x[index[row] * ${d}u + column] - mean[entry]) * scale[entry];`,
    work: { flops: 2 * d, words: 2 * d + 3, fixedWords: 4 * d },
  });
}

/** CPU twin of `standardise`. */
export function standardiseTwin(
  { d }: StandardiseVariant,
  { x, index, spans, mean, scale, out }: Readonly<Record<string, TwinBuffer>>,
  rows: number,
): void {
  for (let r = 0; r < rows; r++) {
    const kind = spans[2 * r] === r ? 0 : d;
    for (let i = 0; i < d; i++) out[r * d + i] = (x[index[r] * d + i] - mean[kind + i]) * scale[kind + i];
  }
}
