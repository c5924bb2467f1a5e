/**
 * An hour of mixed ranking (STRATUM_SOAK_SECONDS: another time): memory of host and GPU, and the time of a list, do not
 * rise. How much a run tells from noise depends on how long it is, and is printed.
 */
import { expect, it } from "vitest";
import { growthOf } from "../support/leaks.ts";
import { soak } from "../support/soak.ts";
import { median, type Trend, trendOf } from "../support/trend.ts";

const SECONDS = Number(process.env["STRATUM_SOAK_SECONDS"] ?? 3600);
/** Every ranker and every kernel has been made by then, and allocators have what they need. */
const WARM_UP = 0.2;
const MIB = 2 ** 20;
/** Of what a list computes, as a share of its median. The time that passes is told, too, but hangs on the machine's other work. */
const SLOWER = 0.1;

const anHour = ({ slope, low, high }: Trend, digits: number) =>
  `${slope.toFixed(digits)} an hour (95% ${low.toFixed(digits)} to ${high.toFixed(digits)})`;

it(
  `${SECONDS} seconds of mixed ranking`,
  async () => {
    let told = 0;
    const { samples, lists, rounds, different, live, gpuObjects } = await soak(SECONDS, {
      // The device is never lost: that leaves some memory with its driver, and is no part of an undisturbed hour.
      onSample({ seconds, resident, objects, native, msPerList }) {
        if (seconds - told < 60) return;
        told = seconds;
        const [all, js, malloc] = [resident, objects, native].map((bytes) => (bytes / MIB).toFixed(1));
        console.log(
          `${Math.round(seconds)} s: ${all} MiB resident, ${js} of JavaScript, ${malloc} of malloc, ${msPerList.toFixed(2)} ms a list`,
        );
      },
    });
    const warm = samples.filter(({ seconds }) => seconds > WARM_UP * SECONDS);
    const hours = (of: (sample: (typeof warm)[number]) => number) =>
      trendOf(warm.map((sample) => [sample.seconds / 3600, of(sample)] as const));
    const growth = growthOf(warm);
    const cpu = hours(({ cpuMsPerList }) => cpuMsPerList);
    const typical = median(warm.map(({ cpuMsPerList }) => cpuMsPerList));
    console.log(
      [
        `${lists} lists in ${rounds} rounds, ${samples.length} samples`,
        ...growth.map(
          ({ part, median: mib, trend, tellsFrom }) =>
            `${part} ${mib.toFixed(1)} MiB, ${anHour(trend, 2)}; a leak is told from ${tellsFrom.toFixed(1)} an hour`,
        ),
        `on the GPU ${live.join(", ")} after every round; ${gpuObjects.join(", then ")}`,
        `a list computes ${typical.toFixed(2)} ms, ${anHour(cpu, 3)}`,
        `and takes ${median(warm.map(({ msPerList }) => msPerList)).toFixed(2)} ms, ${anHour(
          hours(({ msPerList }) => msPerList),
          3,
        )}`,
      ].join("\n"),
    );
    expect(different).toBe(0);
    expect(live).toHaveLength(1);
    expect(gpuObjects[1]).toBe(gpuObjects[0]);
    expect(growth.filter(({ leaks }) => leaks)).toEqual([]);
    expect((cpu.low * (1 - WARM_UP) * SECONDS) / 3600).toBeLessThan(SLOWER * typical);
  },
  1000 * SECONDS + 300_000,
);
