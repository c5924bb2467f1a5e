/** `stratum sweep`: which layer knows it, by every method, over several splits; at what cost. */
import { type Command, InvalidArgumentError, Option } from "commander";
import { resolveLayer, resolveLayers } from "../engine/layers.ts";
import type { Engine } from "../engine/model.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import { StratumError } from "../errors.ts";
import type { Pooling } from "../scorer/encode.ts";
import { PRESETS, type PresetName, trainOptionsOf } from "../scorer/presets.ts";
import type { Report, ReportCell, ReportCost, ReportRun } from "../scorer/report-data.ts";
import { lookAtStates } from "../scorer/states-look.ts";
import {
  type Place,
  placeList,
  placesOf,
  runUnit,
  type SweepFile,
  type SweepOptions,
  type SweepUnit,
  sweepMethods,
  sweepUnits,
} from "../scorer/sweep.ts";
import { costsNote, measureCosts } from "../scorer/sweep-costs.ts";
import { type CellKey, checkReportFolder, openJournal, type SweepJournal } from "../scorer/sweep-journal.ts";
import { makeReport, writeReport } from "../scorer/sweep-report.ts";
import {
  addRunOptions,
  modelDirectory,
  packageVersion,
  poolingName,
  positiveInteger,
  type RunFlags,
  recordedName,
  withEngine,
  withModelFiles,
} from "./common.ts";
import { type FeatureRequest, type LentModel, type ListsAndFeatures, lendModel } from "./features.ts";
import { formatCount } from "./format.ts";
import { bootstrapOption, safeFromOption } from "./measure-options.ts";
import { number } from "./numbers.ts";
import { shown, writeReportPage } from "./report.ts";
import { reportDocument } from "./report-document.ts";
import { runRecord } from "./run-record.ts";
import { checkSplits, dataOf, type GivenFile, readGiven, sweepFileOf, withControl, withStates } from "./sweep-files.ts";
import { reportText } from "./sweep-output.ts";
import { EXIT, note, type StopSignal, startProgress, stopSignal, warn, writeStdout } from "./terminal.ts";

interface SweepFlags extends Omit<RunFlags, "pooling"> {
  readonly output?: string;
  readonly overwrite?: boolean;
  readonly layers: string;
  readonly concat?: readonly string[];
  readonly pooling: readonly Pooling[];
  readonly seeds: number;
  readonly holdOut: number;
  readonly preset: readonly PresetName[];
  readonly control: boolean;
  readonly test?: readonly string[];
  readonly trainEach?: boolean;
  readonly safeFrom?: number;
  readonly k: number;
  readonly bootstrap: number;
  readonly states: boolean;
  readonly cache: boolean;
  readonly format: "tables" | "text" | "md";
}

const HELP = `
Examples:
  $ stratum sweep lists.jsonl --model path/to/model -o report
  $ stratum sweep lists.jsonl --model path/to/model --layers 25%,50%,100% --pooling last,mean,last-8 --concat 25%+50% -o report
  $ stratum sweep lists.jsonl --model path/to/model --test other.jsonl another.jsonl --train-each -o transfer

Every seed splits the lists by instruction, trains every method on one part and measures it on the rest. One pass over
each file gives the states at all layers under all poolings; the model is loaded once. What a seed S gives at a layer is
what 'stratum train --layer K --seed S --hold-out SHARE' and a 'stratum eval' of that scorer give. --test measures other files,
too, without the lists whose instructions were trained on; --train-each trains on each file in turn.
The best place has the highest top-1; the recommended one is the cheapest of its method that is not significantly below
it. The best is chosen on the lists that it is measured on, so it flatters every method alike.

-o writes a folder: report.html (a page with plots, in one file), report.json, report.csv (a line a method and place),
cells.jsonl (a line a method, place and seed with the measures of every list); stratum report shows it again. The same words in the same folder go on where a run was stopped; another run's folder is refused.
Exit codes: 0 done, 1 some lists failed or none can be used, 2 usage, 3 environment, 129/130/143 stopped by a signal.`;

