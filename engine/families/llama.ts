/** Llama 1 to 3.x and its kin: Vicuna, TinyLlama, SmolLM 1 and 2, Yi. */
import { z } from "zod";
import { entriesOf, type Family, GATED_NAMES, gatedBlock, ropeOf, sharedConfig } from "./family.ts";

/** https://github.com/huggingface/transformers (`models/llama/configuration_llama.py`) */
const DEFAULTS = {
  hidden: 4096,
  layers: 32,
  heads: 32,
  kvHeads: null,
  headDim: null,
  ffn: 11008,
  vocab: 32000,
  maxPositions: 2048,
  eps: 1e-6,
  theta: 10_000,
  activation: "silu",
  tied: false,
};

export const llama: Family = {
  modelTypes: ["llama"],
  describe(source) {
    const entries = entriesOf(source, z.object({}));
    const { eps, ...shared } = sharedConfig(source, entries, DEFAULTS);
    const config = {
      ...shared,
      norm: { kind: "rms", eps, weightOffset: 0 },
      ropes: [ropeOf(source, entries, shared, DEFAULTS)],
    } as const;
    const { attention_bias: bias, mlp_bias: mlpBias } = entries;
    return {
      config,
      ...GATED_NAMES,
      block: (i, prefix) => gatedBlock(`${prefix}layers.${i}.`, config, { qkvBias: bias, outBias: bias, mlpBias }),
    };
  },
};
