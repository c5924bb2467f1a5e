import { existsSync, readFileSync } from "node:fs";
import { mkdtemp, open, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { checkIds, checkVocabulary, loadTokenizer } from "../../weights/tokenizer.ts";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "stratum-tokenizer-"));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

const write = (name: string, value: unknown) =>
  writeFile(join(dir, name), typeof value === "string" ? value : JSON.stringify(value));

/** `<s>` = 1, `</s>` = 2, letters from 3, then the merges "ab" and "abc". */
const VOCAB = { "<unk>": 0, "<s>": 1, "</s>": 2, a: 3, b: 4, c: 5, d: 6, Ġ: 7, ab: 8, abc: 9 };
const special = (id: number, content: string) => ({ id, content, special: true, normalized: false });
const bosThenText = {
  type: "TemplateProcessing",
  single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
  pair: [],
  special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
};
const textThenEos = {
  ...bosThenText,
  single: [{ Sequence: { id: "A", type_id: 0 } }, { SpecialToken: { id: "</s>", type_id: 0 } }],
  special_tokens: { "</s>": { id: "</s>", ids: [2], tokens: ["</s>"] } },
};
const tokenizerJson = (changes: Record<string, unknown> = {}) => ({
  version: "1.0",
  added_tokens: [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
  normalizer: null,
  pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, use_regex: true },
  post_processor: bosThenText,
  decoder: { type: "ByteLevel" },
  model: { type: "BPE", unk_token: "<unk>", vocab: VOCAB, merges: ["a b", "ab c"] },
  ...changes,
});

describe("encode", () => {
  it("merges, adds BOS only when asked to, and reads special tokens in text", async () => {
    await write("tokenizer.json", tokenizerJson());
    const tokenizer = await loadTokenizer(dir);
    expect([...tokenizer.encode("abcd ab", { addSpecialTokens: true })]).toEqual([1, 9, 6, 7, 8]);
    expect([...tokenizer.encode("abcd ab", { addSpecialTokens: false })]).toEqual([9, 6, 7, 8]);
    expect([...tokenizer.encode("ab</s>c", { addSpecialTokens: false })]).toEqual([8, 2, 5]);
    expect([...tokenizer.encode("", { addSpecialTokens: false })]).toEqual([]);
    expect(tokenizer.decode([9, 6, 7, 8])).toBe("abcd ab");
    expect(tokenizer.decode([1, 9], { skipSpecialTokens: true })).toBe("abc");
    expect(tokenizer.decode([])).toBe("");
    expect(() => tokenizer.decode([9, 77])).toThrowError(expect.objectContaining({ code: "tokenizer/failed" }));
  });

  it("refuses half of a surrogate pair, and takes a whole one", async () => {
    await write("tokenizer.json", tokenizerJson());
    const tokenizer = await loadTokenizer(dir);
    for (const text of ["a\ud800", "\udc00a", "a\udc00\ud800b"]) {
      expect(() => tokenizer.encode(text, { addSpecialTokens: false })).toThrowError(
        expect.objectContaining({ code: "tokenizer/bad-text" }),
      );
    }
    expect(tokenizer.encode("a\ud83d\ude42", { addSpecialTokens: false })[0]).toBe(3);
  });

  it("refuses a token outside the vocabulary when there is no unknown token", async () => {
    const model = { type: "WordLevel", vocab: { a: 0, b: 1 } };
    await write(
      "tokenizer.json",
      tokenizerJson({ added_tokens: [], model, post_processor: null, pre_tokenizer: null }),
    );
    const tokenizer = await loadTokenizer(dir);
    expect([...tokenizer.encode("b", { addSpecialTokens: true })]).toEqual([1]);
    expect(() => tokenizer.encode("zzz", { addSpecialTokens: true })).toThrowError(/no unknown token/);
  });
});

