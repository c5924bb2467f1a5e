/**
 * An hour of mixed ranking (STRATUM_SOAK_SECONDS: another time): memory of host and GPU, and the time of a list, do not
 * rise. The bounds say what would be told from noise; the measured trends are printed.
 */
import { expect, it } from "vitest";
import { soak } from "../support/soak.ts";
import { median, trendOf } from "../support/trend.ts";

const SECONDS = Number(process.env["STRATUM_SOAK_SECONDS"] ?? 3600);
/** Every ranker and every kernel has been made by then, and allocators have what they need. */
const WARM_UP = 0.2;
const MIB = 2 ** 20;
/** Growth in an hour, of the 95% interval's lower end, that is a leak. */
const LEAK_MIB = 8;
/** Of a list's time, as a share of its median: other loads of the machine are no fault of ours. */
const SLOWER = 0.1;

it(
  `${SECONDS} seconds of mixed ranking`,
  async () => {
    let told = 0;
    const { samples, lists, losses, different } = await soak(SECONDS, 100, ({ seconds, rss, live, msPerList }) => {
      if (seconds - told < 60) return;
      told = seconds;
      console.log(
        `${Math.round(seconds)} s: ${(rss / MIB).toFixed(1)} MiB resident, ${live} bytes on the GPU, ${msPerList.toFixed(2)} ms a list`,
      );
    });
    const warm = samples.filter(({ seconds }) => seconds > WARM_UP * SECONDS);
    const hours = (of: (sample: (typeof warm)[number]) => number, from = warm) =>
      trendOf(from.map((sample) => [sample.seconds / 3600, of(sample)] as const));
    const resident = hours(({ rss }) => rss / MIB);
    const calm = warm.filter(({ lost }) => !lost);
    const time = hours(({ msPerList }) => msPerList, calm);
    const typical = median(calm.map(({ msPerList }) => msPerList));
    const range = ({ slope, low, high }: typeof time, digits: number) =>
      `${slope.toFixed(digits)} an hour (95% ${low.toFixed(digits)} to ${high.toFixed(digits)})`;
    console.log(
      [
        `${lists} lists in ${samples.length} rounds, ${losses} losses of the device`,
        `resident ${median(warm.map(({ rss }) => rss / MIB)).toFixed(1)} MiB, trend ${range(resident, 2)}`,
        `on the GPU ${[...new Set(samples.map(({ live }) => live))].join(", ")} bytes in ${[...new Set(samples.map(({ buffers }) => buffers))].join(", ")} buffers after every round`,
        `a list ${typical.toFixed(2)} ms, trend ${range(time, 3)}`,
      ].join("\n"),
    );
    expect(different).toBe(0);
    expect(new Set(samples.map(({ live, buffers }) => `${live} ${buffers}`)).size).toBe(1);
    expect(resident.low).toBeLessThan(LEAK_MIB);
    expect(time.low * (SECONDS / 3600)).toBeLessThan(SLOWER * typical);
  },
  1000 * SECONDS + 300_000,
);
