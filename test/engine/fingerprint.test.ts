/** What the fingerprint of a base model tells apart, and what it must not see. */
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { blockTensors } from "../../engine/decoder.ts";
import { fingerprint } from "../../engine/fingerprint.ts";
import { openModelFiles } from "../../engine/model-files.ts";
import { decodeFloats, encodeFloats } from "../../weights/floats.ts";
import { openSafetensors } from "../../weights/safetensors.ts";
import { type TensorData, writeSafetensors } from "../../weights/safetensors-writer.ts";
import { goldenModel } from "../support/golden.ts";

const DEPTH = 2;
const DEMO = goldenModel("demo").directory;

let folder: string;
let original: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "stratum-fingerprint-"));
  original = await of(DEMO);
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function of(directory: string, depth = DEPTH): Promise<string> {
  await using files = await openModelFiles(directory);
  return await fingerprint(files, depth);
}

let copies = 0;
async function copyOfDemo(): Promise<string> {
  const directory = join(folder, String(copies++));
  await cp(DEMO, directory, { recursive: true });
  return directory;
}

async function tensorsOf(directory: string): Promise<TensorData[]> {
  await using file = await openSafetensors(join(directory, "model.safetensors"));
  const tensors: TensorData[] = [];
  for (const { name, dtype, shape } of file.tensors.values())
    tensors.push({ name, dtype, shape, bytes: await file.read(name) });
  return tensors;
}

/** A copy in which a file's text has changed. */
async function withText(name: string, change: (text: string) => string): Promise<string> {
  const directory = await copyOfDemo();
  const text = await readFile(join(directory, name), "utf8");
  const changed = change(text);
  expect(changed).not.toBe(text);
  await writeFile(join(directory, name), changed);
  return directory;
}

/** A copy in which one config entry has changed. */
const withConfig = (entries: Readonly<Record<string, unknown>>) =>
  withText("config.json", (text) => JSON.stringify({ ...JSON.parse(text), ...entries }));

/** A copy in which numbers of a tensor have changed: the one at `place` of its length. */
async function withTensor(name: string, place: number): Promise<string> {
  const directory = await copyOfDemo();
  const tensors = await tensorsOf(directory);
  const changed = tensors.map((tensor) => {
    if (tensor.name !== name) return tensor;
    const type = tensor.dtype as "BF16";
    const values = Float32Array.from(decodeFloats(tensor.bytes as Uint8Array<ArrayBuffer>, type));
    values[Math.floor(place * (values.length - 1))] += 1;
    return { ...tensor, bytes: encodeFloats(values, type) };
  });
  expect(changed.filter((tensor, i) => tensor !== tensors[i])).toHaveLength(1);
  await writeSafetensors(join(directory, "model.safetensors"), changed);
  return directory;
}

