/**
 * Lists from JSON Lines, one at a time: a line in memory, not a file. A line that cannot be used becomes an error item
 * in its place and the others go on. All that is kept across lines is 25 bytes an id, to find duplicates.
 */

import { z } from "zod";
import { messageOf, StratumError } from "../errors.ts";
import type { Message } from "../weights/chat-template.ts";
import { clip, findJsonFault, isJsonObject, MAX_JSON_DEPTH } from "../weights/json.ts";
import { nonEmpty } from "../weights/schema.ts";
import { LONE_SURROGATE } from "../weights/tokenizer.ts";
import { createIdRegister, type IdRegister } from "./id-register.ts";
import {
  type FileFacts,
  firstInvalidByte,
  isBlank,
  type Line,
  type LineRange,
  type ListSource,
  type Position,
  START,
  splitLines,
  unchangedFile,
} from "./json-lines.ts";

export type Id = string | number;
export type Fields = Readonly<Record<string, unknown>>;

export interface Candidate {
  readonly text: string;
  /** 1 = safe or preferred, 0 = not, or a grade; true and false are read as 1 and 0. */
  readonly label?: number;
  readonly id?: Id;
  /** The candidate as it was written, unknown fields included; `{ text }` for a plain string. */
  readonly document: Fields;
}

export interface List {
  /** With its JSON type; the line number as a string where the line has none. */
  readonly id: Id;
  /** An `instruction` is one user message. Text parts of a message are joined. */
  readonly messages: readonly Message[];
  /** M >= 1. */
  readonly candidates: readonly Candidate[];
  /** Fields that this format does not know, in order. Numbers have the precision of a double. */
  readonly extra: Fields;
}

export interface ListItem {
  readonly kind: "list";
  /** Counted from 1, blank lines included. */
  readonly line: number;
  readonly id: Id;
  readonly list: List;
  /** Behind the line, where it was read with `from`. */
  readonly position?: Position;
}

export interface ErrorItem {
  readonly kind: "error";
  readonly line: number;
  readonly id: Id;
  readonly error: StratumError;
  readonly position?: Position;
}

export interface TextItem {
  readonly kind: "text";
  readonly line: number;
  readonly id: Id;
  readonly text: string;
  readonly extra: Fields;
  readonly position?: Position;
}

export interface IdsItem {
  readonly kind: "ids";
  readonly line: number;
  readonly id: Id;
  /** (T), T >= 1. */
  readonly ids: Int32Array;
  readonly extra: Fields;
  readonly position?: Position;
}

export type ListLine = ListItem | ErrorItem;
export type SequenceLine = ListItem | TextItem | IdsItem | ErrorItem;

export interface ReadOptions {
  /** A longer line is an error of its own, and is not held in memory. Default 64 MiB. */
  readonly maxLineBytes?: number;
  /** Go on behind this position, and give every item its own; `START` for a run from the beginning. */
  readonly from?: Position | undefined;
  /**
   * Read what lies before `from` once more, and compare its chain. Needed where the bytes may be others, and for a source
   * that cannot be entered in the middle.
   */
  readonly verify?: boolean | undefined;
  /** Read these stretches of a regular file alone, in order. */
  readonly ranges?: readonly LineRange[] | undefined;
  /** What the regular file was when the run began; by default what it is when it is opened. */
  readonly facts?: FileFacts | null | undefined;
  /** The ids of the lines before `from`; the reader adds its own. */
  readonly register?: IdRegister | undefined;
}

/** A longer line is an error of its own. */
export const MAX_LINE_BYTES = 64 * 2 ** 20;

const text = z
  .string()
  .refine((value) => !LONE_SURROGATE.test(value), "holds half of a surrogate pair (\\uD800-\\uDFFF)");
