/**
 * adamw: one step of AdamW with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101), in the order of
 * torch.optim.AdamW: p *= 1 - lr * decay; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
 * p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps), with g the gradient times the clip factor.
 *
 * One lane four elements of the flat parameters: what is the same for all is loaded once for them. Nothing happens once `status` says halted: the weights stay those of the
 * last step whose loss and gradient were finite.
 */
import {
  type Binding,
  declareBindings,
  FLAT_BUILTINS,
  FLAT_WORKGROUP,
  flatGrid,
  type Kernel,
  kernelKey,
  type TwinBuffer,
} from "./kernel.ts";
import { STATUS } from "./step-status.ts";

export interface AdamwVariant {
  /** Elements, a multiple of 4. */
  readonly count: number;
}

const LANES = 64;

/** What the host works out for a step, in float64. */
export const ADAMW_HYPER = [
  "keep",
  "stepSize",
  "beta1",
  "beta2",
  "rootCorrection",
  "eps",
  "newFirst",
  "newSecond",
] as const;

const BINDINGS: readonly Binding[] = [
  { name: "grads", access: "read", type: "array<vec4<f32>>", shape: ["N/4"] },
  { name: "hyper", access: "read", type: "array<f32>", shape: ["8"] },
  STATUS,
  { name: "weights", access: "read_write", type: "array<vec4<f32>>", shape: ["N/4"] },
  { name: "first", access: "read_write", type: "array<vec4<f32>>", shape: ["N/4"] },
  { name: "second", access: "read_write", type: "array<vec4<f32>>", shape: ["N/4"] },
];

/** The kernel of a variant. Rows are not used: the count is fixed. */
export function adamw(variant: AdamwVariant): Kernel {
  const wgsl = `${declareBindings(BINDINGS)}
@compute @workgroup_size(${LANES})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let at = (${FLAT_WORKGROUP}) * ${LANES}u + lane;
  if (at >= ${variant.count / 4}u || status[1] != 0.0) { return; }
  let g = grads[at] * status[0];
  let m = fma(first[at], vec4<f32>(hyper[2]), hyper[6] * g);
  let v = fma(second[at], vec4<f32>(hyper[3]), hyper[7] * g * g);
  first[at] = m;
  second[at] = v;
  weights[at] = fma(vec4<f32>(-hyper[1]), m / (sqrt(v) / hyper[4] + hyper[5]), weights[at] * hyper[0]);
}
`;
  return {
    name: "adamw",
    key: kernelKey("adamw", variant),
    wgsl,
    bindings: BINDINGS,
    subgroups: false,
    grid: () => flatGrid(Math.ceil(variant.count / 4 / LANES)),
    // Of a parameter: clip, decay, two moments, the root and the step.
    cost: () => ({ flops: 14 * variant.count, bytes: 4 * 7 * variant.count }),
  };
}

/** CPU twin of `adamw`. */
export function adamwTwin(
  { count }: AdamwVariant,
  { grads, hyper, status, weights, first, second }: Readonly<Record<string, TwinBuffer>>,
): void {
  if (status[1] !== 0) return;
  const [keep, stepSize, beta1, beta2, rootCorrection, eps, newFirst, newSecond] = hyper;
  for (let i = 0; i < count; i++) {
    const g = grads[i] * status[0];
    first[i] = beta1 * first[i] + newFirst * g;
    second[i] = beta2 * second[i] + newSecond * g * g;
    weights[i] = weights[i] * keep - (stepSize * first[i]) / (Math.sqrt(second[i]) / rootCorrection + eps);
  }
}
