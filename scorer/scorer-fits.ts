/** Whether a scorer was trained on states like those at hand. */
import { StratumError } from "../errors.ts";
import { show } from "../weights/json.ts";
import type { Pooling } from "./encode.ts";
import type { SavedScorer } from "./scorer-file.ts";

/** What the states at hand are. */
export interface StateOrigin {
  readonly fingerprint: string;
  /** The model's name, for messages. */
  readonly name?: string | undefined;
  /** D */
  readonly dim: number;
  readonly layer?: number | undefined;
  readonly pooling?: Pooling | undefined;
  /** The system message of the prompts. */
  readonly system?: string | undefined;
}

/**
 * Checks that a scorer was trained on states like those at hand. What either side does not know is not compared.
 * @throws {StratumError} `scorer/model-mismatch`, `scorer/layer-mismatch`, `scorer/width-mismatch`,
 *   `scorer/pooling-mismatch`, `scorer/system-mismatch`
 */
export function checkScorerFits(
  scorer: Pick<SavedScorer, "spec" | "base" | "layer" | "pooling"> & Partial<Pick<SavedScorer, "system">>,
  { fingerprint, name, dim, layer, pooling, system }: StateOrigin,
): void {
  // Fingerprints are taken down to a layer: another layer's would look like another model's.
  if (scorer.layer !== null && layer !== undefined && scorer.layer !== layer) {
    throw new StratumError(
      "scorer/layer-mismatch",
      `the scorer was trained on layer ${scorer.layer}; the states are of layer ${layer}`,
      `use --layer ${scorer.layer}, or train a scorer for layer ${layer}`,
    );
  }
  const { base } = scorer;
  if (base !== null && base.fingerprint !== fingerprint) {
    const model = name === undefined ? "this model" : `'${name}'`;
    throw new StratumError(
      "scorer/model-mismatch",
      `the scorer was trained on '${base.name}' (${base.fingerprint}); ${model} has the fingerprint ${fingerprint}`,
      `use --model with '${base.name}', or train a scorer for this model`,
    );
  }
  if (scorer.spec.dim !== dim) {
    throw new StratumError(
      "scorer/width-mismatch",
      `the scorer takes states ${scorer.spec.dim} wide; these are ${dim} wide`,
      "use the model that the scorer was trained on, or train a scorer for this one",
    );
  }
  if (scorer.pooling !== null && pooling !== undefined && scorer.pooling !== pooling) {
    throw new StratumError(
      "scorer/pooling-mismatch",
      `the scorer was trained with pooling '${scorer.pooling}'; the states have pooling '${pooling}'`,
      `use --pooling ${scorer.pooling}, or train a scorer with --pooling ${pooling}`,
    );
  }
  if (system !== undefined && scorer.base !== null && scorer.system !== undefined && scorer.system !== system) {
    throw new StratumError(
      "scorer/system-mismatch",
      `the scorer was trained with ${scorer.system === null ? "no system message" : `the system message ${show(scorer.system)}`}; asked for is ${show(system)}`,
      "leave out --system, or train a scorer with this one",
    );
  }
}
