/** Mistral: Llama's block with a window of keys. Ministral, and a Mistral with `layer_types`, names the layers that have it. */
import { z } from "zod";
import { badValue } from "../../weights/config.ts";
import { entriesOf, type Family, GATED_NAMES, gatedBlock, ropeOf, sharedConfig, windowsOf } from "./family.ts";

/** https://github.com/huggingface/transformers (`models/mistral/configuration_mistral.py`) */
const DEFAULTS = {
  hidden: 4096,
  layers: 32,
  heads: 32,
  kvHeads: 8,
  headDim: null,
  ffn: 14336,
  vocab: 32000,
  maxPositions: 131_072,
  eps: 1e-6,
  theta: 10_000,
  activation: "silu",
  tied: false,
};

/** What an absent `sliding_window` means; null means none. */
const WINDOW = 4096;

export const mistral: Family = {
  modelTypes: ["mistral", "ministral"],
  describe(source) {
    const entries = entriesOf(source, z.object({}));
    const { path, modelType } = source;
    if (entries.attention_bias || entries.mlp_bias) {
      throw badValue(path, `attention_bias or mlp_bias is true; models of type ${modelType} have no biases`);
    }
    const { eps, ...shared } = sharedConfig(source, entries, DEFAULTS);
    const config = {
      ...shared,
      norm: { kind: "rms", eps, weightOffset: 0 },
      ropes: [ropeOf(source, entries, shared, DEFAULTS)],
    } as const;
    const window = entries.sliding_window === undefined ? WINDOW : entries.sliding_window;
    const windows = windowsOf(source, entries.layer_types, shared.layers, window, () => true);
    return {
      config,
      ...GATED_NAMES,
      block: (i, prefix) => gatedBlock(`${prefix}layers.${i}.`, config, { window: windows[i] }),
    };
  },
};