describe("a fingerprint", () => {
  it("is 64 hexadecimal digits, the same for a copy elsewhere, and each depth's own", async () => {
    expect(original).toMatch(/^[0-9a-f]{64}$/);
    expect(await of(await copyOfDemo())).toBe(original);
    const depths = await Promise.all([0, 1, 2, 3].map((depth) => of(DEMO, depth)));
    expect(new Set(depths).size).toBe(4);
  });

  it.each([0, 0.5, 1])("sees a changed number at %f of a tensor's bytes", async (place) => {
    await using files = await openModelFiles(DEMO);
    const { embedding, blocks } = files.spec;
    for (const name of [embedding, blocks[1].down.weight, blocks[0].ffnNorm!.weight])
      expect([name, (await of(await withTensor(name, place))) === original]).toEqual([name, false]);
  });

  it("does not see deeper blocks, final norm and head, and reads nothing of them", async () => {
    await using files = await openModelFiles(DEMO);
    const { blocks, embedding } = files.spec;
    for (const name of [blocks[DEPTH].query.weight, "model.norm.weight"])
      expect([name, await of(await withTensor(name, 0))]).toEqual([name, original]);
    await fingerprint(files, DEPTH);
    const names = [embedding, ...blocks.slice(0, DEPTH).flatMap(blockTensors)];
    expect(new Set(files.checkpoint.log.tensors.keys())).toEqual(new Set(names));
    // Rows of the widest matrix take 1 KiB: a sample of 4 KiB touches five of them at most.
    expect(Math.max(...files.checkpoint.log.tensors.values())).toBeLessThanOrEqual(3 * 5 * 1024);
  });

  it.each([
    ["rope_theta", { rope_theta: 12345, rope_parameters: null, rope_scaling: null }],
    ["rms_norm_eps", { rms_norm_eps: 3e-5 }],
    ["rope_scaling", { rope_scaling: { rope_type: "linear", factor: 2 } }],
  ])("sees another %s", async (_, entries) => {
    expect(await of(await withConfig(entries))).not.toBe(original);
  });

  it.each([
    ["names of types", { torch_dtype: "float32", dtype: "float32" }],
    ["entries that nothing reads", { transformers_version: "99", use_cache: false }],
    ["ids of the generation", { eos_token_id: 7 }],
  ])("does not see other %s", async (_, entries) => {
    expect(await of(await withConfig(entries))).toBe(original);
  });

  it("does not see the order of the configuration's keys, nor how many blocks there are past the depth", async () => {
    const reversed = await withText("config.json", (text) =>
      JSON.stringify(Object.fromEntries(Object.entries(JSON.parse(text) as object).reverse())),
    );
    expect(await of(reversed)).toBe(original);
    expect(await of(await withConfig({ num_hidden_layers: DEPTH }))).toBe(original);
  });

  it("sees the tokenizer's files, their absence, and the chat template", async () => {
    expect(await of(await withText("tokenizer.json", (text) => `${text} `))).not.toBe(original);
    expect(await of(await withText("tokenizer_config.json", (text) => `${text} `))).not.toBe(original);
    const bare = await copyOfDemo();
    await rm(join(bare, "tokenizer.json"));
    expect(await of(bare)).not.toBe(original);
    const templated = await copyOfDemo();
    await writeFile(join(templated, "chat_template.jinja"), "{{ messages[0].content }}");
    expect(await of(templated)).not.toBe(original);
    await writeFile(join(templated, "chat_template.jinja"), "{{ messages[0].content }}!");
    const other = await of(templated);
    await writeFile(join(templated, "chat_template.jinja"), "{{ messages[0].content }}");
    expect(await of(templated)).not.toBe(other);
  });

  it("does not see shards, nor misses one that it does not need", async () => {
    const directory = await copyOfDemo();
    const tensors = await tensorsOf(directory);
    await using files = await openModelFiles(DEMO);
    const needed = new Set([files.spec.embedding, ...files.spec.blocks.slice(0, DEPTH).flatMap(blockTensors)]);
    const shardOf = (name: string, i: number) =>
      needed.has(name) ? `model-0000${1 + (i % 2)}-of-00003.safetensors` : "model-00003-of-00003.safetensors";
    const map = new Map(tensors.map(({ name }, i) => [name, shardOf(name, i)]));
    const shards = [...new Set(map.values())].sort();
    expect(shards).toHaveLength(3);
    for (const shard of shards.slice(0, 2))
      await writeSafetensors(
        join(directory, shard),
        tensors.filter(({ name }) => map.get(name) === shard),
      );
    await rm(join(directory, "model.safetensors"));
    const index = { metadata: {}, weight_map: Object.fromEntries(map) };
    await writeFile(join(directory, "model.safetensors.index.json"), JSON.stringify(index));
    expect(await of(directory)).toBe(original);
    await expect(of(directory, DEPTH + 1)).rejects.toMatchObject({ code: "model/missing-shard" });
  });

  it("of a depth that the model has not is refused", async () => {
    for (const depth of [-1, 0.5, 99]) await expect(of(DEMO, depth)).rejects.toMatchObject({ code: "usage/layer" });
  });
});
