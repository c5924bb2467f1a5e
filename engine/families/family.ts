/**
 * What a family's file gives, and the words in which it says it. To add a family: write a file beside this one that
 * exports a `Family`, list it in `all.ts`, and put a tiny checkpoint with reference states under
 * `test/golden/families` (its make-families.py writes them with transformers): the parity test goes over that folder.
 */
import { z } from "zod";
import { StratumError } from "../../errors.ts";
import { badValue, parseEntries, positions, positive, size, tokenId, width } from "../../weights/config.ts";
import { isJsonObject, show } from "../../weights/json.ts";
import { type RopeConfig, type RopeContext, RopeEntries, readRope } from "../../weights/rope.ts";
import type { BlockSpec, DecoderConfig, MatrixSpec, NormSpec, RowLayout } from "../decoder.ts";

/** The entries that describe a decoder: a whole config.json, or the part of a wrapper's for its text model. */
export interface FamilySource {
  /** For messages. */
  readonly path: string;
  readonly modelType: string;
  readonly entries: Readonly<Record<string, unknown>>;
  /** The text part of a wrapper: such parts leave out what equals the family's default. */
  readonly nested: boolean;
}

/** A model as its family describes it, before a checkpoint is looked at. */
export interface Architecture {
  readonly config: DecoderConfig;
  /** What may stand before all names, the usual first. */
  readonly prefixes: readonly string[];
  /** The name of the embedding, without prefix. */
  readonly embedding: string;
  /** The name of learned positions, without prefix; null: none. */
  readonly positions: string | null;
  /** @param prefix what stands before all names */
  readonly block: (index: number, prefix: string) => BlockSpec;
}

/** A family of models: which `model_type`s it answers for, and how their config.json is read. */
export interface Family {
  readonly modelTypes: readonly string[];
  /** @throws {StratumError} `config/...` */
  readonly describe: (source: FamilySource) => Architecture;
}

/** What absent entries mean. As in transformers' configuration class of the family. */
export interface Defaults {
  readonly hidden: number;
  readonly layers: number;
  readonly heads: number;
  /** null: as many as heads. */
  readonly kvHeads: number | null;
  /** null: hidden / heads. */
  readonly headDim: number | null;
  readonly ffn: number;
  readonly vocab: number;
  readonly maxPositions: number;
  readonly eps: number;
  readonly theta: number;
  readonly activation: string;
  readonly tied: boolean;
}

/** The entries that most families share. */
const Shared = z.object({
  hidden_size: width.optional(),
  num_hidden_layers: size(10_000).optional(),
  num_attention_heads: size(65_536).optional(),
  num_key_value_heads: size(65_536).nullish(),
  head_dim: size(65_536).nullish(),
  intermediate_size: width.optional(),
  vocab_size: size(2 ** 28).optional(),
  max_position_embeddings: positions.nullish(),
  original_max_position_embeddings: positions.nullish(),
  rms_norm_eps: z.number().positive().max(1).optional(),
  hidden_act: z.string().optional(),
  hidden_activation: z.string().nullish(),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  tie_word_embeddings: z.boolean().optional(),
  sliding_window: positions.nullish(),
  use_sliding_window: z.boolean().default(false),
  layer_types: z.array(z.string()).nullish(),
  rope_theta: positive.nullish(),
  rope_scaling: RopeEntries.nullish(),
  rope_parameters: RopeEntries.nullish(),
  partial_rotary_factor: z.number().positive().max(1).nullish(),
  torch_dtype: z.string().nullish(),
  dtype: z.string().nullish(),
  bos_token_id: tokenId.nullish(),
  eos_token_id: z.union([tokenId, z.array(tokenId)]).nullish(),
});

type SharedEntries = z.infer<typeof Shared>;