/** Declares the command. */
export function sweepCommand(program: Command): void {
  const command = program
    .command("sweep")
    .description("measure every method at every layer, over several splits, and what depth costs")
    .argument("<lists>", "JSONL file of labelled lists")
    .option("-o, --output <dir>", "the report's folder")
    .option("--overwrite", "replace another run's report")
    .option("--layers <list>", "all, or layers separated by commas", "all")
    .option("--concat <layers...>", "also several layers' states side by side: 2+4 4+6", concatenations)
    .option("--seeds <n>", "splits: the seeds 0 .. n - 1", positiveInteger, 3)
    .option(
      "--hold-out <share>",
      "lists that are measured, by instruction",
      number(0, 0.9, "a share above 0, at most 0.9", true),
      0.3,
    )
    .addOption(
      new Option("--preset <names...>", "scorers to train").choices(Object.keys(PRESETS)).default(["srr", "pointwise"]),
    )
    .option("--no-control", "without a linear probe of the same architecture with random weights")
    .option("--test <files...>", "measure on these files of lists, too")
    .option("--train-each", "with --test: train on each of the files in turn")
    .addOption(safeFromOption())
    .option("--k <depth>", "the depth of NDCG@k", positiveInteger, 5)
    .addOption(bootstrapOption())
    .option("--no-states", "do not look at norms, separation and maps of the states")
    .option("--no-cache", "compute features anew and keep none")
    .addOption(
      new Option("--format <name>", "what is printed: tables, all of the report as text with plots, or as Markdown")
        .choices(["tables", "text", "md"])
        .default("tables"),
    )
    .addHelpText("after", HELP);
  addRunOptions(command, "the report as one JSON object on stdout instead of the tables", poolingsOption()).action(
    async (lists: string, flags: SweepFlags) => {
      process.exitCode = await runSweep(lists, flags);
    },
  );
}

function poolingsOption(): Option {
  return new Option("--pooling <names>", "one or several, separated by commas: last, end, mean, last-K")
    .argParser((text: string) => [...new Set(text.split(",").map((name) => poolingName(name.trim())))])
    .default(["last"], "last");
}

/** Of `--concat`: each value is layers joined by +. */
function concatenations(text: string, before: readonly string[] = []): readonly string[] {
  const found = text.split(",").map((part) => part.trim());
  if (found.every((part) => part.includes("+") && part.split("+").every((layer) => layer.trim() !== "")))
    return [...before, ...found];
  throw new InvalidArgumentError("layers joined by + are needed, such as 2+4.");
}

/** What is asked for, once the model's depth is known. */
interface Asked {
  readonly layers: readonly number[];
  readonly concat: readonly (readonly number[])[];
  readonly places: readonly Place[];
  readonly request: FeatureRequest;
  readonly options: SweepOptions;
  /** Names of the files that are trained on. */
  readonly trained: readonly string[];
}

/** @throws {StratumError} `usage/layer` */
function concatsOf(texts: readonly string[], depth: number): number[][] {
  const found = new Map<string, number[]>();
  for (const text of texts) {
    const layers = [...new Set(text.split("+").map((layer) => resolveLayer(layer.trim(), depth)))];
    if (layers.length < 2)
      throw new StratumError("usage/layer", `--concat ${text} names one layer, ${layers[0]}`, "join different layers");
    found.set(layers.join("+"), layers);
  }
  return [...found.values()];
}

function askedOf(files: ModelFiles, given: readonly GivenFile[], flags: SweepFlags, stop: StopSignal): Asked {
  const { layers: depth, hiddenSize } = files.spec.config;
  const layers = resolveLayers(flags.layers, depth);
  const concat = concatsOf(flags.concat ?? [], depth);
  const [pooling] = flags.pooling;
  const { system, cache, pooling: poolings, holdOut: test, safeFrom, k } = flags;
  return {
    ...{ layers, concat, places: placeList(layers, concat, poolings) },
    request: { layers: [...new Set([...layers, ...concat.flat()])], pooling, poolings, system, cache },
    options: {
      ...{
        seeds: Array.from({ length: flags.seeds }, (_, seed) => seed),
        test,
        depth: k,
        safeFrom,
        signal: stop.signal,
      },
      scorers: Object.fromEntries(
        flags.preset.map((name) => [`scorer (${name})`, trainOptionsOf(PRESETS[name], hiddenSize)]),
      ),
    },
    trained: (flags.trainEach ? given : given.slice(0, 1)).map(({ name }) => name),
  };
}

