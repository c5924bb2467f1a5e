/** `stratum rank`: lists in, rankings out. */
import type { Command } from "commander";
import { fingerprint } from "../engine/fingerprint.ts";
import { resolveLayer } from "../engine/layers.ts";
import { sumBytes } from "../engine/planned-buffer.ts";
import { StratumError } from "../errors.ts";
import { checkPointwise, recordedThreshold } from "../scorer/abstain.ts";
import { type Pooling, runPooling } from "../scorer/encode.ts";
import { emptyFileError, type Fields, type ListLine, parseList, readLists } from "../scorer/lists.ts";
import { createRanker, type RankOptions } from "../scorer/rank.ts";
import { toJsonLine } from "../scorer/rankings.ts";
import { planScorer } from "../scorer/scorer.ts";
import { loadScorer, type SavedScorer } from "../scorer/scorer-file.ts";
import { checkScorerFits } from "../scorer/scorer-fits.ts";
import {
  addRunOptions,
  countLines,
  loadPlanned,
  modelDirectory,
  planLine,
  positiveInteger,
  type RunFlags,
  withEngine,
  withModelFiles,
} from "./common.ts";
import { dryRun } from "./dry-run.ts";
import { formatCount, formatSeconds } from "./format.ts";
import { number } from "./numbers.ts";
import { openOutput } from "./output.ts";
import { EXIT, note, reportError, startProgress, stopSignal } from "./terminal.ts";
import { noteOtherKernels, tuneModel } from "./tuning.ts";

interface RankFlags extends Omit<RunFlags, "pooling"> {
  /** Absent unless it was asked for: a scorer has one of its own. */
  readonly pooling?: Pooling;
  readonly layer?: string;
  readonly scorer: string;
  readonly output?: string;
  readonly instruction?: string;
  readonly candidate?: string[];
  readonly topN?: number;
  readonly returnDocuments?: boolean;
  readonly abstainBelow?: number | "auto";
  readonly dryRun?: boolean;
}

const EXAMPLES = `
Examples:
  $ stratum rank lists.jsonl -o rankings.jsonl --model path/to/model
  $ cat lists.jsonl | stratum rank --layer 8 --top-n 1 - > best.jsonl
  $ stratum rank --instruction "How do I put out a pan fire?" --candidate "Cover it with a lid." --candidate "Pour water on it."
  $ stratum rank lists.jsonl --dry-run

A list is a JSON line: {"id": "q1", "instruction": "...", "candidates": [{"text": "..."}, "..."]}
A ranking is one too: {"id": "q1", "results": [{"index": 1, "relevance_score": 0.83}, ...]}, best first.
Exit codes: 0 all ranked, 1 some lists failed (their lines say why), 2 usage, 3 environment, 129/130/143 stopped by a signal, 141 the reader of stdout
is gone.`;

/** Declares the command. */
export function rankCommand(program: Command): void {
  const command = program
    .command("rank")
    .description("rank candidate responses by the hidden states of a middle layer")
    .argument("[lists]", "JSONL file of lists, or - for stdin")
    .option("-l, --layer <k>", "layer: a number, or a percentage of the blocks (default: the scorer's, or 25%)")
    .option(
      "--scorer <dir>",
      "a trained scorer's folder, or cosine: between the instruction's state and each response's",
      "cosine",
    )
    .option("-o, --output <file>", "write rankings there instead of stdout")
    .option("--instruction <text>", "rank one list given on the command line")
    .option("--candidate <text>", "a candidate of --instruction; repeat it", (text, all: string[] = []) => [
      ...all,
      text,
    ])
    .option("--top-n <n>", "keep the best n of each list", positiveInteger)
    .option("--return-documents", "put the candidates into the results")
    .option(
      "--abstain-below <score>",
      "mark lists whose best score is below this as abstained; auto: the threshold of a scorer trained with --abstain-error",
      scoreOrAuto,
    )
    .option("--dry-run", "say what it would take: tokens, time, memory")
    .addHelpText("after", EXAMPLES);
  addRunOptions(
    command,
    "a JSON summary at the end, on stderr, before a profile's (with --dry-run: the estimate on stdout)",
  ).action(async (lists: string | undefined, flags: RankFlags) => {
    const { pooling, ...rest } = flags;
    const asked = command.getOptionValueSource("pooling") === "cli" && pooling !== undefined;
    process.exitCode = await runRank(lists, asked ? { ...rest, pooling } : rest);
  });
}

