/**
 * A model's config.json in the spellings of transformers 4 and 5, as one typed description of a decoder. Defaults of absent
 * keys are those of transformers' own config classes, per family.
 *
 * https://github.com/huggingface/transformers (`models/llama/configuration_llama.py`, `models/mistral/configuration_mistral.py`)
 */

import { join } from "node:path";
import { z } from "zod";
import { type ErrorCode, StratumError } from "../errors.ts";
import { isJsonObject, readJsonFile, show } from "./json.ts";

/** Rotary embedding: how position turns into angles. */
export type RopeConfig =
  | { readonly type: "default"; readonly theta: number }
  | { readonly type: "linear"; readonly theta: number; readonly factor: number }
  | {
      readonly type: "llama3";
      readonly theta: number;
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxPositions: number;
    };

/** A decoder-only transformer. Sizes count elements, not bytes. */
export interface DecoderConfig {
  readonly modelType: string;
  /** D */
  readonly hiddenSize: number;
  /** L */
  readonly layers: number;
  /** H */
  readonly heads: number;
  /** G; divides `heads`. */
  readonly kvHeads: number;
  /** E; even. `heads` x `headDim` need not be `hiddenSize`. */
  readonly headDim: number;
  /** F */
  readonly ffn: number;
  /** V */
  readonly vocab: number;
  readonly maxPositions: number;
  readonly normEps: number;
  readonly activation: "silu";
  readonly attentionBias: boolean;
  readonly mlpBias: boolean;
  readonly tiedEmbeddings: boolean;
  /** A token attends to itself and the `slidingWindow - 1` before it; null: to all before it. */
  readonly slidingWindow: number | null;
  readonly rope: RopeConfig;
  /** As in the file, e.g. `bfloat16`; what the tensors really are stands in their own headers. */
  readonly dtype: string | null;
  /** As in the file; null where it has none. */
  readonly bosId: number | null;
  readonly eosId: number | readonly number[] | null;
}

/** What differs between families that share this config's form. */
interface Family {
  /** What an absent `num_key_value_heads` means; null: as many as heads. */
  readonly kvHeads: number | null;
  readonly maxPositions: number;
  /** What an absent `sliding_window` means; undefined: the family has no window and the key is not looked at. */
  readonly slidingWindow: number | undefined;
  readonly biases: boolean;
}

const FAMILIES: Readonly<Record<string, Family>> = {
  llama: { kvHeads: null, maxPositions: 2048, slidingWindow: undefined, biases: true },
  mistral: { kvHeads: 8, maxPositions: 131072, slidingWindow: 4096, biases: false },
};

/** The `model_type`s that are understood. */
export const SUPPORTED_MODEL_TYPES: readonly string[] = Object.keys(FAMILIES);

const MAX_CONFIG_BYTES = 10_000_000;
const DEFAULT_THETA = 10_000;
const MAX_INDEX = 2 ** 31;

// Beyond any model there is; a number past these is a fault of the file, and would only fail later as lack of memory.
const size = (max: number) => z.int().min(1).max(max);
const width = size(2 ** 24);
const positive = z.number().positive().max(1e12);
const tokenId = z.int().min(-1).max(MAX_INDEX);

const RopeEntries = z.looseObject({
  rope_type: z.string().nullish(),
  type: z.string().nullish(),
  rope_theta: positive.nullish(),
  partial_rotary_factor: z.number().nullish(),
});

const Entries = z.object({
  hidden_size: width,
  num_hidden_layers: size(10_000),
  num_attention_heads: size(65_536),
  num_key_value_heads: size(65_536).nullish(),
  head_dim: size(65_536).nullish(),
  intermediate_size: width,
  vocab_size: size(2 ** 28),
  max_position_embeddings: size(MAX_INDEX).nullish(),
  rms_norm_eps: z.number().positive().max(1).default(1e-6),
  hidden_act: z.string().default("silu"),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  tie_word_embeddings: z.boolean().default(false),
  sliding_window: size(MAX_INDEX).nullish(),
  rope_theta: positive.nullish(),
  rope_scaling: RopeEntries.nullish(),
  rope_parameters: RopeEntries.nullish(),
  partial_rotary_factor: z.number().nullish(),
  original_max_position_embeddings: z.unknown().optional(),
  torch_dtype: z.string().nullish(),
  dtype: z.string().nullish(),
  bos_token_id: tokenId.nullish(),
  eos_token_id: z.union([tokenId, z.array(tokenId)]).nullish(),
});

