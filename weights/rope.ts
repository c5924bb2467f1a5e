/**
 * Rotary embeddings as config.json spells them, and their frequencies.
 *
 * https://github.com/huggingface/transformers (`modeling_rope_utils.py`: `standardize_rope_params` and the
 * `_compute_..._parameters` of each type)
 */
import { z } from "zod";
import { StratumError } from "../errors.ts";
import { badValue, parseEntries, positive, size } from "./config.ts";
import { isJsonObject, show } from "./json.ts";

/** What every kind of rotary embedding has. */
interface RopeBase {
  readonly theta: number;
  /** Elements of a head that the frequencies are spread over; the first ones, in pairs, turn. */
  readonly dims: number;
}

/** Rotary embedding: how position turns into angles. */
export type RopeConfig = RopeBase &
  (
    | { readonly type: "default" }
    | { readonly type: "linear"; readonly factor: number }
    /** Up to the model's positions the same as `default`; beyond, frequencies depend on the length of the sequence. */
    | { readonly type: "dynamic"; readonly factor: number }
    | {
        readonly type: "llama3";
        readonly factor: number;
        readonly lowFreqFactor: number;
        readonly highFreqFactor: number;
        readonly originalMaxPositions: number;
      }
    | {
        readonly type: "yarn";
        readonly factor: number;
        readonly attentionFactor: number;
        readonly betaFast: number;
        readonly betaSlow: number;
        readonly truncate: boolean;
        readonly originalMaxPositions: number;
      }
    /** A factor a pair; the long ones for sequences of more than `originalMaxPositions` tokens. */
    | {
        readonly type: "longrope";
        readonly attentionFactor: number;
        readonly shortFactors: readonly number[];
        readonly longFactors: readonly number[];
        readonly originalMaxPositions: number;
      }
  );

const TYPES = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"] as const;

/** The entries of a config.json that say how positions turn. */
export const RopeEntries = z.looseObject({
  rope_type: z.string().nullish(),
  type: z.string().nullish(),
  rope_theta: positive.nullish(),
  partial_rotary_factor: z.number().positive().max(1).nullish(),
});

const Linear = z.object({ factor: positive });
const Llama3 = z.object({
  factor: positive,
  low_freq_factor: positive,
  high_freq_factor: positive,
  original_max_position_embeddings: size(2 ** 31),
});
const Yarn = z.object({
  factor: positive.nullish(),
  original_max_position_embeddings: size(2 ** 31).nullish(),
  attention_factor: positive.nullish(),
  beta_fast: z.number().min(0).nullish(),
  beta_slow: z.number().min(0).nullish(),
  mscale: z.number().nullish(),
  mscale_all_dim: z.number().nullish(),
  truncate: z.boolean().default(true),
});
const Longrope = z.object({
  factor: positive.nullish(),
  original_max_position_embeddings: size(2 ** 31).nullish(),
  attention_factor: positive.nullish(),
  short_factor: z.array(positive),
  long_factor: z.array(positive),
});

/** What a family and a model say of a rotary embedding. */
export interface RopeContext {
  /** Of config.json, for messages. */
  readonly path: string;
  /** The key that holds the entries, for messages. */
  readonly key: string;
  readonly headDim: number;
  readonly maxPositions: number;
  /** Where the entries have none. */
  readonly theta: number;
  readonly partial: number;
  /** The `original_max_position_embeddings` beside the entries. */
  readonly originalMaxPositions?: number | undefined;
  /** Other names that a family has for a type. */
  readonly aliases?: Readonly<Record<string, (typeof TYPES)[number]>>;
}

/**
 * Reads one rotary embedding.
 * @throws {StratumError} `config/unsupported-rope`, `config/bad-value`
 */
export function readRope(entries: z.infer<typeof RopeEntries>, context: RopeContext): RopeConfig {
  const rope = ropeOf(entries, context);
  const { path, key } = context;
  const { type, theta } = rope;
  if (!Number.isFinite(ropeScale(rope))) throw badValue(path, `${key} scales by ${ropeScale(rope)} (${type})`);
  // Numbers of which each alone is possible: yarn divides by the logarithm of theta, and a tiny factor divides into infinity.
  for (const long of [false, true]) {
    const frequency = pairFrequency(rope, long);
    for (let i = 0; i < Math.min(rotaryDims(rope) / 2, MOST_PAIRS); i++) {
      if (Number.isFinite(frequency(i))) continue;
      throw badValue(path, `${key} turns pair ${i} at a frequency of ${frequency(i)} (${type}, rope_theta ${theta})`);
    }
  }
  return rope;
}

