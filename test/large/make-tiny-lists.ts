/**
 * Writes a tiny checkpoint (random weights, 2 blocks, the demo model's tokenizer and template) and many tiny lists, of 2
 * candidates of 4 tokens each, to measure what a list costs beside the model:
 *
 *     npx tsx test/large/make-tiny-lists.ts DIR [LISTS]
 *     node dist/cli/main.js rank DIR/lists.jsonl --model DIR/model --layer 1 -o DIR/rankings.jsonl
 *
 * A million lists (the default) take 113 MB. Read by no test of the test command; `test/long` makes some of its own.
 */
import { createWriteStream } from "node:fs";
import { cp, mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { seededRandom } from "../../kernels/random.ts";
import { loadTokenizer } from "../../weights/tokenizer.ts";
import { writeTinyModel } from "../support/tiny-model.ts";

const [directory, count = "1000000"] = process.argv.slice(2);
if (directory === undefined) throw new Error("give the folder to write into");
await mkdir(directory, { recursive: true });
const demo = fileURLToPath(new URL("../../weights/demo", import.meta.url));
const model = join(directory, "model");
{
  await using tiny = await writeTinyModel({ vocab: 4096, hidden: 32, ffn: 64, heads: 2, kvHeads: 1, layers: 2 });
  for (const name of ["tokenizer.json", "tokenizer_config.json"])
    await cp(join(demo, name), join(tiny.directory, name));
  await rm(model, { recursive: true, force: true });
  await cp(tiny.directory, model, { recursive: true });
}

const tokenizer = await loadTokenizer(model);
const text = "the a good bad water fire road rain dog cat man time way day thing house car light door book food";
const words = text.split(" ").filter((word) => tokenizer.encode(` ${word}`, { addSpecialTokens: false }).length === 1);
if (words.length < 8) throw new Error(`only ${words.length} words are one token`);
const random = seededRandom(1);
const phrase = () => Array.from({ length: 4 }, () => ` ${words[Math.floor(random() * words.length)]}`).join("");
const out = createWriteStream(join(directory, "lists.jsonl"));
for (let i = 0; i < Number(count); i++) {
  const list = { id: `list-${i}`, instruction: phrase().trim(), candidates: [phrase(), phrase()] };
  if (!out.write(`${JSON.stringify(list)}\n`)) await new Promise<void>((resolve) => out.once("drain", () => resolve()));
}
await new Promise<void>((resolve) => out.end(() => resolve()));
