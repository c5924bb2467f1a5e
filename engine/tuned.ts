/** An engine with the kernels that a model is to run on: the defaults, what a cache file holds, or what is measured now. */
import { messageOf } from "../errors.ts";
import type { MatmulTile } from "../kernels/matmul.ts";
import type { Device } from "./device.ts";
import type { Engine } from "./model.ts";
import type { ModelFiles } from "./model-files.ts";
import { platformOf } from "./platform.ts";
import { type KernelsRecord, kernelsRecord, plannedShapes, type TileTable, tileKey } from "./tiles.ts";
import { type TuneOptions, type Tuning, tune } from "./tuner.ts";
import { readTuning, tuningFile, writeTuning } from "./tuner-cache.ts";
import { planWeights } from "./weight-plan.ts";

/**
 * - `off`: the defaults.
 * - `auto`: of each shape what was measured before, else the default. Nothing is measured: a first run is not to wait.
 * - `force`: every shape is measured now, and kept for `auto`.
 */
export const TUNE_MODES = ["off", "auto", "force"] as const;
export type TuneMode = (typeof TUNE_MODES)[number];

export interface TunedOptions extends TuneOptions {
  /** Default `auto`. */
  readonly mode?: TuneMode;
  /** Default `tuningFile()`. */
  readonly file?: string;
  /** Told of what is wrong with the file. */
  readonly onNote?: (text: string) => void;
}

export interface Tuned {
  /** The engine with the table; it shares device and pipelines with the one that was given, and dies with it. */
  readonly engine: Engine;
  /** Distinct shapes that the model multiplies. */
  readonly shapes: number;
  /** Shapes of them that have a measured variant, now or before. */
  readonly measured: number;
  /** What was measured now. */
  readonly tuning: Tuning | null;
  /** What the model's states come from. */
  readonly kernels: KernelsRecord;
}

/** What each device's shapes run with by mode and file, once that was decided: states of one process belong together. */
const decided = new WeakMap<Device, Map<string, MatmulTile | null>>();

/**
 * Chooses the kernels of a model's first `depth` blocks. A mode's choice stands for as long as the device does.
 * Entries of the engine's own table stay.
 * @throws {StratumError} as `planWeights` and `tune`
 */
export async function tuned(
  engine: Engine,
  { checkpoint, spec }: Pick<ModelFiles, "checkpoint" | "spec">,
  depth: number,
  options: TunedOptions = {},
): Promise<Tuned> {
  const { mode = "auto", file = tuningFile(), onNote } = options;
  const made = decided.get(engine.device) ?? new Map<string, MatmulTile | null>();
  decided.set(engine.device, made);
  const nameOf = (key: string) => JSON.stringify([mode, file, key]);
  const shapes = plannedShapes(await planWeights(checkpoint, spec, depth, platformOf(engine)));
  const keys = shapes.map(({ shape }) => tileKey(shape));
  const open = shapes.filter((_, i) => !made.has(nameOf(keys[i])) && !engine.tiles?.has(keys[i]));
  let tuning: Tuning | null = null;
  let found: TileTable = new Map();
  if (mode === "auto" && open.length > 0) found = await readTuning(engine, file, onNote);
  if (mode === "force" && open.length > 0) {
    tuning = await tune(engine, open, options);
    found = tuning.tiles;
    await writeTuning(engine, found, file).catch((cause: unknown) =>
      onNote?.(`what was measured serves this run only: ${messageOf(cause)}`),
    );
  }
  for (const { shape } of open) made.set(nameOf(tileKey(shape)), found.get(tileKey(shape)) ?? null);
  const tiles = new Map(engine.tiles);
  for (const key of keys) {
    const tile = made.get(nameOf(key));
    if (tile && !tiles.has(key)) tiles.set(key, tile);
  }
  const chosen: Engine = { ...engine, tiles };
  const plan = await planWeights(checkpoint, spec, depth, platformOf(chosen));
  return {
    engine: chosen,
    shapes: shapes.length,
    measured: keys.filter((key) => tiles.has(key)).length,
    tuning,
    kernels: kernelsRecord(engine.target, plan),
  };
}