/** What a folder's run must share with the one that goes on in it. */
function identityOf(lent: LentModel, given: readonly GivenFile[], asked: Asked, flags: SweepFlags) {
  const { options, request, places, trained } = asked;
  const { seeds, test, scorers, depth, safeFrom = null } = options;
  return {
    stratum: packageVersion(),
    ...{ model: recordedName(lent.files), fingerprint: lent.fingerprint },
    ...{ adapter: lent.engine.device.info.name, kernels: lent.kernels.id },
    data: given.map(({ name, sha256 }) => `${name} ${sha256}`),
    ...{ trained, places: places.map(({ layers, pooling }) => `${layers.join("+")} ${pooling}`) },
    ...{ layers: request.layers, seeds, hold_out: test, scorers, k: depth, safe_from: safeFrom },
    ...{ control: flags.control, bootstrap: flags.bootstrap, states: flags.states },
    ...{ system: flags.system ?? null, date: flags.date ?? null, truncate: flags.truncate ?? false },
    batch_tokens: flags.batchTokens ?? null,
  };
}

async function runSweep(path: string, flags: SweepFlags): Promise<number> {
  const stop = stopSignal();
  if (flags.output !== undefined) await checkReportFolder(flags.output, flags.overwrite ?? false);
  if (flags.trainEach && flags.test === undefined)
    throw new StratumError("usage/arguments", "--train-each without --test", "name the other files with --test");
  const given = await readGiven([path, ...(flags.test ?? [])]);
  try {
    return await withModelFiles(
      modelDirectory(flags.model),
      async (files) => {
        const asked = askedOf(files, given, flags, stop);
        checkSplits(given, asked.trained, asked.options);
        return withEngine(flags, (engine) => sweepOn(engine, files, given, asked, flags, stop));
      },
      flags,
    );
  } catch (thrown) {
    const stopped = stop.exitCode();
    if (stopped === undefined || !stop.signal.aborted) throw thrown;
    warn(`stopped; ${whatIsKept(flags)}`);
    return stopped;
  }
}

function whatIsKept({ output }: SweepFlags): string {
  return output === undefined ? "nothing is kept without -o" : "the same command goes on";
}

async function sweepOn(
  opened: Engine,
  files: ModelFiles,
  given: readonly GivenFile[],
  asked: Asked,
  flags: SweepFlags,
  stop: StopSignal,
): Promise<number> {
  const begin = performance.now();
  using lent = await lendModel(opened, files, asked.request, flags);
  const units = sweepUnits(asked.trained, asked.options.seeds, asked.places);
  const names = given.map(({ name }) => name);
  await using journal = await openRun(lent, given, asked, flags, units, names);
  if (journal.units > 0)
    note(`resumed ${formatCount(journal.units)} of ${formatCount(units.length)} units are there already`);
  return await withStates(lent, given, asked.request, flags, stop, async (found) => {
    const costs = journal.costs ?? (await costsOf(lent, found, asked, flags, stop));
    if (journal.costs === null) await journal.keepCosts(costs);
    lent[Symbol.dispose]();
    const cells = await cellsOf(lent, given, found, asked, flags, stop, units, journal);
    if (cells === null) return stop.exitCode() ?? EXIT.interrupted;
    const states = flags.states ? await statesOf(found, asked, stop) : null;
    const before = journal.cells.reduce((sum, { ms }) => sum + ms, 0);
    const seconds = (performance.now() - begin + before) / 1000;
    const report = makeReport({
      run: runOf(lent, given, found, asked, flags, seconds),
      files: given.map((file, i) => sweepFileOf(file, found[i])),
      trained: asked.trained,
      methods: Object.values(sweepMethods(asked.options.scorers, flags.control)).flat(),
      ...{ cells, costs, states },
      costsNote: costsNote(costs[0]?.lists ?? 0),
    });
    if (flags.output !== undefined) {
      await writeReport(flags.output, report);
      note(`report  ${flags.output}: report.json, report.csv, cells.jsonl`);
      await writeReportPage(flags.output, report);
    }
    await writeStdout(await printed(report, flags));
    return found.some(({ leftOut }) => leftOut.length > 0) ? EXIT.someFailed : EXIT.ok;
  });
}

/** What stdout gets. */
function printed(report: Report, { json, format }: SweepFlags): Promise<string> | string {
  if (json) return `${JSON.stringify(report)}\n`;
  return format === "tables" ? reportText(report) : shown(reportDocument(report), format);
}

