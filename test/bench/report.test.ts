/** From times and results to rows. */
import { describe, expect, it } from "vitest";
import type { Job } from "../../bench/jobs.ts";
import { agreement, agrees, markdownTable, peerRows, textTable } from "../../bench/report.ts";
import type { PeerTimes } from "../../bench/rounds.ts";

const JOB: Job = { kind: "matmul", rows: 100, k: 100, n: 2, seed: 1 };
const RIGHT = Float32Array.of(1, 2, 3, -4);

function ran(name: string, fields: Partial<PeerTimes>, job: Job = JOB) {
  const times = { name, adapter: null, first: 9, times: [], output: null, error: null, ...fields };
  return { times, job };
}

describe("results", () => {
  it("agree within rounding, and do not beyond it", () => {
    expect(agrees(agreement(RIGHT, RIGHT.slice(), 2))).toBe(true);
    expect(agrees(agreement(RIGHT, Float32Array.of(1, 2, 3.001, -4), 2))).toBe(true);
    expect(agrees(agreement(RIGHT, Float32Array.of(1, 2, 3.01, -4), 2))).toBe(false);
    // One row of two is another vector: the mean of the cosines would hide it.
    expect(agreement(RIGHT, Float32Array.of(1, 2, 4, 3), 2).cosine).toBeCloseTo(0, 6);
  });

  it("that are not numbers, or of another size, do not agree", () => {
    expect(agrees(agreement(RIGHT, Float32Array.of(1, 2, Number.NaN, -4), 2))).toBe(false);
    expect(agrees(agreement(RIGHT, RIGHT.slice(0, 2), 2))).toBe(false);
  });
});

describe("rows", () => {
  const rows = peerRows(
    [
      ran("Stratum", { times: [3, 1, 2], output: RIGHT }),
      ran("same", { times: [10, 4], output: RIGHT.slice() }),
      ran("wrong", { times: [1], output: Float32Array.of(1, 2, 3, 4) }),
      ran("slow", { first: 500 }),
      ran("broken", { times: [1], output: RIGHT, error: "it\nbroke | badly" }),
      ran("deeper", { times: [6], output: RIGHT }, { ...JOB, rows: 300 }),
    ],
    JOB,
    "Stratum",
    "an adapter",
  );
  const row = (name: string) => rows.find((entry) => entry.name === name);

  it("have medians, spread, rate and ratio", () => {
    expect(row("Stratum")).toMatchObject({ median_ms: 2, iqr_ms: 1, gflops: 0.02, ratio: 1, result: "not compared" });
    expect(row("same")).toMatchObject({ median_ms: 7, iqr_ms: 3, ratio: 3.5, result: "same", runs: 2 });
  });

  it("name a wrong result, and what was not compared", () => {
    expect(row("wrong")).toMatchObject({ result: "WRONG", iqr_ms: null });
    expect(row("deeper")).toMatchObject({ result: "not compared", ratio: 3, job: "matmul 300 x 100 x 2" });
  });

  it("of a single run say so, and a failed peer has no number", () => {
    expect(row("slow")).toMatchObject({ median_ms: 500, ratio: 250, runs: 0 });
    expect(row("broken")).toMatchObject({ median_ms: null, gflops: null, ratio: null });
  });

  it("of what ran on another adapter are no rows of the comparison", () => {
    const here = ran("Stratum", { times: [2], adapter: "llvmpipe" });
    const [, same, other, cpu] = peerRows(
      [
        here,
        ran("same", { times: [4] }),
        ran("other", { times: [4], adapter: "SwiftShader" }),
        ran("cpu", { times: [1], adapter: "CPU" }),
      ],
      JOB,
      "Stratum",
      "auto",
    );
    expect(same).toMatchObject({ adapter: "llvmpipe", ratio: 2, error: null });
    expect(other).toMatchObject({ adapter: "SwiftShader", ratio: null, error: "it ran on SwiftShader" });
    expect(cpu).toMatchObject({ adapter: "CPU", ratio: 0.5, error: null });
  });

  it("compare with nothing where Stratum failed", () => {
    const [, other] = peerRows(
      [ran("Stratum", { error: "no device" }), ran("same", { times: [4], output: RIGHT })],
      JOB,
      "Stratum",
      "an adapter",
    );
    expect(other).toMatchObject({ median_ms: 4, ratio: null, result: "not compared" });
  });

  it("stand in a table, a failure in its line", () => {
    const text = textTable(rows).split("\n");
    expect(text).toHaveLength(rows.length + 1);
    expect(text[4]).toMatch(/slow +500\.0.*first only/);
    const markdown = markdownTable(rows).split("\n");
    expect(markdown).toHaveLength(rows.length + 2);
    expect(markdown[6]).toContain("failed: it broke \\| badly");
    expect(new Set(markdown.map((line) => line.split(/(?<!\\)\|/).length)).size).toBe(1);
  });
});
