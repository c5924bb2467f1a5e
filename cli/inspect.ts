/** `stratum inspect`: what a model is, and what a run to a layer would read and hold. No GPU is touched. */
import type { Command } from "commander";
import type { DeviceLimits } from "../engine/device.ts";
import { blockTensors } from "../engine/family.ts";
import { resolveLayers } from "../engine/layers.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import { DEFAULT_BATCH_TOKENS, planRun } from "../engine/plan.ts";
import { addCommonOptions, type CommonOptions, modelDirectory, positiveInteger, withModelFiles } from "./common.ts";
import { formatBytes, formatCount, formatFields, formatTable } from "./format.ts";
import { writeStdout } from "./terminal.ts";

interface InspectFlags extends CommonOptions {
  readonly layers: string;
  readonly batchTokens?: number;
}

const EXAMPLES = `
Examples:
  $ stratum inspect path/to/model
  $ stratum inspect path/to/model --layers 25%,50%,100% --json`;

/** The plan of an adapter without limits: what a tensor is split into changes no sum. */
const NO_LIMITS = Object.fromEntries(
  ["maxBufferSize", "maxStorageBufferBindingSize"].map((name) => [name, Number.MAX_SAFE_INTEGER]),
) as DeviceLimits;

/** Declares the command. */
export function inspectCommand(program: Command): void {
  const command = program
    .command("inspect")
    .description("say what a model is, and what a run to layer k would read and hold")
    .argument("[model]", "Hugging Face model directory (default: the embedded demo model)")
    .option("-l, --layers <list>", "the layers k to plan: all, or numbers and percentages separated by commas", "all")
    .option("--batch-tokens <n>", `tokens a batch (default: ${DEFAULT_BATCH_TOKENS})`, positiveInteger)
    .addHelpText("after", EXAMPLES);
  addCommonOptions(command, "JSON on stdout").action(async (model: string | undefined, flags: InspectFlags) => {
    await withModelFiles(modelDirectory(model), (files) => runInspect(files, flags));
  });
}

/** Elements and bytes by stored type, of the embedding and the first `depth` blocks: shards of deeper ones may be absent. */
async function storedTypes(
  files: ModelFiles,
  depth: number,
): Promise<Record<string, { tensors: number; parameters: number; bytes: number }>> {
  const types: Record<string, { tensors: number; parameters: number; bytes: number }> = {};
  const { spec, checkpoint } = files;
  for (const name of [spec.embedding, ...spec.blocks.slice(0, depth).flatMap(blockTensors)]) {
    const { dtype, shape, byteLength } = await checkpoint.info(name);
    types[dtype] ??= { tensors: 0, parameters: 0, bytes: 0 };
    types[dtype].tensors++;
    types[dtype].parameters += shape.reduce((product, size) => product * size, 1);
    types[dtype].bytes += byteLength;
  }
  return types;
}

async function runInspect(files: ModelFiles, flags: InspectFlags): Promise<void> {
  const { config } = files.spec;
  const layers = resolveLayers(flags.layers, config.layers);
  const depth = Math.max(...layers);
  const types = await storedTypes(files, depth);
  const runs = [];
  for (const layer of layers) {
    const plan = await planRun(
      files.checkpoint,
      files.spec,
      { layers: [layer], output: "scores", batchTokens: flags.batchTokens },
      NO_LIMITS,
    );
    runs.push({
      layer,
      depth: Number((layer / config.layers).toFixed(4)),
      read_bytes: plan.weights.diskBytes,
      weights_bytes: plan.weights.bytes,
      batch_bytes: plan.bytes - plan.weights.bytes,
      gpu_bytes: plan.bytes,
      batch_tokens: plan.rows,
    });
  }
  const template = await files.template();
  const tokenizer = await files.tokenizer().catch(() => null);
  const parameters = Object.values(types).reduce((sum, type) => sum + type.parameters, 0);
  if (flags.json) {
    const record = {
      model: files.directory,
      config,
      parameters,
      types,
      tokenizer:
        tokenizer === null
          ? null
          : {
              vocabulary: tokenizer.vocabSize,
              bos: tokenizer.bosToken,
              eos: tokenizer.eosToken,
              adds_bos: tokenizer.addsBos,
            },
      chat_template: template !== null,
      runs,
    };
    await writeStdout(`${JSON.stringify(record, null, 2)}\n`);
    return;
  }
  const { rope } = config;
  const scaling = rope.type === "default" ? "" : `, ${rope.type} scaling by ${rope.factor}`;
  const fields: [string, string][] = [
    ["model", files.directory],
    ["family", config.modelType],
    ["blocks", `${config.layers}, hidden ${config.hiddenSize}, ffn ${config.ffn}`],
    [
      "attention",
      `${config.heads} heads of ${config.headDim}, ${config.kvHeads} for keys and values${config.slidingWindow === null ? "" : `, window ${config.slidingWindow}`}`,
    ],
    ["positions", `${formatCount(config.maxPositions)}, rope theta ${rope.theta}${scaling}`],
    [
      "vocabulary",
      `${formatCount(config.vocab)}, embeddings in ${files.spec.embedding}${config.tiedEmbeddings ? " (tied)" : ""}`,
    ],
    [
      "tokenizer",
      tokenizer === null
        ? "none that can be used: extract works with lines of ids"
        : `${formatCount(tokenizer.vocabSize)} entries${tokenizer.addsBos ? `, begins with ${tokenizer.bosToken}` : ""}`,
    ],
    ["template", template === null ? "none: prompts are plain concatenation" : "chat template"],
    [
      "parameters",
      `${formatCount(parameters)} in the embedding and ${depth} blocks: ${Object.entries(types)
        .map(([dtype, type]) => `${formatCount(type.parameters)} ${dtype}`)
        .join(", ")}`,
    ],
  ];
  const rows = runs.map((run) => [
    String(run.layer),
    `${Math.round(run.depth * 100)}%`,
    formatBytes(run.read_bytes),
    formatBytes(run.weights_bytes),
    formatBytes(run.batch_bytes),
    formatBytes(run.gpu_bytes),
  ]);
  const table = formatTable(
    ["layer", "depth", "reads", "weights", `batches of ${formatCount(runs[0].batch_tokens)} tokens`, "on the GPU"],
    rows,
    [0, 1, 2, 3, 4, 5],
  );
  await writeStdout(`${formatFields(fields)}\n\nA run of rank to layer k:\n${table}\n`);
}