const idError = "expected a string, or a number that a double holds exactly";
const idNumber = z.number().refine((n) => !Number.isInteger(n) || Number.isSafeInteger(n), idError);
const id = z.union([text, idNumber], { error: idError });
const label = z.union([z.number(), z.boolean()], { error: "expected a finite number, true or false" });
const part = z.looseObject({ type: z.literal("text"), text });
const message = z.looseObject({
  role: nonEmpty(text),
  content: z.union([text, nonEmpty(z.array(part))], {
    error: 'expected a string or a list of {"type": "text", "text"}',
  }),
});
const messages = nonEmpty(z.array(message));
const candidate = z.looseObject({ text, label: label.optional(), id: id.optional() });
const tokenIds = nonEmpty(
  z.array(
    z
      .int({ error: "expected a token id: a whole number from 0" })
      .min(0)
      .max(2 ** 31 - 1),
  ),
);

/**
 * Lists of a JSONL source, in order. Blank lines are skipped; a byte order mark and CRLF are allowed. Ids are compared
 * as text (1 and "1" are duplicates) and count for lines with errors too, so that an id names one record of the output.
 *
 * Errors of a line (`kind: "error"`): `list/bad-utf8`, `list/bad-json`, `list/bad-shape`, `list/no-candidates`,
 * `list/duplicate-id`, `list/too-long`.
 *
 * @throws StratumError `file/unreadable` when the source itself fails.
 */
export async function* readLists(source: ListSource, options: ReadOptions = {}): AsyncGenerator<ListLine> {
  yield* readRecords(source, options, (record, line, id) => ({ kind: "list", line, id, list: toList(record, id) }));
}

/**
 * As {@link readLists}, for `extract`: a line with `candidates` is a list, one with `text` a text, one with `ids` token ids.
 *
 * @throws StratumError `file/unreadable` when the source itself fails.
 */
export async function* readSequences(source: ListSource, options: ReadOptions = {}): AsyncGenerator<SequenceLine> {
  yield* readRecords<SequenceLine>(source, options, (record, line, id) => {
    const hasText = "text" in record;
    const hasIds = "ids" in record;
    if (!["candidates", "text", "ids", "instruction", "messages"].some((field) => field in record)) {
      throw badShape("is neither a list nor a text nor token ids", 'write "text": "...", "ids": [...], or a list');
    }
    if ("candidates" in record || (!hasText && !hasIds)) return { kind: "list", line, id, list: toList(record, id) };
    if (hasText && hasIds) throw badShape("has both 'text' and 'ids'", "keep one of them");
    if (hasText) {
      return {
        kind: "text",
        line,
        id,
        text: check(text, record["text"], "text"),
        extra: without(record, "id", "text"),
      };
    }
    const ids = Int32Array.from(check(tokenIds, record["ids"], "ids"));
    return { kind: "ids", line, id, ids, extra: without(record, "id", "ids") };
  });
}

/** The error with its place in front; line 0 is not in a file. */
export function atLine(error: StratumError, line: number): StratumError {
  return line === 0 ? error : new StratumError(error.code, `line ${line}: ${error.message}`, error.fix, error.cause);
}

/** The error for a source without a single list: whether that is one is the command's to decide. */
export function emptyFileError(source: string): StratumError {
  return new StratumError(
    "list/empty-file",
    `${source} holds no lists`,
    "give one JSON object a line, see README, lists",
  );
}

/**
 * A list from an object of the lists format.
 *
 * @param id - stands for a missing `id`.
 * @throws StratumError `list/bad-shape`, `list/no-candidates`
 */
export function parseList(record: Fields, fallback: Id): List {
  return toList(record, "id" in record ? check(id, record["id"], "id") : fallback);
}

