/**
 * The elementwise functions that a matmul's epilogue applies, as WGSL and as their CPU twins.
 *
 * - silu(x) = x / (1 + exp(-x))   (Hendrycks and Gimpel 2016, arXiv 1606.08415)
 * - gelu(x) = x Phi(x), Phi by erf   (the same)
 * - geluTanh(x) = x/2 (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3)   (the same, its approximation)
 * - relu(x) = max(x, 0)
 *
 * The texts hold for every finite x: exponents are never positive, so that nothing overflows, and far from 0 the result
 * is x or 0 exactly. NaN stays NaN.
 */
import { NORMAL_CDF, normalCdf } from "./gelu.ts";

export type Activation = "none" | "silu" | "gelu" | "geluTanh" | "relu";

/** Beyond this |x| every one of the functions is x or 0 in f32; keeps x^2 and x^3 finite. */
const FAR = 16;

/** x / (1 + exp(-u)) without overflow. */
const GATED = `fn gated(x: f32, u: f32) -> f32 {
  let e = exp(-abs(u));
  return x * select(e, 1.0, u >= 0.0) / (1.0 + e);
}`;

const TEXT: Readonly<Record<Activation, string>> = {
  none: "",
  silu: `${GATED}
fn silu(x: f32) -> f32 { return gated(x, x); }`,
  gelu: `${NORMAL_CDF}
fn gelu(x: f32) -> f32 { return x * normalCdf(clamp(x, -${FAR}.0, ${FAR}.0)); }`,
  geluTanh: `${GATED}
fn geluTanh(x: f32) -> f32 {
  let c = clamp(x, -${FAR}.0, ${FAR}.0);
  return gated(x, 1.5957691216057308 * c * fma(0.044715 * c, c, 1.0));
}`,
  relu: "fn relu(x: f32) -> f32 { return select(x, 0.0, x < 0.0); }",
};

/** WGSL: the function `activation`, under its own name, and what it needs. */
export function activationFunction(activation: Activation): string {
  return TEXT[activation];
}

/** WGSL: the activation of an expression. */
export function activatedText(activation: Activation, value: string): string {
  return activation === "none" ? value : `${activation}(${value})`;
}

/** The CPU twin of the texts, in float64. */
export function activate(activation: Activation, x: number): number {
  switch (activation) {
    case "none":
      return x;
    case "silu":
      return x / (1 + Math.exp(-x));
    case "gelu":
      return x * normalCdf(x);
    case "geluTanh":
      return x / (1 + Math.exp(-2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
    case "relu":
      return x < 0 ? 0 : x;
  }
}
