/** Rows of a Parquet file, a row group at a time, of the asked-for columns alone. */

import { type FileHandle, open } from "node:fs/promises";
import {
  type AsyncBuffer,
  type FileMetaData,
  parquetMetadataAsync,
  parquetReadObjects,
  parquetSchema,
} from "hyparquet";
import { compressors } from "hyparquet-compressors";
import { messageOf, StratumError } from "../errors.ts";
import { clip } from "../weights/json.ts";
import type { Fields } from "./lists.ts";
import type { RowItem, RowSource } from "./rows.ts";

/** Bytes of one column of one row group, at most: a header's word must not decide how much memory is asked for. */
const MAX_CHUNK_BYTES = 2 ** 31;

/** A string that is not UTF-8 is an error, not a text with other characters. */
const parsers = { stringFromBytes: (bytes: Uint8Array) => new TextDecoder("utf-8", { fatal: true }).decode(bytes) };

/** @throws StratumError `usage/no-input`, `list/bad-parquet`, `list/empty-file` */
export async function openParquet(path: string): Promise<RowSource> {
  const bad = (cause: unknown) =>
    new StratumError(
      "list/bad-parquet",
      `${path} cannot be read as Parquet: ${clip(messageOf(cause))}`,
      "check that the file is whole, and not encrypted",
      cause,
    );
  const file = await open(path).catch((cause: unknown) => {
    const what = `cannot read ${path}: ${messageOf(cause)}`;
    throw new StratumError("usage/no-input", what, "check the path of the input file", cause);
  });
  let metadata: FileMetaData;
  let buffer: AsyncBuffer;
  try {
    buffer = bufferOf(file, (await file.stat()).size);
    metadata = await parquetMetadataAsync(buffer, { geoparquet: false });
  } catch (cause) {
    await file.close();
    throw bad(cause);
  }
  const total = Number(metadata.num_rows);
  if (total === 0) {
    await file.close();
    throw new StratumError("list/empty-file", `${path} holds no rows`, "give a file with at least one row");
  }
  return {
    ...{ format: "parquet", total },
    names: parquetSchema(metadata).children.map(({ element }) => element.name),
    async *rows(columns): AsyncGenerator<RowItem> {
      try {
        let from = 0;
        for (const group of metadata.row_groups) {
          const to = from + Number(group.num_rows);
          const rows = await parquetReadObjects({
            ...{ file: buffer, metadata, compressors, parsers, geoparquet: false },
            ...{ columns: [...columns], rowStart: from, rowEnd: to },
          }).catch((cause: unknown) => {
            throw bad(cause);
          });
          for (const [i, row] of rows.entries()) yield { place: `row ${from + i + 1}`, fields: plain(row) as Fields };
          from = to;
        }
      } finally {
        await file.close();
      }
    },
  };
}

function bufferOf(file: FileHandle, byteLength: number): AsyncBuffer {
  return {
    byteLength,
    async slice(start, end = byteLength) {
      const length = end - start;
      if (!(start >= 0 && length >= 0 && end <= byteLength && length <= MAX_CHUNK_BYTES))
        throw new Error(`bytes ${start} to ${end} of ${byteLength} are asked for`);
      const bytes = new Uint8Array(length);
      for (let at = 0; at < length; ) {
        const { bytesRead } = await file.read(bytes, at, length - at, start + at);
        if (bytesRead === 0) throw new Error("the file has become shorter");
        at += bytesRead;
      }
      return bytes.buffer;
    },
  };
}

/** 64-bit integers as numbers, where a double holds them: what JSON would have. */
function plain(value: unknown): unknown {
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null || Object.getPrototypeOf(value) !== Object.prototype) return value;
  return Object.fromEntries(Object.entries(value).map(([name, own]) => [name, plain(own)]));
}
