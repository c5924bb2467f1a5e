import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { StratumError } from "../../errors.ts";
import type { ListSource } from "../../scorer/json-lines.ts";
import {
  emptyFileError,
  type ListLine,
  type ReadOptions,
  readLists,
  readSequences,
  type SequenceLine,
} from "../../scorer/lists.ts";
import { chunks, collect } from "../support/chunks.ts";

const lists = (text: string | Uint8Array, options?: ReadOptions) =>
  collect(readLists(chunks(typeof text === "string" ? new TextEncoder().encode(text) : text), options));
const sequences = (text: string) => collect(readSequences(chunks(new TextEncoder().encode(text))));
const lines = (...records: unknown[]) => records.map((record) => JSON.stringify(record)).join("\n");
const codes = (items: readonly SequenceLine[]) =>
  items.map((item) => (item.kind === "error" ? item.error.code : item.kind));

function listOf(item: SequenceLine | undefined) {
  if (item?.kind !== "list") throw new Error(`not a list: ${item?.kind === "error" ? item.error.message : item?.kind}`);
  return item.list;
}

async function errorOf(record: unknown): Promise<StratumError> {
  const [item] = await lists(typeof record === "string" ? record : JSON.stringify(record));
  if (item?.kind !== "error") throw new Error("no error");
  return item.error;
}

const GOOD = { instruction: "q", candidates: ["x", "y"] };

describe("a list", () => {
  it("keeps everything that a line says", async () => {
    const candidates = [
      { text: "x", label: true, id: "a", source: { n: [1] } },
      "plain",
      { text: "", label: -0.5, id: 7 },
    ];
    const [item] = await lists(lines({ topic: "t", id: "q1", instruction: "why?", candidates, weight: 2 }));
    expect(item).toMatchObject({ kind: "list", line: 1, id: "q1" });
    const list = listOf(item);
    expect(list.messages).toEqual([{ role: "user", content: "why?" }]);
    expect(list.candidates).toEqual([
      { text: "x", label: 1, id: "a", document: candidates[0] },
      { text: "plain", document: { text: "plain" } },
      { text: "", label: -0.5, id: 7, document: candidates[2] },
    ]);
    expect(Object.entries(list.extra)).toEqual([
      ["topic", "t"],
      ["weight", 2],
    ]);
  });

  it("takes messages with text, with parts, and with fields of their own", async () => {
    const messages = [
      { role: "system", content: "s", name: "n" },
      {
        role: "user",
        content: [
          { type: "text", text: "a" },
          { type: "text", text: "b" },
        ],
      },
    ];
    const list = listOf((await lists(lines({ messages, candidates: ["x"] })))[0]);
    expect(list.messages).toEqual([messages[0], { role: "user", content: "ab" }]);
  });

  it("keeps a field called __proto__ a field", async () => {
    const list = listOf((await lists('{"instruction":"q","candidates":["x"],"__proto__":{"polluted":1}}'))[0]);
    expect(JSON.stringify(list.extra)).toBe('{"__proto__":{"polluted":1}}');
    expect("polluted" in list.extra).toBe(false);
  });

  it("may be read from a file", async () => {
    const dir = await mkdtemp(join(tmpdir(), "stratum-lists-"));
    const path = join(dir, "lists.jsonl");
    await writeFile(path, `${lines(GOOD, GOOD)}\n`);
    expect(codes(await collect(readLists(path)))).toEqual(["list", "list"]);
    for await (const item of readLists(path)) {
      expect(item.line).toBe(1);
      break;
    }
    await rm(dir, { recursive: true });
    await expect(collect(readLists(path))).rejects.toMatchObject({ code: "file/unreadable" });
  });
});

