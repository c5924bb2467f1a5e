/** Qwen 3: heads of a size of their own, and a norm over every head's query and key. */
import { type Family, GATED_NAMES, gatedBlock, norm } from "./family.ts";
import { QWEN_DEFAULTS, readQwen } from "./qwen2.ts";

/** https://github.com/huggingface/transformers (`models/qwen3/configuration_qwen3.py`) */
const DEFAULTS = { ...QWEN_DEFAULTS, headDim: 128 };

export const qwen3: Family = {
  modelTypes: ["qwen3"],
  describe(source) {
    const { entries, config, windows } = readQwen(source, DEFAULTS);
    const bias = entries.attention_bias;
    return {
      config,
      ...GATED_NAMES,
      block(i, prefix) {
        const at = `${prefix}layers.${i}.`;
        return {
          ...gatedBlock(at, config, { window: windows[i], qkvBias: bias, outBias: bias }),
          queryNorm: norm(`${at}self_attn.q_norm`, config.headDim),
          keyNorm: norm(`${at}self_attn.k_norm`, config.headDim),
        };
      },
    };
  },
};
