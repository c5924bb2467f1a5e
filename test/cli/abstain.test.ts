/** Abstaining, from the training that chooses a threshold to the ranking that uses it. */
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { fingerprint } from "../../engine/fingerprint.ts";
import { openModelFiles } from "../../engine/model-files.ts";
import { type AbstainRecord, abstainRecordOf } from "../../scorer/abstain.ts";
import type { RankingRecord } from "../../scorer/rankings.ts";
import { loadScorer, type SavedScorer, saveScorer } from "../../scorer/scorer-file.ts";
import { initialWeights, type ScorerSpec } from "../../scorer/scorer-spec.ts";
import {
  errorCodes,
  exampleLines,
  type Folder,
  jsonLines,
  lastJsonLine,
  stratum,
  temporaryFolder,
  writeTinyTextModel,
} from "../support/cli.ts";
import { raggedTensors, writeTensors } from "../support/features.ts";
import { type PlantedLists, plantedLists } from "../support/planted.ts";
import type { TinyModel } from "../support/tiny-model.ts";

interface Coverage {
  readonly lists: number;
  readonly curve: readonly Readonly<Record<string, number>>[];
  readonly stored: Readonly<Record<string, number>>;
  readonly chosen: AbstainRecord;
}

let folder: Folder;
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());

/** Planted lists, every third without a safe candidate: its states all point away. */
function withHopeless(lists: PlantedLists): PlantedLists {
  const { dim, offsets, utility } = lists;
  for (let b = 0; b + 1 < offsets.length; b += 3) {
    for (let n = offsets[b]!; n < offsets[b + 1]!; n++) {
      lists.labels[n] = 0;
      if (utility[n]! > 0) for (let i = n * dim; i < (n + 1) * dim; i++) lists.resp[i]! *= -1;
    }
  }
  return lists;
}

