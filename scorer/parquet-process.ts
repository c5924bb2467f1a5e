/**
 * Reads Parquet files for the process that started this one, which sends requests and gets replies.
 *
 * A length in a damaged file can make V8 end the whole process while the file is decoded ("Fatal JavaScript invalid size
 * error"): no `catch` sees that, and a worker thread takes its process with it. So the process is this one. It ends itself
 * when it holds more memory than the file can need, and when nobody waits for it any more.
 */
import { type FileHandle, open } from "node:fs/promises";
import { Worker } from "node:worker_threads";
import {
  type AsyncBuffer,
  type FileMetaData,
  parquetMetadataAsync,
  parquetReadObjects,
  parquetSchema,
} from "hyparquet";
import { compressors } from "hyparquet-compressors";
import { messageOf } from "../errors.ts";
import type { Fields } from "./lists.ts";

export type ParquetRequest =
  /** @param mostBytes the process ends where it holds more memory */
  | { readonly call: "open"; readonly path: string; readonly mostBytes: number }
  /** The next rows, of these columns. */
  | { readonly call: "next"; readonly columns: readonly string[] }
  | { readonly call: "close" };

export type ParquetReply =
  | { readonly call: "open"; readonly total: number; readonly names: readonly string[] }
  /** No rows: that was all. */
  | { readonly call: "next"; readonly rows: readonly Fields[] }
  /** `bytes` of memory that are still held. */
  | { readonly call: "close"; readonly bytes: number }
  /** The file is closed. */
  | { readonly call: "failed"; readonly message: string; readonly bytes: number };

/** Bytes of one column of one row group, at most: a header's word must not decide how much memory is asked for. */
const MAX_CHUNK_BYTES = 2 ** 31;
/** What goes into one reply: rows, and characters after which it ends. */
const [MOST_ROWS, MOST_CHARACTERS] = [1024, 2 ** 17];
/** Of one row: a dictionary makes long ones out of few bytes. */
const MAX_ROW_CHARACTERS = 2 ** 26;

/** A string that is not UTF-8 is an error, not a text with other characters. */
const parsers = { stringFromBytes: (bytes: Uint8Array) => new TextDecoder("utf-8", { fatal: true }).decode(bytes) };

/** Decoding does not let go of its thread: another one looks at the memory, and whether the parent still lives. */
const WATCH = `
  const { workerData: { limit, parent } } = require("node:worker_threads");
  setInterval(() => {
    if (process.memoryUsage.rss() > limit[0] || process.ppid !== parent) process.kill(process.pid, "SIGKILL");
  }, 20);`;

interface Open {
  readonly file: FileHandle;
  readonly buffer: AsyncBuffer;
  readonly metadata: FileMetaData;
  batches: AsyncGenerator<readonly Fields[]> | null;
}

let opened: Open | null = null;

async function answer(request: ParquetRequest, limit: Float64Array): Promise<ParquetReply> {
  switch (request.call) {
    case "open": {
      limit[0] = request.mostBytes;
      opened = await openFile(request.path);
      const { metadata } = opened;
      const names = parquetSchema(metadata).children.map(({ element }) => element.name);
      return { call: "open", total: Number(metadata.num_rows), names };
    }
    case "next": {
      if (opened === null) throw new Error("no file is open");
      opened.batches ??= readBatches(opened, request.columns);
      const next = await opened.batches.next();
      return { call: "next", rows: next.done ? [] : next.value };
    }
    case "close":
      return { call: "close", bytes: await close() };
  }
}

/** @returns bytes of memory that are still held */
async function close(): Promise<number> {
  await opened?.file.close();
  opened = null;
  return process.memoryUsage.rss();
}

async function openFile(path: string): Promise<Open> {
  const file = await open(path);
  try {
    const buffer = bufferOf(file, (await file.stat()).size);
    const metadata = await parquetMetadataAsync(buffer, { geoparquet: false });
    const rows = metadata.row_groups.reduce((sum, { num_rows }) => sum + Number(num_rows), 0);
    if (rows !== Number(metadata.num_rows) || metadata.row_groups.some(({ num_rows }) => num_rows < 0))
      throw new Error(`it says that it has ${metadata.num_rows} rows, and its row groups that they have ${rows}`);
    return { file, buffer, metadata, batches: null };
  } catch (cause) {
    await file.close();
    throw cause;
  }
}

async function* readBatches({ buffer, metadata }: Open, columns: readonly string[]): AsyncGenerator<readonly Fields[]> {
  let from = 0;
  for (const group of metadata.row_groups) {
    const to = from + Number(group.num_rows);
    const rows = await parquetReadObjects({
      ...{ file: buffer, metadata, compressors, parsers, geoparquet: false },
      ...{ columns: [...columns], rowStart: from, rowEnd: to },
    });
    if (rows.length !== to - from) throw new Error(`a row group of ${to - from} rows holds ${rows.length}`);
    let batch: Fields[] = [];
    let characters = 0;
    for (const row of rows) {
      const size = { characters: 0 };
      batch.push(plain(row, size) as Fields);
      characters += size.characters;
      if (batch.length < MOST_ROWS && characters < MOST_CHARACTERS) continue;
      yield batch;
      [batch, characters] = [[], 0];
    }
    if (batch.length > 0) yield batch;
    from = to;
  }
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

/** A value as JSON would have it: 64-bit integers as numbers, where a double holds them. Counts its characters. */
function plain(value: unknown, size: { characters: number }): unknown {
  size.characters += typeof value === "string" ? value.length : value instanceof Uint8Array ? value.byteLength : 8;
  if (size.characters > MAX_ROW_CHARACTERS) throw new Error(`a row has more than ${MAX_ROW_CHARACTERS} characters`);
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  if (Array.isArray(value)) return value.map((own) => plain(own, size));
  if (typeof value !== "object" || value === null || Object.getPrototypeOf(value) !== Object.prototype) return value;
  return Object.fromEntries(Object.entries(value).map(([name, own]) => [name, plain(own, size)]));
}

function serve(): void {
  const limit = new Float64Array(new SharedArrayBuffer(8)).fill(Number.POSITIVE_INFINITY);
  new Worker(WATCH, { eval: true, workerData: { limit, parent: process.ppid } }).unref();
  // A terminal's Ctrl-C reaches all its processes: when this one ends is the parent's to say.
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => undefined);
  process.on("disconnect", () => process.exit());
  process.on("message", async (request: ParquetRequest) => {
    const reply = await answer(request, limit).catch(
      async (cause: unknown): Promise<ParquetReply> => ({
        ...{ call: "failed", message: messageOf(cause) },
        bytes: await close(),
      }),
    );
    process.send?.(reply);
  });
}

serve();
