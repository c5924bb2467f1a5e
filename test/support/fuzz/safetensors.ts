/** Safetensors: headers by themselves, and whole files with their length and their data. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { openSafetensors } from "../../../weights/safetensors.ts";
import { DTYPE_BITS, parseSafetensorsHeader, tensorBytes } from "../../../weights/safetensors-header.ts";
import { fuzzFolder } from "./folder.ts";
import { type FuzzTarget, fuzzTarget, outcomeOf } from "./harness.ts";
import { changedJsonText, damaged } from "./mutations.ts";

const encoder = new TextEncoder();

interface Tensor {
  readonly dtype: keyof typeof DTYPE_BITS;
  readonly shape: readonly number[];
}

/** Headers as the format has them, with any dtypes, empty tensors, scalars and names; and the size of their bodies. */
const valid = fc
  .dictionary(
    fc.oneof(
      fc.string({ maxLength: 12, unit: "binary" }).filter((name) => !/\p{Surrogate}/u.test(name)),
      fc.constantFrom("__proto__", "a.weight", ""),
    ),
    fc.record<Tensor>({
      dtype: fc.constantFrom(...(Object.keys(DTYPE_BITS) as (keyof typeof DTYPE_BITS)[])),
      shape: fc.array(fc.nat(5), { maxLength: 3 }),
    }),
    { maxKeys: 5 },
  )
  .map((tensors) => layOut(Object.entries(tensors)));

interface Laid {
  readonly header: Readonly<Record<string, unknown>>;
  readonly bodyBytes: number;
}

function layOut(tensors: readonly (readonly [string, Tensor])[]): Laid {
  let offset = 0;
  const entries: [string, unknown][] = [];
  for (const [name, { dtype, shape }] of tensors) {
    const bytes = tensorBytes(dtype, shape);
    if (bytes === null || name === "__metadata__") continue;
    entries.push([name, { dtype, shape, data_offsets: [offset, offset + bytes] }]);
    offset += bytes;
  }
  return { header: Object.fromEntries(entries), bodyBytes: offset };
}

const SEEDS: readonly Laid[] = [
  layOut([
    ["model.embed_tokens.weight", { dtype: "BF16", shape: [4, 3] }],
    ["model.layers.0.self_attn.q_proj.weight", { dtype: "F32", shape: [2, 2] }],
    ["scale", { dtype: "F64", shape: [] }],
  ]),
  layOut([["a", { dtype: "U8", shape: [0, 7] }]]),
  layOut([]),
  { header: { __metadata__: { format: "pt" }, x: { dtype: "I64", shape: [2], data_offsets: [0, 16] } }, bodyBytes: 16 },
];
const KEYS = ["dtype", "shape", "data_offsets", "__metadata__"];
const VALUES = [
  ...Object.keys(DTYPE_BITS),
  [0, 0],
  [0, 2 ** 53],
  [-1, 4],
  [2 ** 52, 2 ** 52],
  [2 ** 30, 2 ** 30, 2 ** 30],
  [1.5],
  [8, 4],
];
const HEADER_CODES = [
  "bad-offsets",
  "bad-shape",
  "header-json",
  "header-schema",
  "header-utf8",
  "offsets-outside",
  "shape-overflow",
  "size-mismatch",
  "trailing-bytes",
  "truncated",
  "unknown-dtype",
];

/** Every tensor lies within the file, and together they are the body. */
function checkHeader(header: Uint8Array, bodyBytes: number): void {
  const fileBytes = 8 + header.length + bodyBytes;
  const { tensors } = parseSafetensorsHeader(header, fileBytes, "m.safetensors");
  let end = 8 + header.length;
  for (const { dtype, shape, fileOffset, byteLength } of tensors.values()) {
    assert.equal(fileOffset, end);
    assert.equal(byteLength, tensorBytes(dtype, shape));
    end += byteLength;
  }
  assert.equal(end, fileBytes);
}

const folder = fuzzFolder("safetensors");

/** Whatever can be read is what stands at that place of the file, and no more is read than that. */
async function readAll(bytes: Uint8Array): Promise<void> {
  const path = join(folder, "m.safetensors");
  writeFileSync(path, bytes);
  await using file = await openSafetensors(path);
  let sum = 0;
  for (const { name, fileOffset, byteLength } of file.tensors.values()) {
    assert.ok(fileOffset + byteLength <= bytes.length);
    assert.equal(Buffer.compare(await file.read(name), bytes.subarray(fileOffset, fileOffset + byteLength)), 0);
    sum += byteLength;
    assert.equal(file.log.bytes, sum);
  }
  assert.equal(file.log.headerBytes + sum, bytes.length);
}

function fileOf({ header, bodyBytes }: Laid): Uint8Array {
  const text = encoder.encode(JSON.stringify(header));
  const bytes = new Uint8Array(8 + text.length + bodyBytes);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  for (let i = 8 + text.length; i < bytes.length; i++) bytes[i] = i;
  return bytes;
}

/** A right header of which one tensor is moved, or told twice under two spellings of its name. */
const moved = fc
  .tuple(valid, fc.nat(4), fc.integer({ min: -9, max: 9 }), fc.boolean())
  .map(([{ header, bodyBytes }, at, by, twice]) => {
    const entries = Object.entries(header) as [
      string,
      { dtype: string; shape: readonly number[]; data_offsets: number[] },
    ][];
    const texts = entries.map(([name, entry], i) => {
      const data_offsets =
        i === at % entries.length ? entry.data_offsets.map((offset) => offset + by) : entry.data_offsets;
      return `${JSON.stringify(name)}:${JSON.stringify({ ...entry, data_offsets })}`;
    });
    const [first] = texts;
    if (twice && first !== undefined)
      texts.push(first.replace(/[a-z]/, (letter) => `\\u00${letter.charCodeAt(0).toString(16)}`));
    return { header: encoder.encode(`{${texts.join(",")}}`), bodyBytes };
  });

export const SAFETENSORS_TARGETS: readonly FuzzTarget[] = [
  fuzzTarget("safetensors: headers that are right", 4000, ["ok"], valid, ({ header, bodyBytes }) => {
    checkHeader(encoder.encode(JSON.stringify(header)), bodyBytes);
    return "ok";
  }),
  fuzzTarget(
    "safetensors: headers with a tensor moved, or told twice",
    4000,
    [
      "ok",
      ...["overlap", "hole", "bad-offsets", "offsets-outside", "duplicate-key"].map((code) => `safetensors/${code}`),
    ],
    moved,
    ({ header, bodyBytes }) => outcomeOf(() => checkHeader(header, bodyBytes)),
  ),
  fuzzTarget(
    "safetensors: changed headers",
    52_000,
    ["ok", ...HEADER_CODES.map((code) => `safetensors/${code}`)],
    fc.oneof(
      ...SEEDS.map(({ header, bodyBytes }) =>
        fc.tuple(changedJsonText([header], KEYS, VALUES), fc.oneof(fc.constant(bodyBytes), fc.nat(100))),
      ),
    ),
    ([header, bodyBytes]) => outcomeOf(() => checkHeader(header, bodyBytes)),
  ),
  fuzzTarget(
    "safetensors: damaged files",
    4000,
    [
      "ok",
      "safetensors/header-truncated",
      "safetensors/header-too-large",
      "safetensors/truncated",
      "safetensors/too-short",
    ],
    damaged([...SEEDS.map(fileOf), new Uint8Array(0), encoder.encode("version https://git-lfs.github.com/spec/v1\n")]),
    (bytes) => outcomeOf(() => readAll(bytes)),
  ),
];
