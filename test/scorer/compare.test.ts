/** Rankings read back, paired and compared: small cases worked out by hand. */
import { describe, expect, it } from "vitest";
import { compareScores, verdictOf } from "../../scorer/compare.ts";
import type { Fields } from "../../scorer/lists.ts";
import { pairRankings } from "../../scorer/paired-rankings.ts";
import { type JudgedRanking, judge, listFinder, readRankings } from "../../scorer/ranking-lines.ts";
import { failing } from "../support/failing.ts";

/** JSON lines as a source. */
async function* lines(...records: readonly unknown[]): AsyncGenerator<Uint8Array> {
  for (const record of records) yield Buffer.from(`${typeof record === "string" ? record : JSON.stringify(record)}\n`);
}
/** A ranking of candidates by these scores, best first. */
const ranked = (id: string | number, scores: readonly number[], more: Fields = {}, documents?: readonly Fields[]) => ({
  id,
  results: scores
    .map((relevance_score, index) => ({ index, relevance_score, ...(documents ? { document: documents[index] } : {}) }))
    .sort((a, b) => b.relevance_score - a.relevance_score),
  ...more,
});
const list = (id: string | number, labels: readonly (number | null)[], instruction = `about ${id}`) => ({
  ...{ id, instruction },
  candidates: labels.map((label, i) => ({ text: `${id}.${i}`, ...(label === null ? {} : { label }) })),
});
async function all<T>(source: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const each of source) found.push(each);
  return found;
}

describe("compareScores", () => {
  // Four lists of two, the first safe: a right, right, wrong, tied; b right, wrong, right, right.
  const data = { offsets: Uint32Array.of(0, 2, 4, 6, 8), labels: Float32Array.of(1, 0, 1, 0, 1, 0, 1, 0) };
  const a = [2, 1, 2, 1, 1, 2, 1, 1];
  const b = [2, 1, 1, 2, 2, 1, 2, 1];

  it("means, paired differences and flips by hand", () => {
    const { rows, ...found } = compareScores(a, b, data);
    expect(rows.map(({ measure, a, b, difference }) => [measure, a?.mean, b?.mean, difference?.mean])).toEqual([
      ["top1", 2.5 / 4, 3 / 4, -0.5 / 4],
      ["pairwise", 2.5 / 4, 3 / 4, -0.5 / 4],
      // 1, 1, 1/2, (1 + 1/2) / 2 against 1, 1/2, 1, 1.
      ["mrr", 3.25 / 4, 3.5 / 4, -0.25 / 4],
    ]);
    expect(found).toEqual({
      flips: [
        { list: 1, right: "a" },
        { list: 2, right: "b" },
        { list: 3, right: "b" },
      ],
      ...{ lists: 4, bothRight: 1, bothWrong: 0 },
    });
    expect(rows.every(({ verdict }) => verdict === "no significant difference")).toBe(true);
  });

  it("a verdict needs an interval without 0, and lists of one instruction are one", () => {
    const many = Array.from({ length: 40 }, (_, i) => i);
    const repeated = {
      offsets: Uint32Array.from({ length: 41 }, (_, i) => 2 * i),
      labels: Float32Array.from(many.flatMap(() => [1, 0])),
    };
    const right = many.flatMap(() => [2, 1]);
    const half = many.flatMap((i) => (i % 2 === 0 ? [2, 1] : [1, 2]));
    expect(compareScores(right, half, repeated).rows[0]?.verdict).toBe("above");
    expect(compareScores(half, right, repeated).rows[0]?.verdict).toBe("below");
    // Two instructions: nothing can be said.
    const clusters = many.map((i) => i % 2);
    expect(compareScores(right, half, repeated, { clusters }).rows[0]?.verdict).toBe("no significant difference");
    expect(
      [0.1, 0, -0.2].map((low) => verdictOf({ mean: 0.1, low, high: -0.1 + 2 * Math.abs(low), lists: 1 })),
    ).toEqual(["above", "below", "no significant difference"]);
  });

  it("lists that say nothing do not count", () => {
    const same = { offsets: Uint32Array.of(0, 2), labels: Float32Array.of(1, 1) };
    expect(compareScores([1, 0], [0, 1], same)).toMatchObject({
      flips: [],
      lists: 0,
      rows: [{ difference: null, verdict: null }, {}, {}],
    });
    expect(compareScores([1, 0], [0, 1], same, { safeFrom: 2 }).lists).toBe(0);
  });
});

