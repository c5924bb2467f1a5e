/** The files of a sweep: what is wrong with them before a model runs, and their states once one has run. */
import { basename } from "node:path";
import type { Engine } from "../engine/model.ts";
import { randomWeights } from "../engine/random-weights.ts";
import { StratumError } from "../errors.ts";
import { instructionKey } from "../scorer/instructions.ts";
import { emptyFileError, type List, readLists } from "../scorer/lists.ts";
import type { LabelledLists, SafeOptions } from "../scorer/measures.ts";
import type { ReportData } from "../scorer/report-data.ts";
import { divideLists } from "../scorer/seen.ts";
import { prepareUnit, type SweepFile, type SweepOptions } from "../scorer/sweep.ts";
import { labelsOf } from "../scorer/text-baselines.ts";
import { hashFile } from "../weights/durable.ts";
import { countLines } from "./common.ts";
import {
  checkListsPath,
  type FeatureRequest,
  type LentModel,
  type ListsAndFeatures,
  lendModel,
  withFeaturesOf,
} from "./features.ts";
import { note, type StopSignal } from "./terminal.ts";

/** A file on the command line. */
export interface GivenFile {
  readonly path: string;
  /** What a report calls it. */
  readonly name: string;
  /** Of its bytes, in hex. */
  readonly sha256: string;
  readonly keys: readonly string[];
  readonly labels: LabelledLists;
}

/**
 * Reads what a file says of itself, before any model does.
 * @throws {StratumError} `usage/no-input`, `usage/arguments` for a file that is given twice, `list/empty-file`
 */
export async function readGiven(paths: readonly string[]): Promise<GivenFile[]> {
  const files: GivenFile[] = [];
  for (const path of paths) {
    checkListsPath(path);
    await countLines(path);
    const lists: List[] = [];
    let lines = 0;
    for await (const line of readLists(path)) {
      lines++;
      if (line.kind === "list") lists.push(line.list);
    }
    if (lines === 0) throw emptyFileError(path);
    const same = paths.filter((other) => basename(other) === basename(path)).length > 1;
    const file = { path, name: same ? path : basename(path), sha256: await hashFile(path) };
    const before = files.find(({ name, sha256 }) => name === file.name || sha256 === file.sha256);
    if (before !== undefined)
      throw new StratumError(
        "usage/arguments",
        `${path} holds the same lists as ${before.path}`,
        "give --test files of other lists: the first file is measured on its own held-out part anyway",
      );
    files.push({ ...file, keys: lists.map(instructionKey), labels: labelsOf(lists) });
  }
  return files;
}

/**
 * Whether every split leaves enough on both sides.
 * @throws {StratumError} `list/too-few`, `list/no-contrast`, `list/all-seen`
 */
export function checkSplits(
  files: readonly GivenFile[],
  trained: readonly string[],
  options: Pick<SweepOptions, "seeds" | "test" | "safeFrom">,
): void {
  for (const name of trained) for (const seed of options.seeds) prepareUnit(files, { trained: name, seed }, options);
}

type RunFlagsOf = Parameters<typeof withFeaturesOf>[3];

/** Lends the states of all files at once; the model is loaded once. */
export async function withStates<T>(
  lent: LentModel,
  files: readonly GivenFile[],
  request: FeatureRequest,
  flags: RunFlagsOf,
  stop: StopSignal,
  use: (found: readonly ListsAndFeatures[]) => Promise<T>,
): Promise<T> {
  const next = (done: readonly ListsAndFeatures[]): Promise<T> =>
    done.length === files.length
      ? use(done)
      : withFeaturesOf(lent, files[done.length].path, request, flags, stop, (found) => next([...done, found]));
  return next([]);
}

/**
 * Lends the states of the same files under random weights.
 * @param found those of the model's own weights
 * @throws {StratumError} `features/control-lists` where the two passes left out different lists
 */
export async function withControl<T>(
  engine: Engine,
  { files }: LentModel,
  given: readonly GivenFile[],
  found: readonly ListsAndFeatures[],
  request: FeatureRequest,
  flags: RunFlagsOf & Parameters<typeof lendModel>[3],
  stop: StopSignal,
  use: (control: readonly ListsAndFeatures[]) => Promise<T>,
): Promise<T> {
  note("control the same pass with random weights, seed 0");
  // What is wrong with a line was told when the model's own states were computed.
  const quiet = { ...request, report: false };
  using random = await lendModel(engine, randomWeights(files, 0), quiet, flags);
  return await withStates(random, given, quiet, flags, stop, async (control) => {
    random[Symbol.dispose]();
    for (const [i, { lists }] of control.entries()) {
      const own = found[i].lists;
      if (lists.length === own.length && lists.every(({ id }, b) => id === own[b].id)) continue;
      throw new StratumError(
        "features/control-lists",
        `of ${given[i].path} ${own.length} lists have states, and ${lists.length} under random weights`,
        "leave out what is named above, or sweep without the control: --no-control",
      );
    }
    return use(control);
  });
}

/** What a report says of a file. */
export function dataOf(
  { name, sha256 }: GivenFile,
  { lists, leftOut, layers }: ListsAndFeatures,
  options: SafeOptions,
): ReportData {
  const { source } = layers[0];
  const { unlabelled, noContrast } = divideLists(source, options);
  return {
    ...{ name, sha256, lists: lists.length, failed: leftOut.length, unlabelled, no_contrast: noContrast },
    instructions: new Set(lists.map(instructionKey)).size,
    candidates: source.labels.length,
  };
}

/** A file as the sweep takes it, without its places. */
export function sweepFileOf({ name }: GivenFile, { lists, layers }: ListsAndFeatures): Omit<SweepFile, "places"> {
  return {
    ...{ name, labels: layers[0].source, keys: lists.map(instructionKey) },
    texts: lists.map(({ candidates }) => ({ candidates })),
  };
}
