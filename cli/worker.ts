/** `stratum worker`: ranks the chunks of a pool, run after run. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Command } from "commander";
import type { WeightForm } from "../engine/decoder.ts";
import { fingerprint } from "../engine/fingerprint.ts";
import type { Engine } from "../engine/model.ts";
import { openModelFiles } from "../engine/model-files.ts";
import type { RunRequest } from "../engine/plan.ts";
import { sumBytes } from "../engine/planned-buffer.ts";
import { StratumError } from "../errors.ts";
import { type Pooling, runPooling } from "../scorer/encode.ts";
import type { Pool } from "../scorer/pool.ts";
import type { PoolRun } from "../scorer/pool-records.ts";
import { SCORER_FILES } from "../scorer/pool-submit.ts";
import type { RunRanker } from "../scorer/pool-worker.ts";
import { createRanker, type RankOptions } from "../scorer/rank.ts";
import { planScorer } from "../scorer/scorer.ts";
import { loadScorer } from "../scorer/scorer-file.ts";
import {
  addCommonOptions,
  type CommonOptions,
  demoModel,
  loadPlanned,
  MODEL_HELP,
  packageVersion,
  positiveInteger,
  withEngine,
} from "./common.ts";
import { showDownload } from "./download.ts";
import { counted } from "./format.ts";
import { addPoolOptions, openFlagged, type PoolFlags } from "./pool-options.ts";
import { scorerFact } from "./run-facts.ts";
import { EXIT, note, reportError, stopSignal, warn } from "./terminal.ts";
import { addTuneOption, type TuneFlags, tuneModel } from "./tuning.ts";

interface WorkerFlags extends CommonOptions, PoolFlags, Pick<TuneFlags, "tune"> {
  readonly json?: boolean;
  readonly quiet?: boolean;
  readonly model?: string;
  readonly modelCache?: string;
  readonly stalledAfter: number;
  readonly drain?: boolean;
}

const EXAMPLES = `
Examples:
  $ stratum worker --queue redis://head:6379
  $ stratum worker --queue redis://head:6379 --model /local/copy/of/the/model --drain

Workers come and go as they like: each takes the next chunk, and the chunks of one that dies are taken over by the others.
SIGTERM ends a worker after the chunks that it has begun, with exit code 143.`;

/** Declares the command. */
export function workerCommand(program: Command): void {
  const command = program.command("worker").description("rank chunks of a pool, until it is stopped");
  addPoolOptions(command)
    .option(
      "-m, --model <name>",
      `the runs' model, where it lies on this machine (default: as submitted). ${MODEL_HELP}`,
    )
    .option("--model-cache <dir>", "where models of the hub are kept on this machine (default: HF_HUB_CACHE)")
    .option("--stalled-after <s>", "a worker without a sign of life for so long is dead", positiveInteger, 30)
    .option("--drain", "end once nothing is left to do")
    .addHelpText("after", EXAMPLES);
  addCommonOptions(addTuneOption(command), "a line of JSON a chunk on stdout").action(async (flags: WorkerFlags) => {
    process.exitCode = await runWorker(flags);
  });
}

/** Runs the command. @returns the exit code */
async function runWorker(flags: WorkerFlags): Promise<number> {
  if (flags.modelCache !== undefined) process.env["HF_HUB_CACHE"] = flags.modelCache;
  const { work } = await import("../scorer/pool-worker.ts");
  const stop = stopSignal();
  await using pool = await openFlagged(flags);
  await withEngine(flags, async (engine) => {
    note(`adapter ${engine.device.info.name} (${engine.device.info.source}); waiting for chunks of ${flags.name}`);
    const counts = { chunks: 0, lists: 0 };
    await work(pool, {
      open: (run) => openRun(engine, pool, run, flags),
      ...{ stalledMs: 1000 * flags.stalledAfter, signal: stop.signal, drain: flags.drain ?? false },
      onChunk(done) {
        counts.chunks++;
        counts.lists += done.lists;
        if (flags.json) process.stdout.write(`${JSON.stringify(done)}\n`);
        else
          note(
            `chunk   ${done.index}: lines ${done.lines.join(" to ")}, ${counted(done.lists, "list")} in ${done.seconds} s`,
          );
      },
      onTrouble: (text) => warn(text),
      onFailure: (error, attempt) => {
        note(`failed  attempt ${attempt}`);
        reportError(error);
      },
    });
    note(`done    ${counted(counts.lists, "list")} in ${counted(counts.chunks, "chunk")}`);
  });
  return stop.exitCode() ?? EXIT.ok;
}

