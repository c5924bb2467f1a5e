/** `stratum extract`: hidden states into a safetensors file. */
import { type Command, InvalidArgumentError, Option } from "commander";
import { resolveLayers } from "../engine/layers.ts";
import type { Engine } from "../engine/model.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import { StratumError } from "../errors.ts";
import { runPooling } from "../scorer/encode.ts";
import { createExtractor } from "../scorer/extract.ts";
import type { RunFacts } from "../scorer/journal.ts";
import { emptyFileError, readSequences } from "../scorer/lists.ts";
import {
  type ExtractCounts,
  extractCounts,
  openStatesFile,
  type PlacedFile,
  type StatesFile,
} from "../scorer/resumable-states.ts";
import { inputFacts } from "../scorer/resume.ts";
import { outputFiles, type ShardStates, writeManifest } from "../scorer/shard-manifest.ts";
import { indexPath } from "../scorer/states-writer.ts";
import {
  addRunOptions,
  loadPlanned,
  modelDirectory,
  packageVersion,
  type RunFlags,
  withEngine,
  withModelFiles,
} from "./common.ts";
import { counted, formatSeconds } from "./format.ts";
import { checkOutput, withOutputLock } from "./output.ts";
import { noteResumed, runFacts } from "./run-facts.ts";
import { addShardOptions, doneShard, noteUnsharded, planInput, type ShardFlags, shardOutput } from "./sharding.ts";
import { EXIT, note, reportError, type StopSignal, startProgress, stopSignal, unfinished, warn } from "./terminal.ts";
import { machineOf, tuneModel } from "./tuning.ts";

interface ExtractFlags extends RunFlags, ShardFlags {
  readonly layers: string;
  readonly tokens: "last" | "all";
  readonly output: string;
  readonly partSize: number;
}

const EXAMPLES = `
Examples:
  $ stratum extract lists.jsonl --model path/to/model --layers 25%,50% -o states.safetensors
  $ stratum extract lists.jsonl --layers 25% --shard 2/8 -o states.safetensors   # then: stratum merge states.safetensors
  $ echo '{"ids": [1, 526, 3021]}' | stratum extract - --layers all --tokens all -o states.safetensors

Lines are lists ({"instruction", "candidates"}), texts ({"text"}) or token ids ({"ids"}). Sequence i of the output holds
ids_i (T) I32 and hidden_i F32, (K, T, D) with --tokens all, (K, D) with --tokens last; a list gives its prompt, then its
candidates. OUT.index.jsonl says which line and candidate sequence i is. State k is the residual stream after k blocks.
Exit codes: 0 all extracted, 1 some lines failed (the index says why), 2 usage, 3 environment, 129/130/143 stopped by a signal.`;

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
    .requiredOption("-o, --output <file>", "the safetensors file; stopped, the same command goes on")
    .option("-l, --layers <list>", "all, or layers separated by commas: numbers or percentages", "25%")
    .addOption(
      new Option("--tokens <which>", "states of every token, or of the last alone (a candidate's as --pooling says)")
        .choices(["last", "all"])
        .default("last"),
    )
    .option("--part-size <bytes>", "begin another numbered part past this size", byteSize, 4 * 1024 ** 3)
    .addHelpText("after", EXAMPLES);
  addShardOptions(command, "extract");
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
  noteUnsharded(flags.shard);
  await inputFacts(path);
  const output = (await shardOutput(path, flags)) ?? flags.output;
  return withModelFiles(
    modelDirectory(flags.model),
    async (files) => {
      const { config } = files.spec;
      const layers = resolveLayers(flags.layers, config.layers);
      const { tokens, system, pooling, partSize } = flags;
      const run = {
        command: "extract",
        ...(await runFacts(files, { depth: Math.max(...layers), pooling, system }, flags)),
        ...{ layers: layers.join(","), tokens, "part-size": partSize },
      };
      return withOutputLock(output, async (held) => {
        const done = await doneShard(flags, output, run, path);
        if (done !== null) {
          const counts = extractCounts.parse(done.counts);
          const written = outputFiles(output, done.states);
          return tell({ counts, before: counts, seconds: 0, written, files, layers, flags, stop });
        }
        const states = { layers: layers.length, tokens, d: config.hiddenSize, partBytes: partSize };
        const file = await openStatesFile({
          ...{ output, run, input: path, restart: flags.restart ?? false, held, states },
          plan: () => planInput(path, flags.shard),
        });
        noteResumed(file.resumed, `${counted(file.counts.lines, "line")} in ${indexPath(output)}.partial`);
        return withEngine(flags, (engine) =>
          extractLines(engine, files, file, { path, output, run, states, layers, flags, stop }),
        );
      });
    },
    flags,
  );
}

