import { existsSync, readdirSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parseModelConfig, type RopeConfig, readModelConfig } from "../../weights/config.ts";
import { ropeFrequencies } from "../../weights/rope-frequencies.ts";

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
  hidden_size: 64,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  intermediate_size: 128,
  vocab_size: 100,
};

const parse = (config: unknown) => parseModelConfig(config, "m/config.json");
const llama = (changes: object) => parse({ ...BARE, model_type: "llama", ...changes });
const mistral = (changes: object) => parse({ ...BARE, num_key_value_heads: 2, model_type: "mistral", ...changes });

const failing = (code: string, ...texts: string[]) =>
  expect.objectContaining({ code, message: expect.stringMatching(texts.map((text) => `(?=.*${text})`).join("")) });

describe("the two spellings", () => {
  it("mean the same", () => {
    const expected = {
      modelType: "llama",
      hiddenSize: 4096,
      layers: 32,
      heads: 32,
      kvHeads: 8,
      headDim: 128,
      ffn: 14336,
      vocab: 128256,
      maxPositions: 131072,
      normEps: 1e-5,
      activation: "silu",
      attentionBias: false,
      mlpBias: false,
      tiedEmbeddings: false,
      slidingWindow: null,
      rope: {
        type: "llama3",
        theta: 500000,
        factor: 8,
        lowFreqFactor: 1,
        highFreqFactor: 4,
        originalMaxPositions: 8192,
      },
      dtype: "bfloat16",
      bosId: 128000,
      eosId: [128001, 128008, 128009],
    };
    expect(parse(V4)).toEqual(expected);
    expect(parse(V5)).toEqual(expected);
  });

  it("the old name of rope_type, and null for none", () => {
    expect(llama({ rope_scaling: { type: "linear", factor: 2 }, rope_theta: 5e5 }).rope).toEqual({
      type: "linear",
      theta: 5e5,
      factor: 2,
    });
    const both = { type: "yarn", rope_type: "linear", factor: 3 };
    expect(llama({ rope_scaling: both }).rope).toEqual({ type: "linear", theta: 10000, factor: 3 });
    expect(llama({ rope_scaling: null, rope_theta: 7 }).rope).toEqual({ type: "default", theta: 7 });
    expect(llama({ rope_scaling: {}, rope_parameters: { rope_theta: 8 } }).rope).toEqual({ type: "default", theta: 8 });
    expect(llama({ rope_parameters: { rope_type: "default", rope_theta: 9 }, rope_theta: 10 }).rope.theta).toBe(9);
    expect(llama({ rope_parameters: { rope_type: "default" }, rope_theta: 10 }).rope.theta).toBe(10);
  });
});

describe("defaults are those of transformers", () => {
  it("of LlamaConfig", () => {
    expect(llama({})).toEqual({
      modelType: "llama",
      hiddenSize: 64,
      layers: 2,
      heads: 4,
      kvHeads: 4,
      headDim: 16,
      ffn: 128,
      vocab: 100,
      maxPositions: 2048,
      normEps: 1e-6,
      activation: "silu",
      attentionBias: false,
      mlpBias: false,
      tiedEmbeddings: false,
      slidingWindow: null,
      rope: { type: "default", theta: 10000 },
      dtype: null,
      bosId: null,
      eosId: null,
    });
    expect(llama({ sliding_window: 16 }).slidingWindow).toBeNull();
    expect(llama({ attention_bias: true, mlp_bias: true, tie_word_embeddings: true })).toMatchObject({
      attentionBias: true,
      mlpBias: true,
      tiedEmbeddings: true,
    });
  });

  it("of MistralConfig: a window of 4096 unless null, 8 key-value heads unless null", () => {
    expect(mistral({})).toMatchObject({ slidingWindow: 4096, maxPositions: 131072, kvHeads: 2 });
    expect(mistral({ sliding_window: null }).slidingWindow).toBeNull();
    expect(mistral({ sliding_window: 8 }).slidingWindow).toBe(8);
    expect(mistral({ num_attention_heads: 16, num_key_value_heads: undefined }).kvHeads).toBe(8);
    expect(mistral({ num_key_value_heads: null }).kvHeads).toBe(4);
    expect(() => mistral({ num_key_value_heads: undefined })).toThrow(
      failing("config/bad-value", "4", "num_key_value_heads 8"),
    );
  });

  it("head_dim need not be hidden_size / heads", () => {
    expect(llama({ head_dim: 32 }).headDim).toBe(32);
    expect(llama({ head_dim: 32, num_attention_heads: 3, num_key_value_heads: 1 }).headDim).toBe(32);
    expect(llama({ head_dim: null }).headDim).toBe(16);
  });
});

