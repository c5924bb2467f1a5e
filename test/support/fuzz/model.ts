/** A model's folder: config.json, the shards' index, and links; nothing outside the folder may be read. */
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { blockTensors, tensorsTo } from "../../../engine/decoder.ts";
import { modelSpec, parseModelConfig } from "../../../engine/family.ts";
import { batchBudget, planWorkspace } from "../../../engine/plan.ts";
import { openCheckpoint } from "../../../weights/checkpoint.ts";
import { readConfigFile } from "../../../weights/config.ts";
import { declaredCheckpoint } from "../../../weights/declared-checkpoint.ts";
import { ropeFrequencies, ropeScale } from "../../../weights/rope.ts";
import { fuzzFolder } from "./folder.ts";
import { type FuzzTarget, fuzzTarget, outcomeOf } from "./harness.ts";
import { changedJson, changedJsonText } from "./mutations.ts";

const FAMILIES = new URL("../../golden/families/", import.meta.url);
const CONFIGS: readonly unknown[] = readdirSync(FAMILIES).map((family) =>
  JSON.parse(readFileSync(new URL(`${family}/config.json`, FAMILIES), "utf8")),
);
const KEYS = [...new Set(CONFIGS.flatMap((config) => Object.keys(config as object)))];
const VALUES = [
  "silu",
  "gelu_pytorch_tanh",
  "full_attention",
  "sliding_attention",
  { rope_type: "yarn", factor: 4 },
  { type: "longrope", short_factor: [1], long_factor: [2] },
  { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 },
  ["full_attention"],
  16,
  64,
  128,
  10_000,
  131_072,
  1_000_000,
  2 ** 24,
  65_536,
];
const LIMITS = { maxBufferSize: 2 ** 28, maxStorageBufferBindingSize: 2 ** 27, maxTextureDimension2D: 8192 };

/** What is done with a config before a tensor is read: the model as data, its tables, its plan. */
function describe(config: unknown): void {
  const architecture = parseModelConfig(config, "config.json");
  blockTensors(architecture.block(0, "model."));
  const { config: decoder, embedding, prefixes } = architecture;
  const shapes = new Map([[(prefixes[0] ?? "") + embedding, [decoder.vocab, decoder.hiddenSize]]]);
  const spec = modelSpec(architecture, declaredCheckpoint("m", shapes, "BF16"));
  tensorsTo(spec, Math.min(decoder.layers, 4));
  for (const rope of decoder.ropes) {
    if (!Number.isFinite(ropeScale(rope))) throw new Error(`a scale of ${ropeScale(rope)}`);
    const bad = ropeFrequencies(rope).find((frequency) => !Number.isFinite(frequency));
    if (bad !== undefined) throw new Error(`a frequency of ${bad}`);
  }
  const size = { taps: 1, output: "pooled" } as const;
  const { budget } = batchBudget(spec, LIMITS as Parameters<typeof batchBudget>[1], size);
  for (const { bytes } of planWorkspace(spec, { ...size, rows: Math.max(1, budget) }).values()) {
    if (!Number.isSafeInteger(bytes) || bytes < 0) throw new Error(`a buffer of ${bytes} bytes`);
  }
}

const folder = fuzzFolder("model");
const model = join(folder, "model");
mkdirSync(join(model, "sub"), { recursive: true });
const SHARD = "model-00001-of-00001.safetensors";
const SECRET = 0x5a;
writeTensor(join(model, SHARD), 1);
writeTensor(join(model, "sub", "inner.safetensors"), SECRET);
for (const name of ["secret.safetensors", "model.safetensors", SHARD]) writeTensor(join(folder, name), SECRET);
symlinkSync(join("..", "secret.safetensors"), join(model, "link.safetensors"));
symlinkSync(join(folder, "secret.safetensors"), join(model, "absolute.safetensors"));
symlinkSync(SHARD, join(model, "inside.safetensors"));
symlinkSync("nowhere.safetensors", join(model, "dangling.safetensors"));
symlinkSync("loop.safetensors", join(model, "loop.safetensors"));
symlinkSync("..", join(model, "up"));

/** One tensor, `w`, of the given byte. */
function writeTensor(path: string, byte: number): void {
  const text = JSON.stringify({ w: { dtype: "U8", shape: [4], data_offsets: [0, 4] } });
  const bytes = Buffer.alloc(8 + text.length + 4, byte);
  bytes.writeBigUInt64LE(BigInt(text.length));
  bytes.write(text, 8);
  writeFileSync(path, bytes);
}

const INDEX = { metadata: { total_size: 4 }, weight_map: { w: SHARD } };
const paths = fc.oneof(
  fc
    .array(fc.constantFrom("..", ".", "", "sub", "up", "model", "/", "\\", "\u0000", "C:", "link", "~", "%2e%2e"), {
      maxLength: 4,
    })
    .map((parts) => `${parts.join("/")}/secret.safetensors`),
  fc.constantFrom(
    join(folder, "secret.safetensors"),
    "../secret.safetensors",
    `..\\${SHARD}`,
    "sub/inner.safetensors",
    "up/model.safetensors",
    "link.safetensors",
    "absolute.safetensors",
    "inside.safetensors",
    "dangling.safetensors",
    "loop.safetensors",
    SHARD,
    `./${SHARD}`,
    `/proc/self/cwd/${SHARD}`,
    "file:///etc/passwd.safetensors",
    "\u202egnp.safetensors",
  ),
  fc.string({ maxLength: 30 }).map((name) => `${name}.safetensors`),
);
const indexes = fc.oneof(
  changedJsonText([INDEX], ["weight_map", "w"], ["../secret.safetensors", "link.safetensors"]),
  paths.map((path) => new TextEncoder().encode(JSON.stringify({ ...INDEX, weight_map: { w: path } }))),
);

/** Reads `w` by way of an index; the bytes are the folder's own, or there are none. */
async function readByIndex(index: Uint8Array): Promise<void> {
  writeFileSync(join(model, "model.safetensors.index.json"), index);
  await using checkpoint = await openCheckpoint(model);
  for (const name of checkpoint.names()) {
    const bytes = await checkpoint.read(name);
    if (bytes.some((byte) => byte !== 1)) throw new Error(`bytes of another folder: ${bytes}`);
  }
}

export const MODEL_TARGETS: readonly FuzzTarget[] = [
  fuzzTarget(
    "config.json: changed entries of every family",
    20_000,
    ["ok", "config/bad-value", "config/unsupported-model", "config/unsupported-rope", "config/bad-json"],
    changedJson(CONFIGS, KEYS, VALUES),
    (config) => outcomeOf(() => describe(config)),
  ),
  fuzzTarget(
    "config.json: damaged files",
    2000,
    ["ok", "config/bad-json"],
    changedJsonText(CONFIGS, KEYS, VALUES),
    (bytes) => {
      const path = join(folder, "damaged.json");
      writeFileSync(path, bytes);
      return outcomeOf(async () => describe((await readConfigFile(path)).entries));
    },
  ),
  fuzzTarget(
    "the shards' index: changed, and with paths that lead elsewhere",
    2000,
    ["ok", "model/bad-index", "model/outside-link", "model/missing-shard"],
    indexes,
    (index) => outcomeOf(() => readByIndex(index)),
  ),
];