function toList(record: Fields, id: Id): List {
  const hasInstruction = "instruction" in record;
  if (hasInstruction && "messages" in record) {
    throw badShape("has both 'instruction' and 'messages'", "keep one of them");
  }
  if (!hasInstruction && !("messages" in record)) {
    throw badShape("has neither 'instruction' nor 'messages'", 'add "instruction": "..." or "messages": [...]');
  }
  const turns: readonly Message[] = hasInstruction
    ? [{ role: "user", content: check(text, record["instruction"], "instruction") }]
    : check(messages, record["messages"], "messages").map((turn) => ({
        ...turn,
        content: typeof turn.content === "string" ? turn.content : turn.content.map((piece) => piece.text).join(""),
      }));

  const given = record["candidates"] ?? [];
  if (!Array.isArray(given)) throw badShape("candidates: expected an array", 'write "candidates": ["...", "..."]');
  if (given.length === 0) {
    throw new StratumError("list/no-candidates", "has no candidates", 'add "candidates": ["...", "..."]');
  }
  const candidates = given.map((value: unknown, index): Candidate => {
    const document: unknown = typeof value === "string" ? { text: value } : value;
    const known = check(candidate, document, `candidates[${index}]`);
    return {
      text: known.text,
      ...(known.label === undefined ? {} : { label: Number(known.label) }),
      ...(known.id === undefined ? {} : { id: known.id }),
      document: document as Fields,
    };
  });
  return { id, messages: turns, candidates, extra: without(record, "id", "instruction", "messages", "candidates") };
}

async function* readRecords<T extends object>(
  source: ListSource,
  options: ReadOptions,
  build: (record: Fields, line: number, id: Id) => T,
): AsyncGenerator<T | ErrorItem> {
  const { register = createIdRegister(), from } = options;
  let items = from?.items ?? 0;
  for await (const { line, bytes, length, end, hash } of linesFrom(source, options)) {
    let lineId: Id = String(line);
    let item: T | ErrorItem;
    let claimed = false;
    try {
      if (bytes === null) throw tooLong(length);
      if (isBlank(bytes)) continue;
      const record = parseLine(bytes);
      if ("id" in record) lineId = check(id, record["id"], "id");
      const earlier = register.claim(lineId, line);
      claimed = true;
      if (earlier !== undefined) throw duplicateId(lineId, earlier);
      item = build(record, line, lineId);
    } catch (thrown) {
      if (!(thrown instanceof StratumError)) throw thrown;
      if (!claimed) register.claim(lineId, line);
      item = { kind: "error", line, id: lineId, error: atLine(thrown, line) };
    }
    items++;
    yield from === undefined ? item : { ...item, position: { line, bytes: end, items, hash } };
  }
}

/** The error of a line whose id an earlier one has. */
export function duplicateId(id: Id, earlier: number): StratumError {
  return new StratumError(
    "list/duplicate-id",
    `the id ${clip(JSON.stringify(id))} was used on line ${earlier}`,
    "give every list an id of its own, or leave ids out",
  );
}

const NO_OBJECT = "expected an object";
const TOO_LARGE = "holds a number beyond the range of a double";

/**
 * Whether an error says that a line's own id could not be read: its number stands for it then, and it is no matter
 * whether another line has that for an id.
 * @param message with the line's number in front
 */
export function isIdUnread(code: string, message: string, line: number): boolean {
  if (["list/bad-utf8", "list/bad-json", "list/too-long"].includes(code)) return true;
  const place = `line ${line}: `;
  return code === "list/bad-shape" && [NO_OBJECT, TOO_LARGE, "id: "].some((what) => message.startsWith(place + what));
}

