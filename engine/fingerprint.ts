/** What identifies a base model down to a layer: for scorers, which belong to one, and for caches of its states. */
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { StratumError } from "../errors.ts";
import type { Checkpoint } from "../weights/checkpoint.ts";
import { isSystemError, statRegular, unreadable } from "../weights/json.ts";
import { type BlockSpec, type DecoderConfig, tensorsTo } from "./decoder.ts";
import type { ModelFiles } from "./model-files.ts";

/** Changes with what is hashed, so that an old fingerprint never passes for a new one. */
const FORM = "stratum base model 2";

/** Entries of a configuration that do not shape the states: deeper blocks, what tensors and tokenizer say themselves. */
const SHAPELESS: ReadonlySet<string> = new Set<keyof DecoderConfig>([
  "layers",
  "tiedEmbeddings",
  "dtype",
  "bosId",
  "eosId",
]);

/** Files that decide the token ids of a text, and the special tokens that a template writes. */
const TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

/** Bytes of a sample of a tensor. */
const SAMPLE_BYTES = 4096;

/**
 * The fingerprint of a base model down to a layer: SHA-256 over the configuration, the tokenizer's files, the chat
 * template, and of every tensor that a run to `depth` reads its name, type, shape and three samples. Where the model lies
 * and how it is sharded leave no trace; deeper blocks are not looked at. Weights that differ outside the samples alone
 * are not told apart: a fine-tuned or converted checkpoint differs all over.
 * @param depth the deepest layer whose states are meant
 * @returns 64 hexadecimal digits
 * @throws {StratumError} `usage/layer`, `file/unreadable`, `file/not-a-file`, `template/...`, `model/...`, `safetensors/...`
 */
export async function fingerprint(files: ModelFiles, depth: number): Promise<string> {
  const { checkpoint, spec, directory } = files;
  if (!Number.isInteger(depth) || depth < 0 || depth > spec.blocks.length) {
    throw new StratumError(
      "usage/layer",
      `depth ${depth} is out of range: the model has ${spec.blocks.length} blocks`,
      `give 0 to ${spec.blocks.length}`,
    );
  }
  await checkpoint.require(tensorsTo(spec, depth));
  const hash = createHash("sha256");
  // Each part after its name and length: what ends one part cannot begin the next.
  const add = (name: string, part: string | Uint8Array | null) => {
    hash.update(`${JSON.stringify(name)} ${part === null ? "absent" : Buffer.byteLength(part)}\n`);
    if (part !== null) hash.update(part);
  };
  add("form", FORM);
  add("config", stable(spec.config));
  if (spec.form !== "stored") add("weights", spec.form);
  add("blocks", stable(spec.blocks.slice(0, depth)));
  for (const name of TOKENIZER_FILES) add(name, await optionalBytes(join(directory, name)));
  add("template", (await files.template())?.source ?? null);
  for (const name of tensorsTo(spec, depth)) {
    const { dtype, shape } = await checkpoint.info(name);
    add("tensor", JSON.stringify([name, dtype, shape]));
    for (const sample of await samples(checkpoint, name)) add("sample", sample);
  }
  return hash.digest("hex");
}

/** What of a description shapes the states, as JSON with sorted keys. */
function stable(description: DecoderConfig | readonly BlockSpec[]): string {
  return JSON.stringify(description, (name, value: unknown) => {
    if (SHAPELESS.has(name)) return undefined;
    if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
    return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));
  });
}

async function optionalBytes(path: string): Promise<Uint8Array | null> {
  try {
    await statRegular(path);
    return await readFile(path);
  } catch (cause) {
    if (isSystemError(cause, "ENOENT")) return null;
    throw cause instanceof StratumError ? cause : unreadable(path, cause);
  }
}

/** The beginning, middle and end of a tensor's bytes. Of a matrix only the rows that hold them are read. */
async function samples(checkpoint: Checkpoint, name: string): Promise<Uint8Array[]> {
  const { shape, byteLength } = await checkpoint.info(name);
  const size = Math.min(SAMPLE_BYTES, byteLength);
  const starts = [0, Math.floor((byteLength - size) / 2), byteLength - size];
  if (shape.length !== 2 || size === 0) {
    const whole = await checkpoint.read(name);
    return starts.map((start) => whole.subarray(start, start + size));
  }
  const rowBytes = byteLength / shape[0];
  const found: Uint8Array[] = [];
  for (const at of starts) {
    const start = Math.floor(at / rowBytes);
    const rows = await checkpoint.readRows(name, { start, count: Math.ceil((at + size) / rowBytes) - start });
    found.push(rows.subarray(at - start * rowBytes, at - start * rowBytes + size));
  }
  return found;
}