/** Pairs of a head that are looked at: no head has as many, and a config may say any number. */
const MOST_PAIRS = 4096;

function ropeOf(entries: z.infer<typeof RopeEntries>, context: RopeContext): RopeConfig {
  const { path, key, headDim, aliases = {} } = context;
  const named = entries.rope_type ?? entries.type ?? "default";
  const type = Object.hasOwn(aliases, named) ? aliases[named] : TYPES.find((known) => known === named);
  const nested = Object.keys(entries).find((name) => isJsonObject(entries[name]));
  if (nested !== undefined) {
    throw unsupported(path, `${key} holds an object ${show(nested)}: rotary settings by kind of layer`);
  }
  if (type === undefined) throw unsupported(path, `${key} has rope_type ${show(named)}`);
  const theta = entries.rope_theta ?? context.theta;
  const partial = entries.partial_rotary_factor ?? context.partial;
  const dims = Math.floor(headDim * partial);
  if (dims === 0) throw badValue(path, `partial_rotary_factor ${partial} of head_dim ${headDim} turns nothing`);
  if (dims === headDim && headDim % 2 !== 0) {
    throw badValue(path, `head_dim ${headDim} is odd; rotary embeddings turn pairs`);
  }
  const base = { theta, dims };
  if (type === "default") return { type, ...base };
  if (type === "linear" || type === "dynamic") return { type, ...base, ...parseEntries(Linear, entries, key, path) };
  if (type === "llama3") return { type, ...base, ...llama3(entries, context) };
  if (dims % 2 !== 0)
    throw badValue(path, `${show(named)} over ${dims} of ${headDim} elements of a head: they are odd`);
  return type === "yarn"
    ? { type, ...base, ...yarn(entries, context) }
    : { type, ...base, ...longrope(entries, context, dims) };
}

/** transformers 4 reads the inner length, transformers 5 the outer one: where they differ no answer is right. */
function agreeing(inner: number, { path, key, originalMaxPositions = inner }: RopeContext): number {
  if (originalMaxPositions === inner) return inner;
  throw badValue(path, `original_max_position_embeddings is ${originalMaxPositions}, but ${inner} in ${key}`);
}

function llama3(entries: object, context: RopeContext) {
  const { path, key } = context;
  const found = parseEntries(Llama3, entries, key, path);
  const { factor, low_freq_factor: lowFreqFactor, high_freq_factor: highFreqFactor } = found;
  if (highFreqFactor <= lowFreqFactor) {
    throw badValue(path, `${key}.high_freq_factor ${highFreqFactor} is not above low_freq_factor ${lowFreqFactor}`);
  }
  const originalMaxPositions = agreeing(found.original_max_position_embeddings, context);
  return { factor, lowFreqFactor, highFreqFactor, originalMaxPositions };
}

function yarn(entries: object, context: RopeContext) {
  const found = parseEntries(Yarn, entries, context.key, context.path);
  const inner = found.original_max_position_embeddings;
  const originalMaxPositions =
    inner == null ? (context.originalMaxPositions ?? context.maxPositions) : agreeing(inner, context);
  const factor = found.factor ?? context.maxPositions / originalMaxPositions;
  const scale = (by: number) => (factor <= 1 ? 1 : 0.1 * by * Math.log(factor) + 1);
  const { mscale, mscale_all_dim: mscaleAll } = found;
  const attentionFactor = found.attention_factor ?? (mscale && mscaleAll ? scale(mscale) / scale(mscaleAll) : scale(1));
  const [betaFast, betaSlow] = [found.beta_fast || 32, found.beta_slow || 1];
  return { factor, attentionFactor, betaFast, betaSlow, truncate: found.truncate, originalMaxPositions };
}

