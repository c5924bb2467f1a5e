/** Lists out of other people's rows: their shapes, what is merged, and what a reader of lists makes of the result. */
import { describe, expect, it } from "vitest";
import { conversationOf } from "../../scorer/conversation.ts";
import { type ImportCounts, type ImportOptions, importCounts, importLists } from "../../scorer/import-lists.ts";
import {
  type ImportedRow,
  type ImportFields,
  importRow,
  labelOf,
  planImport,
  planWords,
} from "../../scorer/import-shape.ts";
import { instructionKey } from "../../scorer/instructions.ts";
import { type Fields, type List, readLists } from "../../scorer/lists.ts";
import { failing } from "../support/failing.ts";

const row = (fields: Fields, asked: ImportFields = {}) => importRow(fields, planImport(Object.keys(fields), asked));
const user = (content: string) => ({ role: "user", content });
const assistant = (content: string) => ({ role: "assistant", content });
const hh = (...turns: string[]) =>
  turns.map((text, i) => `\n\n${i % 2 === 0 ? "Human" : "Assistant"}: ${text}`).join("");

/** The lists as a reader of the format takes them. */
async function lists(
  rows: readonly ImportedRow[],
  options: ImportOptions = {},
): Promise<{ readonly counts: ImportCounts; readonly lists: List[] }> {
  const counts = importCounts();
  const made: Uint8Array[] = [];
  async function* source() {
    yield* rows;
  }
  for await (const list of importLists(source(), options, counts)) made.push(Buffer.from(`${JSON.stringify(list)}\n`));
  async function* bytes() {
    yield* made;
  }
  const found: List[] = [];
  for await (const line of readLists(bytes())) {
    if (line.kind === "error") throw line.error;
    found.push(line.list);
  }
  return { counts, lists: found };
}
const answers = (prompt: string, ...responses: (readonly [string, number?])[]): ImportedRow => ({
  messages: [user(prompt)],
  responses: responses.map(([text, label]) => ({ text, label })),
});
const written = (list: List) => list.candidates.map(({ text, label }) => [text, label]);

