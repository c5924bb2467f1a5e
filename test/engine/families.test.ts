/** What each family reads out of config.json: transformers' defaults, structure, and what is refused by name. */
import { describe, expect, it } from "vitest";
import { type BlockSpec, MATRIX_ROLES } from "../../engine/decoder.ts";
import { parseModelConfig } from "../../engine/family.ts";
import { failing } from "../support/failing.ts";

/** Llama 3.1 8B, as transformers 4 spells it. */
const V4 = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  attention_bias: false,
  bos_token_id: 128000,
  eos_token_id: [128001, 128008, 128009],
  hidden_act: "silu",
  hidden_size: 4096,
  intermediate_size: 14336,
  max_position_embeddings: 131072,
  mlp_bias: false,
  num_attention_heads: 32,
  num_hidden_layers: 32,
  num_key_value_heads: 8,
  pretraining_tp: 2,
  rms_norm_eps: 1e-5,
  rope_scaling: {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 8192,
    rope_type: "llama3",
  },
  rope_theta: 500000.0,
  tie_word_embeddings: false,
  torch_dtype: "bfloat16",
  vocab_size: 128256,
};

/** The same model, as transformers 5 spells it. */
const { rope_scaling, rope_theta, torch_dtype, ...SHARED } = V4;
const V5 = { ...SHARED, dtype: torch_dtype, rope_parameters: { ...rope_scaling, rope_theta } };

/** Nothing but what has no default. */
const BARE = {
  hidden_size: 512,
  num_hidden_layers: 8,
  num_attention_heads: 32,
  intermediate_size: 128,
  vocab_size: 100,
};
const GPT2 = { n_embd: 512, n_layer: 8, n_head: 32, vocab_size: 100 };

const describeOf = (config: object) => parseModelConfig(config, "m/config.json");
const parse = (config: object) => describeOf(config).config;
const of = (model_type: string, changes: object = {}) => ({
  ...(model_type === "gpt2" ? GPT2 : BARE),
  model_type,
  ...changes,
});
const blocksOf = (model_type: string, changes: object = {}): BlockSpec[] => {
  const { config, block } = describeOf(of(model_type, changes));
  return Array.from({ length: config.layers }, (_, i) => block(i, ""));
};
const windows = (model_type: string, changes: object = {}) => blocksOf(model_type, changes).map(({ window }) => window);
const biases = (model_type: string, changes: object = {}) =>
  MATRIX_ROLES.filter((role) => blocksOf(model_type, changes)[0]?.[role]?.bias != null);
const ropeOf = (model_type: string, changes: object = {}) => parse(of(model_type, changes)).ropes[0];

const turn = (theta: number, dims = 16) => ({ type: "default", theta, dims });

/** What {@link BARE} says, and most families' defaults. */
const DECODER = {
  hiddenSize: 512,
  layers: 8,
  heads: 32,
  kvHeads: 32,
  headDim: 16,
  ffn: 128,
  vocab: 100,
  norm: { kind: "rms", eps: 1e-6, weightOffset: 0 },
  activation: "silu",
  softcap: null,
  embeddingScale: 1,
  ropes: [turn(10_000)],
  tiedEmbeddings: false,
  dtype: null,
  bosId: null,
  eosId: null,
};
const GEMMA = {
  kvHeads: 4,
  headDim: 256,
  norm: { kind: "rms", eps: 1e-6, weightOffset: 1 },
  activation: "geluTanh",
  embeddingScale: Math.sqrt(512),
  tiedEmbeddings: true,
};
const layerNorm = { norm: { kind: "layer", eps: 1e-5, weightOffset: 0 } };
const eps5 = { norm: { ...DECODER.norm, eps: 1e-5 } };

