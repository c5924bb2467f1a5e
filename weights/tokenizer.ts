/**
 * A model's tokenizer, read from a Hugging Face directory. Ids are those that the Rust tokenizer gives for
 * `tokenizer.json`; `tokenizer_config.json` only names special tokens and adds the ones the first file lacks. So does
 * transformers, but for one defect of its version 5: a `LlamaTokenizer` is rebuilt without what `tokenizer.json` says of
 * blanks (https://github.com/huggingface/transformers/issues/45488).
 */

import { Tokenizer as HubTokenizer } from "@huggingface/tokenizers";
import { z } from "zod";
import { messageOf, StratumError } from "../errors.ts";
import { clip, readJsonFile } from "./json.ts";
import { modelFile } from "./model-folder.ts";
import { nonEmpty } from "./schema.ts";
import { withinTime } from "./time-bound.ts";
import { checkTokenizerLimits, unigramToken } from "./tokenizer-limits.ts";

/** Larger files are refused before they are read; the largest published tokenizer.json (256k entries) is about 35 MB. */
const MAX_FILE_BYTES = 128 * 2 ** 20;
/** A larger id would make the library's tables sparse; the largest published vocabularies stay near one million. */
const MAX_ID = 2 ** 24;
/** The largest published tokenizer is built in 2 seconds. */
const MAX_BUILD_MS = 60_000;
/** A regular expression of the file can take any time; published tokenizers need about a microsecond a character. */
const MAX_CODE_MS = 10_000;
const MAX_CODE_MS_PER_CHARACTER = 0.02;

/** Matches half of a surrogate pair: text that no UTF-8 file, and so no reference tokenizer, can hold. */
export const LONE_SURROGATE = /\p{Surrogate}/u;

/** A token that text splits at before anything else. */
export interface SpecialToken {
  readonly id: number;
  readonly content: string;
}

export interface Tokenizer {
  /**
   * Token ids of a text, `(T)`. Special tokens written out in the text become their ids, as in transformers.
   *
   * @throws StratumError `tokenizer/bad-text` for half of a surrogate pair, `tokenizer/failed` when the text cannot be encoded.
   */
  encode(text: string, options: { readonly addSpecialTokens: boolean }): Int32Array;
  /** The text of ids. @throws StratumError `tokenizer/failed` for an id outside the vocabulary, or when it cannot be written. */
  decode(ids: ArrayLike<number>, options?: { readonly skipSpecialTokens?: boolean }): string;
  readonly bosToken: string | null;
  readonly eosToken: string | null;
  /** Whether encoding with special tokens puts BOS first. */
  readonly addsBos: boolean;
  /** What encoding with special tokens puts before a text: `[BOS]` where `addsBos`, else empty. */
  readonly prefixIds: readonly number[];
  /** Highest id + 1, added tokens included. */
  readonly vocabSize: number;
  /** Highest id + 1 of the tokens that ordinary text can reach (added tokens left out). */
  readonly baseVocabSize: number;
  readonly specialTokens: readonly SpecialToken[];
}

/** What a directory says of its special tokens. */
export interface TokenizerConfig {
  /** `tokenizer_config.json` as written. */
  readonly raw: Readonly<Record<string, unknown>>;
  /** Those with a name (`bos_token`, `eos_token`, ...). */
  readonly tokens: Readonly<Record<string, string>>;
  /** These and the ones that are only listed, in the order in which transformers adds them. */
  readonly special: readonly TokenFlags[];
}

const addedTokenSchema = z.looseObject({ id: z.int().min(0).max(MAX_ID), content: nonEmpty(z.string()) });
const tokenizerSchema = z.looseObject({
  added_tokens: z.array(addedTokenSchema).nullish(),
  model: z.looseObject({ type: z.string().optional() }),
});
const MODEL_TYPES: readonly string[] = ["BPE", "WordPiece", "Unigram", "WordLevel"];
const objectSchema = z.looseObject({});
const tokenValueSchema = z.union([
  z.string(),
  z.looseObject({ content: z.string() }).transform((token) => token.content),
]);
const flagsSchema = z.object({
  content: nonEmpty(z.string()),
  lstrip: z.boolean().default(false),
  rstrip: z.boolean().default(false),
  normalized: z.boolean().default(false),
  single_word: z.boolean().default(false),
  special: z.boolean().default(false),
});
type TokenFlags = z.infer<typeof flagsSchema>;
const namedTokenSchema = z
  .union([z.string().transform((content) => ({ content })), z.unknown()])
  .pipe(flagsSchema)
  .transform((token) => ({ ...token, special: true }));
