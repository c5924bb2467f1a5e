/**
 * The training loop: lists drawn by seed, AdamW with a schedule, validation by instruction, early stopping, checkpoints.
 * Everything random is a function of the seed and the step, so that a run that was stopped goes on bit for bit, and one
 * whose GPU device is lost by itself.
 */
import type { Engine } from "../engine/model.ts";
import { checkPlan, sumBytes } from "../engine/planned-buffer.ts";
import { overLosses } from "../engine/room.ts";
import { StratumError } from "../errors.ts";
import { type EpochRecord, readCheckpoint, type TrainProgress, writeCheckpoint } from "./checkpoint.ts";
import { type FeatureSource, listLength } from "./feature-source.ts";
import { measureLists } from "./measures.ts";
import { flatten, parameterLayout, unflatten } from "./parameter-layout.ts";
import { streamSeed } from "./sampling.ts";
import { learningRate } from "./schedule.ts";
import { checkScorerSpec, initialWeights, parameterCount } from "./scorer-spec.ts";
import { checkSameRun, runIdentity } from "./train-identity.ts";
import {
  chanceLoss,
  drawLists,
  labelsOf,
  orderOf,
  splitLists,
  standardisationOf,
  trainableLists,
} from "./train-lists.ts";
import type { TrainOptions, TrainPlan, TrainResult, TrainRun } from "./train-options.ts";
import {
  BATCH_ROWS,
  createTrainer,
  LOG_SLOTS,
  type OptimizerState,
  planTrainer,
  type StepRecord,
  type Trainer,
} from "./trainer.ts";

const RESIDENT_LIMIT = 2 * 2 ** 30;
/** The log is read at least this often where steps are slow, so that progress shows. */
const LOG_MS = 250;
/** Without checkpoints the state is read from the GPU so often, to go on from where the device is lost. */
const KEEP_STEPS = 200;

/** The guard against divergence looks at so many steps, and ends a run whose mean loss over them is so far above chance. */
const GUARD_STEPS = 64;
const GUARD_FACTOR = 3;

/**
 * Trains a scorer.
 * @throws {StratumError} `list/no-contrast`, `list/bad-labels`, `list/too-few`, `train/diverged`, `train/other-run`,
 *   `train/no-checkpoint`, `scorer/bad-size`, `memory/...`, `state/not-finite`
 */
