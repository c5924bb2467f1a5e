/** `stratum extract`: hidden states into a safetensors file. */
import { type Command, InvalidArgumentError, Option } from "commander";
import { resolveLayers } from "../engine/layers.ts";
import type { Engine } from "../engine/model.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import { StratumError } from "../errors.ts";
import { runPooling } from "../scorer/encode.ts";
import { createExtractor } from "../scorer/extract.ts";
import { emptyFileError, readSequences } from "../scorer/lists.ts";
import { indexPath, openStatesFile, type StatesFile } from "../scorer/resumable-states.ts";
import { inputFacts } from "../scorer/resume.ts";
import {
  addRunOptions,
  countLines,
  loadPlanned,
  modelDirectory,
  packageVersion,
  type RunFlags,
  withEngine,
  withModelFiles,
} from "./common.ts";
import { formatCount, formatSeconds } from "./format.ts";
import { checkOutput, withOutputLock } from "./output.ts";
import { noteResumed, runFacts } from "./run-facts.ts";
import { EXIT, note, reportError, type StopSignal, startProgress, stopSignal, unfinished, warn } from "./terminal.ts";
import { machineOf, tuneModel } from "./tuning.ts";

interface ExtractFlags extends RunFlags {
  readonly layers: string;
  readonly tokens: "last" | "all";
  readonly output: string;
  readonly partSize: number;
  readonly restart?: boolean;
}

const EXAMPLES = `
Examples:
  $ stratum extract lists.jsonl --model path/to/model --layers 25%,50% -o states.safetensors
  $ echo '{"ids": [1, 526, 3021]}' | stratum extract - --layers all --tokens all -o states.safetensors

Lines are lists ({"instruction", "candidates"}), texts ({"text"}) or token ids ({"ids"}). Sequence i of the output holds
ids_i (T) I32 and hidden_i F32, (K, T, D) with --tokens all, (K, D) with --tokens last; a list gives its prompt, then its
candidates. OUT.index.jsonl says which line and candidate sequence i is. State k is the residual stream after k blocks.
A run that was stopped goes on when the same command is given again.`;

/** Bytes with an optional unit: 500000, 64MiB, 2GB. */
function byteSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?$/i.exec(text.trim());
  const bytes = match
    ? Number(match[1]) * (match[3] ? 1024 : 1000) ** " kmgt".indexOf(match[2].toLowerCase() || " ")
    : Number.NaN;
  if (!Number.isFinite(bytes) || bytes < 1)
    throw new InvalidArgumentError("a size is needed, such as 500000, 64MiB or 2GB.");
  return Math.floor(bytes);
}

/** Declares the command. */
export function extractCommand(program: Command): void {
  const command = program
    .command("extract")
    .description("write hidden states of lists, texts or token ids to a safetensors file")
    .argument("[lines]", "JSONL file, or - for stdin", "-")
    .requiredOption("-o, --output <file>", "the safetensors file")
    .option("-l, --layers <list>", "all, or layers separated by commas: numbers or percentages", "25%")
    .addOption(
      new Option("--tokens <which>", "states of every token, or of the last alone (a candidate's as --pooling says)")
        .choices(["last", "all"])
        .default("last"),
    )
    .option("--part-size <bytes>", "begin another numbered part past this size", byteSize, 4 * 1024 ** 3)
    .option("--restart", "throw away what an earlier run left beside the output")
    .addHelpText("after", EXAMPLES);
  addRunOptions(command, "a JSON summary at the end, on stderr, before a profile's").action(
    async (lines: string, flags: ExtractFlags) => {
      process.exitCode = await runExtract(lines, flags);
    },
  );
}

