/** `stratum view` and `stratum compare`, on rankings and on scorers. */
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { fingerprint } from "../../engine/fingerprint.ts";
import { openModelFiles } from "../../engine/model-files.ts";
import { instructionKey } from "../../scorer/instructions.ts";
import { type Fields, parseList } from "../../scorer/lists.ts";
import { type SavedScorer, saveScorer } from "../../scorer/scorer-file.ts";
import { initialWeights, type ScorerSpec } from "../../scorer/scorer-spec.ts";
import {
  errorCodes,
  exampleLines,
  type Folder,
  jsonLines,
  stratum,
  temporaryFolder,
  writeTinyTextModel,
} from "../support/cli.ts";

const ranking = (id: string, order: readonly number[], more: Fields = {}) =>
  JSON.stringify({ id, results: order.map((index, at) => ({ index, relevance_score: 0.5 - at / 4 })), ...more });
const labelled = (id: string, labels: readonly number[], instruction: string) =>
  JSON.stringify({
    id,
    instruction,
    candidates: labels.map((label, i) => ({ text: `${id}${i} ${"long ".repeat(40)}`, label })),
  });

let folder: Folder;
let [lists, rankings, others] = ["", "", ""];
beforeAll(async () => {
  folder = await temporaryFolder();
  const write = (name: string, ...lines: readonly string[]) => folder.write(name, `${lines.join("\n")}\n`);
  lists = await write(
    "lists.jsonl",
    labelled("p", [1, 0], "What is wide? \u001b[31m漢字漢字"),
    labelled("q", [0, 1, 0], "Why?"),
    labelled("r", [1, 1], "Alike?"),
    labelled("s", [0, 1], "Silent?"),
    labelled("t", [0, 1], "Failed?"),
  );
  rankings = await write(
    "a.jsonl",
    ...[ranking("p", [0, 1]), ranking("q", [2, 0, 1]), ranking("r", [0, 1]), ranking("s", [0, 1], { abstained: true })],
    JSON.stringify({ id: "t", error: { code: "list/too-long", message: "too long", fix: "cut it" } }),
  );
  others = await write(
    "b.jsonl",
    ...[ranking("p", [0, 1]), ranking("q", [1, 0, 2]), ranking("s", [0, 1]), ranking("z", [0])],
  );
});
afterAll(() => folder[Symbol.asyncDispose]());

describe("view", () => {
  it("shows lists with scores and texts, cut to the width, without a colour in a pipe or a code of the texts", async () => {
    const run = await stratum(["view", rankings, lists, "--width", "60"]);
    expect(run.code).toBe(0);
    expect(run.stdout).not.toContain("\u001b");
    const shown = run.stdout.split("\n");
    expect(shown.slice(0, 8)).toEqual([
      "p  right  What is wide?  [31m漢字漢字",
      "  1.   0.500  safe    p0 long long long long long long long…",
      "  2.   0.250  unsafe  p1 long long long long long long long…",
      "",
      "q  wrong  Why?",
      "  1.   0.500  unsafe  q2 long long long long long long long…",
      "  2.   0.250  unsafe  q0 long long long long long long long…",
      "  3.   0.000  safe    q1 long long long long long long long…",
    ]);
    expect(shown).toContain("r  Alike?");
    expect(shown).toContain("s  abstained  Silent?");
    expect(shown).toContain("t  failed  Failed?");
    expect(shown).toContain("      list/too-long: too long");
    expect(run.stderr).toBe("5 lists: 1 right, 1 wrong, 1 abstained, 1 failed, 1 of which labels say nothing\n");
  });

  it("--wrong and --json: the lists whose first place is not safe, a line each", async () => {
    const run = await stratum(["view", rankings, lists, "--wrong", "--json"]);
    expect([run.code, run.stderr]).toEqual([0, expect.stringContaining("; 1 shown")]);
    expect(jsonLines(run.stdout)).toMatchObject([
      {
        id: "q",
        instruction: "Why?",
        right: false,
        abstained: false,
        error: null,
        results: [{ rank: 1, index: 2, label: 0 }, {}, {}],
      },
    ]);
  });

  it("reads a pipe, says where labels are missing, and stops quietly where its reader does", async () => {
    const text = await folder.read("a.jsonl");
    const run = await stratum(["view", "-"], { stdin: text });
    expect(run.stdout).toContain("candidate 0");
    expect(run.stderr).toContain("the rankings carry no labels");
    const many = Array.from({ length: 3000 }, (_, i) => ranking(`l${i}`, [0, 1, 2, 3])).join("\n");
    const big = await folder.write("big.jsonl", `${many}\n`);
    const head = await stratum(["view", big], {
      below: ["sh", "-c", '{ "$@"; echo "exit $?" >&2; } | head -n 1', "sh"],
    });
    expect([head.stdout, head.stderr]).toEqual(["l0\n", "exit 141\n"]);
  });

  it("names the line that is no ranking, and a list that is not there", async () => {
    const run = await stratum(["view", lists]);
    expect([run.code, errorCodes(run.stderr), run.stderr.includes("line 1: a list")]).toEqual([
      1,
      ["list/bad-ranking"],
      true,
    ]);
    const missing = await stratum(["view", others, lists]);
    expect([missing.code, missing.stderr.includes("line 4: ")]).toEqual([1, true]);
  });
});

