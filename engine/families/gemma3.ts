/** Gemma 3, text: Gemma 2's block with norms over every head's query and key, five layers with a window to one without. */
import { z } from "zod";
import { positive, size } from "../../weights/config.ts";
import { type Defaults, type Family, GATED_NAMES, norm, ropesByLayerType, windowsOf } from "./family.ts";
import { readGemma, sandwichBlock } from "./gemma2.ts";

/** https://github.com/huggingface/transformers (`models/gemma3/configuration_gemma3.py`) */
const DEFAULTS: Defaults = {
  hidden: 2304,
  layers: 26,
  heads: 8,
  kvHeads: 4,
  headDim: 256,
  ffn: 9216,
  vocab: 262_208,
  maxPositions: 131_072,
  eps: 1e-6,
  theta: 1_000_000,
  activation: "gelu_pytorch_tanh",
  tied: true,
};
const LOCAL_THETA = 10_000;

const Layers = z.object({
  sliding_window_pattern: size(10_000).nullish(),
  rope_local_base_freq: positive.nullish(),
});

export const gemma3: Family = {
  modelTypes: ["gemma3_text"],
  describe(source) {
    const { entries, base, attentionScale: scale, window } = readGemma(source, DEFAULTS, Layers, null);
    const ropes = ropesByLayerType(source, entries, base, {
      full: entries.rope_theta ?? DEFAULTS.theta,
      sliding: entries.rope_local_base_freq ?? LOCAL_THETA,
    });
    // The entry attn_logit_softcapping exists in this family, and nothing reads it.
    const config = { ...base, softcap: null, ropes };
    const pattern = entries.sliding_window_pattern ?? 6;
    const local = (i: number) => (i + 1) % pattern !== 0;
    const windows = windowsOf(source, entries.layer_types, config.layers, window, local);
    const bias = entries.attention_bias;
    return {
      config,
      ...GATED_NAMES,
      block(i, prefix) {
        const at = `${prefix}layers.${i}.`;
        const rope = windows[i] === null ? 0 : 1;
        return {
          ...sandwichBlock(at, config, { window: windows[i], rope, bias, scale }),
          queryNorm: norm(`${at}self_attn.q_norm`, config.headDim),
          keyNorm: norm(`${at}self_attn.k_norm`, config.headDim),
        };
      },
    };
  },
};
