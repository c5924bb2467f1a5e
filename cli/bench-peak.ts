/** `stratum bench peak`: what the adapter can do at most, measured. */
import type { Command } from "commander";
import { measurePeak } from "../engine/bench-peak.ts";
import { addReportOptions, finishReport, openReport, type ReportFlags } from "./bench-report.ts";
import { withEngine } from "./common.ts";
import { note, stopping } from "./terminal.ts";

/** Declares the command below `bench`. */
export function benchPeakCommand(bench: Command): void {
  const command = bench
    .command("peak")
    .description("the adapter's ceilings: multiply-adds in registers, memory, loads")
    .addHelpText("after", "\nExample:\n  $ stratum bench peak --adapter embedded");
  addReportOptions(command, 5, 60).action(async (flags: ReportFlags) => {
    process.exitCode = await runBenchPeak(flags);
  });
}

async function runBenchPeak(flags: ReportFlags): Promise<number> {
  const targets = await openReport(flags);
  return withEngine(flags, async (engine) => {
    note(`adapter ${engine.device.info.name} (${engine.device.info.source})`);
    const peak = await measurePeak(engine, {
      runs: flags.runs,
      maxSeconds: flags.maxSeconds,
      signal: stopping()?.signal,
      onStep: (what, done, total) => note(`${done + 1}/${total} ${what}`),
    });
    const { rows, gflops, f16Gflops, readGbps, copyGbps, storageGloads, vec4Gloads, textureGloads } = peak;
    const figures = {
      peak: {
        gflops,
        f16_gflops: f16Gflops,
        read_gbps: readGbps,
        copy_gbps: copyGbps,
        storage_gloads: storageGloads,
        vec4_gloads: vec4Gloads,
        texture_gloads: textureGloads,
      },
    };
    return finishReport(engine, { command: "bench peak", ceilings: peak, rows, figures }, flags, targets);
  });
}