const STANDARD_NAMES = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/**
 * A JSON file checked by a schema, or null where there is none.
 *
 * @throws StratumError `bad` when it is too large, no JSON or not of that shape; `file/unreadable`, `file/not-a-file`.
 */
export async function readOptionalJson<T>(
  path: string,
  schema: z.ZodType<T>,
  bad: "tokenizer/bad-json" | "template/bad-json",
): Promise<T | null> {
  const fix = "download the file again";
  let value: unknown;
  try {
    value = await readJsonFile(path, {
      what: "this part of the tokenizer",
      maxBytes: MAX_FILE_BYTES,
      missing: "file/missing",
      bad,
      fix,
    });
  } catch (thrown) {
    if (thrown instanceof StratumError && thrown.code === "file/missing") return null;
    throw thrown;
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  const where = issue === undefined ? "" : ` at '${issue.path.join(".")}': ${issue.message}`;
  throw new StratumError(bad, `${path} has an unexpected shape${where}`, fix, parsed.error);
}

/**
 * The special tokens of a model directory, from `tokenizer_config.json` and the older `special_tokens_map.json`; both may
 * be absent. As in transformers, the older file wins over a config without `added_tokens_decoder`.
 *
 * @throws StratumError `tokenizer/bad-json`, `model/outside-link`, `file/unreadable`, `file/not-a-file`.
 */
export async function readTokenizerConfig(dir: string): Promise<TokenizerConfig> {
  const raw =
    (await readOptionalJson(await modelFile(dir, "tokenizer_config.json"), objectSchema, "tokenizer/bad-json")) ?? {};
  const map =
    (await readOptionalJson(await modelFile(dir, "special_tokens_map.json"), objectSchema, "tokenizer/bad-json")) ?? {};
  const all = raw["added_tokens_decoder"] === undefined ? { ...raw, ...map } : { ...map, ...raw };
  const extra = all["extra_special_tokens"];
  const extraByName = objectSchema.safeParse(extra).data ?? {};
  const byName: Record<string, unknown> = { ...extraByName, ...all };
  const names = Object.keys(byName).filter((name) => name.endsWith("_token"));
  const tokens: Record<string, string> = {};
  for (const name of names) {
    const token = tokenValueSchema.safeParse(byName[name]);
    if (token.success) tokens[name] = token.data;
  }
  const listed = Array.isArray(extra) && extra.length > 0 ? extra : all["additional_special_tokens"];
  const values = [
    ...[...STANDARD_NAMES, ...names].map((name) => byName[name]),
    ...Object.values(extraByName),
    ...(Array.isArray(listed) ? listed : []),
  ];
  const special = values.flatMap((value) => namedTokenSchema.safeParse(value).data ?? []);
  return { raw, tokens, special };
}

/**
 * The tokenizer of a Hugging Face model directory.
 *
 * @param maxMilliseconds - what encoding and decoding may take, beside 20 us a character or token.
 * @throws StratumError `tokenizer/missing`, `tokenizer/bad-json`, `tokenizer/unsupported` when the library cannot build it,
 *   `model/outside-link`, `file/unreadable`, `file/not-a-file`.
 */
export async function loadTokenizer(dir: string, maxMilliseconds: number = MAX_CODE_MS): Promise<Tokenizer> {
  const path = await modelFile(dir, "tokenizer.json");
  const json = await readOptionalJson(path, tokenizerSchema, "tokenizer/bad-json");
  if (json === null) {
    throw new StratumError(
      "tokenizer/missing",
      `${dir} has no tokenizer.json`,
      'add the model\'s tokenizer.json, or run `extract` on {"ids": [...]} lines, which needs none',
    );
  }
  // The library takes a model that it does not know for one of its legacy forms.
  const { type } = json.model;
  if (type !== undefined && !MODEL_TYPES.includes(type)) {
    throw unsupported(path, `its model is of type ${JSON.stringify(type)}; known are ${MODEL_TYPES.join(", ")}`);
  }
  checkTokenizerLimits(json, path);
  const config = await readTokenizerConfig(dir);
  const addedTokens = mergeAddedTokens(json.added_tokens ?? [], config, json.model["vocab"]);
  const baseVocabSize = baseVocabulary(path, json.model["vocab"], new Set(addedTokens.map((token) => token.content)));
  const vocabSize = addedTokens.reduce((size, token) => Math.max(size, token.id + 1), baseVocabSize);
  const eosToken = config.tokens["eos_token"] ?? null;

  let hub: HubTokenizer;
  try {
    // Only what the Rust tokenizer also reads: the library would apply options of the config that transformers ignores.
    const file = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null, ...json };
    hub = withinTime(
      MAX_BUILD_MS,
      () => new HubTokenizer({ ...file, added_tokens: addedTokens }, { eos_token: eosToken ?? undefined }),
    );
  } catch (cause) {
    throw unsupported(path, cause);
  }

  const encode: Tokenizer["encode"] = (text, { addSpecialTokens }) => {
    if (LONE_SURROGATE.test(text)) {
      throw new StratumError(
        "tokenizer/bad-text",
        `half of a surrogate pair at character ${text.search(LONE_SURROGATE)}: not Unicode text`,
        "remove or complete the \\uD800-\\uDFFF escape",
      );
    }
    let ids: number[];
    try {
      const most = maxMilliseconds + text.length * MAX_CODE_MS_PER_CHARACTER;
      ids = withinTime(most, () => hub.encode(text, { add_special_tokens: addSpecialTokens }).ids);
    } catch (cause) {
      throw new StratumError(
        "tokenizer/failed",
        `the tokenizer failed on a text of ${text.length} characters: ${clip(messageOf(cause))}`,
        "shorten the text, or pass token ids",
        cause,
      );
    }
    // The library's result is undefined for a token outside the vocabulary when no unknown token is set.
    const unknown = ids.findIndex((id) => !Number.isInteger(id));
    if (unknown >= 0) {
      throw new StratumError(
        "tokenizer/failed",
        `token ${unknown} of the text is not in the vocabulary and the tokenizer has no unknown token`,
        "check that tokenizer.json belongs to this model",
      );
    }
    return Int32Array.from(ids);
  };

  const prefixIds = findPrefix(path, encode);
  return {
    encode,
    decode: (ids, options = {}) => {
      const list = Array.from(ids);
      const bad = list.find((id) => hub.id_to_token(id) === undefined);
      if (bad !== undefined) {
        throw new StratumError("tokenizer/failed", `no token has the id ${bad}`, `use ids below ${vocabSize}`);
      }
      if (list.length === 0) return "";
      const how = {
        skip_special_tokens: options.skipSpecialTokens ?? false,
        clean_up_tokenization_spaces: false,
      };
      try {
        return withinTime(maxMilliseconds + list.length * MAX_CODE_MS_PER_CHARACTER, () => hub.decode(list, how));
      } catch (cause) {
        throw new StratumError(
          "tokenizer/failed",
          `the tokenizer cannot write ${list.length} tokens as text: ${clip(messageOf(cause))}`,
          "check that tokenizer.json is complete",
          cause,
        );
      }
    },
    bosToken: config.tokens["bos_token"] ?? null,
    eosToken,
    addsBos: prefixIds.length > 0,
    prefixIds,
    vocabSize,
    baseVocabSize,
    specialTokens: addedTokens
      .filter((token) => token["special"] === true)
      .map(({ id, content }) => ({ id, content }))
      .sort((a, b) => a.id - b.id),
  };
}

