/** Configurations of published models, for benchmarks that need shapes and no weights. */
import { type ConfigFile, configFile, readConfigFile } from "../weights/config.ts";

/** As published in each model's config.json: the entries that shapes and kernels depend on. */
const PUBLISHED: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  // https://huggingface.co/HuggingFaceTB/SmolLM2-135M
  "smollm2-135m": {
    model_type: "llama",
    hidden_size: 576,
    intermediate_size: 1536,
    num_hidden_layers: 30,
    num_attention_heads: 9,
    num_key_value_heads: 3,
    vocab_size: 49152,
    max_position_embeddings: 8192,
    rms_norm_eps: 1e-5,
    rope_theta: 100_000,
    tie_word_embeddings: true,
    torch_dtype: "bfloat16",
  },
  // https://huggingface.co/Qwen/Qwen2.5-0.5B
  "qwen2.5-0.5b": {
    model_type: "qwen2",
    hidden_size: 896,
    intermediate_size: 4864,
    num_hidden_layers: 24,
    num_attention_heads: 14,
    num_key_value_heads: 2,
    vocab_size: 151_936,
    max_position_embeddings: 32768,
    rms_norm_eps: 1e-6,
    rope_theta: 1_000_000,
    tie_word_embeddings: true,
    use_sliding_window: false,
    torch_dtype: "bfloat16",
  },
  // https://huggingface.co/Qwen/Qwen2.5-7B
  "qwen2.5-7b": {
    model_type: "qwen2",
    hidden_size: 3584,
    intermediate_size: 18944,
    num_hidden_layers: 28,
    num_attention_heads: 28,
    num_key_value_heads: 4,
    vocab_size: 152_064,
    max_position_embeddings: 131_072,
    rms_norm_eps: 1e-6,
    rope_theta: 1_000_000,
    tie_word_embeddings: false,
    use_sliding_window: false,
    torch_dtype: "bfloat16",
  },
};

/** Names of the configurations that need no file. */
export const CONFIGURATIONS: readonly string[] = Object.keys(PUBLISHED);

/**
 * A configuration: one of {@link CONFIGURATIONS} in whatever case, or a model's folder or its config.json.
 * @throws {StratumError} `config/missing`, `config/bad-json`
 */
export async function readConfiguration(name: string): Promise<ConfigFile> {
  const key = CONFIGURATIONS.find((each) => each === name.toLowerCase());
  return key === undefined ? await readConfigFile(name) : configFile(PUBLISHED[key], key);
}
