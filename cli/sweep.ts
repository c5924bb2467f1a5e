/** `stratum sweep`: which layer knows it, by every method, over several splits. */
import { type Command, Option } from "commander";
import { resolveLayers } from "../engine/layers.ts";
import type { Engine } from "../engine/model.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import { randomWeights } from "../engine/random-weights.ts";
import { StratumError } from "../errors.ts";
import type { FeatureSource } from "../scorer/feature-source.ts";
import { instructionKey } from "../scorer/instructions.ts";
import { PRESETS, type PresetName, trainOptionsOf } from "../scorer/presets.ts";
import { compareCells, type SweepCell, type SweepSummary, summariseSweep, sweep } from "../scorer/sweep.ts";
import { addRunOptions, modelDirectory, positiveInteger, type RunFlags, withEngine, withModelFiles } from "./common.ts";
import { withFeatures } from "./features.ts";
import { formatTable } from "./format.ts";
import { share } from "./numbers.ts";
import { EXIT, note, type StopSignal, startProgress, stopSignal, writeStdout } from "./terminal.ts";

interface SweepFlags extends RunFlags {
  readonly layers: string;
  readonly seeds: number;
  readonly test: number;
  readonly preset: readonly PresetName[];
  readonly control?: boolean;
  readonly cache: boolean;
}

const HELP = `
Examples:
  $ stratum sweep lists.jsonl --model path/to/model --seeds 5
  $ stratum sweep lists.jsonl --model path/to/model --layers 25%,50%,100% --pooling mean --preset srr reference

Every seed splits the lists by instruction, trains every method on one part and measures it on the rest: top-1 in per
cent, the mean over seeds. --json: one line a method and layer, {"method", "layer", "top1", "low", "high", "deviation",
"seeds"}, then {"differences": [...]}: paired differences of the trained scorers' best layers to the linear probe's.
Layers, splits and seeds are the same for all methods; the best layer of a row is chosen on the lists that it is
measured on, so it flatters every row alike.`;

/** Declares the command. */
export function sweepCommand(program: Command): void {
  const command = program
    .command("sweep")
    .description("measure every method at every layer, over several splits")
    .argument("<lists>", "JSONL file of labelled lists")
    .option("--layers <list>", "all, or layers separated by commas", "all")
    .option("--seeds <n>", "splits: the seeds 0 .. n - 1", positiveInteger, 3)
    .option("--test <share>", "lists that are measured, by instruction", share, 0.3)
    .addOption(new Option("--preset <names...>", "scorers to train").choices(Object.keys(PRESETS)).default(["srr"]))
    .option("--control", "also a linear probe of the same architecture with random weights")
    .option("--no-cache", "compute features anew and keep none")
    .addHelpText("after", HELP);
  addRunOptions(command, "JSON lines on stdout instead of the table").action(
    async (lists: string, flags: SweepFlags) => {
      process.exitCode = await runSweep(lists, flags);
    },
  );
}

/** Features of every layer, lent to `use`; with `control` those of random weights beside them. */
async function withStates<T>(
  engine: Engine,
  files: ModelFiles,
  path: string,
  layers: readonly number[],
  flags: SweepFlags,
  stop: StopSignal,
  use: (
    found: Parameters<Parameters<typeof withFeatures<T>>[6]>[0],
    control: readonly FeatureSource[] | undefined,
  ) => Promise<T>,
): Promise<T> {
  const { pooling, system, cache } = flags;
  const request = { layers, pooling, system, cache };
  return withFeatures(engine, files, path, request, flags, stop, async (found) => {
    if (!flags.control) return use(found, undefined);
    note("control the same architecture with random weights");
    return withFeatures(engine, randomWeights(files, 0), path, { ...request, report: false }, flags, stop, (control) =>
      use(
        found,
        control.layers.map(({ source }) => source),
      ),
    );
  });
}

