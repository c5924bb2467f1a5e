import { describe, expect, it } from "vitest";
import { StratumError } from "../../errors.ts";
import type { List } from "../../scorer/lists.ts";
import { errorRecord, rankingRecord, toJsonLine } from "../../scorer/rankings.ts";

const list = (changes: Partial<List> = {}): List => ({
  id: "q1",
  messages: [{ role: "user", content: "why?" }],
  candidates: [
    { text: "a", id: "A", document: { text: "a", id: "A", source: "web" } },
    { text: "b", document: { text: "b" } },
    { text: "c", id: 3, label: 1, document: { text: "c", id: 3, label: true } },
  ],
  extra: {},
  ...changes,
});
const indices = (scores: number[], topN?: number) =>
  rankingRecord(list(), scores, { topN }).results.map((result) => result.index);

describe("rankingRecord", () => {
  it("is the rerank services' shape, best first", () => {
    expect(toJsonLine(rankingRecord(list(), [0.25, -1, 0.5]))).toBe(
      '{"id":"q1","results":[{"index":2,"id":3,"relevance_score":0.5},{"index":0,"id":"A","relevance_score":0.25},{"index":1,"relevance_score":-1}]}\n',
    );
    expect(rankingRecord(list({ id: 7 }), Float32Array.of(1, 2, 3)).id).toBe(7);
  });

  it("breaks ties by index, -0 and 0 being equal", () => {
    expect(indices([1, 1, 1])).toEqual([0, 1, 2]);
    expect(indices([-0, 2, 0])).toEqual([1, 0, 2]);
    expect(indices([0, 2, -0])).toEqual([1, 0, 2]);
  });

  it("keeps the top n, and does not touch the scores", () => {
    const scores = [1, 3, 2];
    expect(indices(scores, 1)).toEqual([1]);
    expect(indices(scores, 2)).toEqual([1, 2]);
    expect(indices(scores, 9)).toEqual([1, 2, 0]);
    expect(scores).toEqual([1, 3, 2]);
    for (const topN of [0, -1, 1.5, Number.NaN]) {
      expect(() => indices(scores, topN)).toThrowError(expect.objectContaining({ code: "usage/bad-top-n" }));
    }
  });

  it("returns documents as they were written, when asked", () => {
    const { results } = rankingRecord(list(), [3, 2, 1], { returnDocuments: true });
    expect(results.map((result) => result.document)).toEqual([
      { text: "a", id: "A", source: "web" },
      { text: "b" },
      { text: "c", id: 3, label: true },
    ]);
    expect(rankingRecord(list(), [3, 2, 1]).results[0]).not.toHaveProperty("document");
  });

  it("passes unknown fields through, and none of them can take the place of ours", () => {
    const extra = JSON.parse('{"topic":"t","results":"theirs","error":{"code":1},"__proto__":{"x":1}}');
    const written = toJsonLine(rankingRecord(list({ extra }), [3, 2, 1], { topN: 1 }));
    expect(written).toBe(
      '{"id":"q1","topic":"t","input_results":"theirs","input_error":{"code":1},"__proto__":{"x":1},"results":[{"index":0,"id":"A","relevance_score":3}]}\n',
    );
    const both = rankingRecord(list({ extra: { results: "gone", input_results: "kept" } }), [3, 2, 1]);
    expect(both["input_results"]).toBe("kept");
    expect(both.results).toHaveLength(3);
    expect(JSON.stringify(both)).not.toContain("gone");
  });

  it("abstains below a threshold, and says so either way; the results stay", () => {
    const best = Math.fround(0.3);
    const of = (abstainBelow?: number) => rankingRecord(list(), [0.1, best, 0.2], { abstainBelow, topN: 1 });
    expect(of()).not.toHaveProperty("abstained");
    expect(of(best).abstained).toBe(false);
    expect(of(best + 1e-9)).toEqual({ id: "q1", results: [{ index: 1, relevance_score: best }], abstained: true });
    expect(rankingRecord(list({ extra: { abstained: "theirs" } }), [3, 2, 1])).toMatchObject({
      input_abstained: "theirs",
    });
  });

  it.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])(
    "never writes %d, even past the top n",
    (bad) => {
      expect(() => rankingRecord(list(), [5, 4, bad], { topN: 1 })).toThrowError(
        expect.objectContaining({ code: "state/not-finite", message: expect.stringContaining("candidate 2") }),
      );
    },
  );

  it("wants one score a candidate", () => {
    for (const scores of [[], [1, 2], [1, 2, 3, 4]]) {
      expect(() => rankingRecord(list(), scores)).toThrowError(expect.objectContaining({ code: "state/score-count" }));
    }
  });
});

describe("errorRecord", () => {
  it("stands in the list's place with code, message and fix", () => {
    const error = new StratumError("list/no-candidates", "line 3: has no candidates", "add some", new Error("cause"));
    expect(toJsonLine(errorRecord(3, error))).toBe(
      '{"id":3,"error":{"code":"list/no-candidates","message":"line 3: has no candidates","fix":"add some"}}\n',
    );
  });
});