describe("what a tokenizer says about itself", () => {
  it("knows BOS by what encoding does, not by the config's word", async () => {
    await write("tokenizer.json", tokenizerJson({ post_processor: textThenEos }));
    await write("tokenizer_config.json", { bos_token: "<s>", add_bos_token: true });
    const tokenizer = await loadTokenizer(dir);
    expect(tokenizer).toMatchObject({ addsBos: false, prefixIds: [], bosToken: "<s>" });
    expect([...tokenizer.encode("ab", { addSpecialTokens: true })]).toEqual([8, 2]);

    await write("tokenizer.json", tokenizerJson());
    expect(await loadTokenizer(dir)).toMatchObject({ addsBos: true, prefixIds: [1] });
  });

  it("takes names from tokenizer_config.json and special_tokens_map.json; strings and {content} alike", async () => {
    await write("tokenizer.json", tokenizerJson());
    expect(await loadTokenizer(dir)).toMatchObject({ bosToken: null, eosToken: null });
    await write("special_tokens_map.json", { bos_token: { content: "<s>", lstrip: false }, eos_token: "</s>" });
    expect(await loadTokenizer(dir)).toMatchObject({ bosToken: "<s>", eosToken: "</s>" });
    // As in transformers, the older file wins over a config without added_tokens_decoder.
    await write("tokenizer_config.json", { eos_token: { content: "<unk>" }, unk_token: "<unk>" });
    expect(await loadTokenizer(dir)).toMatchObject({ bosToken: "<s>", eosToken: "</s>" });
    await write("tokenizer_config.json", { eos_token: { content: "<unk>" }, added_tokens_decoder: {} });
    expect(await loadTokenizer(dir)).toMatchObject({ bosToken: "<s>", eosToken: "<unk>" });
  });

  it("adds the tokens that only the config has under the next free ids, and lets its flags win", async () => {
    await write("tokenizer.json", tokenizerJson());
    const added_tokens_decoder = {
      "2": { content: "</s>", special: true, rstrip: true },
      "10": { content: "<|end|>", special: true },
      "3": { content: "<|taken|>", special: true },
    };
    await write("tokenizer_config.json", { added_tokens_decoder });
    const tokenizer = await loadTokenizer(dir);
    const text = "a<|taken|><|end|>b</s> c";
    expect([...tokenizer.encode(text, { addSpecialTokens: false })]).toEqual([3, 10, 11, 4, 2, 5]);
    expect(tokenizer).toMatchObject({ vocabSize: 12, baseVocabSize: 10 });
    expect(tokenizer.specialTokens.map((token) => token.content)).toContain("<|end|>");
  });

  // The ids are those of PreTrainedTokenizerFast (transformers 5.18) on the same files.
  it.each([
    ["a name", { pad_token: "ab" }, "abcab", [8, 5, 8]],
    ["an object with flags", { eos_token: { __type: "AddedToken", content: "ab", rstrip: true } }, "ab c", [8, 5]],
    ["a name of the model's own", { boi_token: "<new>" }, "a<new>", [3, 10]],
    ["two names", { mask_token: "<mask>", pad_token: "<pad>" }, "<mask><pad>", [11, 10]],
    ["additional_special_tokens", { additional_special_tokens: ["<x>", "</s>"] }, "<x></s>", [10, 2]],
    ["extra_special_tokens, a list", { extra_special_tokens: ["<x>"] }, "a<x>", [3, 10]],
    ["extra_special_tokens by name", { extra_special_tokens: { image_token: "<x>" } }, "a<x>", [3, 10]],
  ])("adds special tokens that only have a name: %s", async (_what, config, text, ids) => {
    await write("tokenizer.json", tokenizerJson());
    await write("tokenizer_config.json", config);
    const tokenizer = await loadTokenizer(dir);
    expect([...tokenizer.encode(text, { addSpecialTokens: false })]).toEqual(ids);
    expect(tokenizer.specialTokens.map((token) => token.id)).toContain(Math.max(...ids));
  });

  it("counts a token as special when it is the named end of a text", async () => {
    const added = [special(1, "<s>"), { id: 10, content: "<|im_end|>", special: false }];
    await write("tokenizer.json", tokenizerJson({ added_tokens: added }));
    await write("tokenizer_config.json", { eos_token: "<|im_end|>" });
    expect((await loadTokenizer(dir)).specialTokens).toContainEqual({ id: 10, content: "<|im_end|>" });
  });

  it("sorts special tokens by id and leaves out added tokens that are not special", async () => {
    const added = [special(2, "</s>"), special(1, "<s>"), { id: 10, content: "word", special: false }];
    await write("tokenizer.json", tokenizerJson({ added_tokens: added }));
    const tokenizer = await loadTokenizer(dir);
    expect(tokenizer.specialTokens).toEqual([
      { id: 1, content: "<s>" },
      { id: 2, content: "</s>" },
    ]);
  });
});

