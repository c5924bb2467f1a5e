/** `stratum eval`: a scorer beside the baselines, on labelled lists that it has not seen. */
import type { Command } from "commander";
import type { Engine } from "../engine/model.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import { randomWeights } from "../engine/random-weights.ts";
import { StratumError } from "../errors.ts";
import { openFeatures } from "../scorer/features-file.ts";
import { instructionKey } from "../scorer/instructions.ts";
import { emptyFileError, type List, readLists } from "../scorer/lists.ts";
import { loadScorer, type SavedScorer } from "../scorer/scorer-file.ts";
import { checkScorerFits } from "../scorer/scorer-fits.ts";
import { divideLists, seenInstructions } from "../scorer/seen.ts";
import { labelsOf } from "../scorer/text-baselines.ts";
import { addRunOptions, countLines, modelDirectory, positiveInteger, withEngine, withModelFiles } from "./common.ts";
import { type Control, type EvalFlags, type Loaded, measure } from "./eval-measure.ts";
import { loadedFrom, requestOf } from "./eval-states.ts";
import { checkListsPath, withFeatures } from "./features.ts";
import { bootstrapOption, safeFromOption } from "./measure-options.ts";
import { properShare, wholeNumber } from "./numbers.ts";
import { note, type StopSignal, stopSignal, warn } from "./terminal.ts";

const HELP = `
Examples:
  $ stratum eval lists.jsonl --model path/to/model --scorer scorer
  $ stratum eval lists.jsonl --model path/to/model --scorer scorer --control --slices
  $ stratum eval other.jsonl --fit lists.jsonl --model path/to/model --scorer scorer --json > result.json
  $ stratum eval --features features.safetensors --scorer scorer

Lists need labels; those with a missing label, or whose labels are all alike, are left out. Layer, pooling and system
message are the scorer's. Lists whose instructions the scorer was trained or chosen with are left out, too; on them the
difference of means, the linear probe and the bag of words are fitted, unless --fit names other lists.
Ties count as a random order of them would on average. Intervals: 95%, by the bootstrap over instructions.
'vs scorer' is a method's top-1 minus the scorer's, list by list. AUC is for scores that compare across lists.

--json prints one object:
  lists      {read, failed, unlabelled, no_contrast, seen, evaluated, fitted}: lists counted
  methods    a row each: {name, pointwise, top1, pairwise, mrr, ndcg, auc, auprc, top1_minus_scorer}; a measure is
             {mean, low, high, lists} in [0, 1], or null where it has no value
  slices     with --slices: [{name, lists, instructions, candidates, methods}], else null
  coverage   of a pointwise scorer: {safe_from, lists, repeated, confidence, area, curve, stored, chosen}, else null; a point of
             the curve is {threshold, answered, wrong, coverage, error, upper}, stored the scorer's own threshold here
  instructions, candidates: what was evaluated; scorer {path, head, base, layer, pooling, system}, model, adapter, kernels;
  options    {k, safe_from, seed, bootstrap, include_seen, control, fit, features}
Exit codes: 0 done, 1 some lists failed or none can be used, 2 usage, 3 environment, 129/130/143 stopped by a signal.`;

/** Declares the command. */
export function evalCommand(program: Command): void {
  const command = program
    .command("eval")
    .description("measure a scorer beside the baselines, on labelled lists that it has not seen")
    .argument("[lists]", "JSONL file of labelled lists")
    .requiredOption("--scorer <dir>", "the scorer's folder, as stratum train writes it")
    .option("-l, --layer <k>", "layer, where the scorer does not say (otherwise it must be the scorer's)")
    .option("--features <file>", "evaluate on given features instead of lists and a model (no text baselines then)")
    .option("--fit <file>", "fit the baselines on these lists (with --features: on these features)")
    .option("--control", "run the model again with random weights: what a probe reaches, learning did not give")
    .option("--include-seen", "evaluate lists that the scorer has seen, too")
    .addOption(safeFromOption())
    .option("--k <depth>", "the depth of NDCG@k", positiveInteger, 5)
    .option(
      "--abstain-error <rate>",
      "with a pointwise head: choose on these lists the score below which a list gets no winner, so that at most this share of winners is not safe",
      properShare,
    )
    .option("--abstain-confidence <p>", "of that, and of the bounds beside coverage and error", properShare, 0.95)
    .option("--slices", "the same rows for lists with one safe candidate, without refusals, and by length")
    .option("--seed <n>", "of the bootstrap, of the baselines' fits and of the random weights", wholeNumber, 0)
    .addOption(bootstrapOption())
    .option("--no-cache", "compute features anew and keep none")
    .addHelpText("after", HELP);
  addRunOptions(command, "one JSON object on stdout instead of tables").action(
    async (lists: string | undefined, flags: EvalFlags) => {
      // The default of --pooling is the scorer's, unless it was asked for.
      const { pooling, ...rest } = flags;
      const given = command.getOptionValueSource("pooling") === "cli" ? { pooling } : {};
      process.exitCode = await runEval(lists, { ...rest, ...given } as EvalFlags);
    },
  );
}

