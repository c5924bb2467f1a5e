/**
 * Rows of other people's data: JSON Lines, a JSON array, CSV, Parquet, gzipped or not. A row that cannot be read is an error
 * in its place, with where it stands; what breaks a file ends it.
 */
import { createReadStream } from "node:fs";
import { open } from "node:fs/promises";
import { Readable } from "node:stream";
import { createGunzip } from "node:zlib";
import { parse as csvParser } from "csv-parse";
import { messageOf, StratumError } from "../errors.ts";
import { clip, isJsonObject } from "../weights/json.ts";
import { badRow } from "./conversation.ts";
import { isBlank, splitLines } from "./json-lines.ts";
import { type Fields, parseLine } from "./lists.ts";
import { openParquet } from "./rows-parquet.ts";

export const ROW_FORMATS = ["jsonl", "json", "csv", "tsv", "parquet"] as const;
export type RowFormat = (typeof ROW_FORMATS)[number];

/** A row, or why there is none. */
export type RowItem =
  | { readonly place: string; readonly fields: Fields; readonly error?: undefined }
  | { readonly place: string; readonly fields?: undefined; readonly error: StratumError };

/** An open file of rows, read once. */
export interface RowSource {
  readonly format: RowFormat;
  /** Names of the fields: those of the header, of the schema, or of the first row. */
  readonly names: readonly string[];
  /** Rows in a regular file, where it says so. */
  readonly total?: number | undefined;
  /** @param columns fields that will be looked at: a Parquet file's others are not read */
  rows(columns: readonly string[]): AsyncIterable<RowItem>;
}

export interface RowOptions {
  /** By the file's name where it is left out; `jsonl` for stdin. */
  readonly format?: RowFormat | undefined;
  /** Between the fields of CSV; a comma by default. */
  readonly delimiter?: string | undefined;
}

const MAX_ROW_BYTES = 64 * 2 ** 20;
/** Longer arrays go as JSON Lines: one must be held whole. */
const MAX_ARRAY_BYTES = 256 * 2 ** 20;
const LINE_BREAK = /\r\n|\n|\r/g;
/** Rows among which one must be readable. */
const FIRST_ROWS = 100;
const GZIP = Buffer.of(0x1f, 0x8b);

/** The format that a file's name says. @throws StratumError `usage/format` */
export function rowFormatOf(path: string): RowFormat {
  if (path === "-") return "jsonl";
  const extension = /\.(jsonl|ndjson|json|csv|tsv|parquet)(?:\.gz)?$/i.exec(path)?.[1]?.toLowerCase();
  if (extension === "ndjson") return "jsonl";
  const format = ROW_FORMATS.find((each) => each === extension);
  if (format !== undefined) return format;
  throw new StratumError(
    "usage/format",
    `the name of ${clip(path)} does not say what it holds`,
    `give --format: ${ROW_FORMATS.join(", ")}`,
  );
}

/**
 * Opens a file of rows; `-` is standard input.
 * @throws StratumError `usage/format`, `usage/no-input`, `list/empty-file`, and for what no row of the file survives
 *   `list/bad-json`, `list/bad-csv`, `list/bad-parquet`, `list/bad-utf8`
 */
export async function openRows(path: string, options: RowOptions = {}): Promise<RowSource> {
  const format = options.format ?? rowFormatOf(path);
  if (format === "parquet") {
    if (path !== "-") return openParquet(path);
    throw new StratumError("usage/format", "Parquet has its index at the end", "give a file instead of stdin");
  }
  const bytes = await openBytes(path);
  if (format === "csv" || format === "tsv")
    return openCsv(path, format, bytes, options.delimiter ?? (format === "tsv" ? "\t" : ","));
  const items = format === "json" ? jsonRows(path, bytes) : jsonLineRows(bytes);
  return withNames(path, format, items);
}

/** The bytes of a file, unzipped where they are gzipped, whatever its name. */
async function openBytes(path: string): Promise<AsyncIterable<Uint8Array>> {
  if (path === "-") return process.stdin;
  const unreadable = (cause: unknown) =>
    new StratumError(
      "usage/no-input",
      `cannot read ${path}: ${messageOf(cause)}`,
      "check the path of the input file",
      cause,
    );
  const start = Buffer.alloc(GZIP.length);
  try {
    await using file = await open(path);
    await file.read(start, 0, start.length, 0);
  } catch (cause) {
    throw unreadable(cause);
  }
  if (!start.equals(GZIP)) return createReadStream(path);
  const source = createReadStream(path);
  const unzipped = createGunzip();
  source.on("error", (cause) => unzipped.destroy(cause));
  return (async function* () {
    try {
      yield* source.pipe(unzipped) as AsyncIterable<Uint8Array>;
    } catch (cause) {
      throw new StratumError("file/unreadable", `cannot unzip ${path}: ${messageOf(cause)}`, "check the file", cause);
    } finally {
      source.destroy();
    }
  })();
}

async function* jsonLineRows(bytes: AsyncIterable<Uint8Array>): AsyncGenerator<RowItem> {
  for await (const { line, bytes: own, length } of splitLines(bytes, MAX_ROW_BYTES)) {
    const place = `line ${line}`;
    if (own !== null && isBlank(own)) continue;
    try {
      if (own === null) throw new StratumError("list/too-long", `the line has ${length} bytes`, "shorten its texts");
      yield { place, fields: parseLine(own) };
    } catch (thrown) {
      if (!(thrown instanceof StratumError)) throw thrown;
      yield { place, error: thrown };
    }
  }
}

