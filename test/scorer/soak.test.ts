/** The short form of test/long/soak.test.ts: nothing leaks, and nothing changes, from round to round. */
import { describe, expect, it } from "vitest";
import { soak } from "../support/soak.ts";
import { median, trendOf } from "../support/trend.ts";

const SECONDS = 6;

describe("mixed ranking, over and over", () => {
  it("leaves the same buffers after every round, and ranks the same, a lost device between them", async () => {
    const { samples, different, losses, lists } = await soak(SECONDS, (round) => round % 3 === 2);
    expect(lists).toBeGreaterThan(samples.length);
    expect(different).toBe(0);
    expect(losses).toBe(Math.floor(samples.length / 3));
    const [{ live, buffers }] = samples as [(typeof samples)[number]];
    expect(new Set(samples.map((sample) => `${sample.live} ${sample.buffers}`))).toEqual(
      new Set([`${live} ${buffers}`]),
    );
  });
});

describe("a trend", () => {
  const noise = (i: number) => Math.sin(12.9898 * i) * 0.5;

  it("finds a slope that is there, between its bounds", () => {
    const found = trendOf(Array.from({ length: 200 }, (_, i) => [i, 3 + 0.25 * i + noise(i)] as const));
    expect(found.slope).toBeCloseTo(0.25, 2);
    expect([found.low < 0.25, found.high > 0.25, found.low > 0]).toEqual([true, true, true]);
  });

  it("is none where there is only noise, and a spike moves it little", () => {
    const flat = trendOf(Array.from({ length: 200 }, (_, i) => [i, noise(i) + (i === 199 ? 1000 : 0)] as const));
    expect([flat.low < 0, flat.high > 0]).toEqual([true, true]);
    expect(Math.abs(flat.slope)).toBeLessThan(0.01);
  });

  it("has medians, and needs samples", () => {
    expect([median([3, 1, 2]), median([4, 1, 2, 3])]).toEqual([2, 2.5]);
    expect(() => trendOf([[0, 0]])).toThrow("20 at least");
  });
});
