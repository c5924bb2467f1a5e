/**
 * listLoss: the loss of every list and its derivative by the scores, grads[r] = d(weight losses[b]) / d s_r, with
 * z = s / tau and y the labels of the list's candidates:
 *
 * - kl: KL(y / sum y || softmax z). listnet: cross-entropy of softmax y with softmax z (Cao et al. 2007).
 * - any_positive: -log of the summed softmax z of the safe ones (y = 1). bce: mean of BCE with logits z, targets y.
 * - ranknet: mean over pairs y_i > y_j of log(1 + exp(z_j - z_i)) (Burges et al. 2005).
 * - listmle: sum over k of lse(z_k ..) - z_k, in the order of falling labels, ties by row (Xia et al. 2008).
 * - lambdaloss: sum over pairs y_i > y_j of |G_i - G_j| |d_i - d_j| / ideal DCG * log(1 + exp(z_j - z_i)), G = 2^y - 1,
 *   d = 1 / log2(1 + rank by falling score, ties by row); the weights count as constants (Wang et al. 2018).
 * - approxndcg: 1 - (sum_i G_i / log2(1 + r_i)) / ideal DCG, r_i = 1 + sum_{j != i} sigmoid(z_j - z_i) (Qin et al. 2010).
 *
 * A list in which nothing can be ordered (no label above 0 for kl, no pair, no gain, no safe one) has loss and gradient
 * 0. One workgroup a list, its lanes over the candidates; losses of pairs walk all candidates in every lane. Differences
 * of scores are taken before the division by tau: so they stay exact where tau is small. `subgroup` > 0: the
 * workgroup is one subgroup, without workgroup memory; 0: 64 lanes and trees.
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
} from "./kernel.ts";
import { lossText } from "./list-loss-text.ts";

export const LOSSES = [
  "kl",
  "listnet",
  "listmle",
  "ranknet",
  "lambdaloss",
  "approxndcg",
  "any_positive",
  "bce",
] as const;
export type LossName = (typeof LOSSES)[number];

export interface ListLossVariant {
  readonly loss: LossName;
  readonly subgroup: number;
}

/** Bytes a row of `aux`, at most: the bindings of listmle, lambdaloss and approxndcg hold it. */
export const LIST_LOSS_AUX_BYTES = 8;

/** The kernel of a variant. Rows: B. */
export function listLoss(variant: ListLossVariant): Kernel {
  const { loss, subgroup } = variant;
  const { lanes, declarations, body, aux } = lossText(loss, subgroup);
  const bindings: readonly Binding[] = [
    // The score, and what listCosine keeps for its gradient.
    { name: "cosines", access: "read", type: "array<vec2<f32>>", shape: ["R"] },
    { name: "labels", access: "read", type: "array<f32>", shape: ["R"] },
    // First row, the instruction's, and end.
    { name: "lists", access: "read", type: "array<vec2<u32>>", shape: ["B"] },
    // tau, and the weight of a list in the mean.
    { name: "hyper", access: "read", type: "array<f32>", shape: ["2"] },
    { name: "losses", access: "read_write", type: "array<f32>", shape: ["B"] },
    { name: "grads", access: "read_write", type: "array<f32>", shape: ["R"] },
    ...(aux ? [{ name: "aux", access: "read_write", type: `array<${aux}>`, shape: ["R"] } as const] : []),
    PARAMS,
  ];
  const wgsl = `${subgroup ? "enable subgroups;\n" : ""}${PARAMS_STRUCT}
${declareBindings(bindings)}
${declarations}
@compute @workgroup_size(${lanes})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  // A group past the end repeats the last list: the reductions must stay uniform, and equal writes do no harm; what is
  // written twice is written by the live one alone.
  let counts = ${FLAT_WORKGROUP} < params.rows;
  let list = min(${FLAT_WORKGROUP}, params.rows - 1u);
  let begin = lists[list].x + 1u;
  let first = begin + lane;
  let end = lists[list].y;
  let slope = 1.0 / hyper[0];
  let scale = hyper[1] * slope;
  ${body}
  if (lane == 0u) {
    losses[list] = loss;
    grads[begin - 1u] = 0.0;
  }
}
`;
  return {
    name: "listLoss",
    key: kernelKey("listLoss", variant),
    wgsl,
    bindings,
    subgroups: subgroup > 0,
    grid: flatGrid,
    // Every loss takes some operations a candidate, those of pairs a pair: counted as one a pair of rows of a list.
    cost: (lists, extent) => ({
      flops: extent?.pairs ?? lists,
      bytes: 4 * (4 * (extent?.inputs ?? 2 * lists) + 3 * lists + 2),
    }),
  };
}

export function listLossDefaults(target: Target): Pick<ListLossVariant, "subgroup"> {
  return { subgroup: target.subgroupSize };
}

/** Above it 2^y - 1 leaves no digits to the other gains of a list. */
const LARGEST_GRADE = 30;

/**
 * What is wrong with the labels of one list's candidates for a loss; null where nothing is. Grades (any finite numbers)
 * suit listnet, listmle and ranknet; kl, lambdaloss and approxndcg want them from 0, the last two up to 30; bce takes
 * targets in [0, 1], any_positive 0 and 1.
 */
export function checkLabels(loss: LossName, labels: ArrayLike<number>): string | null {
  const values = Array.from(labels);
  const first = (wrong: (y: number) => boolean, what: string) => {
    const at = values.findIndex(wrong);
    return at < 0 ? null : `label ${values[at]} of candidate ${at}: ${what}`;
  };
  const fault = first((y) => !Number.isFinite(y), "not a finite number");
  if (fault !== null) return fault;
  switch (loss) {
    case "kl":
      return (
        first((y) => y < 0, "kl takes labels from 0") ??
        (values.some((y) => y > 0) ? null : "no label above 0: kl has no target")
      );
    case "lambdaloss":
    case "approxndcg":
      return first((y) => y < 0 || y > LARGEST_GRADE, `${loss} takes grades from 0 to ${LARGEST_GRADE}`);
    case "bce":
      return first((y) => y < 0 || y > 1, "bce takes labels from 0 to 1");
    case "any_positive":
      return first((y) => y !== 0 && y !== 1, "any_positive takes labels 0 and 1");
    default:
      return null;
  }
}
