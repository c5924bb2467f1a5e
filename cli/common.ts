/** What the commands share: options, opening model and device, the printed plan. */

import { createReadStream, readFileSync } from "node:fs";
import { stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Command, InvalidArgumentError, Option } from "commander";
import { WEIGHT_FORMS, type WeightForm } from "../engine/decoder.ts";
import { otherTensors } from "../engine/family.ts";
import { type LoadModelOptions, loadModel, type Model } from "../engine/hidden-states.ts";
import { createEngine, type Engine } from "../engine/model.ts";
import { type ModelFiles, openModelFiles } from "../engine/model-files.ts";
import { DEFAULT_BATCH_TOKENS, planRun, type RunPlan, type RunRequest } from "../engine/plan.ts";
import { platformOf } from "../engine/platform.ts";
import { messageOf, StratumError } from "../errors.ts";
import { isPooling, POOLING_NAMES, type Pooling } from "../scorer/encode.ts";
import { showDownload } from "./download.ts";
import { counted, formatBytes, formatCount } from "./format.ts";
import { addProfileOptions, openProfile, type ProfileFlags, profileChoice } from "./profile.ts";
import { note, setQuiet, stopping, warn } from "./terminal.ts";
import { addTuneOption, type TuneFlags } from "./tuning.ts";

export interface CommonOptions extends ProfileFlags {
  readonly adapter?: string;
  readonly quiet?: boolean;
  readonly verbose?: boolean;
  readonly json?: boolean;
}

/** Adds the options that every command has. */
export function addOutputOptions(command: Command, jsonHelp: string): Command {
  return command
    .option("--json", jsonHelp)
    .option("-q, --quiet", "nothing but errors on stderr")
    .hook("preAction", (_, action) => setQuiet(Boolean((action.opts() as CommonOptions).quiet)));
}

/** Adds the options that every command on the GPU has. */
export function addCommonOptions(command: Command, jsonHelp: string): Command {
  command.addOption(
    new Option("--adapter <name>", "auto, system, embedded, or a part of an adapter's name")
      .env("STRATUM_ADAPTER")
      .default("auto"),
  );
  return addOutputOptions(command, jsonHelp).option(
    "-v, --verbose",
    "also say which tensors of a checkpoint are ignored, and which kernels run",
  );
}

/** The flags that say what becomes of a list's texts in a model. */
export interface ListFlags {
  readonly model?: string;
  readonly system?: string;
  readonly truncate?: boolean;
  readonly pooling: Pooling;
  readonly date?: string;
  readonly batchTokens?: number;
  readonly sharePrefix: boolean;
  readonly weights?: WeightForm;
}

/** The flags of the commands that run lists through a model. */
export interface RunFlags extends ListFlags, CommonOptions, Pick<TuneFlags, "tune"> {}

/** Of `--model`, wherever it is an option. */
export const MODEL_HELP =
  "Hugging Face model: a folder, or org/name[@revision] of the hub (default: the embedded demo model)";

/** Adds the options of {@link RunFlags}. @param pooling another form of `--pooling` */
export function addRunOptions(command: Command, jsonHelp: string, pooling = poolingOption()): Command {
  return addProfileOptions(addCommonOptions(addTuneOption(addListOptions(command, pooling)), jsonHelp));
}

/** Adds the options of {@link ListFlags}. @param pooling another form of `--pooling` */
export function addListOptions(command: Command, pooling = poolingOption()): Command {
  return command
    .option("-m, --model <name>", MODEL_HELP)
    .option("--system <text>", "a system message before each list's own")
    .option("--truncate", "cut responses to the model's length (otherwise a longer one is an error)")
    .addOption(pooling)
    .option("--date <YYYY-MM-DD>", "the date that a chat template's clock shows", calendarDate)
    .option(
      "--batch-tokens <n>",
      `tokens a batch, at most (default: ${DEFAULT_BATCH_TOKENS}, more for a longer list)`,
      positiveInteger,
    )
    .addOption(weightsOption())
    .option("--no-share-prefix", "compute the prompt again for every candidate (same states, slower)");
}

function poolingOption(): Option {
  return new Option(
    "--pooling <name>",
    "a response's state: its last token's, the end token's of its turn, the mean of its tokens', or last-K: of the last K",
  )
    .argParser(poolingName)
    .default("last", "last, or what a preset or scorer says");
}

/** How the matrices are held. */
export function weightsOption(): Option {
  return new Option(
    "--weights <form>",
    "the blocks' matrices on the GPU: as stored, or quantised while they are loaded (8 or 4 bits in groups of 32)",
  )
    .choices(WEIGHT_FORMS)
    .default("stored");
}

/** A positive whole number. */
export function positiveInteger(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text.trim()) || value < 1 || !Number.isSafeInteger(value)) {
    throw new InvalidArgumentError("a positive whole number is needed.");
  }
  return value;
}

/** A pooling by its name. */
export function poolingName(text: string): Pooling {
  if (isPooling(text)) return text;
  throw new InvalidArgumentError(`it is one of ${POOLING_NAMES}.`);
}

/** A calendar date, `YYYY-MM-DD`. */
export function calendarDate(text: string): string {
  const date = new Date(`${text}T00:00:00Z`);
  if (!/^\d{4}-\d{2}-\d{2}$/.test(text) || Number.isNaN(date.getTime()) || !date.toISOString().startsWith(text)) {
    throw new InvalidArgumentError("a date is needed, as YYYY-MM-DD.");
  }
  return text;
}