describe("shapes of rows", () => {
  it("pairs of texts beside a prompt", () => {
    expect(row({ prompt: "p", chosen: "a", rejected: "b" })).toEqual({
      messages: [user("p")],
      responses: [
        { text: "a", label: 1 },
        { text: "b", label: 0 },
      ],
    });
  });

  it("pairs of transcripts: the prompt is all but the last turn", () => {
    const { messages, responses } = row({ chosen: hh("q", "a", "q2", "yes"), rejected: hh("q", "a", "q2", "no") });
    expect(messages).toEqual([user("q"), assistant("a"), user("q2")]);
    expect(responses.map(({ text }) => text)).toEqual(["yes", "no"]);
    // A prompt as a transcript ends where the response begins.
    expect(row({ prompt: `${hh("q")}\n\nAssistant:`, chosen: "yes", rejected: "no" }).messages).toEqual([user("q")]);
  });

  it("pairs of conversations, with a prompt beside them or not, in both spellings and as JSON in a text", () => {
    const both = (chosen: unknown, rejected: unknown, more: Fields = {}) => row({ chosen, rejected, ...more });
    const expected = {
      messages: [user("q")],
      responses: [
        { text: "a", label: 1 },
        { text: "b", label: 0 },
      ],
    };
    expect(both([user("q"), assistant("a")], [user("q"), assistant("b")])).toEqual(expected);
    expect(both([user("q"), assistant("a")], [user("q"), assistant("b")], { prompt: "q" })).toEqual(expected);
    expect(both([assistant("a")], [assistant("b")], { prompt: [user("q")] })).toEqual(expected);
    const shared = (answer: string) => [
      { from: "human", value: "q" },
      { from: "gpt", value: answer },
    ];
    expect(both(shared("a"), shared("b"))).toEqual(expected);
    expect(both(JSON.stringify(shared("a")), JSON.stringify(shared("b")))).toEqual(expected);
    const parts = (answer: string) => [user("q"), { role: "assistant", content: [{ type: "text", text: answer }] }];
    expect(both(parts("a"), parts("b"))).toEqual(expected);
  });

  it("refuses pairs that answer different prompts, or end with the user, or have none", () => {
    const bad = (fields: Fields) => expect(() => row(fields)).toThrowError(failing("list/bad-row"));
    bad({ chosen: hh("q", "a"), rejected: hh("p", "a") });
    bad({ chosen: [user("q")], rejected: [user("q")] });
    bad({ chosen: "a", rejected: "b" });
    bad({ prompt: "x", chosen: [user("q"), assistant("a")], rejected: [user("q"), assistant("b")] });
    bad({ prompt: "x", chosen: "", rejected: "b" });
    bad({ prompt: "x", chosen: 7, rejected: "b" });
    bad({ prompt: "x", chosen: "[{'role': 'user'}]", rejected: "b" });
    bad({ prompt: "\ud800", chosen: "a", rejected: "b" });
    expect(row({ prompt: "x", chosen: hh("q", "a"), rejected: hh("q", "b") }, { prompt: "none" }).messages).toEqual([
      user("q"),
    ]);
  });

  it("a response a row", () => {
    const { messages, responses } = row({ question: "q", answer: "a", is_safe: false, category: 3 });
    expect([messages, responses]).toEqual([[user("q")], [{ text: "a", label: 0 }]]);
    expect(row({ prompt: "q", response: "a", toxic: 1 }).responses).toEqual([{ text: "a", label: 0 }]);
    expect(row({ prompt: "q", response: "a", label: 1 }, { labelMeans: "unsafe" }).responses[0].label).toBe(0);
    expect(row({ prompt: "q", response: "a" }).responses).toEqual([{ text: "a", label: undefined }]);
    expect(row({ q: "q", r: "a", ok: "yes" }, { prompt: "q", response: "r", label: "ok" }).responses[0].label).toBe(1);
  });

  it("numbered responses: safe ones, or the better of them", () => {
    const fields = {
      ...{ prompt: "q", response_0: "a", response_1: "b", is_response_0_safe: false, is_response_1_safe: true },
      ...{ better_response_id: 0, safer_response_id: 1 },
    };
    const labels = (found: ImportedRow) => found.responses.map(({ label }) => label);
    expect(labels(row(fields))).toEqual([0, 1]);
    expect(labels(row(fields, { label: "better_response_id" }))).toEqual([1, 0]);
    const { is_response_0_safe: _, ...without } = fields;
    expect(labels(row(without))).toEqual([0, 1]);
    expect(labels(row({ ...without, safer_response_id: -1 }))).toEqual([undefined, undefined]);
    expect(() => row({ ...without, safer_response_id: 2 })).toThrowError(failing("list/bad-row"));
    expect(row({ ...fields, response_1: null }).responses).toEqual([{ text: "a", label: 0 }]);
    expect(() => row({ ...fields, response_0: "", response_1: null })).toThrowError(failing("list/bad-row"));
    // By number, not by text.
    expect(planImport(["prompt", "response_10", "response_2"])).toMatchObject({
      responses: ["response_2", "response_10"],
    });
  });

  it("says what it took, and what it cannot take", () => {
    expect(planWords(planImport(["chosen", "rejected"]))).toBe(
      "pairs: the prompt out of the conversation, 'chosen' labelled 1, 'rejected' 0",
    );
    expect(planWords(planImport(["prompt", "response", "harmful"]))).toContain("label 'harmful' (true or 1 is unsafe)");
    for (const [names, asked] of [
      [["a", "b"], {}],
      [["prompt"], {}],
      [["prompt", "response"], { label: "is_safe" }],
      [["prompt", "chosen"], { shape: "pairs" }],
      [["instruction", "candidates"], {}],
    ] as const)
      expect(() => planImport(names, asked), names.join()).toThrowError(failing("usage/fields"));
  });

  it("labels", () => {
    const of = (value: unknown, means: "safe" | "unsafe" = "safe") => labelOf(value, "l", means);
    expect([true, 1, "1", "True", "yes", " safe ", "harmless"].map((value) => of(value))).toEqual(Array(7).fill(1));
    expect([false, 0, "0", "FALSE", "no", "unsafe"].map((value) => of(value))).toEqual(Array(6).fill(0));
    expect([true, "no", "safe", "unsafe"].map((value) => of(value, "unsafe"))).toEqual([0, 1, 1, 0]);
    expect([of(2.5), of("-3"), of(null), of(""), of(undefined)]).toEqual([2.5, -3, undefined, undefined, undefined]);
    for (const value of ["maybe", Number.NaN, {}, "Infinity"])
      expect(() => of(value)).toThrowError(failing("list/bad-row"));
    expect(() => of(3, "unsafe")).toThrowError(failing("list/bad-row"));
  });

  it("a text that merely has a bracket is a text", () => {
    expect(conversationOf("[1] is a footnote", "f")).toBeUndefined();
    expect(conversationOf('[{"name": "a response in JSON"}]', "f")).toBeUndefined();
    expect(conversationOf("Humans: they are", "f")).toBeUndefined();
    expect(() => conversationOf([], "f")).toThrowError(failing("list/bad-row"));
  });
});