describe("defaults are those of transformers", () => {
  it.each<readonly [string, object]>([
    ["llama", { maxPositions: 2048 }],
    ["mistral", { maxPositions: 131072, kvHeads: 8 }],
    ["ministral", { maxPositions: 131072, kvHeads: 8 }],
    ["qwen2", { maxPositions: 32768 }],
    ["qwen3", { maxPositions: 32768, headDim: 128, ropes: [turn(10_000, 128)] }],
    ["gemma2", { ...GEMMA, maxPositions: 8192, softcap: 50, ropes: [turn(10_000, 256)] }],
    ["gemma3_text", { ...GEMMA, maxPositions: 131072, ropes: [turn(1e6, 256), turn(10_000, 256)] }],
    ["phi3", { ...eps5, maxPositions: 4096 }],
    ["gpt2", { ...layerNorm, maxPositions: 1024, ffn: 2048, activation: "geluTanh", ropes: [], tiedEmbeddings: true }],
    ["gpt_neox", { ...layerNorm, maxPositions: 2048, activation: "gelu", ropes: [turn(10_000, 4)] }],
    ["olmo2", { ...eps5, maxPositions: 2048 }],
    ["olmo3", { ...eps5, maxPositions: 2048, ropes: [turn(5e5), turn(5e5)] }],
    ["smollm3", { maxPositions: 32768, kvHeads: 4, ropes: [turn(2e6)], tiedEmbeddings: true }],
  ])("of %s", (model_type, expected) => {
    expect(parse(of(model_type))).toEqual({ ...DECODER, modelType: model_type, ...expected });
  });

  it.each<readonly [string, object]>([
    ["llama", { hiddenSize: 4096, layers: 32, heads: 32, kvHeads: 32, headDim: 128, ffn: 11008, vocab: 32000 }],
    ["mistral", { hiddenSize: 4096, layers: 32, heads: 32, kvHeads: 8, headDim: 128, ffn: 14336, vocab: 32000 }],
    ["qwen2", { hiddenSize: 4096, layers: 32, heads: 32, kvHeads: 32, headDim: 128, ffn: 22016, vocab: 151936 }],
    ["qwen3", { hiddenSize: 4096, layers: 32, heads: 32, kvHeads: 32, headDim: 128, ffn: 22016, vocab: 151936 }],
    ["gemma2", { hiddenSize: 2304, layers: 26, heads: 8, kvHeads: 4, headDim: 256, ffn: 9216, vocab: 256000 }],
    ["gemma3_text", { hiddenSize: 2304, layers: 26, heads: 8, kvHeads: 4, headDim: 256, ffn: 9216, vocab: 262208 }],
    ["phi3", { hiddenSize: 3072, layers: 32, heads: 32, kvHeads: 32, headDim: 96, ffn: 8192, vocab: 32064 }],
    ["gpt2", { hiddenSize: 768, layers: 12, heads: 12, kvHeads: 12, headDim: 64, ffn: 3072, vocab: 50257 }],
    ["gpt_neox", { hiddenSize: 6144, layers: 44, heads: 64, kvHeads: 64, headDim: 96, ffn: 24576, vocab: 50432 }],
    ["olmo2", { hiddenSize: 4096, layers: 32, heads: 32, kvHeads: 32, headDim: 128, ffn: 11008, vocab: 50304 }],
    ["smollm3", { hiddenSize: 2048, layers: 36, heads: 16, kvHeads: 4, headDim: 128, ffn: 11008, vocab: 128256 }],
  ])("sizes that the text part of a wrapper leaves out: %s", (model_type, expected) => {
    expect(parse({ model_type: "some_wrapper", text_config: { model_type } })).toMatchObject(expected);
    expect(() => parse({ model_type })).toThrow(failing("config/bad-value", "is missing"));
  });

  it("of key-value heads and heads: absent is the family's, null is as many as heads", () => {
    expect(parse(of("mistral", { num_key_value_heads: null })).kvHeads).toBe(32);
    expect(parse(of("smollm3", { num_key_value_heads: null })).kvHeads).toBe(32);
    expect(parse(of("qwen2", { num_attention_heads: 64, head_dim: null })).kvHeads).toBe(32);
    expect(() => parse(of("mistral", { num_attention_heads: 4 }))).toThrow(
      failing("config/bad-value", "num_attention_heads 4", "num_key_value_heads 8"),
    );
    for (const type of ["llama", "qwen2", "phi3"]) expect(parse(of(type, { head_dim: 32 })).headDim).toBe(32);
    expect(parse(of("llama", { head_dim: 32, num_attention_heads: 3 })).headDim).toBe(32);
    expect(parse(of("llama", { head_dim: null })).headDim).toBe(16);
  });
});