async function* jsonRows(path: string, bytes: AsyncIterable<Uint8Array>): AsyncGenerator<RowItem> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  let rows: unknown;
  for await (const chunk of bytes) {
    length += chunk.length;
    if (length > MAX_ARRAY_BYTES) {
      throw new StratumError(
        "list/too-long",
        `${path} is one JSON value of more than ${MAX_ARRAY_BYTES / 2 ** 20} MiB`,
        `write it as JSON lines: jq -c '.[]' ${path} > rows.jsonl`,
      );
    }
    chunks.push(Buffer.from(chunk));
  }
  try {
    rows = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(Buffer.concat(chunks)));
  } catch (cause) {
    throw new StratumError(
      "list/bad-json",
      `${path} is not JSON: ${clip(messageOf(cause))}`,
      "for one object a line, give --format jsonl",
      cause,
    );
  }
  if (!Array.isArray(rows)) {
    const fix = "give a JSON array of rows; for one object a line, --format jsonl";
    throw new StratumError("list/bad-json", `${path} holds no array`, fix);
  }
  for (const [i, row] of rows.entries()) {
    const place = `row ${i + 1}`;
    yield isJsonObject(row)
      ? { place, fields: row }
      : { place, error: badRow("expected an object", 'write {"prompt": "...", ...}') };
  }
}

/** A source whose names are those of its first row. */
async function withNames(path: string, format: RowFormat, items: AsyncGenerator<RowItem>): Promise<RowSource> {
  const before: RowItem[] = [];
  for (let next = await items.next(); !next.done; next = await items.next()) {
    before.push(next.value);
    if (next.value.fields === undefined) {
      // A file of another kind has no good row at all.
      if (before.length < FIRST_ROWS) continue;
      break;
    }
    return {
      ...{ format, names: Object.keys(next.value.fields) },
      async *rows() {
        yield* before;
        yield* items;
      },
    };
  }
  const [first] = before;
  if (first?.error !== undefined) {
    const { code, message, fix, cause } = first.error;
    const what = `${path}: none of the first ${before.length} rows can be read; ${first.place}: ${message}`;
    throw new StratumError(code, what, `${fix}, or name the file's kind with --format`, cause);
  }
  throw new StratumError("list/empty-file", `${path} holds no rows`, "give a file with at least one row");
}

/** Text out of bytes, which must be UTF-8. */
async function* textOf(path: string, bytes: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let line = 1;
  const decode = (chunk?: Uint8Array) => {
    try {
      const text = chunk === undefined ? decoder.decode() : decoder.decode(chunk, { stream: true });
      line += text.split("\n").length - 1;
      return text;
    } catch (cause) {
      const where = `${path}: after line ${line} there are bytes that are not UTF-8`;
      throw new StratumError("list/bad-utf8", where, "save the file as UTF-8", cause);
    }
  };
  for await (const chunk of bytes) {
    // In pieces, so that the line that an error names is near.
    for (let at = 0; at < chunk.length; at += 4096) yield decode(chunk.subarray(at, at + 4096));
  }
  yield decode();
}

async function openCsv(
  path: string,
  format: RowFormat,
  bytes: AsyncIterable<Uint8Array>,
  delimiter: string,
): Promise<RowSource> {
  const parser = csvParser({
    ...{ delimiter, bom: true, relax_column_count: true },
    max_record_size: MAX_ROW_BYTES,
  });
  const source = Readable.from(textOf(path, bytes));
  source.on("error", (cause) => parser.destroy(cause));
  source.pipe(parser);
  const records = (parser as AsyncIterable<readonly string[]>)[Symbol.asyncIterator]();
  // The lines before the next record; a field may hold line breaks.
  let before = 0;
  const next = async (): Promise<{ readonly line: number; readonly record: readonly string[] } | undefined> => {
    const line = before + 1;
    try {
      const found = await records.next();
      if (found.done) return undefined;
      const record = found.value;
      before += 1 + record.reduce((sum, field) => sum + (field.match(LINE_BREAK)?.length ?? 0), 0);
      return { line, record };
    } catch (cause) {
      if (cause instanceof StratumError) throw cause;
      throw new StratumError(
        "list/bad-csv",
        `${path}: the record that begins on line ${line}: ${clip(messageOf(cause))}`,
        'quote fields that hold quotes, delimiters or line breaks, with quotes doubled inside: "she said ""no"""',
        cause,
      );
    }
  };
  const header = await next();
  if (header === undefined || header.record.every((name) => name.trim() === ""))
    throw new StratumError("list/empty-file", `${path} is empty`, "give a file with a header and rows");
  const names = header.record.map((name) => name.trim());
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) {
    const what = `${path}: the header names '${clip(twice)}' twice`;
    throw new StratumError("list/bad-csv", what, "give every column a name of its own");
  }
  return {
    ...{ format, names },
    async *rows() {
      for (let found = await next(); found !== undefined; found = await next()) {
        const { line, record } = found;
        // A blank line.
        if (record.length === 1 && record[0].trim() === "") continue;
        const place = `line ${line}`;
        if (record.length === names.length)
          yield { place, fields: Object.fromEntries(names.map((name, i) => [name, record[i]])) };
        else {
          const what = `the row has ${record.length} fields, the header ${names.length}`;
          yield { place, error: badRow(what, "quote fields that hold delimiters or line breaks, or give --delimiter") };
        }
      }
    },
  };
}
