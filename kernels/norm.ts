/**
 * norm: a group of d values of a row, normed, times a weight, by kind
 *   rms:   y = x / sqrt(mean(x^2) + eps) * (weight + weightOffset) [+ bias]      (Zhang & Sennrich 2019, arXiv 1910.07467)
 *   layer: y = (x - mean) / sqrt(var + eps) * (weight + weightOffset) [+ bias]   (Ba et al. 2016, arXiv 1607.06450)
 * stored apart, added to a residual stream (norms after a block), or put in place of x (norms of queries and keys, where
 * the groups are the heads).
 *
 * One workgroup a group of a row. `subgroup` > 0: the workgroup is one subgroup and a sum needs no barrier; pays wherever
 * subgroups exist. `subgroup` = 0: 64 lanes and a tree in workgroup memory. The variance is that of the centred group:
 * its mean may be far from 0.
 */
import { type RowWork, rowCost } from "./cost.ts";
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
  type Target,
  type TwinBuffer,
} from "./kernel.ts";
import { laneSum } from "./reduce.ts";
import { wgslFloat } from "./wgsl.ts";

export interface NormVariant {
  readonly kind: "rms" | "layer";
  /** Length of a normed group. */
  readonly d: number;
  readonly eps: number;
  /** Added to every weight: Gemma stores w - 1. */
  readonly weightOffset: 0 | 1;
  /** With a bias binding. */
  readonly bias: boolean;
  /** Groups a row, all with the same weight: the heads of a norm of queries or keys, else 1. */
  readonly groups: number;
  /** Row length of x; the groups lie at its beginning, one after another. */
  readonly stride: number;
  /** `store`: out = y; `add`: out += y; rows of groups * d. `inPlace`: x = y, and there is no out. */
  readonly output: "store" | "add" | "inPlace";
  readonly subgroup: number;
}

function normBindings({ bias, output }: NormVariant): readonly Binding[] {
  const inPlace = output === "inPlace";
  return [
    { name: "x", access: inPlace ? "read_write" : "read", type: "array<f32>", shape: ["T", "stride"] },
    { name: "weight", access: "read", type: "array<f32>", shape: ["d"] },
    ...(bias ? [{ name: "bias", access: "read", type: "array<f32>", shape: ["d"] } as const] : []),
    ...(inPlace ? [] : [{ name: "out", access: "read_write", type: "array<f32>", shape: ["T", "groups*d"] } as const]),
    PARAMS,
  ];
}

/** The kernel of a variant. Rows: T. */
export function norm(variant: NormVariant): Kernel {
  const { kind, d, eps, weightOffset, bias, groups, stride, output, subgroup } = variant;
  const bindings = normBindings(variant);
  const centred = kind === "layer";
  const squares = laneSum(subgroup, "f32", "square", "squares");
  const { lanes, declarations } = squares;
  const value = centred ? "(x[base + i] - mean)" : "x[base + i]";
  const weight = weightOffset === 1 ? "(weight[i] + 1.0)" : "weight[i]";
  const result = `${value} * scale * ${weight}${bias ? " + bias[i]" : ""}`;
  const write = { store: "out[to + i] =", add: "out[to + i] +=", inPlace: "x[base + i] =" }[output];
  const wgsl = `${subgroup ? "enable subgroups;\n" : ""}${PARAMS_STRUCT}
${declareBindings(bindings)}
${declarations}
@compute @workgroup_size(${lanes})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let place = ${FLAT_WORKGROUP};
  let count = params.rows * ${groups}u;
  // A workgroup past the end sums the last group, since reductions must stay uniform, and writes nothing.
  let index = min(place, count - 1u);
  let base = index / ${groups}u * ${stride}u + index % ${groups}u * ${d}u;
  ${output === "inPlace" ? "" : `let to = index * ${d}u;`}
  ${
    centred
      ? `var sum = 0.0;
  for (var i = lane; i < ${d}u; i += ${lanes}u) { sum += x[base + i]; }
  ${laneSum(subgroup, "f32", "sum", "total").text}
  let mean = total / ${d}.0;`
      : ""
  }
  var square = 0.0;
  for (var i = lane; i < ${d}u; i += ${lanes}u) {
    let value = ${value};
    square = fma(value, value, square);
  }
  ${squares.text}
  let scale = inverseSqrt(squares / ${d}.0 + ${wgslFloat(eps)});
  if (place < count) {
    for (var i = lane; i < ${d}u; i += ${lanes}u) { ${write} ${result}; }
  }
}
`;
  return {
    name: "norm",
    key: kernelKey("norm", variant),
    wgsl,
    bindings,
    subgroups: subgroup > 0,
    grid: (rows) => flatGrid(rows * groups),
    cost: rowCost(normWork(variant)),
  };
}

/** Operations an element: square, sum, scale, weight; a layer norm's mean and centring; bias, offset and residual one each. */
function normWork({ kind, d, groups, output, bias, weightOffset }: NormVariant): RowWork {
  const flops = (kind === "layer" ? 6 : 4) + (bias ? 1 : 0) + (weightOffset === 0 ? 0 : 1) + (output === "add" ? 1 : 0);
  return { flops: flops * groups * d, words: (output === "add" ? 3 : 2) * groups * d, fixedWords: (bias ? 2 : 1) * d };
}

export function normDefaults(target: Target): Pick<NormVariant, "subgroup"> {
  return { subgroup: target.subgroupSize };
}

/** CPU twin of `norm`, sums in float64. */
export function normTwin(variant: NormVariant, buffers: Readonly<Record<string, TwinBuffer>>, rows: number): void {
  const { kind, d, eps, weightOffset, groups, stride, output } = variant;
  const { x, weight, bias, out } = buffers;
  for (let index = 0; index < rows * groups; index++) {
    const base = Math.floor(index / groups) * stride + (index % groups) * d;
    let sum = 0;
    for (let i = 0; i < d; i++) sum += x[base + i];
    const mean = kind === "layer" ? sum / d : 0;
    let square = 0;
    for (let i = 0; i < d; i++) square += (x[base + i] - mean) ** 2;
    const scale = 1 / Math.sqrt(square / d + eps);
    for (let i = 0; i < d; i++) {
      const y = (x[base + i] - mean) * scale * (weight[i] + weightOffset) + (variant.bias ? bias[i] : 0);
      if (output === "store") out[index * d + i] = y;
      else if (output === "add") out[index * d + i] += y;
      else x[base + i] = y;
    }
  }
}