function longrope(entries: object, context: RopeContext, dims: number) {
  const { path, key } = context;
  const found = parseEntries(Longrope, entries, key, path);
  for (const name of ["short_factor", "long_factor"] as const) {
    if (found[name].length === dims / 2) continue;
    throw badValue(
      path,
      `${key}.${name} has ${found[name].length} factors; ${dims} elements of a head need ${dims / 2}`,
    );
  }
  const originalMaxPositions =
    context.originalMaxPositions ?? found.original_max_position_embeddings ?? context.maxPositions;
  const factor = found.factor ?? context.maxPositions / originalMaxPositions;
  const growth = factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(originalMaxPositions));
  return {
    attentionFactor: found.attention_factor ?? growth,
    shortFactors: found.short_factor,
    longFactors: found.long_factor,
    originalMaxPositions,
  };
}

function unsupported(path: string, message: string): StratumError {
  return new StratumError(
    "config/unsupported-rope",
    `${path}: ${message}; supported are ${TYPES.join(", ")}`,
    "use a model with one of these",
  );
}

/** Leading elements of a head that turn: pairs (i, i + rotary / 2). */
export function rotaryDims({ dims }: RopeConfig): number {
  return 2 * Math.ceil(dims / 2);
}

/** Factor of cosines and sines. */
export function ropeScale(rope: RopeConfig): number {
  return rope.type === "yarn" || rope.type === "longrope" ? rope.attentionFactor : 1;
}

/**
 * Inverse frequencies in radians per position, (rotary / 2), in float64: pair i turns by `position * frequency[i]`.
 * `default` is theta^(-2i / dims) (https://arxiv.org/abs/2104.09864); `linear` divides it by the factor; `llama3` divides
 * long wavelengths by the factor, keeps short ones, and blends between; `yarn` blends by how often a pair turns over the
 * original length (https://arxiv.org/abs/2309.00071); `longrope` divides each pair by its own factor
 * (https://arxiv.org/abs/2402.13753).
 * @param long of `longrope` the factors of sequences beyond its original length
 */
export function ropeFrequencies(rope: RopeConfig, long = false): Float64Array<ArrayBuffer> {
  const frequency = pairFrequency(rope, long);
  return Float64Array.from({ length: rotaryDims(rope) / 2 }, (_, i) => frequency(i));
}

function pairFrequency(rope: RopeConfig, long: boolean): (pair: number) => number {
  const { dims, theta } = rope;
  const blend = rope.type === "yarn" ? yarnBlend(rope) : () => 1;
  return (i) => {
    const frequency = 1 / theta ** ((2 * i) / dims);
    switch (rope.type) {
      case "linear":
        return frequency / rope.factor;
      case "llama3":
        return llama3Frequency(rope, frequency);
      case "yarn":
        return (frequency / rope.factor) * (1 - blend(i)) + frequency * blend(i);
      case "longrope":
        return frequency / ((long ? rope.longFactors : rope.shortFactors)[i] ?? Number.NaN);
      default:
        return frequency;
    }
  };
}

function llama3Frequency(rope: Extract<RopeConfig, { type: "llama3" }>, frequency: number): number {
  const { factor, lowFreqFactor, highFreqFactor, originalMaxPositions } = rope;
  // How often the pair turns over the context that the model was first trained on.
  const turns = (originalMaxPositions * frequency) / (2 * Math.PI);
  if (turns < lowFreqFactor) return frequency / factor;
  if (turns > highFreqFactor) return frequency;
  const smooth = (turns - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
  return ((1 - smooth) * frequency) / factor + smooth * frequency;
}

/** How much of a pair's own frequency is kept: 1 for those that turn often over the original length, 0 for slow ones. */
function yarnBlend(rope: Extract<RopeConfig, { type: "yarn" }>): (pair: number) => number {
  const { theta, dims, betaFast, betaSlow, truncate, originalMaxPositions } = rope;
  const pairOf = (turns: number) =>
    (dims * Math.log(originalMaxPositions / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const [fast, slow] = [pairOf(betaFast), pairOf(betaSlow)];
  const low = Math.max(truncate ? Math.floor(fast) : fast, 0);
  const high = Math.min(truncate ? Math.ceil(slow) : slow, dims - 1);
  const width = low === high ? 0.001 : high - low;
  return (pair) => 1 - Math.min(1, Math.max(0, (pair - low) / width));
}
