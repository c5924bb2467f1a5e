/** `stratum sweep` and `stratum bench train`: small runs through the compiled program. */
import { readFile, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { type Report, type ReportCell, reportSchema } from "../../scorer/report-data.ts";
import { readReport } from "../../scorer/report-file.ts";
import { hashFile } from "../../weights/durable.ts";
import { EXAMPLES, exampleLines, jsonLines, stratum, temporaryFolder } from "../support/cli.ts";

const folder = await temporaryFolder();
afterAll(() => folder[Symbol.asyncDispose]());
/** Features of these tests are no one else's. */
const below = ["env", `XDG_CACHE_HOME=${folder.path}`];

const report = join(folder.path, "report");
/** One run of everything that is tested below: two layers under two poolings, and another file. */
const WORDS = ["sweep", EXAMPLES, "--layers", "1,2", "--seeds", "1", "--preset", "few-lists", "--bootstrap", "200"];
const AXES = ["--pooling", "mean,last-2"];
const other = join(folder.path, "other.jsonl");
await writeFile(
  other,
  `${exampleLines
    .slice(0, 12)
    .map((line) => line.replace('"instruction": "', '"instruction": "Again: '))
    .join("\n")}\n`,
);
const readReportFile = async () => reportSchema.parse(JSON.parse(await readFile(join(report, "report.json"), "utf8")));
const readCells = async () => jsonLines<ReportCell>(await readFile(join(report, "cells.jsonl"), "utf8"));
/** All but what time it is and what was timed. */
const lasting = ({ run, costs, recommendation, ...rest }: Report) => ({
  ...{ ...rest, run: { ...run, date: "", seconds: 0, command: "" }, layers: costs.map(({ layer }) => layer) },
  recommended: recommendation?.recommended.layers,
});

describe("sweep", () => {
  let whole: Report;
  let cells: ReportCell[];

  it("writes a report: every method at every place, costs that grow with depth, transfer, slices", async () => {
    const run = await stratum([...WORDS, ...AXES, "--test", other, "-o", report], { below });
    expect([run.code, run.stderr]).toEqual([0, expect.stringContaining(`report  ${report}`)]);
    // Each of the model and its control is loaded once, for two files of lists and for the costs.
    expect(run.stderr.match(/^plan /gm)).toHaveLength(2);
    whole = await readReportFile();
    cells = await readCells();
    expect(await readReport(report)).toEqual(whole);
    const places = ["mean", "last-2"].flatMap((pooling) => [[1], [2]].map((layers) => ({ layers, pooling })));
    const names = whole.methods.map(({ name, kind }) => [name, kind]);
    expect(names).toEqual([
      ["random", "chance"],
      ["bag of words", "text"],
      ["refusal keywords", "text"],
      ["shortest", "text"],
      ["raw cosine", "baseline"],
      ["difference of means", "baseline"],
      ["linear probe", "baseline"],
      ["linear probe, random weights", "control"],
      ["scorer (few-lists)", "scorer"],
    ]);
    expect(whole.rows.map(({ method, layers, pooling }) => ({ method, layers, pooling }))).toEqual([
      ...names.slice(0, 4).map(([method]) => ({ method, layers: null, pooling: null })),
      ...places.flatMap((place) => names.slice(4).map(([method]) => ({ method, ...place }))),
    ]);
    for (const { top1, seeds } of whole.rows) {
      const { mean, low, high } = top1!;
      expect([low <= mean, mean <= high, low >= 0, high <= 1, seeds.length]).toEqual([true, true, true, true, 1]);
    }
    expect(cells).toHaveLength(2 * whole.rows.length);
    expect(whole.costs.map(({ layer, pooling }) => [layer, pooling])).toEqual([
      [1, "mean"],
      [1, "last-2"],
      [2, "mean"],
      [2, "last-2"],
    ]);
    const [shallow, , deep] = whole.costs;
    expect(deep!.gpu_bytes - shallow!.gpu_bytes).toBe(deep!.weight_bytes - shallow!.weight_bytes);
    expect(deep!.weight_bytes).toBeGreaterThan(shallow!.weight_bytes);
    expect(Math.min(...whole.costs.map(({ ms }) => ms.median))).toBeGreaterThan(0);
    expect(whole.transfer!.measured).toEqual(["everyday.jsonl", "other.jsonl"]);
    expect(whole.slices.map(({ name }) => name)).toContain("exactly one safe");
    expect(whole.run).toMatchObject({ seeds: [0], poolings: ["mean", "last-2"], concat: [] });
    expect(whole.run.command).toMatch(/^stratum sweep \S+everyday.jsonl --layers 1,2 --seeds 1 /);
    expect(whole.run.data).toMatchObject({ lists: exampleLines.length, sha256: await hashFile(EXAMPLES) });
    const lines = run.stdout.split("\n");
    expect(lines).toContainEqual(expect.stringMatching(/^ {4}2 {2}last-2( +\d+\.\d){5} +\d+\.\d +\d/));
    expect(run.stdout).not.toMatch(/NaN|undefined/);
  });

  it("goes on where it was stopped, with the same numbers", async () => {
    const path = join(report, "cells.jsonl");
    await truncate(path, Math.floor((await readFile(path)).length * 0.6));
    await rm(join(report, "report.json"));
    const again = await stratum([...WORDS, ...AXES, "--test", other, "-o", report, "--json"], { below });
    expect([again.code, again.stderr]).toEqual([0, expect.stringMatching(/^resumed [1-9]\d* of 5 units/m)]);
    expect((await readCells()).map(({ ms: _, ...cell }) => cell)).toEqual(cells.map(({ ms: _, ...cell }) => cell));
    const after = await readReportFile();
    expect(lasting(after)).toEqual(lasting(whole));
    expect(JSON.parse(again.stdout)).toEqual(after);
  });

  it("refuses another run's folder with the difference, and leaves it", async () => {
    const run = await stratum([...WORDS, ...AXES, "--test", other, "-o", report, "--k", "3"], { below });
    expect([run.code, run.stdout]).toEqual([2, ""]);
    expect(run.stderr).toContain(`error report/other-run: ${report} holds another run: k was 5, is 3\n`);
    expect(lasting(await readReportFile())).toEqual(lasting(whole));
  });

  it("gives what train and eval give by hand", async () => {
    for (const layer of [1, 2]) {
      const scorer = join(folder.path, `scorer-${layer}`);
      const common = ["--layer", `${layer}`, "--pooling", "mean"];
      const words = ["train", EXAMPLES, ...common, "--preset", "few-lists", "--hold-out", "0.3"];
      expect((await stratum([...words, "-o", scorer, "--quiet"], { below })).code).toBe(0);
      const more = ["--control", "--bootstrap", "200", "--json"];
      const run = await stratum(["eval", EXAMPLES, "--scorer", scorer, ...more], { below });
      expect(run.code).toBe(0);
      const [{ methods }] = jsonLines<{ methods: (Report["rows"][number]["seeds"][number] & { name: string })[] }>(
        run.stdout,
      ) as [{ methods: (Report["rows"][number]["seeds"][number] & { name: string })[] }];
      expect(methods).toHaveLength(9);
      for (const { name, top1, pairwise, mrr, ndcg } of methods) {
        const method = name === "scorer" ? "scorer (few-lists)" : name;
        const row = whole.rows.find(
          (each) =>
            each.method === method &&
            (each.layers === null || (each.layers.join() === `${layer}` && each.pooling === "mean")),
        )!;
        expect([method, row.seeds[0]]).toEqual([method, { seed: 0, top1, pairwise, mrr, ndcg }]);
      }
    }
  });

  const little = join(folder.path, "little.jsonl");
  const oneClass = join(folder.path, "one-class.jsonl");
  it.each([
    [[EXAMPLES, "--layers", "9"], "usage/layer", 2],
    [[EXAMPLES, "--concat", "1+9"], "usage/layer", 2],
    [[EXAMPLES, "--concat", "1"], "usage/arguments", 2],
    [[EXAMPLES, "--concat", "3+50%"], "usage/layer", 2],
    [[EXAMPLES, "--train-each"], "usage/arguments", 2],
    [[EXAMPLES, "--pooling", "last,middle"], "usage/arguments", 2],
    [[EXAMPLES, "--preset", "nothing"], "usage/arguments", 2],
    [[EXAMPLES, "--hold-out", "1.5"], "usage/arguments", 2],
    [[EXAMPLES, "--test", EXAMPLES], "usage/arguments", 2],
    [[EXAMPLES, "-o", EXAMPLES], "usage/output", 2],
    [["-"], "usage/no-input", 2],
    [[little], "list/too-few", 1],
    [[oneClass], "list/no-contrast", 1],
  ])("refuses %j before any model runs", async (words, code, exit) => {
    await writeFile(little, `${exampleLines.slice(0, 2).join("\n")}\n`);
    await writeFile(oneClass, exampleLines.join("\n").replaceAll('"label": 0', '"label": 1'));
    const run = await stratum(["sweep", ...words], { below });
    expect([run.code, run.stdout]).toEqual([exit, ""]);
    expect(run.stderr).toContain(`error ${code}`);
    expect(run.stderr).not.toContain("plan ");
    if (code === "list/too-few") expect(run.stderr).toContain("at least 3");
  });
});

describe("bench train", () => {
  it("holds what it planned and says what an epoch takes", async () => {
    const sizes = ["--dim", "64", "--lists", "40", "--candidates", "3", "--width", "16", "--heads", "2"];
    const run = await stratum([
      "bench",
      "train",
      ...sizes,
      "--batch-lists",
      "8",
      "--steps",
      "2",
      "--runs",
      "2",
      "--json",
    ]);
    expect(run.code).toBe(0);
    const [result] = jsonLines<{
      rows: { name: string; gflops: number }[];
      planned_bytes: number;
      live_bytes: number;
      epoch_seconds: number;
    }>(run.stdout);
    expect(result!.live_bytes).toBe(result!.planned_bytes);
    expect(result!.rows.map(({ name }) => name)).toEqual(["training step", "matmul"]);
    expect(result!.epoch_seconds).toBeGreaterThan(0);
  });
});
