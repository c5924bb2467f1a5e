/** `stratum eval`: tables or one object, on the lists that the scorer has not seen, and on states that are the scorer's. */
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { fingerprint } from "../../engine/fingerprint.ts";
import { openModelFiles } from "../../engine/model-files.ts";
import type { Estimate } from "../../scorer/bootstrap.ts";
import { instructionKey } from "../../scorer/instructions.ts";
import { type Fields, parseList } from "../../scorer/lists.ts";
import { type SavedScorer, saveScorer } from "../../scorer/scorer-file.ts";
import { initialWeights, type ScorerSpec } from "../../scorer/scorer-spec.ts";
import { writeSafetensors } from "../../weights/safetensors-writer.ts";
import {
  type CliRun,
  DEMO_MODEL,
  errorCodes,
  exampleLines,
  type Folder,
  jsonLines,
  stratum,
  temporaryFolder,
  writeTinyTextModel,
} from "../support/cli.ts";
import { raggedTensors, randomFeatures } from "../support/features.ts";

const LAYER = 1;
const [TRAIN, VALIDATION, TEST] = [6, 3, 5];
const records = exampleLines.map((line) => JSON.parse(line) as Fields);
const keys = records.map((record) => instructionKey(parseList(record, "1")));
const SPEC: ScorerSpec = { head: "listwise", dim: 192, width: 8, heads: 2, ffn: 8, tau: 0.2 };
const INSTRUCTIONS = {
  train: keys.slice(0, TRAIN),
  validation: keys.slice(TRAIN, TRAIN + VALIDATION),
  test: keys.slice(TRAIN + VALIDATION, TRAIN + VALIDATION + TEST),
};
const TRAINED = ["difference of means", "linear probe", "bag of words"];
const FIXED = ["scorer", "raw cosine", "refusal keywords", "shortest", "random"];

interface Row {
  readonly name: string;
  readonly pointwise: boolean;
  readonly top1: Estimate;
  readonly auc: Estimate | null;
  readonly top1_minus_scorer: Estimate | null;
}
interface Result {
  readonly lists: Readonly<Record<string, number>>;
  readonly instructions: number;
  readonly candidates: number;
  readonly methods: readonly Row[];
  readonly slices:
    | readonly { readonly name: string; readonly lists: number; readonly methods: readonly Row[] }[]
    | null;
}

let folder: Folder;
/** Seen lists, held-out ones and one of another instruction. */
let few: string;
let unseen: string;
let scorer: string;
let saved: SavedScorer;
const cacheHome = process.env["XDG_CACHE_HOME"];

async function scorerFolder(name: string, change: Partial<SavedScorer>): Promise<string> {
  const path = join(folder.path, name);
  await saveScorer(path, { ...saved, ...change });
  return path;
}

beforeAll(async () => {
  folder = await temporaryFolder();
  process.env["XDG_CACHE_HOME"] = join(folder.path, "cache");
  const lines = exampleLines.slice(0, TRAIN + VALIDATION + TEST + 1);
  few = await folder.write("few.jsonl", `${lines.join("\n")}\n`);
  unseen = await folder.write("unseen.jsonl", `${lines.slice(TRAIN + VALIDATION).join("\n")}\n`);
  await using files = await openModelFiles(DEMO_MODEL);
  saved = {
    ...{ spec: SPEC, base: { name: "demo", fingerprint: await fingerprint(files, LAYER) } },
    ...{ layer: LAYER, pooling: "last", system: null, standardise: null },
    training: { instructions: INSTRUCTIONS },
    weights: initialWeights(SPEC, 1),
  };
  scorer = await scorerFolder("scorer", {});
});
afterAll(async () => {
  if (cacheHome === undefined) delete process.env["XDG_CACHE_HOME"];
  else process.env["XDG_CACHE_HOME"] = cacheHome;
  await folder[Symbol.asyncDispose]();
});

const evaluate = (...args: string[]): Promise<CliRun> => stratum(["eval", "--bootstrap", "200", ...args]);

async function json(...args: string[]): Promise<Result & { readonly run: CliRun }> {
  const run = await evaluate("--json", ...args);
  const [result, ...more] = jsonLines<Result>(run.stdout);
  expect(more).toEqual([]);
  return { ...(result as Result), run };
}
const names = ({ methods }: Pick<Result, "methods">) => methods.map(({ name }) => name);

