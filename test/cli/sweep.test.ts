/** `stratum sweep` and `stratum bench train`: small runs through the compiled program. */
import { afterAll, describe, expect, it } from "vitest";
import { EXAMPLES, jsonLines, stratum, temporaryFolder } from "../support/cli.ts";

const folder = await temporaryFolder();
afterAll(() => folder[Symbol.asyncDispose]());
/** Features of these tests are no one else's. */
const below = ["env", `XDG_CACHE_HOME=${folder.path}`];

interface Row {
  readonly method: string;
  readonly layer: number | null;
  readonly top1: number;
  readonly low: number;
  readonly high: number;
  readonly seeds: number;
}

describe("sweep", () => {
  const words = ["sweep", EXAMPLES, "--layers", "1", "--seeds", "2", "--preset", "few-lists", "--control", "--json"];

  it("gives a line a method and layer, the same twice, and paired differences", async () => {
    const [first, second] = [await stratum(words, { below }), await stratum(words, { below })];
    expect(first.code).toBe(0);
    expect(second.stdout).toBe(first.stdout);
    const lines = jsonLines<Row & { differences?: unknown[] }>(first.stdout);
    const rows = lines.slice(0, -1);
    const names = (layer: number | null) => rows.filter((row) => row.layer === layer).map(({ method }) => method);
    expect(names(null)).toEqual(["random", "bag of words", "refusal keywords", "shortest"]);
    const onStates = ["raw cosine", "difference of means", "linear probe"];
    expect(names(1)).toEqual([...onStates, "linear probe, random weights", "scorer (few-lists)"]);
    for (const { top1, low, high, seeds } of rows) {
      expect([low <= top1, top1 <= high, low >= 0, high <= 1, seeds]).toEqual([true, true, true, true, 2]);
    }
    expect(lines.at(-1)?.differences).toHaveLength(2);
  });

  it("prints a table of layers", async () => {
    const run = await stratum(["sweep", EXAMPLES, "--layers", "1", "--seeds", "1", "--preset", "pointwise"], { below });
    expect(run.code).toBe(0);
    expect(run.stdout).toMatch(/^top-1, layer +1$/m);
    expect(run.stdout).toMatch(/^linear probe +\d+\.\d$/m);
    expect(run.stdout).toMatch(/minus linear probe at layer 1: -?\d/);
    expect(run.stdout).not.toContain("NaN");
  });

  it.each([
    [["--layers", "9"], "usage/layer"],
    [["--preset", "nothing"], "usage/arguments"],
    [["--test", "1.5"], "usage/arguments"],
  ])("refuses %j", async (more, code) => {
    const run = await stratum(["sweep", EXAMPLES, ...more], { below });
    expect(run.code).toBe(2);
    expect(run.stderr).toContain(`error ${code}`);
    expect(run.stdout).toBe("");
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