/**
 * Refuses a tokenizer whose ordinary tokens have no row in the model's embedding table. Added tokens may lie beyond it
 * (published text-only Gemma 3 checkpoints have one such token); {@link checkIds} catches their use.
 *
 * @param vocab - V, rows of the embedding table.
 * @throws StratumError `tokenizer/mismatch`.
 */
export function checkVocabulary(tokenizer: Tokenizer, vocab: number): void {
  if (tokenizer.baseVocabSize <= vocab) return;
  throw new StratumError(
    "tokenizer/mismatch",
    `the tokenizer gives ids up to ${tokenizer.baseVocabSize - 1}, the model has ${vocab} embeddings`,
    "use the tokenizer.json that was published with this checkpoint",
  );
}

/**
 * Refuses ids without a row in the embedding table.
 *
 * @param ids - (T) token ids.
 * @param vocab - V, rows of the embedding table.
 * @throws StratumError `tokenizer/mismatch`.
 */
export function checkIds(ids: ArrayLike<number>, vocab: number): void {
  for (let t = 0; t < ids.length; t++) {
    const id = ids[t] ?? -1;
    if (id >= 0 && id < vocab) continue;
    throw new StratumError(
      "tokenizer/mismatch",
      `token ${t} has the id ${id}, the model has ${vocab} embeddings`,
      "use the tokenizer.json and the ids that belong to this checkpoint",
    );
  }
}

