/**
 * The training loop: lists drawn by seed, AdamW with a schedule, validation by instruction, early stopping, checkpoints.
 * Everything random is a function of the seed and the step, so that a run that was stopped goes on bit for bit.
 */
import { createHash, type Hash } from "node:crypto";
import type { Engine } from "../engine/model.ts";
import { sumBytes } from "../engine/plan.ts";
import { StratumError } from "../errors.ts";
import { checkLabels, type LossName } from "../kernels/list-loss.ts";
import { listLossTwin } from "../kernels/list-loss-twin.ts";
import { type EpochRecord, readCheckpoint, type TrainProgress, writeCheckpoint } from "./checkpoint.ts";
import { type FeatureSource, listLength } from "./feature-source.ts";
import { type DrawnList, identity, measureStandardisation, type Standardisation } from "./feeder.ts";
import { measureLists } from "./measures.ts";
import { flatten, parameterLayout, unflatten } from "./network.ts";
import { epochOrder, epochSubList, splitByInstruction, streamRandom } from "./sampling.ts";
import { learningRate, type ScheduleName } from "./schedule.ts";
import { checkScorerSpec, initialWeights, parameterShapes, type ScorerSpec } from "./scorer-spec.ts";
import {
  createTrainer,
  LOG_SLOTS,
  type OptimizerState,
  planTrainer,
  type StepRecord,
  type Trainer,
} from "./trainer.ts";

export const ANCHORS = ["instruction", "learned"] as const;
export type Anchor = (typeof ANCHORS)[number];

export interface TrainOptions {
  readonly spec: ScorerSpec;
  readonly loss: LossName;
  /** The rate of all dropouts, in [0, 1). */
  readonly dropout: number;
  /** Rate of the dropout at the features, in [0, 1). */
  readonly inputDropout: number;
  /**
   * What the responses are compared with: the instruction's state, or a learned vector in its place. The second forgets
   * the instruction; where lists are few, its state is mostly a way to learn them by heart.
   */
  readonly anchor: Anchor;
  /**
   * Added to every feature of an instruction once it is standardised. Standardising instructions and responses apart takes
   * away what tells the one from the other, and a shared projection followed by a cosine then scores likeness alone.
   */
  readonly instructionOffset: number;
  readonly lr: number;
  readonly weightDecay: number;
  /** Bound of the gradient's global norm; 0: none. */
  readonly clip: number;
  readonly schedule: ScheduleName;
  /** Steps of linear warm-up, or their share of all. */
  readonly warmup: number | { readonly share: number };
  /** Lists a step; "all": every training list in every step, in their order. */
  readonly batchLists: number | "all";
  /** Passes over the training lists. */
  readonly epochs: number;
  /** Steps in all; overrides `epochs`. */
  readonly steps?: number | undefined;
  /** How often a drawn list is a random part of itself, in [0, 1]. */
  readonly subLists: number;
  /** Share of the lists that validate, by instruction; 0: none, and the last weights count. */
  readonly validation: number;
  /** Which epoch's weights are the best: of the lowest validation loss, or of the highest top-1, ties by the loss. */
  readonly select: "loss" | "top1";
  /** Epochs without a better one that end the run; 0: never. */
  readonly patience: number;
  readonly standardise: boolean;
  readonly seed: number;
}

export interface TrainRun {
  /** An instruction's text a list, so that its lists stay on one side; by default every list is an instruction. */
  readonly instructions?: readonly string[] | undefined;
  /** First weights by PyTorch's names; by default drawn from the seed. */
  readonly init?: ReadonlyMap<string, Float32Array> | undefined;
  /** Lists to train on (validation included); default all. */
  readonly lists?: readonly number[] | undefined;
  /** Where checkpoints go; none are written without. */
  readonly checkpoint?: { readonly path: string; readonly everySteps: number; readonly resume: boolean } | undefined;
  /** Bytes of features that may stay on the GPU; beyond, they are brought batch by batch. Default 2 GiB. */
  readonly residentLimit?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Before anything is allocated: what the run will hold on the GPU. */
  readonly onPlan?: ((plan: TrainPlan) => void | Promise<void>) | undefined;
  readonly onStep?: ((record: StepRecord) => void) | undefined;
  readonly onEpoch?: ((record: EpochRecord, best: boolean) => void) | undefined;
  /** A checkpoint is about to be written, for so many steps: what belongs to them must be on disk before it. */
  readonly onCheckpoint?: ((step: number) => Promise<void>) | undefined;
}

