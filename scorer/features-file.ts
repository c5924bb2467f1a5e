/**
 * Files of features: safetensors, ragged (`inst` (B, D), `resp` (N, D), `labels` (N), `offsets` (B + 1)) or padded
 * (`inst` (B, D), `resp` (B, M, D), `labels` and `mask` (B, M), 1 = a candidate, anywhere in the row). Other tensors of the
 * file are left alone. States are read list by list; what fills a padded row is never looked at.
 */
import { StratumError } from "../errors.ts";
import { decodeFloats, isFloatDtype } from "../weights/floats.ts";
import { show } from "../weights/json.ts";
import { openSafetensors, type SafetensorsFile, type TensorInfo } from "../weights/safetensors.ts";
import { DTYPE_BITS } from "../weights/safetensors-header.ts";
import type { FeatureSource } from "./feature-source.ts";

/** Bytes that are read ahead of a sequential reader; a tensor no larger is read at once. */
const READ_AHEAD = 4 * 2 ** 20;
/** Rows and candidates are counted in 32 bits. */
const MAX_ROWS = 2 ** 32 - 1;

const LAYOUTS =
  "inst (B, D), resp (N, D), labels (N), offsets (B+1), or padded with a mask (B, M): see README, features";

/** Where the candidates of a file stand. */
interface Layout {
  /** (B + 1) */
  readonly offsets: Uint32Array;
  /** (N) */
  readonly labels: Float32Array;
  /** (N) rows of `resp` seen as (B * M, D); null where candidate n is row n. */
  readonly rows: Uint32Array | null;
  /** Rows between two lists that a sequential reader steps over, at most. */
  readonly gap: number;
}

/**
 * Opens a file of features and checks its shapes, offsets, mask and labels; states are checked as they are read.
 * @throws {StratumError} `features/missing`, `features/missing-tensor`, `features/bad-shape`, `features/bad-dtype`,
 *   `features/bad-offsets`, `features/bad-mask`, `features/bad-labels`, `features/empty-list`, `features/too-large`,
 *   `safetensors/...`, `file/...`
 */
export async function openFeatures(path: string): Promise<FeatureSource & AsyncDisposable> {
  const file = await openSafetensors(path).catch((cause: unknown) => {
    if (!(cause instanceof StratumError) || cause.code !== "model/file-missing") throw cause;
    throw new StratumError("features/missing", cause.message, "check the path of the features", cause);
  });
  try {
    return await featureSource(file);
  } catch (cause) {
    await file.close();
    throw cause;
  }
}

async function featureSource(file: SafetensorsFile): Promise<FeatureSource & AsyncDisposable> {
  const inst = states(file, "inst");
  const resp = states(file, "resp");
  const [lists, dim] = inst.shape;
  if (inst.shape.length !== 2 || dim === 0) throw badShape(file, inst, "(B, D) with D >= 1");
  if (lists >= MAX_ROWS) throw tooLarge(file, `${lists} lists`);
  const padded = resp.shape.length === 3;
  if (padded ? resp.shape[0] !== lists || resp.shape[2] !== dim : resp.shape.length !== 2 || resp.shape[1] !== dim) {
    throw badShape(
      file,
      resp,
      `(N, ${dim}), or (${lists}, M, ${dim}) where it is padded, as inst is ${show(inst.shape)}`,
    );
  }
  const { offsets, labels, rows, gap } = padded
    ? await paddedLayout(file, lists, resp.shape[1])
    : await raggedLayout(file, lists, resp.shape[0]);
  const readInst = rowReader(file, inst, dim, 0);
  const readResp = rowReader(file, resp, dim, gap);

  return {
    dim,
    lists,
    offsets,
    labels,
    async readList(b, target, at = 0) {
      const [first, end] = [offsets[b], offsets[b + 1]];
      await readInst(b, 1, target, at);
      // Neighbouring rows in one read: all of them, but for the holes of a padded row.
      for (let n = first, run = 1; n < end; n += run, run = 1) {
        const row = rows === null ? n : rows[n];
        while (n + run < end && (rows === null || rows[n + run] === row + run)) run++;
        await readResp(row, run, target, at + (1 + n - first) * dim);
      }
      checkFinite(target.subarray(at, at + (1 + end - first) * dim), dim, b, file.path);
    },
    [Symbol.asyncDispose]: () => file.close(),
  };
}

