/**
 * The header of a safetensors file: `{"name": {"dtype", "shape", "data_offsets": [start, end]}, "__metadata__"?: {...}}`,
 * every claim of it checked against the file's size before a byte of a tensor is trusted. The tensors must tile the body:
 * in order of their offsets from 0 to its end, without hole or overlap.
 *
 * Format: https://github.com/huggingface/safetensors#format
 */

import { type ErrorCode, messageOf, StratumError } from "../errors.ts";
import { findJsonFault, isJsonObject, show } from "./json.ts";

/** Bits of one element. The sub-byte and 8-bit floats are recognised by size, and refused where floats are wanted. */
export const DTYPE_BITS = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;

export type Dtype = keyof typeof DTYPE_BITS;

export interface TensorInfo {
  readonly name: string;
  readonly dtype: Dtype;
  /** Row-major; `[]` is a scalar, and a zero anywhere an empty tensor. */
  readonly shape: readonly number[];
  readonly byteLength: number;
  /** Where the tensor's first byte stands in the file. */
  readonly fileOffset: number;
}

export interface SafetensorsHeader {
  /** In the order of the file's body. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly metadata: Readonly<Record<string, string>>;
}

/** The format's own limit on the header's length in bytes. */
export const MAX_HEADER_BYTES = 100_000_000;

/** A header needs three levels; extra keys in an entry are tolerated, a tower of brackets is not. */
const MAX_DEPTH = 16;

const AGAIN = "the file is damaged or was written wrongly: download it again, or write it again with safetensors";

/** Whether a string is a dtype of the format. */
export function isDtype(dtype: string): dtype is Dtype {
  return Object.hasOwn(DTYPE_BITS, dtype);
}

/** Whether a value is a size: a non-negative integer that a double holds exactly. */
export function isSize(value: unknown): value is number {
  return Number.isSafeInteger(value) && Number(value) >= 0 && !Object.is(value, -0);
}

/** Bytes of a tensor; null when the count overflows 2^53 or ends within a byte. */
export function tensorBytes(dtype: Dtype, shape: readonly number[]): number | null {
  if (shape.includes(0)) return 0;
  let bits: number = DTYPE_BITS[dtype];
  for (const size of shape) {
    bits *= size;
    if (!Number.isSafeInteger(bits)) return null;
  }
  return bits % 8 === 0 ? bits / 8 : null;
}

/**
 * Parses and checks a header.
 *
 * @param header the header's bytes, without the 8 bytes of its length
 * @param fileBytes the size of the whole file
 * @param path for messages
 * @throws StratumError with a `safetensors/` code, one per kind of fault
 */
export function parseSafetensorsHeader(header: Uint8Array, fileBytes: number, path: string): SafetensorsHeader {
  const entries = Object.entries(parseObject(header, path));
  const bodyStart = 8 + header.byteLength;
  const tensors: TensorInfo[] = [];
  let metadata: Readonly<Record<string, string>> = Object.create(null);
  for (const [name, entry] of entries) {
    if (name === "__metadata__") metadata = parseMetadata(entry, path);
    else tensors.push(parseEntry(name, entry, bodyStart, path));
  }
  tensors.sort((a, b) => a.fileOffset - b.fileOffset || a.byteLength - b.byteLength);
  checkLayout(tensors, bodyStart, fileBytes, path);
  return { tensors: new Map(tensors.map((tensor) => [tensor.name, tensor])), metadata };
}

function parseObject(header: Uint8Array, path: string): Readonly<Record<string, unknown>> {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(header);
  } catch (cause) {
    throw fault("safetensors/header-utf8", `${path}: the header is not UTF-8`, cause);
  }
  if (!text.startsWith("{")) {
    throw fault("safetensors/header-json", `${path}: the header must begin with "{", found ${show(text.slice(0, 16))}`);
  }
  const found = findJsonFault(text, MAX_DEPTH);
  if (found?.type === "depth") {
    const message = `${path}: the header nests deeper than ${MAX_DEPTH} levels at character ${found.at}`;
    throw fault("safetensors/header-nesting", message);
  }
  if (found?.type === "size") {
    const message = `${path}: the header holds more values, up to character ${found.at}, than any set of tensors needs`;
    throw fault("safetensors/header-too-large", message);
  }
  if (found?.type === "duplicate") {
    const message = `${path}: the header holds the key ${show(found.key)} twice, again at character ${found.at}`;
    throw fault("safetensors/duplicate-key", message);
  }
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (cause) {
    throw fault("safetensors/header-json", `${path}: the header is not JSON: ${show(messageOf(cause))}`, cause);
  }
  if (!isJsonObject(parsed)) throw fault("safetensors/header-schema", `${path}: the header is not a JSON object`);
  return parsed;
}

