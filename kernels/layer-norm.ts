/**
 * layerNorm: v = residual + dropout(branch); xhat = (v - mean(v)) * rstd, rstd = 1 / sqrt(var(v) + eps);
 * out = xhat * weight + bias   (Ba, Kiros and Hinton 2016, arXiv 1607.06450), as a post-norm Transformer layer has it.
 *
 * layerNormGrad: with g = dout * weight, dresidual = rstd * (g - mean(g) - xhat * mean(g * xhat)), dbranch = dropout of it.
 * (The gradients of weight and bias are column sums of dout * xhat and of dout.)
 *
 * One workgroup a row, variants as in norm. The variance is that of the centred row: its mean may be far from 0.
 */

import { rowCost } from "./cost.ts";
import {
  type DropoutVariant,
  dropoutBindings,
  dropoutFactor,
  dropoutFunction,
  dropoutKey,
  droppedText,
} from "./dropout.ts";
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
import { laneSum } from "./reduce.ts";
import { wgslFloat } from "./wgsl.ts";

export interface LayerNormVariant {
  /** Row length P. */
  readonly width: number;
  readonly eps: number;
  /** Of the branch. */
  readonly dropout: DropoutVariant;
  readonly subgroup: number;
}

const matrix = (name: string, access: Binding["access"]): Binding => ({
  name,
  access,
  type: "array<f32>",
  shape: ["R", "P"],
});
const vector = (name: string, letter: string, access: Binding["access"] = "read"): Binding => ({
  name,
  access,
  type: "array<f32>",
  shape: [letter],
});

function keyOf(name: string, { dropout, ...rest }: LayerNormVariant): string {
  return kernelKey(name, { ...rest, ...dropoutKey(dropout) });
}

/** The kernel of a variant. Rows: R. */
export function layerNorm(variant: LayerNormVariant): Kernel {
  const { width, eps, subgroup, dropout } = variant;
  const bindings = [
    matrix("residual", "read"),
    matrix("branch", "read"),
    vector("weight", "P"),
    vector("bias", "P"),
    ...dropoutBindings(dropout),
    matrix("out", "read_write"),
    matrix("xhat", "read_write"),
    vector("rstd", "R", "read_write"),
    PARAMS,
  ];
  const mean = laneSum(subgroup, "f32", "sum", "sumTotal");
  const variance = laneSum(subgroup, "f32", "square", "squareTotal");
  const wgsl = `${subgroup ? "enable subgroups;\n" : ""}${PARAMS_STRUCT}
${declareBindings(bindings)}
${mean.declarations}
${dropoutFunction(dropout)}
@compute @workgroup_size(${mean.lanes})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  // A group past the end takes part in the reductions, which must stay uniform, and writes nothing: xhat is scratch first.
  let live = ${FLAT_WORKGROUP} < params.rows;
  let row = min(${FLAT_WORKGROUP}, params.rows - 1u);
  let base = row * ${width}u;
  var sum = 0.0;
  for (var i = lane; i < ${width}u; i += ${mean.lanes}u) {
    let v = residual[base + i] + ${droppedText(dropout, "branch[base + i]", "row", "i")};
    if (live) { xhat[base + i] = v; }
    sum += v;
  }
  ${mean.text}
  let mean = sumTotal / ${width}.0;
  var square = 0.0;
  for (var i = lane; i < ${width}u; i += ${mean.lanes}u) {
    let v = xhat[base + i] - mean;
    square = fma(v, v, square);
  }
  ${variance.text}
  let scale = inverseSqrt(squareTotal / ${width}.0 + ${wgslFloat(eps)});
  for (var i = lane; i < ${width}u; i += ${mean.lanes}u) {
    let v = (xhat[base + i] - mean) * scale;
    if (live) {
      xhat[base + i] = v;
      out[base + i] = fma(v, weight[i], bias[i]);
    }
  }
  if (live && lane == 0u) { rstd[row] = scale; }
}
`;
  return {
    name: "layerNorm",
    key: keyOf("layerNorm", variant),
    wgsl,
    bindings,
    subgroups: subgroup > 0,
    grid: flatGrid,
    // Of an element: the sum with the branch, mean, centred square, scale, weight and bias.
    cost: rowCost({ flops: 8 * width, words: 4 * width + 1, fixedWords: 2 * width }),
  };
}

