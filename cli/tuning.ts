/** `--tune`: which kernels a model runs on, and what is said of it. */
import { type Command, Option } from "commander";
import type { Engine } from "../engine/model.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import type { KernelsRecord } from "../engine/tiles.ts";
import { TUNE_MODES, type Tuned, type TuneMode, tuned } from "../engine/tuned.ts";
import { tuningFile } from "../engine/tuner-cache.ts";
import type { Machine } from "../scorer/journal.ts";
import { isJsonObject, show } from "../weights/json.ts";
import { formatCount } from "./format.ts";
import { note, stopping, warn } from "./terminal.ts";

export interface TuneFlags {
  readonly tune?: TuneMode;
  readonly verbose?: boolean;
  /** Bound of what is measured now. */
  readonly maxSeconds?: number;
}

/** Adds the option of {@link TuneFlags}. */
export function addTuneOption(command: Command): Command {
  return command.addOption(
    new Option(
      "--tune <mode>",
      "matmul variants: as measured on this adapter before (auto), the defaults (off), or measured now and kept (force)",
    )
      .choices(TUNE_MODES)
      .default("auto"),
  );
}

/** With `-v`, says that a scorer's states came from other kernels than those that run now. */
export function noteOtherKernels(
  training: Readonly<Record<string, unknown>>,
  { id }: KernelsRecord,
  { verbose }: TuneFlags,
): void {
  const recorded = training["kernels"];
  if (!verbose || !isJsonObject(recorded) || recorded["id"] === id) return;
  note(`note    the scorer was trained on states of the kernels ${show(recorded["id"])}: these agree within rounding`);
}

/** What a journal keeps of the kernels that a run began with. */
export function machineOf({ device, tiles }: Engine, { id }: KernelsRecord): Machine {
  return { adapter: device.info.identity, kernels: id, tiles: [...(tiles ?? [])] };
}

/**
 * Chooses the kernels of a model down to a layer and says on stderr which they are.
 * @param before those of a run that is gone on with: they are taken as they were, whatever has been measured since
 * @throws {StratumError} as `tuned`
 */
export async function tuneModel(
  opened: Engine,
  files: ModelFiles,
  depth: number,
  flags: TuneFlags,
  before: Machine | null = null,
): Promise<Tuned> {
  const { verbose = false, maxSeconds } = flags;
  const mode = before === null ? (flags.tune ?? "auto") : "off";
  const engine = before === null ? opened : { ...opened, tiles: new Map(before.tiles) };
  const begin = performance.now();
  const chosen = await tuned(engine, files, depth, {
    mode,
    ...(maxSeconds === undefined ? {} : { budgetMs: 1000 * maxSeconds }),
    signal: stopping()?.signal,
    onNote: note,
    onShape: (_, done, total) => {
      if (done === 0) note(`tuning  ${total} shapes, each matmul variant against its twin, then timed`);
    },
  });
  const { shapes, measured, tuning, kernels } = chosen;
  for (const { shape, variant, fault } of tuning?.wrong ?? [])
    warn(`dropped the matmul ${variant} for ${shape}, which is not what its twin gives: ${fault}`);
  if (tuning !== null) {
    const seconds = ((performance.now() - begin) / 1000).toFixed(1);
    const left = tuning.left > 0 ? `; no time for ${formatCount(tuning.left)} variants` : "";
    note(`kernels tuned in ${seconds} s, kept in ${tuningFile()}${left}`);
  } else if (before !== null) {
    if (verbose) note("kernels those that the run began with");
  } else if (measured > 0) {
    note(`kernels tuned (cached${measured < shapes ? `, ${measured} of ${shapes} shapes` : ""})`);
  } else if (verbose && shapes > 0) note("kernels default; --tune force measures them");
  if (verbose) {
    note(`kernels ${kernels.id}`);
    for (const [name, variant] of Object.entries(kernels.variants)) note(`        ${name}: ${variant}`);
  }
  return chosen;
}
