/** A small training with everything on that is random or has a state, and what comes of it, to be compared byte for byte. */
import { expect } from "vitest";
import type { Engine } from "../../engine/model.ts";
import { StratumError } from "../../errors.ts";
import { arraySource, type FeatureSource } from "../../scorer/feature-source.ts";
import { flatten, parameterLayout } from "../../scorer/parameter-layout.ts";
import { PRESETS, trainOptionsOf } from "../../scorer/presets.ts";
import { trainScorer } from "../../scorer/train.ts";
import type { TrainOptions, TrainRun } from "../../scorer/train-options.ts";
import { bytesOf } from "./features.ts";
import { plantedLists } from "./planted.ts";

export const DIM = 8;
export const features = plantedLists({ lists: 60, dim: DIM });
export const source = arraySource(features);
const { spec, ...rest } = trainOptionsOf({ ...PRESETS.srr, width: 8, heads: 2 }, DIM);
/** Everything that is random or has a state is on: dropout, parts of lists, mini-batches, clip, validation, patience. */
export const OPTIONS: TrainOptions = {
  ...rest,
  spec,
  batchLists: 10,
  epochs: 6,
  patience: 3,
  anchor: "instruction",
  seed: 5,
};
export const STEPS_AN_EPOCH = 5;

/** What a run gives, as bytes. */
export async function outcomeOf(
  engine: Engine,
  change: Partial<TrainOptions> = {},
  run: TrainRun = {},
  from: FeatureSource = source,
) {
  const losses: number[] = [];
  const options = { ...OPTIONS, ...change };
  const result = await trainScorer(engine, from, options, { ...run, onStep: ({ loss }) => losses.push(loss) });
  const layout = parameterLayout(options.spec);
  const text = (weights: ReadonlyMap<string, Float32Array>) =>
    Buffer.from(bytesOf(flatten(layout, weights))).toString("base64");
  const { epochs, best, steps, stoppedEarly } = result;
  return { losses, weights: text(result.weights), last: text(result.last), epochs, best, steps, stoppedEarly, result };
}

/** Without what differs between a run and its resumption. */
export const lasting = ({ losses: _losses, result: _result, ...kept }: Awaited<ReturnType<typeof outcomeOf>>) => kept;

/** Names the code and message of what a promise is rejected with. */
export async function failure(promise: Promise<unknown>): Promise<{ code: string; message: string }> {
  const thrown = await promise.then(
    () => undefined,
    (cause: unknown) => cause,
  );
  expect(thrown).toBeInstanceOf(StratumError);
  const { code, message } = thrown as StratumError;
  return { code, message };
}