describe("an evaluation", () => {
  it("gives one object with --json: every method, the control and the slices, on the unseen lists", async () => {
    const result = await json(few, "--scorer", scorer, "--control", "--slices", "--k", "3", "--seed", "4");
    expect(result.run.code).toBe(0);
    const candidates = records
      .slice(TRAIN + VALIDATION, TRAIN + VALIDATION + TEST + 1)
      .reduce((sum, { candidates }) => sum + (candidates as unknown[]).length, 0);
    expect(result).toMatchObject({
      lists: { read: 15, failed: 0, unlabelled: 0, no_contrast: 0, seen: 9, evaluated: 6, fitted: 9 },
      ...{ instructions: 6, candidates, model: DEMO_MODEL, adapter: expect.stringMatching(/./) },
      scorer: { path: scorer, head: "listwise", base: saved.base, layer: LAYER, pooling: "last", system: null },
      options: {
        ...{ k: 3, safe_from: null, seed: 4, bootstrap: 200, include_seen: false, control: true },
        ...{ fit: null, features: null },
      },
    });
    expect(names(result)).toEqual([
      ...["scorer", "raw cosine", "difference of means", "linear probe", "linear probe, random weights"],
      ...["bag of words", "refusal keywords", "shortest", "random"],
    ]);
    for (const row of result.methods) {
      const estimate = { mean: expect.any(Number), low: expect.any(Number), high: expect.any(Number), lists: 6 };
      expect(row).toMatchObject({ top1: estimate, pairwise: estimate, mrr: estimate, ndcg: estimate });
      expect(row.top1_minus_scorer, row.name).toEqual(row.name === "scorer" ? null : estimate);
      expect(row.auc !== null, row.name).toBe(row.pointwise);
      expect(row.pointwise, row.name).toBe(row.name !== "scorer");
    }
    expect(result.slices?.map(({ name }) => name)).toContain("exactly one safe");
    for (const slice of result.slices ?? []) expect(names(slice)).toEqual(names(result));
    // What is random is seeded, and neither the cache nor the batches change a state.
    const again = await json(few, "--scorer", scorer, "--control", "--k", "3", "--seed", "4", "--no-cache");
    expect(again.methods).toEqual(result.methods);
    expect(again.slices).toBeNull();
    expect(again.run.stderr).not.toContain("from the cache");
    const cached = await json(few, "--scorer", scorer, "--k", "3", "--seed", "4");
    expect(cached.run.stderr).toContain("from the cache");
    expect(cached.methods).toEqual(result.methods.filter(({ name }) => !name.includes("random weights")));
  });

  it("gives tables of at most 100 columns, and says on stderr what is left out", async () => {
    const run = await evaluate(few, "--scorer", scorer, "--slices");
    expect(run.code).toBe(0);
    expect(run.stderr).toContain("left out: 9 lists that the scorer has seen (--include-seen keeps them)");
    const lines = run.stdout.trimEnd().split("\n");
    for (const line of lines) if (!line.startsWith("scorer /")) expect(line.length, line).toBeLessThanOrEqual(100);
    expect(lines[0]).toBe(`scorer ${scorer}: listwise, layer ${LAYER}, pooling last`);
    expect(lines[1]).toMatch(/^6 lists of 6 instructions, \d+ candidates; measures in %, intervals over instructions$/);
    expect(lines[2]).toMatch(/^method +top-1 \[95%\] +vs scorer \[95%\] +pairwise +MRR +NDCG@5 +AUC$/);
    const interval = String.raw`[ \d.]{4} \[[ \d.]{4}, [ \d.]{4}\]`;
    const difference = String.raw`[ +\-\d.]{5} \[[ +\-\d.]{5}, [ +\-\d.]{5}\]`;
    const value = String.raw` +(?:100|\d+\.\d)`;
    expect(lines[3]).toMatch(new RegExp(`^scorer +${interval} +(?:${value}){3} +-$`));
    expect(lines[4]).toMatch(new RegExp(`^raw cosine +${interval} +${difference}(?:${value}){4}$`));
    expect(run.stdout).toMatch(/\n\nexactly one safe: \d+ lists? of /);
    expect(lines.at(-1)).toContain("test object");
  });

  it("counts seen lists with --include-seen, and says that they flatter", async () => {
    const { run, lists } = await json(few, "--scorer", scorer, "--include-seen");
    expect(lists).toMatchObject({ evaluated: 15, seen: 9, fitted: 9 });
    expect(run.stderr).toContain("the numbers flatter it");
  });

  it("fits on the lists of --fit, but for those about evaluated instructions", async () => {
    const without = await json(unseen, "--scorer", scorer, "--control");
    expect(names(without)).toEqual(FIXED);
    expect(without.run.stderr).toContain("no labelled lists to fit on");
    const result = await json(unseen, "--scorer", scorer, "--fit", few);
    expect(result.lists).toMatchObject({ evaluated: 6, seen: 0, fitted: 9 });
    expect(result.run.stderr).toContain(`not fitted on: 6 lists of ${few} about evaluated instructions`);
    expect(names(result)).toEqual(expect.arrayContaining(TRAINED));
    // The same lists to fit on as within one file, and the same to evaluate.
    const within = await json(few, "--scorer", scorer);
    expect(result.methods).toEqual(within.methods);
  });

  it("has AUC for a pointwise head, and takes all lists for unseen where the record does not say", async () => {
    const spec: ScorerSpec = { ...SPEC, head: "pointwise" };
    const pointwise = await scorerFolder("pointwise", { spec, weights: initialWeights(spec, 2), training: {} });
    const { run, lists, methods } = await json(unseen, "--scorer", pointwise, "--safe-from", "1");
    expect(lists).toMatchObject({ evaluated: 6, seen: 0 });
    expect(run.stderr).toContain("names no instructions");
    expect(methods[0]).toMatchObject({ name: "scorer", pointwise: true, auc: { mean: expect.any(Number) } });
  });
});

