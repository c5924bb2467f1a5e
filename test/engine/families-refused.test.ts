/** What of a config.json is refused, by name; wrappers around a text model; and that every real config is read. */
import { existsSync, readdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { describe, expect, it } from "vitest";
import { describeModel, parseModelConfig, SUPPORTED_MODEL_TYPES } from "../../engine/family.ts";
import { readConfigFile } from "../../weights/config.ts";
import { failing } from "../support/failing.ts";

/** Nothing but what has no default. */
const BARE = {
  hidden_size: 64,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  intermediate_size: 128,
  vocab_size: 100,
};
const GPT2 = { n_embd: 64, n_layer: 2, n_head: 4, vocab_size: 100 };

const parse = (config: unknown) => parseModelConfig(config, "m/config.json").config;
/** Of any type: the sizes under both sets of names, and key-value heads that divide the heads. */
const of = (model_type: string, changes: object) =>
  parse({ ...GPT2, ...BARE, num_key_value_heads: 2, model_type, ...changes });
const llama = (changes: object) => parse({ ...BARE, model_type: "llama", ...changes });
const mistral = (changes: object) => of("mistral", changes);

const escaped = (text: string) => text.replace(/[[\]{}()+.*?^$|\\]/g, "\\$&");

describe("models that are not supported", () => {
  it("are refused before anything else is looked at", () => {
    for (const model_type of ["LLAMA", "toString", "__proto__", "", "no_such_model", null, 3]) {
      const config = { model_type, hidden_size: "nonsense", hidden_act: "quick_gelu", quantization_config: {} };
      const message = `model_type is ${JSON.stringify(model_type)}; supported are ${SUPPORTED_MODEL_TYPES.join(", ")}`;
      expect(() => parse(config)).toThrow(failing("config/unsupported-model", "m/config.json", escaped(message)));
    }
    expect(() => parse({ hidden_size: 64 })).toThrow(failing("config/unsupported-model", "there is no model_type"));
  });

  it.each([
    ["mixtral", "a mixture of experts"],
    ["qwen3_moe", "a mixture of experts"],
    ["gpt_oss", "a mixture of experts"],
    ["deepseek_v3", "multi-head latent attention"],
    ["bloom", "attention with linear biases"],
    ["mamba", "state-space or linear-attention layers"],
    ["qwen3_next", "state-space or linear-attention layers"],
    ["bert", "an encoder: every token sees the later ones"],
    ["t5", "an encoder and a decoder"],
    ["gemma", "a decoder whose block has not been described yet"],
    ["gemma3n_text", "a decoder whose block has not been described yet"],
  ])("%s: %s", (model_type, why) => {
    const reason = failing(
      "config/unsupported-model",
      `model_type is "${model_type}", ${escaped(why)}`,
      "llama, mistral",
    );
    expect(() => parse({ model_type })).toThrow(reason);
    expect(() => parse({ model_type: "wrapper", text_config: { model_type } })).toThrow(reason);
  });

  it("an object that cannot be made a text", () => {
    const model_type = JSON.parse('{"toString":1,"valueOf":2}');
    expect(() => parse({ model_type })).toThrow(failing("config/unsupported-model", "model_type is"));
  });

  it("the supported types are each one family's, and named in a refusal", () => {
    expect(new Set(SUPPORTED_MODEL_TYPES).size).toBe(SUPPORTED_MODEL_TYPES.length);
    const known = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "olmo2"];
    expect(SUPPORTED_MODEL_TYPES).toEqual(expect.arrayContaining([...known, "olmo3", "smollm3", "ministral"]));
    for (const type of SUPPORTED_MODEL_TYPES) expect(of(type, {}).modelType).toBe(type);
  });

  it("values that are no config at all", () => {
    for (const config of [[], null, 3, "llama"]) expect(() => parse(config)).toThrow(failing("config/bad-json"));
  });
});

