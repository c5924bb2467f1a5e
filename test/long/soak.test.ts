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
/** Growth from the warm-up to the end, by the lower end of the 95% interval, that is a leak. */
const LEAK_MIB = 8;
/** Of what a list computes, as a share of its median. The time that passes is told, too, but hangs on the machine's other work. */
const SLOWER = 0.1;

it(
  `${SECONDS} seconds of mixed ranking`,
  async () => {
    let told = 0;
    // A lost device leaves some memory with its driver, and is no part of an hour that nothing disturbs.
    const never = () => false;
    const { samples, lists, different } = await soak(SECONDS, never, ({ seconds, rss, live, msPerList }) => {
      if (seconds - told < 60) return;
      told = seconds;
      console.log(
        `${Math.round(seconds)} s: ${(rss / MIB).toFixed(1)} MiB resident, ${live} bytes on the GPU, ${msPerList.toFixed(2)} ms a list`,
      );
    });
    const warm = samples.filter(({ seconds }) => seconds > WARM_UP * SECONDS);
    const hours = (of: (sample: (typeof warm)[number]) => number) =>
      trendOf(warm.map((sample) => [sample.seconds / 3600, of(sample)] as const));
    const resident = hours(({ rss }) => rss / MIB);
    const time = hours(({ msPerList }) => msPerList);
    const cpu = hours(({ cpuMsPerList }) => cpuMsPerList);
    const typical = median(warm.map(({ cpuMsPerList }) => cpuMsPerList));
    const range = ({ slope, low, high }: typeof time, digits: number) =>
      `${slope.toFixed(digits)} an hour (95% ${low.toFixed(digits)} to ${high.toFixed(digits)})`;
    console.log(
      [
        `${lists} lists in ${samples.length} rounds`,
        `resident ${median(warm.map(({ rss }) => rss / MIB)).toFixed(1)} MiB, trend ${range(resident, 2)}`,
        `of it JavaScript holds ${median(warm.map(({ held }) => held / MIB)).toFixed(1)} MiB, trend ${range(
          hours(({ held }) => held / MIB),
          2,
        )}`,
        `on the GPU ${[...new Set(samples.map(({ live }) => live))].join(", ")} bytes in ${[...new Set(samples.map(({ buffers }) => buffers))].join(", ")} buffers after every round`,
        `a list computes ${typical.toFixed(2)} ms, trend ${range(cpu, 3)}`,
        `and takes ${median(warm.map(({ msPerList }) => msPerList)).toFixed(2)} ms, trend ${range(time, 3)}`,
      ].join("\n"),
    );
    expect(different).toBe(0);
    expect(new Set(samples.map(({ live, buffers }) => `${live} ${buffers}`)).size).toBe(1);
    const watched = (SECONDS * (1 - WARM_UP)) / 3600;
    expect(resident.low * watched).toBeLessThan(LEAK_MIB);
    expect(cpu.low * watched).toBeLessThan(SLOWER * typical);
  },
  1000 * SECONDS + 300_000,
);
