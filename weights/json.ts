/** JSON from files that others wrote: bounded in size, and with the faults that `JSON.parse` hides or chokes on. */

import type { Stats } from "node:fs";
import { readFile, stat } from "node:fs/promises";
import { type ErrorCode, messageOf, StratumError } from "../errors.ts";

/** What is read and the codes of the ways in which that fails. */
export interface JsonFile {
  /** The file in words, e.g. `the model's config.json`. */
  readonly what: string;
  /** Larger files are refused unread. */
  readonly maxBytes: number;
  readonly missing: ErrorCode;
  readonly bad: ErrorCode;
  /** What to do when the file is missing or bad. */
  readonly fix: string;
}

/** No file of ours nests like this, and what walks a value recursively (`JSON.stringify`) has a stack to lose. */
export const MAX_JSON_DEPTH = 512;
/** An empty object takes 56 bytes of memory and 3 of a file: what a text may cost is counted before it is parsed. */
const MAX_OBJECTS = 2 ** 22;
const MAX_VALUES = 2 ** 24;

/**
 * Reads and parses one JSON file (UTF-8, a byte order mark is allowed).
 *
 * @throws StratumError `file.missing`; `file.bad` when it is too large, no UTF-8, no JSON, nested deeper than
 *   {@link MAX_JSON_DEPTH} or of too many values; `file/not-a-file`; `file/unreadable` when the system refuses
 */
export async function readJsonFile(path: string, file: JsonFile): Promise<unknown> {
  const bytes = await readRegular(path, file);
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    const fault = findJsonFault(text, MAX_JSON_DEPTH, "any");
    if (fault?.type === "depth") throw new Error(`nested deeper than ${MAX_JSON_DEPTH} at character ${fault.at + 1}`);
    if (fault !== null) throw new Error(`too many values, at character ${fault.at + 1}`);
    return JSON.parse(text) as unknown;
  } catch (cause) {
    const message = `${file.what} is not valid JSON: ${path}: ${clip(messageOf(cause))}`;
    throw new StratumError(file.bad, message, file.fix, cause);
  }
}

async function readRegular(path: string, file: JsonFile): Promise<Uint8Array> {
  try {
    const { size } = await statRegular(path);
    if (size <= file.maxBytes) return await readFile(path);
    const sizes = `${size} bytes, at most ${file.maxBytes} are read`;
    throw new StratumError(file.bad, `${file.what} is too large: ${path} (${sizes})`, file.fix);
  } catch (cause) {
    if (cause instanceof StratumError) throw cause;
    if (!isSystemError(cause, "ENOENT", "ENOTDIR")) throw unreadable(path, cause);
    throw new StratumError(file.missing, `${file.what} is missing: ${path} does not exist`, file.fix, cause);
  }
}

/**
 * The state of a regular file, links followed. To be asked before opening: to open a named pipe is to wait for its writer.
 *
 * @throws StratumError `file/not-a-file`; the system's own error when there is nothing to look at
 */
export async function statRegular(path: string): Promise<Stats> {
  const found = await stat(path);
  if (found.isFile()) return found;
  throw new StratumError("file/not-a-file", `${path} is not a regular file`, "pass a file");
}

/** `file/unreadable`: the system refused to read a file that is there. */
export function unreadable(path: string, cause: unknown): StratumError {
  const message = `${path} cannot be read: ${messageOf(cause)}`;
  return new StratumError("file/unreadable", message, "check the file's permissions and its disk", cause);
}

/** Whether a thrown value is an error of the system with one of these codes (`ENOENT`, ...). */
export function isSystemError(thrown: unknown, ...codes: readonly string[]): boolean {
  return thrown instanceof Error && "code" in thrown && codes.includes(String(thrown.code));
}

/** Whether a parsed JSON value is an object (neither array nor null). */
export function isJsonObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A value for a message: as JSON, and cut, because a damaged file can hold a name of megabytes. */
export function show(value: unknown): string {
  return clip(JSON.stringify(value) ?? "undefined");
}

/** Text for a message, cut to 200 characters. */
export function clip(text: string): string {
  return text.length <= 200 ? text : `${text.slice(0, 200)}... (${text.length} characters)`;
}

/** The first fault of a JSON text that `JSON.parse` does not report. */
export type JsonFault =
  | { readonly type: "depth"; readonly at: number }
  | { readonly type: "size"; readonly at: number }
  | { readonly type: "duplicate"; readonly key: string; readonly at: number };

const QUOTE = 0x22;
const COLON = 0x3a;
const COMMA = 0x2c;
const [BRACE, END_BRACE, BRACKET, END_BRACKET] = [0x7b, 0x7d, 0x5b, 0x5d];

/**
 * Finds nesting deeper than `maxDepth`, more objects and lists than are read at once, and keys that occur twice in one
 * object, with escapes decoded (`"a"` and `"\u0061"` are one key). Checks nothing else, so that any text is safe to scan
 * before `JSON.parse` sees it.
 *
 * @param keys `any`: keys may occur twice, and no memory is spent on finding out
 */
export function findJsonFault(text: string, maxDepth: number, keys: "unique" | "any" = "unique"): JsonFault | null {
  // A set of keys for every open object, null for every open array.
  const nest: (Set<string> | null)[] = [];
  let [objects, values] = [0, 0];
  for (let i = 0; i < text.length; i++) {
    const char = text.charCodeAt(i);
    if (char === QUOTE) {
      const end = endOfString(text, i);
      if (end < 0) return null;
      const seen = nest.at(-1);
      if (seen && nextCharCode(text, end + 1) === COLON) {
        const key = decodeString(text.slice(i, end + 1));
        if (seen.has(key)) return { type: "duplicate", key, at: i };
        seen.add(key);
      }
      i = end;
    } else if (char === COMMA) {
      if (++values > MAX_VALUES) return { type: "size", at: i };
    } else if (char === BRACE || char === BRACKET) {
      if (nest.length === maxDepth) return { type: "depth", at: i };
      if (++objects > MAX_OBJECTS) return { type: "size", at: i };
      nest.push(char === BRACE && keys === "unique" ? new Set() : null);
    } else if (char === END_BRACE || char === END_BRACKET) nest.pop();
  }
  return null;
}

/**
 * The index of the quote that closes the string opened at `start`; -1 where none does. A regular expression would need a
 * stack as deep as the string is long.
 */
export function endOfString(text: string, start: number): number {
  for (let end = text.indexOf('"', start + 1); end >= 0; end = text.indexOf('"', end + 1)) {
    let escapes = 0;
    while (text[end - 1 - escapes] === "\\") escapes++;
    if (escapes % 2 === 0) return end;
  }
  return -1;
}

function nextCharCode(text: string, from: number): number {
  let i = from;
  while (text[i] === " " || text[i] === "\n" || text[i] === "\r" || text[i] === "\t") i++;
  return text.charCodeAt(i);
}

/** A string literal's value; a malformed literal stands for itself: `JSON.parse` refuses it later. */
function decodeString(literal: string): string {
  if (!literal.includes("\\")) return literal.slice(1, -1);
  try {
    return String(JSON.parse(literal));
  } catch {
    return literal.slice(1, -1);
  }
}