describe("of any family", () => {
  it.each(SUPPORTED_MODEL_TYPES)("%s: quantised weights, and tokens that see later ones", (type) => {
    const quantization_config = { quant_method: "gptq", bits: 4 };
    expect(() => of(type, { quantization_config })).toThrow(failing("config/unsupported-quantization", "gptq"));
    expect(of(type, { quantization_config: null, is_causal: true }).layers).toBe(2);
    expect(() => of(type, { is_causal: false })).toThrow(failing("config/unsupported-model", "is_causal is false"));
  });

  it.each(["gemma2", "gemma3_text"])("%s: attention in both directions", (type) => {
    expect(() => of(type, { use_bidirectional_attention: true })).toThrow(
      failing("config/unsupported-model", "use_bidirectional_attention"),
    );
    expect(of(type, { use_bidirectional_attention: false }).layers).toBe(2);
  });

  it("gpt2: the decoder of an encoder", () => {
    expect(() => of("gpt2", { add_cross_attention: true })).toThrow(
      failing("config/unsupported-model", "add_cross_attention"),
    );
  });

  it("activations: those that are known, under the family's own key", () => {
    const known = { silu: "silu", swish: "silu", gelu: "gelu", relu: "relu", gelu_python: "gelu" };
    const tanh = ["gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"];
    for (const [name, activation] of [...Object.entries(known), ...tanh.map((each) => [each, "geluTanh"])]) {
      expect(llama({ hidden_act: name }).activation).toBe(activation);
      expect(of("gpt2", { activation_function: name }).activation).toBe(activation);
      expect(of("gemma2", { hidden_activation: name, hidden_act: "nonsense" }).activation).toBe(activation);
    }
    for (const name of ["quick_gelu", "relu2", "tanh", "GELU", "constructor", ""]) {
      const refused = (key: string) => failing("config/unsupported-activation", `${key} is "${name}"`, "silu, swish");
      expect(() => llama({ hidden_act: name })).toThrow(refused("hidden_act"));
      expect(() => of("gpt2", { activation_function: name })).toThrow(refused("activation_function"));
      expect(() => of("gemma3_text", { hidden_activation: name })).toThrow(refused("hidden_activation"));
    }
  });

  it("layer_types of another length, or of kinds that are not known", () => {
    for (const type of ["ministral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo3", "smollm3"]) {
      expect(() => of(type, { layer_types: ["full_attention"] })).toThrow(
        failing("config/bad-value", "layer_types names 1 layers of 2"),
      );
      for (const kind of ["linear_attention", "chunked_attention"])
        expect(() => of(type, { layer_types: ["full_attention", kind] })).toThrow(
          failing("config/unsupported-model", `layer_types holds "${kind}"`),
        );
      expect(of(type, { layer_types: ["attention", "full_attention"] }).layers).toBe(2);
    }
    expect(() => of("smollm3", { no_rope_layers: [1] })).toThrow(
      failing("config/bad-value", "no_rope_layers names 1 layers of 2"),
    );
  });
});

