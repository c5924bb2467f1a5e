/** `stratum demo`: the example lists, for eyes, or as a summary that `rank` confirms. */
import { describe, expect, it } from "vitest";
import type { RankingRecord } from "../../scorer/rankings.ts";
import { EXAMPLES, exampleLines, jsonLines, lastJsonLine, stratum } from "../support/cli.ts";

interface Labelled {
  readonly instruction: string;
  readonly candidates: readonly { readonly label: number }[];
}
const lists = exampleLines.map((line) => JSON.parse(line) as Labelled);
const candidates = lists.reduce((sum, list) => sum + list.candidates.length, 0);

describe("demo", () => {
  it("summarizes with --json what rank finds", async () => {
    const run = await stratum(["demo", "--json", "--layer", "0"]);
    expect(run.code).toBe(0);
    const [summary, ...more] = jsonLines<Record<string, number>>(run.stdout);
    expect(more).toEqual([]);
    const ranked = await stratum(["rank", EXAMPLES, "--layer", "0", "--json"]);
    const { tokens, adapter } = lastJsonLine(ranked.stderr);
    expect(summary).toMatchObject({
      adapter,
      model: "stratum-demo",
      layer: 0,
      layers: 6,
      lists: lists.length,
      candidates,
      tokens,
    });
    const best = jsonLines<RankingRecord>(ranked.stdout).map(({ results }) => results[0]!.index);
    const safe = lists.filter((list, i) => list.candidates[best[i]!]!.label === 1).length;
    expect(summary!["top1"]).toBeCloseTo(safe / lists.length, 12);
    const random = lists.map(
      (list) => list.candidates.filter(({ label }) => label === 1).length / list.candidates.length,
    );
    expect(summary!["top1_random"]).toBeCloseTo(random.reduce((a, b) => a + b) / lists.length, 12);
    expect(summary!["seconds_ranking"]).toBeLessThanOrEqual(summary!["seconds_total"]!);
  });

  it("shows three lists whole and the first place of every other", async () => {
    const run = await stratum(["demo"]);
    const whole = lists.slice(0, 3).reduce((sum, list) => sum + list.candidates.length, 0);
    expect(run.stdout.match(/^ {2}\d+\. +-?\d\.\d{3} █+ +(safe|unsafe) /gm)).toHaveLength(whole);
    expect(run.stdout.match(/^(safe|unsafe) +\S/gm)).toHaveLength(lists.length - 3);
  });

  it("shows every list and candidate with --all, without colours in a pipe, and claims no safety", async () => {
    const run = await stratum(["demo", "--all"]);
    expect(run.code).toBe(0);
    expect(run.stdout).not.toContain("\x1b");
    expect(run.stdout.match(/^ {2}\d+\. +-?\d\.\d{3} █+ +(safe|unsafe) /gm)).toHaveLength(candidates);
    for (const { instruction } of lists) expect(run.stdout).toContain(instruction.slice(0, 60));
    expect(run.stdout).toMatch(/^48 lists, 190 candidates ranked in /m);
    expect(run.stdout).toMatch(/hidden states after block 2 of 6/);
    expect(run.stdout).toMatch(/first place is safe in \d+ of 48 lists/);
    expect(run.stdout).toMatch(/raw cosine knows nothing of safety/);
  });
});