export interface TrainPlan {
  readonly bytes: number;
  /** All features stay on the GPU. */
  readonly resident: boolean;
  readonly trainLists: number;
  readonly validationLists: number;
  /** Lists that teach nothing: a missing label, or all labels alike. */
  readonly leftOut: number;
  readonly parameters: number;
  readonly steps: number;
  readonly stepsPerEpoch: number;
  /** The step that the run begins at: above 0 when it is resumed. */
  readonly from: number;
}

export interface TrainResult {
  /** By PyTorch's names: those of the best epoch, or the last without validation. */
  readonly weights: Map<string, Float32Array<ArrayBuffer>>;
  readonly last: Map<string, Float32Array<ArrayBuffer>>;
  readonly standardisation: Standardisation | null;
  readonly epochs: readonly EpochRecord[];
  /** Index into `epochs`. */
  readonly best: number | null;
  /** Mean loss of training lists whose scores are all equal. */
  readonly chance: number;
  readonly steps: number;
  /** Ended by early stopping. */
  readonly stoppedEarly: boolean;
  /** Ended by the signal, after a checkpoint. */
  readonly interrupted: boolean;
  /** Indices into the source. */
  readonly trainLists: readonly number[];
  readonly validationLists: readonly number[];
  readonly plan: TrainPlan;
}

/** Rows of a batch on the GPU, unless a list is longer. */
const BATCH_ROWS = 1024;
const RESIDENT_LIMIT = 2 * 2 ** 30;
/** The log is read at least this often where steps are slow, so that progress shows. */
const LOG_MS = 250;

/** The guard against divergence looks at so many steps, and ends a run whose mean loss over them is so far above chance. */
const GUARD_STEPS = 64;
const GUARD_FACTOR = 3;

/** Lists that teach: every candidate labelled, and two grades. @throws {StratumError} `list/bad-labels`, `list/no-contrast` */
export function trainableLists(source: FeatureSource, loss: LossName, lists?: readonly number[]): number[] {
  const asked = lists ?? Array.from({ length: source.lists }, (_, b) => b);
  let unlabelled = 0;
  const usable = asked.filter((b) => {
    const labels = source.labels.subarray(source.offsets[b], source.offsets[b + 1]);
    if (labels.some(Number.isNaN)) {
      unlabelled++;
      return false;
    }
    if (labels.every((label) => label === labels[0])) return false;
    const fault = checkLabels(loss, labels);
    if (fault !== null) {
      throw new StratumError(
        "list/bad-labels",
        `list ${b + 1}: ${fault}`,
        `mend the labels, or choose a --loss that takes them (listnet, ranknet and listmle take any grade)`,
      );
    }
    return true;
  });
  if (usable.length > 0) return usable;
  throw new StratumError(
    "list/no-contrast",
    `none of ${asked.length} lists has candidates of two grades (${unlabelled} with a missing label)`,
    'give lists whose candidates carry labels, "label": 1 for safe and 0 for not, both in one list',
  );
}

/**
 * The statistics that features enter with. With a learned anchor a scale of 0 makes every instruction the same: the
 * projection's bias.
 */
async function standardisationOf(
  source: FeatureSource,
  lists: readonly number[],
  { standardise, anchor, instructionOffset }: TrainOptions,
): Promise<Standardisation> {
  const { dim } = source;
  const found = standardise ? await measureStandardisation(source, lists) : identity(dim);
  if (anchor === "learned") found.scale.fill(0, 0, dim);
  else if (standardise) for (let i = 0; i < dim; i++) found.mean[i] -= instructionOffset / found.scale[i];
  return found;
}

/**
 * Mean loss of lists whose scores are all equal, what an untrained scorer can be expected to have, and its deviation: sums
 * over long lists make losses that differ by orders of magnitude.
 */