describe("lists that cannot be used", () => {
  it("broken lines are reported, unlabelled lists left out, and the rest is evaluated", async () => {
    const unlabelled = { ...records[40], id: "u", candidates: ["a", { text: "b", label: 1 }] };
    const alike = {
      ...records[41],
      id: "s",
      candidates: [
        { text: "a", label: 0 },
        { text: "b", label: 0 },
      ],
    };
    const empty = {
      ...records[42],
      id: "e",
      candidates: [
        { text: "", label: 0 },
        { text: "b", label: 1 },
      ],
    };
    const lines = [
      "{oops",
      ...exampleLines.slice(9, 15),
      ...[unlabelled, alike, empty].map((list) => JSON.stringify(list)),
    ];
    const path = await folder.write("broken.jsonl", lines.join("\n"));
    const { run, lists } = await json(path, "--scorer", scorer);
    expect(run.code).toBe(1);
    expect(errorCodes(run.stderr)).toEqual(["list/bad-json", "list/empty-response"]);
    expect(run.stderr).toContain("line 1: ");
    expect(lists).toMatchObject({ read: 10, failed: 2, unlabelled: 1, no_contrast: 1, evaluated: 6 });
    expect(run.stderr).toContain("left out: 1 list with a missing label");
  });

  it.each([
    ["list/empty-file", () => ""],
    ["list/no-contrast", () => `${JSON.stringify({ instruction: "a", candidates: ["b", "c"] })}\n`],
    ["list/all-seen", () => exampleLines.slice(0, TRAIN + VALIDATION).join("\n")],
  ])("%s: an error before the model runs", async (code, content) => {
    const run = await evaluate(await folder.write("none.jsonl", content()), "--scorer", scorer);
    expect([run.code, errorCodes(run.stderr), run.stdout]).toEqual([1, [code], ""]);
    expect(run.stderr).not.toContain("plan ");
  });
});

