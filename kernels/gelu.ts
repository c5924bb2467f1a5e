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
import { elementKernel } from "./element.ts";
import { type Binding, type Kernel, kernelKey, type TwinBuffer } from "./kernel.ts";

export interface GeluVariant {
  /** Row length F. */
  readonly width: number;
  readonly dropout: DropoutVariant;
}

/** WGSL: `normalCdf(x)`. */
export const NORMAL_CDF = `fn normalCdf(x: f32) -> f32 {
  let a = abs(x) * 0.70710678118654752;
  let t = 1.0 / fma(0.3275911, a, 1.0);
  let p = t * fma(t, fma(t, fma(t, fma(t, 1.061405429, -1.453152027), 1.421413741), -0.284496736), 0.254829592);
  let tail = 0.5 * p * exp(-a * a);
  return select(tail, 1.0 - tail, x >= 0.0);
}`;

/** Operations of `normalCdf`, as counted in its text. */
const CDF_FLOPS = 20;

function perElement(
  name: string,
  { width, dropout }: GeluVariant,
  output: Binding,
  statement: string,
  work: { readonly flops: number; readonly words: number },
): Kernel {
  return elementKernel({
    name,
    key: kernelKey(name, { width, ...dropoutKey(dropout) }),
    bindings: [matrix("x", "read"), ...dropoutBindings(dropout), output],
    width,
    functions: `${NORMAL_CDF}\n${dropoutFunction(dropout)}`,
    statement: `let v = x[at];\n  ${statement}`,
    work: { flops: work.flops * width, words: work.words * width },
  });
}

const matrix = (name: string, access: Binding["access"]): Binding => ({
  name,
  access,
  type: "array<f32>",
  shape: ["R", "F"],
});

/** The kernel of a variant. Rows: R. */
export function gelu(variant: GeluVariant): Kernel {
  const value = droppedText(variant.dropout, "v * normalCdf(v)", "row", "column");
  return perElement("gelu", variant, matrix("out", "read_write"), `out[at] = ${value};`, {
    flops: CDF_FLOPS + 1,
    words: 2,
  });
}

/** The backward kernel of a variant: `dout` becomes dx. Rows: R. */
export function geluGrad(variant: GeluVariant): Kernel {
  const value = droppedText(variant.dropout, "dout[at]", "row", "column");
  return perElement(
    "geluGrad",
    variant,
    matrix("dout", "read_write"),
    `dout[at] = ${value} * fma(v, 0.3989422804014327 * exp(-0.5 * v * v), normalCdf(v));`,
    { flops: CDF_FLOPS + 7, words: 3 },
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