export async function trainScorer(
  engine: Engine,
  source: FeatureSource,
  options: TrainOptions,
  run: TrainRun = {},
): Promise<TrainResult> {
  const { spec, seed, batchLists } = options;
  checkScorerSpec(spec);
  const usable = trainableLists(source, options.loss, run.lists);
  const [trainLists, validationLists] = splitLists(usable, options, run);
  const perStep = batchLists === "all" ? trainLists.length : Math.min(batchLists, trainLists.length);
  const stepsPerEpoch = Math.ceil(trainLists.length / perStep);
  const steps = options.steps ?? options.epochs * stepsPerEpoch;
  const warmup = typeof options.warmup === "number" ? options.warmup : Math.round(options.warmup.share * steps);
  const schedule = { name: options.schedule, lr: options.lr, warmup, steps };
  const longest = usable.reduce((most, b) => Math.max(most, 1 + listLength(source, b)), 0);
  const layout = parameterLayout(spec);
  const identityOfRun = run.checkpoint === undefined ? {} : await runIdentity(source, options, run, engine);
  const resumed = run.checkpoint?.resume
    ? await readCheckpoint(run.checkpoint.path, layout.count, source.dim, (before) =>
        checkSameRun(before, identityOfRun),
      )
    : undefined;
  const sizes = {
    spec,
    rows: Math.max(longest, BATCH_ROWS),
    stepLists: Math.max(perStep, 1),
    residentLimit: run.residentLimit ?? RESIDENT_LIMIT,
    lists: usable,
  };
  const planned = planTrainer(source, engine.device.info.limits, sizes);
  checkPlan(planned, engine.device.info.limits);
  const plan: TrainPlan = {
    bytes: sumBytes(planned),
    resident: planned.some(({ label }) => label.startsWith("features.store")),
    trainLists: trainLists.length,
    validationLists: validationLists.length,
    leftOut: (run.lists?.length ?? source.lists) - usable.length,
    parameters: parameterCount(spec),
    steps,
    stepsPerEpoch,
    from: resumed?.progress.step ?? 0,
  };
  await run.onPlan?.(plan);
  const standardisation = resumed?.standardisation ?? (await standardisationOf(source, trainLists, options));
  const fresh = (): OptimizerState => ({
    weights: flatten(layout, run.init ?? initialWeights(spec, seed)),
    first: new Float32Array(layout.count),
    second: new Float32Array(layout.count),
  });
  let state = resumed?.state ?? fresh();
  let bestWeights = resumed?.best ?? state.weights;
  let progress: TrainProgress = resumed?.progress ?? {
    version: 1,
    run: identityOfRun,
    step: 0,
    epochs: [],
    partial: { steps: 0, loss: 0 },
    recent: [],
    best: null,
    stopped: false,
  };
  /** Where the run stood when its state was last read from the GPU: what a lost device leaves. */
  let kept = { progress, state, bestWeights };
  const { mean: chance, deviation } = chanceLoss(source, trainLists, options);
  const bound = GUARD_FACTOR * Math.max(chance, 1e-3) + (4 * deviation) / Math.sqrt(GUARD_STEPS * perStep);
  let saved = resumed?.progress.step ?? -1;
  const keepEvery = run.checkpoint?.everySteps ?? KEEP_STEPS;
  let order: { epoch: number; lists: readonly number[] } = { epoch: -1, lists: [] };

  /** Takes in the steps that the log holds. @throws {StratumError} `train/diverged` */
  const settle = async (trainer: Trainer) => {
    for (const record of await trainer.readLog()) {
      run.onStep?.(record);
      const recent = [...progress.recent, record.loss].slice(-GUARD_STEPS);
      const mean = recent.reduce((sum, loss) => sum + loss, 0) / recent.length;
      const runaway = recent.length === GUARD_STEPS && mean > bound;
      if (!record.sound || runaway) throw diverged(record, runaway ? mean : undefined, chance, options, run, saved);
      const { steps: count, loss } = progress.partial;
      progress = {
        ...progress,
        step: record.step + 1,
        recent,
        partial: { steps: count + 1, loss: loss + record.loss },
      };
    }
  };
  /** The loss after the last update. @throws {StratumError} `train/diverged` */
  const checkFinite = (loss: number) => {
    if (Number.isFinite(loss)) return;
    const record = { step: progress.step, loss, gradNorm: Number.NaN, sound: false };
    throw diverged(record, undefined, chance, options, run, saved);
  };
  /** Reads the state from the GPU, and writes it where checkpoints go. */
  const keep = async (trainer: Trainer) => {
    if (kept.progress.step < progress.step || saved < 0) state = await trainer.state();
    if (!state.weights.every(Number.isFinite)) checkFinite(Number.NaN);
    if (progress.best === null) bestWeights = state.weights;
    if (run.checkpoint !== undefined && saved !== progress.step) {
      await run.onCheckpoint?.(progress.step);
      await writeCheckpoint(run.checkpoint.path, { progress, state, best: bestWeights, standardisation });
      saved = progress.step;
    }
    kept = { progress, state, bestWeights };
  };

  /** Trains from where the run stands to its end. */
  const go = async (trainer: Trainer, done: () => void) => {
    await trainer.feeder.load(trainer.network.buffers["x"]);
    trainer.setState(state);
    if (run.checkpoint !== undefined) await keep(trainer);
    let lastRead = performance.now();
    while (progress.step < steps && !progress.stopped && !run.signal?.aborted) {
      const step = progress.step + trainer.pending;
      const epoch = Math.floor(step / stepsPerEpoch);
      if (epoch !== order.epoch) order = { epoch, lists: orderOf(trainLists, options, epoch) };
      const first = (step % stepsPerEpoch) * perStep;
      const drawn = drawLists(source, order.lists.slice(first, first + perStep), options, epoch);
      await trainer.step(step, drawn, learningRate(schedule, step));
      const epochEnds = (step + 1) % stepsPerEpoch === 0;
      const due = (step + 1) % keepEvery === 0;
      if (
        epochEnds ||
        due ||
        step + 1 === steps ||
        trainer.pending === LOG_SLOTS ||
        performance.now() - lastRead > LOG_MS
      ) {
        await settle(trainer);
        lastRead = performance.now();
      }
      if (epochEnds || step + 1 === steps) {
        const better = await closeEpoch(trainer, epoch);
        if (better) bestWeights = (await trainer.state()).weights;
      }
      if (due) {
        await keep(trainer);
        done();
      }
    }
    await settle(trainer);
    // Weights may be finite and their scores not: the last update is judged by no step after it.
    if (validationLists.length === 0 && progress.step > 0)
      checkFinite((await trainer.evaluate([trainLists[0]])).losses[0]);
    await keep(trainer);
  };

  let repeated = false;
  await overLosses(engine.device, async (done) => {
    if (repeated) {
      ({ progress, state, bestWeights } = kept);
      await run.onRepeat?.(progress.step);
    }
    repeated = true;
    using trainer = await createTrainer(engine, source, {
      ...options,
      ...sizes,
      standardisation,
      seed: streamSeed("dropout", seed),
    });
    await go(trainer, done);
  });
  const best = progress.best === null ? state.weights : bestWeights;
  return {
    weights: unflatten(layout, best),
    last: unflatten(layout, state.weights),
    standardisation: options.standardise || options.anchor === "learned" ? standardisation : null,
    epochs: progress.epochs,
    best: progress.best,
    chance,
    steps: progress.step,
    stoppedEarly: progress.stopped,
    interrupted: run.signal?.aborted === true && progress.step < steps && !progress.stopped,
    trainLists,
    validationLists,
    plan,
  };

  /** Validates, notes the epoch, and says whether it is the best so far. */
  async function closeEpoch(trainer: Trainer, epoch: number): Promise<boolean> {
    let validation: EpochRecord["validation"] = null;
    if (validationLists.length > 0) {
      const { scores, losses } = await trainer.evaluate(validationLists);
      checkFinite(losses.find((loss) => !Number.isFinite(loss)) ?? 0);
      const { top1 } = measureLists(
        Float32Array.from(scores.flatMap((own) => [...own])),
        labelsOf(source, validationLists),
      );
      const mean = (values: ArrayLike<number>) =>
        Array.from(values).reduce((sum, value) => sum + value, 0) / values.length;
      validation = { loss: mean(losses), top1: mean(top1) };
    }
    const record: EpochRecord = {
      epoch,
      step: progress.step,
      loss: progress.partial.loss / Math.max(1, progress.partial.steps),
      validation,
    };
    const epochs = [...progress.epochs, record];
    const better =
      validation !== null &&
      isBetter(validation, progress.best === null ? null : progress.epochs[progress.best].validation, options.select);
    const best = better ? epochs.length - 1 : progress.best;
    const stopped = options.patience > 0 && best !== null && epochs.length - 1 - best >= options.patience;
    progress = { ...progress, epochs, best, stopped, partial: { steps: 0, loss: 0 } };
    run.onEpoch?.(record, better);
    return better;
  }
}