describe("rankings read back", () => {
  it("results, failures and abstentions; what is none is refused with its line", async () => {
    const error = { code: "list/too-long", message: "m", fix: "f" };
    const found = await all(
      readRankings(lines(ranked("q", [1, 2], { topic: 3, abstained: true }), "", { id: 2, error })),
    );
    expect(found).toMatchObject([
      { line: 1, id: "q", abstained: true, error: null, results: [{ index: 1 }, { index: 0 }] },
      { line: 3, id: 2, abstained: false, results: null, error: { code: "list/too-long" } },
    ]);
    const bad = async (record: unknown, message: RegExp, name = "list/bad-ranking") =>
      expect(all(readRankings(lines(ranked("q", [1]), record)))).rejects.toThrowError(failing(name, message));
    await bad(list("p", [1]), /^line 2: a list, and no ranking/);
    await bad({ id: "p", results: [] }, /results/);
    await bad({ id: "p", results: [{ index: 0 }] }, /relevance_score/);
    await bad(
      {
        id: "p",
        results: [
          { index: 0, relevance_score: 1 },
          { index: 0, relevance_score: 1 },
        ],
      },
      /twice/,
    );
    await bad('{"id": "p", "resul', /^line 2: not JSON/, "list/bad-json");
    await bad(ranked("q", [1]), /used on line 1/, "list/duplicate-id");
  });

  it("is right where the first place is safe; null where labels do not say", async () => {
    const of = async (scores: readonly number[], labels: readonly (number | null)[], safeFrom?: number) => {
      const [[line], finder] = [
        await all(readRankings(lines(ranked("q", scores)))),
        listFinder(lines(list("q", labels))),
      ];
      return judge(line!, await finder.find("q"), { safeFrom });
    };
    const right = async (...args: Parameters<typeof of>) => (await of(...args)).right;
    expect(await of([1, 3, 2], [0, 1, 0])).toEqual({
      ...{ id: "q", instruction: "about q", right: true, abstained: false, error: null },
      results: [
        { rank: 1, index: 1, id: null, score: 3, label: 1, text: "q.1" },
        { rank: 2, index: 2, id: null, score: 2, label: 0, text: "q.2" },
        { rank: 3, index: 0, id: null, score: 1, label: 0, text: "q.0" },
      ],
    });
    expect(await right([3, 1], [0, 1])).toBe(false);
    expect(await right([3, 1], [0, 0])).toBeNull();
    expect(await right([3, 1], [0, 0], 1)).toBe(false);
    expect(await right([3, 1], [2, 5], 2)).toBe(true);
    expect(await right([3, 1], [2, 5])).toBe(false);
    expect(await right([3, 1], [1, null])).toBeNull();
    await expect(of([3, 1, 2], [1, 0])).rejects.toThrowError(
      failing("list/bad-ranking", /line 1: .* 2 candidates; candidate 2/),
    );
    // Documents carry labels and texts, too.
    const documents = [
      { text: "a", label: false },
      { text: "b", label: true },
    ];
    const [line] = await all(readRankings(lines(ranked("q", [1, 2], {}, documents))));
    expect(judge(line!, undefined)).toMatchObject({
      right: true,
      instruction: null,
      results: [{ text: "b", label: 1 }, { label: 0 }],
    });
  });

  it("finds lists in order and out of it, and none that is not there", async () => {
    const finder = listFinder(lines(list("a", [1]), list(2, [1]), "broken", list("c", [1])));
    expect([(await finder.find("2"))?.id, (await finder.find("a"))?.id, (await finder.find("c"))?.id]).toEqual([
      2,
      "a",
      "c",
    ]);
    expect(await finder.find("d")).toBeUndefined();
  });
});

describe("pairRankings", () => {
  it("pairs by id whatever the order, in the candidates' own order, and counts what has no partner", async () => {
    const error = { code: "c", message: "m" };
    const a = () => lines(ranked("x", [1]), ranked("p", [1, 3]), ranked("q", [5, 4, 6]), { id: "e", error });
    const b = () => lines(ranked("q", [1, 2, 3]), ranked("p", [9, 8]), ranked("y", [1]), ranked("e", [1]));
    const source = () => lines(list("p", [0, 1], "same"), list("q", [1, 0, 1], "same"), list("x", [1]), list("e", [1]));
    const found = await pairRankings(a(), b(), source());
    expect(found).toMatchObject({ ids: ["q", "p"], onlyA: 1, onlyB: 1, failed: 1 });
    expect([[...found.a], [...found.b], [...found.data.labels], [...found.data.offsets]]).toEqual([
      [5, 4, 6, 1, 3],
      [1, 2, 3, 9, 8],
      [1, 0, 1, 0, 1],
      [0, 3, 5],
    ]);
    expect(new Set(found.clusters).size).toBe(1);
    expect(found.judged.map(({ a, b }: { a: JudgedRanking; b: JudgedRanking }) => [a.right, b.right])).toEqual([
      [true, true],
      [true, false],
    ]);
  });

  it("refuses what cannot be compared", async () => {
    const one = (scores: readonly number[], documents?: readonly Fields[]) => lines(ranked("q", scores, {}, documents));
    const texts = (...words: readonly string[]) => words.map((text, i) => ({ text, label: i }));
    await expect(pairRankings(one([1, 2]), one([1]))).rejects.toThrowError(
      failing("list/bad-ranking", /2 candidates, of which 1/),
    );
    await expect(pairRankings(one([1]), one([1]), lines(list("q", [1, 0])))).rejects.toThrowError(/without|of which 1/);
    await expect(pairRankings(one([1, 2]), one([1, 2]))).rejects.toThrowError(failing("list/no-contrast", /no labels/));
    await expect(pairRankings(one([1, 2]), lines(ranked("p", [1])))).rejects.toThrowError(
      failing("list/no-contrast", /in common/),
    );
    await expect(pairRankings(one([1, 2]), one([1, 2]), lines(list("p", [1])))).rejects.toThrowError(
      /have no list "q"/,
    );
    await expect(pairRankings(one([1, 2], texts("a", "b")), one([1, 2], texts("a", "c")))).rejects.toThrowError(
      failing("list/bad-ranking", /candidate 1 .* not the same text/),
    );
    expect((await pairRankings(one([1, 2], texts("a", "b")), one([1, 2]))).data.labels).toEqual(Float32Array.of(0, 1));
  });
});