describe("the two spellings of transformers", () => {
  it("mean the same", () => {
    const expected = {
      ...DECODER,
      modelType: "llama",
      hiddenSize: 4096,
      layers: 32,
      kvHeads: 8,
      headDim: 128,
      ffn: 14336,
      vocab: 128256,
      maxPositions: 131072,
      norm: { kind: "rms", eps: 1e-5, weightOffset: 0 },
      ropes: [
        {
          ...turn(500000, 128),
          type: "llama3",
          factor: 8,
          lowFreqFactor: 1,
          highFreqFactor: 4,
          originalMaxPositions: 8192,
        },
      ],
      dtype: "bfloat16",
      bosId: 128000,
      eosId: [128001, 128008, 128009],
    };
    expect(parse(V4)).toEqual(expected);
    expect(parse(V5)).toEqual(expected);
    expect(parse({ ...V4, original_max_position_embeddings: 8192 })).toEqual(expected);
    expect(() => parse({ ...V4, original_max_position_embeddings: 4096 })).toThrow(
      failing("config/bad-value", "4096", "8192"),
    );
  });

  it("which rotary entries go first, and null for none", () => {
    const linear = { ...turn(5e5), type: "linear", factor: 2 };
    expect(ropeOf("llama", { rope_scaling: { type: "linear", factor: 2 }, rope_theta: 5e5 })).toEqual(linear);
    expect(ropeOf("llama", { rope_scaling: null, rope_theta: 7 })).toEqual(turn(7));
    expect(ropeOf("llama", { rope_scaling: {}, rope_parameters: { rope_theta: 8 } })).toEqual(turn(8));
    const nested = { rope_type: "default", rope_theta: 9 };
    expect(ropeOf("llama", { rope_parameters: nested, rope_theta: 10 })).toEqual(turn(9));
    expect(ropeOf("llama", { rope_parameters: { rope_type: "default" }, rope_theta: 10 })).toEqual(turn(10));
  });

  it("of two rotary embeddings, one for layers with a window", () => {
    const linear = { rope_type: "linear", factor: 8 };
    const ropes = [{ ...turn(2e6, 256), type: "linear", factor: 8 }, turn(3e4, 256)];
    const old = { rope_theta: 2e6, rope_local_base_freq: 3e4, rope_scaling: linear };
    expect(parse(of("gemma3_text", old)).ropes).toEqual(ropes);
    const full_attention = { ...linear, rope_theta: 2e6 };
    const rope_parameters = { full_attention, sliding_attention: { rope_type: "default", rope_theta: 3e4 } };
    expect(parse(of("gemma3_text", { rope_parameters })).ropes).toEqual(ropes);
    const partly = { rope_parameters: { full_attention } };
    expect(parse(of("gemma3_text", partly)).ropes).toEqual([ropes[0], turn(1e4, 256)]);
    expect(parse(of("olmo3", { rope_scaling: linear })).ropes).toEqual([
      { ...turn(5e5), type: "linear", factor: 8 },
      turn(5e5),
    ]);
    const { rope_type: type, ...rest } = linear;
    for (const model_type of ["gemma3_text", "olmo3"]) {
      expect(() => parse(of(model_type, { rope_scaling: { type, ...rest } }))).toThrow(
        failing("config/bad-value", 'rope_scaling has type "linear" and no rope_type'),
      );
      expect(parse(of(model_type, { rope_scaling: { type, ...linear } })).ropes[0]).toMatchObject({ type, factor: 8 });
      expect(parse(of(model_type, { rope_scaling: { type: "default" } })).ropes[0]).toMatchObject({ type: "default" });
    }
  });

  it("of a part of the head that turns", () => {
    expect(ropeOf("gpt_neox", { rotary_pct: 0.5, rotary_emb_base: 7 })).toEqual(turn(7, 8));
    expect(ropeOf("gpt_neox", { rope_parameters: { partial_rotary_factor: 0.5, rope_theta: 7 } })).toEqual(turn(7, 8));
    // Entries that this family does not read.
    expect(ropeOf("gpt_neox", { partial_rotary_factor: 1, rope_theta: 7 })).toEqual(turn(10_000, 4));
    expect(ropeOf("phi3", { partial_rotary_factor: 0.75 })).toEqual(turn(10_000, 12));
    for (const where of [{ partial_rotary_factor: 0.5 }, { rope_parameters: { partial_rotary_factor: 0.5 } }])
      for (const type of ["llama", "qwen3", "olmo2"])
        expect(() => ropeOf(type, where)).toThrow(failing("config/unsupported-rope", "partial_rotary_factor is 0.5"));
    expect(ropeOf("llama", { partial_rotary_factor: 1.0 })?.type).toBe("default");
  });

  it("of longrope in phi3: its older names, and 4096 tokens wherever no entry beside it says other", () => {
    const factors = { short_factor: Array(8).fill(1), long_factor: Array(8).fill(2) };
    for (const type of ["su", "yarn", "longrope"]) {
      const rope = { ...factors, type, original_max_position_embeddings: 9000 };
      expect(ropeOf("phi3", { rope_scaling: rope })).toMatchObject({ type: "longrope", originalMaxPositions: 4096 });
      const beside = { original_max_position_embeddings: 512, rope_scaling: rope };
      expect(ropeOf("phi3", beside)).toMatchObject({ originalMaxPositions: 512 });
    }
    expect(() => ropeOf("llama", { rope_scaling: { ...factors, type: "su" } })).toThrow(
      failing("config/unsupported-rope", '"su"'),
    );
  });
});

