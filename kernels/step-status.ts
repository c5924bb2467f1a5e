/**
 * squareSum: partials[g] = sum of x[i]^2 over the i of workgroup g, the first half of a gradient's norm.
 * stepStatus: the rest of it, and what a step has to tell: log[slot] = (mean loss, gradient norm, finite, 0),
 * status = (clip factor, halted). The factor is min(1, clip / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ has it;
 * clip = 0 is none. A loss or a norm that is not finite halts: `halted` stays 1 from then on.
 *
 * squareSum: a fixed number of workgroups, variants as in norm. stepStatus: one lane, sums in blocks of 256.
 */
import { rowCost } from "./cost.ts";
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

export interface SquareSumVariant {
  /** Elements. */
  readonly count: number;
  readonly subgroup: number;
}

/** Workgroups of `squareSum`, and partial sums. */
export const SQUARE_SUM_PARTS = 64;

/** Clip factor, halted. */
export const STATUS: Binding = { name: "status", access: "read", type: "array<f32>", shape: ["2"] };

const PARTIALS: Binding = { name: "partials", access: "read_write", type: "array<f32>", shape: ["64"] };

/** The kernel of a variant. Rows are not used: the count is fixed. */
export function squareSum(variant: SquareSumVariant): Kernel {
  const { count, subgroup } = variant;
  const bindings: readonly Binding[] = [{ name: "x", access: "read", type: "array<f32>", shape: ["N"] }, PARTIALS];
  const { lanes, declarations, text } = laneSum(subgroup, "f32", "sum");
  const wgsl = `${subgroup ? "enable subgroups;\n" : ""}${declareBindings(bindings)}
${declarations}
@compute @workgroup_size(${lanes})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let part = ${FLAT_WORKGROUP};
  var sum = 0.0;
  for (var i = part * ${lanes}u + lane; i < ${count}u; i += ${SQUARE_SUM_PARTS * lanes}u) { sum = fma(x[i], x[i], sum); }
  ${text}
  if (lane == 0u) { partials[part] = total; }
}
`;
  return {
    name: "squareSum",
    key: kernelKey("squareSum", variant),
    wgsl,
    bindings,
    subgroups: subgroup > 0,
    grid: () => [SQUARE_SUM_PARTS, 1, 1],
    cost: () => ({ flops: 2 * count, bytes: 4 * (count + SQUARE_SUM_PARTS) }),
  };
}

/** CPU twin of `squareSum`: parts by another rule would have other sums, so `lanes` is the kernel's. */
export function squareSumTwin(
  { count, subgroup }: SquareSumVariant,
  { x, partials }: Readonly<Record<string, TwinBuffer>>,
): void {
  const { lanes } = laneSum(subgroup, "f32", "sum");
  partials.fill(0);
  for (let i = 0; i < count; i++) partials[Math.floor(i / lanes) % SQUARE_SUM_PARTS] += x[i] ** 2;
}

/** The kernel that closes a step. Rows: B, the step's lists; `params.offset`: the slot of the log. */
export function stepStatus(): Kernel {
  const bindings: readonly Binding[] = [
    { name: "losses", access: "read", type: "array<f32>", shape: ["B"] },
    { ...PARTIALS, access: "read" },
    { name: "clip", access: "read", type: "array<f32>", shape: ["1"] },
    { name: "log", access: "read_write", type: "array<vec4<f32>>", shape: ["S"] },
    { ...STATUS, access: "read_write" },
    PARAMS,
  ];
  const wgsl = `${PARAMS_STRUCT}
${declareBindings(bindings)}
fn finite(x: f32) -> bool { return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u; }
@compute @workgroup_size(1)
fn main() {
  var loss = 0.0;
  for (var b0 = 0u; b0 < params.rows; b0 += 256u) {
    var block = 0.0;
    for (var b = b0; b < min(b0 + 256u, params.rows); b++) { block += losses[b]; }
    loss += block;
  }
  loss /= f32(params.rows);
  var square = 0.0;
  for (var i = 0u; i < ${SQUARE_SUM_PARTS}u; i++) { square += partials[i]; }
  let norm = sqrt(square);
  let sound = finite(loss) && finite(square);
  if (!sound) { status[1] = 1.0; }
  status[0] = select(1.0, min(1.0, clip[0] / (norm + 1e-6)), clip[0] > 0.0);
  log[params.offset] = vec4<f32>(loss, norm, select(0.0, 1.0, sound), 0.0);
}
`;
  return {
    name: "stepStatus",
    key: "stepStatus{}",
    wgsl,
    bindings,
    subgroups: false,
    grid: () => flatGrid(1),
    cost: rowCost({ flops: 1, words: 1, fixedWords: SQUARE_SUM_PARTS + 9 }),
  };
}

/** CPU twin of `stepStatus`. */
export function stepStatusTwin(
  { losses, partials, clip, log, status }: Readonly<Record<string, TwinBuffer>>,
  rows: number,
  offset: number,
): void {
  let [loss, square] = [0, 0];
  for (let b = 0; b < rows; b++) loss += losses[b] / rows;
  for (const value of partials) square += value;
  const sound = Number.isFinite(loss) && Number.isFinite(square);
  if (!sound) status[1] = 1;
  status[0] = clip[0] > 0 ? Math.min(1, clip[0] / (Math.sqrt(square) + 1e-6)) : 1;
  log.set([loss, Math.sqrt(square), sound ? 1 : 0, 0], 4 * offset);
}
