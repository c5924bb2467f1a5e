/** JSON Lines as bytes: lines out of any chunks, whatever their encoding turns out to be. */
import { createReadStream } from "node:fs";
import { messageOf, StratumError } from "../errors.ts";

/** A path, `"-"` for standard input, or bytes cut anywhere. */
export type ListSource = string | AsyncIterable<Uint8Array>;

export interface Line {
  readonly line: number;
  /** Without its newline; null when longer than the bound. */
  readonly bytes: Uint8Array | null;
  readonly length: number;
}

const NEWLINE = 0x0a;
const BYTE_ORDER_MARK = [0xef, 0xbb, 0xbf];

/** Lines as bytes: UTF-8 never has a newline inside a character, so chunks may be cut anywhere. */
export async function* splitLines(source: ListSource, maxBytes: number): AsyncGenerator<Line> {
  let line = 1;
  let length = 0;
  let parts: Uint8Array[] = [];
  const add = (part: Uint8Array): void => {
    length += part.length;
    if (length > maxBytes) parts = [];
    else if (part.length > 0) parts.push(part);
  };
  const finish = (): Line => {
    let bytes = length > maxBytes ? null : Buffer.concat(parts, length);
    if (line === 1 && bytes !== null && BYTE_ORDER_MARK.every((byte, i) => bytes?.[i] === byte)) {
      bytes = bytes.subarray(BYTE_ORDER_MARK.length);
    }
    const finished = { line, bytes, length };
    line++;
    length = 0;
    parts = [];
    return finished;
  };
  for await (const chunk of openSource(source)) {
    let start = 0;
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, start)) {
      add(chunk.subarray(start, end));
      yield finish();
      start = end + 1;
    }
    // A copy: a source may reuse the memory of a chunk that it gave.
    add(Buffer.from(chunk.subarray(start)));
  }
  if (length > 0) yield finish();
}

async function* openSource(source: ListSource): AsyncGenerator<Uint8Array> {
  const stream = typeof source !== "string" ? source : source === "-" ? process.stdin : createReadStream(source);
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