describe("blocks", () => {
  const [f, w] = [null, 7];
  const types = (letters: string) => [...letters].map((at) => (at === "f" ? "full_attention" : "sliding_attention"));
  it.each<readonly [string, object, readonly (number | null)[]]>([
    ["llama", { sliding_window: 7 }, Array(8).fill(f)],
    ["olmo2", { sliding_window: 7 }, Array(8).fill(f)],
    ["mistral", { sliding_window: 7 }, Array(8).fill(w)],
    ["mistral", {}, Array(8).fill(4096)],
    ["mistral", { sliding_window: null }, Array(8).fill(f)],
    // transformers takes a Mistral with layer_types for a Ministral.
    ["mistral", { sliding_window: 7, layer_types: types("fsfsfsff") }, [f, w, f, w, f, w, f, f]],
    ["mistral", { sliding_window: 7, layer_types: null }, Array(8).fill(w)],
    ["ministral", { sliding_window: 7, layer_types: types("fsfsfsff") }, [f, w, f, w, f, w, f, f]],
    ["phi3", {}, Array(8).fill(f)],
    ["phi3", { sliding_window: 7 }, Array(8).fill(w)],
    ["qwen2", { sliding_window: 7 }, Array(8).fill(f)],
    ["qwen2", { sliding_window: 7, use_sliding_window: true }, Array(8).fill(f)],
    ["qwen2", { sliding_window: 7, use_sliding_window: true, max_window_layers: 6 }, [f, f, f, f, f, f, w, w]],
    ["qwen3", { use_sliding_window: true, max_window_layers: 0 }, Array(8).fill(4096)],
    [
      "qwen3",
      { sliding_window: 7, use_sliding_window: true, layer_types: types("sfffffff") },
      [w, f, f, f, f, f, f, f],
    ],
    ["gemma2", { sliding_window: 7 }, [w, f, w, f, w, f, w, f]],
    ["gemma2", { sliding_window: 7, layer_types: types("ffsssfff") }, [f, f, w, w, w, f, f, f]],
    ["gemma3_text", { sliding_window: 7 }, [w, w, w, w, w, f, w, w]],
    ["gemma3_text", { sliding_window: 7, sliding_window_pattern: 2 }, [w, f, w, f, w, f, w, f]],
    ["olmo3", { sliding_window: 7 }, [w, w, w, f, w, w, w, f]],
    ["smollm3", { sliding_window: 7 }, Array(8).fill(f)],
    ["smollm3", { sliding_window: 7, use_sliding_window: true }, [f, f, f, w, f, f, f, w]],
    ["gpt_neox", { sliding_window: 7 }, Array(8).fill(f)],
    ["gpt2", {}, Array(8).fill(f)],
  ])("windows of %s with %j", (model_type, changes, expected) => {
    expect(windows(model_type, changes)).toEqual(expected);
  });

  it("which rotary embedding turns them", () => {
    const ropes = (type: string, changes = {}) => blocksOf(type, changes).map(({ rope }) => rope);
    expect(ropes("gemma3_text")).toEqual([1, 1, 1, 1, 1, 0, 1, 1]);
    expect(ropes("olmo3")).toEqual([1, 1, 1, 0, 1, 1, 1, 0]);
    expect(ropes("smollm3")).toEqual([0, 0, 0, null, 0, 0, 0, null]);
    expect(ropes("smollm3", { no_rope_layer_interval: 2 })).toEqual([0, null, 0, null, 0, null, 0, null]);
    expect(ropes("smollm3", { no_rope_layers: [1, 0, 0, 1, 1, 1, 1, 0] })).toEqual([0, null, null, 0, 0, 0, 0, null]);
    expect(ropes("gpt2")).toEqual(Array(8).fill(null));
    for (const type of ["llama", "gemma2", "gpt_neox", "olmo2"]) expect(ropes(type)).toEqual(Array(8).fill(0));
  });

  it("which matrices have biases", () => {
    const qkv = ["query", "key", "value"];
    const both = { attention_bias: true, mlp_bias: true };
    expect(biases("llama")).toEqual([]);
    expect(biases("llama", { attention_bias: true })).toEqual([...qkv, "attentionOut"]);
    expect(biases("llama", both)).toEqual(MATRIX_ROLES);
    expect(biases("smollm3", both)).toEqual(MATRIX_ROLES);
    expect(biases("qwen2", { attention_bias: false })).toEqual(qkv);
    for (const type of ["qwen3", "gemma2", "gemma3_text", "olmo2", "olmo3"]) {
      expect(biases(type)).toEqual([]);
      expect(biases(type, both)).toEqual([...qkv, "attentionOut"]);
    }
    expect(biases("phi3", both)).toEqual([]);
    expect(biases("gpt2")).toEqual([...qkv, "attentionOut", "up", "down"]);
    expect(biases("gpt_neox")).toEqual([...qkv, "attentionOut", "up", "down"]);
    expect(biases("gpt_neox", { attention_bias: false })).toEqual(["up", "down"]);
    for (const key of ["attention_bias", "mlp_bias"])
      expect(() => biases("mistral", { [key]: true })).toThrow(failing("config/bad-value", key, "mistral"));
  });

  it("the factor and the cap of attention scores", () => {
    const scales = (type: string, changes = {}) => blocksOf(type, changes).map(({ attentionScale }) => attentionScale);
    expect(scales("llama")).toEqual(Array(8).fill(0.25));
    expect(scales("gemma2")).toEqual(Array(8).fill(1 / 16));
    expect(scales("gemma3_text", { query_pre_attn_scalar: 64 })).toEqual(Array(8).fill(1 / 8));
    const inverse = { scale_attn_by_inverse_layer_idx: true };
    expect(scales("gpt2", inverse)).toEqual([1, 2, 3, 4, 5, 6, 7, 8].map((i) => 0.25 / i));
    expect(scales("gpt2", { scale_attn_weights: false })).toEqual(Array(8).fill(1));
    expect(parse(of("gemma2", { attn_logit_softcapping: null })).softcap).toBeNull();
    expect(parse(of("gemma2", { attn_logit_softcapping: 30 })).softcap).toBe(30);
    expect(parse(of("gemma3_text", { attn_logit_softcapping: 30 })).softcap).toBeNull();
  });
});
