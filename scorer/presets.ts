/** Named recipes. What a command line leaves open comes from its preset. */
import type { Pooling } from "./encode.ts";
import type { ScorerSpec } from "./scorer-spec.ts";
import type { AnchoredOptions } from "./train-anchors.ts";

export interface Recipe extends Omit<AnchoredOptions, "spec" | "seed" | "steps" | "warmup"> {
  /** As `--layer` takes it. */
  readonly layer: string;
  readonly pooling: Pooling;
  readonly head: ScorerSpec["head"];
  readonly width: number;
  readonly heads: number;
  /** F as a multiple of the width. */
  readonly ffnFactor: number;
  readonly tau: number;
  /** Share of the steps over which the rate rises. */
  readonly warmupShare: number;
}

/** Safety Representation Ranking (arXiv 2505.15710): the bottom quarter of the layers; what the paper leaves open is ours. */
const srr: Recipe = {
  layer: "25%",
  pooling: "last",
  head: "listwise",
  width: 64,
  heads: 4,
  ffnFactor: 4,
  tau: 0.2,
  loss: "kl",
  dropout: 0.1,
  inputDropout: 0,
  anchor: "auto",
  instructionOffset: 3,
  lr: 1e-3,
  weightDecay: 1e-4,
  clip: 1,
  schedule: "cosine",
  warmupShare: 0.05,
  batchLists: 32,
  epochs: 40,
  subLists: 0.5,
  validation: 0.2,
  select: "loss",
  patience: 10,
  standardise: true,
};

export const PRESETS = {
  srr,
  /** Language Ranker (arXiv 2510.21883): the same head at three fifths of the depth. */
  "language-ranker": { ...srr, layer: "60%" },
  /** No attention between candidates: scores that can be compared across lists. */
  pointwise: { ...srr, head: "pointwise", loss: "bce" },
  /**
   * For a few hundred lists: states averaged over the response, a learned vector in the instruction's place, no attention
   * between candidates, half of the features dropped at every step. See the README's table.
   */
  "few-lists": {
    ...srr,
    pooling: "mean",
    head: "pointwise",
    anchor: "learned",
    inputDropout: 0.5,
    patience: 0,
  },
  /** A plain PyTorch implementation with nothing to hold it back, to compare with. */
  reference: {
    ...srr,
    pooling: "end",
    anchor: "instruction",
    instructionOffset: 0,
    ffnFactor: 2,
    tau: 0.1,
    clip: 0,
    schedule: "constant",
    warmupShare: 0,
    subLists: 0,
    validation: 0,
    patience: 0,
  },
} as const satisfies Readonly<Record<string, Recipe>>;

export type PresetName = keyof typeof PRESETS;

/** A recipe as training takes it, for states of a width. */
export function trainOptionsOf(recipe: Recipe, dim: number): Omit<AnchoredOptions, "seed"> {
  const { layer: _layer, pooling: _pooling, head, width, heads, ffnFactor, tau, warmupShare, ...rest } = recipe;
  return {
    ...rest,
    spec: { head, dim, width, heads, ffn: ffnFactor * width, tau },
    warmup: { share: warmupShare },
  };
}
