/** Inputs made of good ones: damaged bytes, and JSON with something else in some of its places. */
import fc from "fast-check";

interface ByteEdit {
  readonly at: number;
  readonly cut: number;
  readonly put: Uint8Array;
}

const encoder = new TextEncoder();
/** What readers of JSON and of lengths stumble over. */
const TOKENS = [
  '"',
  "{",
  "}",
  "[",
  "]",
  ",",
  ":",
  "null",
  "true",
  "1e999",
  "-",
  "-0",
  "9007199254740993",
  "\n",
  "\r",
  "\\u",
  "\\ud800",
  "\ufeff",
  "\u0000",
  "[[[[[[[[[[[[[[[[[[[[",
  '{"a":',
  "__proto__",
  "../",
  "\u2028",
].map((token) => encoder.encode(token));
const LENGTHS = [0, 1, 7, 8, 255, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 100_000_000, 100_000_001, 2 ** 53].map((n) => {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(n), true);
  return bytes;
});

const byteEdits: fc.Arbitrary<readonly ByteEdit[]> = fc.array(
  fc.record({
    at: fc.oneof(fc.nat(24), fc.nat(2 ** 16)),
    cut: fc.oneof(fc.constant(0), fc.nat(12), fc.nat(2 ** 12)),
    put: fc.oneof(
      fc.constant(new Uint8Array(0)),
      fc.nat(255).map((byte) => Uint8Array.of(byte)),
      fc.constantFrom(...TOKENS),
      fc.constantFrom(...LENGTHS),
      fc.uint8Array({ maxLength: 16 }),
    ),
  }),
  { maxLength: 4 },
);

/** One of the seeds with up to four places changed. */
export function damaged(seeds: readonly Uint8Array[]): fc.Arbitrary<Uint8Array> {
  return fc.tuple(fc.nat(seeds.length - 1), byteEdits).map(([i, edits]) => {
    let bytes = seeds[i]!;
    for (const { at, cut, put } of edits) {
      const from = at % (bytes.length + 1);
      bytes = Uint8Array.of(...bytes.subarray(0, from), ...put, ...bytes.subarray(from + cut));
    }
    return bytes;
  });
}

type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

/** Values that a schema has to say no to, or an arithmetic has to survive. */
const VALUES: readonly Json[] = [
  null,
  true,
  false,
  0,
  -1,
  1,
  2,
  3,
  7,
  0.5,
  -0.5,
  1e-320,
  255,
  65_535,
  65_536,
  2 ** 24,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32,
  2 ** 53,
  1e21,
  1e308,
  -1e308,
  "",
  "a",
  "0",
  "-1",
  "../x",
  "/etc/passwd",
  "\u0000",
  "\ud800",
  "__proto__",
  "constructor",
  "x".repeat(5000),
  [],
  {},
  [[]],
  [null],
  [1, 2],
  { a: 1 },
  { toString: 1, valueOf: 2 },
  // What compares a length, or a size, with a number.
  { length: { toString: 1, valueOf: 2 } },
  { size: { toString: 1, valueOf: 2 } },
];

interface JsonEdit {
  /** Which of the places of the document, counted in order. */
  readonly at: number;
  readonly how: "replace" | "remove" | "add" | "repeat" | "wrap" | "move";
  readonly value: Json;
  readonly key: string;
}

/** @param keys that are worth adding anywhere */
function jsonEdits(keys: readonly string[], values: readonly Json[]): fc.Arbitrary<readonly JsonEdit[]> {
  return fc.array(
    fc.record({
      at: fc.nat(2 ** 16),
      how: fc.constantFrom("replace", "replace", "remove", "add", "repeat", "wrap", "move"),
      value: fc.oneof(fc.constantFrom(...VALUES, ...values), fc.integer(), fc.string({ maxLength: 20 })),
      key: fc.constantFrom("__proto__", "constructor", "type", "length", ...keys),
    }),
    { maxLength: 4 },
  );
}

/** One of the documents with up to four of its places changed. */
export function changedJson(
  documents: readonly unknown[],
  keys: readonly string[] = [],
  values: readonly unknown[] = [],
): fc.Arbitrary<unknown> {
  return fc
    .tuple(fc.nat(documents.length - 1), jsonEdits(keys, values as readonly Json[]))
    .map(([i, edits]) => edits.reduce<Json>(edited, documents[i] as Json));
}

function edited(document: Json, edit: JsonEdit): Json {
  const places = countPlaces(document);
  return editAt(document, edit.at % places, edit, document);
}

function countPlaces(value: Json): number {
  if (typeof value !== "object" || value === null) return 1;
  return Object.values(value as object).reduce<number>((sum, inner: Json) => sum + countPlaces(inner), 1);
}

/** The value with its place number `at` changed; place 0 is the value itself. */
function editAt(value: Json, at: number, edit: JsonEdit, whole: Json): Json {
  if (at === 0) return changed(value, edit, whole);
  let rest = at - 1;
  const entries = Object.entries(value as object) as [string, Json][];
  const out: [string, Json][] = [];
  for (const [key, inner] of entries) {
    const places = countPlaces(inner);
    if (rest >= 0 && rest < places) {
      if (rest > 0 || edit.how !== "remove") out.push([key, editAt(inner, rest, edit, whole)]);
      rest = -1;
      continue;
    }
    rest -= places;
    out.push([key, inner]);
  }
  return Array.isArray(value) ? out.map(([, inner]) => inner) : objectOf(out);
}

function changed(value: Json, { how, value: by, key }: JsonEdit, whole: Json): Json {
  const isList = Array.isArray(value);
  switch (how) {
    case "add":
      if (isList) return [...value, by];
      return typeof value === "object" && value !== null ? objectOf([...Object.entries(value), [key, by]]) : by;
    case "repeat":
      return isList ? [...value, ...value, ...value] : [value, value];
    case "wrap":
      return isList ? { [key]: value } : [value];
    case "move":
      return whole;
    default:
      return by;
  }
}

/** An object with keys such as `__proto__` as its own, as JSON.parse makes them. */
function objectOf(entries: readonly (readonly [string, Json])[]): Json {
  return Object.fromEntries(entries) as Json;
}

/** JSON text of documents that were changed, and now and then damaged as bytes too. */
export function changedJsonText(
  documents: readonly unknown[],
  keys: readonly string[] = [],
  values: readonly unknown[] = [],
): fc.Arbitrary<Uint8Array> {
  const changedText = changedJson(documents, keys, values).map((value) => encoder.encode(JSON.stringify(value)));
  const texts = documents.map((document) => encoder.encode(JSON.stringify(document)));
  return fc.oneof({ weight: 4, arbitrary: changedText }, { weight: 1, arbitrary: damaged(texts) });
}
