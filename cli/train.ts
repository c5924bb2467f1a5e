/** `stratum train`: lists or features in, a scorer's folder out. */
import { existsSync } from "node:fs";
import { rmdir } from "node:fs/promises";
import { join, parse } from "node:path";
import { type Command, Option } from "commander";
import { fingerprint } from "../engine/fingerprint.ts";
import { resolveLayer } from "../engine/layers.ts";
import type { Engine } from "../engine/model.ts";
import type { KernelsRecord } from "../engine/tiles.ts";
import { StratumError } from "../errors.ts";
import { LOSSES } from "../kernels/list-loss.ts";
import { calibrateScorer, checkCalibration } from "../scorer/calibrate.ts";
import type { EpochRecord } from "../scorer/checkpoint.ts";
import type { Pooling } from "../scorer/encode.ts";
import type { FeatureSource } from "../scorer/feature-source.ts";
import { openFeatures } from "../scorer/features-file.ts";
import { type InstructionRecord, instructionKey } from "../scorer/instructions.ts";
import { PRESETS, type Recipe, trainOptionsOf } from "../scorer/presets.ts";
import { splitByInstruction } from "../scorer/sampling.ts";
import { SCHEDULES } from "../scorer/schedule.ts";
import { type BaseModel, saveScorer } from "../scorer/scorer-file.ts";
import { SCORER_HEADS } from "../scorer/scorer-spec.ts";
import { loadWeights, saveWeights } from "../scorer/scorer-weights.ts";
import {
  ANCHOR_CHOICES,
  type AnchoredOptions,
  type AnchoredResult,
  anchorsOf,
  trainAnchored,
} from "../scorer/train-anchors.ts";
import type { Anchor, TrainPlan } from "../scorer/train-options.ts";
import type { StepRecord } from "../scorer/trainer.ts";
import { tellThreshold } from "./abstain-output.ts";
import {
  addRunOptions,
  modelDirectory,
  packageVersion,
  positiveInteger,
  recordedName,
  withEngine,
  withModelFiles,
} from "./common.ts";
import { withFeatures } from "./features.ts";
import { counted, formatCount } from "./format.ts";
import { byteCount, number, properShare, share, wholeNumber } from "./numbers.ts";
import { openStepLog, type StepLog } from "./step-log.ts";
import { EXIT, note, type StopSignal, startTrainProgress, stopSignal, warn, writeStdout } from "./terminal.ts";
import {
  CHECKPOINT,
  checkAbstain,
  checkTogether,
  claimFolder,
  clearFolder,
  recipeOf,
  specOf,
  type TrainFlags,
} from "./train-options.ts";
import { ANCHOR_WORDS, planLine, report } from "./train-output.ts";

const EXAMPLES = `
Examples:
  $ stratum train lists.jsonl --model path/to/model --hold-out 0.3 -o scorer
  $ stratum train lists.jsonl --model path/to/model --layer 60% --preset few-lists --seed 2 -o scorer
  $ stratum train --features features.safetensors --loss listnet --no-validation -o scorer
  $ stratum eval lists.jsonl --model path/to/model --scorer scorer

Lists need labels: {"instruction": "...", "candidates": [{"text": "...", "label": 1}, {"text": "...", "label": 0}]}.
Lists with a missing label, or whose labels are all alike, teach nothing and are left out.
The folder: scorer.safetensors and scorer.json (the best epoch), last.safetensors (the last step), checkpoint.safetensors
(for --resume); with --anchor auto checkpoint-learned.safetensors and the log's -learned of the second run. What a preset sets, a flag overrides.
Exit codes: 0 done, 1 unusable lists, a diverged training or a checkpoint of another run, 2 usage, 3 environment, 129/130/143 stopped by a signal.`;