describe("a threshold", () => {
  it("is chosen by train for an error, kept in the record, and measured by eval on other lists", async () => {
    const [train, test] = ["train.safetensors", "test.safetensors"].map((name) => join(folder.path, name)) as [
      string,
      string,
    ];
    const planted = { dim: 8, lengths: [3, 5], labels: "sign", noise: 0.05 } as const;
    await writeTensors(train, raggedTensors(withHopeless(plantedLists({ ...planted, lists: 360 }))));
    await writeTensors(test, raggedTensors(withHopeless(plantedLists({ ...planted, lists: 300, seed: 2 }))));
    const scorer = join(folder.path, "trained");
    const trained = await stratum([
      ...["train", "--features", train, "-o", scorer, "--preset", "pointwise", "--anchor", "learned", "--width", "16"],
      ...[
        "--validation",
        "0.4",
        "--epochs",
        "10",
        "--lr",
        "0.01",
        "--patience",
        "0",
        "--abstain-error",
        "0.1",
        "--json",
      ],
    ]);
    expect(trained.code).toBe(0);
    const [summary] = jsonLines<{ abstain: AbstainRecord; validation_lists: number }>(trained.stdout);
    const record = abstainRecordOf((await loadScorer(scorer)).training);
    expect(summary?.abstain).toEqual(record);
    // Validation lists, and the same share of those that teach nothing: two fifths of 120, drawn one by one.
    expect(record?.lists).toBeGreaterThan(summary!.validation_lists + 25);
    expect(record?.lists).toBeLessThan(summary!.validation_lists + 75);
    expect(record).toMatchObject({ error: 0.1, confidence: 0.95, safe_from: 1 });
    expect(record?.threshold).toEqual(expect.any(Number));
    expect(record!.wrong / record!.answered).toBeLessThan(0.1);
    expect(trained.stderr).toMatch(
      /^abstain below -?0\.\d+: answers \d+ of \d+ lists .* with 95% confidence \(Clopper-Pearson/m,
    );

    const measured = await stratum([
      "eval",
      "--features",
      test,
      "--scorer",
      scorer,
      "--abstain-error",
      "0.2",
      "--json",
    ]);
    expect(measured.code).toBe(0);
    const [found] = jsonLines<{ coverage: Coverage }>(measured.stdout);
    const { coverage } = found!;
    // Every list counts: those without a safe candidate are what it is about.
    expect(coverage.lists).toBe(300);
    const all = coverage.curve.at(-1)!;
    expect([all["answered"], all["coverage"]]).toEqual([300, 1]);
    expect(all["error"]).toBeGreaterThan(0.33);
    expect(coverage.stored).toMatchObject({ threshold: record!.threshold, asked: 0.1 });
    expect(coverage.stored["error"]).toBeLessThan(0.12);
    expect(coverage.stored["coverage"]).toBeGreaterThan(0.3);
    expect(coverage.stored["upper"]).toBeGreaterThan(coverage.stored["error"]!);
    expect(coverage.chosen.answered).toBeGreaterThan(coverage.stored["answered"]!);
    const text = await stratum(["eval", "--features", test, "--scorer", scorer]);
    expect(text.stdout).toMatch(/^ *100\.0% .* of 300 /m);
    expect(text.stdout).toMatch(/ the scorer's own threshold$/m);
  });

  it.each([
    [["--preset", "srr"], 2, "scorer/not-pointwise"],
    [["--preset", "pointwise", "--no-validation"], 2, "usage/abstain"],
  ])("train refuses %j before any work", async (args, code, name) => {
    const run = await stratum(["train", "x.jsonl", "-o", join(folder.path, "no"), "--abstain-error", "0.1", ...args]);
    expect([run.code, errorCodes(run.stderr)]).toEqual([code, [name]]);
  });
});

describe("rank --abstain-below", () => {
  const spec: ScorerSpec = { head: "pointwise", dim: 16, width: 8, heads: 2, ffn: 8, tau: 0.2 };
  let model: TinyModel;
  let saved: SavedScorer;
  let lists: string;
  const save = async (name: string, change: Partial<SavedScorer>) => {
    const path = join(folder.path, name);
    await saveScorer(path, { ...saved, ...change });
    return path;
  };
  beforeAll(async () => {
    model = await writeTinyTextModel();
    await using files = await openModelFiles(model.directory);
    const { hiddenSize } = files.spec.config;
    const own = { ...spec, dim: hiddenSize };
    saved = {
      ...{ spec: own, base: { name: "tiny", fingerprint: await fingerprint(files, 1) } },
      ...{ layer: 1, pooling: "last", system: null, standardise: null, training: {}, weights: initialWeights(own, 3) },
    };
    lists = await folder.write("lists.jsonl", `${exampleLines.slice(0, 6).join("\n")}\n`);
  });
  afterAll(() => model[Symbol.asyncDispose]());

  it("marks lists whose best score is below the scorer's threshold, and changes nothing else", async () => {
    const plain = await stratum(["rank", lists, "--model", model.directory, "--scorer", await save("plain", {})]);
    const before = jsonLines<RankingRecord>(plain.stdout);
    expect(before.map(({ abstained }) => abstained)).toEqual(Array(6).fill(undefined));
    const best = before.map(({ results }) => results[0]!.relevance_score).sort((a, b) => b - a);
    const record = {
      ...{ error: 0.1, confidence: 0.95, threshold: (best[2]! + best[3]!) / 2, lists: 9, answered: 5, wrong: 0 },
      ...{ coverage: 5 / 9, upper: 0.1, starts: 1, needed: 9 },
    };
    const scorer = await save("kept", { training: { abstain: record } });
    const run = await stratum([
      "rank",
      lists,
      "--model",
      model.directory,
      "--scorer",
      scorer,
      "--abstain-below",
      "auto",
      "--json",
    ]);
    expect(run.code).toBe(0);
    const after = jsonLines<RankingRecord>(run.stdout);
    expect(after).toEqual(
      before.map((each) => ({ ...each, abstained: each.results[0]!.relevance_score < record.threshold })),
    );
    expect(after.filter(({ abstained }) => abstained)).toHaveLength(3);
    expect(lastJsonLine(run.stderr)["abstained"]).toBe(3);
  });

  it("refuses what has no threshold", async () => {
    const listwise = { ...saved.spec, head: "listwise" } as const;
    const cases: readonly (readonly [string, string, string])[] = [
      [await save("listwise", { spec: listwise, weights: initialWeights(listwise, 1) }), "0.5", "scorer/not-pointwise"],
      [await save("none", {}), "auto", "scorer/no-threshold"],
      ["cosine", "auto", "usage/abstain"],
      ["cosine", "low", "usage/arguments"],
    ];
    const runs = await Promise.all(
      cases.map(([scorer, below]) =>
        stratum(["rank", lists, "--model", model.directory, "--scorer", scorer, "--abstain-below", below]),
      ),
    );
    expect(runs.map(({ code, stderr }) => [code, errorCodes(stderr)])).toEqual(cases.map(([, , code]) => [2, [code]]));
  });
});
