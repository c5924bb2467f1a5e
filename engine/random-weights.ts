/** A model whose weights learned nothing: the control beside every claim about what a layer knows. */

import { StratumError } from "../errors.ts";
import type { ConfigFile } from "../weights/config.ts";
import { declaredCheckpoint } from "../weights/declared-checkpoint.ts";
import type { FloatDtype } from "../weights/floats.ts";
import { randomCheckpoint } from "../weights/random-checkpoint.ts";
import { MATRIX_ROLES, NORM_ROLES, type WeightForm } from "./decoder.ts";
import type { Architecture } from "./families/family.ts";
import { describeModel, modelSpec } from "./family.ts";
import type { ModelFiles } from "./model-files.ts";

/**
 * The same architecture, tokenizer and template with random weights, for `loadModel`; no tensor of the real ones is read.
 * Disposing of it closes `files`. Its fingerprint is another for every seed.
 * @param seed equal seeds give equal weights
 */
export function randomWeights(files: ModelFiles, seed: number): ModelFiles {
  return { ...files, checkpoint: randomCheckpoint(files.checkpoint, seed) };
}

export interface RandomModelOptions {
  /** The type that the tensors are "stored" in; default BF16. */
  readonly dtype?: FloatDtype;
  /** In what form the matrices will be held; default `stored`. */
  readonly weights?: WeightForm;
  /** Equal seeds give equal weights; default 1. */
  readonly seed?: number;
}

/**
 * A model of a configuration alone, with random weights that exist nowhere on disk: what `loadModel` reads of it is drawn
 * then. It has no tokenizer and no template.
 * @throws {StratumError} `config/...`
 */
export function randomModel(config: ConfigFile, options: RandomModelOptions = {}): ModelFiles {
  const { dtype = "BF16", weights = "stored", seed = 1 } = options;
  const architecture = describeModel(config);
  const checkpoint = randomCheckpoint(declaredCheckpoint(config.path, tensorShapes(architecture), dtype), seed);
  return {
    directory: config.path,
    name: `${config.path} (random ${dtype.toLowerCase()} weights, seed ${seed})`,
    pinned: false,
    checkpoint,
    spec: modelSpec(architecture, checkpoint, weights),
    async tokenizer() {
      throw new StratumError(
        "tokenizer/missing",
        `${config.path} is a configuration with random weights: it has no tokenizer`,
        "give token ids, or use a model's folder",
      );
    },
    template: async () => null,
    [Symbol.asyncDispose]: () => checkpoint.close(),
  };
}

/** The tensors that an architecture's blocks and embeddings need, and their shapes. */
function tensorShapes({ config, prefixes, embedding, positions, block }: Architecture): Map<string, readonly number[]> {
  const prefix = prefixes[0] ?? "";
  const shapes = new Map<string, readonly number[]>([[prefix + embedding, [config.vocab, config.hiddenSize]]]);
  if (positions !== null) shapes.set(prefix + positions, [config.maxPositions, config.hiddenSize]);
  for (let i = 0; i < config.layers; i++) {
    const spec = block(i, prefix);
    for (const role of NORM_ROLES) {
      const norm = spec[role];
      if (norm === null) continue;
      shapes.set(norm.weight, [norm.size]);
      if (norm.bias !== null) shapes.set(norm.bias, [norm.size]);
    }
    for (const role of MATRIX_ROLES) {
      const matrix = spec[role];
      if (matrix === null) continue;
      shapes.set(matrix.weight, matrix.shape);
      if (matrix.bias !== null) shapes.set(matrix.bias, [matrix.shape[matrix.transposed ? 1 : 0]]);
    }
  }
  return shapes;
}
