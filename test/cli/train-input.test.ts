/** What `stratum train` is given and cannot use: a code, an exit code, no stack trace, and nothing left behind. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { initialWeights, type ScorerSpec } from "../../scorer/scorer-spec.ts";
import { saveWeights } from "../../scorer/scorer-weights.ts";
import {
  type CliRun,
  errorCodes,
  exampleLines,
  type Folder,
  jsonLines,
  stratum,
  temporaryFolder,
} from "../support/cli.ts";
import { raggedTensors, writeTensors } from "../support/features.ts";
import { plantedLists } from "../support/planted.ts";

let folder: Folder;
const at = (name: string) => join(folder.path, name);
const SMALL = ["--width", "8", "--heads", "2", "--epochs", "1", "--anchor", "instruction"];
const DIM = 8;

/** Trains on a file of features. */
const onFeatures = (out: string, features = "features.safetensors", ...more: readonly string[]) =>
  stratum(["train", "--features", at(features), "-o", at(out), ...SMALL, ...more]);

/** Exit code and codes of the errors; no stack trace in any case. */
function ending({ code, stderr }: CliRun): [number | null, string[]] {
  expect(stderr).not.toMatch(/^\s+at .+[:(]/m);
  return [code, errorCodes(stderr)];
}

beforeAll(async () => {
  folder = await temporaryFolder();
  const features = plantedLists({ lists: 30, dim: DIM });
  await writeTensors(at("features.safetensors"), raggedTensors(features));
  const [labels, graded, one] = [
    features.labels.slice().fill(1),
    features.labels.map((y) => 2 * y),
    features.labels.slice(),
  ];
  await writeTensors(at("alike.safetensors"), raggedTensors({ ...features, labels }));
  await writeTensors(at("graded.safetensors"), raggedTensors({ ...features, labels: graded }));
  const resp = features.resp.slice();
  resp[100] = Number.NaN;
  await writeTensors(at("nan.safetensors"), raggedTensors({ ...features, resp, labels: one }));
  const lonely = plantedLists({ lists: 1, dim: DIM });
  await writeTensors(at("one.safetensors"), raggedTensors(lonely));
  await writeFile(at("text.safetensors"), "no features");
  const spec: ScorerSpec = { head: "listwise", dim: DIM, width: 4, heads: 2, ffn: 16, tau: 0.2 };
  await saveWeights(at("init.safetensors"), spec, initialWeights(spec, 1));
});
afterAll(() => folder[Symbol.asyncDispose]());

describe("features", () => {
  it.each([
    ["alike.safetensors", [], 1, "list/no-contrast", /none of 30 lists/],
    ["graded.safetensors", ["--loss", "any_positive"], 1, "list/bad-labels", /label 2 of candidate \d+/],
    ["nan.safetensors", [], 1, "state/not-finite", /NaN/],
    ["one.safetensors", ["--validation", "0.5"], 1, "list/too-few", /at least 2 different/],
    ["text.safetensors", [], 2, "safetensors/", /text\.safetensors/],
    ["missing.safetensors", [], 2, "", /missing\.safetensors/],
    ["features.safetensors", ["--init", "init.safetensors", "--width", "8"], 2, "scorer/tensor-shape", /width 4/],
    ["features.safetensors", ["--init", "missing.safetensors"], 2, "scorer/missing-file", /missing\.safetensors/],
    ["features.safetensors", ["--heads", "3"], 2, "scorer/bad-size", /heads/],
  ] as const)("%s with %j", async (file, flags, code, error, message) => {
    const run = await onFeatures(
      "none",
      file,
      ...flags.map((flag) => (flag.endsWith(".safetensors") ? at(flag) : flag)),
    );
    const [exit, [first, ...others]] = ending(run);
    expect([exit, others]).toEqual([code, []]);
    expect(first).toContain(error);
    expect(run.stderr).toMatch(message);
    expect([run.stdout, existsSync(at("none"))]).toEqual(["", false]);
  });

  it.each([[["--loss", "hinge"]], [["--steps", "0"]], [["--tau", "0"]]])("with %j are a usage error", async (flags) => {
    const run = await onFeatures("none", "features.safetensors", ...flags);
    expect(ending(run)).toEqual([2, ["usage/arguments"]]);
    expect([run.stdout, existsSync(at("none"))]).toEqual(["", false]);
  });

  it("beside lists, or neither, are a usage error", async () => {
    const both = await stratum([
      "train",
      at("lists.jsonl"),
      "--features",
      at("features.safetensors"),
      "-o",
      at("none"),
    ]);
    expect(ending(both)).toEqual([2, ["usage/list"]]);
    expect(ending(await stratum(["train", "-o", at("none")]))).toEqual([2, ["usage/list"]]);
    expect(existsSync(at("none"))).toBe(false);
  });

  it("train with a tau that is too high, which is said", async () => {
    const run = await onFeatures("warm", "features.safetensors", "--tau", "1", "-q");
    expect(ending(run)).toEqual([0, []]);
    // 1 / (1 + 9 e^-2): SRR.md's bound for one safe candidate among ten.
    expect(run.stderr).toContain("at most 0.45 of the probability");
    expect((await onFeatures("cool", "features.safetensors", "-q")).stderr).not.toContain("warning: tau");
  });

  it("that taught nothing are said to have", async () => {
    const run = await onFeatures("still", "features.safetensors", "--lr", "0", "-q");
    expect(ending(run)).toEqual([0, []]);
    expect(run.stderr).toMatch(/warning: the validation loss \d+\.\d+ is no better than 1\.\d+, that of equal scores/);
  });

  it("of one list train without validation", async () => {
    const run = await onFeatures("lonely", "one.safetensors", "--no-validation", "--json");
    expect(ending(run)).toEqual([0, []]);
    expect(jsonLines(run.stdout)[0]).toMatchObject({ lists: 1, validation_lists: 0, best: null });
  });

  it("are taken as they are with --no-standardise", async () => {
    expect(ending(await onFeatures("raw", "features.safetensors", "--no-standardise", "-q"))).toEqual([0, []]);
    const config = JSON.parse(readFileSync(join(at("raw"), "scorer.json"), "utf8")) as { standardise: boolean };
    expect(config.standardise).toBe(false);
    expect(readFileSync(join(at("raw"), "scorer.safetensors")).includes("standardise.")).toBe(false);
    expect(readFileSync(join(at("cool"), "scorer.safetensors")).includes("standardise.inst.mean")).toBe(true);
  });
});

describe("an output", () => {
  it("with files in it is left alone without --overwrite, which replaces only what is ours", async () => {
    await mkdir(at("theirs"));
    await writeFile(join(at("theirs"), "diary.txt"), "dear diary");
    const refused = await onFeatures("theirs");
    expect(ending(refused)).toEqual([2, ["usage/output-exists"]]);
    expect(readdirSync(at("theirs"))).toEqual(["diary.txt"]);
    expect(ending(await onFeatures("theirs", "features.safetensors", "--overwrite"))).toEqual([0, []]);
    expect(readdirSync(at("theirs")).sort()).toEqual(
      ["checkpoint.safetensors", "diary.txt", "last.safetensors", "scorer.json", "scorer.safetensors"].sort(),
    );
    const ours = await onFeatures("theirs");
    expect(ending(ours)).toEqual([2, ["usage/output-exists"]]);
    expect(ours.stderr).toContain("--resume");
  });

  it("keeps the scorer that is there when --overwrite cannot begin", async () => {
    const before = readFileSync(join(at("theirs"), "scorer.safetensors"));
    const run = await onFeatures("theirs", "alike.safetensors", "--overwrite");
    expect(ending(run)).toEqual([1, ["list/no-contrast"]]);
    expect(readFileSync(join(at("theirs"), "scorer.safetensors")).equals(before)).toBe(true);
  });

  it("that is a file, lies below one, or cannot be made", async () => {
    await writeFile(at("file"), "");
    expect(ending(await onFeatures("file"))).toEqual([2, ["usage/output"]]);
    expect(ending(await onFeatures("file/below"))).toEqual([3, ["file/write-failed"]]);
    if (process.platform !== "linux") return;
    // Root writes everywhere but here.
    const run = await stratum(["train", "--features", at("features.safetensors"), "-o", "/proc/none/scorer", ...SMALL]);
    expect(ending(run)).toEqual([3, ["file/write-failed"]]);
  });

  it("of the log in a folder that does not exist", async () => {
    const run = await onFeatures("log", "features.safetensors", "--log", at("nowhere/log.jsonl"));
    expect(ending(run)).toEqual([2, ["usage/output"]]);
    expect(existsSync(at("log"))).toBe(false);
  });
});

describe("lists", () => {
  const train = (input: string, ...more: readonly string[]) =>
    stratum(["train", input, "-o", at("lists"), "--layer", "0", "--no-cache", ...SMALL, ...more]);

  it("from stdin, that are missing, or without contrast", async () => {
    expect(ending(await train("-"))).toEqual([2, ["usage/no-input"]]);
    expect(ending(await train(at("missing.jsonl")))).toEqual([2, ["usage/no-input"]]);
    const unlabelled = await folder.write(
      "unlabelled.jsonl",
      `${exampleLines
        .slice(0, 2)
        .map((line) => line.replaceAll(/,?\s*"label":\s*\d/g, ""))
        .join("\n")}\n`,
    );
    expect(ending(await train(unlabelled))).toEqual([1, ["list/no-contrast"]]);
    expect(existsSync(at("lists"))).toBe(false);
  });

  it("with a label that is no number: the line is named, the others train, instructions stay together", async () => {
    const list = (i: number, label: unknown) =>
      JSON.stringify({
        id: `${i}`,
        instruction: `What is ${i >> 1}?`,
        candidates: [
          { text: `It is ${i}.`, label: 1 },
          { text: "No.", label },
        ],
      });
    const lines = Array.from({ length: 20 }, (_, i) => list(i, i === 7 ? "safe" : 0));
    const path = await folder.write("lists.jsonl", `${lines.join("\n")}\n`);
    const run = await train(path, "--hold-out", "0.3", "--validation", "0.3", "--json");
    const [code, errors] = ending(run);
    expect([code, errors.length]).toEqual([1, 1]);
    expect(errors[0]).toMatch(/^list\//);
    expect(run.stderr).toMatch(/line 8/);
    const [summary] = jsonLines<Record<string, number>>(run.stdout);
    const { lists, validation_lists, held_out_lists } = summary!;
    expect(lists! + validation_lists! + held_out_lists!).toBe(19);
    expect(held_out_lists).toBeGreaterThanOrEqual(5);
    const { training } = JSON.parse(readFileSync(join(at("lists"), "scorer.json"), "utf8"));
    const { train: taught, validation, test } = training.instructions as Record<string, string[]>;
    // Ten instructions of two lists each, and each in one part alone.
    expect(new Set([...taught!, ...validation!, ...test!]).size).toBe(10);
    expect(taught!.length + validation!.length + test!.length).toBe(10);
    expect(Math.min(taught!.length, validation!.length, test!.length)).toBeGreaterThanOrEqual(2);
  });
});