/** A threshold of scores, or `auto`. */
function scoreOrAuto(text: string): number | "auto" {
  return text === "auto" ? text : number(-Number.MAX_VALUE, Number.MAX_VALUE, "a number or auto")(text);
}

/**
 * The threshold below which a list gets no winner.
 * @throws {StratumError} `usage/abstain` for auto without a scorer, `scorer/not-pointwise`, `scorer/no-threshold`
 */
function abstainThreshold(scorer: SavedScorer | undefined, asked: RankFlags["abstainBelow"]): number | undefined {
  if (asked !== undefined && scorer !== undefined) checkPointwise(scorer.spec.head);
  if (asked !== "auto") return asked;
  if (scorer !== undefined) return recordedThreshold(scorer.training);
  throw new StratumError(
    "usage/abstain",
    "--abstain-below auto needs a scorer: the cosine of states has no threshold of its own",
    "give --scorer with a pointwise scorer that was trained with --abstain-error, or --abstain-below a number",
  );
}

/** The lines to rank: of a file, of stdin, or the one that the flags spell. */
async function listSource(
  path: string | undefined,
  flags: RankFlags,
): Promise<{ lines: AsyncIterable<ListLine>; total: number | undefined; name: string }> {
  if (flags.instruction !== undefined || flags.candidate !== undefined) {
    if (path !== undefined || flags.instruction === undefined || flags.candidate === undefined) {
      throw new StratumError(
        "usage/list",
        path === undefined
          ? "--instruction and --candidate belong together"
          : "both a file and --instruction or --candidate were given",
        'give a file, or --instruction "..." with one or more --candidate "..."',
      );
    }
    const record: Fields = { instruction: flags.instruction, candidates: flags.candidate };
    const list = parseList(record, "1");
    const line: ListLine = { kind: "list", line: 0, id: list.id, list };
    return {
      total: 1,
      name: "the command line",
      lines: (async function* () {
        yield line;
      })(),
    };
  }
  if (path === undefined && process.stdin.isTTY) {
    throw new StratumError(
      "usage/list",
      "there is nothing to rank",
      "give a JSONL file, - for stdin, or --instruction with --candidate; see stratum rank --help",
    );
  }
  const source = path ?? "-";
  return { lines: readLists(source), total: await countLines(source), name: source === "-" ? "stdin" : source };
}