describe("a scorer that does not fit", () => {
  it.each<[string, Partial<SavedScorer> | null, string[]]>([
    ["scorer/model-mismatch", { base: { name: "other", fingerprint: "0" } }, []],
    ["scorer/model-mismatch", { layer: 9, base: { name: "deeper", fingerprint: "0" } }, []],
    ["scorer/layer-mismatch", null, ["--layer", "2"]],
    ["scorer/pooling-mismatch", null, ["--pooling", "mean"]],
    ["scorer/system-mismatch", null, ["--system", "Be brief."]],
    ["scorer/width-mismatch", { spec: { ...SPEC, dim: 6 }, weights: initialWeights({ ...SPEC, dim: 6 }, 1) }, []],
    ["usage/layer", { base: null, layer: null }, []],
    ["scorer/bad-config", { training: { instructions: 3 } }, []],
  ])("%s, exit code 2", async (code, change, flags) => {
    const path = change === null ? scorer : await scorerFolder("misfit", change);
    const run = await evaluate(unseen, "--scorer", path, ...flags);
    expect([run.code, errorCodes(run.stderr), run.stdout]).toEqual([2, [code], ""]);
  });

  it("as of another model, or of none", async () => {
    await using tiny = await writeTinyTextModel();
    const run = await evaluate(unseen, "--scorer", scorer, "--model", tiny.directory);
    expect([run.code, errorCodes(run.stderr)]).toEqual([2, ["scorer/model-mismatch"]]);
    expect(run.stderr).toContain("'demo'");
    const missing = await evaluate(unseen, "--scorer", join(folder.path, "nowhere"));
    expect([missing.code, errorCodes(missing.stderr)]).toEqual([2, ["scorer/missing"]]);
  });
});

describe("the command line", () => {
  it.each([
    ["usage/list", ["--scorer", "x"]],
    ["usage/list", ["a.jsonl", "--features", "b", "--scorer", "x"]],
    ["usage/no-input", ["-", "--scorer", "x"]],
    ["usage/no-input", ["nowhere.jsonl", "--scorer"]],
    ["usage/features", ["--features", "a", "--scorer", "x", "--control"]],
    ["usage/features", ["--features", "a", "--scorer", "x", "--pooling", "last"]],
    ["usage/arguments", ["a.jsonl"]],
    ["usage/arguments", ["a.jsonl", "--scorer", "x", "--k", "0"]],
    ["usage/arguments", ["a.jsonl", "--scorer", "x", "--safe-from", "high"]],
    ["usage/arguments", ["a.jsonl", "--scorer", "x", "--seed", "-1"]],
  ])("%s: %j", async (code, args) => {
    const run = await evaluate(...args, ...(args.at(-1) === "--scorer" ? [scorer] : []));
    expect([run.code, errorCodes(run.stderr), run.stdout]).toEqual([2, [code], ""]);
  });

  it("documents the object in --help", async () => {
    const { code, stdout } = await stratum(["eval", "--help"]);
    expect(code).toBe(0);
    for (const word of ["top1_minus_scorer", "no_contrast", "include_seen", "Exit codes"])
      expect(stdout, word).toContain(word);
  });
});

describe("--features", () => {
  it("evaluates states at hand, without texts or instructions", async () => {
    const write = async (name: string, seed: number) => {
      const features = randomFeatures([3, 2, 5, 2], SPEC.dim, seed);
      const labels = Float32Array.from(features.labels, (_, i) => i % 2);
      const path = join(folder.path, name);
      await writeSafetensors(path, raggedTensors({ ...features, labels }));
      return path;
    };
    const [path, other] = [await write("a.safetensors", 1), await write("b.safetensors", 2)];
    const result = await json("--features", path, "--scorer", scorer, "--fit", other);
    expect(result.run.code).toBe(0);
    expect(names(result)).toEqual(["scorer", "raw cosine", "difference of means", "linear probe", "random"]);
    expect(result).toMatchObject({ lists: { read: 4, evaluated: 4, seen: 0, fitted: 4 }, candidates: 12, model: null });
    const table = await evaluate("--features", path, "--scorer", scorer);
    expect(table.code).toBe(0);
    expect(table.stdout).toContain("\n4 lists, 12 candidates; measures in %, intervals over lists\n");
    const narrow = { spec: { ...SPEC, dim: 6 }, weights: initialWeights({ ...SPEC, dim: 6 }, 1) };
    const misfit = await evaluate("--features", path, "--scorer", await scorerFolder("narrow", narrow));
    expect([misfit.code, errorCodes(misfit.stderr)]).toEqual([2, ["scorer/width-mismatch"]]);
  });
});
