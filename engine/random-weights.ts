/** A model whose weights learned nothing: the control beside every claim about what a layer knows. */
import { randomCheckpoint } from "../weights/random-checkpoint.ts";
import type { ModelFiles } from "./model-files.ts";

/**
 * The same architecture, tokenizer and template with random weights, for `loadModel`; no tensor of the real ones is read.
 * Disposing of it closes `files`. Its fingerprint is another for every seed.
 * @param seed equal seeds give equal weights
 */
export function randomWeights(files: ModelFiles, seed: number): ModelFiles {
  return { ...files, checkpoint: randomCheckpoint(files.checkpoint, seed) };
}