/** Runs the command. @returns the exit code */
async function runRank(path: string | undefined, flags: RankFlags): Promise<number> {
  const scorer = flags.scorer === "cosine" ? undefined : await loadScorer(flags.scorer);
  const abstainBelow = abstainThreshold(scorer, flags.abstainBelow);
  const stop = stopSignal();
  const source = await listSource(path, flags);
  return withModelFiles(
    modelDirectory(flags.model),
    async (files) => {
      const { layers, hiddenSize } = files.spec.config;
      // Fewer layers than the scorer's: another model, which the check below names.
      const own = scorer?.layer ?? null;
      const layer =
        flags.layer === undefined && own !== null && own <= layers ? own : resolveLayer(flags.layer ?? "25%", layers);
      const pooling = flags.pooling ?? scorer?.pooling ?? "last";
      const system = flags.system ?? scorer?.system ?? undefined;
      // One that is missing or does not fit is told before weights are fetched.
      await files.tokenizer();
      if (scorer !== undefined) {
        const identity = await fingerprint(files, layer);
        checkScorerFits(scorer, {
          fingerprint: identity,
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
      const options: RankOptions = {
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
      if ((await files.template()) === null)
        note("note    this model has no chat template: prompts are plain concatenation (marked in each ranking)");
      if (flags.dryRun) return dryRun(files, source.lines, source.name, options, flags, stop);

      const output = await openOutput(flags.output);
      let finished = false;
      try {
        const code = await withEngine(flags, async (opened) => {
          const { engine, kernels } = await tuneModel(opened, files, layer, flags);
          if (scorer !== undefined) noteOtherKernels(scorer.training, kernels, flags);
          const request = { layers: [layer], output: "scores", pooling: runPooling(pooling), batchTokens } as const;
          const scorerBytes = scorer === undefined ? 0 : sumBytes(planScorer(scorer.spec));
          const model = await loadPlanned(engine, files, request, { scorerBytes });
          using ranker = await createRanker(model, options);
          const rows = ranker.runner.budget;
          note(`layer   ${layer} of ${layers}, scorer ${flags.scorer}, pooling ${pooling}`);
          if (abstainBelow !== undefined) note(`abstain below ${abstainBelow}`);
          const progress = startProgress(source.total, "lists");
          const begin = performance.now();
          const counts = { lists: 0, failed: 0, candidates: 0, tokens: 0 };
          let abstained = 0;
          try {
            for await (const result of ranker.rank(source.lines, { signal: stop.signal })) {
              await output.write(toJsonLine(result.record));
              counts.lists++;
              if (result.kind === "failed") {
                counts.failed++;
                progress.aside(() => reportError(result.error));
              } else {
                counts.candidates += result.list.candidates.length;
                counts.tokens += result.tokens;
                if (result.record.abstained) abstained++;
              }
              progress.add(1, result.kind === "ranked" ? result.tokens : 0);
            }
          } finally {
            progress.stop();
          }
          if (ranker.runner.budget > rows) {
            const { runner } = ranker;
            note(
              `plan    grew for a long list: ${planLine(files, { weights: model.loaded.plan, workspace: new Map(), rows: runner.budget, bytes: runner.bytes }, ranker.bytes - runner.bytes).slice(8)}`,
            );
          }
          const stopped = stop.exitCode();
          if (counts.lists === 0 && stopped === undefined) throw emptyFileError(source.name);
          const seconds = (performance.now() - begin) / 1000;
          const summary = {
            ...counts,
            abstained: abstainBelow === undefined ? null : abstained,
            seconds: Number(seconds.toFixed(3)),
            tokens_per_second: Math.round(counts.tokens / seconds),
            model: files.name,
            layer,
            scorer: flags.scorer,
            adapter: engine.device.info.name,
            kernels: kernels.id,
            gpu_bytes: ranker.bytes,
            gpu_live_bytes: engine.device.liveBytes,
            read_bytes: files.checkpoint.log.bytes,
            output: flags.output ?? null,
            stopped: stopped !== undefined,
          };
          if (flags.json) process.stderr.write(`${JSON.stringify(summary)}\n`);
          else {
            note(
              `${stopped === undefined ? "done" : "stopped"}    ${formatCount(counts.lists - counts.failed)} lists, ${formatCount(counts.candidates)} candidates, ${formatCount(counts.tokens)} tokens in ${formatSeconds(seconds)} (${formatCount(Math.round(counts.tokens / seconds))} tokens/s)${abstainBelow === undefined ? "" : `; abstained from ${formatCount(abstained)}`}${counts.failed > 0 ? `; ${counts.failed} failed` : ""}`,
            );
          }
          return stopped ?? (counts.failed > 0 ? EXIT.someFailed : EXIT.ok);
        });
        if (stop.exitCode() === undefined) {
          await output.finish();
          finished = true;
        }
        return code;
      } finally {
        if (!finished) await output.leave();
      }
    },
    flags,
  );
}