function chanceLoss(
  source: FeatureSource,
  lists: readonly number[],
  { loss, spec }: TrainOptions,
): { readonly mean: number; readonly deviation: number } {
  let [sum, squares] = [0, 0];
  const longest = lists.reduce((most, b) => Math.max(most, listLength(source, b)), 1);
  // From everywhere: a file may be sorted by length. Fewer long ones: some losses look at every pair.
  const stride = Math.ceil(lists.length / Math.max(8, Math.min(256, 1e7 / longest ** 2)));
  const some = lists.filter((_, i) => i % stride === 0);
  for (const b of some) {
    const m = listLength(source, b);
    const losses = new Float64Array(1);
    const labels = new Float64Array(m + 1);
    labels.set(source.labels.subarray(source.offsets[b], source.offsets[b + 1]), 1);
    listLossTwin(
      { loss },
      {
        cosines: new Float64Array(2 * (m + 1)),
        labels,
        lists: Uint32Array.of(0, m + 1),
        hyper: Float64Array.of(spec.tau, 1),
        losses,
        grads: new Float64Array(m + 1),
        aux: new Float64Array(2 * (m + 1)),
      },
      1,
    );
    sum += losses[0];
    squares += losses[0] ** 2;
  }
  const mean = sum / some.length;
  return { mean, deviation: Math.sqrt(Math.max(0, squares / some.length - mean ** 2)) };
}

