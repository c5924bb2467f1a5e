/**
 * listCosine: cosines[r] = (y_r . a / (|y_r| |a|), 1 / |y_r|), a the first row of r's list: the instruction.
 * listCosineGrad: with g = grads[r], s the cosine, n = y / |y|: dy_r = (g n_a - g s n_r) / |y_r| for a candidate,
 * dy_a = sum_r (g n_r - g s n_a) / |a| over the candidates for the instruction.
 *
 * listCosine: one workgroup a row, variants as in norm. listCosineGrad: one lane an element.
 */
import { rowCost } from "./cost.ts";
import { elementKernel } from "./element.ts";
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
import { LIST_SPANS } from "./list-attention.ts";
import { laneSum } from "./reduce.ts";

export interface ListCosineVariant {
  /** Row length P. */
  readonly width: number;
  readonly subgroup: number;
}

/** Below it a norm counts as this: the bound of torch.nn.functional.cosine_similarity. */
const EPS = 1e-8;

const Y: Binding = { name: "y", access: "read", type: "array<f32>", shape: ["R", "P"] };
const COSINES: Binding = { name: "cosines", access: "read_write", type: "array<vec2<f32>>", shape: ["R"] };

/** The kernel of a variant. Rows: R. */
export function listCosine(variant: ListCosineVariant): Kernel {
  const { width, subgroup } = variant;
  const bindings = [Y, LIST_SPANS, COSINES, PARAMS];
  const { lanes, declarations, text } = laneSum(subgroup, "vec3<f32>", "sums");
  const wgsl = `${subgroup ? "enable subgroups;\n" : ""}${PARAMS_STRUCT}
${declareBindings(bindings)}
${declarations}
@compute @workgroup_size(${lanes})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  // A group past the end repeats the last row: the reduction must stay uniform, and equal writes do no harm.
  let row = min(${FLAT_WORKGROUP}, params.rows - 1u);
  let a0 = spans[row].x * ${width}u;
  let b0 = row * ${width}u;
  var sums = vec3<f32>();
  for (var i = lane; i < ${width}u; i += ${lanes}u) {
    let a = y[a0 + i];
    let b = y[b0 + i];
    sums += vec3<f32>(a * b, a * a, b * b);
  }
  ${text}
  if (lane == 0u) {
    let inverse = 1.0 / max(sqrt(total.z), ${EPS});
    cosines[row] = vec2<f32>(total.x * inverse / max(sqrt(total.y), ${EPS}), inverse);
  }
}
`;
  return {
    name: "listCosine",
    key: kernelKey("listCosine", variant),
    wgsl,
    bindings,
    subgroups: subgroup > 0,
    grid: flatGrid,
    // Two dot products a row: its own square and that with the instruction's row.
    cost: rowCost({ flops: 4 * width, words: width + 4 }),
  };
}

/** CPU twin of `listCosine`, sums in float64. */
export function listCosineTwin(
  { width }: Pick<ListCosineVariant, "width">,
  { y, spans, cosines }: Readonly<Record<string, TwinBuffer>>,
  rows: number,
): void {
  for (let r = 0; r < rows; r++) {
    let [dot, aa, bb] = [0, 0, 0];
    for (let i = 0; i < width; i++) {
      const [a, b] = [y[spans[2 * r] * width + i], y[r * width + i]];
      dot += a * b;
      aa += a * a;
      bb += b * b;
    }
    cosines[2 * r + 1] = 1 / Math.max(Math.sqrt(bb), EPS);
    cosines[2 * r] = (dot * cosines[2 * r + 1]) / Math.max(Math.sqrt(aa), EPS);
  }
}

/** The backward kernel. Rows: R. */
export function listCosineGrad({ width }: Pick<ListCosineVariant, "width">): Kernel {
  const bindings: readonly Binding[] = [
    Y,
    LIST_SPANS,
    { ...COSINES, access: "read" },
    { name: "grads", access: "read", type: "array<f32>", shape: ["R"] },
    { name: "dy", access: "read_write", type: "array<f32>", shape: ["R", "P"] },
  ];
  return elementKernel({
    name: "listCosineGrad",
    key: kernelKey("listCosineGrad", { width }),
    bindings,
    width,
    statement: `let span = spans[row];
  let own = cosines[row];
  if (row == span.x) {
    let n = y[at] * own.y;
    var sum = 0.0;
    for (var r = span.x + 1u; r < span.y; r++) {
      let other = cosines[r];
      sum = fma(grads[r], fma(-other.x, n, y[r * ${width}u + column] * other.y), sum);
    }
    dy[at] = sum * own.y;
  } else {
    let n = y[span.x * ${width}u + column] * cosines[span.x].y;
    dy[at] = grads[row] * fma(-own.x, y[at] * own.y, n) * own.y;
  }`,
    // Two multiply-adds and two products an element of a row and of what it adds to the instruction.
    work: { flops: 12 * width, words: 2 * width + 5 },
  });
}

/** CPU twin of `listCosineGrad`. */
export function listCosineGradTwin(
  { width }: Pick<ListCosineVariant, "width">,
  { y, spans, cosines, grads, dy }: Readonly<Record<string, TwinBuffer>>,
  rows: number,
): void {
  const unit = (r: number, i: number) => y[r * width + i] * cosines[2 * r + 1];
  for (let r = 0; r < rows; r++) {
    const [first, end] = [spans[2 * r], spans[2 * r + 1]];
    for (let i = 0; i < width; i++) {
      let sum = 0;
      if (r === first) {
        for (let c = first + 1; c < end; c++) sum += grads[c] * (unit(c, i) - cosines[2 * c] * unit(r, i));
      } else sum = grads[r] * (unit(first, i) - cosines[2 * r] * unit(r, i));
      dy[r * width + i] = sum * cosines[2 * r + 1];
    }
  }
}