function states(file: SafetensorsFile, name: string): TensorInfo {
  const info = tensor(file, name);
  if (info.dtype === "F32" || info.dtype === "F16" || info.dtype === "BF16") return info;
  throw badDtype(file, info, "F32, F16 or BF16");
}

function tensor(file: SafetensorsFile, name: string): TensorInfo {
  const info = file.tensors.get(name);
  if (info) return info;
  throw new StratumError("features/missing-tensor", `${file.path} has no tensor '${name}'`, `features are ${LAYOUTS}`);
}

async function raggedLayout(file: SafetensorsFile, lists: number, count: number): Promise<Layout> {
  const at = tensor(file, "offsets");
  if (!["I32", "I64", "U32"].includes(at.dtype)) throw badDtype(file, at, "I32, I64 or U32");
  checkShape(file, at, [lists + 1]);
  checkShape(file, tensor(file, "labels"), [count]);
  if (count >= MAX_ROWS) throw tooLarge(file, `${count} candidates`);
  const given = await numbers(file, "offsets");
  const bad = (what: string) =>
    new StratumError(
      "features/bad-offsets",
      `${file.path}: ${what}; they ascend from 0 to ${count}, the rows of resp`,
      "offsets[b] is the first row of list b, the last one the number of rows",
    );
  if (given[0] !== 0) throw bad(`offsets begin with ${given[0]}`);
  for (let b = 0; b < lists; b++) {
    const m = given[b + 1] - given[b];
    if (m === 0) throw emptyList(file, b);
    if (!(m > 0)) throw bad(`offsets[${b}] is ${given[b]} and offsets[${b + 1}] is ${given[b + 1]}`);
  }
  if (given[lists] !== count) throw bad(`offsets end with ${given[lists]}`);
  const labels = Float32Array.from(await numbers(file, "labels"));
  for (let n = 0; n < count; n++) checkLabel(file, labels[n], `candidate ${n}`);
  return { offsets: Uint32Array.from(given), labels, rows: null, gap: 0 };
}

async function paddedLayout(file: SafetensorsFile, lists: number, width: number): Promise<Layout> {
  checkShape(file, tensor(file, "mask"), [lists, width]);
  checkShape(file, tensor(file, "labels"), [lists, width]);
  if (lists * width >= MAX_ROWS) throw tooLarge(file, `${lists} x ${width} rows`);
  const mask = await numbers(file, "mask");
  const given = await numbers(file, "labels");
  const offsets = new Uint32Array(lists + 1);
  for (let b = 0; b < lists; b++) {
    let real = 0;
    for (let i = b * width; i < (b + 1) * width; i++) {
      if (mask[i] === 1) real++;
      else if (mask[i] !== 0) {
        throw new StratumError(
          "features/bad-mask",
          `${file.path}: the mask of list ${b} holds ${mask[i]} at place ${i - b * width}`,
          "write 1 for a candidate and 0 for padding",
        );
      }
    }
    if (real === 0) throw emptyList(file, b);
    offsets[b + 1] = offsets[b] + real;
  }
  const rows = new Uint32Array(offsets[lists]);
  const labels = new Float32Array(offsets[lists]);
  for (let i = 0, n = 0; i < mask.length; i++) {
    if (mask[i] !== 1) continue;
    rows[n] = i;
    labels[n] = given[i];
    checkLabel(file, labels[n++], `list ${Math.floor(i / width)}, place ${i % width}`);
  }
  return { offsets, labels, rows, gap: width };
}

/** A whole tensor of numbers, whatever their type. Integers past 2^53 are rounded. */
async function numbers(file: SafetensorsFile, name: string): Promise<ArrayLike<number> & Iterable<number>> {
  const info = tensor(file, name);
  const bytes = await file.read(name);
  if (isFloatDtype(info.dtype)) return decodeFloats(bytes, info.dtype);
  if (info.dtype === "BOOL" || info.dtype === "U8") return bytes;
  if (info.dtype === "I8") return new Int8Array(bytes.buffer);
  if (info.dtype === "I16") return new Int16Array(bytes.buffer);
  if (info.dtype === "I32") return new Int32Array(bytes.buffer);
  if (info.dtype === "U32") return new Uint32Array(bytes.buffer);
  if (info.dtype === "I64") return Float64Array.from(new BigInt64Array(bytes.buffer), Number);
  throw badDtype(file, info, "a float or an integer type");
}

type ReadRows = (row: number, count: number, target: Float32Array, at: number) => Promise<void>;

