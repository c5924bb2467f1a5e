/** JSON Lines as bytes: lines out of any chunks, whatever their encoding turns out to be. */
import { createHash, type Hash } from "node:crypto";
import { createReadStream } from "node:fs";
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
}

const NEWLINE = 0x0a;
const BYTE_ORDER_MARK = [0xef, 0xbb, 0xbf];

/** Lines as bytes: UTF-8 never has a newline inside a character, so chunks may be cut anywhere. */
export async function* splitLines(
  source: ListSource,
  maxBytes: number,
  { from, until }: SplitOptions = {},
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
  for await (const chunk of openSource(source, end, until)) {
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

async function* openSource(source: ListSource, start: number, until: number | undefined): AsyncGenerator<Uint8Array> {
  const stretch = { start, ...(until === undefined ? {} : { end: until - 1 }), highWaterMark: 2 ** 18 };
  // Node reads a file without an end where the end lies before the start.
  if (until !== undefined && until <= start) return;
  const stream =
    typeof source !== "string"
      ? source
      : source === "-"
        ? process.stdin
        : createReadStream(source, start === 0 && until === undefined ? {} : stretch);
  try {
    for await (const chunk of stream) yield typeof chunk === "string" ? Buffer.from(chunk) : chunk;
  } catch (cause) {
    if (cause instanceof StratumError) throw cause;
    const name = typeof source === "string" && source !== "-" ? source : "the input";
    throw new StratumError("file/unreadable", `cannot read ${name}: ${messageOf(cause)}`, "check the path", cause);
  }
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
