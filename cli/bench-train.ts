/** `stratum bench train`: training steps on random features, against the matmul of the same run. */
import { cpus } from "node:os";
import type { Command } from "commander";
import { rates } from "../engine/bench-row.ts";
import { spreadOf } from "../engine/bench-timer.ts";
import { benchTrain } from "../scorer/bench.ts";
import { shortNumber } from "./bench-rows.ts";
import { addCommonOptions, type CommonOptions, positiveInteger, withEngine } from "./common.ts";
import { counted, formatBytes, formatCount, formatSeconds, formatTable } from "./format.ts";
import { byteCount } from "./numbers.ts";
import { addProfileOptions } from "./profile.ts";
import { EXIT, note, startProgress, writeStdout } from "./terminal.ts";

interface BenchTrainFlags extends CommonOptions {
  readonly dim: number;
  readonly lists: number;
  readonly candidates: number;
  readonly width: number;
  readonly heads: number;
  readonly batchLists: number;
  readonly steps: number;
  readonly runs: number;
  readonly gpuMemory: number;
}

/** Declares the command below `bench`. */
export function benchTrainCommand(bench: Command): void {
  const command = bench
    .command("train")
    .description("training steps on features of random numbers")
    .option("--dim <d>", "width of a state", positiveInteger, 4096)
    .option("--lists <n>", "lists of an epoch", positiveInteger, 10_000)
    .option("--candidates <n>", "candidates of a list", positiveInteger, 10)
    .option("--width <p>", "the scorer's width", positiveInteger, 64)
    .option("--heads <n>", "attention heads", positiveInteger, 4)
    .option("--batch-lists <n>", "lists a step", positiveInteger, 32)
    .option("--steps <n>", "steps of a run", positiveInteger, 20)
    .option("--runs <n>", "counted runs", positiveInteger, 5)
    .option("--gpu-memory <bytes>", "features up to so many bytes stay on the GPU", byteCount, 2 * 2 ** 30)
    .addHelpText("after", "\nExample:\n  $ stratum bench train --dim 2048 --lists 1000");
  addProfileOptions(addCommonOptions(command, "JSON on stdout")).action(async (flags: BenchTrainFlags) => {
    process.exitCode = await runBenchTrain(flags);
  });
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
}

async function runBenchTrain(flags: BenchTrainFlags): Promise<number> {
  const { dim, lists, candidates, width, heads, batchLists, steps, runs } = flags;
  const spec = { head: "listwise", dim, width, heads, ffn: 4 * width, tau: 0.2 } as const;
  return withEngine(flags, async (engine) => {
    note(`adapter ${engine.device.info.name} (${engine.device.info.source})`);
    const progress = startProgress(runs + 1, "runs");
    const result = await benchTrain(engine, {
      ...{ spec, lists, candidates, batchLists, steps, runs, dropout: 0.1, residentLimit: flags.gpuMemory },
      onPlan: (bytes, resident) =>
        progress.aside(() =>
          note(
            `plan    on the GPU ${formatBytes(bytes)} (${formatCount(bytes)} bytes), features ${resident ? "resident" : "streamed"}`,
          ),
        ),
      onRun: () => progress.add(1, 0),
    });
    progress.stop();
    const [stepMs, matmulMs] = [median(result.stepMs), median(result.matmulMs)];
    const rate = (flops: number, ms: number) => flops / ms / 1e6;
    const matmulRate = rate(result.matmulFlops, matmulMs);
    const ratio = matmulRate / rate(result.stepFlops, stepMs);
    const epoch = (stepMs * result.stepsPerEpoch) / 1000;
    const machine = `${cpus().length} x ${cpus()[0]?.model.trim() ?? "unknown CPU"}`;
    const row = (name: string, shape: string, flops: number, times: readonly number[]) => ({
      ...{ name, shape, dtype: "f32", variant: "default", runs: times.length, gflop: Number((flops / 1e9).toFixed(4)) },
      ...rates(spreadOf(times), { flops, bytes: 0 }, null),
    });
    const rows = [
      row("training step", `${batchLists} lists of ${candidates}, ${dim} to ${width}`, result.stepFlops, result.stepMs),
      row("matmul", `${batchLists * (1 + candidates)} x ${dim} x ${width}`, result.matmulFlops, result.matmulMs),
    ];
    if (flags.json) {
      const { plannedBytes: planned_bytes, liveBytes: live_bytes } = result;
      await writeStdout(
        `${JSON.stringify({ adapter: engine.device.info.name, machine, node: process.version, rows, epoch_seconds: epoch, time_over_matmul: ratio, planned_bytes, live_bytes })}\n`,
      );
      return EXIT.ok;
    }
    const table = formatTable(
      ["", "shape", "median ms", "GFLOP", "GFLOP/s", "runs"],
      rows.map((each) => [
        each.name,
        each.shape,
        each.median_ms.toFixed(1),
        each.gflop.toFixed(3),
        shortNumber(each.gflops),
        String(each.runs),
      ]),
      [2, 3, 4, 5],
    );
    note("");
    await writeStdout(
      `${table}\n\nan epoch of ${counted(lists, "list")} takes ${formatSeconds(epoch)}: ${ratio.toFixed(2)} times what its operations cost at the matmul's rate\nlive on the GPU ${formatCount(result.liveBytes)} bytes of ${formatCount(result.plannedBytes)} planned\non ${engine.device.info.name}, ${machine}, Node ${process.version}\n`,
    );
    return EXIT.ok;
  });
}