/** The entries of a family: the shared ones, and those of `more`. @throws {StratumError} `config/bad-value` */
export function entriesOf<T extends z.ZodRawShape>({ entries, path }: FamilySource, more: z.ZodObject<T>) {
  const shared: SharedEntries = parseEntries(Shared, entries, "", path);
  return { ...shared, ...parseEntries(more, entries, "", path) };
}

/** The sizes and settings that `Shared` holds. @throws {StratumError} `config/...` */
export function sharedConfig(
  source: FamilySource,
  entries: SharedEntries,
  defaults: Defaults,
): Omit<DecoderConfig, "ropes" | "norm"> & { readonly eps: number } {
  const { path, modelType, nested } = source;
  const required = (name: keyof SharedEntries & string, fallback: number): number => {
    const value = entries[name];
    if (typeof value === "number") return value;
    if (nested) return fallback;
    throw badValue(path, `${name} is missing`);
  };
  const hiddenSize = required("hidden_size", defaults.hidden);
  const heads = required("num_attention_heads", defaults.heads);
  // An absent key takes the family's default; an explicit null means "as many as heads", in every family.
  const kvHeads = (entries.num_key_value_heads === undefined ? defaults.kvHeads : entries.num_key_value_heads) ?? heads;
  const headDim = entries.head_dim ?? (entries.head_dim === null ? null : defaults.headDim);
  return {
    modelType,
    hiddenSize,
    layers: required("num_hidden_layers", defaults.layers),
    ...checkedHeads(path, { hiddenSize, heads, kvHeads, headDim }),
    ffn: required("intermediate_size", defaults.ffn),
    vocab: required("vocab_size", defaults.vocab),
    maxPositions: entries.max_position_embeddings ?? defaults.maxPositions,
    eps: entries.rms_norm_eps ?? defaults.eps,
    activation: activationOf(path, "hidden_act", entries.hidden_act ?? defaults.activation),
    softcap: null,
    embeddingScale: 1,
    tiedEmbeddings: entries.tie_word_embeddings ?? defaults.tied,
    dtype: entries.dtype ?? entries.torch_dtype ?? null,
    bosId: entries.bos_token_id ?? null,
    eosId: entries.eos_token_id ?? null,
  };
}

/** @throws {StratumError} `config/bad-value` */
export function checkedHeads(
  path: string,
  given: { hiddenSize: number; heads: number; kvHeads: number; headDim: number | null },
): Pick<DecoderConfig, "heads" | "kvHeads" | "headDim"> {
  const { hiddenSize, heads, kvHeads } = given;
  if (heads % kvHeads !== 0) {
    throw badValue(path, `num_attention_heads ${heads} is no multiple of num_key_value_heads ${kvHeads}`);
  }
  if (given.headDim === null && hiddenSize % heads !== 0) {
    throw badValue(
      path,
      `hidden_size ${hiddenSize} is no multiple of num_attention_heads ${heads}, and there is no head_dim`,
    );
  }
  return { heads, kvHeads, headDim: given.headDim ?? hiddenSize / heads };
}

const ACTIVATIONS: Readonly<Record<string, DecoderConfig["activation"]>> = {
  silu: "silu",
  swish: "silu",
  gelu: "gelu",
  gelu_python: "gelu",
  gelu_new: "geluTanh",
  gelu_fast: "geluTanh",
  gelu_accurate: "geluTanh",
  gelu_pytorch_tanh: "geluTanh",
  gelu_python_tanh: "geluTanh",
  relu: "relu",
};

/** @throws {StratumError} `config/unsupported-activation` */
export function activationOf(path: string, key: string, name: string): DecoderConfig["activation"] {
  const found = Object.hasOwn(ACTIVATIONS, name) ? ACTIVATIONS[name] : undefined;
  if (found !== undefined) return found;
  throw new StratumError(
    "config/unsupported-activation",
    `${path}: ${key} is ${show(name)}; supported are ${Object.keys(ACTIVATIONS).join(", ")}`,
    "use a model with one of these activations",
  );
}