type AddedToken = z.infer<typeof addedTokenSchema>;

/**
 * What transformers adds to a tokenizer: the config's `added_tokens_decoder`, whose flags win over those of
 * tokenizer.json, then the named special tokens. A new token gets its id in the vocabulary, or the next free one,
 * whatever the config says.
 */
function mergeAddedTokens(tokens: readonly AddedToken[], config: TokenizerConfig, vocab: unknown): AddedToken[] {
  const merged = new Map(tokens.map((token) => [token.content, token]));
  // Made on first use: most tokenizers lack nothing.
  let ids: ReadonlyMap<string, unknown> | undefined;
  let next = 0;
  const newId = (content: string): number => {
    if (ids === undefined) {
      ids = vocabularyIds(vocab);
      next = tokens.reduce((size, token) => Math.max(size, token.id + 1), ids.size);
    }
    const id = ids.get(content);
    return typeof id === "number" ? id : next++;
  };
  const decoder = objectSchema.safeParse(config.raw["added_tokens_decoder"]).data ?? {};
  for (const [, value] of Object.entries(decoder).sort(([a], [b]) => Number(a) - Number(b))) {
    const flags = flagsSchema.safeParse(value).data;
    if (flags === undefined) continue;
    const known = merged.get(flags.content);
    merged.set(flags.content, { ...known, ...flags, id: known?.id ?? newId(flags.content) });
  }
  for (const flags of config.special) {
    const known = merged.get(flags.content);
    merged.set(flags.content, { ...flags, ...known, special: true, id: known?.id ?? newId(flags.content) });
  }
  return [...merged.values()];
}

function vocabularyIds(vocab: unknown): ReadonlyMap<string, unknown> {
  if (typeof vocab !== "object" || vocab === null) return new Map();
  // A Unigram vocabulary is a list of [token, score].
  return Array.isArray(vocab)
    ? new Map(vocab.map((entry, id) => [unigramToken(entry), id]))
    : new Map(Object.entries(vocab));
}

function baseVocabulary(path: string, vocab: unknown, added: ReadonlySet<string>): number {
  if (Array.isArray(vocab)) return vocab.length;
  let size = 0;
  for (const [token, id] of Object.entries(objectSchema.safeParse(vocab).data ?? {})) {
    if (typeof id !== "number" || !Number.isInteger(id) || id < 0 || id > MAX_ID) {
      throw unsupported(path, new Error(`token ${JSON.stringify(token)} has the id ${JSON.stringify(id)}`));
    }
    if (id >= size && !added.has(token)) size = id + 1;
  }
  return size;
}

/** What encoding with special tokens puts before a text; known only by trying, as post-processors come in many kinds. */
function findPrefix(path: string, encode: Tokenizer["encode"]): readonly number[] {
  try {
    const plain = encode("a", { addSpecialTokens: false });
    const whole = encode("a", { addSpecialTokens: true });
    for (let start = 0; start + plain.length <= whole.length; start++) {
      if (plain.every((id, t) => whole[start + t] === id)) return [...whole.subarray(0, start)];
    }
    throw new Error("its post-processor changes the tokens of the text itself");
  } catch (cause) {
    throw unsupported(path, cause);
  }
}

function unsupported(path: string, cause: unknown): StratumError {
  return new StratumError(
    "tokenizer/unsupported",
    `cannot build a tokenizer from ${path}: ${clip(messageOf(cause))}`,
    "check that the file is complete; `extract` on token ids needs no tokenizer",
    cause,
  );
}