async function runEval(path: string | undefined, flags: EvalFlags): Promise<number> {
  const stop = stopSignal();
  await checkInputs(path, flags);
  const scorer = await loadScorer(flags.scorer);
  try {
    const code = await withEngine(flags, (engine) =>
      path === undefined
        ? evalFeatures(engine, scorer, flags.features as string, flags)
        : evalLists(engine, scorer, path, flags, stop),
    );
    return stop.exitCode() ?? code;
  } catch (thrown) {
    const stopped = stop.exitCode();
    if (stopped === undefined || !stop.signal.aborted) throw thrown;
    warn("stopped before anything was measured");
    return stopped;
  }
}

/** @throws {StratumError} `usage/list`, `usage/features`, `usage/no-input` */
async function checkInputs(path: string | undefined, flags: EvalFlags): Promise<void> {
  if ((path === undefined) === (flags.features === undefined)) {
    throw new StratumError(
      "usage/list",
      path === undefined ? "there is nothing to evaluate on" : "both lists and --features were given",
      "give a JSONL file of lists, or --features with a file of features",
    );
  }
  if (flags.features === undefined) {
    for (const given of [path, flags.fit]) {
      if (given === undefined) continue;
      checkListsPath(given);
      await countLines(given);
    }
    return;
  }
  const model = (["model", "layer", "pooling", "system", "control"] as const).find((name) => flags[name] !== undefined);
  if (model === undefined) return;
  throw new StratumError(
    "usage/features",
    `--${model} has no meaning with --features: no model is run`,
    `leave --${model} out, or give lists instead of features`,
  );
}

async function evalFeatures(engine: Engine, scorer: SavedScorer, path: string, flags: EvalFlags): Promise<number> {
  await using source = await openFeatures(path);
  await using fitted = flags.fit === undefined ? null : await openFeatures(flags.fit);
  for (const { dim } of fitted === null ? [source] : [source, fitted])
    checkScorerFits(scorer, { fingerprint: scorer.base?.fingerprint ?? "", dim });
  note(`adapter ${engine.device.info.name} (${engine.device.info.source})`);
  note("note    features carry no instructions: lists that the scorer has seen cannot be told apart");
  const loaded = (of: typeof source): Loaded => ({ source: of, clusters: null, lists: null, failed: 0, kernels: null });
  const fit = fitted === null ? null : loaded(fitted);
  return await measure({ engine, scorer, on: loaded(source), fit, seen: null, control: null, model: null, flags });
}

async function evalLists(
  engine: Engine,
  scorer: SavedScorer,
  path: string,
  flags: EvalFlags,
  stop: StopSignal,
): Promise<number> {
  return withModelFiles(
    modelDirectory(flags.model),
    async (files) => {
      const request = await requestOf(scorer, files, flags);
      const seen = seenInstructions(scorer.training);
      if (seen === null)
        note("note    the scorer's record names no instructions: lists that it has seen cannot be told apart");
      await divideLines(path, seen, flags);
      const load = async <T>(
        of: ModelFiles,
        use: (on: Loaded, fit: Loaded | null) => Promise<T>,
        report = true,
      ): Promise<T> =>
        withFeatures(engine, of, path, { ...request, report }, flags, stop, async (found) => {
          if (flags.fit === undefined) return use(loadedFrom(found), null);
          return withFeatures(engine, of, flags.fit, { ...request, report }, flags, stop, (other) =>
            use(loadedFrom(found), loadedFrom(other)),
          );
        });
      const control: Control = (use) => {
        note(`control the same pass with random weights, seed ${flags.seed}`);
        // What is wrong with a line was told when the model's own states were computed.
        return load(randomWeights(files, flags.seed), use, false);
      };
      return load(files, (on, fit) =>
        measure({
          engine,
          scorer,
          on,
          fit,
          seen,
          control: flags.control ? control : null,
          model: files.name,
          flags,
        }),
      );
    },
    flags,
  );
}

/** Divides a file's lists before the model runs: what is wrong with all of them shows at once. */
async function divideLines(path: string, seen: ReadonlySet<string> | null, flags: EvalFlags): Promise<void> {
  const lists: List[] = [];
  let lines = 0;
  for await (const line of readLists(path)) {
    lines++;
    if (line.kind === "list") lists.push(line.list);
  }
  if (lines === 0) throw emptyFileError(path);
  divideLists(labelsOf(lists), { ...flags, keys: lists.map(instructionKey), seen });
}
