/** `stratum submit`: lists into a pool's queue. */
import { type Command, InvalidArgumentError } from "commander";
import { fingerprint } from "../engine/fingerprint.ts";
import { StratumError } from "../errors.ts";
import { loadScorer } from "../scorer/scorer-file.ts";
import {
  addListOptions,
  addOutputOptions,
  countLines,
  modelDirectory,
  positiveInteger,
  withModelFiles,
} from "./common.ts";
import { formatCount } from "./format.ts";
import { addPoolOptions, type PoolFlags, poolAddress } from "./pool-options.ts";
import { addRankChoice, askedPooling, type RankChoice, rankFacts, rankOptions } from "./rank-options.ts";
import { EXIT, note, startProgress, stopSignal, writeStdout } from "./terminal.ts";

interface SubmitFlags extends RankChoice, PoolFlags {
  readonly chunkKib?: number;
}

const EXAMPLES = `
Examples:
  $ stratum submit lists.jsonl --queue redis://head:6379 --model org/name --layer 25%
  $ stratum worker --queue redis://head:6379          # on every machine; more may come at any time
  $ stratum collect --queue redis://head:6379 -o rankings.jsonl

The run's name is printed. The same lists submitted again are the same run: what is missing is added, chunks that were
set aside are tried again.`;

/** Declares the command. */
export function submitCommand(program: Command): void {
  const command = program
    .command("submit")
    .description("put lists into the queue of a pool of workers")
    .argument("<lists>", "JSONL file of lists");
  addPoolOptions(command).option(
    "--chunk-kib <n>",
    "KiB of text a chunk: what a worker does at a time, and at most loses (default: a 64th of the file, 2 to 64)",
    (text) => {
      const kib = positiveInteger(text);
      if (kib > 16 * 1024) throw new InvalidArgumentError("at most 16384.");
      return kib;
    },
  );
  addRankChoice(addListOptions(command)).addHelpText("after", EXAMPLES);
  addOutputOptions(command, "the run as JSON on stdout").action(async (lists: string, flags: SubmitFlags) => {
    process.exitCode = await runSubmit(lists, askedPooling(command, flags));
  });
}

/** Runs the command. @returns the exit code */
async function runSubmit(path: string, flags: SubmitFlags): Promise<number> {
  if (path === "-")
    throw new StratumError("usage/list", "submit reads a file twice, and stdin only once", "give a file");
  const [{ openPool }, { submitLists }] = await Promise.all([
    import("../scorer/pool.ts"),
    import("../scorer/pool-submit.ts"),
  ]);
  const stop = stopSignal();
  const total = await countLines(path);
  const model = modelDirectory(flags.model);
  return withModelFiles(
    model,
    async (files) => {
      const scorer = flags.scorer === "cosine" ? undefined : await loadScorer(flags.scorer);
      const options = await rankOptions(files, scorer, flags);
      const {
        layer,
        system,
        date,
        pooling = "last",
        truncate,
        topN,
        returnDocuments,
        batchTokens,
        sharePrefix,
      } = options;
      await using pool = await openPool(poolAddress(flags));
      const progress = startProgress(total, "lists");
      try {
        const { run, added, retried } = await submitLists(pool, {
          ...{ path, chunkBytes: flags.chunkKib && flags.chunkKib * 1024, signal: stop.signal },
          scorer: flags.scorer === "cosine" ? null : flags.scorer,
          onChunk: (lists) => progress.add(lists, 0),
          run: {
            facts: await rankFacts(files, options, flags),
            ...{ model, layer, weights: flags.weights ?? "stored", input: path },
            fingerprint: await fingerprint(files, layer),
            options: {
              ...{ system: system ?? null, date: date ?? null, pooling, truncate: truncate ?? false },
              ...{ topN: topN ?? null, returnDocuments: returnDocuments ?? false },
              abstainBelow: options.abstainBelow ?? null,
              ...{ batchTokens: batchTokens ?? null, sharePrefix: sharePrefix ?? true },
            },
          },
        });
        progress.stop();
        const again = retried > 0 ? `, ${retried} that had been set aside are tried again` : "";
        note(
          `run     ${run.id}: ${formatCount(run.lists)} lists in ${formatCount(run.chunks)} chunks, ${formatCount(added)} of them new${again}`,
        );
        await writeStdout(flags.json ? `${JSON.stringify({ ...run, added, retried })}\n` : `${run.id}\n`);
      } finally {
        progress.stop();
      }
      return stop.exitCode() ?? EXIT.ok;
    },
    flags,
  );
}