/** Declares the command. */
export function trainCommand(program: Command): void {
  const command = program
    .command("train")
    .description("train a scorer on labelled lists")
    .argument("[lists]", "JSONL file of labelled lists")
    .requiredOption("-o, --output <dir>", "the scorer's folder")
    .addOption(
      new Option("--preset <name>", "what the other options begin with").choices(Object.keys(PRESETS)).default("srr"),
    )
    .option("-l, --layer <k>", "layer: a number, or a percentage of the blocks (preset: 25%)")
    .option("--features <file>", "train on given features instead of lists and a model")
    .option("--init <file>", "first weights, safetensors with PyTorch's names; sizes are the file's")
    .addOption(new Option("--head <name>", "with attention between candidates, or without").choices(SCORER_HEADS))
    .option("--width <p>", "the scorer's width", positiveInteger)
    .option("--heads <n>", "attention heads", positiveInteger)
    .option("--ffn <n>", "width of the feed-forward layer", positiveInteger)
    .option("--tau <t>", "temperature: scores are divided by it", number(0, Number.MAX_VALUE, "a number above 0", true))
    .addOption(new Option("--loss <name>", "loss over a list").choices(LOSSES))
    .option("--dropout <rate>", "rate of the dropouts within the scorer", number(0, 0.99, "a number from 0 to 0.99"))
    .option("--input-dropout <rate>", "rate of the dropout at the features", number(0, 0.99, "a number from 0 to 0.99"))
    .addOption(
      new Option(
        "--anchor <name>",
        "what responses are compared with: the instruction's state, a learned vector, or what validates better",
      ).choices(ANCHOR_CHOICES),
    )
    .option(
      "--instruction-offset <c>",
      "added to an instruction's standardised features, so that the scorer can tell it from a response",
      number(-100, 100, "a number from -100 to 100"),
    )
    .option("--lr <rate>", "learning rate", number(0, Number.MAX_VALUE, "a number from 0"))
    .option("--weight-decay <w>", "decoupled weight decay", number(0, Number.MAX_VALUE, "a number from 0"))
    .option(
      "--clip <norm>",
      "bound of the gradient's global norm; 0: none",
      number(0, Number.MAX_VALUE, "a number from 0"),
    )
    .addOption(new Option("--schedule <name>", "of the learning rate after the warm-up").choices(SCHEDULES))
    .option("--warmup <steps>", "steps of linear warm-up", wholeNumber)
    .option("--batch-lists <n>", "lists a step", positiveInteger)
    .option("--full-batch", "every list in every step, whole and in order")
    .option("--epochs <n>", "passes over the lists", positiveInteger)
    .option("--steps <n>", "steps in all, instead of --epochs", positiveInteger)
    .option(
      "--sub-lists <share>",
      "how often a list is drawn as a random part of itself",
      number(0, 1, "a share from 0 to 1"),
    )
    .option("--validation <share>", "lists that validate, by instruction", share)
    .option("--no-validation", "train on all lists; the last weights count")
    .addOption(
      new Option("--select <by>", "the best epoch has the lowest validation loss, or the highest top-1").choices([
        "loss",
        "top1",
      ]),
    )
    .option("--patience <epochs>", "end after so many epochs without a better one; 0: never", wholeNumber)
    .option("--hold-out <share>", "lists kept away from the training, by instruction, for stratum eval", share, 0)
    .option(
      "--abstain-error <rate>",
      "with a pointwise head: choose on the validation lists the score below which rank --abstain-below auto gives no winner, so that at most this share of its winners is not safe",
      properShare,
    )
    .option("--abstain-confidence <p>", "how sure that is to be", properShare, 0.95)
    .option(
      "--safe-from <label>",
      "for --abstain-error, where labels are not 0 and 1: a candidate with this label or a higher one is safe",
      number(-Number.MAX_VALUE, Number.MAX_VALUE, "a number"),
    )
    .option("--no-standardise", "take features as they are")
    .option("--seed <n>", "of everything random", wholeNumber, 0)
    .option("--log <file>", 'a line {"step", "loss"} a step, the loss before its update')
    .option("--resume", "go on from the folder's checkpoint, bit for bit")
    .option("--overwrite", "replace a folder that exists")
    .option("--checkpoint-every <steps>", "steps between checkpoints", positiveInteger, 200)
    .option(
      "--gpu-memory <bytes>",
      "features up to so many bytes stay on the GPU, as 2GiB or 500MB",
      byteCount,
      2 * 2 ** 30,
    )
    .option("--no-cache", "compute features anew and keep none")
    .addHelpText("after", EXAMPLES);
  addRunOptions(command, "a JSON summary on stdout").action(async (lists: string | undefined, flags: TrainFlags) => {
    // The default of --pooling is the preset's, unless it was asked for.
    const { pooling, ...rest } = flags;
    const given = command.getOptionValueSource("pooling") === "cli" ? { pooling } : {};
    process.exitCode = await runTrain(lists, { ...rest, ...given } as TrainFlags);
  });
}

/** What is known of the features' origin. */
interface Origin {
  readonly base: BaseModel | null;
  readonly layer: number | null;
  readonly pooling: Pooling | null;
  readonly system: string | null;
  /** Keys of the instructions, a list each. */
  readonly instructions: readonly string[] | null;
  /** What the states come from. */
  readonly kernels: KernelsRecord | null;
}