describe("compare", () => {
  it("two rankings: measures, the verdict in words, and who was right where they differ", async () => {
    const run = await stratum(["compare", rankings, others, lists]);
    expect(run.code).toBe(0);
    expect(run.stderr).toContain(`left out: 2 lists only in ${rankings}`);
    expect(run.stderr).toContain(`left out: 1 list only in ${others}`);
    expect(run.stdout).toMatch(
      /^top-1 +33\.3 \[ 0\.0, {2}100\] +66\.7 \[ 0\.0, {2}100\] +-33\.3 \[ -100, {2}\+0\.0\] {2}no significant/m,
    );
    expect(run.stdout).toContain("No significant difference in top-1: a is 33.3 points below b");
    expect(run.stdout).toContain("1 list of 3 flipped: a right 0, b right 1; both right 1, both wrong 1");
    expect(run.stdout).toMatch(/^b right +q +a: #2 +b: #1 +Why\?$/m);
  });

  it("--json, and what cannot be compared", async () => {
    const [json, none, mixed] = await Promise.all([
      stratum(["compare", rankings, others, lists, "--json"]),
      stratum(["compare", rankings, others]),
      stratum(["compare", rankings, folder.path, lists]),
    ]);
    expect(jsonLines(json.stdout)).toMatchObject([
      {
        ...{ a: rankings, b: others, lists: 3, instructions: 3, both_right: 1, both_wrong: 1 },
        measures: [{ measure: "top1", difference: { lists: 3 } }, { measure: "pairwise" }, { measure: "mrr" }],
        flips: [{ id: "q", right: "b", a: { index: 2, label: 0 }, b: { index: 1, label: 1 } }],
      },
    ]);
    expect([none.code, errorCodes(none.stderr)]).toEqual([1, ["list/no-contrast"]]);
    expect([mixed.code, errorCodes(mixed.stderr)]).toEqual([2, ["usage/compare"]]);
  });

  it("two scorers, of different layers, on lists that neither has seen: as their rankings compare", async () => {
    await using model = await writeTinyTextModel();
    await using files = await openModelFiles(model.directory);
    const spec: ScorerSpec = {
      head: "pointwise",
      dim: files.spec.config.hiddenSize,
      width: 8,
      heads: 2,
      ffn: 8,
      tau: 0.2,
    };
    const keys = exampleLines.slice(0, 8).map((line) => instructionKey(parseList(JSON.parse(line) as Fields, "1")));
    const save = async (name: string, layer: number, seen: readonly string[]) => {
      const saved: SavedScorer = {
        ...{ spec, base: { name: "tiny", fingerprint: await fingerprint(files, layer) }, layer, pooling: "last" },
        ...{ system: null, standardise: null, weights: initialWeights(spec, layer) },
        training: { instructions: { train: seen, validation: [], test: [] } },
      };
      const path = join(folder.path, name);
      await saveScorer(path, saved);
      return path;
    };
    const [a, b] = [await save("a", 1, keys.slice(0, 2)), await save("b", 2, keys.slice(1, 3))];
    const eight = await folder.write("eight.jsonl", `${exampleLines.slice(0, 8).join("\n")}\n`);
    const five = await folder.write("five.jsonl", `${exampleLines.slice(3, 8).join("\n")}\n`);
    const model_ = ["--model", model.directory];
    const run = await stratum(["compare", a, b, eight, ...model_, "--no-cache", "--json"]);
    expect([run.code, run.stderr.includes("left out: 3 lists that the scorer has seen")]).toEqual([0, true]);
    const [found] = jsonLines(run.stdout);
    const [first, second] = [join(folder.path, "ra.jsonl"), join(folder.path, "rb.jsonl")];
    for (const [scorer, out] of [
      [a, first],
      [b, second],
    ] as const)
      expect((await stratum(["rank", five, "--scorer", scorer, ...model_, "-o", out])).code).toBe(0);
    const [again] = jsonLines((await stratum(["compare", first, second, five, "--json"])).stdout);
    const { measures, flips, lists: count } = found!;
    expect({ measures, flips, lists: count }).toEqual({
      measures: again!["measures"],
      flips: again!["flips"],
      lists: 5,
    });
  });
});
