/** What `stratum train` was asked for: flags over a preset, checked before any work. */
import { existsSync } from "node:fs";
import { readdir, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { messageOf, StratumError } from "../errors.ts";
import type { LossName } from "../kernels/list-loss.ts";
import { checkPointwise } from "../scorer/abstain.ts";
import type { Pooling } from "../scorer/encode.ts";
import { PRESETS, type PresetName, type Recipe } from "../scorer/presets.ts";
import type { ScheduleName } from "../scorer/schedule.ts";
import type { ScorerHead, ScorerSpec } from "../scorer/scorer-spec.ts";
import { inspectWeights } from "../scorer/scorer-weights.ts";
import type { AnchorChoice } from "../scorer/train-anchors.ts";
import { makeFolder } from "../weights/durable.ts";
import type { RunFlags } from "./common.ts";

/** The file of a run that can be resumed, in the scorer's folder. */
export const CHECKPOINT = "checkpoint.safetensors";

export interface TrainFlags extends Omit<RunFlags, "pooling"> {
  readonly output: string;
  readonly layer?: string;
  readonly pooling?: Pooling;
  readonly preset: PresetName;
  readonly features?: string;
  readonly init?: string;
  readonly head?: ScorerHead;
  readonly width?: number;
  readonly heads?: number;
  readonly ffn?: number;
  readonly tau?: number;
  readonly loss?: LossName;
  readonly dropout?: number;
  readonly inputDropout?: number;
  readonly anchor?: AnchorChoice;
  readonly instructionOffset?: number;
  readonly lr?: number;
  readonly weightDecay?: number;
  readonly clip?: number;
  readonly schedule?: ScheduleName;
  readonly warmup?: number;
  readonly batchLists?: number;
  readonly fullBatch?: boolean;
  readonly epochs?: number;
  readonly steps?: number;
  readonly subLists?: number;
  readonly validation?: number | false;
  readonly select?: "loss" | "top1";
  readonly patience?: number;
  readonly holdOut: number;
  readonly abstainError?: number;
  readonly abstainConfidence: number;
  readonly safeFrom?: number;
  readonly standardise: boolean;
  readonly seed: number;
  readonly log?: string;
  readonly resume?: boolean;
  readonly overwrite?: boolean;
  readonly checkpointEvery: number;
  readonly gpuMemory: number;
  readonly cache: boolean;
}

/** The recipe of the preset with what the flags say. */
export function recipeOf(flags: TrainFlags): Recipe {
  const preset: Recipe = PRESETS[flags.preset];
  const given = Object.fromEntries(
    Object.entries(flags).filter(([name, value]) => name in preset && value !== undefined),
  ) as Partial<Recipe>;
  const validation = flags.validation === false ? 0 : (flags.validation ?? preset.validation);
  return {
    ...preset,
    ...given,
    validation,
    ...(flags.fullBatch ? { batchLists: "all" as const, subLists: flags.subLists ?? 0 } : {}),
    standardise: flags.standardise && preset.standardise,
  };
}

/** @throws {StratumError} `scorer/not-pointwise`, `usage/abstain` for `--abstain-error` where it has no meaning */
export function checkAbstain({ abstainError, init }: TrainFlags, { head, validation }: Recipe): void {
  if (abstainError === undefined) return;
  if (init === undefined) checkPointwise(head);
  if (validation > 0) return;
  throw new StratumError(
    "usage/abstain",
    "--abstain-error chooses a threshold on validation lists, and there are none",
    "leave out --no-validation, or give --validation a share",
  );
}

export async function specOf(flags: TrainFlags, recipe: Recipe, dim: number): Promise<ScorerSpec> {
  const { head, heads, tau } = recipe;
  if (flags.init === undefined) {
    return { head, dim, width: recipe.width, heads, ffn: flags.ffn ?? recipe.ffnFactor * recipe.width, tau };
  }
  const sizes = await inspectWeights(flags.init);
  const asked = { head: flags.head, width: flags.width, ffn: flags.ffn, dim };
  for (const name of ["head", "width", "ffn", "dim"] as const) {
    if (asked[name] === undefined || asked[name] === sizes[name]) continue;
    throw new StratumError(
      "scorer/tensor-shape",
      `${flags.init} holds a scorer of ${name} ${sizes[name]}; ${name === "dim" ? "the features have" : "asked for is"} ${asked[name]}`,
      name === "dim" ? "give weights and features of one model" : `leave out --${name}: the file decides`,
    );
  }
  return { ...sizes, heads, tau };
}

/**
 * Checks the folder before any work.
 * @returns whether it had to be made
 * @throws {StratumError} `usage/output-exists`, `usage/output`, `file/write-failed`
 */
export async function claimFolder({ output, resume, overwrite }: TrainFlags): Promise<boolean> {
  const cannot = (cause: unknown): never => {
    const what = `${output} cannot be used as a folder: ${messageOf(cause)}`;
    throw new StratumError("file/write-failed", what, "check the path, permissions and free space", cause);
  };
  const found = await stat(output).catch(() => undefined);
  if (found !== undefined && !found.isDirectory())
    throw new StratumError("usage/output", `${output} is a file`, "give -o the name of a folder");
  const names = found === undefined ? [] : await readdir(output).catch(cannot);
  if (names.length > 0 && !resume && !overwrite) {
    const ours = names.includes(CHECKPOINT);
    throw new StratumError(
      "usage/output-exists",
      `${output} exists and is not empty`,
      `${ours ? "go on with --resume, replace it with --overwrite" : "replace it with --overwrite"}, or give -o another name`,
    );
  }
  await makeFolder(output).catch(cannot);
  return found === undefined;
}

/** Removes an earlier run's files, and only those: a folder may hold other people's. */
export async function clearFolder(output: string): Promise<void> {
  for (const name of [
    "scorer.json",
    "scorer.safetensors",
    "last.safetensors",
    CHECKPOINT,
    "checkpoint-learned.safetensors",
  ])
    await rm(join(output, name), { force: true });
}

/** @throws {StratumError} `usage/arguments` for flags that exclude each other, `usage/output` for a log without a folder */
export function checkTogether(flags: TrainFlags): void {
  const { features, log, resume, overwrite } = flags;
  if (resume && overwrite)
    throw new StratumError("usage/arguments", "--resume and --overwrite exclude each other", "leave out one of them");
  const ofModels = (["model", "layer", "pooling", "system", "truncate", "date"] as const).filter(
    (name) => flags[name] !== undefined,
  );
  if (features !== undefined && ofModels.length > 0) {
    throw new StratumError(
      "usage/arguments",
      `--${ofModels.join(", --")} beside --features: no model is run`,
      "leave them out, or give lists instead of features",
    );
  }
  if (log !== undefined && !existsSync(dirname(log)))
    throw new StratumError(
      "usage/output",
      `${log}: its folder does not exist`,
      "create the folder, or give --log another name",
    );
}
