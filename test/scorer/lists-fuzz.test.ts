import { describe, expect, it } from "vitest";
import { StratumError } from "../../errors.ts";
import { seededRandom } from "../../kernels/random.ts";
import { readLists } from "../../scorer/lists.ts";
import { chunks, collect } from "../support/chunks.ts";

describe("seeded fuzz", () => {
  const SEEDS = [
    '{"id":"a","instruction":"why é🙂?","candidates":[{"text":"x","label":1,"id":"c"},"plain",{"text":"","label":true}],"k":[1,{"z":null}]}',
    '{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"candidates":["b"]}',
    '{"id":7,"instruction":"","candidates":[{"text":"\\ud83d\\ude42"}]}\r',
    "",
    "  \t",
  ];
  const TOKENS = [
    '"',
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "null",
    "1e999",
    "-",
    "\n",
    "\r",
    "\\u",
    "\\ud800",
    "\ufeff",
    "true",
  ];

  it("4000 damaged inputs: never throws, one item a line, the same for any chunks", async () => {
    const random = seededRandom(20260101);
    const below = (n: number) => Math.floor(random() * n);
    const encoder = new TextEncoder();
    const seen = new Map<string, number>();
    for (let round = 0; round < 4000; round++) {
      const text = Array.from({ length: below(4) + 1 }, () => SEEDS[below(SEEDS.length)]!).join("\n");
      let bytes = encoder.encode(below(8) === 0 ? `\ufeff${text}` : text);
      for (let edits = below(4); edits > 0; edits--) {
        const at = below(bytes.length + 1);
        const cut = below(3) === 0 ? below(12) : 0;
        const put = [Uint8Array.of(below(256)), encoder.encode(TOKENS[below(TOKENS.length)]!), Uint8Array.of()][
          below(3)
        ]!;
        bytes = Uint8Array.of(...bytes.subarray(0, at), ...put, ...bytes.subarray(at + cut));
      }
      const options = { maxLineBytes: below(4) === 0 ? 120 : 1000 };
      const cuts = Array.from({ length: below(6) }, () => below(bytes.length + 1)).sort((a, b) => a - b);
      const items = await collect(readLists(chunks(bytes, cuts), options));
      expect(await collect(readLists(chunks(bytes), options))).toEqual(items);

      const expected = oracle(bytes, options.maxLineBytes);
      expect(items.map((item) => item.line)).toEqual(expected.map(({ line }) => line));
      for (const [i, item] of items.entries()) {
        const kind = item.kind === "error" ? item.error.code : "list";
        seen.set(kind, (seen.get(kind) ?? 0) + 1);
        if (item.kind === "error") {
          expect(item.error).toBeInstanceOf(StratumError);
          expect(item.error.code).toMatch(/^list\//);
          continue;
        }
        const written = expected[i]!.value as { id?: unknown; candidates: unknown[]; instruction?: string };
        expect(item.id).toBe(written.id ?? String(item.line));
        expect(item.list.candidates.map((row) => row.document)).toEqual(
          written.candidates.map((row) => (typeof row === "string" ? { text: row } : row)),
        );
        if (written.instruction !== undefined) expect(item.list.messages[0]!.content).toBe(written.instruction);
      }
    }
    // The mutations must reach every branch, or the test shows little.
    for (const code of [
      "list",
      "list/bad-json",
      "list/bad-utf8",
      "list/bad-shape",
      "list/duplicate-id",
      "list/too-long",
    ]) {
      expect(seen.get(code) ?? 0, code).toBeGreaterThan(20);
    }
  });

  /** Lines that are not blank, found another way: one byte a character, so that splitting text splits bytes. */
  function oracle(bytes: Uint8Array, maxBytes: number): { line: number; value: unknown }[] {
    return Buffer.from(bytes)
      .toString("latin1")
      .split("\n")
      .flatMap((text, i) => {
        const line = i + 1;
        if (text.length > maxBytes) return [{ line, value: undefined }];
        const bare = line === 1 && text.startsWith("\u00ef\u00bb\u00bf") ? text.slice(3) : text;
        if (/^[ \t\r]*$/.test(bare)) return [];
        try {
          return [{ line, value: JSON.parse(Buffer.from(bare, "latin1").toString("utf8")) as unknown }];
        } catch {
          return [{ line, value: undefined }];
        }
      });
  }
});
