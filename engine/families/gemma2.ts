/**
 * Gemma 2: scaled embeddings, norms that store weight - 1, before and after both halves of a block, capped attention
 * scores, every other layer with a window.
 */
import { z } from "zod";
import { StratumError } from "../../errors.ts";
import { badValue, positive } from "../../weights/config.ts";
import type { BlockSpec, DecoderConfig } from "../decoder.ts";
import {
  activationOf,
  type Defaults,
  entriesOf,
  type Family,
  type FamilySource,
  GATED_NAMES,
  gatedBlock,
  norm,
  ropeOf,
  sharedConfig,
  windowsOf,
} from "./family.ts";

/** https://github.com/huggingface/transformers (`models/gemma2/configuration_gemma2.py`) */
const DEFAULTS: Defaults = {
  hidden: 2304,
  layers: 26,
  heads: 8,
  kvHeads: 4,
  headDim: 256,
  ffn: 9216,
  vocab: 256_000,
  maxPositions: 8192,
  eps: 1e-6,
  theta: 10_000,
  activation: "gelu_pytorch_tanh",
  tied: true,
};

const Gemma = z.object({
  query_pre_attn_scalar: positive.default(256),
  attn_logit_softcapping: positive.nullish(),
  use_bidirectional_attention: z.boolean().nullish(),
});

/**
 * What Gemma 2 and 3 have in common.
 * @param softcap of a file that says nothing
 * @throws {StratumError} `config/...`
 */
export function readGemma<T extends z.ZodRawShape>(
  source: FamilySource,
  defaults: Defaults,
  more: z.ZodObject<T>,
  softcap: number | null,
) {
  const entries = { ...entriesOf(source, Gemma), ...entriesOf(source, more) };
  if (entries.use_bidirectional_attention) {
    throw new StratumError(
      "config/unsupported-model",
      `${source.path}: use_bidirectional_attention is true: every token sees the later ones, as in an encoder`,
      "use a decoder",
    );
  }
  if (entries.sliding_window === null)
    throw badValue(source.path, "sliding_window is null; half of the layers need it");
  const { eps, ...shared } = sharedConfig(source, { ...entries, hidden_act: undefined }, defaults);
  const base = {
    ...shared,
    norm: { kind: "rms", eps, weightOffset: 1 },
    activation: activationOf(source.path, "hidden_activation", entries.hidden_activation ?? defaults.activation),
    softcap: entries.attn_logit_softcapping === undefined ? softcap : entries.attn_logit_softcapping,
    embeddingScale: Math.sqrt(shared.hiddenSize),
  } as const;
  const attentionScale = 1 / Math.sqrt(entries.query_pre_attn_scalar);
  const window = entries.sliding_window === undefined ? 4096 : entries.sliding_window;
  return { entries, base, attentionScale, window };
}

/** A block with norms before and after both halves. */
export function sandwichBlock(
  at: string,
  config: DecoderConfig,
  options: { readonly window: number | null; readonly rope: number; readonly bias: boolean; readonly scale: number },
): BlockSpec {
  const { window, rope, bias, scale } = options;
  return {
    ...gatedBlock(at, config, { window, rope, qkvBias: bias, outBias: bias }),
    attentionScale: scale,
    attentionOutNorm: norm(`${at}post_attention_layernorm`, config.hiddenSize),
    ffnNorm: norm(`${at}pre_feedforward_layernorm`, config.hiddenSize),
    ffnOutNorm: norm(`${at}post_feedforward_layernorm`, config.hiddenSize),
  };
}

export const gemma2: Family = {
  modelTypes: ["gemma2"],
  describe(source) {
    const { entries, base, attentionScale: scale, window } = readGemma(source, DEFAULTS, z.object({}), 50);
    const config = { ...base, ropes: [ropeOf(source, entries, base, DEFAULTS)] };
    const windows = windowsOf(source, entries.layer_types, config.layers, window, (i) => i % 2 === 0);
    const bias = entries.attention_bias;
    return {
      config,
      ...GATED_NAMES,
      block: (i, prefix) =>
        sandwichBlock(`${prefix}layers.${i}.`, config, { window: windows[i], rope: 0, bias, scale }),
    };
  },
};
