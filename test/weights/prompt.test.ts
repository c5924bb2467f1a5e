import { existsSync, readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { compileChatTemplate, loadChatTemplate } from "../../weights/chat-template.ts";
import { commonPrefixLength, encodeList, encodeText, truncate } from "../../weights/prompt.ts";
import { loadTokenizer, type Tokenizer } from "../../weights/tokenizer.ts";

const BOS = 0;
const EOS = 1;
const END = 2;
const VOCAB = { "<s>": BOS, "</s>": EOS, "<end>": END, a: 3, b: 4, c: 5, Ċ: 6, ab: 7, ":": 8 };
const tokenizerJson = (bosAndEos: boolean) => ({
  added_tokens: ["<s>", "</s>", "<end>"].map((content, id) => ({ id, content, special: true, normalized: false })),
  normalizer: null,
  pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, use_regex: false },
  post_processor: bosAndEos
    ? {
        type: "TemplateProcessing",
        single: [{ SpecialToken: { id: "<s>" } }, { Sequence: { id: "A" } }, { SpecialToken: { id: "</s>" } }],
        pair: [],
        special_tokens: { "<s>": { id: "<s>", ids: [BOS] }, "</s>": { id: "</s>", ids: [EOS] } },
      }
    : null,
  decoder: { type: "ByteLevel" },
  model: { type: "BPE", vocab: VOCAB, merges: ["a b"] },
});

let dir: string;
let plain: Tokenizer;
let withBosAndEos: Tokenizer;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "stratum-prompt-"));
  await writeFile(join(dir, "tokenizer.json"), JSON.stringify(tokenizerJson(false)));
  plain = await loadTokenizer(dir);
  await writeFile(join(dir, "tokenizer.json"), JSON.stringify(tokenizerJson(true)));
  withBosAndEos = await loadTokenizer(dir);
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const user = (content: string) => [{ role: "user", content }];
const template = compileChatTemplate(
  "<s>{% for m in messages %}{% if m.role == 'system' %}c{% endif %}{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}:{% endif %}",
);
const ids = (list: { candidates: readonly { ids: Int32Array }[] }) => list.candidates.map((row) => [...row.ids]);

describe("without a template", () => {
  it("is BOS, then prompt and response as one text, and no EOS", () => {
    const list = encodeList({
      tokenizer: withBosAndEos,
      template: null,
      messages: user("ca"),
      responses: ["c", "aa"],
    });
    expect([...list.prompt]).toEqual([BOS, 5, 3]);
    expect(ids(list)).toEqual([
      [BOS, 5, 3, 5],
      [BOS, 5, 3, 3, 3],
    ]);
    expect(list).toMatchObject({ templated: false, usedClock: false });
    expect(list.candidates.map((row) => row.responseStart)).toEqual([3, 3]);
  });

  it("adds no BOS where the tokenizer adds none, and joins messages by newlines", () => {
    const list = encodeList({ tokenizer: plain, template: null, messages: user("a"), system: "b", responses: ["c"] });
    expect([...list.prompt]).toEqual([4, 6, 3]);
    expect(ids(list)).toEqual([[4, 6, 3, 5]]);
  });

  it("gives a token that merges across the border to the response", () => {
    const list = encodeList({ tokenizer: plain, template: null, messages: user("ca"), responses: ["b", "c"] });
    expect([...list.prompt]).toEqual([5, 3]);
    expect(ids(list)).toEqual([
      [5, 7],
      [5, 3, 5],
    ]);
    expect(list.candidates.map((row) => row.responseStart)).toEqual([1, 2]);
  });

  it("refuses a prompt without tokens", () => {
    const input = { template: null, messages: user(""), responses: ["a"] };
    expect(() => encodeList({ tokenizer: plain, ...input })).toThrowError(
      expect.objectContaining({ code: "list/empty-prompt" }),
    );
    expect([...encodeList({ tokenizer: withBosAndEos, ...input }).prompt]).toEqual([BOS]);
  });
});

