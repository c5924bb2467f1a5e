/** Tokenizer files: a small one of every kind, with components of every kind changed, and texts through it. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { StratumError } from "../../../errors.ts";
import { loadTokenizer } from "../../../weights/tokenizer.ts";
import { fuzzFolder } from "./folder.ts";
import { codeOf, type FuzzTarget, fuzzTarget, type Outcome, outcomeOf } from "./harness.ts";
import { changedJson, changedJsonText } from "./mutations.ts";

const LETTERS = [..."abcdefghijklmnopqrstuvwxyz \u0120\u2581"];
const vocab = Object.fromEntries(
  ["<unk>", "<s>", "</s>", ...LETTERS, "th", "the", "##e"].map((token, id) => [token, id]),
);
const unigram = Object.keys(vocab).map((token, i) => [token, -i / 10]);
const added_tokens = [
  { id: 1, content: "<s>", special: true, lstrip: false, rstrip: true, normalized: false },
  { id: 40, content: "<|im_end|>", special: true },
];
const NORMALIZERS = [
  null,
  { type: "NFC" },
  {
    type: "Sequence",
    normalizers: [
      { type: "Prepend", prepend: "\u2581" },
      { type: "Replace", pattern: { String: " " }, content: "\u2581" },
    ],
  },
  { type: "BertNormalizer", clean_text: true, handle_chinese_chars: true, strip_accents: null, lowercase: true },
  {
    type: "Sequence",
    normalizers: [
      { type: "Precompiled", precompiled_charsmap: null },
      { type: "Strip", strip_left: true, strip_right: true },
      { type: "Lowercase" },
      { type: "StripAccents" },
    ],
  },
];
const PRE_TOKENIZERS = [
  null,
  { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
  {
    type: "Sequence",
    pretokenizers: [
      {
        type: "Split",
        pattern: { Regex: "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+" },
        behavior: "Isolated",
        invert: false,
      },
      { type: "Digits", individual_digits: true },
    ],
  },
  { type: "Metaspace", replacement: "\u2581", prepend_scheme: "always", split: false },
  { type: "FixedLength", length: 5 },
  {
    type: "Sequence",
    pretokenizers: [
      { type: "Whitespace" },
      { type: "Punctuation", behavior: "Isolated" },
      { type: "BertPreTokenizer" },
    ],
  },
];
const POST_PROCESSORS = [
  null,
  {
    type: "TemplateProcessing",
    single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
    pair: [],
    special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
  },
  { type: "BertProcessing", sep: ["</s>", 2], cls: ["<s>", 1] },
  {
    type: "Sequence",
    processors: [
      { type: "ByteLevel", trim_offsets: false },
      { type: "RobertaProcessing", sep: ["</s>", 2], cls: ["<s>", 1] },
    ],
  },
];
const DECODERS = [
  null,
  { type: "ByteLevel" },
  {
    type: "Sequence",
    decoders: [
      { type: "Replace", pattern: { String: "\u2581" }, content: " " },
      { type: "ByteFallback" },
      { type: "Fuse" },
      { type: "Strip", content: " ", start: 1, stop: 0 },
    ],
  },
  { type: "WordPiece", prefix: "##", cleanup: true },
  { type: "Metaspace", replacement: "\u2581", add_prefix_space: true },
];
const MODELS = [
  { type: "BPE", vocab, merges: ["t h", "th e"], unk_token: "<unk>", fuse_unk: false, byte_fallback: false },
  { type: "BPE", vocab, merges: [["t", "h"]], unk_token: null, ignore_merges: true, byte_fallback: true },
  { type: "WordPiece", vocab, unk_token: "<unk>", continuing_subword_prefix: "##", max_input_chars_per_word: 100 },
  { type: "Unigram", vocab: unigram, unk_id: 0 },
  { type: "WordLevel", vocab, unk_token: "<unk>" },
];
const DOCUMENTS = MODELS.flatMap((model, i) =>
  NORMALIZERS.map((normalizer, j) => ({
    version: "1.0",
    added_tokens,
    normalizer,
    pre_tokenizer: PRE_TOKENIZERS[(i + j) % PRE_TOKENIZERS.length],
    post_processor: POST_PROCESSORS[(i + 2 * j) % POST_PROCESSORS.length],
    decoder: DECODERS[(2 * i + j) % DECODERS.length],
    model,
  })),
);
const KEYS = [
  "normalizer",
  "pre_tokenizer",
  "post_processor",
  "decoder",
  "content",
  "pattern",
  "normalizers",
  "pretokenizers",
  "length",
  "prepend",
  "unk_id",
  "vocab",
  "merges",
  "end_of_word_suffix",
  "str_rep",
  "special",
  "normalized",
];
const VALUES = [
  ...NORMALIZERS,
  ...PRE_TOKENIZERS,
  ...POST_PROCESSORS,
  ...DECODERS,
  { type: "FixedLength", length: 0 },
  { type: "FixedLength" },
  { type: "FixedLength", length: -3 },
  { type: "Prepend", prepend: "p".repeat(1000) },
  { type: "Replace", pattern: { String: "" }, content: "xx" },
  { type: "Replace", pattern: { Regex: "" }, content: "abc" },
  {
    type: "Sequence",
    normalizers: Array.from({ length: 40 }, () => ({ type: "Replace", pattern: { String: "a" }, content: "aa" })),
  },
  { type: "Split", pattern: { Regex: "(a+)+$" }, behavior: "Isolated", invert: false },
  { type: "Split", pattern: { Regex: "(" }, behavior: "Removed" },
  { Regex: "(a|a)*b" },
  { Regex: "[a-" },
  { Regex: "a{1,100}{1,100}" },
  { String: "" },
  "BPE",
  "Unigram",
  "Sequence",
  "Replace",
  2 ** 24,
  2 ** 24 + 1,
  4_294_967_294,
];
const CONFIG = {
  bos_token: "<s>",
  eos_token: { content: "</s>", lstrip: false },
  model_max_length: 1e30,
  additional_special_tokens: ["<|im_end|>"],
  added_tokens_decoder: { "40": { content: "<|im_end|>", special: true }, "41": { content: "<x>", lstrip: true } },
  extra_special_tokens: { image_token: "<i>" },
};
const TEXTS = [
  "",
  "the cat",
  "The  \u00e9 \u4e2d 12345 \ud83d\ude42 </s><|im_end|>x",
  "a".repeat(40),
  " \n\t ",
  "<s>".repeat(3),
];

const folder = fuzzFolder("tokenizer");

/** The clock of one text: far less than a user's, so that many can run. */
const MILLISECONDS = 300;

