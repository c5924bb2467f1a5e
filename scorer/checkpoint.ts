/**
 * A training run that can be gone on with: one file with the weights, the optimizer's moments, the best weights so far, the
 * statistics of the features, and in its metadata where the run stands. It appears whole or not at all.
 */
import { createHash } from "node:crypto";
import { z } from "zod";
import { messageOf, StratumError } from "../errors.ts";
import { decodeFloats } from "../weights/floats.ts";
import { openSafetensors } from "../weights/safetensors.ts";
import { writeSafetensors } from "../weights/safetensors-writer.ts";
import type { Standardisation } from "./feeder.ts";
import type { OptimizerState } from "./trainer.ts";

const epochRecord = z.object({
  epoch: z.number(),
  /** Steps done when the epoch ended. */
  step: z.number(),
  /** Mean loss of the epoch's steps, each before its update. */
  loss: z.number(),
  validation: z.object({ loss: z.number(), top1: z.number() }).nullable(),
});

/** What an epoch came to. */
export type EpochRecord = Readonly<z.infer<typeof epochRecord>>;

const progress = z.object({
  /** Of this format. */
  version: z.literal(1),
  /** What must be the same for the run to go on: options, sizes, data. */
  run: z.record(z.string(), z.unknown()),
  step: z.number().int().nonnegative(),
  epochs: z.array(epochRecord),
  /** Losses of the steps of the epoch under way: how many, and their sum. */
  partial: z.object({ steps: z.number(), loss: z.number() }),
  /** Losses of the last steps, for the guard against divergence. */
  recent: z.array(z.number()),
  /** Index into `epochs` of the best one so far. */
  best: z.number().nullable(),
  /** Steps done when early stopping ended the run, and never before. */
  stopped: z.boolean(),
});

/** Where a run stands. */
export type TrainProgress = Readonly<z.infer<typeof progress>>;

export interface Checkpoint {
  readonly progress: TrainProgress;
  readonly state: OptimizerState;
  /** Flat weights of the best epoch; those of `state` where there is none yet. */
  readonly best: Float32Array<ArrayBuffer>;
  readonly standardisation: Standardisation;
}

const TENSORS = ["weights", "first", "second", "best", "mean", "scale"] as const;

/** Writes a checkpoint over an older one. @throws {StratumError} `file/write-failed` */
export async function writeCheckpoint(path: string, checkpoint: Checkpoint): Promise<void> {
  const values: Readonly<Record<(typeof TENSORS)[number], Float32Array<ArrayBuffer>>> = {
    ...checkpoint.state,
    best: checkpoint.best,
    ...checkpoint.standardisation,
  };
  const tensors = TENSORS.map((name) => ({
    name,
    dtype: "F32" as const,
    shape: [values[name].length],
    bytes: new Uint8Array(values[name].buffer, values[name].byteOffset, values[name].byteLength),
  }));
  const text = JSON.stringify(checkpoint.progress);
  const sha256 = hashOf(
    text,
    TENSORS.map((name) => values[name]),
  );
  await writeSafetensors(path, tensors, { metadata: { progress: text, sha256 } });
}

/** Of all that a checkpoint holds: a flipped bit would go on unseen. */
function hashOf(text: string, values: readonly Float32Array[]): string {
  const hash = createHash("sha256").update(text);
  for (const { buffer, byteOffset, byteLength } of values) hash.update(new Uint8Array(buffer, byteOffset, byteLength));
  return hash.digest("hex");
}

/**
 * Reads a checkpoint.
 * @param count parameters, flat
 * @param dim D
 * @param checkRun throws where the checkpoint is of another run: before its sizes are looked at, which differ then
 * @throws {StratumError} `train/no-checkpoint`, `train/bad-checkpoint`, and what `checkRun` throws
 */
export async function readCheckpoint(
  path: string,
  count: number,
  dim: number,
  checkRun?: (run: TrainProgress["run"]) => void,
): Promise<Checkpoint> {
  const bad = (why: string, cause?: unknown) =>
    new StratumError("train/bad-checkpoint", `${path}: ${why}`, "start the training anew in another folder", cause);
  await using file = await openSafetensors(path).catch((cause: unknown) => {
    if (cause instanceof StratumError && cause.code === "model/file-missing") {
      throw new StratumError(
        "train/no-checkpoint",
        `${path} does not exist`,
        "there is nothing to resume: leave out --resume, or check the folder",
        cause,
      );
    }
    throw bad(messageOf(cause), cause);
  });
  const sizes: Readonly<Record<(typeof TENSORS)[number], number>> = {
    ...{ weights: count, first: count, second: count, best: count },
    ...{ mean: 2 * dim, scale: 2 * dim },
  };
  const read = async (name: (typeof TENSORS)[number]) => {
    const info = file.tensors.get(name);
    if (info?.dtype !== "F32" || info.byteLength !== 4 * sizes[name])
      throw bad(`no tensor ${name} of ${sizes[name]} F32`);
    const values = decodeFloats(await file.read(name), "F32");
    if (!values.every(Number.isFinite)) throw bad(`tensor ${name} holds NaN or infinity`);
    return values;
  };
  const text = file.metadata["progress"] ?? "";
  let parsed: TrainProgress;
  try {
    parsed = progress.parse(JSON.parse(text));
  } catch (cause) {
    throw bad("it does not say where the run stands", cause);
  }
  checkRun?.(parsed.run);
  const values: Float32Array<ArrayBuffer>[] = [];
  for (const name of TENSORS) values.push(await read(name));
  if (hashOf(text, values) !== file.metadata["sha256"])
    throw bad("its content does not have the SHA-256 that it names");
  const [weights, first, second, best, mean, scale] = values;
  return { progress: parsed, state: { weights, first, second }, best, standardisation: { mean, scale } };
}