type ConfigEntries = z.infer<typeof Entries>;

const LinearEntries = z.object({ factor: positive });

const Llama3Entries = z.object({
  factor: positive,
  low_freq_factor: positive,
  high_freq_factor: positive,
  original_max_position_embeddings: size(MAX_INDEX),
});

/**
 * Reads `config.json` of a model folder.
 *
 * @throws StratumError `config/missing`, `config/bad-json` (also for more than 10 MB), `file/unreadable`, and what
 *   {@link parseModelConfig} throws
 */
export async function readModelConfig(directory: string): Promise<DecoderConfig> {
  const path = join(directory, "config.json");
  const config = await readJsonFile(path, {
    what: `the model's config.json (in ${directory})`,
    maxBytes: MAX_CONFIG_BYTES,
    missing: "config/missing",
    bad: "config/bad-json",
    fix: "pass the folder of a Hugging Face model, with its config.json; download it again if it is damaged",
  });
  return parseModelConfig(config, path);
}

/**
 * Checks a parsed config.json. The model type is looked at first: of a model that is not supported, nothing else is judged.
 *
 * @param path for messages
 * @throws StratumError `config/unsupported-model`, `config/unsupported-rope`, `config/unsupported-activation`,
 *   `config/unsupported-quantization`, `config/bad-value` (the key and its value are named)
 */
export function parseModelConfig(config: unknown, path: string): DecoderConfig {
  if (!isJsonObject(config)) {
    throw new StratumError(
      "config/bad-json",
      `${path} is ${show(config)}, not an object`,
      "download config.json again",
    );
  }
  const { modelType, family } = familyOf(config["model_type"], path);
  if (config["quantization_config"] != null) {
    throw new StratumError(
      "config/unsupported-quantization",
      `${path}: quantization_config is ${show(config["quantization_config"])}; quantised weights cannot be read`,
      "use the model's unquantised weights (bf16, f16 or f32)",
    );
  }
  const entries = parseEntries(Entries, config, "", path);
  if (entries.hidden_act !== "silu") {
    throw new StratumError(
      "config/unsupported-activation",
      `${path}: hidden_act is ${show(entries.hidden_act)}; supported is "silu"`,
      "use a model with the activation silu",
    );
  }
  if (!family.biases && (entries.attention_bias || entries.mlp_bias)) {
    throw badValue(path, `attention_bias or mlp_bias is true; models of type ${modelType} have no biases`);
  }
  const heads = headsOf(entries, family, path);
  return {
    modelType,
    hiddenSize: entries.hidden_size,
    layers: entries.num_hidden_layers,
    ...heads,
    ffn: entries.intermediate_size,
    vocab: entries.vocab_size,
    maxPositions: entries.max_position_embeddings ?? family.maxPositions,
    normEps: entries.rms_norm_eps,
    activation: entries.hidden_act,
    attentionBias: entries.attention_bias,
    mlpBias: entries.mlp_bias,
    tiedEmbeddings: entries.tie_word_embeddings,
    slidingWindow: windowOf(entries, family),
    rope: ropeOf(entries, path),
    dtype: entries.dtype ?? entries.torch_dtype ?? null,
    bosId: entries.bos_token_id ?? null,
    eosId: entries.eos_token_id ?? null,
  };
}

function familyOf(modelType: unknown, path: string): { readonly modelType: string; readonly family: Family } {
  if (typeof modelType === "string" && Object.hasOwn(FAMILIES, modelType)) {
    const family = FAMILIES[modelType];
    if (family) return { modelType, family };
  }
  const what = modelType === undefined ? "there is no model_type" : `model_type is ${show(modelType)}`;
  throw new StratumError(
    "config/unsupported-model",
    `${path}: ${what}; supported are ${SUPPORTED_MODEL_TYPES.join(", ")}`,
    `use a model whose model_type is ${SUPPORTED_MODEL_TYPES.join(" or ")}`,
  );
}