/** Whether a validation beats the best so far. */
export function isBetter(
  now: NonNullable<EpochRecord["validation"]>,
  best: EpochRecord["validation"],
  select: TrainOptions["select"],
): boolean {
  if (best === null) return true;
  if (select === "top1" && now.top1 !== best.top1) return now.top1 > best.top1;
  return now.loss < best.loss;
}

function diverged(
  { step, loss, gradNorm }: StepRecord,
  mean: number | undefined,
  chance: number,
  { lr, clip }: TrainOptions,
  { checkpoint }: TrainRun,
  saved: number,
): StratumError {
  const what =
    mean === undefined
      ? `step ${step}: the loss is ${loss}, the gradient's norm ${gradNorm}`
      : `step ${step}: the loss has a mean of ${mean.toPrecision(4)} over the last ${GUARD_STEPS} steps, where equal scores give ${chance.toPrecision(4)}`;
  const kept =
    checkpoint === undefined || saved < 0
      ? ""
      : `; the last good checkpoint, after ${saved} steps, is ${checkpoint.path}`;
  return new StratumError(
    "train/diverged",
    `the training diverged at ${what} (learning rate ${lr})${kept}`,
    step === 0 && mean === undefined
      ? "nothing was learned yet: raise --tau, or check the features and the first weights"
      : `lower --lr${clip === 0 ? ", or bound the gradient with --clip 1" : ""}`,
  );
}
