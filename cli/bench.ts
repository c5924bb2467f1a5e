/** `stratum bench`: timed runs, interleaved, medians. */

import { cpus } from "node:os";
import type { Command } from "commander";
import {
  type BenchRow,
  benchDepth,
  benchRank,
  type ListSizes,
  type RankBenchOptions,
  sharedRows,
  unsharedRows,
} from "../engine/bench.ts";
import { lengthLimit, type WeightForm } from "../engine/decoder.ts";
import type { Model } from "../engine/hidden-states.ts";
import { resolveLayer } from "../engine/layers.ts";
import { StratumError } from "../errors.ts";
import { benchTrainCommand } from "./bench-train.ts";
import {
  addCommonOptions,
  type CommonOptions,
  loadPlanned,
  MODEL_HELP,
  modelDirectory,
  positiveInteger,
  weightsOption,
  withEngine,
  withModelFiles,
} from "./common.ts";
import { formatTable } from "./format.ts";
import { addProfileOptions } from "./profile.ts";
import { EXIT, note, startProgress, writeStdout } from "./terminal.ts";

interface BenchFlags extends CommonOptions {
  readonly weights?: WeightForm;
  readonly model?: string;
  readonly layer: string;
  readonly prompt: number;
  readonly candidates: number;
  readonly tokens: number;
  readonly runs: number;
  readonly seed: number;
}

const EXAMPLES = `
Examples:
  $ stratum bench rank --prompt 256 --candidates 8 --tokens 32
  $ stratum bench depth --json`;

interface Verdict {
  readonly text: string;
  readonly figures: Readonly<Record<string, number>>;
}

/** What a benchmark holds: rows of a batch, and how many sets of working buffers side by side. */
interface Held {
  readonly budget: (sizes: ListSizes) => number;
  readonly workspaces: (layer: number) => number;
}

/** Declares `bench rank`, `bench depth` and `bench train`. */
export function benchCommand(program: Command): void {
  const bench = program.command("bench").description("time the engine on this adapter").addHelpText("after", EXAMPLES);
  const declare = (
    name: string,
    description: string,
    layer: string,
    run: (model: Model, layer: number, options: Omit<RankBenchOptions, "layer">) => Promise<BenchRow[]>,
    judge: (rows: readonly BenchRow[], layer: number) => Verdict,
    held: Held,
  ) => {
    const command = bench
      .command(name)
      .description(description)
      .option("-m, --model <name>", MODEL_HELP)
      .addOption(weightsOption())
      .option("-l, --layer <k>", "layer: a number, or a percentage of the blocks", layer)
      .option("--prompt <n>", "tokens of the prompt", positiveInteger, 256)
      .option("--candidates <n>", "candidates of the list", positiveInteger, 8)
      .option("--tokens <n>", "tokens of each candidate", positiveInteger, 32)
      .option("--runs <n>", "counted runs of each side", positiveInteger, 7)
      .option("--seed <n>", "seed of the random tokens", positiveInteger, 1)
      .addHelpText("after", EXAMPLES);
    addProfileOptions(addCommonOptions(command, "JSON on stdout")).action(async (flags: BenchFlags) => {
      process.exitCode = await runBench(flags, run, judge, held);
    });
  };
  declare(
    "rank",
    "one list: the prompt computed once against once for every candidate",
    "25%",
    (model, layer, options) => benchRank(model, { ...options, layer }),
    ([once, every]) => {
      const ratio = once.median_ms / every.median_ms;
      return {
        text: `the prompt once costs ${ratio.toFixed(3)} of the prompt for every candidate (rows: ${(once.rows / every.rows).toFixed(3)})`,
        figures: { ratio: Number(ratio.toFixed(4)), rows_ratio: Number((once.rows / every.rows).toFixed(4)) },
      };
    },
    { budget: unsharedRows, workspaces: () => 1 },
  );
  declare(
    "depth",
    "one list to every layer, 0 to --layer",
    "100%",
    (model, layer, options) =>
      benchDepth(
        model,
        Array.from({ length: layer + 1 }, (_, k) => k),
        options,
      ),
    (rows, layer) => {
      const last = rows[layer].median_ms;
      const shares = rows
        .slice(1)
        .map((row, i) => row.median_ms / ((1.1 * (i + 1) * last) / layer + rows[0].median_ms));
      const worst = Math.max(...shares);
      return {
        text: `time to layer k over (1.1 k/${layer} of the time to layer ${layer} + the time to layer 0): at most ${worst.toFixed(3)}`,
        figures: { worst_share: Number(worst.toFixed(4)) },
      };
    },
    { budget: sharedRows, workspaces: (layer) => layer + 1 },
  );
  benchTrainCommand(bench);
}

async function runBench(
  flags: BenchFlags,
  run: (model: Model, layer: number, options: Omit<RankBenchOptions, "layer">) => Promise<BenchRow[]>,
  judge: (rows: readonly BenchRow[], layer: number) => Verdict,
  held: Held,
): Promise<number> {
  return withModelFiles(
    modelDirectory(flags.model),
    async (files) => {
      const { config } = files.spec;
      const layer = resolveLayer(flags.layer, config.layers);
      const { prompt, candidates, tokens, runs, seed } = flags;
      const sizes = { prompt, candidates, tokens };
      if (layer === 0)
        throw new StratumError("usage/bench", "layer 0 is the embeddings: nothing runs", "give --layer at least 1");
      if (prompt + tokens > config.maxPositions) {
        throw new StratumError(
          "usage/bench",
          `${prompt} + ${tokens} tokens; ${lengthLimit(config)}`,
          "lower --prompt or --tokens",
        );
      }
      return withEngine(flags, async (engine) => {
        const model = await loadPlanned(
          engine,
          files,
          { layers: [layer], output: "scores", batchTokens: held.budget(sizes) },
          { workspaces: held.workspaces(layer) },
        );
        const progress = startProgress(runs + 1, "rounds");
        let rows: BenchRow[];
        try {
          rows = await run(model, layer, { ...sizes, runs, seed, onRound: () => progress.add(1, 0) });
        } finally {
          progress.stop();
        }
        const verdict = judge(rows, layer);
        const machine = `${cpus().length} x ${cpus()[0]?.model.trim() ?? "unknown CPU"}`;
        if (flags.json) {
          await writeStdout(
            `${JSON.stringify({ adapter: engine.device.info.name, machine, node: process.version, model: files.name, rows, ...verdict.figures })}\n`,
          );
        } else {
          note("");
          const table = formatTable(
            ["", "shape", "rows", "median ms", "iqr ms", "runs"],
            rows.map((row) => [
              row.name,
              row.shape,
              String(row.rows),
              row.median_ms.toFixed(1),
              row.iqr_ms.toFixed(1),
              String(row.runs),
            ]),
            [2, 3, 4, 5],
          );
          await writeStdout(
            `${table}\n\n${verdict.text}\non ${engine.device.info.name}, ${machine}, Node ${process.version}\n`,
          );
        }
        return EXIT.ok;
      });
    },
    flags,
  );
}