describe("with a template", () => {
  it("takes BOS from the template alone, and the generation prompt before the response", () => {
    const list = encodeList({
      tokenizer: withBosAndEos,
      template,
      messages: user("a"),
      system: "b",
      responses: ["ab"],
    });
    expect([...list.prompt]).toEqual([BOS, 5, 4, END, 3, END, 8]);
    expect(ids(list)).toEqual([[BOS, 5, 4, END, 3, END, 8, 7]]);
    expect(list.templated).toBe(true);
  });

  it("appends the end token to candidates only", () => {
    const input = { tokenizer: plain, template, messages: user("a"), responses: ["b", ""] };
    const list = encodeList({ ...input, endToken: END });
    expect([...list.prompt]).toEqual([BOS, 3, END, 8]);
    expect(ids(list)).toEqual([
      [BOS, 3, END, 8, 4, END],
      [BOS, 3, END, 8, END],
    ]);
    expect(list.candidates.map((row) => row.empty)).toEqual([false, true]);
  });

  it("flags a response that adds no token", () => {
    const trimming = compileChatTemplate("{{ messages[0].content }}");
    // This vocabulary has no "z" and no unknown token: the byte vanishes, as it does in the reference tokenizer.
    const list = encodeList({ tokenizer: plain, template: trimming, messages: user("a"), responses: ["", "z", "b"] });
    expect(list.candidates.map((row) => row.empty)).toEqual([true, true, false]);
  });

  it("passes the date on and reports that it was read", () => {
    const dated = compileChatTemplate("{% if strftime_now('%d') == '05' %}a{% else %}b{% endif %}");
    const input = { tokenizer: plain, template: dated, messages: user("a"), responses: ["c"] };
    expect(encodeList(input)).toMatchObject({ usedClock: true, prompt: Int32Array.of(4) });
    expect(encodeList({ ...input, date: "2020-03-05" }).prompt).toEqual(Int32Array.of(3));
  });
});

describe("small parts", () => {
  it("encodeText is BOS and the text", () => {
    expect([...encodeText(withBosAndEos, "ab")]).toEqual([BOS, 7]);
    expect([...encodeText(plain, "ab")]).toEqual([7]);
  });

  it("commonPrefixLength", () => {
    expect(commonPrefixLength([], [1])).toBe(0);
    expect(commonPrefixLength([1, 2, 3], [1, 2])).toBe(2);
    expect(commonPrefixLength([1, 2, 3], [1, 4, 3])).toBe(1);
  });

  it("truncate keeps the head and says how much it cut", () => {
    const row = Int32Array.of(1, 2, 3);
    expect(truncate(row, 3)).toEqual({ ids: row, dropped: 0 });
    expect(truncate(row, 2)).toEqual({ ids: Int32Array.of(1, 2), dropped: 1 });
    for (const max of [0, -1, 1.5, Number.NaN]) {
      expect(() => truncate(row, max)).toThrowError(expect.objectContaining({ code: "usage/bad-max-tokens" }));
    }
  });
});

const DEMO = new URL("../../../shared/models/demo", import.meta.url).pathname;
describe.skipIf(!existsSync(DEMO))("../shared/models/demo (skipped where that folder is absent)", () => {
  it("gives the ids of transformers for prompts, responses and plain texts", async () => {
    const tokenizer = await loadTokenizer(DEMO);
    const chat = await loadChatTemplate(DEMO);
    const golden = JSON.parse(readFileSync(join(DEMO, "golden.json"), "utf8"));
    for (const { text, messages, response, ids: expected } of golden.sequences) {
      if (text !== undefined) {
        expect([...encodeText(tokenizer, text)]).toEqual(expected);
        continue;
      }
      const list = encodeList({ tokenizer, template: chat, messages, responses: response === null ? [] : [response] });
      expect([...(list.candidates[0]?.ids ?? list.prompt)]).toEqual(expected);
    }
  });
});