/** What a family says of its one rotary embedding. */
export type RopeFamily = Pick<RopeContext, "theta"> &
  Partial<Pick<RopeContext, "aliases" | "originalMaxPositions">> & {
    /** The share of a head that turns where no entry says it; absent: the whole head turns, always. */
    readonly partial?: number;
  };

/**
 * The one rotary embedding of a model: `rope_scaling` before `rope_parameters`, and a theta within them before the one
 * beside them, as in transformers 5.
 * @throws {StratumError} `config/...`
 */
export function ropeOf(
  { path }: FamilySource,
  entries: Pick<
    SharedEntries,
    "rope_scaling" | "rope_parameters" | "rope_theta" | "partial_rotary_factor" | "original_max_position_embeddings"
  >,
  sizes: Pick<DecoderConfig, "headDim" | "maxPositions">,
  { theta, partial, aliases, originalMaxPositions }: RopeFamily,
): RopeConfig {
  const [key, scaling] = isFilled(entries.rope_scaling)
    ? (["rope_scaling", entries.rope_scaling] as const)
    : (["rope_parameters", entries.rope_parameters ?? {}] as const);
  const share = scaling.partial_rotary_factor ?? entries.partial_rotary_factor ?? partial ?? 1;
  if (partial === undefined && share !== 1) {
    throw new StratumError(
      "config/unsupported-rope",
      `${path}: partial_rotary_factor is ${share}; in this family the whole head turns`,
      "check config.json against the model's page",
    );
  }
  return readRope(scaling, {
    path,
    key,
    headDim: sizes.headDim,
    maxPositions: sizes.maxPositions,
    theta: entries.rope_theta ?? theta,
    partial: share,
    originalMaxPositions: entries.original_max_position_embeddings ?? originalMaxPositions,
    ...(aliases === undefined ? {} : { aliases }),
  });
}

function isFilled<T extends object>(entries: T | null | undefined): entries is T {
  return entries != null && Object.values(entries).some((value) => value !== undefined);
}

/**
 * The two rotary embeddings of a family that has one for the layers that see all and one for those that see a window:
 * `rope_scaling` scales the former alone; transformers 5 nests both in `rope_parameters`. The oldest name of `rope_type`,
 * `type`, is read by transformers 4 and passed over by transformers 5 here: no answer is right.
 * @throws {StratumError} `config/...`
 */
export function ropesByLayerType(
  { path }: FamilySource,
  entries: SharedEntries,
  { headDim, maxPositions }: Pick<DecoderConfig, "headDim" | "maxPositions">,
  theta: { readonly full: number; readonly sliding: number },
): readonly [full: RopeConfig, sliding: RopeConfig] {
  const { rope_type: ropeType = null, type = null } = entries.rope_scaling ?? {};
  if (ropeType === null && type !== null && type !== "default") {
    throw badValue(path, `rope_scaling has type ${show(type)} and no rope_type: readers of this family disagree on it`);
  }
  const nested: Readonly<Record<string, unknown>> = entries.rope_parameters ?? {};
  const read = (type: "full_attention" | "sliding_attention", outer: number, scaling: object): RopeConfig => {
    const own = isJsonObject(nested[type]) ? nested[type] : {};
    const key = isJsonObject(nested[type]) ? `rope_parameters.${type}` : "rope_scaling";
    const found = parseEntries(RopeEntries, { ...own, ...scaling }, key, path);
    return readRope(found, { path, key, headDim, maxPositions, theta: outer, partial: 1 });
  };
  return [read("full_attention", theta.full, entries.rope_scaling ?? {}), read("sliding_attention", theta.sliding, {})];
}

/** `attention` is an older name of the first. */
const LAYER_TYPES = ["full_attention", "attention", "sliding_attention"];

/**
 * The window of each layer: those that `layer_types` names see `window`, or where the file has none those of `fallback`.
 * @throws {StratumError} `config/bad-value`, `config/unsupported-model`
 */