describe("refused by name", () => {
  it("models that are not supported, before anything else is looked at", () => {
    for (const model_type of ["gpt2", "gemma3_text", "qwen2", "LLAMA", "toString", "__proto__", "", null, 3]) {
      const config = { model_type, hidden_size: "nonsense", hidden_act: "relu" };
      expect(() => parse(config)).toThrow(
        failing("config/unsupported-model", `model_type is ${JSON.stringify(model_type)}`, "llama, mistral"),
      );
    }
    expect(() => parse({ hidden_size: 64 })).toThrow(failing("config/unsupported-model", "there is no model_type"));
  });

  it("values that are no config at all", () => {
    for (const config of [[], null, 3, "llama"]) expect(() => parse(config)).toThrow(failing("config/bad-json"));
  });

  it("rotary embeddings other than default, linear and llama3", () => {
    for (const type of ["yarn", "longrope", "dynamic", "ntk", "su", "mrope", "Linear", ""]) {
      for (const key of ["type", "rope_type"]) {
        expect(() => llama({ rope_scaling: { [key]: type, factor: 2 } })).toThrow(
          failing("config/unsupported-rope", `"${type}"`, "llama3"),
        );
      }
      expect(() => llama({ rope_parameters: { rope_type: type, factor: 2 } })).toThrow(
        failing("config/unsupported-rope"),
      );
    }
    const nested = { full_attention: { rope_type: "default", rope_theta: 1e6 } };
    expect(() => llama({ rope_parameters: nested })).toThrow(failing("config/unsupported-rope", "full_attention"));
  });

  it("partial rotary embeddings", () => {
    for (const where of [{ partial_rotary_factor: 0.5 }, { rope_parameters: { partial_rotary_factor: 0.5 } }]) {
      expect(() => llama(where)).toThrow(failing("config/unsupported-rope", "partial_rotary_factor is 0.5"));
    }
    expect(llama({ partial_rotary_factor: 1.0 }).rope.type).toBe("default");
  });

  it("activations, quantised weights, and biases where the family has none", () => {
    for (const hidden_act of ["gelu", "relu", "gelu_pytorch_tanh", "swish"]) {
      expect(() => llama({ hidden_act })).toThrow(failing("config/unsupported-activation", `"${hidden_act}"`));
    }
    const quantization_config = { quant_method: "gptq", bits: 4 };
    expect(() => llama({ quantization_config })).toThrow(failing("config/unsupported-quantization", "gptq"));
    expect(llama({ quantization_config: null }).layers).toBe(2);
    expect(() => mistral({ attention_bias: true })).toThrow(failing("config/bad-value", "attention_bias", "mistral"));
  });
});

