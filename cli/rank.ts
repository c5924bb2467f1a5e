/** `stratum rank`: lists in, rankings out. */
import type { Command } from "commander";
import type { Engine } from "../engine/model.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import { sumBytes } from "../engine/planned-buffer.ts";
import { StratumError } from "../errors.ts";
import { runPooling } from "../scorer/encode.ts";
import { type Fields, type ListLine, parseList, readLists } from "../scorer/lists.ts";
import { createRanker } from "../scorer/rank.ts";
import type { RankCounts } from "../scorer/rankings-file.ts";
import { inputFacts } from "../scorer/resume.ts";
import { planScorer } from "../scorer/scorer.ts";
import { loadScorer } from "../scorer/scorer-file.ts";
import {
  addRunOptions,
  loadPlanned,
  modelDirectory,
  planLine,
  type RunFlags,
  withEngine,
  withModelFiles,
} from "./common.ts";
import { dryRun } from "./dry-run.ts";
import { counted, formatCount, formatSeconds } from "./format.ts";
import {
  addRankChoice,
  askedPooling,
  type FullOptions,
  type RankChoice,
  rankFacts,
  rankOptions,
} from "./rank-options.ts";
import { type RankOutput, type RankOutputFlags, type RankSource, withRankOutput } from "./rank-output.ts";
import { addShardOptions, noteUnsharded, planInput, shardOutput } from "./sharding.ts";
import { EXIT, note, reportError, type StopSignal, startProgress, stopSignal } from "./terminal.ts";
import { machineOf, noteOtherKernels, tuneModel } from "./tuning.ts";

interface RankFlags extends RankChoice, Omit<RunFlags, "pooling">, RankOutputFlags {
  readonly instruction?: string;
  readonly candidate?: string[];
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
    .option("-o, --output <file>", "write rankings there instead of stdout; stopped, the same command goes on")
    .option("--append", "write behind what the output holds, under its own name from the first line on")
    .option("--instruction <text>", "rank one list given on the command line")
    .option("--candidate <text>", "a candidate of --instruction; repeat it", (text, all: string[] = []) => [
      ...all,
      text,
    ])
    .option("--dry-run", "say what it would take: tokens, time, memory")
    .addHelpText("after", EXAMPLES);
  addShardOptions(command, "rank");
  addRankChoice(command);
  addRunOptions(
    command,
    "a JSON summary at the end, on stderr, before a profile's (with --dry-run: the estimate on stdout)",
  ).action(async (lists: string | undefined, flags: RankFlags) => {
    process.exitCode = await runRank(lists, askedPooling(command, flags));
  });
}

/** The lists to rank: of a file, of stdin, or the one that the flags spell. */
function listSource(path: string | undefined, flags: RankFlags): RankSource {
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
      ...{ name: "the command line", path: null },
      plan: async () => ({ total: 1, ranges: null, whole: null }),
      lines: async function* () {
        yield line;
      },
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
  return {
    ...{ name: source === "-" ? "stdin" : source, path: source },
    plan: () => planInput(source, flags.shard),
    lines: () => readLists(source),
  };
}

/** Runs the command. @returns the exit code */
async function runRank(path: string | undefined, flags: RankFlags): Promise<number> {
  const scorer = flags.scorer === "cosine" ? undefined : await loadScorer(flags.scorer);
  const stop = stopSignal();
  const source = listSource(path, flags);
  noteUnsharded(flags.shard);
  // What is wrong with the files' names is told before a model is opened.
  if (source.path !== null && source.path !== "-") await inputFacts(source.path);
  if (!flags.dryRun) await shardOutput(source.path, flags);
  return withModelFiles(
    modelDirectory(flags.model),
    async (files) => {
      const options = await rankOptions(files, scorer, flags);
      if ((await files.template()) === null)
        note("note    this model has no chat template: prompts are plain concatenation (marked in each ranking)");
      if (flags.dryRun) return dryRun(files, source.lines(), source.name, options, flags, stop);
      const facts = { ...(await rankFacts(files, options, flags)), append: flags.append ?? false };
      return withRankOutput(source, facts, flags, async (output) => {
        if (output.finished) {
          await output.finish();
          return tell(output, { files, options, flags, stop, seconds: 0, before: output.counts });
        }
        return withEngine(flags, (opened) => rankLists(opened, files, output, options, flags, stop));
      });
    },
    flags,
  );
}

