/** Lists and sequences of JSON Lines, changed and damaged, in pieces of any length. */
import fc from "fast-check";
import { readLists, readSequences } from "../../../scorer/lists.ts";
import { chunks, collect } from "../chunks.ts";
import { codeOf, type FuzzTarget, fuzzTarget, type Outcome } from "./harness.ts";
import { changedJsonText } from "./mutations.ts";

const encoder = new TextEncoder();
const LISTS = [
  {
    id: "a",
    instruction: "why \u00e9\ud83d\ude42?",
    candidates: [{ text: "x", label: 1, id: "c" }, "plain", { text: "", label: true }],
    k: [1, { z: null }],
  },
  {
    id: 7,
    messages: [
      { role: "user", content: [{ type: "text", text: "a" }] },
      { role: "assistant", content: "b" },
    ],
    candidates: ["b"],
  },
  { text: "only a text", extra: 1 },
  { ids: [1, 2, 3] },
  {},
];
const LIST_KEYS = ["id", "instruction", "messages", "candidates", "text", "ids", "label", "role", "content"];
const lines = fc
  .array(changedJsonText(LISTS, LIST_KEYS, [{ text: "t" }, ["a", "b"], [{ role: "user", content: "x" }]]), {
    minLength: 1,
    maxLength: 4,
  })
  .map((texts) => Buffer.concat(texts.flatMap((text) => [text, encoder.encode("\n")])));

/** One item a line, in order, and every error is one of a line; the first one's code, or `ok`. */
async function readAll(bytes: Uint8Array, cut: number): Promise<Outcome> {
  const options = { maxLineBytes: 6000 };
  let outcome = "ok";
  for (const read of [readLists, readSequences]) {
    let last = 0;
    for (const item of await collect(read(chunks(bytes, [cut % (bytes.length + 1)]), options))) {
      if (item.line <= last) throw new Error(`line ${item.line} after line ${last}`);
      last = item.line;
      if (item.kind !== "error") continue;
      if (!item.error.code.startsWith("list/")) throw item.error;
      if (outcome === "ok") outcome = codeOf(item.error);
    }
  }
  return outcome;
}

export const LISTS_TARGETS: readonly FuzzTarget[] = [
  fuzzTarget(
    "lists: changed and damaged lines",
    6000,
    [
      "ok",
      "list/bad-json",
      "list/bad-shape",
      "list/bad-utf8",
      "list/no-candidates",
      "list/duplicate-id",
      "list/too-long",
    ],
    fc.tuple(lines, fc.nat(500)),
    ([bytes, cut]) => readAll(bytes, cut),
  ),
];
