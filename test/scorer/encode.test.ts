/** From lists to token rows, with the demo model's tokenizer and template: what is refused, cut and noted. */
import { cp, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type ModelFiles, openModelFiles } from "../../engine/model-files.ts";
import { createListEncoder, type EncodeOptions } from "../../scorer/encode.ts";
import { parseList } from "../../scorer/lists.ts";
import { DEMO_MODEL } from "../support/cli.ts";
import { failing } from "../support/failing.ts";

const MAX_POSITIONS = 512;
const END = 5;

let files: ModelFiles;
/** The same model with another template: none, or one that reads the clock and closes turns with nothing. */
let untemplated: ModelFiles;
let clock: ModelFiles;
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "stratum-encode-"));
  for (const name of ["untemplated", "clock"]) await cp(DEMO_MODEL, join(folder, name), { recursive: true });
  // Without its configuration the tokenizer adds no template; that it adds BOS stands in tokenizer.json.
  await rm(join(folder, "untemplated", "tokenizer_config.json"));
  await writeFile(
    join(folder, "clock", "chat_template.jinja"),
    "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}",
  );
  files = await openModelFiles(DEMO_MODEL);
  untemplated = await openModelFiles(join(folder, "untemplated"));
  clock = await openModelFiles(join(folder, "clock"));
});
afterAll(async () => {
  for (const each of [files, untemplated, clock]) await each[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

const listOf = (candidates: readonly string[], instruction = "What is it?") =>
  parseList({ instruction, candidates }, "1");
async function encode(candidates: readonly string[], options: EncodeOptions = {}, model = files) {
  const encoder = await createListEncoder(model, options);
  return encoder.encode(listOf(candidates));
}
const rows = ({ group }: { group: { sequences: readonly Int32Array[] } }) => group.sequences.map((ids) => [...ids]);

describe("a list", () => {
  it("is its prompt, then the prompt with each response, encoded as one text", async () => {
    const encoded = await encode(["A cat.", " dog"]);
    const tokenizer = await files.tokenizer();
    const prompt = "<|bos|><|user|>\nWhat is it?<|end|>\n<|assistant|>\n";
    const texts = [prompt, `${prompt}A cat.`, `${prompt} dog`];
    const expected = texts.map((text) => [...tokenizer.encode(text, { addSpecialTokens: false })]);
    expect(rows(encoded)).toEqual(expected);
    expect(encoded.notes).toEqual({});
    expect(encoded.tokens).toBe(expected.flat().length);
    // The prompt stays beside its candidates where a list is cut into batches.
    expect(encoded.group.anchored).toBe(true);
  });

  it("begins with the system message", async () => {
    const encoded = await encode(["A cat."], { system: "Be brief." });
    const text = (await files.tokenizer()).decode(encoded.group.sequences[0]!);
    expect(text).toMatch(/^<\|bos\|><\|system\|>\nBe brief\.<\|end\|>\n<\|user\|>\nWhat is it\?/);
  });

  it("without a template is plain text after BOS, and says so", async () => {
    const encoded = await encode([" A cat."], {}, untemplated);
    expect(encoded.notes).toEqual({ template: "none" });
    expect((await files.tokenizer()).decode(encoded.group.sequences[1]!)).toBe("<|bos|>What is it? A cat.");
  });

  it("with a template that reads the clock records the date it was shown", async () => {
    const fixed = await encode(["a"], {}, clock);
    expect(fixed.notes).toEqual({ date: "2026-01-01" });
    const dated = await encode(["a"], { date: "1999-12-31" }, clock);
    expect(dated.notes).toEqual({ date: "1999-12-31" });
    expect(rows(dated)).not.toEqual(rows(fixed));
  });
});

describe("pooling end", () => {
  it("appends the token that ends an assistant's turn to candidates, not to the prompt", async () => {
    const last = rows(await encode(["A cat.", "b"]));
    expect(rows(await encode(["A cat.", "b"], { pooling: "end" }))).toEqual(
      last.map((ids, i) => (i === 0 ? ids : [...ids, END])),
    );
  });

  it("needs a template that has such a token", async () => {
    await expect(encode(["a"], { pooling: "end" }, untemplated)).rejects.toThrow(
      failing("template/no-end-token", "has none"),
    );
    await expect(encode(["a"], { pooling: "end" }, clock)).rejects.toThrow(failing("template/no-end-token", ""));
  });
});

describe("refused", () => {
  it.each([{}, { pooling: "end" }, { truncate: true }] as const)("an empty response, with %o", async (options) => {
    await expect(encode(["a", ""], options)).rejects.toThrow(failing("list/empty-response", "candidate 1"));
  });

  it("a response beyond the model's length, with the numbers, and that --truncate helps", async () => {
    const long = " word".repeat(MAX_POSITIONS);
    const error = await encode(["a", long]).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ code: "list/too-long", fix: expect.stringContaining("--truncate") });
    expect(String(error)).toMatch(/candidate 1 has \d+ tokens with its prompt of \d+; the model has 512 positions/);
  });

  it.each([{}, { truncate: true }])("a prompt beyond the model's length, with %o", async (options) => {
    const encoder = await createListEncoder(files, options);
    expect(() => encoder.encode(listOf(["a"], " word".repeat(MAX_POSITIONS)))).toThrow(
      failing("list/too-long", "the model has 512 positions"),
    );
  });
});

describe("truncate", () => {
  /** A response of which exactly `count` tokens are added to the prompt. */
  async function responseOf(count: number): Promise<string> {
    const response = " word".repeat(count);
    const [prompt, row] = rows(await encode([response], { truncate: true }));
    expect(row!.length - prompt!.length).toBe(Math.min(count, MAX_POSITIONS - prompt!.length));
    return response;
  }

  it("keeps the first tokens, and notes which candidates it cut", async () => {
    const [prompt] = rows(await encode(["a"]));
    const room = MAX_POSITIONS - prompt!.length;
    const responses = [await responseOf(room), await responseOf(room + 1), "short", await responseOf(2 * room)];
    const encoded = await encode(responses, { truncate: true });
    expect(encoded.notes).toEqual({ truncated: [1, 3] });
    const [, fits, cut, , twice] = rows(encoded);
    expect(fits).toHaveLength(MAX_POSITIONS);
    expect([cut, twice]).toEqual([fits, fits]);
    expect((await encode([responses[0]!])).notes).toEqual({});
  });

  it("cuts before the end token, which pooling end reads", async () => {
    const [prompt] = rows(await encode(["a"]));
    const room = MAX_POSITIONS - prompt!.length;
    const [response, longer] = [await responseOf(room - 1), await responseOf(room + 9)];
    const encoded = await encode([response, longer], { truncate: true, pooling: "end" });
    expect(encoded.notes).toEqual({ truncated: [1] });
    const [, fits, cut] = rows(encoded);
    expect(fits!.at(-1)).toBe(END);
    expect(cut).toEqual(fits);
  });
});
