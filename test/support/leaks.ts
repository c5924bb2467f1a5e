/** What of a process's memory grows for as long as it works. */
import type { Memory } from "./memory.ts";
import type { SoakSample } from "./soak.ts";
import { median, type Trend, trendOf } from "./trend.ts";

const MIB = 2 ** 20;

/**
 * MiB by which a part may grow while it is watched. What is not noise is of a few KiB in `objects` and `native`; V8's own
 * code and feedback still come in the first hour. `mapped` and `resident` move by what allocators and the kernel keep.
 */
export const LEAK_MIB: Readonly<Record<keyof Memory, number>> = { objects: 2, native: 1, mapped: 8, resident: 16 };

/** How a part of memory went, in MiB. */
export interface Growth {
  readonly part: keyof Memory;
  readonly median: number;
  /** An hour. */
  readonly trend: Trend;
  /** An hour: a leak from here on is told. */
  readonly tellsFrom: number;
  /** The lower end of the trend's interval, times what was watched, is beyond {@link LEAK_MIB}. */
  readonly leaks: boolean;
}

/** @param samples the warm ones, at least 20; a part that was not measured is left out */
export function growthOf(samples: readonly Pick<SoakSample, keyof Memory | "seconds">[]): Growth[] {
  const hours = ((samples.at(-1)?.seconds ?? 0) - (samples[0]?.seconds ?? 0)) / 3600;
  const parts = (Object.keys(LEAK_MIB) as (keyof Memory)[]).filter((part) => !Number.isNaN(samples[0]?.[part]));
  return parts.map((part) => {
    const trend = trendOf(samples.map((sample) => [sample.seconds / 3600, sample[part] / MIB] as const));
    return {
      part,
      median: median(samples.map((sample) => sample[part] / MIB)),
      trend,
      tellsFrom: LEAK_MIB[part] / hours + (trend.high - trend.low) / 2,
      leaks: trend.low * hours > LEAK_MIB[part],
    };
  });
}