describe("a vocabulary that is not the model's", () => {
  it("is refused when ordinary tokens lie beyond the embeddings, and ids are checked one by one", async () => {
    await write("tokenizer.json", tokenizerJson({ added_tokens: [special(1, "<s>"), special(20, "<image>")] }));
    const tokenizer = await loadTokenizer(dir);
    expect(tokenizer.vocabSize).toBe(21);
    expect(() => checkVocabulary(tokenizer, 10)).not.toThrow();
    expect(() => checkVocabulary(tokenizer, 9)).toThrowError(expect.objectContaining({ code: "tokenizer/mismatch" }));
    expect(() => checkIds(tokenizer.encode("a<image>", { addSpecialTokens: true }), 20)).toThrowError(
      /token 2 .* id 20/,
    );
    expect(() => checkIds([0, 19], 20)).not.toThrow();
    expect(() => checkIds([-1], 20)).toThrowError(expect.objectContaining({ code: "tokenizer/mismatch" }));
  });
});

describe("files that cannot be used", () => {
  const code = async () => {
    const thrown: unknown = await loadTokenizer(dir).catch((error: unknown) => error);
    return (thrown as { code: string }).code;
  };

  it("a missing tokenizer.json says what works without one", async () => {
    await expect(loadTokenizer(dir)).rejects.toMatchObject({
      code: "tokenizer/missing",
      fix: expect.stringContaining('{"ids": [...]}'),
    });
  });

  it.each([
    ["no JSON", "{", "tokenizer/bad-json"],
    ["an array", "[]", "tokenizer/bad-json"],
    ["no model", "{}", "tokenizer/bad-json"],
    [
      "added tokens without content",
      JSON.stringify(tokenizerJson({ added_tokens: [{ id: 3 }] })),
      "tokenizer/bad-json",
    ],
    ["an unknown model", JSON.stringify(tokenizerJson({ model: { type: "New" } })), "tokenizer/unsupported"],
    ["an unknown normalizer", JSON.stringify(tokenizerJson({ normalizer: { type: "New" } })), "tokenizer/unsupported"],
    [
      "an id of four thousand million",
      JSON.stringify(tokenizerJson({ model: { type: "BPE", vocab: { a: 4e9 }, merges: [] } })),
      "tokenizer/unsupported",
    ],
  ])("%s", async (_what, content, expected) => {
    await write("tokenizer.json", content);
    expect(await code()).toBe(expected);
  });

  it("a Unigram token that cannot be made a text", async () => {
    const vocab = '[["a",0],[{"toString":1,"valueOf":2},0]]';
    await write("tokenizer.json", `{"model":{"type":"Unigram","unk_id":0,"vocab":${vocab}}}`);
    await write("tokenizer_config.json", { bos_token: "<new>" });
    expect(await code()).toBe("tokenizer/unsupported");
  });

  it("bytes that are not UTF-8, a bad config, and a file past the bound", async () => {
    await writeFile(join(dir, "tokenizer.json"), Uint8Array.of(0x7b, 0xff, 0x7d));
    expect(await code()).toBe("tokenizer/bad-json");
    await write("tokenizer.json", tokenizerJson());
    await write("tokenizer_config.json", "{");
    expect(await code()).toBe("tokenizer/bad-json");
    const sparse = await open(join(dir, "tokenizer.json"), "w");
    await sparse.truncate(129 * 2 ** 20);
    await sparse.close();
    await expect(loadTokenizer(dir)).rejects.toThrowError(/at most 134217728/);
  });
});

