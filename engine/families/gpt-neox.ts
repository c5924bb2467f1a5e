/**
 * GPT-NeoX and Pythia: layer norms, biases, a part of every head turns, query, key and value of a head beside each other
 * in one tensor, and (usually) both halves of a block beside each other.
 */
import { z } from "zod";
import { positive } from "../../weights/config.ts";
import { entriesOf, type Family, matrix, norm, ropeOf, rowsOf, sharedConfig } from "./family.ts";

/** https://github.com/huggingface/transformers (`models/gpt_neox/configuration_gpt_neox.py`) */
const DEFAULTS = {
  hidden: 6144,
  layers: 44,
  heads: 64,
  kvHeads: null,
  headDim: null,
  ffn: 24576,
  vocab: 50432,
  maxPositions: 2048,
  eps: 1e-5,
  theta: 10_000,
  activation: "gelu",
  tied: false,
};

const Neox = z.object({
  layer_norm_eps: z.number().positive().max(1).default(DEFAULTS.eps),
  attention_bias: z.boolean().default(true),
  use_parallel_residual: z.boolean().default(true),
  rotary_pct: z.number().positive().max(1).nullish(),
  rotary_emb_base: positive.nullish(),
});

export const gptNeox: Family = {
  modelTypes: ["gpt_neox"],
  describe(source) {
    const entries = entriesOf(source, Neox);
    const { eps: _, ...shared } = sharedConfig(
      source,
      { ...entries, num_key_value_heads: null, head_dim: null },
      DEFAULTS,
    );
    const rope = ropeOf(
      source,
      { ...entries, rope_theta: entries.rotary_emb_base, partial_rotary_factor: null },
      shared,
      { ...DEFAULTS, partial: entries.rotary_pct ?? 0.25 },
    );
    const { hiddenSize: d, headDim, ffn } = shared;
    const bias = entries.attention_bias;
    return {
      config: { ...shared, norm: { kind: "layer", eps: entries.layer_norm_eps, weightOffset: 0 }, ropes: [rope] },
      prefixes: ["gpt_neox.", ""],
      embedding: "embed_in.weight",
      positions: null,
      block(i, prefix) {
        const at = `${prefix}layers.${i}.`;
        const qkv = matrix(`${at}attention.query_key_value`, 3 * d, d, bias);
        const part = (index: number) => rowsOf(qkv, d, { offset: index * headDim, run: headDim, stride: 3 * headDim });
        return {
          window: null,
          rope: 0,
          attentionScale: 1 / Math.sqrt(headDim),
          attentionNorm: norm(`${at}input_layernorm`, d, true),
          query: part(0),
          key: part(1),
          value: part(2),
          queryNorm: null,
          keyNorm: null,
          attentionOut: matrix(`${at}attention.dense`, d, d, bias),
          attentionOutNorm: null,
          parallel: entries.use_parallel_residual,
          ffnNorm: norm(`${at}post_attention_layernorm`, d, true),
          gate: null,
          up: matrix(`${at}mlp.dense_h_to_4h`, ffn, d, true),
          down: matrix(`${at}mlp.dense_4h_to_h`, d, ffn, true),
          ffnOutNorm: null,
        };
      },
    };
  },
};