/** CPU twin of `layerNorm`, sums in float64. */
export function layerNormTwin(
  { width, eps, dropout }: LayerNormVariant,
  buffers: Readonly<Record<string, TwinBuffer>>,
  rows: number,
): void {
  const { residual, branch, weight, bias, counter, out, xhat, rstd } = buffers;
  for (let r = 0; r < rows; r++) {
    const row = Array.from(
      { length: width },
      (_, i) => residual[r * width + i] + branch[r * width + i] * dropoutFactor(dropout, counter, r, i),
    );
    const mean = row.reduce((sum, v) => sum + v, 0) / width;
    const scale = 1 / Math.sqrt(row.reduce((sum, v) => sum + (v - mean) ** 2, 0) / width + eps);
    for (let i = 0; i < width; i++) {
      xhat[r * width + i] = (row[i] - mean) * scale;
      out[r * width + i] = (row[i] - mean) * scale * weight[i] + bias[i];
    }
    rstd[r] = scale;
  }
}

/** The backward kernel of a variant. Rows: R. Without dropout `dbranch` equals `dresidual` and is not written. */
export function layerNormGrad(variant: LayerNormVariant): Kernel {
  const { width, subgroup, dropout } = variant;
  const bindings = [
    matrix("dout", "read"),
    matrix("xhat", "read"),
    vector("rstd", "R"),
    vector("weight", "P"),
    ...dropoutBindings(dropout),
    matrix("dresidual", "read_write"),
    ...(dropout.rate > 0 ? [matrix("dbranch", "read_write")] : []),
    PARAMS,
  ];
  const { lanes, declarations, text } = laneSum(subgroup, "vec2<f32>", "sums");
  const wgsl = `${subgroup ? "enable subgroups;\n" : ""}${PARAMS_STRUCT}
${declareBindings(bindings)}
${declarations}
${dropoutFunction(dropout)}
@compute @workgroup_size(${lanes})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let row = min(${FLAT_WORKGROUP}, params.rows - 1u);
  let base = row * ${width}u;
  var sums = vec2<f32>();
  for (var i = lane; i < ${width}u; i += ${lanes}u) {
    let g = dout[base + i] * weight[i];
    sums += vec2<f32>(g, g * xhat[base + i]);
  }
  ${text}
  let means = total / ${width}.0;
  let scale = rstd[row];
  for (var i = lane; i < ${width}u; i += ${lanes}u) {
    let d = scale * (dout[base + i] * weight[i] - means.x - xhat[base + i] * means.y);
    dresidual[base + i] = d;
    ${dropout.rate > 0 ? "dbranch[base + i] = dropped(d, row, i);" : ""}
  }
}
`;
  return {
    name: "layerNormGrad",
    key: keyOf("layerNormGrad", variant),
    wgsl,
    bindings,
    subgroups: subgroup > 0,
    grid: flatGrid,
    // Of an element: two sums of products with the weight, and their way back.
    cost: rowCost({ flops: 10 * width, words: (dropout.rate > 0 ? 4 : 3) * width + 1, fixedWords: width }),
  };
}

/** CPU twin of `layerNormGrad`, sums in float64. */
export function layerNormGradTwin(
  { width, dropout }: LayerNormVariant,
  buffers: Readonly<Record<string, TwinBuffer>>,
  rows: number,
): void {
  const { dout, xhat, rstd, weight, counter, dresidual, dbranch } = buffers;
  for (let r = 0; r < rows; r++) {
    let [mean, meanHat] = [0, 0];
    for (let i = 0; i < width; i++) {
      const g = dout[r * width + i] * weight[i];
      mean += g / width;
      meanHat += (g * xhat[r * width + i]) / width;
    }
    for (let i = 0; i < width; i++) {
      const at = r * width + i;
      const d = rstd[r] * (dout[at] * weight[i] - mean - xhat[at] * meanHat);
      dresidual[at] = d;
      if (dropout.rate > 0) dbranch[at] = d * dropoutFactor(dropout, counter, r, i);
    }
  }
}
