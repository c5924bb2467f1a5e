/** Which model's states rank lists, and how: the options that `rank` and `submit` share. */
import type { Command } from "commander";
import { fingerprint } from "../engine/fingerprint.ts";
import { resolveLayer } from "../engine/layers.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import { StratumError } from "../errors.ts";
import { checkPointwise, recordedThreshold } from "../scorer/abstain.ts";
import type { Pooling } from "../scorer/encode.ts";
import type { RunFacts } from "../scorer/journal.ts";
import type { RankOptions } from "../scorer/rank.ts";
import type { SavedScorer } from "../scorer/scorer-file.ts";
import { checkScorerFits } from "../scorer/scorer-fits.ts";
import { type ListFlags, positiveInteger } from "./common.ts";
import { number } from "./numbers.ts";
import { runFacts, scorerFact } from "./run-facts.ts";
import { note } from "./terminal.ts";

export interface RankChoice extends Omit<ListFlags, "pooling"> {
  /** Absent unless it was asked for: a scorer has one of its own. */
  readonly pooling?: Pooling;
  readonly layer?: string;
  readonly scorer: string;
  readonly topN?: number;
  readonly returnDocuments?: boolean;
  readonly abstainBelow?: number | "auto";
}

/** Adds the options of {@link RankChoice} beside those of every run over lists. */
export function addRankChoice(command: Command): Command {
  return command
    .option("-l, --layer <k>", "layer: a number, or a percentage of the blocks (default: the scorer's, or 25%)")
    .option(
      "--scorer <dir>",
      "a trained scorer's folder, or cosine: between the instruction's state and each response's",
      "cosine",
    )
    .option("--top-n <n>", "keep the best n of each list", positiveInteger)
    .option("--return-documents", "put the candidates into the results")
    .option(
      "--abstain-below <score>",
      "mark lists whose best score is below this as abstained; auto: the threshold of a scorer trained with --abstain-error",
      scoreOrAuto,
    );
}

/** A threshold of scores, or `auto`. */
function scoreOrAuto(text: string): number | "auto" {
  return text === "auto" ? text : number(-Number.MAX_VALUE, Number.MAX_VALUE, "a number or auto")(text);
}

/**
 * The threshold below which a list gets no winner.
 * @throws {StratumError} `usage/abstain` for auto without a scorer, `scorer/not-pointwise`, `scorer/no-threshold`
 */
function abstainThreshold(scorer: SavedScorer | undefined, asked: RankChoice["abstainBelow"]): number | undefined {
  if (asked !== undefined && scorer !== undefined) checkPointwise(scorer.spec.head);
  if (asked !== "auto") return asked;
  if (scorer !== undefined) return recordedThreshold(scorer.training);
  throw new StratumError(
    "usage/abstain",
    "--abstain-below auto needs a scorer: the cosine of states has no threshold of its own",
    "give --scorer with a pointwise scorer that was trained with --abstain-error, or --abstain-below a number",
  );
}

/** The flags with a pooling only where one was asked for. */
export function askedPooling<T extends RankChoice>(command: Command, flags: T): T {
  if (command.getOptionValueSource("pooling") === "cli") return flags;
  const { pooling: _, ...rest } = flags;
  return rest as T;
}

/** What makes a ranking this one and no other. */
export async function rankFacts(files: ModelFiles, options: FullOptions, flags: RankChoice): Promise<RunFacts> {
  const { layer, pooling, system, topN, returnDocuments, abstainBelow } = options;
  return {
    command: "rank",
    ...(await runFacts(files, { depth: layer, pooling, system }, flags)),
    ...{ layer, scorer: await scorerFact(flags.scorer) },
    ...{ "top-n": topN ?? null, "return-documents": returnDocuments ?? false },
    "abstain-below": abstainBelow ?? null,
  };
}

/** The options of a ranking; layer, pooling and system message are the scorer's where the flags say nothing. */
export type FullOptions = RankOptions & { readonly layer: number; readonly pooling: Pooling };

/** @throws {StratumError} where the tokenizer or the scorer does not fit: told before weights are fetched */
export async function rankOptions(
  files: ModelFiles,
  scorer: SavedScorer | undefined,
  flags: RankChoice,
): Promise<FullOptions> {
  const abstainBelow = abstainThreshold(scorer, flags.abstainBelow);
  const { layers, hiddenSize } = files.spec.config;
  // Fewer layers than the scorer's: another model, which the check below names.
  const own = scorer?.layer ?? null;
  const layer =
    flags.layer === undefined && own !== null && own <= layers ? own : resolveLayer(flags.layer ?? "25%", layers);
  const pooling = flags.pooling ?? scorer?.pooling ?? "last";
  const system = flags.system ?? scorer?.system ?? undefined;
  await files.tokenizer();
  if (scorer !== undefined) {
    checkScorerFits(scorer, {
      fingerprint: await fingerprint(files, layer),
      name: files.name,
      dim: hiddenSize,
      layer,
      pooling,
      system,
    });
    if (scorer.base === null)
      note(`note    ${flags.scorer} does not say which model and layer it was trained on: layer ${layer} is taken`);
  }
  const { date, truncate, topN, returnDocuments, batchTokens, sharePrefix } = flags;
  return {
    layer,
    scorer,
    system,
    date,
    pooling,
    truncate,
    topN,
    returnDocuments,
    abstainBelow,
    batchTokens,
    sharePrefix,
  };
}
