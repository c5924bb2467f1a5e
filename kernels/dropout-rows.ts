/**
 * dropoutRows: x = dropout(x), in place: what enters a network. Its gradient by x is never asked for.
 *
 * One lane an element.
 */
import { type DropoutVariant, dropoutBindings, dropoutFactor, dropoutFunction, dropoutKey } from "./dropout.ts";
import {
  type Binding,
  declareBindings,
  FLAT_BUILTINS,
  FLAT_WORKGROUP,
  flatGrid,
  type Kernel,
  kernelKey,
  PARAMS,
  PARAMS_STRUCT,
  type TwinBuffer,
} from "./kernel.ts";

export interface DropoutRowsVariant {
  /** Row length D. */
  readonly width: number;
  /** Its rate is above 0. */
  readonly dropout: DropoutVariant;
}

const LANES = 64;

/** The kernel of a variant. Rows: R. */
export function dropoutRows({ width, dropout }: DropoutRowsVariant): Kernel {
  const bindings: readonly Binding[] = [
    ...dropoutBindings(dropout),
    { name: "x", access: "read_write", type: "array<f32>", shape: ["R", "D"] },
    PARAMS,
  ];
  const wgsl = `${PARAMS_STRUCT}
${declareBindings(bindings)}
${dropoutFunction(dropout)}
@compute @workgroup_size(${LANES})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let at = (${FLAT_WORKGROUP}) * ${LANES}u + lane;
  if (at >= params.rows * ${width}u) { return; }
  x[at] = dropped(x[at], at / ${width}u, at % ${width}u);
}
`;
  return {
    name: "dropoutRows",
    key: kernelKey("dropoutRows", { width, ...dropoutKey(dropout) }),
    wgsl,
    bindings,
    subgroups: false,
    grid: (rows) => flatGrid(Math.ceil((rows * width) / LANES)),
  };
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