async function runTrain(path: string | undefined, flags: TrainFlags): Promise<number> {
  const stop = stopSignal();
  if ((path === undefined) === (flags.features === undefined)) {
    throw new StratumError(
      "usage/list",
      path === undefined ? "there is nothing to train on" : "both lists and --features were given",
      "give a JSONL file of lists, or --features with a file of features",
    );
  }
  checkTogether(flags);
  const recipe = recipeOf(flags);
  checkAbstain(flags, recipe);
  if (recipe.tau >= 1)
    warn(
      `warning: tau ${recipe.tau} is high: with scores from -1 to 1 one safe candidate among ten gets at most ${bestShare(recipe.tau, 10)} of the probability`,
    );
  const made = await claimFolder(flags);
  try {
    return await withEngine(flags, async (engine) => {
      if (flags.features !== undefined) {
        await using source = await openFeatures(flags.features);
        const origin = { base: null, layer: null, pooling: null, system: null, instructions: null, kernels: null };
        note(
          `features ${counted(source.lists, "list")}, ${counted(source.labels.length, "candidate")}, states ${source.dim} wide`,
        );
        return await train(engine, source, origin, recipe, flags, stop);
      }
      return withModelFiles(
        modelDirectory(flags.model),
        async (files) => {
          const layer = resolveLayer(recipe.layer, files.spec.config.layers);
          const { pooling } = recipe;
          const { system, cache } = flags;
          const request = { layers: [layer], pooling, system, cache };
          return withFeatures(engine, files, path as string, request, flags, stop, async (found) => {
            const [{ source }] = found.layers;
            note(
              `layer   ${layer} of ${files.spec.config.layers}, pooling ${pooling}: ${counted(source.lists, "list")}, ${counted(source.labels.length, "candidate")}`,
            );
            const origin: Origin = {
              base: {
                name: recordedName(files),
                fingerprint: await fingerprint(files, layer),
              },
              layer,
              pooling,
              system: system ?? null,
              instructions: found.lists.map(instructionKey),
              kernels: found.kernels,
            };
            const code = await train(engine, source, origin, recipe, flags, stop);
            return code === EXIT.ok && found.leftOut.length > 0 ? EXIT.someFailed : code;
          });
        },
        flags,
      );
    });
  } catch (thrown) {
    // A folder that nothing came into is of no use.
    if (made) await rmdir(flags.output).catch(() => undefined);
    // A signal during the pass over the model: nothing was trained.
    const stopped = stop.exitCode();
    if (stopped === undefined || !stop.signal.aborted) throw thrown;
    warn("stopped before the training began");
    return stopped;
  }
}

/** Share of the probability that the best score of 1 gets among m - 1 of -1. */
function bestShare(tau: number, m: number): string {
  return (1 / (1 + (m - 1) * Math.exp(-2 / tau))).toFixed(2);
}

