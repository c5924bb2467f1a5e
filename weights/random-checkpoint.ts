/**
 * Another model of the same architecture: a checkpoint's names, shapes and types with values drawn from a seed, for the
 * control that says what the learned weights gave. Headers are read, no byte of a tensor is.
 *
 * As Hugging Face initialises a Llama (`initializer_range`): matrices, the embedding included, N(0, 0.02^2), norm weights
 * 1, biases 0.
 */
import { createHash } from "node:crypto";
import { StratumError } from "../errors.ts";
import type { Checkpoint } from "./checkpoint.ts";
import { encodeFloats, type FloatDtype, isFloatDtype } from "./floats.ts";
import { show } from "./json.ts";
import type { SafetensorsFile, TensorInfo } from "./safetensors.ts";
import { readTensorColumns, readTensorRows } from "./tensor-rows.ts";

const DEVIATION = 0.02;

/** Bits of a table's index. 2^16 values of two bytes stay in a core's cache. */
const RADIUS_BITS = 10;
const ANGLE_BITS = 6;

/** Elements whose index shares its high 32 bits, and so its keys. */
const KEYED = 2 ** 32;

type Table = Float64Array | Float32Array | Uint16Array;

/** Box-Muller on a grid of 2^10 radii and 2^6 angles: deviation 1 within 0.1%, values up to 3.9. */
function normalGrid(): Float32Array {
  const [radii, angles] = [2 ** RADIUS_BITS, 2 ** ANGLE_BITS];
  return Float32Array.from({ length: radii * angles }, (_, i) => {
    const radius = Math.sqrt(-2 * Math.log(((i >>> ANGLE_BITS) + 0.5) / radii));
    return radius * Math.cos((2 * Math.PI * ((i % angles) + 0.5)) / angles);
  });
}

const tables = new Map<FloatDtype, Table>();

/** The normal grid times the deviation, as elements of a type: a value is looked up, not computed. */
function tableOf(dtype: FloatDtype): Table {
  const made = tables.get(dtype);
  if (made !== undefined) return made;
  const bytes = encodeFloats(
    normalGrid().map((value) => value * DEVIATION),
    dtype,
  );
  const table = viewOf(bytes, dtype);
  tables.set(dtype, table);
  return table;
}

function viewOf({ buffer, byteOffset, byteLength }: Uint8Array, dtype: FloatDtype): Table {
  if (dtype === "F64") return new Float64Array(buffer, byteOffset, byteLength / 8);
  if (dtype === "F32") return new Float32Array(buffer, byteOffset, byteLength / 4);
  return new Uint16Array(buffer, byteOffset, byteLength / 2);
}

/** Two keys of 32 bits for 2^32 elements of a tensor. */
function keysOf(seed: number, name: string, high: number): readonly [number, number] {
  const digest = createHash("sha256")
    .update(JSON.stringify([seed, name, high]))
    .digest();
  return [digest.readInt32LE(0), digest.readInt32LE(4)];
}

/** Writes normal elements `first`, `first + 1`, ... of a tensor: each a function of seed, name and its index alone. */
function drawNormal(target: Table, dtype: FloatDtype, seed: number, name: string, first: number): void {
  const table = tableOf(dtype);
  for (let done = 0; done < target.length; ) {
    const at = first + done;
    const low = at % KEYED;
    const end = Math.min(target.length, done + KEYED - low);
    const [before, between] = keysOf(seed, name, Math.floor(at / KEYED));
    // The multipliers and shifts of lowbias32 (https://github.com/skeeto/hash-prospector), with a key between its rounds:
    // with one in front alone, two tensors would hold the same values in another order.
    for (let index = low; done < end; done++, index++) {
      let hash = index ^ before;
      hash = Math.imul(hash ^ (hash >>> 16), 0x7feb352d);
      hash = Math.imul(hash ^ (hash >>> 15) ^ between, 0x846ca68b);
      target[done] = table[(hash ^ (hash >>> 16)) & 0xffff];
    }
  }
}

/**
 * A checkpoint with this one's names, shapes and types, and random values. An element is a function of the seed, its
 * tensor's name and its index: whole reads, rows in any order and another opening agree. Closing it closes `checkpoint`.
 *
 * `log` is that of `checkpoint`, in which nothing is counted. The reading methods throw as those of `checkpoint`, and
 * `safetensors/not-floats` for a tensor that holds none.
 */
export function randomCheckpoint(checkpoint: Checkpoint, seed: number): Checkpoint {
  async function drawn(name: string): Promise<SafetensorsFile> {
    return drawnTensor(await checkpoint.info(name), checkpoint, seed);
  }
  return {
    directory: checkpoint.directory,
    log: checkpoint.log,
    names: () => checkpoint.names(),
    has: (name) => checkpoint.has(name),
    info: (name) => checkpoint.info(name),
    // Nothing of a file is read but its header.
    require: async () => undefined,
    read: async (name) => (await drawn(name)).read(name),
    readRows: async (name, rows) => readTensorRows(await drawn(name), name, rows),
    readColumns: async (name, columns) => readTensorColumns(await drawn(name), name, columns),
    close: () => checkpoint.close(),
    [Symbol.asyncDispose]: () => checkpoint.close(),
  };
}

/** One tensor as a file of its own, drawn as it is read. */
function drawnTensor(info: TensorInfo, { directory, log }: Checkpoint, seed: number): SafetensorsFile {
  const { name, dtype, shape, byteLength } = info;
  if (!isFloatDtype(dtype)) {
    throw new StratumError(
      "safetensors/not-floats",
      `tensor ${show(name)} is ${dtype}: there are no random weights of this type`,
      "use a checkpoint stored in bf16, f16 or f32 (quantised weights must be dequantised first)",
    );
  }
  const float = dtype;
  const nothing = async () => undefined;
  async function readInto(_: string, byteStart: number, target: Uint8Array): Promise<void> {
    const values = viewOf(target, float);
    if (shape.length >= 2) drawNormal(values, float, seed, name, byteStart / values.BYTES_PER_ELEMENT);
    else values.fill(name.endsWith(".bias") ? 0 : (viewOf(encodeFloats(Float32Array.of(1), float), float)[0] ?? 0));
  }
  async function readRange(_: string, byteStart: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    const bytes = new Uint8Array(length);
    await readInto(name, byteStart, bytes);
    return bytes;
  }
  return {
    path: directory,
    tensors: new Map([[name, info]]),
    metadata: {},
    log,
    info: () => info,
    read: () => readRange(name, 0, byteLength),
    readRange,
    readInto,
    close: nothing,
    [Symbol.asyncDispose]: nothing,
  };
}
