/** `stratum inspect`: what a model is, and what a run to a layer would read and hold. No GPU is touched. */
import type { Command } from "commander";
import { type BlockSpec, type ModelSpec, tensorsTo, type WeightForm } from "../engine/decoder.ts";
import type { DeviceLimits } from "../engine/device-info.ts";
import { resolveLayers } from "../engine/layers.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import { DEFAULT_BATCH_TOKENS, planRun } from "../engine/plan.ts";
import { defaultPlatform } from "../engine/platform.ts";
import { StratumError } from "../errors.ts";
import type { Tokenizer } from "../weights/tokenizer.ts";
import {
  addCommonOptions,
  type CommonOptions,
  MODEL_HELP,
  modelDirectory,
  positiveInteger,
  weightsOption,
  withModelFiles,
} from "./common.ts";
import { counted, formatBytes, formatCount, formatFields, formatTable } from "./format.ts";
import { runQuantiseReport } from "./quantise-report.ts";
import { writeStdout } from "./terminal.ts";

interface InspectFlags extends CommonOptions {
  readonly layers: string;
  readonly batchTokens?: number;
  readonly weights?: WeightForm;
  readonly quantiseReport?: boolean;
}

const EXAMPLES = `
Examples:
  $ stratum inspect path/to/model
  $ stratum inspect path/to/model --layers 25%,50%,100% --json
  $ stratum inspect path/to/model --layers 8 --quantise-report`;

/** An adapter without limits: what a tensor is split into changes no sum. Weights in textures: a little more than in buffers. */
const ANY_PLATFORM = defaultPlatform(
  Object.fromEntries(
    ["maxBufferSize", "maxStorageBufferBindingSize", "maxTextureDimension2D"].map((name) => [name, 2 ** 40]),
  ) as DeviceLimits,
  { subgroupSize: 0, textures: true },
);

/** Declares the command. */
export function inspectCommand(program: Command): void {
  const command = program
    .command("inspect")
    .description("say what a model is, and what a run to layer k would read and hold")
    .argument("[model]", MODEL_HELP)
    .option("-l, --layers <list>", "the layers k to plan: all, or numbers and percentages separated by commas", "all")
    .option("--batch-tokens <n>", `tokens a batch (default: ${DEFAULT_BATCH_TOKENS})`, positiveInteger)
    .addOption(weightsOption())
    .option("--quantise-report", "run the model with stored, int8 and int4 weights, and print the error of the states")
    .addHelpText("after", EXAMPLES);
  addCommonOptions(command, "JSON on stdout").action(async (model: string | undefined, flags: InspectFlags) => {
    await withModelFiles(
      modelDirectory(model),
      (files) => (flags.quantiseReport ? runQuantiseReport : runInspect)(files, flags),
      flags,
    );
  });
}

/** Elements and bytes by stored type, of the embedding and the first `depth` blocks: shards of deeper ones may be absent. */
async function storedTypes(
  files: ModelFiles,
  depth: number,
): Promise<Record<string, { tensors: number; parameters: number; bytes: number }>> {
  const types: Record<string, { tensors: number; parameters: number; bytes: number }> = {};
  const { spec, checkpoint } = files;
  for (const name of tensorsTo(spec, depth)) {
    const { dtype, shape, byteLength } = await checkpoint.info(name);
    types[dtype] ??= { tensors: 0, parameters: 0, bytes: 0 };
    types[dtype].tensors++;
    types[dtype].parameters += shape.reduce((product, size) => product * size, 1);
    types[dtype].bytes += byteLength;
  }
  return types;
}

/** Windows of the attention: the same in all blocks, or of how many. */
function describeWindows(blocks: readonly BlockSpec[]): string {
  const windows = blocks.flatMap(({ window }) => (window === null ? [] : [window]));
  const [first] = windows;
  if (first === undefined) return "";
  return windows.length === blocks.length
    ? `, window ${first}`
    : `, window ${first} in ${windows.length} of ${blocks.length} blocks`;
}

/** How positions come in. */
function describeRopes({ config, blocks, positions }: ModelSpec): string {
  if (positions !== null) return "learned";
  const without = blocks.filter(({ rope }) => rope === null).length;
  const ropes = config.ropes.map((rope) => {
    const scaling =
      rope.type === "default" ? "" : `, ${rope.type}${"factor" in rope ? ` scaling by ${rope.factor}` : ""}`;
    const share = rope.dims === config.headDim ? "" : `, ${rope.dims} of ${config.headDim} elements of a head`;
    return `rope theta ${rope.theta}${scaling}${share}`;
  });
  const bare = without === 0 ? "" : `; none in ${without} of ${blocks.length} blocks`;
  return `${[...new Set(ropes)].join("; ")}${bare}`;
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
      ANY_PLATFORM,
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
  let tokenizer: Tokenizer | null = null;
  let noTokenizer = "";
  try {
    tokenizer = await files.tokenizer();
  } catch (cause) {
    if (!(cause instanceof StratumError)) throw cause;
    const why = cause.code === "tokenizer/missing" ? "none" : `cannot be used, ${cause.message}`;
    noTokenizer = `${why}: extract works with lines of ids`;
  }
  const parameters = Object.values(types).reduce((sum, type) => sum + type.parameters, 0);
  if (flags.json) {
    const record = {
      model: files.name,
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
  const fields: [string, string][] = [
    ["model", files.name],
    ["family", config.modelType],
    ["blocks", `${config.layers}, hidden ${config.hiddenSize}, ffn ${config.ffn}`],
    [
      "attention",
      `${config.heads} heads of ${config.headDim}, ${config.kvHeads} for keys and values${describeWindows(files.spec.blocks)}`,
    ],
    ["positions", `${formatCount(config.maxPositions)}, ${describeRopes(files.spec)}`],
    [
      "vocabulary",
      `${formatCount(config.vocab)}, embeddings in ${files.spec.embedding}${config.tiedEmbeddings ? " (tied)" : ""}`,
    ],
    [
      "tokenizer",
      tokenizer === null
        ? noTokenizer
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
    ["layer", "depth", "reads", "weights", `batches of ${counted(runs[0].batch_tokens, "token")}`, "on the GPU"],
    rows,
    [0, 1, 2, 3, 4, 5],
  );
  await writeStdout(`${formatFields(fields)}\n\nA run of rank to layer k:\n${table}\n`);
}
