/** OLMo 2 and 3: no norm before a half of a block but one after it, norms over all heads' queries and keys together. */
import { z } from "zod";
import {
  entriesOf,
  type Family,
  GATED_NAMES,
  gatedBlock,
  norm,
  ropeOf,
  ropesByLayerType,
  sharedConfig,
  windowsOf,
} from "./family.ts";

/** https://github.com/huggingface/transformers (`models/olmo2/configuration_olmo2.py`, `models/olmo3/configuration_olmo3.py`) */
const DEFAULTS = {
  hidden: 4096,
  layers: 32,
  heads: 32,
  kvHeads: null,
  headDim: null,
  ffn: 11008,
  vocab: 50304,
  maxPositions: 2048,
  eps: 1e-5,
  theta: 10_000,
  activation: "silu",
  tied: false,
};
const OLMO3_THETA = 500_000;

export const olmo2: Family = {
  modelTypes: ["olmo2", "olmo3"],
  describe(source) {
    const entries = entriesOf(source, z.object({}));
    const { eps, ...shared } = sharedConfig(source, entries, DEFAULTS);
    const olmo3 = source.modelType === "olmo3";
    const theta = entries.rope_theta ?? OLMO3_THETA;
    const ropes = olmo3
      ? ropesByLayerType(source, entries, shared, { full: theta, sliding: theta })
      : [ropeOf(source, entries, shared, DEFAULTS)];
    const config = { ...shared, norm: { kind: "rms", eps, weightOffset: 0 }, ropes } as const;
    const window = entries.sliding_window === undefined ? 4096 : entries.sliding_window;
    const types = olmo3 ? entries.layer_types : null;
    const windows = windowsOf(source, types, config.layers, window, (i) => olmo3 && (i + 1) % 4 !== 0);
    const bias = entries.attention_bias;
    const { hiddenSize, heads, kvHeads, headDim } = config;
    return {
      config,
      ...GATED_NAMES,
      block(i, prefix) {
        const at = `${prefix}layers.${i}.`;
        const rope = windows[i] === null ? 0 : 1;
        return {
          ...gatedBlock(at, config, { window: windows[i], rope, qkvBias: bias, outBias: bias }),
          attentionNorm: null,
          queryNorm: norm(`${at}self_attn.q_norm`, heads * headDim),
          keyNorm: norm(`${at}self_attn.k_norm`, kvHeads * headDim),
          attentionOutNorm: norm(`${at}post_attention_layernorm`, hiddenSize),
          ffnNorm: null,
          ffnOutNorm: norm(`${at}post_feedforward_layernorm`, hiddenSize),
        };
      },
    };
  },
};
