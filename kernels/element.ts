/** Kernels of one lane an element of a (R, width) matrix. */
import { type RowWork, rowCost } from "./cost.ts";
import {
  type Binding,
  declareBindings,
  FLAT_BUILTINS,
  FLAT_WORKGROUP,
  flatGrid,
  type Kernel,
  PARAMS,
  PARAMS_STRUCT,
} from "./kernel.ts";

const LANES = 64;

export interface ElementKernel {
  readonly name: string;
  readonly key: string;
  /** Without `params`, which comes last. */
  readonly bindings: readonly Binding[];
  /** Columns of a row. */
  readonly width: number;
  /** WGSL ahead of the entry point. */
  readonly functions?: string;
  /** WGSL of one element: flat index `at`, of `row` and `column`. */
  readonly statement: string;
  /** See {@link Kernel.cost}. */
  readonly work: RowWork;
}

/** The kernel. Rows: R. */
export function elementKernel({ name, key, bindings, width, functions = "", statement, work }: ElementKernel): Kernel {
  const all = [...bindings, PARAMS];
  const wgsl = `${PARAMS_STRUCT}
${declareBindings(all)}
${functions}
@compute @workgroup_size(${LANES})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let at = (${FLAT_WORKGROUP}) * ${LANES}u + lane;
  if (at >= params.rows * ${width}u) { return; }
  let row = at / ${width}u;
  let column = at % ${width}u;
  ${statement}
}
`;
  return {
    name,
    key,
    wgsl,
    bindings: all,
    subgroups: false,
    grid: (rows) => flatGrid(Math.ceil((rows * width) / LANES)),
    cost: rowCost(work),
  };
}
