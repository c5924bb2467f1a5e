/** Qwen 2 and 2.5: Llama's block with biases on queries, keys and values, and a window in the upper layers. */
import { z } from "zod";
import { size } from "../../weights/config.ts";
import {
  type Defaults,
  entriesOf,
  type Family,
  type FamilySource,
  GATED_NAMES,
  gatedBlock,
  ropeOf,
  sharedConfig,
  windowsOf,
} from "./family.ts";

/** https://github.com/huggingface/transformers (`models/qwen2/configuration_qwen2.py`) */
export const QWEN_DEFAULTS: Defaults = {
  hidden: 4096,
  layers: 32,
  heads: 32,
  kvHeads: 32,
  headDim: null,
  ffn: 22016,
  vocab: 151_936,
  maxPositions: 32768,
  eps: 1e-6,
  theta: 10_000,
  activation: "silu",
  tied: false,
};

const Windows = z.object({ max_window_layers: size(10_000).or(z.literal(0)).default(28) });

/** The entries of a Qwen, and the window of each layer. @throws {StratumError} `config/...` */
export function readQwen(source: FamilySource, defaults: Defaults) {
  const entries = entriesOf(source, Windows);
  const { eps, ...shared } = sharedConfig(source, entries, defaults);
  const config = {
    ...shared,
    norm: { kind: "rms", eps, weightOffset: 0 },
    ropes: [ropeOf(source, entries, shared, defaults)],
  } as const;
  const given = entries.sliding_window === undefined ? 4096 : entries.sliding_window;
  const window = entries.use_sliding_window ? given : null;
  const upper = (i: number) => i >= entries.max_window_layers;
  return { entries, config, windows: windowsOf(source, entries.layer_types, shared.layers, window, upper) };
}

export const qwen2: Family = {
  modelTypes: ["qwen2"],
  describe(source) {
    const { config, windows } = readQwen(source, QWEN_DEFAULTS);
    return {
      config,
      ...GATED_NAMES,
      block: (i, prefix) => gatedBlock(`${prefix}layers.${i}.`, config, { window: windows[i], qkvBias: true }),
    };
  },
};
