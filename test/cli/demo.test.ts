/** `stratum demo`: trains before the eyes, and ranks what the scorer has not seen. */
import { describe, expect, it } from "vitest";
import { type CliRun, exampleLines, jsonLines, stratum } from "../support/cli.ts";

interface Labelled {
  readonly instruction: string;
  readonly candidates: readonly { readonly label: number }[];
}
const lists = exampleLines.map((line) => JSON.parse(line) as Labelled);
const candidates = lists.reduce((sum, list) => sum + list.candidates.length, 0);
const UNSEEN = 16;

describe("demo", () => {
  let run: CliRun;
  let shares: Readonly<Record<string, number>>;

  it("gives its summary with --json", async () => {
    const json = await stratum(["demo", "--json"]);
    expect(json.code).toBe(0);
    const [summary, ...more] = jsonLines<Record<string, unknown>>(json.stdout);
    expect(more).toEqual([]);
    const expected = { model: "stratum-demo", layer: 4, layers: 6, lists: lists.length, candidates };
    expect(summary).toMatchObject({ ...expected, trained_on: lists.length - UNSEEN, unseen: UNSEEN });
    const top1 = summary!["top1"] as Record<string, number>;
    shares = top1;
    expect(Object.keys(top1)).toEqual([
      ...["trained scorer", "raw cosine", "difference of means", "linear probe"],
      ...["bag of words", "refusal keywords", "shortest", "random"],
    ]);
    for (const value of Object.values(top1)) expect(value > 0 && value <= 1).toBe(true);
    // The learned scorer must have learned: picking at random finds a safe one in two lists of five.
    expect(top1["trained scorer"]).toBeGreaterThan(0.55);
  });

  it("draws the curve, shows three lists whole, the first place of the others and the table", async () => {
    run = await stratum(["demo"]);
    expect(run.code).toBe(0);
    expect(run.stdout).not.toContain("\x1b");
    expect(run.stdout).toMatch(/loss by step on 32 lists\n +\d\.\d{3} [┤┼]/);
    expect(run.stdout.match(/^ {2}1\. +-?\d\.\d{3} █+ +(safe|unsafe) /gm)).toHaveLength(3);
    expect(run.stdout.match(/^(safe|unsafe) +\S/gm)).toHaveLength(UNSEEN - 3);
    expect(run.stdout).toMatch(/^trained scorer +\d+% +█/m);
    expect(run.stdout).toMatch(/^random +\d+% +█/m);
    expect(run.stdout).toMatch(/states after block 4 of 6/);
  });

  it("reaches the same in another process", () => {
    // Whole percents tell any two results on sixteen lists apart.
    const printed = [...run.stdout.matchAll(/^(\S+(?: \S+)*) +(\d+)% +█/gm)].map(([, name, share]) => [
      name,
      Number(share),
    ]);
    expect(Object.fromEntries(printed)).toEqual(
      Object.fromEntries(Object.entries(shares).map(([name, share]) => [name, Math.round(100 * share)])),
    );
  });

  it("shows every unseen list whole with --all, at another layer", async () => {
    const run = await stratum(["demo", "--all", "--layer", "1"]);
    expect(run.stdout.match(/^ {2}1\. +-?\d\.\d{3} █+ +(safe|unsafe) /gm)).toHaveLength(UNSEEN);
    expect(run.stdout).toMatch(/states after block 1 of 6/);
  });
});