/** Ranks what is left of the lists. @returns the exit code */
async function rankLists(
  opened: Engine,
  files: ModelFiles,
  output: RankOutput,
  options: FullOptions,
  flags: RankFlags,
  stop: StopSignal,
): Promise<number> {
  const { layer, scorer, pooling, batchTokens } = options;
  const { engine, kernels } = await tuneModel(opened, files, layer, flags, output.machine);
  output.begin(machineOf(engine, kernels));
  if (scorer !== undefined) noteOtherKernels(scorer.training, kernels, flags);
  const request = { layers: [layer], output: "scores", pooling: runPooling(pooling), batchTokens } as const;
  const scorerBytes = scorer === undefined ? 0 : sumBytes(planScorer(scorer.spec));
  const model = await loadPlanned(engine, files, request, { scorerBytes });
  using ranker = await createRanker(model, options);
  const rows = ranker.runner.budget;
  note(`layer   ${layer} of ${files.spec.config.layers}, scorer ${flags.scorer}, pooling ${pooling}`);
  if (options.abstainBelow !== undefined) note(`abstain below ${options.abstainBelow}`);
  const before = output.counts;
  const progress = startProgress(output.total ?? undefined, "lists", before.lists);
  const begin = performance.now();
  try {
    for await (const result of ranker.rank(output.lines, { signal: stop.signal })) {
      await output.write(result);
      if (result.kind === "failed") progress.aside(() => reportError(result.error));
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
  const seconds = (performance.now() - begin) / 1000;
  if (stop.exitCode() === undefined) await output.finish();
  const machine = {
    adapter: engine.device.info.name,
    kernels: kernels.id,
    gpu_bytes: ranker.bytes,
    gpu_live_bytes: engine.device.liveBytes,
  };
  return tell(output, { files, options, flags, stop, seconds, before, machine });
}

interface Told {
  readonly files: ModelFiles;
  readonly options: FullOptions;
  readonly flags: RankFlags;
  readonly stop: StopSignal;
  readonly seconds: number;
  /** What earlier runs did. */
  readonly before: RankCounts;
  readonly machine?: Readonly<Record<string, string | number>>;
}

/** Says what was done. @returns the exit code */
function tell({ counts }: RankOutput, { files, options, flags, stop, seconds, before, machine }: Told): number {
  const stopped = stop.exitCode();
  const rate = (total: number, earlier: number) => (seconds > 0 ? (total - earlier) / seconds : 0);
  const lists = rate(counts.lists, before.lists);
  const tokens = Math.round(rate(counts.tokens, before.tokens));
  const abstains = options.abstainBelow !== undefined;
  const summary = {
    ...counts,
    abstained: abstains ? counts.abstained : null,
    resumed: before.lists,
    seconds: Number(seconds.toFixed(3)),
    lists_per_second: Number(lists.toFixed(1)),
    tokens_per_second: tokens,
    model: files.name,
    layer: options.layer,
    scorer: flags.scorer,
    ...machine,
    read_bytes: files.checkpoint.log.bytes,
    output: flags.output ?? null,
    stopped: stopped !== undefined,
  };
  if (flags.json) process.stderr.write(`${JSON.stringify(summary)}\n`);
  else {
    const failed = counts.failed > 0 ? `; ${formatCount(counts.failed)} failed` : "";
    const abstained = abstains ? `; abstained from ${formatCount(counts.abstained)}` : "";
    const pace =
      lists > 0 ? ` in ${formatSeconds(seconds)} (${lists.toFixed(1)} lists/s, ${formatCount(tokens)} tokens/s)` : "";
    const earlier = before.lists > 0 ? `; ${counted(before.lists, "list")} by earlier runs` : "";
    note(
      `${stopped === undefined ? "done" : "stopped"}    ${counted(counts.lists - counts.failed, "list")}, ${counted(counts.candidates, "candidate")}, ${counted(counts.tokens, "token")}${pace}${abstained}${failed}${earlier}`,
    );
  }
  return stopped ?? (counts.failed > 0 ? EXIT.someFailed : EXIT.ok);
}