/** Loads what a run needs, and checks that it is what was submitted. */
async function openRun(opened: Engine, pool: Pool, run: PoolRun, flags: WorkerFlags): Promise<RunRanker> {
  const { options, layer, facts } = run;
  if (facts["version"] !== packageVersion()) {
    throw new StratumError(
      "queue/other-version",
      `run ${run.id} was submitted by Stratum ${facts["version"]}, and this is ${packageVersion()}`,
      "use the same version on every machine, or submit the lists again with this one",
    );
  }
  const name = flags.model ?? run.model ?? demoModel();
  const { onProgress, onNote, stop } = showDownload();
  const files = await openModelFiles(name, {
    ...{ onProgress, onNote, weights: run.weights as WeightForm },
  }).finally(stop);
  try {
    if ((await fingerprint(files, layer)) !== run.fingerprint) {
      throw new StratumError(
        "usage/other-model",
        `${name} is not the model that run ${run.id} was submitted with`,
        "give --model the same model on this machine",
      );
    }
    const scorer = await scorerOf(pool, run);
    const choice: RankOptions = {
      ...{ layer, scorer, pooling: options.pooling as Pooling, truncate: options.truncate },
      ...{ system: options.system ?? undefined, date: options.date ?? undefined, topN: options.topN ?? undefined },
      ...{ returnDocuments: options.returnDocuments, sharePrefix: options.sharePrefix },
      ...{ batchTokens: options.batchTokens ?? undefined, abstainBelow: options.abstainBelow ?? undefined },
    };
    const { engine, kernels } = await tuneModel(opened, files, layer, flags);
    const pooling = runPooling(options.pooling as Pooling);
    const request: RunRequest = { layers: [layer], output: "scores", pooling, batchTokens: choice.batchTokens };
    const model = await loadPlanned(engine, files, request, {
      scorerBytes: scorer === undefined ? 0 : sumBytes(planScorer(scorer.spec)),
    });
    const ranker = await createRanker(model, choice);
    note(`run     ${run.id}: ${run.input}, layer ${layer}`);
    return {
      ranker,
      adapter: engine.device.info.name,
      kernels: kernels.id,
      async [Symbol.asyncDispose]() {
        ranker[Symbol.dispose]();
        await model[Symbol.asyncDispose]();
      },
    };
  } catch (cause) {
    await files[Symbol.asyncDispose]();
    throw cause;
  }
}

/**
 * The scorer that was submitted with the run.
 * @throws {StratumError} `queue/other-scorer` where Redis lost it, or has another
 */
async function scorerOf({ redis, key }: Pool, run: PoolRun) {
  const wanted = run.facts["scorer"];
  if (wanted === "cosine") return undefined;
  const files = await redis.hgetallBuffer(key("run", run.id, "scorer"));
  const folder = await mkdtemp(join(tmpdir(), "stratum-scorer-"));
  try {
    for (const name of SCORER_FILES) if (files[name] !== undefined) await writeFile(join(folder, name), files[name]);
    const found = SCORER_FILES.every((name) => files[name] !== undefined) ? await scorerFact(folder) : "none";
    if (found !== wanted) {
      throw new StratumError(
        "queue/other-scorer",
        `run ${run.id} was submitted with scorer ${wanted}, and the queue holds ${found}`,
        "submit the same lists with the same --scorer again, which puts it back; and let Redis evict nothing (maxmemory-policy noeviction)",
      );
    }
    return await loadScorer(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