async function runSweep(path: string, flags: SweepFlags): Promise<number> {
  const stop = stopSignal();
  return withModelFiles(
    modelDirectory(flags.model),
    async (files) => {
      const layers = resolveLayers(flags.layers, files.spec.config.layers);
      return withEngine(flags, (engine) =>
        withStates(engine, files, path, layers, flags, stop, async ({ lists, layers: found, leftOut }, control) => {
          const keys = lists.map(instructionKey);
          const seeds = Array.from({ length: flags.seeds }, (_, seed) => seed);
          const scorers = Object.fromEntries(
            flags.preset.map((name) => [
              `scorer (${name})`,
              trainOptionsOf(PRESETS[name], files.spec.config.hiddenSize),
            ]),
          );
          const progress = startProgress(seeds.length * (found.length + 1), "cells");
          const cells: SweepCell[] = [];
          try {
            const rows = found.map(({ layer, source }, i) => ({ layer, source, control: control?.[i] }));
            const options = { seeds, test: flags.test, scorers, signal: stop.signal, onCell: () => progress.add(1, 0) };
            for await (const cell of sweep(
              engine,
              rows,
              lists.map(({ candidates }) => ({ candidates })),
              keys,
              options,
            ))
              cells.push(cell);
          } finally {
            progress.stop();
          }
          const stopped = stop.exitCode();
          if (stopped !== undefined) return stopped;
          if (cells.length === 0)
            throw new StratumError("list/no-contrast", "no list can be measured", "give labelled lists");
          await print(cells, keys, layers, flags);
          return leftOut.length > 0 ? EXIT.someFailed : EXIT.ok;
        }),
      );
    },
    flags,
  );
}

const percent = (value: number) => (100 * value).toFixed(1);

async function print(
  cells: readonly SweepCell[],
  keys: readonly string[],
  layers: readonly number[],
  flags: SweepFlags,
): Promise<void> {
  const summaries = summariseSweep(cells, keys);
  const differences = bestDifferences(cells, summaries, keys);
  if (flags.json) {
    for (const { method, layer, top1, deviation, seeds } of summaries)
      await writeStdout(
        `${JSON.stringify({ method, layer, top1: top1?.mean ?? null, low: top1?.low ?? null, high: top1?.high ?? null, deviation, seeds: seeds.length })}\n`,
      );
    await writeStdout(`${JSON.stringify({ differences })}\n`);
    return;
  }
  const methods = [...new Set(summaries.map(({ method }) => method))];
  const of = (method: string, layer: number | null) =>
    summaries.find((each) => each.method === method && each.layer === layer);
  const onTexts = methods.filter((method) => of(method, null) !== undefined);
  await writeStdout(
    `${formatTable(
      ["text only", "top-1", "95% interval"],
      onTexts.map((method) => {
        const top1 = of(method, null)?.top1;
        return [method, top1 ? percent(top1.mean) : "-", top1 ? `${percent(top1.low)} to ${percent(top1.high)}` : "-"];
      }),
      [1],
    )}\n\n`,
  );
  const rows = methods
    .filter((method) => !onTexts.includes(method))
    .map((method) => [
      method,
      ...layers.map((layer) => {
        const top1 = of(method, layer)?.top1;
        return top1 ? percent(top1.mean) : "-";
      }),
    ]);
  await writeStdout(
    `${formatTable(
      [`top-1, layer`, ...layers.map(String)],
      rows,
      layers.map((_, i) => i + 1),
    )}\n`,
  );
  for (const { method, layer, to, toLayer, difference } of differences) {
    if (difference === null) continue;
    const verdict = difference.low > 0 ? "above" : difference.high < 0 ? "below" : "no significant difference";
    await writeStdout(
      `\n${method}${layer === null ? "" : ` at layer ${layer}`} minus ${to} at layer ${toLayer}: ${percent(difference.mean)} (95% ${percent(difference.low)} to ${percent(difference.high)}): ${verdict}`,
    );
  }
  await writeStdout("\n");
}

/** Every scorer's best layer against the linear probe's best. */
function bestDifferences(cells: readonly SweepCell[], summaries: readonly SweepSummary[], keys: readonly string[]) {
  const best = (method: string) =>
    summaries
      .filter((each) => each.method === method)
      .reduce<SweepSummary | undefined>(
        (top, each) => ((each.top1?.mean ?? 0) > (top?.top1?.mean ?? 0) ? each : top),
        undefined,
      );
  const cellsOf = (summary: SweepSummary) =>
    cells.filter(({ method, layer }) => method === summary.method && layer === summary.layer);
  const to = best("linear probe");
  if (to === undefined) return [];
  return [...new Set(summaries.map(({ method }) => method))]
    .filter((method) => /^scorer \([^)]*\)$/.test(method) || method === "bag of words")
    .flatMap((method) => {
      const own = best(method);
      if (own === undefined) return [];
      const difference = compareCells(cellsOf(own), cellsOf(to), keys);
      return [{ method, layer: own.layer, to: to.method, toLayer: to.layer, difference }];
    });
}