/** The folder's journal, or one that keeps nothing. */
async function openRun(
  lent: LentModel,
  given: readonly GivenFile[],
  asked: Asked,
  flags: SweepFlags,
  units: readonly SweepUnit[],
  measured: readonly string[],
): Promise<SweepJournal> {
  if (flags.output === undefined) {
    const nothing = async () => undefined;
    return { cells: [], units: 0, costs: null, add: nothing, keepCosts: nothing, [Symbol.asyncDispose]: nothing };
  }
  const methods = sweepMethods(asked.options.scorers, flags.control);
  return openJournal(flags.output, identityOf(lent, given, asked, flags), {
    overwrite: flags.overwrite ?? false,
    units: units.map(({ place, seed, trained }): CellKey[] =>
      (place === null ? methods.texts : methods.states).flatMap(({ name }) =>
        measured.map((file) => ({
          ...{ method: name, layers: place && [...place.layers], pooling: place?.pooling ?? null, seed },
          ...{ trained, measured: file },
        })),
      ),
    ),
  });
}

async function costsOf(
  lent: LentModel,
  [{ lists }]: readonly ListsAndFeatures[],
  { request, layers, concat }: Asked,
  flags: SweepFlags,
  stop: StopSignal,
): Promise<ReportCost[]> {
  const model = await lent.open();
  const { system, date, truncate, batchTokens, sharePrefix, pooling: poolings } = flags;
  const deepest = concat.map((group) => Math.max(...group));
  return measureCosts(model, lists, {
    ...{ layers: request.layers.filter((layer) => layers.includes(layer) || deepest.includes(layer)), poolings },
    ...{ system, date, truncate, batchTokens, sharePrefix, signal: stop.signal },
  });
}

/** All cells, those of the journal first; null where a signal came. */
async function cellsOf(
  lent: LentModel,
  given: readonly GivenFile[],
  found: readonly ListsAndFeatures[],
  asked: Asked,
  flags: SweepFlags,
  stop: StopSignal,
  units: readonly SweepUnit[],
  journal: SweepJournal,
): Promise<ReportCell[] | null> {
  const cells = [...journal.cells];
  if (journal.units === units.length) return cells;
  const { layers, concat } = asked;
  const places = ({ layers: taps }: ListsAndFeatures) => placesOf(layers, concat, flags.pooling, taps);
  const run = async (files: readonly SweepFile[]) => {
    const progress = startProgress(units.length - journal.units, "units");
    try {
      for (const [done, unit] of units.slice(journal.units).entries()) {
        const own = await runUnit(lent.engine, files, unit, asked.options);
        if (own === null) {
          const whole = journal.units + done;
          progress.aside(() => warn(`stopped after ${whole} of ${units.length} units; ${whatIsKept(flags)}`));
          return null;
        }
        await journal.add(own);
        cells.push(...own);
        progress.add(1, 0);
      }
      return cells;
    } finally {
      progress.stop();
    }
  };
  const plain = given.map((file, i) => ({ ...sweepFileOf(file, found[i]), places: places(found[i]) }));
  if (!flags.control) return run(plain);
  return withControl(lent.engine, lent, given, found, asked.request, flags, stop, (control) =>
    run(
      plain.map((file, i) => {
        const random = places(control[i]);
        return { ...file, places: file.places.map((place, p) => ({ ...place, control: random[p].source })) };
      }),
    ),
  );
}

async function statesOf(
  [{ lists, layers }]: readonly ListsAndFeatures[],
  { options, request }: Asked,
  stop: StopSignal,
) {
  const poolings = request.poolings ?? [request.pooling];
  // Pooling by pooling: neighbours are compared in this order.
  const places = poolings.flatMap((pooling) => layers.filter((tap) => tap.pooling === pooling));
  const progress = startProgress(places.length, "layers looked at");
  try {
    return await lookAtStates(places, {
      ...{ ids: lists.map(({ id }) => id), safeFrom: options.safeFrom, signal: stop.signal },
      onPlace: () => progress.add(1, 0),
    });
  } finally {
    progress.stop();
  }
}

function runOf(
  lent: LentModel,
  given: readonly GivenFile[],
  found: readonly ListsAndFeatures[],
  { layers, concat, options }: Asked,
  flags: SweepFlags,
  seconds: number,
): ReportRun {
  const [data, ...tests] = given.map((file, i) => dataOf(file, found[i], options));
  return {
    ...{ ...runRecord(lent), seconds, data, tests },
    ...{ seeds: [...options.seeds], layers: [...layers], poolings: [...flags.pooling] },
    concat: concat.map((group) => [...group]),
    options: {
      ...{ test_share: options.test, ndcg_depth: options.depth, safe_from: options.safeFrom ?? null },
      ...{ bootstrap: flags.bootstrap, system: flags.system ?? null, date: flags.date ?? null },
      ...{ truncate: flags.truncate ?? false, control: flags.control, scorers: options.scorers },
    },
  };
}
