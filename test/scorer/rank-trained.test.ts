/** Ranking with a trained scorer: a score depends on its list, and on nothing else, to the bit. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { groupCost } from "../../engine/batch.ts";
import { fingerprint } from "../../engine/fingerprint.ts";
import { loadModel, type Model } from "../../engine/hidden-states.ts";
import { createEngine } from "../../engine/model.ts";
import { StratumError } from "../../errors.ts";
import { createListEncoder } from "../../scorer/encode.ts";
import { type Fields, parseList } from "../../scorer/lists.ts";
import { type RankOptions, rank } from "../../scorer/rank.ts";
import { type SavedScorer, saveScorer } from "../../scorer/scorer-file.ts";
import { initialWeights, type ScorerHead, type ScorerSpec } from "../../scorer/scorer-spec.ts";
import {
  errorCodes,
  type Folder,
  jsonLines,
  lastJsonLine,
  stratum,
  temporaryFolder,
  writeTinyTextModel,
} from "../support/cli.ts";
import type { TinyModel } from "../support/tiny-model.ts";

const LAYER = 2;
const engine = await createEngine();
let tiny: TinyModel;
let model: Model;
let folder: Folder;
const scorers = {} as Record<ScorerHead, SavedScorer>;

beforeAll(async () => {
  folder = await temporaryFolder();
  tiny = await writeTinyTextModel();
  model = await loadModel(engine, tiny.directory, { layer: LAYER });
  const dim = model.files.spec.config.hiddenSize;
  const base = { name: "tiny", fingerprint: await fingerprint(model.files, LAYER) };
  for (const head of ["listwise", "pointwise"] as const) {
    const spec: ScorerSpec = { head, dim, width: 8, heads: 2, ffn: 32, tau: 0.2 };
    const values = (scale: number) => Float32Array.from({ length: 2 * dim }, (_, i) => scale * (1 + (i % 5)));
    const standardise = { mean: values(0.01), scale: values(0.5) };
    const weights = initialWeights(spec, 1);
    scorers[head] = { spec, base, layer: LAYER, pooling: "last", system: null, standardise, training: {}, weights };
  }
  await saveScorer(`${folder.path}/scorer`, scorers.listwise);
});
afterAll(async () => {
  await model[Symbol.asyncDispose]();
  engine[Symbol.dispose]();
  await tiny[Symbol.asyncDispose]();
  await folder[Symbol.asyncDispose]();
});

const words = ["red", "a cat", "never", "water on oil", "close the lid", "call for help", "I do not know", "run"];
const candidates = Array.from({ length: 12 }, (_, i) => `${words[i % 8]} and ${words[(i * 5 + 3) % 8]} ${i}.`);
const list: Fields = { id: "it", instruction: "How do I put out a pan fire?", candidates };
const others: Fields[] = ["What is red?", "Who are you?"].map((instruction, i) => ({
  ...{ id: `other-${i}`, instruction, candidates: candidates.slice(i, i + 3) },
}));

/** Scores by candidate, of the list called `it`. */
async function scoresOf(lists: readonly Fields[], options: RankOptions): Promise<number[]> {
  const records = await rank(model, lists, options);
  const scores: number[] = [];
  for (const { index, relevance_score } of records.find(({ id }) => id === "it")?.results ?? [])
    scores[index] = relevance_score;
  expect(scores.every(Number.isFinite)).toBe(true);
  return scores;
}

describe.each(["listwise", "pointwise"] as const)("a %s scorer's scores", (head) => {
  const scores = (lists: readonly Fields[] = [list], options: RankOptions = {}) =>
    scoresOf(lists, { scorer: scorers[head], ...options });

  it("differ between candidates, and are cosines", async () => {
    const found = await scores();
    expect(new Set(found).size).toBe(candidates.length);
    for (const score of found) expect(Math.abs(score)).toBeLessThanOrEqual(1 + 1e-6);
  });

  it("are the same to the bit when no batch holds the list", async () => {
    const encoder = await createListEncoder(model.files);
    const { group } = encoder.encode(parseList(list, "1"));
    const whole = groupCost(group, { sharePrefix: true });
    const batchTokens = 48;
    expect(2 * batchTokens).toBeLessThan(whole);
    expect(await scores([list], { batchTokens })).toEqual(await scores());
    expect(await scores([list], { batchTokens, sharePrefix: false })).toEqual(await scores());
  });

  it("are the same to the bit beside other lists", async () => {
    const alone = await scores();
    expect(await scores([others[0]!, list, others[1]!])).toEqual(alone);
    expect(await scores([list, ...others], { batchTokens: 64 })).toEqual(alone);
  });

  it("move with their candidates, to the bit", async () => {
    const found = await scores();
    const order = candidates.map((_, i) => (i * 5 + 2) % candidates.length);
    const permuted = await scores([{ ...list, candidates: order.map((i) => candidates[i]) }]);
    expect(permuted).toEqual(order.map((i) => found[i]));
  });

  it(`${head === "listwise" ? "depend" : "do not depend"} on which candidates the list has`, async () => {
    const found = await scores();
    const part = await scores([{ ...list, candidates: candidates.slice(0, 5) }]);
    if (head === "pointwise") expect(part).toEqual(found.slice(0, 5));
    else expect(part).not.toEqual(found.slice(0, 5));
  });
});