/** The folder of this package, from the sources and from what they compile to. */
export function packageFolder(): string {
  const here = dirname(fileURLToPath(import.meta.url));
  return here.endsWith(join("dist", "cli")) ? dirname(dirname(here)) : dirname(here);
}

/** The version of this package. */
export function packageVersion(): string {
  const manifest = JSON.parse(readFileSync(join(packageFolder(), "package.json"), "utf8")) as { version: string };
  return manifest.version;
}

/** The model that is embedded in the package. */
export function demoModel(): string {
  return join(packageFolder(), "weights", "demo");
}

/** The model's name for a record: the last part of its path or its name on the hub, and the form of quantised weights. */
export function recordedName({ name, pinned, spec, directory }: ModelFiles): string {
  const short = pinned ? name : (directory.split(/[\\/]/).filter(Boolean).at(-1) ?? "model");
  return spec.form === "stored" ? short : `${short} --weights ${spec.form}`;
}

/** The model's folder or its name on the hub; without `--model` the embedded one, said on stderr. */
export function modelDirectory(model: string | undefined): string {
  if (model !== undefined) return model;
  note("no --model: using the embedded demo model, a 3.1M-parameter test object (see weights/demo/README.md)");
  return demoModel();
}

/** Runs `use` with a device, which is freed whatever happens; tells what `--profile` asks for. */
export async function withEngine<T>(options: CommonOptions, use: (engine: Engine) => Promise<T>): Promise<T> {
  const profile = profileChoice(options);
  const tell = await openProfile(options);
  const onNote = (text: string) => warn(`warning: ${text}`);
  using engine = await createEngine({
    ...(options.adapter === undefined ? {} : { adapter: options.adapter }),
    profile,
    onNote,
  });
  const result = await use(engine);
  await tell(engine.device);
  return result;
}

/** Says which tensors of a checkpoint no decoder reads. */
function tellOthers(files: ModelFiles): void {
  const others = otherTensors(files);
  if (others.length === 0) return;
  const kinds = new Map<string, number>();
  for (const name of others) {
    const kind = name.replaceAll(/\.\d+\./g, ".N.");
    kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
  }
  note(`ignored ${others.length} tensors of the checkpoint that are no part of the decoder:`);
  for (const [kind, count] of kinds) note(`        ${kind}${count > 1 ? ` (${count})` : ""}`);
}

/** Opens a model, a folder or one of the hub, and closes it when `use` ends. */
export async function withModelFiles<T>(
  model: string,
  use: (files: ModelFiles) => Promise<T>,
  { weights, verbose }: Pick<RunFlags, "weights" | "verbose"> = {},
): Promise<T> {
  const { onProgress, onNote, stop } = showDownload();
  try {
    await using files = await openModelFiles(model, { onProgress, onNote, signal: stopping()?.signal, weights });
    if (verbose) tellOthers(files);
    return await use(files);
  } finally {
    stop();
  }
}

/**
 * Plans a run, prints the plan, and loads the model: nothing is uploaded before the plan fits.
 * @param more what is held beside it: sets of working buffers, default 1, and bytes of a scorer
 */
export async function loadPlanned(
  engine: Engine,
  files: ModelFiles,
  run: RunRequest,
  more: { readonly workspaces?: number; readonly scorerBytes?: number } = {},
): Promise<Model> {
  const { workspaces = 1, scorerBytes = 0 } = more;
  const plan = await planRun(files.checkpoint, files.spec, run, platformOf(engine));
  note(`adapter ${engine.device.info.name} (${engine.device.info.source})`);
  const bytes = plan.weights.bytes + workspaces * (plan.bytes - plan.weights.bytes);
  note(planLine(files, { ...plan, bytes }, scorerBytes));
  const options: LoadModelOptions = { layer: plan.weights.depth, signal: stopping()?.signal };
  return loadModel(engine, files, options);
}

/** One line: what is read and held. */
export function planLine(files: ModelFiles, plan: RunPlan, scorerBytes = 0): string {
  const { depth, diskBytes, bytes } = plan.weights;
  const all = plan.bytes + scorerBytes;
  const scorer = scorerBytes > 0 ? ` + ${formatBytes(scorerBytes)} for the scorer` : "";
  const { layers, modelType } = files.spec.config;
  const held = files.spec.form === "stored" ? "" : ` in ${files.spec.form}`;
  return `plan    ${modelType}, ${depth} of ${layers} blocks: reads ${formatBytes(diskBytes)}; on the GPU ${formatBytes(bytes)} weights${held} + ${formatBytes(plan.bytes - bytes)} for batches of ${counted(plan.rows, "token")}${scorer} = ${formatBytes(all)} (${formatCount(all)} bytes)`;
}

/**
 * Lines of a regular file, for progress; undefined for pipes.
 * @throws {StratumError} `file/unreadable`
 */
export async function countLines(path: string): Promise<number | undefined> {
  if (path === "-") return undefined;
  try {
    const found = await stat(path);
    if (found.isDirectory()) throw new Error("it is a folder");
    if (!found.isFile()) return undefined;
    let lines = 0;
    let open = false;
    for await (const chunk of createReadStream(path)) {
      const bytes = chunk as Buffer;
      for (let at = bytes.indexOf(0x0a); at >= 0; at = bytes.indexOf(0x0a, at + 1)) lines++;
      open = bytes.at(-1) !== 0x0a;
    }
    return open ? lines + 1 : lines;
  } catch (cause) {
    throw new StratumError(
      "usage/no-input",
      `cannot read ${path}: ${messageOf(cause)}`,
      "check the path of the input file",
      cause,
    );
  }
}
