/**
 * rope: rotates pairs (i, i + R/2) of every head's first R elements by the angles of a row of a table, in place
 * (Su et al. 2021, arXiv 2104.09864, in the half-split layout of the published checkpoints):
 *   x'[i] = x[i] cos - x[i + R/2] sin,   x'[i + R/2] = x[i + R/2] cos + x[i] sin
 *
 * One lane a pair. Cosines and sines come from a table made on the host in float64: WGSL's own promise little.
 */
import { rowCost } from "./cost.ts";
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

export interface RopeVariant {
  /** Heads that are rotated: the first `heads` of a row. */
  readonly heads: number;
  /** Head size E. */
  readonly headDim: number;
  /** Elements of a head that turn, the first R: even, 2 to E. */
  readonly rotary: number;
  /** Row length of the buffer. */
  readonly stride: number;
}

const LANES = 64;

const BINDINGS: readonly Binding[] = [
  { name: "x", access: "read_write", type: "array<f32>", shape: ["T", "stride"] },
  { name: "turns", access: "read", type: "array<u32>", shape: ["T"] },
  { name: "table", access: "read", type: "array<vec2<f32>>", shape: ["turns", "R/2"] },
  PARAMS,
];

/** The kernel of a variant. Rows: T. `turns` says which row of the table a row turns by: its position, where there is one table. */
export function rope(variant: RopeVariant): Kernel {
  const { heads, headDim, rotary, stride } = variant;
  const half = rotary / 2;
  const pairs = heads * half;
  const wgsl = `${PARAMS_STRUCT}
${declareBindings(BINDINGS)}
@compute @workgroup_size(${LANES})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let index = (${FLAT_WORKGROUP}) * ${LANES}u + lane;
  if (index >= params.rows * ${pairs}u) { return; }
  let row = index / ${pairs}u;
  let pair = index % ${pairs}u;
  let i = pair % ${half}u;
  let at = row * ${stride}u + (pair / ${half}u) * ${headDim}u + i;
  let turn = table[turns[row] * ${half}u + i];
  let a = x[at];
  let b = x[at + ${half}u];
  x[at] = a * turn.x - b * turn.y;
  x[at + ${half}u] = b * turn.x + a * turn.y;
}
`;
  return {
    name: "rope",
    key: kernelKey("rope", variant),
    wgsl,
    bindings: BINDINGS,
    subgroups: false,
    grid: (rows) => flatGrid(Math.ceil((rows * pairs) / LANES)),
    // Four products and two sums a pair; a row of the table is read for each row.
    cost: rowCost({ flops: 6 * pairs, words: 4 * pairs + variant.rotary + 1 }),
  };
}

/** CPU twin of `rope`. */
export function ropeTwin(variant: RopeVariant, buffers: Readonly<Record<string, TwinBuffer>>, rows: number): void {
  const { heads, headDim, rotary, stride } = variant;
  const half = rotary / 2;
  const { x, turns, table } = buffers;
  for (let row = 0; row < rows; row++) {
    for (let head = 0; head < heads; head++) {
      for (let i = 0; i < half; i++) {
        const at = row * stride + head * headDim + i;
        const turn = 2 * (turns[row] * half + i);
        const [a, b] = [x[at], x[at + half]];
        x[at] = a * table[turn] - b * table[turn + 1];
        x[at + half] = b * table[turn] + a * table[turn + 1];
      }
    }
  }
}
