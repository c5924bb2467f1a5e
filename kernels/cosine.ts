/**
 * cosine: out[r] = (a . b / max(|a| |b|, 1e-8), finite), for the pair r of rows a = x[pairs[r].x], b = x[pairs[r].y].
 *
 * `finite` is 1 where every element of both rows is finite, else 0: judged on the bits, since an implementation may
 * assume that NaN and infinity do not occur. One workgroup a pair; variants as in norm.
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
  range,
  type Target,
  type TwinBuffer,
} from "./kernel.ts";
import { laneSum } from "./reduce.ts";

export interface CosineVariant {
  /** Row length D. */
  readonly d: number;
  readonly subgroup: number;
}

const BINDINGS: readonly Binding[] = [
  { name: "x", access: "read", type: "array<f32>", shape: ["T", "D"] },
  { name: "pairs", access: "read", type: "array<vec2<u32>>", shape: ["R"] },
  { name: "out", access: "read_write", type: "array<vec2<f32>>", shape: ["R"] },
  PARAMS,
];

/** The kernel of a variant. Rows: R, the pairs. */
export function cosine(variant: CosineVariant): Kernel {
  const { d, subgroup } = variant;
  const { lanes, declarations, text } = laneSum(subgroup, "vec4<f32>", "sums");
  const wgsl = `${subgroup ? "enable subgroups;\n" : ""}${PARAMS_STRUCT}
${declareBindings(BINDINGS)}
${declarations}
@compute @workgroup_size(${lanes})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  // A group past the end repeats the last pair: the reduction below must stay uniform, and equal writes do no harm.
  let pair = min(${FLAT_WORKGROUP}, params.rows - 1u);
  let a0 = pairs[pair].x * ${d}u;
  let b0 = pairs[pair].y * ${d}u;
  var sums = vec4<f32>();
  for (var i = lane; i < ${d}u; i += ${lanes}u) {
    let a = x[a0 + i];
    let b = x[b0 + i];
    let broken = (bitcast<u32>(a) & 0x7f800000u) == 0x7f800000u || (bitcast<u32>(b) & 0x7f800000u) == 0x7f800000u;
    sums += vec4<f32>(a * b, a * a, b * b, select(0.0, 1.0, broken));
  }
  ${text}
  if (lane == 0u) {
    out[pair] = vec2<f32>(total.x / max(sqrt(total.y) * sqrt(total.z), 1e-8), select(0.0, 1.0, total.w == 0.0));
  }
}
`;
  return {
    name: "cosine",
    key: kernelKey("cosine", variant),
    wgsl,
    bindings: BINDINGS,
    subgroups: subgroup > 0,
    grid: flatGrid,
    // Three dot products a pair. Without the extent: all of the same two rows.
    cost: (pairs, extent) => ({ flops: 6 * d * pairs, bytes: 4 * ((extent?.inputs ?? 2) * d + 4 * pairs) }),
  };
}

export function cosineDefaults(target: Target): Pick<CosineVariant, "subgroup"> {
  return { subgroup: target.subgroupSize };
}

/** CPU twin of `cosine`, sums in float64. */
export function cosineTwin(variant: CosineVariant, buffers: Readonly<Record<string, TwinBuffer>>, rows: number): void {
  const { d } = variant;
  const { x, pairs, out } = buffers;
  for (let r = 0; r < rows; r++) {
    const [a, b] = [x.subarray(pairs[2 * r] * d), x.subarray(pairs[2 * r + 1] * d)];
    let [dot, aa, bb, finite] = [0, 0, 0, 1];
    for (const i of range(d)) {
      dot += a[i] * b[i];
      aa += a[i] * a[i];
      bb += b[i] * b[i];
      if (!Number.isFinite(a[i]) || !Number.isFinite(b[i])) finite = 0;
    }
    out[2 * r] = dot / Math.max(Math.sqrt(aa) * Math.sqrt(bb), 1e-8);
    out[2 * r + 1] = finite;
  }
}