describe("lines", () => {
  it("end with LF, CRLF or the file; blank ones count and are skipped; a byte order mark is allowed", async () => {
    const good = lines(GOOD);
    const items = await lists(`\ufeff${good}\r\n\r\n  \t\n${good}\n\n${good}`);
    expect(codes(items)).toEqual(["list", "list", "list"]);
    expect(items.map((item) => item.line)).toEqual([1, 4, 6]);
    expect(items.map((item) => item.id)).toEqual(["1", "4", "6"]);
  });

  it("may be none", async () => {
    expect(await lists("")).toEqual([]);
    expect(await lists("\n \r\n\ufeff".slice(0, 4))).toEqual([]);
    expect(await lists("\ufeff")).toEqual([]);
    expect(emptyFileError("a.jsonl")).toMatchObject({
      code: "list/empty-file",
      message: expect.stringContaining("a.jsonl"),
    });
  });

  it("that are too long are an error of their own, wherever the chunks end", async () => {
    const bytes = new TextEncoder().encode(`${lines(GOOD)}\n${"x".repeat(5000)}\n${lines(GOOD)}\n${"y".repeat(5000)}`);
    for (const step of [1, 7, 1000, 9000]) {
      const cuts = Array.from({ length: Math.floor(bytes.length / step) }, (_, i) => i * step);
      const items = await collect(readLists(chunks(bytes, cuts), { maxLineBytes: 100 }));
      expect(codes(items)).toEqual(["list", "list/too-long", "list", "list/too-long"]);
      expect(items[1]).toMatchObject({ line: 2, id: "2", error: { message: expect.stringContaining("5000") } });
    }
    const exact = new TextEncoder().encode(lines(GOOD));
    expect(codes(await collect(readLists(chunks(exact), { maxLineBytes: exact.length })))).toEqual(["list"]);
    expect(codes(await collect(readLists(chunks(exact), { maxLineBytes: exact.length - 1 })))).toEqual([
      "list/too-long",
    ]);
  });

  it.each([
    ["a lone continuation byte", [0x80], 0],
    ["an overlong slash", [0xc0, 0xaf], 0],
    ["an overlong three-byte form", [0xe0, 0x80, 0xaf], 1],
    ["a surrogate", [0xed, 0xa0, 0x80], 1],
    ["past U+10FFFF", [0xf4, 0x90, 0x80, 0x80], 1],
    ["a cut character", [0xf0, 0x9f, 0x99], 3],
  ])("that are not UTF-8 name the byte: %s", async (_what, bad, offset) => {
    const start = new TextEncoder().encode('{"instruction": "é🙂');
    const rest = new TextEncoder().encode('", "candidates": ["x"]}\n');
    const items = await lists(Uint8Array.of(...start, ...bad, ...rest, ...new TextEncoder().encode(lines(GOOD))));
    expect(codes(items)).toEqual(["list/bad-utf8", "list"]);
    expect(items[0]).toMatchObject({ line: 1, id: "1" });
    expect((items[0] as { error: StratumError }).error.message).toBe(
      `line 1: byte ${start.length + offset + 1} of the line is not UTF-8`,
    );
  });

  it("pass an error of the source on", async () => {
    async function* broken(): AsyncGenerator<Uint8Array> {
      yield new TextEncoder().encode(`${lines(GOOD)}\n`);
      throw new Error("pulled the plug");
    }
    const seen: ListLine[] = [];
    const reading = (async () => {
      for await (const item of readLists(broken())) seen.push(item);
    })();
    await expect(reading).rejects.toThrowError(expect.objectContaining({ code: "file/unreadable" }));
    expect(codes(seen)).toEqual(["list"]);
  });
});