describe("wrappers around a text model", () => {
  /** The entries of Gemma 3 4B's own file. */
  const text_config = {
    model_type: "gemma3_text",
    hidden_size: 2560,
    intermediate_size: 10240,
    num_hidden_layers: 34,
    rope_scaling: { factor: 8.0, rope_type: "linear" },
    sliding_window: 1024,
  };

  it("are read by their text part, whose sparse entries leave the rest to the family", () => {
    const config = parse({ model_type: "gemma3", vision_config: { hidden_size: 1152 }, text_config });
    expect(config).toMatchObject({ hiddenSize: 2560, layers: 34, heads: 8, kvHeads: 4, headDim: 256, vocab: 262208 });
    expect(config.ropes.map(({ type, theta }) => [type, theta])).toEqual([
      ["linear", 1e6],
      ["default", 1e4],
    ]);
    for (const key of ["text_config", "llm_config", "language_config"])
      expect(parse({ model_type: "wrapper", [key]: text_config })).toEqual(config);
    expect(parse({ text_config })).toEqual(config);
  });

  it("lend it what stands beside it alone", () => {
    const inner = { ...BARE, model_type: "llama" };
    const outer = { model_type: "wrapper", torch_dtype: "bfloat16", tie_word_embeddings: true, eos_token_id: 7 };
    const inherited = { dtype: "bfloat16", tiedEmbeddings: true, eosId: 7 };
    expect(parse({ ...outer, hidden_size: 9, text_config: inner })).toMatchObject({ ...inherited, hiddenSize: 64 });
    const own = { ...inner, torch_dtype: "float16", tie_word_embeddings: false, eos_token_id: 8 };
    expect(parse({ ...outer, text_config: own })).toMatchObject({ dtype: "float16", tiedEmbeddings: false, eosId: 8 });
    const quantised = { ...outer, quantization_config: { quant_method: "awq" }, text_config: inner };
    expect(() => parse(quantised)).toThrow(failing("config/unsupported-quantization", "awq"));
  });

  it("are not looked into where the file itself is of a supported type", () => {
    expect(llama({ text_config: { model_type: "bert" } }).modelType).toBe("llama");
  });

  it("faults in the text part name it", () => {
    expect(() => parse({ model_type: "wrapper", text_config: { ...text_config, head_dim: 0 } })).toThrow(
      failing("config/bad-value", "m/config.json, text_config: head_dim is 0"),
    );
    expect(() => parse({ model_type: "wrapper", text_config: {} })).toThrow(
      failing("config/unsupported-model", "text_config: there is no model_type"),
    );
    expect(() => parse({ model_type: "wrapper", text_config: 3 })).toThrow(
      failing("config/unsupported-model", 'model_type is "wrapper"'),
    );
  });
});

