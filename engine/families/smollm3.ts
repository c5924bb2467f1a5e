/** SmolLM3: Llama's block, every fourth layer without rotation. */
import { z } from "zod";
import { badValue, size } from "../../weights/config.ts";
import { entriesOf, type Family, GATED_NAMES, gatedBlock, ropeOf, sharedConfig, windowsOf } from "./family.ts";

/** https://github.com/huggingface/transformers (`models/smollm3/configuration_smollm3.py`) */
const DEFAULTS = {
  hidden: 2048,
  layers: 36,
  heads: 16,
  kvHeads: 4,
  headDim: null,
  ffn: 11008,
  vocab: 128_256,
  maxPositions: 32768,
  eps: 1e-6,
  theta: 2_000_000,
  activation: "silu",
  tied: true,
};

const Layers = z.object({
  /** 1: the layer turns, 0: it does not. */
  no_rope_layers: z.array(z.union([z.literal(0), z.literal(1)])).nullish(),
  no_rope_layer_interval: size(10_000).default(4),
});

export const smollm3: Family = {
  modelTypes: ["smollm3"],
  describe(source) {
    const entries = entriesOf(source, Layers);
    const { eps, ...shared } = sharedConfig(source, entries, DEFAULTS);
    const config = {
      ...shared,
      norm: { kind: "rms", eps, weightOffset: 0 },
      ropes: [ropeOf(source, entries, shared, DEFAULTS)],
    } as const;
    const { no_rope_layers: listed, no_rope_layer_interval: interval } = entries;
    if (listed != null && listed.length < config.layers) {
      throw badValue(source.path, `no_rope_layers names ${listed.length} layers of ${config.layers}`);
    }
    const turns = (i: number) => (listed == null ? (i + 1) % interval !== 0 : listed[i] === 1);
    const windowed = entries.use_sliding_window || entries.layer_types != null;
    const window = windowed ? (entries.sliding_window ?? null) : null;
    const windows = windowsOf(source, entries.layer_types, config.layers, window, (i) => !turns(i));
    const { attention_bias: bias, mlp_bias: mlpBias } = entries;
    return {
      config,
      ...GATED_NAMES,
      block: (i, prefix) =>
        gatedBlock(`${prefix}layers.${i}.`, config, {
          window: windows[i],
          rope: turns(i) ? 0 : null,
          qkvBias: bias,
          outBias: bias,
          mlpBias,
        }),
    };
  },
};
