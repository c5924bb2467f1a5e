/** GPT-2: learned positions, layer norms, biases everywhere, matrices stored as (K, N), a feed-forward part without gate. */
import { z } from "zod";
import { StratumError } from "../../errors.ts";
import { badValue, parseEntries, positions, size, tokenId, width } from "../../weights/config.ts";
import { activationOf, checkedHeads, type Family, matrix, norm, rowsOf, transposed } from "./family.ts";

/** https://github.com/huggingface/transformers (`models/gpt2/configuration_gpt2.py`) */
const Entries = z.object({
  n_embd: width.optional(),
  n_layer: size(10_000).optional(),
  n_head: size(65_536).optional(),
  n_inner: width.nullish(),
  n_positions: positions.default(1024),
  vocab_size: size(2 ** 28).optional(),
  layer_norm_epsilon: z.number().positive().max(1).default(1e-5),
  activation_function: z.string().default("gelu_new"),
  scale_attn_weights: z.boolean().default(true),
  scale_attn_by_inverse_layer_idx: z.boolean().default(false),
  add_cross_attention: z.boolean().default(false),
  tie_word_embeddings: z.boolean().default(true),
  torch_dtype: z.string().nullish(),
  dtype: z.string().nullish(),
  bos_token_id: tokenId.nullish(),
  eos_token_id: z.union([tokenId, z.array(tokenId)]).nullish(),
});

const DEFAULTS = { n_embd: 768, n_layer: 12, n_head: 12, vocab_size: 50257 };

/** Other names of the sizes. */
const NAMES = { n_embd: "hidden_size", n_layer: "num_hidden_layers", n_head: "num_attention_heads" } as const;

export const gpt2: Family = {
  modelTypes: ["gpt2"],
  describe({ path, modelType, entries: given, nested }) {
    const named = Object.entries(NAMES).filter(
      ([name, other]) => given[name] === undefined && given[other] !== undefined,
    );
    const entries = parseEntries(
      Entries,
      { ...given, ...Object.fromEntries(named.map(([name, other]) => [name, given[other]])) },
      "",
      path,
    );
    const required = (name: keyof typeof DEFAULTS): number => {
      const value = entries[name] ?? (nested ? DEFAULTS[name] : undefined);
      if (value !== undefined) return value;
      throw badValue(path, `${name} is missing`);
    };
    if (entries.add_cross_attention) {
      throw new StratumError(
        "config/unsupported-model",
        `${path}: add_cross_attention is true: this is the decoder of an encoder`,
        "use a decoder that stands alone",
      );
    }
    const d = required("n_embd");
    const heads = required("n_head");
    const ffn = entries.n_inner ?? 4 * d;
    const sizes = checkedHeads(path, { hiddenSize: d, heads, kvHeads: heads, headDim: null });
    return {
      config: {
        modelType,
        hiddenSize: d,
        layers: required("n_layer"),
        ...sizes,
        ffn,
        vocab: required("vocab_size"),
        maxPositions: entries.n_positions,
        norm: { kind: "layer", eps: entries.layer_norm_epsilon, weightOffset: 0 },
        activation: activationOf(path, "activation_function", entries.activation_function),
        softcap: null,
        embeddingScale: 1,
        ropes: [],
        tiedEmbeddings: entries.tie_word_embeddings,
        dtype: entries.dtype ?? entries.torch_dtype ?? null,
        bosId: entries.bos_token_id ?? null,
        eosId: entries.eos_token_id ?? null,
      },
      prefixes: ["transformer.", ""],
      embedding: "wte.weight",
      positions: "wpe.weight",
      block(i, prefix) {
        const at = `${prefix}h.${i}.`;
        const qkv = transposed(matrix(`${at}attn.c_attn`, 3 * d, d, true));
        const scale = entries.scale_attn_weights ? 1 / Math.sqrt(sizes.headDim) : 1;
        return {
          window: null,
          rope: null,
          attentionScale: entries.scale_attn_by_inverse_layer_idx ? scale / (i + 1) : scale,
          attentionNorm: norm(`${at}ln_1`, d, true),
          query: rowsOf(qkv, d, {}),
          key: rowsOf(qkv, d, { offset: d }),
          value: rowsOf(qkv, d, { offset: 2 * d }),
          queryNorm: null,
          keyNorm: null,
          attentionOut: transposed(matrix(`${at}attn.c_proj`, d, d, true)),
          attentionOutNorm: null,
          parallel: false,
          ffnNorm: norm(`${at}ln_2`, d, true),
          gate: null,
          up: transposed(matrix(`${at}mlp.c_fc`, ffn, d, true)),
          down: transposed(matrix(`${at}mlp.c_proj`, d, ffn, true)),
          ffnOutNorm: null,
        };
      },
    };
  },
};