function parseMetadata(entry: unknown, path: string): Readonly<Record<string, string>> {
  if (!isJsonObject(entry)) {
    throw fault("safetensors/header-schema", `${path}: __metadata__ is ${show(entry)}, not an object of strings`);
  }
  const metadata: Record<string, string> = Object.create(null);
  for (const [key, value] of Object.entries(entry)) {
    if (typeof value !== "string") {
      throw fault("safetensors/header-schema", `${path}: __metadata__ ${show(key)} is ${show(value)}, not a string`);
    }
    metadata[key] = value;
  }
  return metadata;
}

function parseEntry(name: string, entry: unknown, bodyStart: number, path: string): TensorInfo {
  const tensor = `${path}: tensor ${show(name)}`;
  if (!isJsonObject(entry)) throw fault("safetensors/header-schema", `${tensor} is ${show(entry)}, not an object`);
  const [dtype, shape, offsets] = ["dtype", "shape", "data_offsets"].map((key) => {
    if (Object.hasOwn(entry, key)) return entry[key];
    throw fault("safetensors/header-schema", `${tensor} has no "${key}": ${show(entry)}`);
  });
  if (typeof dtype !== "string" || !isDtype(dtype)) {
    const known = Object.keys(DTYPE_BITS).join(", ");
    throw new StratumError(
      "safetensors/unknown-dtype",
      `${tensor} has dtype ${show(dtype)}; known are ${known}`,
      "convert the checkpoint to BF16, F16 or F32",
    );
  }
  if (!Array.isArray(shape) || !shape.every(isSize)) {
    throw fault("safetensors/bad-shape", `${tensor} has shape ${show(shape)}, not a list of non-negative integers`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize) || offsets[0] > offsets[1]) {
    const message = `${tensor} has data_offsets ${show(offsets)}, not [start, end] with 0 <= start <= end`;
    throw fault("safetensors/bad-offsets", message);
  }
  const byteLength = tensorBytes(dtype, shape);
  if (byteLength === null) {
    const message = `${tensor}: ${dtype} ${show(shape)} is no whole number of bytes below 2^53`;
    throw fault("safetensors/shape-overflow", message);
  }
  const [start, end] = offsets as [number, number];
  if (end - start !== byteLength) {
    const message = `${tensor}: ${dtype} ${show(shape)} needs ${byteLength} bytes, data_offsets give ${end - start}`;
    throw fault("safetensors/size-mismatch", message);
  }
  return { name, dtype, shape, byteLength, fileOffset: bodyStart + start };
}

/** Walks the tensors in order of their offsets: each begins where the one before it ends, the last one ends the file. */
function checkLayout(tensors: readonly TensorInfo[], bodyStart: number, fileBytes: number, path: string): void {
  let cursor = bodyStart;
  let before = "the header";
  for (const { name, fileOffset, byteLength } of tensors) {
    const tensor = `${path}: tensor ${show(name)} at bytes ${fileOffset - bodyStart} to ${fileOffset - bodyStart + byteLength}`;
    if (fileOffset < cursor) {
      throw fault("safetensors/overlap", `${tensor} overlaps ${before}, which ends at ${cursor - bodyStart}`);
    }
    if (fileOffset > cursor) {
      const outside = fileOffset + byteLength > fileBytes;
      throw outside
        ? fault("safetensors/offsets-outside", `${tensor} lies outside the body of ${fileBytes - bodyStart} bytes`)
        : fault("safetensors/hole", `${tensor} leaves ${fileOffset - cursor} unused bytes after ${before}`);
    }
    cursor = fileOffset + byteLength;
    before = `tensor ${show(name)}`;
  }
  if (cursor > fileBytes) {
    throw new StratumError(
      "safetensors/truncated",
      `${path}: ${cursor - fileBytes} bytes are missing: ${before} ends at byte ${cursor}, the file has ${fileBytes}`,
      "the download or copy stopped early: fetch the file again",
    );
  }
  if (cursor < fileBytes) {
    throw fault("safetensors/trailing-bytes", `${path}: ${fileBytes - cursor} bytes follow ${before}`);
  }
}

function fault(code: ErrorCode, message: string, cause?: unknown): StratumError {
  return new StratumError(code, message, AGAIN, cause);
}