/** The lines behind `from`, of all stretches. @throws {StratumError} `usage/other-input` where the way there is another */
async function* linesFrom(source: ListSource, options: ReadOptions): AsyncGenerator<Line> {
  const { maxLineBytes = MAX_LINE_BYTES, from, verify = false, ranges, facts } = options;
  const enter = verify ? START : from;
  let last: Pick<Position, "line" | "bytes" | "hash"> | undefined = enter;
  let found = !verify || from === undefined || from.bytes === 0;
  const check = typeof source === "string" ? unchangedFile(source, facts) : undefined;
  const stretches = ranges ?? [{ line: 1, start: 0, end: undefined }];
  for (const { line: first, start, end } of stretches) {
    if (end !== undefined && enter !== undefined && end <= enter.bytes) continue;
    const inside = last !== undefined && last.bytes >= start && last.bytes > 0;
    const begin = inside ? last : { line: first - 1, bytes: start, hash: last?.hash ?? "" };
    for await (const line of splitLines(source, maxLineBytes, {
      from: from === undefined && ranges === undefined ? undefined : begin,
      ...{ until: end, check },
    })) {
      last = { line: line.line, bytes: line.end, hash: line.hash };
      if (found) {
        yield line;
        continue;
      }
      if (from === undefined || line.end < from.bytes) continue;
      if (line.end !== from.bytes || line.hash !== from.hash) throw otherInput(source, from);
      found = true;
    }
  }
  if (!found && from !== undefined) throw otherInput(source, from);
}

function otherInput(source: ListSource, { line, bytes }: Position): StratumError {
  const name = typeof source !== "string" || source === "-" ? "the input" : source;
  return new StratumError(
    "usage/other-input",
    `${name} is not the file of the run that is to go on: its first ${bytes} bytes (${line} lines) are others than those that were read`,
    "give the earlier input, or another -o, or --restart to do it all again",
  );
}

/**
 * The object of a JSON line.
 * @throws StratumError `list/bad-utf8`, `list/bad-json`, `list/bad-shape`
 */
export function parseLine(bytes: Uint8Array): Fields {
  let line: string;
  try {
    line = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new StratumError(
      "list/bad-utf8",
      `byte ${firstInvalidByte(bytes) + 1} of the line is not UTF-8`,
      "save the file as UTF-8",
      cause,
    );
  }
  const fault = findJsonFault(line, MAX_JSON_DEPTH);
  if (fault?.type === "depth") throw badJson(`nested deeper than ${MAX_JSON_DEPTH} at character ${fault.at + 1}`);
  if (fault?.type === "size") throw badJson(`too many values, at character ${fault.at + 1}`);
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    throw badJson(`not JSON: ${clip(messageOf(cause))}`, cause);
  }
  if (fault?.type === "duplicate") {
    throw badJson(
      `the key ${clip(JSON.stringify(fault.key))} occurs twice in one object, at character ${fault.at + 1}`,
    );
  }
  if (!isJsonObject(value)) throw badShape(NO_OBJECT, "write one JSON object a line");
  // JSON has larger numbers than a double, and they would leave as null.
  if (!hasFiniteNumbers(value)) throw badShape(TOO_LARGE, "write it as a string");
  return value;
}

/** Recursion is safe: the nesting is bounded. */
function hasFiniteNumbers(value: unknown): boolean {
  if (typeof value === "number") return Number.isFinite(value);
  return typeof value !== "object" || value === null || Object.values(value).every(hasFiniteNumbers);
}

function check<T>(schema: z.ZodType<T>, value: unknown, path: string): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  const below = (issue?.path ?? []).map((key) => (typeof key === "number" ? `[${key}]` : `.${String(key)}`)).join("");
  throw badShape(`${path}${below}: ${issue?.message ?? "invalid"}`, "see README, lists", parsed.error);
}

function without(record: Fields, ...known: readonly string[]): Fields {
  // fromEntries defines own properties: a field called __proto__ stays a field.
  return Object.fromEntries(Object.entries(record).filter(([key]) => !known.includes(key)));
}

function badShape(what: string, fix: string, cause?: unknown): StratumError {
  return new StratumError("list/bad-shape", what, fix, cause);
}

function badJson(what: string, cause?: unknown): StratumError {
  return new StratumError("list/bad-json", what, "write one JSON object a line", cause);
}

function tooLong(length: number): StratumError {
  return new StratumError("list/too-long", `the line has ${length} bytes`, "split the list, or shorten its texts");
}