async function train(
  engine: Engine,
  source: FeatureSource,
  origin: Origin,
  recipe: Recipe,
  flags: TrainFlags,
  stop: StopSignal,
): Promise<number> {
  if (source.lists === 0)
    throw new StratumError(
      "list/no-contrast",
      "there is no list to train on: none of them could be used",
      "mend the lines that are named above",
    );
  const spec = await specOf(flags, recipe, source.dim);
  const init = flags.init === undefined ? undefined : await loadWeights(flags.init, spec);
  const keys = origin.instructions ?? Array.from({ length: source.lists }, (_, b) => String(b));
  const [lists, held] = splitByInstruction(keys, [1 - flags.holdOut, flags.holdOut], flags.seed);
  if (flags.abstainError !== undefined) checkCalibration(spec.head, source, lists, flags);
  const options: AnchoredOptions = {
    ...trainOptionsOf(recipe, source.dim),
    spec,
    seed: flags.seed,
    steps: flags.steps,
    ...(flags.warmup === undefined ? {} : { warmup: flags.warmup }),
  };
  const anchors = anchorsOf(options);
  const logs = new Map<Anchor, StepLog>();
  const curves = new Map<Anchor, number[]>(anchors.map((anchor) => [anchor, []]));
  const progress = startTrainProgress();
  const begin = performance.now();
  let plan: TrainPlan | undefined;
  let result: AnchoredResult;
  try {
    for (const anchor of anchors) logs.set(anchor, await openStepLog(sideName(flags.log, anchor, anchors)));
    result = await trainAnchored(engine, source, options, (anchor) => {
      const [log, losses] = [logs.get(anchor) as StepLog, curves.get(anchor) as number[]];
      const first = anchor === anchors[0];
      const path = join(flags.output, sideName(CHECKPOINT, anchor, anchors) as string);
      // A run that was stopped during the first anchor has no checkpoint of the second yet.
      const resume = flags.resume === true && (first || existsSync(path));
      return {
        ...{ instructions: keys, init, lists, residentLimit: flags.gpuMemory, signal: stop.signal },
        kernels: origin.kernels?.id,
        checkpoint: { path, everySteps: flags.checkpointEvery, resume },
        async onPlan(found) {
          plan = found;
          if (first) {
            note(planLine(engine, spec, recipe, found));
            if (found.leftOut > 0)
              note(`note    ${counted(found.leftOut, "list")} left out: a missing label, or all labels alike`);
            if (held.length > 0) note(`note    ${counted(held.length, "list")} held out`);
            // Not before: what stops a run earlier must not cost the scorer that is there.
            if (flags.overwrite && !flags.resume) await clearFolder(flags.output);
          }
          if (anchors.length > 1)
            note(`anchor  ${ANCHOR_WORDS[anchor]}${found.from > 0 ? `, from step ${found.from}` : ""}`);
          await log.begin(found.from);
          progress.start(found.steps, found.from);
        },
        onStep(record: StepRecord) {
          losses.push(record.loss);
          log.add(record);
          progress.step(record);
        },
        async onRepeat(step) {
          note(`training goes on after step ${formatCount(step)}`);
          losses.length = step - (plan?.from ?? 0);
          await log.begin(step);
        },
        onEpoch: (record: EpochRecord, best: boolean) => progress.epoch(record, best),
        onCheckpoint: () => log.flush(),
      };
    });
    for (const log of logs.values()) await log.flush();
  } finally {
    progress.stop();
    for (const log of logs.values()) await log.close();
  }
  const losses = curves.get(result.anchor) ?? [];
  const stopped = result.interrupted ? stop.exitCode() : undefined;
  if (stopped !== undefined) {
    warn(`stopped after ${counted(result.steps, "step")}; go on with the same command and --resume`);
    return stopped;
  }
  const seconds = (performance.now() - begin) / 1000;
  const of = (indices: readonly number[]) => [...new Set(indices.map((b) => keys[b]))].sort();
  const instructions: InstructionRecord = {
    train: of(result.trainLists),
    validation: of(result.validationLists),
    test: of(held),
  };
  const best = result.best === null ? null : result.epochs[result.best];
  const { spec: _spec, ...recorded } = options;
  const found = { source, keys, lists, seed: flags.seed, validation: recipe.validation };
  const trained = { spec, weights: result.weights, standardise: result.standardisation };
  const abstain =
    flags.abstainError === undefined
      ? null
      : await calibrateScorer(
          engine,
          trained,
          { ...found, trainLists: result.trainLists, validationLists: result.validationLists },
          { error: flags.abstainError, confidence: flags.abstainConfidence, safeFrom: flags.safeFrom },
        );
  await saveWeights(join(flags.output, "last.safetensors"), spec, result.last);
  await saveScorer(flags.output, {
    ...{ spec, base: origin.base, layer: origin.layer, pooling: origin.pooling, system: origin.system },
    standardise: result.standardisation,
    weights: result.weights,
    training: {
      ...{
        stratum: packageVersion(),
        adapter: engine.device.info.name,
        kernels: origin.kernels,
        preset: flags.preset,
        options: recorded,
      },
      ...{
        parameters: result.plan.parameters,
        lists: result.trainLists.length,
        validation_lists: result.validationLists.length,
      },
      ...{ anchor: result.anchor, tried: result.tried },
      ...{ steps: result.steps, stopped_early: result.stoppedEarly, best, epochs: result.epochs },
      ...(abstain === null ? {} : { abstain }),
      ...(origin.instructions === null ? {} : { instructions }),
    },
  });
  const summary = {
    ...{
      output: flags.output,
      head: spec.head,
      layer: origin.layer,
      loss: recipe.loss,
      anchor: result.anchor,
      tried: result.tried,
      parameters: result.plan.parameters,
    },
    ...{
      lists: result.trainLists.length,
      validation_lists: result.validationLists.length,
      held_out_lists: held.length,
    },
    ...{ left_out_lists: result.plan.leftOut, steps: result.steps, epochs: result.epochs.length },
    ...{
      stopped_early: result.stoppedEarly,
      best,
      last_loss: losses.at(-1) ?? null,
      abstain,
      seconds: Number(seconds.toFixed(3)),
    },
    ...{ adapter: engine.device.info.name, kernels: origin.kernels?.id ?? null, gpu_bytes: plan?.bytes ?? null },
  };
  if (flags.json) await writeStdout(`${JSON.stringify(summary)}\n`);
  report(result, losses, best, seconds, flags, recipe);
  if (abstain !== null) tellThreshold(abstain);
  return EXIT.ok;
}

/** A file of one anchor's run: under its own name where there is one run, else the second's beside the first's. */
function sideName(path: string | undefined, anchor: Anchor, anchors: readonly Anchor[]): string | undefined {
  if (path === undefined || anchor === anchors[0]) return path;
  const { dir, name, ext } = parse(path);
  return join(dir, `${name}-${anchor}${ext}`);
}
