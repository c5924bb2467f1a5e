/** The short form of test/long/soak.test.ts: nothing leaks, and nothing changes, from round to round. */
import { describe, expect, it } from "vitest";
import { growthOf } from "../support/leaks.ts";
import { soak } from "../support/soak.ts";
import { median, trendOf } from "../support/trend.ts";

const SECONDS = 6;
const MIB = 2 ** 20;
/**
 * What so few lists may leave, most of it V8's code and feedback: a leak is told from some KiB a list on, which is far more
 * than an hour would show. Objects and buffers of the GPU that are kept are told from the first on.
 */
const LEFT = 3 * MIB;

describe("mixed ranking, over and over", () => {
  it("leaves the same after every round, and ranks the same", async () => {
    const { samples, rounds, lists, different, live, gpuObjects } = await soak(SECONDS);
    expect(lists).toBeGreaterThan(rounds);
    expect(different).toBe(0);
    expect(live).toHaveLength(1);
    expect(gpuObjects[1]).toBe(gpuObjects[0]);
    // Medians: a driver gives memory back in its own time, and one look may find a batch's buffers with it still.
    const left = (of: (sample: (typeof samples)[number]) => number) =>
      median(samples.slice(-5).map(of)) - median(samples.slice(1, 6).map(of));
    expect(left(({ objects }) => objects)).toBeLessThan(LEFT);
    if (!Number.isNaN(samples[0]!.native)) expect(left(({ native }) => native)).toBeLessThan(LEFT);
  });

  it("ranks the same over a lost device; an object of the GPU that is kept a round is told", async () => {
    const kept: GPUBuffer[] = [];
    const { different, losses, live, gpuObjects } = await soak(0, {
      losesIn: (round) => round === 2,
      leak: (gpu) => kept.push(gpu.createBuffer({ size: 16, usage: 8 })),
    });
    expect([different, losses]).toEqual([0, 1]);
    expect(live).toHaveLength(1);
    expect(gpuObjects[1]).not.toBe(gpuObjects[0]);
  });
});

describe("what grows in an hour", () => {
  /** An hour of samples that jump by as much as they were seen to, and rise by `leak` MiB. */
  const hour = (leak: number) =>
    Array.from({ length: 320 }, (_, i) => {
      const jump = (mib: number, seed: number) => MIB * mib * Math.abs(Math.sin(12.9898 * i + seed));
      const held = 25 * MIB + (leak * MIB * i) / 320;
      const [objects, native, mapped] = [held + jump(0.2, 1), held + jump(0.1, 2), 130 * MIB + jump(7, 3)];
      return { seconds: 720 + 9 * i, objects, native, mapped, resident: objects + native + mapped + jump(12, 4) };
    });
  const leaking = (leak: number) => growthOf(hour(leak)).flatMap(({ part, leaks }) => (leaks ? part : []));

  it("is a leak from a few MiB on, and no noise is", () => {
    expect([leaking(0), leaking(0.5)]).toEqual([[], []]);
    expect([leaking(1.5), leaking(3)]).toEqual([["native"], ["objects", "native"]]);
    for (const { part, tellsFrom } of growthOf(hour(0)).slice(0, 2))
      expect([part, tellsFrom < 3]).toEqual([part, true]);
  });

  it("leaves out what the system does not tell", () => {
    const samples = hour(0).map((sample) => ({ ...sample, native: Number.NaN }));
    expect(growthOf(samples).map(({ part }) => part)).toEqual(["objects", "mapped", "resident"]);
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