describe("a line that cannot be used", () => {
  it.each([
    ["no JSON", "{", "list/bad-json", /^line 1: not JSON/],
    ["two values", "{} {}", "list/bad-json", /not JSON/],
    [
      "a key twice",
      '{"id":"a","instruction":"q","candidates":["x"],"\\u0069d":"b"}',
      "list/bad-json",
      /"id" occurs twice/,
    ],
    [
      "nesting",
      `{"instruction":"q","candidates":["x"],"deep":${"[".repeat(600)}${"]".repeat(600)}}`,
      "list/bad-json",
      /512/,
    ],
    ["nesting without end", "[".repeat(2_000_000), "list/bad-json", /512/],
    ["an array", "[]", "list/bad-shape", /expected an object/],
    ["null", "null", "list/bad-shape", /expected an object/],
    ["no instruction", '{"candidates":["x"]}', "list/bad-shape", /neither 'instruction' nor 'messages'/],
    [
      "both",
      '{"instruction":"q","messages":[],"candidates":["x"]}',
      "list/bad-shape",
      /both 'instruction' and 'messages'/,
    ],
    [
      "messages whose length is an object",
      '{"messages":{"length":{"toString":1,"valueOf":2}},"candidates":["x"]}',
      "list/bad-shape",
      /^line 1: messages: /,
    ],
    [
      "a role whose length is an object",
      '{"messages":[{"role":{"length":{"toString":1,"valueOf":2}},"content":"x"}],"candidates":["x"]}',
      "list/bad-shape",
      /^line 1: messages/,
    ],
    ["null instruction", '{"instruction":null,"candidates":["x"]}', "list/bad-shape", /^line 1: instruction: /],
    ["no messages", '{"messages":[],"candidates":["x"]}', "list/bad-shape", /^line 1: messages: /],
    ["a role", '{"messages":[{"role":"","content":"q"}],"candidates":["x"]}', "list/bad-shape", /messages\[0\]\.role/],
    [
      "a part",
      '{"messages":[{"role":"user","content":[{"type":"image"}]}],"candidates":["x"]}',
      "list/bad-shape",
      /messages\[0\]\.content/,
    ],
    ["no candidates", '{"instruction":"q"}', "list/no-candidates", /no candidates/],
    ["null candidates", '{"instruction":"q","candidates":null}', "list/no-candidates", /no candidates/],
    ["empty candidates", '{"instruction":"q","candidates":[]}', "list/no-candidates", /no candidates/],
    ["a candidate alone", '{"instruction":"q","candidates":"x"}', "list/bad-shape", /expected an array/],
    ["a number as candidate", '{"instruction":"q","candidates":["x",3]}', "list/bad-shape", /candidates\[1\]: /],
    [
      "a candidate without text",
      '{"instruction":"q","candidates":[{"label":1}]}',
      "list/bad-shape",
      /candidates\[0\]\.text/,
    ],
    [
      "a label",
      '{"instruction":"q","candidates":[{"text":"x","label":"1"}]}',
      "list/bad-shape",
      /candidates\[0\]\.label: expected a finite/,
    ],
    [
      "a null label",
      '{"instruction":"q","candidates":[{"text":"x","label":null}]}',
      "list/bad-shape",
      /candidates\[0\]\.label/,
    ],
    [
      "an infinite label",
      '{"instruction":"q","candidates":[{"text":"x","label":1e999}]}',
      "list/bad-shape",
      /range of a double/,
    ],
    [
      "a candidate's id",
      '{"instruction":"q","candidates":[{"text":"x","id":{}}]}',
      "list/bad-shape",
      /candidates\[0\]\.id/,
    ],
    [
      "an infinite field",
      '{"instruction":"q","candidates":["x"],"deep":[{"n":-1e999}]}',
      "list/bad-shape",
      /range of a double/,
    ],
    [
      "half a surrogate pair",
      '{"instruction":"q","candidates":["\\ud83d"]}',
      "list/bad-shape",
      /candidates\[0\]\.text: .*surrogate/,
    ],
    ["an id that is an object", '{"id":{},"instruction":"q","candidates":["x"]}', "list/bad-shape", /^line 1: id: /],
    [
      "an id that a double rounds",
      '{"id":12345678901234567890,"instruction":"q","candidates":["x"]}',
      "list/bad-shape",
      /id: .*exactly/,
    ],
  ])("%s", async (_what, line, code, message) => {
    const error = await errorOf(line);
    expect(error).toBeInstanceOf(StratumError);
    expect(error.code).toBe(code);
    expect(error.kind).toBe("input");
    expect(error.message).toMatch(message);
    expect(error.message.length).toBeLessThan(400);
  });

  it("carries its id where that can be read, and the others are still given", async () => {
    const items = await lists(lines(GOOD, { ...GOOD, id: "b", candidates: [] }, "{", { ...GOOD, id: 4.5 }));
    expect(codes(items)).toEqual(["list", "list/no-candidates", "list/bad-shape", "list"]);
    expect(items.map((item) => item.id)).toEqual(["1", "b", "3", 4.5]);
  });
});