/** Reads rows of a tensor as f32; a reader that goes forward finds the next rows read already. */
function rowReader(file: SafetensorsFile, info: TensorInfo, dim: number, gap: number): ReadRows {
  const { name, dtype, byteLength } = info;
  const rowBytes = (dim * DTYPE_BITS[dtype]) / 8;
  const rows = byteLength / rowBytes;
  let next = 0;
  let window: { first: number; end: number; bytes: Promise<Uint8Array<ArrayBuffer>> } | null = null;
  return async (row, count, target, at) => {
    const forward = row >= next && row - next <= gap;
    next = row + count;
    if (window === null || row < window.first || row + count > window.end) {
      const whole = byteLength <= READ_AHEAD;
      const first = whole ? 0 : row;
      const end = whole ? rows : Math.min(rows, row + Math.max(count, forward ? Math.floor(READ_AHEAD / rowBytes) : 0));
      if (dtype === "F32" && first === row && end === row + count) {
        const bytes = new Uint8Array(target.buffer, target.byteOffset + 4 * at, count * rowBytes);
        await file.readInto(name, row * rowBytes, bytes);
        return;
      }
      const opened = { first, end, bytes: file.readRange(name, first * rowBytes, (end - first) * rowBytes) };
      window = opened;
      opened.bytes.catch(() => {
        if (window === opened) window = null;
      });
    }
    const { first, bytes } = window;
    const held = (await bytes).subarray((row - first) * rowBytes, (row - first + count) * rowBytes);
    const values =
      dtype === "F32" ? new Float32Array(held.buffer, held.byteOffset, count * dim) : decodeFloats(held, dtype);
    target.set(values, at);
  };
}

/** @param values (1 + m, D) of list b */
function checkFinite(values: Float32Array, dim: number, b: number, path: string): void {
  if (allFinite(values)) return;
  const i = values.findIndex((value) => !Number.isFinite(value));
  const row = Math.floor(i / dim);
  throw new StratumError(
    "state/not-finite",
    `${path}: list ${b}: the state of ${row === 0 ? "the instruction" : `candidate ${row - 1}`} (row ${row}) holds ${values[i]} at ${i % dim}`,
    "the model's weights overflow or the file is damaged: compute the features again, at a shallower layer",
  );
}

/** Four sums that do not wait for each other: a test a value would cost more than reading it. */
function allFinite(values: Float32Array): boolean {
  let [a, b, c, d] = [0, 0, 0, 0];
  const even = values.length - (values.length % 4);
  for (let i = 0; i < even; i += 4) {
    a += values[i] * 0;
    b += values[i + 1] * 0;
    c += values[i + 2] * 0;
    d += values[i + 3] * 0;
  }
  for (let i = even; i < values.length; i++) a += values[i] * 0;
  return a + b + c + d === 0;
}

function checkLabel(file: SafetensorsFile, label: number, where: string): void {
  if (Number.isFinite(label) || Number.isNaN(label)) return;
  throw new StratumError(
    "features/bad-labels",
    `${file.path}: the label of ${where} is ${label}`,
    "write finite numbers, or NaN where there is none",
  );
}

function checkShape(file: SafetensorsFile, info: TensorInfo, shape: readonly number[]): void {
  if (info.shape.length === shape.length && shape.every((size, i) => size === info.shape[i])) return;
  throw badShape(file, info, `(${shape.join(", ")})`);
}

function badShape(file: SafetensorsFile, { name, shape }: TensorInfo, wanted: string): StratumError {
  const what = `${file.path}: tensor '${name}' has shape ${show(shape)}; expected ${wanted}`;
  return new StratumError("features/bad-shape", what, `features are ${LAYOUTS}`);
}

function badDtype(file: SafetensorsFile, { name, dtype }: TensorInfo, wanted: string): StratumError {
  const what = `${file.path}: tensor '${name}' is ${dtype}; expected ${wanted}`;
  return new StratumError("features/bad-dtype", what, `convert the tensor to ${wanted}`);
}

function emptyList(file: SafetensorsFile, b: number): StratumError {
  return new StratumError("features/empty-list", `${file.path}: list ${b} has no candidate`, "leave such lists out");
}

function tooLarge(file: SafetensorsFile, what: string): StratumError {
  const fix = `split the file: at most ${MAX_ROWS - 1} fit`;
  return new StratumError("features/too-large", `${file.path}: ${what}`, fix);
}
