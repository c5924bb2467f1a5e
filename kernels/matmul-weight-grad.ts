/**
 * matmulWeightGrad: grad[n, k] += sum_t dy[t, n] * x[t, k], the gradient of `matmul` by its weight.
 *
 * A workgroup of 32 lanes computes `tileRows` values of n by `32 * tileCols` of k; lane i owns the columns i, i + 32, ...
 * and keeps its sums in registers, as matmul does. `subgroup` > 0: each lane loads one of the next dy values, whose rows
 * and columns are counted together, and `subgroupBroadcast` hands it to the others. The sum runs over t in ascending order
 * and is added to what is there: a caller with many rows gives them batch by batch, which also bounds the rounding.
 */
import { rowCost } from "./cost.ts";
import {
  type Binding,
  declareBindings,
  type Kernel,
  kernelKey,
  PARAMS,
  PARAMS_STRUCT,
  range,
  type Target,
  type TwinBuffer,
} from "./kernel.ts";

export interface MatmulWeightGradVariant {
  readonly n: number;
  readonly k: number;
  readonly tileRows: number;
  readonly tileCols: number;
  /** Subgroup size to broadcast in, 0 for none; at most 32. */
  readonly subgroup: number;
}

const LANES = 32;
/** Rows of dy and x that one turn of the loop takes. */
const STEP = 8;

const BINDINGS: readonly Binding[] = [
  { name: "dy", access: "read", type: "array<f32>", shape: ["T", "N"] },
  { name: "x", access: "read", type: "array<f32>", shape: ["T", "K"] },
  { name: "grad", access: "read_write", type: "array<f32>", shape: ["N", "K"] },
  PARAMS,
];

/** One turn of the loop: `count` rows from row t0 on, written out. */
function stepText({ n, k, tileRows, tileCols, subgroup }: MatmulWeightGradVariant, count: number): string {
  const lines: string[] = [];
  const broadcast = subgroup > 0 && (count * tileRows) % subgroup === 0;
  if (broadcast) {
    for (const i of range((count * tileRows) / subgroup))
      lines.push(
        `let f${i} = ${i * subgroup}u + lane; let a${i} = dy[(t0 + f${i} / ${tileRows}u) * ${n}u + min(n0 + f${i} % ${tileRows}u, ${n - 1}u)];`,
      );
  }
  for (const u of range(count)) {
    for (const c of range(tileCols)) lines.push(`let x${c}_${u} = x[(t0 + ${u}u) * ${k}u + k${c}];`);
    for (const r of range(tileRows)) {
      const flat = u * tileRows + r;
      lines.push(
        broadcast
          ? `let b${r}_${u} = subgroupBroadcast(a${Math.floor(flat / subgroup)}, ${flat % subgroup}u);`
          : `let b${r}_${u} = dy[(t0 + ${u}u) * ${n}u + min(n0 + ${r}u, ${n - 1}u)];`,
      );
      for (const c of range(tileCols)) lines.push(`s${r}_${c} = fma(b${r}_${u}, x${c}_${u}, s${r}_${c});`);
    }
  }
  return lines.join("\n    ");
}

/** The kernel of a variant. Rows: T, the rows that are summed over. */
export function matmulWeightGrad(variant: MatmulWeightGradVariant): Kernel {
  const { n, k, tileRows, tileCols, subgroup } = variant;
  const rows = range(tileRows);
  const cols = range(tileCols);
  const wgsl = `${subgroup > 0 ? "enable subgroups;\n" : ""}${PARAMS_STRUCT}
${declareBindings(BINDINGS)}
@compute @workgroup_size(${LANES})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32${subgroup > 0 ? ", @builtin(subgroup_invocation_id) lane: u32" : ""}) {
  let n0 = group.y * ${tileRows}u;
  ${cols.map((c) => `let c${c} = group.x * ${LANES * tileCols}u + ${c * LANES}u + local;\n  let k${c} = min(c${c}, ${k - 1}u);`).join("\n  ")}
  ${rows.map((r) => cols.map((c) => `var s${r}_${c} = 0.0;`).join(" ")).join("\n  ")}
  let full = params.rows - params.rows % ${STEP}u;
  for (var t0 = 0u; t0 < full; t0 += ${STEP}u) {
    ${stepText(variant, STEP)}
  }
  for (var t0 = full; t0 < params.rows; t0++) {
    ${stepText({ ...variant, subgroup: 0 }, 1)}
  }
  ${rows.map((r) => `if (n0 + ${r}u < ${n}u) {\n    ${cols.map((c) => `if (c${c} < ${k}u) { grad[(n0 + ${r}u) * ${k}u + c${c}] += s${r}_${c}; }`).join("\n    ")}\n  }`).join("\n  ")}
}
`;
  return {
    name: "matmulWeightGrad",
    key: kernelKey("matmulWeightGrad", variant),
    wgsl,
    bindings: BINDINGS,
    subgroups: subgroup > 0,
    grid: () => [Math.ceil(k / (LANES * tileCols)), Math.ceil(n / tileRows), 1],
    cost: rowCost({ flops: 2 * n * k, words: n + k, fixedWords: 2 * n * k }),
  };
}

/** The tile that a target gets without tuning: narrow where there are few columns. */
export function matmulWeightGradTile(
  target: Target,
  k: number,
): Pick<MatmulWeightGradVariant, "tileRows" | "tileCols" | "subgroup"> {
  const subgroup = target.subgroupSize <= LANES ? target.subgroupSize : 0;
  // Measured at 64 x 4096 over 352 rows: with subgroups of 4 (SwiftShader) 8 x 4 takes 0.61 of the time of 16 x 2, with 8
  // (lavapipe) 1.14.
  const [tileRows, most] = subgroup > 0 && subgroup < 8 ? [8, 4] : [16, 2];
  return { tileRows, tileCols: Math.min(most, Math.ceil(k / LANES)), subgroup };
}

/** CPU twin of `matmulWeightGrad`, sums in float64. */
export function matmulWeightGradTwin(
  { n, k }: Pick<MatmulWeightGradVariant, "n" | "k">,
  buffers: Readonly<Record<string, TwinBuffer>>,
  rows: number,
): void {
  const { dy, x, grad } = buffers;
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < k; j++) {
      let sum = 0;
      for (let t = 0; t < rows; t++) sum += dy[t * n + i] * x[t * k + j];
      grad[i * k + j] += sum;
    }
  }
}
