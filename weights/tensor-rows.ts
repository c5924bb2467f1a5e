/** Rows and columns of a matrix in a file (embeddings of the tokens at hand), without reading the rest. */

import { StratumError } from "../errors.ts";
import { show } from "./json.ts";
import type { SafetensorsFile, TensorInfo } from "./safetensors.ts";
import { DTYPE_BITS, isSize } from "./safetensors-header.ts";

/** `count` rows from `start` on. */
export interface RowRange {
  readonly start: number;
  readonly count: number;
}

/** Enough to keep a disk's queue filled; more only holds more promises. */
const READS_AT_ONCE = 16;

/**
 * Reads rows of a (rows, columns) tensor; every row once, runs of neighbouring rows in one read.
 *
 * @returns the rows' bytes in the asked order, repeated where a row was asked for repeatedly
 * @throws StratumError `model/not-a-matrix`, `model/row-out-of-range`, and what reading throws
 */
export async function readTensorRows(
  file: SafetensorsFile,
  name: string,
  rows: readonly number[] | RowRange,
): Promise<Uint8Array<ArrayBuffer>> {
  const info = file.info(name);
  const rowBytes = bytesPerRow(info, file.path);
  if (isRowRange(rows)) {
    const { start, count } = rows;
    if (!isSize(start) || !isSize(count) || start + count > (info.shape[0] ?? 0)) {
      throw outOfRange(info, file.path, `${count} rows from ${start} on`);
    }
    return file.readRange(name, start * rowBytes, count * rowBytes);
  }
  const bad = rows.find((row) => !isSize(row) || row >= (info.shape[0] ?? 0));
  if (bad !== undefined) throw outOfRange(info, file.path, `row ${bad}`);

  const sorted = [...new Set(rows)].sort((a, b) => a - b);
  const unique = new Uint8Array(sorted.length * rowBytes);
  const place = new Map(sorted.map((row, i) => [row, i * rowBytes]));
  const runs = neighbours(sorted);
  for (let i = 0; i < runs.length; i += READS_AT_ONCE) {
    const reads = runs.slice(i, i + READS_AT_ONCE).map(({ start, count }) => {
      const at = place.get(start) ?? 0;
      return file.readInto(name, start * rowBytes, unique.subarray(at, at + count * rowBytes));
    });
    await Promise.all(reads);
  }
  if (rows.length === sorted.length && rows.every((row, i) => row === sorted[i])) return unique;
  const asked = new Uint8Array(rows.length * rowBytes);
  rows.forEach((row, i) => {
    const at = place.get(row) ?? 0;
    asked.set(unique.subarray(at, at + rowBytes), i * rowBytes);
  });
  return asked;
}

/**
 * Reads neighbouring columns of a (rows, columns) tensor, (rows, count), the bytes of each once.
 *
 * @throws StratumError `model/not-a-matrix`, `model/column-out-of-range`, and what reading throws
 */
export async function readTensorColumns(
  file: SafetensorsFile,
  name: string,
  { start, count }: RowRange,
): Promise<Uint8Array<ArrayBuffer>> {
  const info = file.info(name);
  const rowBytes = bytesPerRow(info, file.path);
  const [rows = 0, columns = 0] = info.shape;
  if (!isSize(start) || !isSize(count) || start + count > columns || rowBytes % columns !== 0) {
    throw new StratumError(
      "model/column-out-of-range",
      `${file.path}: tensor ${show(name)} ${show(info.shape)} of ${info.dtype}; asked for ${count} columns from ${start} on`,
      "check that config.json and the weights belong to the same model",
    );
  }
  if (count === columns) return file.readRange(name, 0, rows * rowBytes);
  const size = rowBytes / columns;
  const found = new Uint8Array(rows * count * size);
  for (let i = 0; i < rows; i += READS_AT_ONCE) {
    const reads = Array.from({ length: Math.min(READS_AT_ONCE, rows - i) }, (_, j) => {
      const at = (i + j) * count * size;
      return file.readInto(name, (i + j) * rowBytes + start * size, found.subarray(at, at + count * size));
    });
    await Promise.all(reads);
  }
  return found;
}

function isRowRange(rows: readonly number[] | RowRange): rows is RowRange {
  return !Array.isArray(rows);
}

/** Runs of consecutive numbers in a sorted list without repetition. */
function neighbours(sorted: readonly number[]): RowRange[] {
  const runs: { start: number; count: number }[] = [];
  for (const row of sorted) {
    const run = runs.at(-1);
    if (run && run.start + run.count === row) run.count++;
    else runs.push({ start: row, count: 1 });
  }
  return runs;
}

function bytesPerRow(info: TensorInfo, path: string): number {
  // A vector has rows of one element.
  const [, columns = 1] = info.shape;
  const bits = DTYPE_BITS[info.dtype] * columns;
  if ((info.shape.length === 1 || info.shape.length === 2) && bits % 8 === 0) return bits / 8;
  throw new StratumError(
    "model/not-a-matrix",
    `${path}: tensor ${show(info.name)} is ${info.dtype} ${show(info.shape)}, not a matrix with rows of whole bytes`,
    "check that config.json and the weights belong to the same model",
  );
}

function outOfRange(info: TensorInfo, path: string, asked: string): StratumError {
  return new StratumError(
    "model/row-out-of-range",
    `${path}: tensor ${show(info.name)} ${show(info.shape)} has rows 0 to ${(info.shape[0] ?? 0) - 1}; asked for ${asked}`,
    "a token id beyond the embedding table: the tokenizer and the weights are of different models",
  );
}
