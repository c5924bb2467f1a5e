/** JSON Lines as bytes: lines out of any chunks, whatever their encoding turns out to be. */
import { createHash, type Hash } from "node:crypto";
import { type BigIntStats, createReadStream } from "node:fs";
import { open, stat } from "node:fs/promises";
import { messageOf, StratumError } from "../errors.ts";

/** A path, `"-"` for standard input, or bytes cut anywhere. */
export type ListSource = string | AsyncIterable<Uint8Array>;

/** Where a reader stands: behind a line. What it takes to go on from there, and to know the way again. */
export interface Position {
  /** The line's number, counted from 1, blank lines included; 0 before the first. */
  readonly line: number;
  /** Offset behind the line and its newline. */
  readonly bytes: number;
  /** Lines so far that are not blank. */
  readonly items: number;
  /** Chain over all lines so far: SHA-256 of the chain before and the line's bytes, newline included. Hexadecimal. */
  readonly hash: string;
}

export const START: Position = { line: 0, bytes: 0, items: 0, hash: "" };

/** A stretch of a file that begins and ends with lines. */
export interface LineRange {
  /** Number of its first line. */
  readonly line: number;
  readonly start: number;
  readonly end: number;
}

export interface Line {
  readonly line: number;
  /** Without its newline; null when longer than the bound. */
  readonly bytes: Uint8Array | null;
  readonly length: number;
  /** Offset behind the line and its newline. */
  readonly end: number;
  /** The chain of {@link Position}; empty unless `from` was given. */
  readonly hash: string;
}

export interface SplitOptions {
  /** Begin behind this position, and continue its chain. Of a path that is a regular file the bytes before are not read. */
  readonly from?: Pick<Position, "line" | "bytes" | "hash"> | undefined;
  /** Offset to end at; a line ends there. */
  readonly until?: number | undefined;
  /** Looks at a regular file before and after it is read; by default it must be the same at both times. */
  readonly check?: FileCheck | undefined;
}

/** What changes when a file's bytes do. A file that gets another name, or loses its own, is still the same. */
export interface FileFacts {
  readonly size: number;
  /** Nanoseconds since 1970. */
  readonly modified: string;
  readonly inode: string;
}

export function fileFacts({ size, mtimeNs, ino, dev }: BigIntStats): FileFacts {
  return { size: Number(size), modified: `${mtimeNs}`, inode: `${dev}:${ino}` };
}

/** @throws {StratumError} `usage/other-input` */
export type FileCheck = (found: BigIntStats) => void;

/** Finds a file the same at every look: as `begun`, or as at the first. */
export function unchangedFile(path: string, begun?: FileFacts | null): FileCheck {
  let first = begun ?? null;
  return (found) => {
    const now = fileFacts(found);
    first ??= now;
    const { size, modified, inode } = first;
    if (now.size === size && now.modified === modified && now.inode === inode) return;
    const how = now.size === size ? "its bytes were written again" : `it had ${size} bytes and has ${now.size}`;
    throw new StratumError(
      "usage/other-input",
      `${path} was changed while it was read: ${how}`,
      "put a changed file in the place of the old one by renaming it; the same command goes on where lines were only added, and says so where it cannot",
    );
  };
}

const NEWLINE = 0x0a;
const BYTE_ORDER_MARK = [0xef, 0xbb, 0xbf];

