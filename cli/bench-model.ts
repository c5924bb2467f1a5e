/** The model of a benchmark: a folder or one of the hub, or a configuration with random weights. */
import { type Command, Option } from "commander";
import { CONFIGURATIONS, readConfiguration } from "../engine/configurations.ts";
import type { WeightForm } from "../engine/decoder.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import { randomModel, randomWeights } from "../engine/random-weights.ts";
import { StratumError } from "../errors.ts";
import {
  type CommonOptions,
  MODEL_HELP,
  modelDirectory,
  positiveInteger,
  weightsOption,
  withModelFiles,
} from "./common.ts";

export interface BenchModelFlags extends CommonOptions {
  readonly model?: string;
  readonly config?: string;
  readonly randomWeights?: boolean;
  readonly dtype: keyof typeof DTYPES;
  readonly weights?: WeightForm;
  readonly seed: number;
}

const DTYPES = { bf16: "BF16", f16: "F16", f32: "F32" } as const;

/** Adds the options of {@link BenchModelFlags}. */
export function addBenchModelOptions(command: Command): Command {
  return command
    .option("-m, --model <name>", MODEL_HELP)
    .option(
      "--config <name>",
      `with --random-weights, instead of --model: ${CONFIGURATIONS.join(", ")}, or a config.json`,
    )
    .option("--random-weights", "draw the weights from the seed; no checkpoint is read")
    .addOption(
      new Option("--dtype <type>", "of the random weights of a configuration")
        .choices(Object.keys(DTYPES))
        .default("bf16"),
    )
    .addOption(weightsOption())
    .option("--seed <n>", "seed of random tokens and weights", positiveInteger, 1);
}

/**
 * Opens the model that the flags name, and closes it when `use` ends.
 * @throws {StratumError} `usage/bench` for flags that do not fit together, and as `openModelFiles`
 */
export async function withBenchModel<T>(flags: BenchModelFlags, use: (files: ModelFiles) => Promise<T>): Promise<T> {
  const { config, model, dtype, seed, weights } = flags;
  if (config === undefined) {
    return withModelFiles(
      modelDirectory(model),
      (files) => use(flags.randomWeights ? randomWeights(files, seed) : files),
      flags,
    );
  }
  if (model !== undefined || !flags.randomWeights) {
    throw new StratumError(
      "usage/bench",
      model === undefined
        ? "--config names a configuration, which has no weights"
        : "--config and --model exclude each other",
      model === undefined ? "add --random-weights, or give --model a checkpoint" : "leave one of them out",
    );
  }
  await using files = randomModel(await readConfiguration(config), {
    dtype: DTYPES[dtype],
    seed,
    ...(weights === undefined ? {} : { weights }),
  });
  return await use(files);
}

/** How the matrices are held, as a row names it. */
export async function heldType({ spec, checkpoint }: ModelFiles): Promise<string> {
  if (spec.form !== "stored") return spec.form;
  return (await checkpoint.info(spec.blocks[0].up.weight)).dtype.toLowerCase();
}
