/** `stratum bench forward`: the stack of blocks on one batch. */
import type { Command } from "commander";
import type { LinearFit } from "../engine/bench-fit.ts";
import { benchForward, benchForwardFits } from "../engine/bench-forward.ts";
import type { BenchRow } from "../engine/bench-row.ts";
import { lengthLimit } from "../engine/decoder.ts";
import { resolveLayer } from "../engine/layers.ts";
import { StratumError } from "../errors.ts";
import { addBenchModelOptions, type BenchModelFlags, heldType, withBenchModel } from "./bench-model.ts";
import { addReportOptions, betweenCeilings, finishReport, openReport, type ReportFlags } from "./bench-report.ts";
import { loadPlanned, positiveInteger, withEngine } from "./common.ts";
import { note, stopping } from "./terminal.ts";
import { addTuneOption, type TuneFlags, tuneModel } from "./tuning.ts";

interface BenchForwardFlags extends BenchModelFlags, ReportFlags, Pick<TuneFlags, "tune"> {
  readonly layer: string;
  readonly batch: number;
  readonly tokens: number;
  readonly fit?: boolean;
  readonly ceilings: boolean;
}

/** Declares the command below `bench`. */
export function benchForwardCommand(bench: Command): void {
  const command = bench
    .command("forward")
    .description("the stack of blocks on one batch, from token ids to states on the host")
    .option("-l, --layer <k>", "layer: a number, or a percentage of the blocks", "25%")
    .option("--batch <n>", "sequences of the batch", positiveInteger, 8)
    .option("--tokens <n>", "tokens of each", positiveInteger, 128)
    .option("--fit", "also time other depths and batches, fit lines, and time attention alone")
    .option("--no-ceilings", "do not measure the adapter's ceilings first (no shares then)")
    .addHelpText(
      "after",
      "\nExample:\n  $ stratum bench forward --config smollm2-135m --random-weights --dtype bf16 --batch 8 --tokens 128 --layer 8",
    );
  addBenchModelOptions(addTuneOption(command));
  addReportOptions(command, 5, 120).action(async (flags: BenchForwardFlags) => {
    process.exitCode = await runBenchForward(flags);
  });
}

async function runBenchForward(flags: BenchForwardFlags): Promise<number> {
  const targets = await openReport(flags);
  const { batch, tokens, fit = false } = flags;
  return withBenchModel(flags, async (files) => {
    const { config } = files.spec;
    const layer = resolveLayer(flags.layer, config.layers);
    const least = fit ? 2 : 1;
    if (layer < least) {
      throw new StratumError(
        "usage/bench",
        `layer ${layer} is too shallow to be timed`,
        `give --layer at least ${least}`,
      );
    }
    if (tokens > config.maxPositions) {
      throw new StratumError("usage/bench", `${tokens} tokens; ${lengthLimit(config)}`, "lower --tokens");
    }
    return withEngine(flags, async (opened) => {
      const { engine, kernels } = await tuneModel(opened, files, layer, flags);
      const run = { layers: [layer], output: "pooled", batchTokens: batch * Math.max(8, tokens) } as const;
      await using model = await loadPlanned(engine, files, run);
      const options = {
        ...{ batch, tokens, layer, runs: flags.runs, seed: flags.seed, maxSeconds: flags.maxSeconds },
        dtype: await heldType(files),
        signal: stopping()?.signal,
      };
      const { result, ceilings } = await betweenCeilings(engine, flags.ceilings, async () => {
        note(`timing  ${batch} x ${tokens} tokens to layer ${layer}${fit ? ", and other depths and batches" : ""}`);
        return fit
          ? { fits: await benchForwardFits(model, options), rows: [] }
          : { fits: null, rows: [await benchForward(model, options)] };
      });
      const { fits } = result;
      const rows: readonly BenchRow[] = fits?.rows ?? result.rows;
      const line = (what: string, { intercept, slope, r2 }: LinearFit) =>
        `ms = ${intercept.toFixed(2)} + ${slope.toPrecision(4)} x ${what}, r^2 ${r2.toFixed(5)}`;
      const figures = fits && {
        fits: {
          layers: fits.layers,
          tokens: fits.tokens,
          attention_share_512: fits.attentionShare512,
          attention_long_factor: fits.attentionLongFactor,
        },
      };
      const notes =
        fits === null
          ? rows.map(({ tokens_per_s }) => `${tokens_per_s} tokens/s`)
          : [
              line("layers", fits.layers),
              line("packed tokens", fits.tokens),
              `attention takes ${(100 * fits.attentionShare512).toFixed(1)}% of the stack at 1 x 512 tokens`,
              `attention at 1 x 2048 tokens costs ${fits.attentionLongFactor.toFixed(2)} times as much an operation as at 8 x 128`,
            ];
      return finishReport(
        engine,
        {
          command: "bench forward",
          model: files.name,
          ceilings,
          rows,
          notes,
          figures: { ...figures, kernels: kernels.id },
        },
        flags,
        targets,
      );
    });
  });
}