export function windowsOf(
  { path }: FamilySource,
  types: readonly string[] | null | undefined,
  layers: number,
  window: number | null,
  fallback: (index: number) => boolean,
): readonly (number | null)[] {
  if (types == null) return Array.from({ length: layers }, (_, index) => (fallback(index) ? window : null));
  if (types.length !== layers) throw badValue(path, `layer_types names ${types.length} layers of ${layers}`);
  const other = types.find((type) => !LAYER_TYPES.includes(type));
  if (other !== undefined) {
    throw new StratumError(
      "config/unsupported-model",
      `${path}: layer_types holds ${show(other)}; supported are full_attention and sliding_attention`,
      "use a model whose layers are of these two kinds",
    );
  }
  if (window === null && types.includes("sliding_attention")) {
    throw badValue(
      path,
      "layer_types holds sliding_attention, and there is no window (sliding_window, use_sliding_window)",
    );
  }
  return types.map((type) => (type === "sliding_attention" ? window : null));
}

/** A matrix (n, k) with a tensor of its own, `NAME.weight` and `NAME.bias`. */
export function matrix(name: string, n: number, k: number, bias = false): MatrixSpec {
  return {
    weight: `${name}.weight`,
    shape: [n, k],
    transposed: false,
    rows: { offset: 0, run: n, stride: n },
    bias: bias ? `${name}.bias` : null,
    n,
    k,
  };
}

/** `n` rows out of a tensor that holds several matrices. */
export function rowsOf(whole: MatrixSpec, n: number, rows: Partial<RowLayout>): MatrixSpec {
  return { ...whole, n, rows: { offset: 0, run: n, stride: n, ...rows } };
}

/** A matrix that the file stores as (k, n). */
export function transposed(whole: MatrixSpec): MatrixSpec {
  return { ...whole, shape: [whole.k, whole.n], transposed: true };
}

/** The norm `NAME.weight` (size), and `NAME.bias`. */
export function norm(name: string, size: number, bias = false): NormSpec {
  return { weight: `${name}.weight`, bias: bias ? `${name}.bias` : null, size };
}

/** What of a Llama's block another family changes. */
export interface GatedBlockOptions {
  readonly window?: number | null;
  readonly rope?: number | null;
  readonly qkvBias?: boolean;
  readonly outBias?: boolean;
  readonly mlpBias?: boolean;
}

/** A block with the names of Llama's, which most families share: pre-norms, gated feed-forward part. */
export function gatedBlock(
  at: string,
  { hiddenSize: d, heads, kvHeads, headDim, ffn }: DecoderConfig,
  { window = null, rope = 0, qkvBias = false, outBias = false, mlpBias = false }: GatedBlockOptions = {},
): BlockSpec {
  return {
    window,
    rope,
    attentionScale: 1 / Math.sqrt(headDim),
    attentionNorm: norm(`${at}input_layernorm`, d),
    query: matrix(`${at}self_attn.q_proj`, heads * headDim, d, qkvBias),
    key: matrix(`${at}self_attn.k_proj`, kvHeads * headDim, d, qkvBias),
    value: matrix(`${at}self_attn.v_proj`, kvHeads * headDim, d, qkvBias),
    queryNorm: null,
    keyNorm: null,
    attentionOut: matrix(`${at}self_attn.o_proj`, d, heads * headDim, outBias),
    attentionOutNorm: null,
    parallel: false,
    ffnNorm: norm(`${at}post_attention_layernorm`, d),
    gate: matrix(`${at}mlp.gate_proj`, ffn, d, mlpBias),
    up: matrix(`${at}mlp.up_proj`, ffn, d, mlpBias),
    down: matrix(`${at}mlp.down_proj`, d, ffn, mlpBias),
    ffnOutNorm: null,
  };
}

/** The names that go with {@link gatedBlock}. */
export const GATED_NAMES = {
  prefixes: ["model.", ""],
  embedding: "embed_tokens.weight",
  positions: null,
} as const;