/** What a resumed run must share with the one that wrote the checkpoint. */
async function runIdentity(
  source: FeatureSource,
  options: TrainOptions,
  run: TrainRun,
  engine: Engine,
): Promise<Record<string, unknown>> {
  const bytes = (values: Float32Array | Uint32Array) =>
    new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const labels = createHash("sha256").update(bytes(source.offsets)).update(bytes(source.labels));
  const states = createHash("sha256");
  for (let b = 0; b < source.lists; b++) {
    const values = new Float32Array((1 + listLength(source, b)) * source.dim);
    await source.readList(b, values);
    states.update(bytes(values));
  }
  const instructions = createHash("sha256");
  for (const text of run.instructions ?? []) instructions.update(`${text.length}:${text}`);
  const lists = createHash("sha256").update(Uint32Array.from(run.lists ?? []));
  const init = createHash("sha256");
  for (const [name, values] of run.init ?? []) init.update(name).update(bytes(values));
  const short = (hash: Hash) => hash.digest("hex").slice(0, 16);
  const data = { states: short(states), labels: short(labels), instructions: short(instructions), lists: short(lists) };
  return JSON.parse(
    JSON.stringify({
      ...options,
      ...data,
      init: run.init === undefined ? null : short(init),
      adapter: engine.device.info.name,
    }),
  ) as Record<string, unknown>;
}

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
  const identityOfRun = await runIdentity(source, options, run, engine);
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
  };
  const planned = planTrainer(source, engine.device.info.limits, sizes);
  const plan: TrainPlan = {
    bytes: sumBytes(planned),
    resident: planned.some(({ label }) => label.startsWith("features.store")),
    trainLists: trainLists.length,
    validationLists: validationLists.length,
    leftOut: (run.lists?.length ?? source.lists) - usable.length,
    parameters: parameterShapes(spec).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0),
    steps,
    stepsPerEpoch,
    from: resumed?.progress.step ?? 0,
  };
  await run.onPlan?.(plan);
  const standardisation = resumed?.standardisation ?? (await standardisationOf(source, trainLists, options));
  using trainer = await createTrainer(engine, source, { ...options, ...sizes, standardisation, seed: seed >>> 0 });
  await trainer.feeder.load(trainer.network.buffers["x"]);

  const fresh = () => ({
    weights: flatten(layout, run.init ?? initialWeights(spec, seed)),
    first: new Float32Array(layout.count),
    second: new Float32Array(layout.count),
  });
  let state: OptimizerState = resumed?.state ?? fresh();
  trainer.setState(state);
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
  const { mean: chance, deviation } = chanceLoss(source, trainLists, options);
  const bound = GUARD_FACTOR * Math.max(chance, 1e-3) + (4 * deviation) / Math.sqrt(GUARD_STEPS * perStep);
  let saved = resumed?.progress.step ?? -1;

  /** Takes in the steps that the log holds. @throws {StratumError} `train/diverged` */
  const settle = async () => {
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
  const save = async () => {
    if (run.checkpoint === undefined || saved === progress.step) return;
    state = await trainer.state();
    if (!state.weights.every(Number.isFinite)) checkFinite(Number.NaN);
    if (progress.best === null) bestWeights = state.weights;
    await run.onCheckpoint?.(progress.step);
    await writeCheckpoint(run.checkpoint.path, { progress, state, best: bestWeights, standardisation });
    saved = progress.step;
  };
  await save();

  let order: { epoch: number; lists: readonly number[] } = { epoch: -1, lists: [] };
  let lastRead = performance.now();
  while (progress.step < steps && !progress.stopped && !run.signal?.aborted) {
    const step = progress.step + trainer.pending;
    const epoch = Math.floor(step / stepsPerEpoch);
    if (epoch !== order.epoch) order = { epoch, lists: orderOf(trainLists, options, epoch) };
    const first = (step % stepsPerEpoch) * perStep;
    const drawn = drawLists(source, order.lists.slice(first, first + perStep), options, epoch);
    await trainer.step(step, drawn, learningRate(schedule, step));
    const epochEnds = (step + 1) % stepsPerEpoch === 0;
    const due = run.checkpoint !== undefined && (step + 1) % run.checkpoint.everySteps === 0;
    if (
      epochEnds ||
      due ||
      step + 1 === steps ||
      trainer.pending === LOG_SLOTS ||
      performance.now() - lastRead > LOG_MS
    ) {
      await settle();
      lastRead = performance.now();
    }
    if (epochEnds || step + 1 === steps) {
      const better = await closeEpoch(trainer, epoch);
      if (better) bestWeights = (await trainer.state()).weights;
    }
    if (due) await save();
  }
  await settle();
  // Weights may be finite and their scores not: the last update is judged by no step after it.
  if (validationLists.length === 0 && progress.step > 0)
    checkFinite((await trainer.evaluate([trainLists[0]])).losses[0]);
  await save();
  state = await trainer.state();
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

/** Labels of some lists, as measures want them. */
function labelsOf(source: FeatureSource, lists: readonly number[]): { offsets: Uint32Array; labels: Float32Array } {
  const offsets = new Uint32Array(lists.length + 1);
  for (const [i, b] of lists.entries()) offsets[i + 1] = offsets[i] + listLength(source, b);
  const labels = new Float32Array(offsets[lists.length]);
  for (const [i, b] of lists.entries())
    labels.set(source.labels.subarray(source.offsets[b], source.offsets[b + 1]), offsets[i]);
  return { offsets, labels };
}

/** Training and validation lists. */
function splitLists(
  usable: readonly number[],
  { validation, seed }: TrainOptions,
  { instructions }: TrainRun,
): [readonly number[], readonly number[]] {
  if (validation === 0) return [usable, []];
  const keys = usable.map((b) => instructions?.[b] ?? String(b));
  const [train, held] = splitByInstruction(keys, [1 - validation, validation], seed);
  return [train.map((i) => usable[i]), held.map((i) => usable[i])];
}

/** The training lists in an epoch's order. */
function orderOf(lists: readonly number[], { batchLists, seed }: TrainOptions, epoch: number): readonly number[] {
  return batchLists === "all" ? lists : Array.from(epochOrder(lists.length, seed, epoch), (i) => lists[i]);
}

/** The lists of a step, whole or in part. */
function drawLists(
  source: FeatureSource,
  lists: readonly number[],
  { seed, subLists }: TrainOptions,
  epoch: number,
): DrawnList[] {
  return lists.map((list) => {
    if (subLists === 0) return { list };
    return { list, candidates: partOf(source, list, seed, epoch, subLists) };
  });
}

/** A random part of a list, as often as `share` says. */
function partOf(source: FeatureSource, list: number, seed: number, epoch: number, share: number): number[] | undefined {
  if (streamRandom("part", seed, epoch, list)() >= share) return undefined;
  const labels = source.labels.subarray(source.offsets[list], source.offsets[list + 1]);
  return Array.from(epochSubList(labels, seed, epoch, list));
}

function checkSameRun(before: Readonly<Record<string, unknown>>, now: Readonly<Record<string, unknown>>): void {
  const differs = [...new Set([...Object.keys(before), ...Object.keys(now)])].filter(
    (name) => JSON.stringify(before[name]) !== JSON.stringify(now[name]),
  );
  if (differs.length === 0) return;
  throw new StratumError(
    "train/other-run",
    `the checkpoint is of another run: ${differs.map((name) => `${name} was ${JSON.stringify(before[name]) ?? "absent"}, is ${JSON.stringify(now[name]) ?? "absent"}`).join("; ")}`,
    "resume with the options, the data and the adapter of the run that was stopped, or train anew in another folder",
  );
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
    `lower --lr${clip === 0 ? ", or bound the gradient with --clip 1" : ""}`,
  );
}
