/**
 * gelu: out = dropout(x * Phi(x)), Phi the normal distribution function, by erf   (Hendrycks and Gimpel 2016, arXiv 1606.08415)
 * geluGrad: dx = dropout(dout) * (Phi(x) + x phi(x)), in place of dout.
 *
 * One lane an element. erf: Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7.
 */
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

export interface GeluVariant {
  /** Row length F. */
  readonly width: number;
  readonly dropout: DropoutVariant;
}

const LANES = 64;

const NORMAL_CDF = `fn normalCdf(x: f32) -> f32 {
  let a = abs(x) * 0.70710678118654752;
  let t = 1.0 / fma(0.3275911, a, 1.0);
  let p = t * fma(t, fma(t, fma(t, fma(t, 1.061405429, -1.453152027), 1.421413741), -0.284496736), 0.254829592);
  let tail = 0.5 * p * exp(-a * a);
  return select(tail, 1.0 - tail, x >= 0.0);
}`;

function elementKernel(
  name: string,
  { width, dropout }: GeluVariant,
  bindings: readonly Binding[],
  statement: string,
): Kernel {
  const wgsl = `${PARAMS_STRUCT}
${declareBindings(bindings)}
${NORMAL_CDF}
${dropoutFunction(dropout)}
@compute @workgroup_size(${LANES})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let at = (${FLAT_WORKGROUP}) * ${LANES}u + lane;
  if (at >= params.rows * ${width}u) { return; }
  let v = x[at];
  ${statement}
}
`;
  return {
    name,
    key: kernelKey(name, { width, ...dropoutKey(dropout) }),
    wgsl,
    bindings,
    subgroups: false,
    grid: (rows) => flatGrid(Math.ceil((rows * width) / LANES)),
  };
}

const matrix = (name: string, access: Binding["access"]): Binding => ({
  name,
  access,
  type: "array<f32>",
  shape: ["R", "F"],
});

/** The kernel of a variant. Rows: R. */
export function gelu(variant: GeluVariant): Kernel {
  const { width, dropout } = variant;
  const bindings = [matrix("x", "read"), ...dropoutBindings(dropout), matrix("out", "read_write"), PARAMS];
  const value = droppedText(dropout, "v * normalCdf(v)", `at / ${width}u`, `at % ${width}u`);
  return elementKernel("gelu", variant, bindings, `out[at] = ${value};`);
}

/** The backward kernel of a variant: `dout` becomes dx. Rows: R. */
export function geluGrad(variant: GeluVariant): Kernel {
  const { width, dropout } = variant;
  const bindings = [matrix("x", "read"), ...dropoutBindings(dropout), matrix("dout", "read_write"), PARAMS];
  const value = droppedText(dropout, "dout[at]", `at / ${width}u`, `at % ${width}u`);
  return elementKernel(
    "geluGrad",
    variant,
    bindings,
    `dout[at] = ${value} * fma(v, 0.3989422804014327 * exp(-0.5 * v * v), normalCdf(v));`,
  );
}

/** The normal distribution function in float64: a series near 0, the continued fraction of the tail beyond. */
export function normalCdf(x: number): number {
  const a = Math.abs(x);
  const density = Math.exp((-a * a) / 2) / Math.sqrt(2 * Math.PI);
  if (a < 3) {
    let [term, sum] = [a, a];
    for (let n = 3; Math.abs(term) > 1e-17 * sum; n += 2) {
      term *= (a * a) / n;
      sum += term;
    }
    return x < 0 ? 0.5 - density * sum : 0.5 + density * sum;
  }
  let fraction = a;
  for (let n = 100; n >= 1; n--) fraction = a + n / fraction;
  return x < 0 ? density / fraction : 1 - density / fraction;
}

/** CPU twin of `gelu`. */
export function geluTwin(
  { width, dropout }: GeluVariant,
  buffers: Readonly<Record<string, TwinBuffer>>,
  rows: number,
): void {
  const { x, counter, out } = buffers;
  for (let at = 0; at < rows * width; at++)
    out[at] = x[at] * normalCdf(x[at]) * dropoutFactor(dropout, counter, Math.floor(at / width), at % width);
}

/** CPU twin of `geluGrad`. */
export function geluGradTwin(
  { width, dropout }: GeluVariant,
  buffers: Readonly<Record<string, TwinBuffer>>,
  rows: number,
): void {
  const { x, counter, dout } = buffers;
  for (let at = 0; at < rows * width; at++) {
    const v = x[at];
    const slope = normalCdf(v) + (v * Math.exp((-v * v) / 2)) / Math.sqrt(2 * Math.PI);
    dout[at] *= slope * dropoutFactor(dropout, counter, Math.floor(at / width), at % width);
  }
}