describe("bad values are named with their key", () => {
  const sizes = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"];
  const optional = ["num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window"];
  const positives = ["rms_norm_eps", "rope_theta"];

  it.each([...sizes, ...optional])("%s", (key) => {
    for (const value of [0, -1, 1.5, 1e15, "64", true, [64], {}]) {
      expect(() => mistral({ [key]: value })).toThrow(
        failing("config/bad-value", `${key} is ${JSON.stringify(value).replace(/[[\]{}]/g, "\\$&")}`),
      );
    }
  });

  it.each(sizes)("%s missing", (key) => {
    expect(() => llama({ [key]: undefined })).toThrow(failing("config/bad-value", `${key} is missing`));
    expect(() => llama({ [key]: null })).toThrow(failing("config/bad-value", `${key} is null`));
  });

  it.each(positives)("%s", (key) => {
    for (const value of [0, -1, 1e300, "1e-5", []]) {
      expect(() => llama({ [key]: value })).toThrow(failing("config/bad-value", `${key} is`));
    }
  });

  it("flags, names and ids", () => {
    expect(() => llama({ attention_bias: "true" })).toThrow(failing("config/bad-value", 'attention_bias is "true"'));
    expect(() => llama({ tie_word_embeddings: 1 })).toThrow(failing("config/bad-value", "tie_word_embeddings is 1"));
    expect(() => llama({ hidden_act: null })).toThrow(failing("config/bad-value", "hidden_act is null"));
    expect(() => llama({ torch_dtype: 16 })).toThrow(failing("config/bad-value", "torch_dtype is 16"));
    expect(() => llama({ bos_token_id: "<s>" })).toThrow(failing("config/bad-value", "bos_token_id"));
    expect(() => llama({ eos_token_id: [1, "a"] })).toThrow(failing("config/bad-value", "eos_token_id"));
    expect(() => llama({ rope_scaling: "linear" })).toThrow(failing("config/bad-value", 'rope_scaling is "linear"'));
  });

  it("what does not go together", () => {
    expect(() => llama({ num_attention_heads: 5 })).toThrow(
      failing("config/bad-value", "hidden_size 64", "num_attention_heads 5"),
    );
    expect(() => llama({ num_key_value_heads: 3 })).toThrow(failing("config/bad-value", "num_key_value_heads 3"));
    expect(() => llama({ num_key_value_heads: 8 })).toThrow(failing("config/bad-value", "num_key_value_heads 8"));
    expect(() => llama({ head_dim: 15 })).toThrow(failing("config/bad-value", "head_dim 15"));
    expect(() => llama({ hidden_size: 12 })).toThrow(failing("config/bad-value", "head_dim 3"));
  });

  it("of rotary embeddings, with the outer key", () => {
    expect(() => llama({ rope_scaling: { type: "linear" } })).toThrow(
      failing("config/bad-value", "rope_scaling.factor is missing"),
    );
    expect(() => llama({ rope_scaling: { type: "linear", factor: -2 } })).toThrow(
      failing("config/bad-value", "rope_scaling.factor is -2"),
    );
    expect(() => llama({ rope_parameters: { rope_theta: 0 } })).toThrow(
      failing("config/bad-value", "rope_parameters.rope_theta is 0"),
    );
    for (const key of ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]) {
      expect(() => parse({ ...V4, rope_scaling: { ...rope_scaling, [key]: undefined } })).toThrow(
        failing("config/bad-value", `rope_scaling.${key} is missing`),
      );
    }
    expect(() => parse({ ...V4, rope_scaling: { ...rope_scaling, low_freq_factor: 4 } })).toThrow(
      failing("config/bad-value", "high_freq_factor 4"),
    );
    expect(() => parse({ ...V4, original_max_position_embeddings: 4096 })).toThrow(
      failing("config/bad-value", "4096", "8192"),
    );
    expect(parse({ ...V4, original_max_position_embeddings: 8192 }).rope.type).toBe("llama3");
  });
});

describe("config.json", () => {
  let folder = "";
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "stratum-config-"));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  it("is read from a folder", async () => {
    await writeFile(join(folder, "config.json"), JSON.stringify(V4));
    expect(await readModelConfig(folder)).toEqual(parse(V4));
    await writeFile(join(folder, "config.json"), `\ufeff${JSON.stringify(V4)}`);
    expect(await readModelConfig(folder)).toEqual(parse(V4));
  });

  it("missing: the folder is named", async () => {
    await expect(readModelConfig(join(folder, "nowhere"))).rejects.toThrow(failing("config/missing", "nowhere"));
    await mkdir(join(folder, "empty"));
    await expect(readModelConfig(join(folder, "empty"))).rejects.toThrow(failing("config/missing", "empty"));
    await mkdir(join(folder, "odd", "config.json"), { recursive: true });
    await expect(readModelConfig(join(folder, "odd"))).rejects.toThrow(failing("file/not-a-file", "odd"));
  });

  it("no JSON, no UTF-8, or too large", async () => {
    for (const bytes of ["", "{", "{'a':1}", '{"eps": NaN}', Uint8Array.of(0x22, 0xff, 0x22)]) {
      await writeFile(join(folder, "config.json"), bytes);
      await expect(readModelConfig(folder)).rejects.toThrow(failing("config/bad-json", "config.json"));
    }
    await writeFile(join(folder, "config.json"), `{"model_type":"llama"}${" ".repeat(10_000_000)}`);
    await expect(readModelConfig(folder)).rejects.toThrow(failing("config/bad-json", "too large", "10000022"));
  });
});