describe("rows into lists", () => {
  const rows = [answers("p", ["a", 1], ["b", 0]), answers("q", ["a", 1]), answers("p", ["c", 0], ["a", 1])];

  it("groups by prompt in the order of their first rows, each response once", async () => {
    const { lists: found, counts } = await lists(rows);
    expect(found.map(written)).toEqual([
      [
        ["a", 1],
        ["b", 0],
        ["c", 0],
      ],
      [["a", 1]],
    ]);
    expect(found.map(({ id }) => id)).toEqual([instructionKey(rows[0]), instructionKey(rows[1])]);
    expect(counts).toEqual({
      ...{ rows: 3, lists: 2, candidates: 4, duplicates: 1, contradictions: 0 },
      ...{ unlabelled: 0, withoutContrast: 1, emptied: 0 },
    });
  });

  it("adjacent rows, or a list a row", async () => {
    const adjacent = await lists([rows[0], rows[2], rows[1], rows[0]], { group: "adjacent" });
    expect(adjacent.lists.map(written)).toEqual([
      [
        ["a", 1],
        ["b", 0],
        ["c", 0],
      ],
      [["a", 1]],
      [
        ["a", 1],
        ["b", 0],
      ],
    ]);
    expect(adjacent.lists.map(({ id }) => id)).toEqual(["1", "2", "3"]);
    expect((await lists(rows, { group: "none" })).lists.map(({ candidates }) => candidates.length)).toEqual([2, 1, 2]);
  });

  it("duplicates and lists without contrast, kept or not", async () => {
    const kept = await lists(rows, { keepDuplicates: true });
    expect(written(kept.lists[0])).toEqual([
      ["a", 1],
      ["a", 1],
      ["b", 0],
      ["c", 0],
    ]);
    const contrast = await lists(rows, { contrastOnly: true });
    expect([contrast.lists.length, contrast.counts.withoutContrast]).toEqual([1, 1]);
    // A label beside none is no contradiction.
    const { lists: mixed } = await lists([answers("p", ["a"], ["a", 0], ["b"])]);
    expect(written(mixed[0])).toEqual([
      ["a", 0],
      ["b", undefined],
    ]);
  });

  it("contradictions, as asked", async () => {
    const torn = [answers("p", ["a", 1], ["b", 0]), answers("p", ["a", 0], ["a", 0]), answers("q", ["x", 1], ["x", 0])];
    const of = async (contradictions: ImportOptions["contradictions"]) => {
      const { lists: found, counts } = await lists(torn, { contradictions });
      return [found.map(written), counts.contradictions, counts.emptied];
    };
    expect(await of("drop")).toEqual([[[["b", 0]]], 2, 1]);
    expect(await of("majority")).toEqual([
      [
        [
          ["a", 0],
          ["b", 0],
        ],
      ],
      2,
      1,
    ]);
    expect(await of("mean")).toEqual([
      [
        [
          ["a", 1 / 3],
          ["b", 0],
        ],
        [["x", 0.5]],
      ],
      2,
      0,
    ]);
    expect(await of("first")).toEqual([
      [
        [
          ["a", 1],
          ["b", 0],
        ],
        [["x", 1]],
      ],
      2,
      0,
    ]);
  });

  it("a conversation is a list of messages", async () => {
    const { lists: found } = await lists([
      row({ chosen: hh("q", "a", "q2", "yes"), rejected: hh("q", "a", "q2", "no") }),
    ]);
    expect(found[0].messages).toHaveLength(3);
  });

  it("more rows than a block holds, far apart", async () => {
    const filler = "x".repeat(300);
    const many = Array.from({ length: 3000 }, (_, i) => answers(`p${i % 1500}`, [`${i} ${filler}`, i % 2]));
    const { lists: found, counts } = await lists(many);
    expect([found.length, counts.rows, counts.candidates]).toEqual([1500, 3000, 3000]);
    for (const [i, list] of found.entries())
      expect(written(list)).toEqual([i, i + 1500].map((n) => [`${n} ${filler}`, n % 2]));
  });
});