function headsOf(
  entries: ConfigEntries,
  family: Family,
  path: string,
): Pick<DecoderConfig, "heads" | "kvHeads" | "headDim"> {
  const { hidden_size: hidden, num_attention_heads: heads, num_key_value_heads: given } = entries;
  // An absent key takes the family's default; an explicit null means "as many as heads", in every family.
  const kvHeads = (given === undefined ? family.kvHeads : given) ?? heads;
  if (heads % kvHeads !== 0) {
    throw badValue(path, `num_attention_heads ${heads} is no multiple of num_key_value_heads ${kvHeads}`);
  }
  if (entries.head_dim == null && hidden % heads !== 0) {
    throw badValue(
      path,
      `hidden_size ${hidden} is no multiple of num_attention_heads ${heads}, and there is no head_dim`,
    );
  }
  const headDim = entries.head_dim ?? hidden / heads;
  if (headDim % 2 !== 0) throw badValue(path, `head_dim ${headDim} is odd; rotary embeddings turn pairs`);
  return { heads, kvHeads, headDim };
}

function windowOf(entries: ConfigEntries, family: Family): number | null {
  if (family.slidingWindow === undefined) return null;
  return entries.sliding_window === undefined ? family.slidingWindow : entries.sliding_window;
}

/** `rope_scaling` before `rope_parameters`, and a theta within them before the one beside them, as in transformers 5. */
function ropeOf(entries: ConfigEntries, path: string): RopeConfig {
  const [key, scaling] = isFilled(entries.rope_scaling)
    ? (["rope_scaling", entries.rope_scaling] as const)
    : (["rope_parameters", entries.rope_parameters ?? {}] as const);
  const nested = Object.keys(scaling).find((name) => isJsonObject(scaling[name]));
  if (nested !== undefined) {
    throw unsupportedRope(path, `${key} holds an object ${show(nested)}: rotary settings by layer`);
  }
  const partial = scaling.partial_rotary_factor ?? entries.partial_rotary_factor ?? 1;
  if (partial !== 1) throw unsupportedRope(path, `partial_rotary_factor is ${partial}, supported is 1`);

  const theta = scaling.rope_theta ?? entries.rope_theta ?? DEFAULT_THETA;
  const type = scaling.rope_type ?? scaling.type ?? "default";
  if (type === "default") return { type, theta };
  if (type === "linear") return { type, theta, ...parseEntries(LinearEntries, scaling, key, path) };
  if (type !== "llama3") throw unsupportedRope(path, `${key} has rope_type ${show(type)}`);

  const llama3 = parseEntries(Llama3Entries, scaling, key, path);
  const { low_freq_factor: lowFreqFactor, high_freq_factor: highFreqFactor } = llama3;
  if (highFreqFactor <= lowFreqFactor) {
    throw badValue(path, `${key}.high_freq_factor ${highFreqFactor} is not above low_freq_factor ${lowFreqFactor}`);
  }
  const originalMaxPositions = llama3.original_max_position_embeddings;
  // transformers 4 reads the inner one, transformers 5 the outer one: where they differ no answer is right.
  const outer = entries.original_max_position_embeddings ?? originalMaxPositions;
  if (outer !== originalMaxPositions) {
    throw badValue(path, `original_max_position_embeddings is ${show(outer)}, but ${originalMaxPositions} in ${key}`);
  }
  return { type, theta, factor: llama3.factor, lowFreqFactor, highFreqFactor, originalMaxPositions };
}

function isFilled<T extends object>(entries: T | null | undefined): entries is T {
  return entries != null && Object.values(entries).some((value) => value !== undefined);
}

/** The checked entries, or the first fault with the key's full name and its value. */
function parseEntries<T>(schema: z.ZodType<T>, entries: object, prefix: string, path: string): T {
  const result = schema.safeParse(entries);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  const keys = issue?.path ?? [];
  const value = keys.reduce<unknown>((at, key) => (isIndexable(at) ? at[key] : undefined), entries);
  const name = [...(prefix ? [prefix] : []), ...keys].map(String).join(".");
  throw badValue(path, value === undefined ? `${name} is missing` : `${name} is ${show(value)}: ${issue?.message}`);
}

function isIndexable(value: unknown): value is Readonly<Record<PropertyKey, unknown>> {
  return typeof value === "object" && value !== null;
}

function badValue(path: string, message: string): StratumError {
  return fault("config/bad-value", path, message, "check config.json against the model's page, or download it again");
}

function unsupportedRope(path: string, message: string): StratumError {
  const types = "default, linear and llama3, over the whole head";
  return fault("config/unsupported-rope", path, `${message}; supported are ${types}`, "use a model with one of these");
}

function fault(code: ErrorCode, path: string, message: string, fix: string): StratumError {
  return new StratumError(code, `${path}: ${message}`, fix);
}