describe("a file that would run away", () => {
  const repeated = (times: number, component: unknown) => Array.from({ length: times }, () => component);
  const doubling = { type: "Replace", pattern: { String: "a" }, content: "aa" };
  const single = bosThenText.single;

  it.each<[string, Record<string, unknown>, RegExp]>([
    ["pieces of no characters", { pre_tokenizer: { type: "FixedLength", length: 0 } }, /pieces of 0/],
    ["pieces of a length that is not given", { pre_tokenizer: { type: "FixedLength" } }, /pieces of undefined/],
    [
      "pieces within a sequence",
      { pre_tokenizer: { type: "Sequence", pretokenizers: [{ type: "FixedLength", length: -1 }] } },
      /pieces of -1/,
    ],
    [
      "a text doubled forty times",
      { normalizer: { type: "Sequence", normalizers: repeated(40, doubling) } },
      /1099511627776 times as long/,
    ],
    [
      "a long text between any two characters",
      { normalizer: { type: "Replace", pattern: { String: "" }, content: "x".repeat(1e5) } },
      /content of its "Replace"/,
    ],
    ["a long text in front", { normalizer: { type: "Prepend", prepend: "x".repeat(1e5) } }, /prepend of its "Prepend"/],
    [
      "a hundred thousand tokens around a text",
      { post_processor: { ...bosThenText, single: [...repeated(100_000, single[0]), single[1]] } },
      /100001 tokens around a text/,
    ],
    [
      "more parts than any has",
      { normalizer: { type: "Sequence", normalizers: repeated(5000, { type: "NFC" }) } },
      /components in its normalizer/,
    ],
    [
      "added tokens of many characters",
      { added_tokens: [special(50, "a".repeat(2 ** 20)), special(51, "b".repeat(2 ** 20))] },
      /2097152 characters in its added tokens/,
    ],
    [
      "a pattern that is none, which the library would print",
      { normalizer: { type: "Replace", pattern: { Other: "\u001b[2J" }, content: "" } },
      /pattern of its Replace/,
    ],
  ])("is refused: %s", async (_what, changes, message) => {
    await write("tokenizer.json", tokenizerJson(changes));
    await expect(loadTokenizer(dir)).rejects.toMatchObject({
      code: "tokenizer/unsupported",
      message: expect.stringMatching(message),
    });
  });

  it("is stopped by the clock inside a regular expression, and the next text is encoded", async () => {
    const split = { type: "Split", pattern: { Regex: "(a|a)*d" }, behavior: "Isolated", invert: false };
    await write("tokenizer.json", tokenizerJson({ pre_tokenizer: split }));
    const tokenizer = await loadTokenizer(dir, 200);
    expect(() => tokenizer.encode("a".repeat(60), { addSpecialTokens: false })).toThrowError(
      expect.objectContaining({ code: "tokenizer/failed", message: expect.stringContaining("more than 202 ms") }),
    );
    expect([...tokenizer.encode("abc", { addSpecialTokens: false })]).toEqual([9]);
  });
});

const SHARED = new URL("../../../shared/models/", import.meta.url).pathname;
for (const model of ["demo", "stories260k", "tinystories-656k"]) {
  const folder = join(SHARED, model);
  describe.skipIf(!existsSync(folder))(`../shared/models/${model} (skipped where that folder is absent)`, () => {
    it("gives the ids of transformers", async () => {
      const golden = JSON.parse(readFileSync(join(folder, "golden.json"), "utf8"));
      const tokenizer = await loadTokenizer(folder);
      expect(tokenizer.addsBos).toBe(true);
      for (const { text, templated, ids } of golden.sequences ?? golden.texts) {
        const encoded = tokenizer.encode(text ?? templated, { addSpecialTokens: text !== undefined });
        expect([...encoded]).toEqual(ids);
      }
    });
  });
}