describe("bad values are named with their key", () => {
  const sizes = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"];
  const optional = ["num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window"];
  const positives = ["rms_norm_eps", "rope_theta"];

  it.each([...sizes, ...optional])("%s", (key) => {
    for (const value of [0, -1, 1.5, 1e15, "64", true, [64], {}])
      expect(() => mistral({ [key]: value })).toThrow(
        failing("config/bad-value", `${key} is ${escaped(JSON.stringify(value))}`),
      );
  });

  it.each(sizes)("%s missing", (key) => {
    for (const type of SUPPORTED_MODEL_TYPES.filter((each) => each !== "gpt2"))
      expect(() => of(type, { [key]: undefined })).toThrow(failing("config/bad-value", `${key} is missing`));
    expect(() => llama({ [key]: null })).toThrow(failing("config/bad-value", `${key} is null`));
  });

  it.each(Object.keys(GPT2))("gpt2: %s", (key) => {
    const gpt2 = (changes: object) => parse({ ...GPT2, model_type: "gpt2", ...changes });
    expect(() => gpt2({ [key]: undefined })).toThrow(failing("config/bad-value", `${key} is missing`));
    for (const value of [0, 1.5, null]) {
      expect(() => gpt2({ [key]: value })).toThrow(failing("config/bad-value", `${key} is ${value}`));
    }
  });

  it.each(positives)("%s", (key) => {
    for (const value of [0, -1, 1e300, "1e-5", []])
      expect(() => llama({ [key]: value })).toThrow(failing("config/bad-value", `${key} is`));
  });

  it.each([
    ["qwen2", "max_window_layers"],
    ["gemma2", "query_pre_attn_scalar"],
    ["gemma2", "attn_logit_softcapping"],
    ["gemma3_text", "sliding_window_pattern"],
    ["gemma3_text", "rope_local_base_freq"],
    ["gpt2", "n_positions"],
    ["gpt2", "n_inner"],
    ["gpt2", "layer_norm_epsilon"],
    ["gpt_neox", "layer_norm_eps"],
    ["gpt_neox", "rotary_pct"],
    ["gpt_neox", "rotary_emb_base"],
    ["smollm3", "no_rope_layer_interval"],
    ["smollm3", "no_rope_layers"],
  ])("%s: %s", (type, key) => {
    for (const value of [-1, "1"])
      expect(() => of(type, { [key]: value })).toThrow(
        failing("config/bad-value", `${key} is ${JSON.stringify(value)}`),
      );
  });

  it("flags, names and ids", () => {
    const wrong: readonly (readonly [object, string])[] = [
      [{ attention_bias: "true" }, 'attention_bias is "true"'],
      [{ tie_word_embeddings: 1 }, "tie_word_embeddings is 1"],
      [{ hidden_act: null }, "hidden_act is null"],
      [{ torch_dtype: 16 }, "torch_dtype is 16"],
      [{ bos_token_id: "<s>" }, "bos_token_id"],
      [{ eos_token_id: [1, "a"] }, "eos_token_id"],
      [{ rope_scaling: "linear" }, 'rope_scaling is "linear"'],
      [{ rope_parameters: { rope_theta: 0 } }, "rope_parameters.rope_theta is 0"],
      [{ rope_scaling: { type: "linear" } }, "rope_scaling.factor is missing"],
      [{ partial_rotary_factor: 2 }, "partial_rotary_factor is 2"],
    ];
    for (const [changes, text] of wrong) expect(() => llama(changes)).toThrow(failing("config/bad-value", text));
    const nested = { rope_parameters: { sliding_attention: { rope_theta: -1 } } };
    expect(() => of("gemma3_text", nested)).toThrow(
      failing("config/bad-value", "rope_parameters.sliding_attention.rope_theta is -1"),
    );
  });

  it("what does not go together", () => {
    expect(() => llama({ num_attention_heads: 5 })).toThrow(
      failing("config/bad-value", "hidden_size 64", "num_attention_heads 5"),
    );
    expect(() => of("gpt2", { n_head: 5 })).toThrow(failing("config/bad-value", "64", "5"));
    for (const heads of [3, 8])
      expect(() => llama({ num_key_value_heads: heads })).toThrow(
        failing("config/bad-value", `num_key_value_heads ${heads}`),
      );
    expect(() => llama({ head_dim: 15 })).toThrow(failing("config/bad-value", "head_dim 15"));
    expect(() => llama({ hidden_size: 12 })).toThrow(failing("config/bad-value", "head_dim 3"));
    // Nothing turns in this family: heads may be odd.
    expect(of("gpt2", { n_embd: 12 }).headDim).toBe(3);
  });
});

const shared = resolve(import.meta.dirname, "../../../shared");

describe.skipIf(!existsSync(shared))(
  "configs of real and golden models (needs ../shared beside the repository)",
  () => {
    const under = (folder: string) =>
      existsSync(shared)
        ? readdirSync(join(shared, folder))
            .filter((name) => !name.includes("."))
            .map((name) => join(folder, name))
        : [];

    it.each([...under("golden/families"), ...under("models")])("%s is read", async (path) => {
      const { config, block } = describeModel(await readConfigFile(join(shared, path)));
      expect(config.hiddenSize % config.heads).toBe(0);
      const blocks = Array.from({ length: config.layers }, (_, i) => block(i, ""));
      const windows = new Set(blocks.map(({ window }) => window !== null));
      const expected = /mistral/.test(path) ? [true] : /gemma/.test(path) ? [false, true] : [false];
      if (!path.includes("qwen")) expect([...windows].sort()).toEqual(expected);
      if (path.includes("mistral")) expect(blocks[0]?.window).toBe(8);
      const types = config.ropes.map(({ type }) => type);
      const count = path.includes("gpt2") ? 0 : path.includes("gemma3") ? 2 : 1;
      expect(types).toEqual(Array(count).fill(path.includes("llama3") ? "llama3" : "default"));
    });
  },
);