interface Extraction {
  readonly path: string;
  /** The share's own, where it is one. */
  readonly output: string;
  readonly run: RunFacts;
  readonly states: Omit<ShardStates, "metadata" | "parts">;
  readonly layers: readonly number[];
  readonly flags: ExtractFlags;
  readonly stop: StopSignal;
}

/** Extracts what is left of the lines. @returns the exit code */
async function extractLines(
  opened: Engine,
  files: ModelFiles,
  file: StatesFile,
  { path, output, run, states, layers, flags, stop }: Extraction,
): Promise<number> {
  const { tokens, system, truncate, pooling, date, batchTokens, sharePrefix, shard } = flags;
  const { read, plan, input } = file.resumed;
  const { engine, kernels } = await tuneModel(opened, files, Math.max(...layers), flags, file.resumed.machine);
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
  const machine = machineOf(engine, kernels);
  const sink = await file.begin(machine, metadata);
  /** Says whose the states are, before the last of their files has its name. */
  const record = async (paths: readonly PlacedFile[]) => {
    const { ranges, whole } = plan;
    if (shard === undefined || ranges === null || whole === null) return;
    await writeManifest(
      path,
      output,
      paths.map(({ at }) => at),
      {
        ...{
          shard,
          ranges,
          whole,
          run,
          input,
          counts: sink.counts,
          states: { ...states, metadata, parts: sink.parts },
        },
        machine: { adapter: machine.adapter, kernels: machine.kernels },
      },
    );
  };
  const before = file.counts;
  const progress = startProgress(plan.total ?? undefined, "lines", before.lines);
  const begin = performance.now();
  let finished = false;
  let written: readonly string[] = [];
  unfinished.add(`${indexPath(output)}.partial`);
  try {
    if (!file.finished) {
      for await (const result of extractor.extract(readSequences(path, read), { signal: stop.signal })) {
        await sink.write(result);
        if (result.kind === "failed") progress.aside(() => reportError(result.error));
        const sequences = result.kind === "failed" ? [] : result.sequences;
        progress.add(
          1,
          sequences.reduce((sum, { ids }) => sum + ids.length, 0),
        );
      }
    }
    if (stop.exitCode() === undefined) {
      // Of few lines a shard may get none.
      if (sink.counts.lines === 0 && shard === undefined) throw emptyFileError(path === "-" ? "stdin" : path);
      written = await sink.finish(record);
      finished = true;
    }
  } finally {
    progress.stop();
    if (!finished) await sink.leave();
    unfinished.clear();
  }
  const { counts } = sink;
  if (!finished && counts.lines > 0) warn(`unfinished: what was done lies beside ${output}; the same command goes on`);
  const seconds = (performance.now() - begin) / 1000;
  return tell({
    ...{ counts, before, seconds, written, files, layers, flags, stop },
    machine: {
      adapter: engine.device.info.name,
      kernels: kernels.id,
      gpu_bytes: extractor.runner.bytes,
      gpu_live_bytes: engine.device.liveBytes,
    },
  });
}

interface Told extends Pick<Extraction, "layers" | "flags" | "stop"> {
  readonly counts: ExtractCounts;
  /** What earlier runs did. */
  readonly before: ExtractCounts;
  readonly seconds: number;
  readonly written: readonly string[];
  readonly files: ModelFiles;
  /** Absent where an earlier run did all of it. */
  readonly machine?: Readonly<Record<string, string | number>>;
}

/** Says what was done. @returns the exit code */
function tell({ counts, before, seconds, written, files, layers, flags, stop, machine }: Told): number {
  const stopped = stop.exitCode();
  const summary = {
    ...counts,
    resumed: before.lines,
    seconds: Number(seconds.toFixed(3)),
    model: files.name,
    layers,
    ...machine,
    read_bytes: files.checkpoint.log.bytes,
    written,
    stopped: stopped !== undefined,
  };
  if (flags.json) process.stderr.write(`${JSON.stringify(summary)}\n`);
  else {
    const failed = counts.failed > 0 ? `; ${counted(counts.failed, "line")} failed` : "";
    const earlier = before.lines > 0 ? `; ${counted(before.lines, "line")} by earlier runs` : "";
    note(
      `${stopped === undefined ? "done" : "stopped"}    ${counted(counts.sequences, "sequence")}, ${counted(counts.tokens, "token")} in ${formatSeconds(seconds)}${failed}${earlier}`,
    );
    if (machine !== undefined) for (const name of written) note(`wrote   ${name}`);
  }
  return stopped ?? (counts.failed > 0 ? EXIT.someFailed : EXIT.ok);
}
