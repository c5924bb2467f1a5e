import type { RopeConfig } from "./config.ts";

/**
 * Inverse frequencies of a rotary embedding in radians per position, (headDim / 2), in float64: pair i turns by
 * `position * frequency[i]`. `default` is theta^(-2i / headDim) (https://arxiv.org/abs/2104.09864); `linear` divides it by
 * the factor; `llama3` divides long wavelengths by the factor, keeps short ones, and blends between.
 *
 * As in transformers' `modeling_rope_utils.py`: `compute_default_rope_parameters`, `_compute_linear_scaling_rope_parameters`,
 * `_compute_llama3_parameters`.
 *
 * @param headDim even
 */
export function ropeFrequencies(rope: RopeConfig, headDim: number): Float64Array<ArrayBuffer> {
  return Float64Array.from({ length: headDim / 2 }, (_, i) => {
    const frequency = 1 / rope.theta ** ((2 * i) / headDim);
    if (rope.type === "default") return frequency;
    return rope.type === "linear" ? frequency / rope.factor : llama3Frequency(rope, frequency);
  });
}

function llama3Frequency(rope: Extract<RopeConfig, { type: "llama3" }>, frequency: number): number {
  const { factor, lowFreqFactor, highFreqFactor, originalMaxPositions } = rope;
  // How often the pair turns over the context that the model was first trained on.
  const turns = (originalMaxPositions * frequency) / (2 * Math.PI);
  if (turns < lowFreqFactor) return frequency / factor;
  if (turns > highFreqFactor) return frequency;
  const smooth = (turns - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
  return ((1 - smooth) * frequency) / factor + smooth * frequency;
}