async function runExtract(path: string, flags: ExtractFlags): Promise<number> {
  if (path === "-" && process.stdin.isTTY) {
    throw new StratumError(
      "usage/list",
      "there is nothing to read",
      "give a JSONL file, or - for stdin; see stratum extract --help",
    );
  }
  if (flags.output === "" || flags.output === "-") {
    throw new StratumError(
      "usage/output",
      `the output '${flags.output}' is not a file`,
      "give -o the name of a safetensors file",
    );
  }
  const stop = stopSignal();
  if (await checkOutput(flags.output, [path])) {
    throw new StratumError(
      "file/not-a-file",
      `${flags.output} is not a regular file`,
      "give -o the name of a file: a file of states is renamed into place",
    );
  }
  await inputFacts(path);
  return withModelFiles(
    modelDirectory(flags.model),
    async (files) => {
      const { config } = files.spec;
      const layers = resolveLayers(flags.layers, config.layers);
      const { tokens, system, pooling, partSize } = flags;
      const facts = {
        command: "extract",
        ...(await runFacts(files, { depth: Math.max(...layers), pooling, system }, flags)),
        ...{ layers: layers.join(","), tokens, "part-size": partSize },
      };
      return withOutputLock(flags.output, async (held) => {
        const file = await openStatesFile({
          ...{ output: flags.output, run: facts, input: path, restart: flags.restart ?? false, held },
          plan: async () => ({ total: (await countLines(path)) ?? null, ranges: null, whole: null }),
          states: { layers: layers.length, tokens, d: config.hiddenSize, partBytes: partSize },
        });
        noteResumed(
          file.resumed,
          `${formatCount(file.counts.lines)} lines that lie in ${indexPath(flags.output)}.partial`,
        );
        return withEngine(flags, (engine) => extractLines(engine, files, file, { path, layers, flags, stop }));
      });
    },
    flags,
  );
}

interface Extraction {
  readonly path: string;
  readonly layers: readonly number[];
  readonly flags: ExtractFlags;
  readonly stop: StopSignal;
}

/** Extracts what is left of the lines. @returns the exit code */
async function extractLines(
  opened: Engine,
  files: ModelFiles,
  file: StatesFile,
  { path, layers, flags, stop }: Extraction,
): Promise<number> {
  const { tokens, system, truncate, pooling, date, batchTokens, sharePrefix } = flags;
  const { read, machine, plan } = file.resumed;
  const { engine, kernels } = await tuneModel(opened, files, Math.max(...layers), flags, machine);
  const metadata = {
    ...{ model: files.name, layers: layers.join(","), tokens, pooling, version: packageVersion() },
    ...{ adapter: engine.device.info.name, kernels: kernels.id },
  };
  const model = await loadPlanned(engine, files, {
    layers,
    output: tokens === "last" ? "pooled" : "all",
    pooling: runPooling(pooling),
    batchTokens,
  });
  using extractor = await createExtractor(model, {
    ...{ layers, tokens, system, truncate, pooling, date, batchTokens, sharePrefix },
  });
  const output = await file.begin(machineOf(engine, kernels), metadata);
  const before = file.counts;
  const progress = startProgress(plan.total ?? undefined, "lines", before.lines);
  const begin = performance.now();
  let finished = false;
  let written: readonly string[] = [];
  unfinished.add(`${indexPath(flags.output)}.partial`);
  try {
    if (!file.finished) {
      for await (const result of extractor.extract(readSequences(path, read), { signal: stop.signal })) {
        await output.write(result);
        if (result.kind === "failed") progress.aside(() => reportError(result.error));
        const sequences = result.kind === "failed" ? [] : result.sequences;
        progress.add(
          1,
          sequences.reduce((sum, { ids }) => sum + ids.length, 0),
        );
      }
    }
    if (stop.exitCode() === undefined) {
      if (output.counts.lines === 0) throw emptyFileError(path === "-" ? "stdin" : path);
      written = await output.finish();
      finished = true;
    }
  } finally {
    progress.stop();
    if (!finished) await output.leave();
    unfinished.clear();
  }
  const stopped = stop.exitCode();
  const { counts } = output;
  if (!finished && counts.lines > 0)
    warn(`unfinished: what was done lies beside ${flags.output}; the same command goes on`);
  const seconds = (performance.now() - begin) / 1000;
  const summary = {
    ...counts,
    resumed: before.lines,
    seconds: Number(seconds.toFixed(3)),
    model: files.name,
    layers,
    adapter: engine.device.info.name,
    kernels: kernels.id,
    gpu_bytes: extractor.runner.bytes,
    gpu_live_bytes: engine.device.liveBytes,
    read_bytes: files.checkpoint.log.bytes,
    written,
    stopped: stopped !== undefined,
  };
  if (flags.json) process.stderr.write(`${JSON.stringify(summary)}\n`);
  else {
    const failed = counts.failed > 0 ? `; ${counts.failed} lines failed` : "";
    note(
      `${stopped === undefined ? "done" : "stopped"}    ${formatCount(counts.sequences)} sequences, ${formatCount(counts.tokens)} tokens in ${formatSeconds(seconds)}${failed}`,
    );
    for (const name of written) note(`wrote   ${name}`);
  }
  return stopped ?? (counts.failed > 0 ? EXIT.someFailed : EXIT.ok);
}