describe("ids", () => {
  it("may occur once, as text; the earlier line is named", async () => {
    const long = "i".repeat(1000);
    const items = await lists(
      lines(
        { ...GOOD, id: "a" },
        { ...GOOD, id: 3 },
        GOOD, // its id is "3"
        { ...GOOD, id: "a" },
        { ...GOOD, id: long },
        { ...GOOD, id: `${long}x` },
        { ...GOOD, id: long },
      ),
    );
    expect(codes(items)).toEqual([
      "list",
      "list",
      "list/duplicate-id",
      "list/duplicate-id",
      "list",
      "list",
      "list/duplicate-id",
    ]);
    const messages = items.flatMap((item) => (item.kind === "error" ? [item.error.message] : []));
    expect(messages[0]).toBe('line 3: the id "3" was used on line 2');
    expect(messages[1]).toBe('line 4: the id "a" was used on line 1');
    expect(messages[2]).toMatch(/^line 7: .* was used on line 5$/);
  });

  it("of a line with an error are taken too", async () => {
    const items = await lists(
      `${lines({ ...GOOD, id: "a", candidates: [] }, { ...GOOD, id: "a" })}\n{\n${lines({ ...GOOD, id: 3 })}`,
    );
    expect(codes(items)).toEqual(["list/no-candidates", "list/duplicate-id", "list/bad-json", "list/duplicate-id"]);
  });
});

describe("readSequences", () => {
  it("takes lists, texts and token ids", async () => {
    const items = await sequences(
      lines({ ...GOOD, text: "kept" }, { text: "t", id: "b", tag: 1 }, { ids: [0, 5, 2147483647], note: "n" }),
    );
    expect(codes(items)).toEqual(["list", "text", "ids"]);
    expect(listOf(items[0]).extra).toEqual({ text: "kept" });
    expect(items[1]).toEqual({ kind: "text", line: 2, id: "b", text: "t", extra: { tag: 1 } });
    expect(items[2]).toEqual({
      kind: "ids",
      line: 3,
      id: "3",
      ids: Int32Array.of(0, 5, 2147483647),
      extra: { note: "n" },
    });
  });

  it.each([
    ["both", { text: "t", ids: [1] }, "list/bad-shape"],
    ["no ids", { ids: [] }, "list/bad-shape"],
    ["a negative id", { ids: [1, -1] }, "list/bad-shape"],
    ["a fraction", { ids: [1.5] }, "list/bad-shape"],
    ["past int32", { ids: [2147483648] }, "list/bad-shape"],
    ["text that is none", { text: 1 }, "list/bad-shape"],
    ["a list without candidates", { instruction: "q" }, "list/no-candidates"],
  ])("refuses %s", async (_what, record, code) => {
    expect(codes(await sequences(JSON.stringify(record)))).toEqual([code]);
  });
});

const SHARED: ListSource = new URL("../../../shared/data/truthfulqa.jsonl", import.meta.url).pathname;
describe.skipIf(!existsSync(SHARED))("../shared/data/truthfulqa.jsonl (skipped where that file is absent)", () => {
  it("gives 813 lists with 6166 labelled candidates", async () => {
    const items = await collect(readLists(SHARED));
    expect(new Set(codes(items))).toEqual(new Set(["list"]));
    const candidates = items.flatMap((item) => listOf(item).candidates);
    expect([items.length, candidates.length]).toEqual([813, 6166]);
    expect(candidates.every((row) => row.label === 0 || row.label === 1)).toBe(true);
    expect(listOf(items[0]).extra).toHaveProperty("category");
  });
});
