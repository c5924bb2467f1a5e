/** `stratum extract`: hidden states into a safetensors file. */
import { type Command, InvalidArgumentError, Option } from "commander";
import { resolveLayers } from "../engine/layers.ts";
import { StratumError } from "../errors.ts";
import { runPooling } from "../scorer/encode.ts";
import { createExtractor } from "../scorer/extract.ts";
import { emptyFileError, readSequences } from "../scorer/lists.ts";
import { createStatesWriter } from "../scorer/states-writer.ts";
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
import { openOutput } from "./output.ts";
import { EXIT, note, reportError, startProgress, stopSignal, warn } from "./terminal.ts";
import { tuneModel } from "./tuning.ts";

interface ExtractFlags extends RunFlags {
  readonly layers: string;
  readonly tokens: "last" | "all";
  readonly output: string;
  readonly partSize: number;
}

const EXAMPLES = `
Examples:
  $ stratum extract lists.jsonl --model path/to/model --layers 25%,50% -o states.safetensors
  $ echo '{"ids": [1, 526, 3021]}' | stratum extract - --layers all --tokens all -o states.safetensors

Lines are lists ({"instruction", "candidates"}), texts ({"text"}) or token ids ({"ids"}). Sequence i of the output holds
ids_i (T) I32 and hidden_i F32, (K, T, D) with --tokens all, (K, D) with --tokens last; a list gives its prompt, then its
candidates. OUT.index.jsonl says which line and candidate sequence i is. State k is the residual stream after k blocks.`;

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
  const total = await countLines(path);
  return withModelFiles(
    modelDirectory(flags.model),
    async (files) => {
      const { config } = files.spec;
      const layers = resolveLayers(flags.layers, config.layers);
      const { tokens, system, truncate, pooling, date, batchTokens, sharePrefix } = flags;
      return withEngine(flags, async (opened) => {
        const { engine, kernels } = await tuneModel(opened, files, Math.max(...layers), flags);
        const model = await loadPlanned(engine, files, {
          layers,
          output: tokens === "last" ? "pooled" : "all",
          pooling: runPooling(pooling),
          batchTokens,
        });
        using extractor = await createExtractor(model, {
          layers,
          tokens,
          system,
          truncate,
          pooling,
          date,
          batchTokens,
          sharePrefix,
        });
        const metadata = {
          ...{ model: files.name, layers: layers.join(","), tokens, pooling, version: packageVersion() },
          ...{ adapter: engine.device.info.name, kernels: kernels.id },
        };
        const writer = await createStatesWriter(flags.output, {
          metadata,
          layers: layers.length,
          tokens,
          d: config.hiddenSize,
          partBytes: flags.partSize,
        });
        let finished = false;
        try {
          const index = await openOutput(`${flags.output}.index.jsonl`);
          const progress = startProgress(total, "lines");
          const begin = performance.now();
          const counts = { lines: 0, failed: 0, sequences: 0, tokens: 0 };
          try {
            for await (const result of extractor.extract(readSequences(path), { signal: stop.signal })) {
              counts.lines++;
              let lineTokens = 0;
              if (result.kind === "failed") {
                counts.failed++;
                progress.aside(() => reportError(result.error));
                const { code, message, fix } = result.error;
                await index.write(
                  `${JSON.stringify({ line: result.line, id: result.id, error: { code, message, fix } })}\n`,
                );
              } else {
                for (const sequence of result.sequences) {
                  const i = await writer.add(sequence);
                  lineTokens += sequence.ids.length;
                  const notes = Object.keys(result.notes).length > 0 ? { notes: result.notes } : {};
                  const role = result.source === "list" ? { candidate: sequence.candidate } : {};
                  await index.write(
                    `${JSON.stringify({ sequence: i, line: result.line, id: result.id, ...role, tokens: sequence.ids.length, ...notes })}\n`,
                  );
                  counts.sequences++;
                }
              }
              counts.tokens += lineTokens;
              progress.add(1, lineTokens);
            }
          } catch (thrown) {
            progress.stop();
            await index.discard().catch(() => undefined);
            throw thrown;
          }
          progress.stop();
          const stopped = stop.exitCode();
          let written: readonly string[];
          if (stopped === undefined) {
            if (counts.lines === 0) throw emptyFileError(path === "-" ? "stdin" : path);
            written = [...(await writer.finish()), `${flags.output}.index.jsonl`];
            finished = true;
            await index.finish();
          } else {
            written = await writer.leave();
            finished = true;
            if (written.length > 0) warn(`unfinished: what was done lies in ${written.join(", ")}`);
            await index.leave();
          }
          const seconds = (performance.now() - begin) / 1000;
          const summary = {
            ...counts,
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
            note(
              `${stopped === undefined ? "done" : "stopped"}    ${formatCount(counts.sequences)} sequences, ${formatCount(counts.tokens)} tokens in ${formatSeconds(seconds)}${counts.failed > 0 ? `; ${counts.failed} lines failed` : ""}`,
            );
            if (stopped === undefined) for (const file of written) note(`wrote   ${file}`);
          }
          return stopped ?? (counts.failed > 0 ? EXIT.someFailed : EXIT.ok);
        } finally {
          if (!finished) await writer.abort();
        }
      });
    },
    flags,
  );
}
