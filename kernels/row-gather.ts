/**
 * rowGather: out[offset + r, :] = x[index[r], :]
 *
 * One lane an element. Compacts the rows that are read out, so that the last block computes no others.
 */
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

export interface RowGatherVariant {
  /** Row length D. */
  readonly d: number;
}

const LANES = 64;

const BINDINGS: readonly Binding[] = [
  { name: "x", access: "read", type: "array<f32>", shape: ["T", "D"] },
  { name: "index", access: "read", type: "array<u32>", shape: ["R"] },
  { name: "out", access: "read_write", type: "array<f32>", shape: ["R", "D"] },
  PARAMS,
];

/** The kernel of a variant. Rows: R, the rows gathered; `params.offset`: the first row of `out`. */
export function rowGather(variant: RowGatherVariant): Kernel {
  const { d } = variant;
  const wgsl = `${PARAMS_STRUCT}
${declareBindings(BINDINGS)}
@compute @workgroup_size(${LANES})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let at = (${FLAT_WORKGROUP}) * ${LANES}u + lane;
  if (at >= params.rows * ${d}u) { return; }
  out[params.offset * ${d}u + at] = x[index[at / ${d}u] * ${d}u + at % ${d}u];
}
`;
  return {
    name: "rowGather",
    key: kernelKey("rowGather", variant),
    wgsl,
    bindings: BINDINGS,
    subgroups: false,
    grid: (rows) => flatGrid(Math.ceil((rows * d) / LANES)),
  };
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