/** Texts through a tokenizer that loads; each by itself may fail. */
async function useAll(): Promise<Outcome> {
  const tokenizer = await loadTokenizer(folder, MILLISECONDS);
  let outcome = "ok";
  for (const text of TEXTS) {
    try {
      const ids = tokenizer.encode(text, { addSpecialTokens: true });
      tokenizer.decode(ids, { skipSpecialTokens: text === "" });
    } catch (thrown) {
      if (!(thrown instanceof StratumError)) throw thrown;
      outcome = codeOf(thrown);
    }
  }
  return outcome;
}

async function load(tokenizer: Uint8Array, config: Uint8Array): Promise<Outcome> {
  writeFileSync(join(folder, "tokenizer.json"), tokenizer);
  writeFileSync(join(folder, "tokenizer_config.json"), config);
  let used: Outcome | undefined;
  const outcome = await outcomeOf(async () => {
    used = await useAll();
  });
  return used ?? outcome;
}

const DEMO = readFileSync(new URL("../../../weights/demo/tokenizer.json", import.meta.url));
const encode = (value: unknown) => new TextEncoder().encode(JSON.stringify(value));

export const TOKENIZER_TARGETS: readonly FuzzTarget[] = [
  fuzzTarget(
    "tokenizer.json: changed components of every kind",
    800,
    ["ok", "tokenizer/bad-json", "tokenizer/unsupported", "tokenizer/failed"],
    changedJson(DOCUMENTS, KEYS, VALUES),
    (document) => load(encode(document), encode(CONFIG)),
  ),
  fuzzTarget(
    "tokenizer_config.json: changed, beside a good tokenizer",
    250,
    ["ok", "tokenizer/bad-json"],
    changedJsonText(
      [CONFIG],
      ["bos_token", "added_tokens_decoder", "special"],
      [{ content: "" }, { content: "x".repeat(300), special: true }],
    ),
    (config) => load(encode(DOCUMENTS[0]), config),
  ),
  fuzzTarget(
    "tokenizer.json: a large one, damaged",
    100,
    ["tokenizer/bad-json"],
    fc.tuple(fc.nat(DEMO.length - 1), fc.nat(255), fc.nat(64)),
    ([at, byte, cut]) =>
      load(Buffer.concat([DEMO.subarray(0, at), Buffer.of(byte), DEMO.subarray(at + cut)]), encode({})),
  ),
];
