/** `stratum bench tune`: measures the matmul variants of a model's shapes, and keeps the winners for every command. */
import type { Command } from "commander";
import { resolveLayer } from "../engine/layers.ts";
import { tileKey, tileText } from "../engine/tiles.ts";
import { TUNE_BUDGET_MS } from "../engine/tuner.ts";
import { tuningFile } from "../engine/tuner-cache.ts";
import { addBenchModelOptions, type BenchModelFlags, withBenchModel } from "./bench-model.ts";
import { finishReport } from "./bench-report.ts";
import { addCommonOptions, withEngine } from "./common.ts";
import { number } from "./numbers.ts";
import { tuneModel } from "./tuning.ts";

interface BenchTuneFlags extends BenchModelFlags {
  readonly layer: string;
  readonly maxSeconds: number;
}

const HELP = `
Examples:
  $ stratum bench tune --model path/to/model --max-seconds 60
  $ stratum bench tune --config smollm2-135m --random-weights --layer 1

The same as --tune force, without the work behind it. The winners are kept for this adapter, driver and version of Dawn;
every command takes them from there (--tune auto, the default). --json: what was timed, chosen and dropped.`;

/** Declares the command below `bench`. */
export function benchTuneCommand(bench: Command): void {
  const command = bench
    .command("tune")
    .description("measure the matmul variants on a model's shapes and keep the fastest for every command")
    .option("-l, --layer <k>", "blocks down to this layer: a number, or a percentage", "100%")
    .option(
      "--max-seconds <s>",
      "try no variant after this time; what was not reached keeps the default",
      number(1, 86_400, "a number of seconds from 1"),
      TUNE_BUDGET_MS / 1000,
    )
    .addHelpText("after", HELP);
  addCommonOptions(addBenchModelOptions(command), "JSON on stdout").action(async (flags: BenchTuneFlags) => {
    process.exitCode = await runBenchTune(flags);
  });
}

async function runBenchTune(flags: BenchTuneFlags): Promise<number> {
  return withBenchModel(flags, (files) =>
    withEngine(flags, async (engine) => {
      const depth = resolveLayer(flags.layer, files.spec.config.layers);
      const { verbose = false, maxSeconds } = flags;
      const { tuning, kernels } = await tuneModel(engine, files, depth, { tune: "force", verbose, maxSeconds });
      const shapes = tuning?.shapes ?? [];
      const chosen = Object.fromEntries(
        shapes.map(({ shape, tile, ratio }) => [
          tileKey(shape),
          { variant: tile === null ? null : tileText(tile), ratio: ratio === null ? null : Number(ratio.toFixed(3)) },
        ]),
      );
      const notes = shapes.map(({ shape, tile, ratio }) => {
        if (tile === null) return `${tileKey(shape)}: the default, for want of time`;
        const gain = ratio === null ? "the default is wrong" : `${ratio.toFixed(2)} of the default's time`;
        return `${tileKey(shape)}: ${tileText(tile)}, ${ratio === 1 ? "the default" : gain}`;
      });
      const { rows = [], wrong = [], left = 0 } = tuning ?? {};
      const figures = { chosen, wrong, left, kernels, file: tuningFile() };
      const report = { command: "bench tune", model: files.name, ceilings: null, rows, notes, figures };
      // A dropped variant is no failure: it is not used.
      return finishReport(engine, report, { ...flags, runs: 0 }, { earlier: null });
    }),
  );
}
