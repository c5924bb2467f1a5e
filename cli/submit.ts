/** `stratum submit`: lists into a pool's queue. */
import { createWriteStream } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { type Command, InvalidArgumentError } from "commander";
import { fingerprint } from "../engine/fingerprint.ts";
import { loadScorer } from "../scorer/scorer-file.ts";
import { writeFailed } from "../weights/durable.ts";
import {
  addListOptions,
  addOutputOptions,
  countLines,
  modelDirectory,
  positiveInteger,
  withModelFiles,
} from "./common.ts";
import { counted, formatCount } from "./format.ts";
import { addPoolOptions, openFlagged, type PoolFlags } from "./pool-options.ts";
import { addRankChoice, askedPooling, type RankChoice, rankFacts, rankOptions } from "./rank-options.ts";
import { EXIT, note, type StopSignal, startProgress, stopSignal, writeStdout } from "./terminal.ts";

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
    .argument("<lists>", "JSONL file of lists, or - for stdin");
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
  const stop = stopSignal();
  if (path !== "-") return submitFile(path, path, flags, stop);
  // The lists are read more than once.
  const folder = await mkdtemp(join(tmpdir(), "stratum-submit-"));
  try {
    const copy = join(folder, "lists.jsonl");
    await pipeline(process.stdin, createWriteStream(copy), { signal: stop.signal }).catch((cause: unknown) => {
      if (!stop.signal.aborted) throw writeFailed(copy, cause);
    });
    return stop.exitCode() ?? (await submitFile(copy, "stdin", flags, stop));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** @param name of the lists, for people */
async function submitFile(path: string, name: string, flags: SubmitFlags, stop: StopSignal): Promise<number> {
  const { submitLists } = await import("../scorer/pool-submit.ts");
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
      await using pool = await openFlagged(flags);
      const progress = startProgress(total, "lists");
      try {
        const { run, added, retried } = await submitLists(pool, {
          ...{ path, chunkBytes: flags.chunkKib && flags.chunkKib * 1024, signal: stop.signal },
          scorer: flags.scorer === "cosine" ? null : flags.scorer,
          onChunk: (lists) => progress.add(lists, 0),
          run: {
            facts: await rankFacts(files, options, flags),
            ...{ model: flags.model ?? null, layer, weights: flags.weights ?? "stored", input: name },
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
          `run     ${run.id}: ${counted(run.lists, "list")} in ${counted(run.chunks, "chunk")}, ${formatCount(added)} of them new${again}`,
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
