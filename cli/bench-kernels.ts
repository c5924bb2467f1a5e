/** `stratum bench kernels`: every kernel of a model's blocks, checked against its twin, then timed. */
import { type Command, Option } from "commander";
import { benchCases, casesFor, type KernelBenchOptions, productCase } from "../engine/bench-kernels.ts";
import { CONFIGURATIONS, readConfiguration } from "../engine/configurations.ts";
import { randomModel } from "../engine/random-weights.ts";
import { StratumError } from "../errors.ts";
import type { WeightType } from "../kernels/kernel.ts";
import {
  addReportOptions,
  betweenCeilings,
  finishReport,
  openReport,
  parseProduct,
  type ReportFlags,
} from "./bench-report.ts";
import { positiveInteger, withEngine } from "./common.ts";
import { note, startProgress, stopping, warn } from "./terminal.ts";

interface BenchKernelsFlags extends ReportFlags {
  readonly op?: string;
  readonly shapes: string;
  readonly weight: WeightType;
  readonly variants: "default" | "all";
  readonly batch: number;
  readonly tokens: number;
  readonly ceilings: boolean;
}

/** Declares the command below `bench`. */
export function benchKernelsCommand(bench: Command): void {
  const command = bench
    .command("kernels")
    .description("each kernel of a model's blocks: checked against its CPU twin, then timed")
    .option("--op <name>", "one op: matmul, attention, norm, rope, rowGather, or another kernel's name")
    .option(
      "--shapes <name>",
      `of a model (${CONFIGURATIONS.join(", ")}, or a config.json), or one product ROWSxKxN`,
      CONFIGURATIONS[0],
    )
    .addOption(
      new Option("--weight <type>", "how weights are held")
        .choices(["bf16", "f16", "f32", "int8", "int4"])
        .default("bf16"),
    )
    .addOption(
      new Option("--variants <which>", "what runs without tuning, or all that the adapter allows, in turn")
        .choices(["default", "all"])
        .default("default"),
    )
    .option("--batch <n>", "sequences of a batch", positiveInteger, 8)
    .option("--tokens <n>", "tokens of each", positiveInteger, 128)
    .option("--no-ceilings", "do not measure the adapter's ceilings first (no shares then)")
    .addHelpText(
      "after",
      "\nExamples:\n  $ stratum bench kernels --op matmul --shapes qwen2.5-0.5b --variants all\n  $ stratum bench kernels --shapes 1024x576x1536 --weight int8",
    );
  addReportOptions(command, 7, 120).action(async (flags: BenchKernelsFlags) => {
    process.exitCode = await runBenchKernels(flags);
  });
}

async function runBenchKernels(flags: BenchKernelsFlags): Promise<number> {
  const { op, shapes, weight, variants, batch, tokens } = flags;
  const product = parseProduct(shapes);
  if (product !== null && op !== undefined && op !== "matmul") {
    throw new StratumError(
      "usage/op",
      `--shapes ${shapes} is a product, --op is ${op}`,
      "leave --op out, or name a model",
    );
  }
  const targets = await openReport(flags);
  const config = product === null ? await readConfiguration(shapes) : null;
  const quantised = weight === "int8" || weight === "int4" ? weight : null;
  return withEngine(flags, async (engine) => {
    note(`adapter ${engine.device.info.name} (${engine.device.info.source})`);
    const cases =
      config === null
        ? product === null
          ? []
          : [productCase(engine, product, weight, variants)]
        : await casesFor(
            engine,
            randomModel(config, {
              dtype: weight === "f32" ? "F32" : weight === "f16" ? "F16" : "BF16",
              ...(quantised === null ? {} : { weights: quantised }),
            }),
            { batch, tokens, variants, ...(op === undefined ? {} : { op }) },
          );
    const progress = startProgress(cases.length, "cases");
    const options: KernelBenchOptions = {
      runs: flags.runs,
      maxSeconds: flags.maxSeconds,
      signal: stopping()?.signal,
      onCase: ({ name, shape, variants: { length } }, done, total) =>
        progress.aside(() => note(`${done + 1}/${total} ${name} ${shape}${length > 1 ? `, ${length} variants` : ""}`)),
      onDone: () => progress.add(1, 0),
    };
    const { result, ceilings } = await betweenCeilings(engine, flags.ceilings, () =>
      benchCases(engine, cases, options).finally(() => progress.stop()),
    );
    for (const { name, shape, variant, fault } of result.wrong)
      warn(`wrong   ${name} ${shape} ${variant} is not what its twin gives: ${fault}`);
    if (result.left.length > 0)
      warn(`left    no time for ${result.left.join(", ")} (--max-seconds ${flags.maxSeconds})`);
    return finishReport(
      engine,
      {
        command: "bench kernels",
        model: shapes,
        ceilings,
        rows: result.rows,
        figures: { wrong: result.wrong, left: result.left },
        failed: result.wrong.length > 0,
      },
      flags,
      targets,
    );
  });
}
