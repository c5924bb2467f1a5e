/** `stratum states`: looks at the states of lists, layer by layer, and trains nothing. */
import { join } from "node:path";
import { type Command, InvalidArgumentError, Option } from "commander";
import { resolveLayers } from "../engine/layers.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import { StratumError } from "../errors.ts";
import type { Pooling } from "../scorer/encode.ts";
import { openStatesFolder, STATES_FILES, type StatesRecord, writeStates } from "../scorer/states-file.ts";
import { lookAtStates } from "../scorer/states-look.ts";
import { addRunOptions, modelDirectory, positiveInteger, type RunFlags, withEngine, withModelFiles } from "./common.ts";
import { lendModel, withFeaturesOf } from "./features.ts";
import { safeFromOption } from "./measure-options.ts";
import { wholeNumber } from "./numbers.ts";
import { shown, writeShown } from "./report.ts";
import { statesDocument } from "./report-document.ts";
import { runRecord } from "./run-record.ts";
import { dataOf, type GivenFile, readGiven } from "./sweep-files.ts";
import { EXIT, note, type StopSignal, startProgress, stopSignal, writeStdout } from "./terminal.ts";

interface StatesFlags extends RunFlags {
  readonly layers: string;
  readonly mapLayers?: string;
  readonly map: "both" | "pca" | "umap" | "none";
  readonly sample: number;
  readonly points: number;
  readonly seed: number;
  readonly safeFrom?: number;
  readonly output?: string;
  readonly format: "text" | "md";
  readonly cache: boolean;
}

const HELP = `
Examples:
  $ stratum states lists.jsonl --model path/to/model
  $ stratum states lists.jsonl --model path/to/model --layers 0,25%,50%,100% --map umap -o states

Norms by layer; the cosine between a response's states at every two layers, and how long a step each block takes; how far
safe and unsafe responses lie apart (Fisher's ratio, silhouette), as they are and with the mean of their list taken away;
maps in a plane (PCA, UMAP). Lists need no labels: without, there is nothing to tell apart.
-o writes a folder: states.html (a page with plots, in one file), states.json, layers.csv, points.csv. Without, the
tables and curves are printed. Equal words and seeds give equal numbers.`;

/** Every pair of the sample is looked at, and a map's axes cost the cube of its points. */
const MAX_SAMPLE = 4000;
const MAX_POINTS = 1000;

const upTo = (most: number) => (text: string) => {
  const value = positiveInteger(text);
  if (value > most) throw new InvalidArgumentError(`at most ${most} can be looked at.`);
  return value;
};

/** Declares the command. */
export function statesCommand(program: Command): void {
  const command = program
    .command("states")
    .description("look at the states of lists, layer by layer: norms, likeness, separation, maps")
    .argument("<lists>", "JSONL file of lists")
    .option("-o, --output <dir>", "a folder for the page and the data")
    .option("--layers <list>", "all, or layers separated by commas", "all")
    .option("--sample <n>", "responses to look at, at most (to 4000); whole lists are drawn", upTo(MAX_SAMPLE), 1000)
    .addOption(new Option("--map <name>", "maps to draw").choices(["both", "pca", "umap", "none"]).default("both"))
    .option("--map-layers <list>", "layers to draw maps of (default: four, from the first to the last)")
    .option("--points <n>", "responses in a map, at most (to 1000)", upTo(MAX_POINTS), 300)
    .option("--seed <n>", "of the sample, the shuffles and the maps", wholeNumber, 0)
    .addOption(safeFromOption())
    .addOption(new Option("--format <name>", "what is printed without -o").choices(["text", "md"]).default("text"))
    .option("--no-cache", "compute features anew and keep none")
    .addHelpText("after", HELP);
  addRunOptions(command, "one JSON object on stdout").action(async (lists: string, flags: StatesFlags) => {
    process.exitCode = await runStates(lists, flags);
  });
}

async function runStates(path: string, flags: StatesFlags): Promise<number> {
  const stop = stopSignal();
  const [given] = await readGiven([path]);
  return withModelFiles(
    modelDirectory(flags.model),
    async (files) => {
      const { layers: depth } = files.spec.config;
      const layers = resolveLayers(flags.layers, depth);
      const maps = flags.mapLayers === undefined ? undefined : resolveLayers(flags.mapLayers, depth);
      const missing = maps?.find((layer) => !layers.includes(layer));
      if (missing !== undefined)
        throw new StratumError(
          "usage/layer",
          `--map-layers names layer ${missing}, which is not among --layers`,
          "add it to --layers, or leave it out",
        );
      if (flags.output !== undefined) await openStatesFolder(flags.output);
      return look(files, given, { layers, maps }, flags, stop);
    },
    flags,
  );
}

interface Asked {
  readonly layers: readonly number[];
  readonly maps: readonly number[] | undefined;
}

function look(
  files: ModelFiles,
  given: GivenFile,
  { layers, maps }: Asked,
  flags: StatesFlags,
  stop: StopSignal,
): Promise<number> {
  const begin = performance.now();
  const { system, cache, safeFrom, sample, points, seed } = flags;
  const pooling: Pooling = flags.pooling;
  const request = { layers, pooling, system, cache };
  return withEngine(flags, async (engine) => {
    using lent = await lendModel(engine, files, request, flags);
    return await withFeaturesOf(lent, given.path, request, flags, stop, async (found) => {
      const progress = startProgress(found.layers.length, "layers looked at");
      try {
        const states = await lookAtStates(found.layers, {
          ...{ ids: found.lists.map(({ id }) => id), safeFrom, sample, points, seed, signal: stop.signal },
          ...{
            maps: flags.map === "none" ? [] : maps,
            methods: flags.map === "both" ? undefined : methodsOf(flags.map),
          },
          onPlace: () => progress.add(1, 0),
        });
        const seconds = (performance.now() - begin) / 1000;
        const data = dataOf(given, found, { safeFrom });
        await tell(
          {
            ...{ format: "stratum-states", version: 1 },
            run: { ...runRecord(lent), seconds, data, layers: [...layers], poolings: [pooling] },
            states,
          },
          flags,
        );
        return found.leftOut.length > 0 ? EXIT.someFailed : EXIT.ok;
      } catch (thrown) {
        const stopped = stop.exitCode();
        if (stopped === undefined) throw thrown;
        return stopped;
      } finally {
        progress.stop();
      }
    });
  });
}

const methodsOf = (map: StatesFlags["map"]) => (["pca", "umap"] as const).filter((method) => method === map);

async function tell(record: StatesRecord, { output, json, format }: StatesFlags): Promise<void> {
  const document = statesDocument(record);
  if (output !== undefined) {
    await writeStates(output, record);
    note(`wrote   ${output}: ${STATES_FILES.states}, ${STATES_FILES.layers}, ${STATES_FILES.points}`);
    await writeShown(document, "html", join(output, STATES_FILES.html));
  }
  if (json) await writeStdout(`${JSON.stringify(record)}\n`);
  else if (output === undefined) await writeStdout(await shown(document, format));
}
