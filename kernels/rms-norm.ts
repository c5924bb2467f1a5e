/**
 * rmsNorm: out[t, i] = x[t, i] / sqrt(mean_i(x[t, i]^2) + eps) * weight[i]   (Zhang & Sennrich 2019, arXiv 1910.07467)
 *
 * One workgroup a row. `subgroup` > 0: the workgroup is one subgroup and the sum needs no barrier; pays wherever
 * subgroups exist. `subgroup` = 0: 64 lanes and a tree in workgroup memory.
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
  type Target,
  type TwinBuffer,
} from "./kernel.ts";
import { laneSum } from "./reduce.ts";
import { wgslFloat } from "./wgsl.ts";

export interface RmsNormVariant {
  /** Row length D. */
  readonly d: number;
  readonly eps: number;
  readonly subgroup: number;
}

const BINDINGS: readonly Binding[] = [
  { name: "x", access: "read", type: "array<f32>", shape: ["T", "D"] },
  { name: "weight", access: "read", type: "array<f32>", shape: ["D"] },
  { name: "out", access: "read_write", type: "array<f32>", shape: ["T", "D"] },
  PARAMS,
];

/** The kernel of a variant. Rows: T. */
export function rmsNorm(variant: RmsNormVariant): Kernel {
  const { d, eps, subgroup } = variant;
  const { lanes, declarations, text } = laneSum(subgroup, "f32", "sum");
  const wgsl = `${subgroup ? "enable subgroups;\n" : ""}${PARAMS_STRUCT}
${declareBindings(BINDINGS)}
${declarations}
@compute @workgroup_size(${lanes})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  // A group past the end repeats the last row: the reduction below must stay uniform, and equal writes do no harm.
  let base = min(${FLAT_WORKGROUP}, params.rows - 1u) * ${d}u;
  var sum = 0.0;
  for (var i = lane; i < ${d}u; i += ${lanes}u) {
    let value = x[base + i];
    sum = fma(value, value, sum);
  }
  ${text}
  let scale = inverseSqrt(total / ${d}.0 + ${wgslFloat(eps)});
  for (var i = lane; i < ${d}u; i += ${lanes}u) { out[base + i] = x[base + i] * scale * weight[i]; }
}
`;
  return {
    name: "rmsNorm",
    key: kernelKey("rmsNorm", variant),
    wgsl,
    bindings: BINDINGS,
    subgroups: subgroup > 0,
    grid: flatGrid,
  };
}

export function rmsNormDefaults(target: Target): Pick<RmsNormVariant, "subgroup"> {
  return { subgroup: target.subgroupSize };
}

/** CPU twin of `rmsNorm`, sums in float64. */
export function rmsNormTwin(
  variant: RmsNormVariant,
  buffers: Readonly<Record<string, TwinBuffer>>,
  rows: number,
): void {
  const { d, eps } = variant;
  const { x, weight, out } = buffers;
  for (let t = 0; t < rows; t++) {
    let sum = 0;
    for (let i = 0; i < d; i++) sum += x[t * d + i] ** 2;
    const scale = 1 / Math.sqrt(sum / d + eps);
    for (let i = 0; i < d; i++) out[t * d + i] = x[t * d + i] * scale * weight[i];
  }
}