/** Digits that doubles of one formula in another order share. */
const close = (got: Float64Array, expected: readonly number[]) => {
  expect(got.length).toBe(expected.length);
  expected.forEach((value, i) => {
    expect(Math.abs((got[i] ?? Number.NaN) / value - 1), `frequency ${i}`).toBeLessThan(1e-14);
  });
};

describe("ropeFrequencies", () => {
  const theta = 10000;

  it("default: theta^(-2i / headDim)", () => {
    const expected = [1, 10 ** -0.5, 0.1, 10 ** -1.5, 0.01, 10 ** -2.5, 0.001, 10 ** -3.5];
    close(ropeFrequencies({ type: "default", theta }, 16), expected);
  });

  it("linear: divided by the factor", () => {
    close(ropeFrequencies({ type: "linear", theta, factor: 4 }, 8), [0.25, 0.025, 0.0025, 0.00025]);
  });

  // Values of modeling_rope_utils' _compute_llama3_parameters, its lines run in Python's float64.
  it("llama3: Llama 3.1's own numbers", () => {
    const rope: RopeConfig = parse(V4).rope;
    const got = ropeFrequencies(rope, 128);
    const at = [0, 1, 28, 29, 30, 31, 32, 33, 34, 35, 36, 63];
    close(
      Float64Array.from(at, (i) => got[i] ?? Number.NaN),
      [
        1.0, 0.8146172338565447, 0.0032114459947525913, 0.002166570763503359, 0.0013718935677611381,
        0.0008567514129196321, 0.0005248461609929547, 0.00031269375038406517, 0.00017850781276799638,
        9.556212353964683e-5, 7.78465527393245e-5, 3.068925988914511e-7,
      ],
    );
  });

  it("llama3: all three regions in a small head", () => {
    const rope: RopeConfig = { ...(parse(V4).rope as RopeConfig & { type: "llama3" }), originalMaxPositions: 64 };
    close(
      ropeFrequencies(rope, 16),
      [
        1.0, 0.0794030091792082, 0.004700753866357992, 0.0009115830921521386, 0.00017677669529663688,
        3.428102195952591e-5, 6.647869871181236e-6, 1.2891731721515574e-6,
      ],
    );
  });
});

const shared = resolve(import.meta.dirname, "../../../shared");
const supported = ["llama", "llama3-rope", "llama-sharded", "mistral-window"];

describe.skipIf(!existsSync(shared))(
  "configs of real and golden models (needs ../shared beside the repository)",
  () => {
    const models = existsSync(shared) ? readdirSync(join(shared, "models")).filter((name) => !name.includes(".")) : [];

    it.each([...supported.map((name) => join("golden/families", name)), ...models.map((name) => join("models", name))])(
      "%s is read",
      async (path) => {
        const config = await readModelConfig(join(shared, path));
        expect(config.hiddenSize % config.heads).toBe(0);
        expect(config.slidingWindow).toBe(path.includes("mistral") ? 8 : null);
        expect(config.rope.type).toBe(path.includes("llama3") ? "llama3" : "default");
      },
    );

    const others = existsSync(shared)
      ? readdirSync(join(shared, "golden/families")).filter((name) => !supported.includes(name))
      : [];
    it.each(others)("%s is refused by name", async (name) => {
      await expect(readModelConfig(join(shared, "golden/families", name))).rejects.toThrow(
        failing("config/unsupported-model"),
      );
    });
  },
);