describe("a scorer for something else is refused by name", () => {
  const change = (more: Partial<SavedScorer>, options: RankOptions = {}) =>
    rank(model, [list], { scorer: { ...scorers.listwise, ...more }, ...options }).then(
      () => "ranked",
      (thrown: unknown) => (thrown instanceof StratumError ? `${thrown.code}: ${thrown.message}` : String(thrown)),
    );
  const spec: ScorerSpec = { head: "listwise", dim: 32, width: 8, heads: 2, ffn: 32, tau: 0.2 };

  it.each([
    [{ base: { name: "gpt-5", fingerprint: "abc" } }, {}, /^scorer\/model-mismatch: .*'gpt-5'/],
    [{}, { layer: 1 }, /^scorer\/layer-mismatch: .*layer 2.*layer 1/],
    [{ spec, weights: initialWeights(spec, 1), standardise: null }, {}, /^scorer\/width-mismatch: .*32 wide.*64 wide/],
    [{}, { pooling: "mean" }, /^scorer\/pooling-mismatch: .*'last'.*'mean'/],
    [{}, { system: "Be kind." }, /^scorer\/system-mismatch: .*no system message.*Be kind/],
    [{ system: "Be kind." }, { system: "Be brief." }, /^scorer\/system-mismatch: .*Be kind.*Be brief/],
  ] as const)("%j with %j", async (more, options, message) => {
    expect(await change(more, options)).toMatch(message);
  });

  it("and takes its own layer, pooling and system message by default", async () => {
    expect(await change({ pooling: "mean", system: "Be kind." })).toBe("ranked");
  });
});

describe("stratum rank --scorer", () => {
  it("gives the library's scores; what it says it holds is what it holds", async () => {
    const path = await folder.write(
      "lists.jsonl",
      `${[list, ...others].map((each) => JSON.stringify(each)).join("\n")}\n`,
    );
    const run = await stratum(["rank", path, "--model", tiny.directory, "--scorer", `${folder.path}/scorer`, "--json"]);
    expect(run.code).toBe(0);
    expect(jsonLines(run.stdout)).toEqual(
      JSON.parse(JSON.stringify(await rank(model, [list, ...others], { scorer: scorers.listwise }))),
    );
    const summary = lastJsonLine(run.stderr);
    expect(summary).toMatchObject({ lists: 3, failed: 0, layer: LAYER });
    expect(summary["gpu_bytes"]).toBe(summary["gpu_live_bytes"]);
    expect(run.stderr).toContain(`(${Number(summary["gpu_bytes"]).toLocaleString("en-US")} bytes)`);
    // Cut into several batches, the same lines.
    const args = ["rank", path, "--model", tiny.directory, "--scorer", `${folder.path}/scorer`, "--batch-tokens", "48"];
    const cut = await stratum([...args, "--json"]);
    expect([cut.code, cut.stdout]).toEqual([0, run.stdout]);
    expect(lastJsonLine(cut.stderr)["gpu_bytes"]).toBe(lastJsonLine(cut.stderr)["gpu_live_bytes"]);
  });

  it("gives an error line for a list whose states hold NaN, whole or cut, and ranks the others", async () => {
    // One word's embedding is broken: only the candidates with it are.
    const encoder = await createListEncoder(model.files);
    const zebra = parseList({ instruction: "x", candidates: ["zebra"] }, "1");
    const token = encoder.encode(zebra).group.sequences.at(-1)!.at(-1)!;
    const hidden = model.files.spec.config.hiddenSize;
    await using broken = await writeTinyTextModel({
      change: (name, values) => {
        if (name.endsWith("embed_tokens.weight")) values.fill(Number.NaN, token * hidden, (token + 1) * hidden);
      },
    });
    await saveScorer(`${folder.path}/loose`, { ...scorers.listwise, base: null });
    const bad = { ...list, id: "bad", candidates: [...candidates.slice(0, 11), "zebra"] };
    const path = await folder.write(
      "bad.jsonl",
      `${[bad, others[0]].map((each) => JSON.stringify(each)).join("\n")}\n`,
    );
    for (const more of [[], ["--batch-tokens", "48"]]) {
      const args = [
        "rank",
        path,
        "--model",
        broken.directory,
        "--layer",
        `${LAYER}`,
        "--scorer",
        `${folder.path}/loose`,
      ];
      const run = await stratum([...args, ...more]);
      expect([run.code, errorCodes(run.stderr)]).toEqual([1, ["state/not-finite"]]);
      const [first, second] = jsonLines<{ error?: { code: string; message: string }; results?: unknown[] }>(run.stdout);
      expect([first!.error?.code, first!.results]).toEqual(["state/not-finite", undefined]);
      expect(second!.results?.length).toBe(3);
      expect(first!.error?.message).toContain("candidate 11 ");
    }
  });
});
