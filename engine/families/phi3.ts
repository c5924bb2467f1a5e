/** Phi-3, Phi-3.5 and Phi-4(-mini): Llama's block with queries, keys and values in one tensor, gate and up in another. */
import { z } from "zod";
import { entriesOf, type Family, GATED_NAMES, gatedBlock, matrix, ropeOf, rowsOf, sharedConfig } from "./family.ts";

/** https://github.com/huggingface/transformers (`models/phi3/configuration_phi3.py`) */
const DEFAULTS = {
  hidden: 3072,
  layers: 32,
  heads: 32,
  kvHeads: null,
  headDim: null,
  ffn: 8192,
  vocab: 32064,
  maxPositions: 4096,
  eps: 1e-5,
  theta: 10_000,
  activation: "silu",
  tied: false,
  partial: 1,
  originalMaxPositions: 4096,
  /** What the first files of this family call it. */
  aliases: { su: "longrope", yarn: "longrope" },
} as const;

export const phi3: Family = {
  modelTypes: ["phi3"],
  describe(source) {
    const entries = entriesOf(source, z.object({}));
    const { eps, ...shared } = sharedConfig(source, entries, DEFAULTS);
    const config = {
      ...shared,
      norm: { kind: "rms", eps, weightOffset: 0 },
      ropes: [ropeOf(source, entries, shared, DEFAULTS)],
    } as const;
    const { hiddenSize, heads, kvHeads, headDim, ffn } = config;
    const [query, key] = [heads * headDim, kvHeads * headDim];
    return {
      config,
      ...GATED_NAMES,
      block(i, prefix) {
        const at = `${prefix}layers.${i}.`;
        const qkv = matrix(`${at}self_attn.qkv_proj`, query + 2 * key, hiddenSize);
        const gateUp = matrix(`${at}mlp.gate_up_proj`, 2 * ffn, hiddenSize);
        return {
          ...gatedBlock(at, config, { window: entries.sliding_window ?? null }),
          query: rowsOf(qkv, query, {}),
          key: rowsOf(qkv, key, { offset: query }),
          value: rowsOf(qkv, key, { offset: query + key }),
          gate: rowsOf(gateUp, ffn, {}),
          up: rowsOf(gateUp, ffn, { offset: ffn }),
        };
      },
    };
  },
};
