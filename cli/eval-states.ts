/** The states that a scorer takes, for the commands that measure one. */
import { fingerprint } from "../engine/fingerprint.ts";
import { resolveLayer } from "../engine/layers.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import { StratumError } from "../errors.ts";
import { instructionKey } from "../scorer/instructions.ts";
import type { SavedScorer } from "../scorer/scorer-file.ts";
import { checkScorerFits } from "../scorer/scorer-fits.ts";
import type { EvalFlags, Loaded } from "./eval-measure.ts";
import type { FeatureRequest, ListsAndFeatures } from "./features.ts";

/** Lists with their states at the one layer that was asked for. */
export function loadedFrom({ lists, layers, leftOut, kernels }: ListsAndFeatures): Loaded {
  const clusters = lists.map(instructionKey);
  return { source: layers[0].source, clusters, lists, failed: leftOut.length, kernels: kernels.id };
}

/** What states the scorer takes; checked before any is computed. @throws {StratumError} `scorer/...`, `usage/layer` */
export async function requestOf(
  scorer: SavedScorer,
  files: ModelFiles,
  flags: Pick<EvalFlags, "layer" | "pooling" | "system" | "cache">,
): Promise<FeatureRequest> {
  const { layers, hiddenSize } = files.spec.config;
  const asked = flags.layer === undefined ? undefined : resolveLayer(flags.layer, layers);
  const layer = scorer.layer ?? asked;
  if (layer === undefined) {
    throw new StratumError(
      "usage/layer",
      "the scorer does not say which layer's states it takes: it was trained on given features",
      "give --layer",
    );
  }
  // A model that ends before the scorer's layer is another model, and its fingerprint says so.
  const identity = await fingerprint(files, Math.min(layer, layers));
  const pooling = flags.pooling ?? scorer.pooling ?? "last";
  checkScorerFits(scorer, {
    fingerprint: identity,
    name: files.name,
    dim: hiddenSize,
    layer: asked ?? layer,
    pooling,
  });
  resolveLayer(String(layer), layers);
  const system = scorer.base === null ? (flags.system ?? null) : scorer.system;
  if (flags.system !== undefined && flags.system !== system) {
    throw new StratumError(
      "scorer/system-mismatch",
      `the scorer was trained ${system === null ? "without a system message" : `with the system message ${JSON.stringify(system)}`}`,
      "leave --system out: the scorer's is used",
    );
  }
  return { layers: [layer], pooling, system: system ?? undefined, cache: flags.cache };
}
