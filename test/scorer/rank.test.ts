/** Ranking as a library: what the command prints, and what only a caller sees. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { groupCost } from "../../engine/batch.ts";
import { hiddenStates, loadModel, type Model } from "../../engine/hidden-states.ts";
import { createEngine } from "../../engine/model.ts";
import { createListEncoder } from "../../scorer/encode.ts";
import { type Fields, type ListLine, parseList, readLists } from "../../scorer/lists.ts";
import { createRanker, type RankOptions, type RankOutcome, rank } from "../../scorer/rank.ts";
import { DEMO_MODEL, exampleLines, jsonLines, stratum } from "../support/cli.ts";

const engine = await createEngine();
let model: Model;
beforeAll(async () => {
  model = await loadModel(engine, DEMO_MODEL, { layer: 2 });
});
afterAll(async () => {
  await model[Symbol.asyncDispose]();
  engine[Symbol.dispose]();
});

const lists = exampleLines.slice(0, 5).map((line) => JSON.parse(line) as Fields);
async function* linesOf(records: readonly Fields[]): AsyncGenerator<ListLine> {
  for (const [i, record] of records.entries()) {
    const list = parseList(record, String(i + 1));
    yield { kind: "list", line: i + 1, id: list.id, list };
  }
}
async function outcomes(
  lines: AsyncIterable<ListLine>,
  options: RankOptions = {},
  signal?: AbortSignal,
): Promise<RankOutcome[]> {
  using ranker = await createRanker(model, options);
  const found: RankOutcome[] = [];
  for await (const outcome of ranker.rank(lines, signal === undefined ? {} : { signal })) found.push(outcome);
  return found;
}

describe("rank", () => {
  it("gives what the command prints, number for number", async () => {
    const options = { topN: 3, returnDocuments: true, system: "Be kind." };
    const flags = ["--top-n", "3", "--return-documents", "--system", "Be kind."];
    const run = await stratum(["rank", "-", ...flags], { stdin: lists.map((list) => JSON.stringify(list)).join("\n") });
    expect(run.code).toBe(0);
    // Through JSON, as the command's own records go: its numbers survive it.
    expect(JSON.parse(JSON.stringify(await rank(model, lists, options)))).toEqual(jsonLines(run.stdout));
  });

  it("scores by the cosine of the states that hiddenStates gives", async () => {
    const list = parseList(lists[0]!, "1");
    const encoder = await createListEncoder(model.files);
    for (const layer of [0, 2]) {
      const states = await hiddenStates(model, encoder.encode(list).group.sequences, { layers: [layer] });
      const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, value, i) => sum + value * b[i]!, 0);
      const [prompt, ...responses] = states as [Float32Array, ...Float32Array[]];
      const cosines = responses.map(
        (response) => dot(prompt, response) / Math.sqrt(dot(prompt, prompt) * dot(response, response)),
      );
      const [record] = await rank(model, [lists[0]!], { layer });
      expect(record!.results).toHaveLength(cosines.length);
      for (const { index, relevance_score } of record!.results)
        expect(Math.abs(relevance_score - cosines[index]!)).toBeLessThan(1e-6);
    }
  });

  it("gives a candidate the same score in any place, beside any other", async () => {
    const { candidates, ...list } = lists[0] as { candidates: readonly unknown[] };
    const order = [3, 0, 2];
    const others = order.map((index) => candidates[index]);
    const [whole, part, alone] = await rank(model, [lists[0]!, { ...list, id: "part", candidates: others }, lists[1]!]);
    const score = (index: number) => whole!.results.find((result) => result.index === index)!.relevance_score;
    for (const { index, relevance_score } of part!.results) expect(relevance_score).toBe(score(order[index]!));
    expect(await rank(model, [lists[1]!])).toEqual([alone]);
  });

  it("takes pooling end, and says another thing with it", async () => {
    const last = await rank(model, [lists[0]!]);
    const end = await rank(model, [lists[0]!], { pooling: "end" });
    expect(end[0]!.results).toHaveLength(last[0]!.results.length);
    expect(end).not.toEqual(last);
  });

  it("throws for the first list that cannot be ranked", async () => {
    const bad = { instruction: "What?", candidates: ["a", ""] };
    await expect(rank(model, [lists[0]!, bad])).rejects.toMatchObject({ code: "list/empty-response" });
    await expect(rank(model, [{ instruction: "What?", candidates: [] }])).rejects.toMatchObject({
      code: "list/no-candidates",
    });
    await expect(rank(model, [], { layer: 3 })).rejects.toMatchObject({ code: "usage/layer" });
    expect(await rank(model, [])).toEqual([]);
  });
});

describe("a ranker", () => {
  it("puts errors in their places, and names lines", async () => {
    const text = `${exampleLines[0]}\n{"broken\n\n{"id": 9, "instruction": "a", "candidates": [""]}\n${exampleLines[1]}\n`;
    const found = await outcomes(
      readLists(
        (async function* () {
          yield Buffer.from(text);
        })(),
      ),
    );
    expect(found.map(({ kind, record }) => [kind, record.id])).toEqual([
      ["ranked", "garden-01"],
      ["failed", "2"],
      ["failed", 9],
      ["ranked", "medicine-01"],
    ]);
    expect(found[2]).toMatchObject({
      line: 4,
      record: { error: { code: "list/empty-response", message: expect.stringMatching(/^line 4: /) } },
    });
  });

  it("cuts lists that are larger than a batch, with the same scores", async () => {
    const whole = await outcomes(linesOf(lists));
    const cut = await outcomes(linesOf(lists), { batchTokens: 128 });
    expect(cut.map(({ record }) => record)).toEqual(whole.map(({ record }) => record));
    const encoder = await createListEncoder(model.files);
    const costs = lists.map((list) => groupCost(encoder.encode(parseList(list, "1")).group));
    expect(Math.max(...costs)).toBeGreaterThan(128);
  });

  it("refuses a candidate that fits no batch, in its place", async () => {
    const long = { id: "long", instruction: "What?", candidates: [" word".repeat(100)] };
    const refused = await outcomes(linesOf([long, lists[0]!]), { batchTokens: 100 });
    expect(refused[0]).toMatchObject({ kind: "failed", error: { code: "list/over-budget" } });
    expect(refused[1]).toMatchObject({ kind: "ranked" });
  });

  /** Gives its lists and then neither goes on nor ends, like a terminal. */
  async function* silent(): AsyncGenerator<ListLine> {
    yield* linesOf(lists.slice(0, 2));
    await new Promise(() => undefined);
  }

  it("answers what a pausing source has given, and then stops at a signal", { timeout: 20_000 }, async () => {
    const controller = new AbortController();
    using ranker = await createRanker(model);
    const records = ranker.rank(silent(), { signal: controller.signal });
    expect((await records.next()).value).toMatchObject({ kind: "ranked" });
    expect((await records.next()).value).toMatchObject({ kind: "ranked" });
    const end = records.next();
    setTimeout(() => controller.abort(), 200);
    expect(await end).toEqual({ done: true, value: undefined });
  });

  it("stops at a signal that comes while a batch runs, though its source is silent", { timeout: 20_000 }, async () => {
    const controller = new AbortController();
    using ranker = await createRanker(model);
    const records = ranker.rank(silent(), { signal: controller.signal });
    await records.next();
    controller.abort();
    const rest: unknown[] = [];
    for await (const { kind } of records) rest.push(kind);
    expect(rest).toEqual(["ranked"]);
  });
});