/** Lines as bytes: UTF-8 never has a newline inside a character, so chunks may be cut anywhere. */
export async function* splitLines(
  source: ListSource,
  maxBytes: number,
  { from, until, check }: SplitOptions = {},
): AsyncGenerator<Line> {
  let line = 1 + (from?.line ?? 0);
  let end = from?.bytes ?? 0;
  let hash = from?.hash ?? "";
  let length = 0;
  let parts: Uint8Array[] = [];
  let chain: Hash | null = null;
  const add = (part: Uint8Array): void => {
    length += part.length;
    if (from !== undefined) {
      chain ??= createHash("sha256").update(hash);
      chain.update(part);
    }
    if (length > maxBytes) parts = [];
    else if (part.length > 0) parts.push(part);
  };
  const finish = (newline: boolean): Line => {
    let bytes: Uint8Array | null = null;
    if (length <= maxBytes) bytes = parts.length === 1 ? parts[0] : Buffer.concat(parts, length);
    if (line === 1 && bytes !== null && BYTE_ORDER_MARK.every((byte, i) => bytes?.[i] === byte)) {
      bytes = bytes.subarray(BYTE_ORDER_MARK.length);
    }
    end += length + (newline ? 1 : 0);
    if (chain !== null) hash = (newline ? chain.update("\n") : chain).digest("hex");
    const finished = { line, bytes, length, end, hash };
    line++;
    length = 0;
    parts = [];
    chain = null;
    return finished;
  };
  for await (const chunk of openSource(source, end, until, check)) {
    let start = 0;
    for (let at = chunk.indexOf(NEWLINE); at >= 0; at = chunk.indexOf(NEWLINE, start)) {
      add(chunk.subarray(start, at));
      yield finish(true);
      start = at + 1;
    }
    // A copy: a source may reuse the memory of a chunk that it gave.
    if (start < chunk.length) add(Buffer.from(chunk.subarray(start)));
  }
  if (length > 0) yield finish(false);
}

async function* openSource(
  source: ListSource,
  start: number,
  until: number | undefined,
  check?: FileCheck,
): AsyncGenerator<Uint8Array> {
  // Node reads a file without an end where the end lies before the start.
  if (until !== undefined && until <= start) return;
  try {
    if (typeof source !== "string") yield* source;
    else if (source === "-") yield* chunksOf(process.stdin);
    else if ((await stat(source)).isFile()) yield* readFile(source, start, until, check ?? unchangedFile(source));
    else yield* chunksOf(createReadStream(source));
  } catch (cause) {
    if (cause instanceof StratumError) throw cause;
    const name = typeof source === "string" && source !== "-" ? source : "the input";
    throw new StratumError("file/unreadable", `cannot read ${name}: ${messageOf(cause)}`, "check the path", cause);
  }
}

/** A file that shrinks, grows or gets other bytes under the reader gives lines that were in no version of it. */
async function* readFile(
  path: string,
  start: number,
  until: number | undefined,
  check: FileCheck,
): AsyncGenerator<Uint8Array> {
  const file = await open(path, "r");
  try {
    check(await file.stat({ bigint: true }));
    const end = until === undefined ? {} : { end: until - 1 };
    yield* chunksOf(file.createReadStream({ start, ...end, highWaterMark: 2 ** 18, autoClose: false }));
    check(await file.stat({ bigint: true }));
  } finally {
    await file.close();
  }
}

async function* chunksOf(stream: AsyncIterable<Uint8Array | string>): AsyncGenerator<Uint8Array> {
  for await (const chunk of stream) yield typeof chunk === "string" ? Buffer.from(chunk) : chunk;
}

export function isBlank(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0x20 || byte === 0x09 || byte === 0x0d);
}

/** Index of the first byte that no UTF-8 text can have there (the Unicode standard's table 3-7); the length if none. */
export function firstInvalidByte(bytes: Uint8Array): number {
  let i = 0;
  while (i < bytes.length) {
    const lead = bytes[i] ?? 0;
    const more = lead < 0x80 ? 0 : lead < 0xc2 ? -1 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : lead < 0xf5 ? 3 : -1;
    if (more < 0) return i;
    for (let k = 1; k <= more; k++) {
      const byte = bytes[i + k] ?? 0;
      // The second byte's range is narrower where it would spell an overlong form, a surrogate or a value past U+10FFFF.
      const low = k > 1 ? 0x80 : lead === 0xe0 ? 0xa0 : lead === 0xf0 ? 0x90 : 0x80;
      const high = k > 1 ? 0xbf : lead === 0xed ? 0x9f : lead === 0xf4 ? 0x8f : 0xbf;
      if (byte < low || byte > high) return i + k < bytes.length ? i + k : i;
    }
    i += more + 1;
  }
  return i;
}
