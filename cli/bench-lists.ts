/** `stratum bench rank` and `bench depth`: one list, with and without each saving, and to every layer. */
import type { Command } from "commander";
import {
  benchDepth,
  benchRank,
  type ListSizes,
  type RankBenchOptions,
  sharedRows,
  unsharedRows,
} from "../engine/bench.ts";
import type { BenchRow } from "../engine/bench-row.ts";
import { lengthLimit } from "../engine/decoder.ts";
import type { Model } from "../engine/hidden-states.ts";
import { resolveLayer } from "../engine/layers.ts";
import { StratumError } from "../errors.ts";
import { addBenchModelOptions, type BenchModelFlags, heldType, withBenchModel } from "./bench-model.ts";
import { addReportOptions, betweenCeilings, finishReport, openReport, type ReportFlags } from "./bench-report.ts";
import { loadPlanned, positiveInteger, withEngine } from "./common.ts";
import { note, startProgress, stopping } from "./terminal.ts";
import { addTuneOption, type TuneFlags, tuneModel } from "./tuning.ts";

interface BenchListFlags extends BenchModelFlags, ReportFlags, Pick<TuneFlags, "tune"> {
  readonly layer: string;
  readonly prompt: number;
  readonly candidates: number;
  readonly tokens: number;
  readonly ceilings: boolean;
  readonly fullDepth?: boolean;
}

interface Verdict {
  readonly notes: readonly string[];
  readonly figures: Readonly<Record<string, unknown>>;
}

/** One of the two benchmarks. */
interface ListBench {
  readonly name: string;
  readonly run: (model: Model, options: RankBenchOptions) => Promise<BenchRow[]>;
  readonly judge: (rows: readonly BenchRow[], layer: number) => Verdict;
  /** Blocks that are loaded. */
  readonly depth: (layer: number, layers: number, flags: BenchListFlags) => number;
  /** Rows of a batch, and how many sets of working buffers stand side by side. */
  readonly budget: (sizes: ListSizes) => number;
  readonly workspaces: (layer: number) => number;
}

const rounded = (value: number) => Number(value.toFixed(4));

function judgeRank(rows: readonly BenchRow[]): Verdict {
  const [once, every, whole, full] = rows;
  const ratio = once.median_ms / every.median_ms;
  const factors = {
    prefix_sharing: rounded(every.median_ms / once.median_ms),
    last_row_pruning: rounded(whole.median_ms / every.median_ms),
    ...(full === undefined ? {} : { truncation: rounded(full.median_ms / whole.median_ms) }),
    together: rounded((full ?? whole).median_ms / once.median_ms),
  };
  const told = Object.entries(factors).map(([name, factor]) => `${name.replaceAll("_", " ")} ${factor.toFixed(2)}`);
  const rowsRatio = (once.rows ?? 0) / (every.rows ?? 1);
  return {
    notes: [
      `the prompt once costs ${ratio.toFixed(3)} of the prompt for every candidate (rows: ${rowsRatio.toFixed(3)})`,
      `factors: ${told.join(", ")}`,
    ],
    figures: { ratio: rounded(ratio), rows_ratio: rounded(rowsRatio), factors },
  };
}

function judgeDepth(rows: readonly BenchRow[], layer: number): Verdict {
  const last = rows[layer].median_ms;
  const shares = rows.slice(1).map((row, i) => row.median_ms / ((1.1 * (i + 1) * last) / layer + rows[0].median_ms));
  const worst = Math.max(...shares);
  return {
    notes: [
      `time to layer k over (1.1 k/${layer} of the time to layer ${layer} + the time to layer 0): at most ${worst.toFixed(3)}`,
    ],
    figures: { worst_share: rounded(worst) },
  };
}

const RANK: ListBench = {
  name: "bench rank",
  run: benchRank,
  judge: judgeRank,
  depth: (layer, layers, { fullDepth }) => (fullDepth === false ? layer : layers),
  budget: unsharedRows,
  workspaces: () => 3,
};

const DEPTH: ListBench = {
  name: "bench depth",
  run: (model, options) => {
    const layers = Array.from({ length: options.layer + 1 }, (_, k) => k);
    return benchDepth(model, layers, options);
  },
  judge: judgeDepth,
  depth: (layer) => layer,
  budget: sharedRows,
  workspaces: (layer) => layer + 1,
};

/** Declares `bench rank`. */
export function benchRankCommand(bench: Command): void {
  declare(
    bench
      .command("rank")
      .description("one list as it is ranked, and without each saving: shared prompt, pruned last block, truncation")
      .option("--no-full-depth", "leave out the run through every block, and do not load them"),
    RANK,
    "25%",
  );
}

/** Declares `bench depth`. */
export function benchDepthCommand(bench: Command): void {
  declare(bench.command("depth").description("one list to every layer, 0 to --layer"), DEPTH, "100%");
}

function declare(command: Command, bench: ListBench, layer: string): void {
  command
    .option("-l, --layer <k>", "layer: a number, or a percentage of the blocks", layer)
    .option("--prompt <n>", "tokens of the prompt", positiveInteger, 256)
    .option("--candidates <n>", "candidates of the list", positiveInteger, 8)
    .option("--tokens <n>", "tokens of each candidate", positiveInteger, 32)
    .option("--no-ceilings", "do not measure the adapter's ceilings first (no shares then)")
    .addHelpText(
      "after",
      `\nExample:\n  $ stratum ${bench.name} --config smollm2-135m --random-weights --prompt 256 --candidates 8 --tokens 64`,
    );
  addBenchModelOptions(addTuneOption(command));
  addReportOptions(command, 7, 300).action(async (flags: BenchListFlags) => {
    process.exitCode = await runBenchList(flags, bench);
  });
}

async function runBenchList(flags: BenchListFlags, bench: ListBench): Promise<number> {
  const targets = await openReport(flags);
  return withBenchModel(flags, async (files) => {
    const { config } = files.spec;
    const layer = resolveLayer(flags.layer, config.layers);
    const { prompt, candidates, tokens, runs, seed, maxSeconds } = flags;
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
    return withEngine(flags, async (opened) => {
      const depth = bench.depth(layer, config.layers, flags);
      const { engine, kernels } = await tuneModel(opened, files, depth, flags);
      await using model = await loadPlanned(
        engine,
        files,
        { layers: [depth], output: "scores", batchTokens: bench.budget(sizes) },
        { workspaces: bench.workspaces(layer) },
      );
      const dtype = await heldType(files);
      const { result: rows, ceilings } = await betweenCeilings(engine, flags.ceilings, async () => {
        const progress = startProgress(runs + 1, "rounds");
        const signal = stopping()?.signal;
        const onRound = () => progress.add(1, 0);
        const onSide = (name: string, shape: string) => progress.aside(() => note(`timing  ${name}: ${shape}`));
        try {
          return await bench.run(model, { ...sizes, layer, runs, seed, maxSeconds, dtype, signal, onRound, onSide });
        } finally {
          progress.stop();
        }
      });
      const judged = bench.judge(rows, layer);
      const figures = { ...judged.figures, kernels: kernels.id };
      const report = { command: bench.name, model: files.name, ceilings, rows, ...judged, figures };
      return finishReport(engine, report, flags, targets);
    });
  });
}
