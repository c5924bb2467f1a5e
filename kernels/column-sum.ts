/**
 * columnSum: grad[n] += sum_r x[r, n], or with `product` sum_r x[r, n] * y[r, n]: the gradient of a bias, of a norm's weight.
 *
 * One lane a column, rows in ascending order: a small part of a training step on every adapter measured.
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

export interface ColumnSumVariant {
  /** Columns N. */
  readonly n: number;
  /** Multiply by a second matrix, element by element. */
  readonly product: boolean;
}

const LANES = 32;

function bindingsOf({ product }: ColumnSumVariant): readonly Binding[] {
  const matrix = (name: string): Binding => ({ name, access: "read", type: "array<f32>", shape: ["R", "N"] });
  return [
    matrix("x"),
    ...(product ? [matrix("y")] : []),
    { name: "grad", access: "read_write", type: "array<f32>", shape: ["N"] },
    PARAMS,
  ];
}

/** The kernel of a variant. Rows: R, the rows that are summed over. */
export function columnSum(variant: ColumnSumVariant): Kernel {
  const { n, product } = variant;
  const bindings = bindingsOf(variant);
  const wgsl = `${PARAMS_STRUCT}
${declareBindings(bindings)}
@compute @workgroup_size(${LANES})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let column = (${FLAT_WORKGROUP}) * ${LANES}u + lane;
  if (column >= ${n}u) { return; }
  var sum = 0.0;
  for (var r = 0u; r < params.rows; r++) {
    let at = r * ${n}u + column;
    sum ${product ? "= fma(x[at], y[at], sum)" : "+= x[at]"};
  }
  grad[column] += sum;
}
`;
  return {
    name: "columnSum",
    key: kernelKey("columnSum", variant),
    wgsl,
    bindings,
    subgroups: false,
    grid: () => flatGrid(Math.ceil(n / LANES)),
    cost: rowCost({ flops: (product ? 2 : 1) * n, words: (product ? 2 : 1) * n, fixedWords: 2 * n }),
  };
}

/** CPU twin of `columnSum`, sums in float64. */
export function columnSumTwin(
  { n, product }: ColumnSumVariant,
  buffers: Readonly<Record<string, TwinBuffer>>,
  rows: number,
): void {
  const { x, y, grad } = buffers;
  for (let i = 0; i < n; i++) {
    let sum = 0;
    for (let r = 0; r < rows; r++) sum += x[r * n + i] * (product ? y[r * n + i] : 1);
    grad[i] += sum;
  }
}
