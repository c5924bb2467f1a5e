/**
 * dropoutRows: x = dropout(x), in place: what enters a network. Its gradient by x is never asked for.
 *
 * One lane an element.
 */
import { type DropoutVariant, dropoutBindings, dropoutFactor, dropoutFunction, dropoutKey } from "./dropout.ts";
import { elementKernel } from "./element.ts";
import { type Kernel, kernelKey, type TwinBuffer } from "./kernel.ts";

export interface DropoutRowsVariant {
  /** Row length D. */
  readonly width: number;
  /** Its rate is above 0. */
  readonly dropout: DropoutVariant;
}

/** The kernel of a variant. Rows: R. */
export function dropoutRows({ width, dropout }: DropoutRowsVariant): Kernel {
  return elementKernel({
    name: "dropoutRows",
    key: kernelKey("dropoutRows", { width, ...dropoutKey(dropout) }),
    bindings: [...dropoutBindings(dropout), { name: "x", access: "read_write", type: "array<f32>", shape: ["R", "D"] }],
    width,
    functions: dropoutFunction(dropout),
    statement: "x[at] = dropped(x[at], row, column);",
    work: { flops: width, words: 2 * width },
  });
}

/** CPU twin of `dropoutRows`. */
export function dropoutRowsTwin(
  { width, dropout }: DropoutRowsVariant,
  { counter, x }: Readonly<Record<string, TwinBuffer>>,
  rows: number,
): void {
  for (let at = 0; at < rows * width; at++)
    x[at] *= dropoutFactor(dropout, counter, Math.floor(at / width), at % width);
}
