/**
 * A scorer's folder: `scorer.safetensors` (F32, PyTorch names, no `__metadata__`) and `scorer.json`, which carries the
 * other's SHA-256, so that a mixed pair is never taken for a scorer.
 *
 * In PyTorch: `module.load_state_dict(safetensors.torch.load_file("scorer.safetensors"), strict=False)` for a module with
 * `proj = nn.Linear(D, P)` and `encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(P, heads, F, ...), 1)`; the
 * keys it does not expect are the four `standardise.*`.
 */
import { readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { StratumError } from "../errors.ts";
import { decodeFloats, encodeFloats, isFloatDtype } from "../weights/floats.ts";
import { clip, isJsonObject, isSystemError, readJsonFile, show, unreadable } from "../weights/json.ts";
import { openSafetensors, type SafetensorsFile } from "../weights/safetensors.ts";
import { type TensorData, writeSafetensors } from "../weights/safetensors-writer.ts";
import {
  hashFile,
  isTemporaryOf,
  makeFolder,
  removeStale,
  syncFolder,
  temporaryName,
  writeFailed,
  writeSynced,
} from "./durable.ts";
import { POOLINGS, type Pooling } from "./encode.ts";
import type { Standardisation } from "./feeder.ts";
import {
  checkScorerSpec,
  elementCount,
  type ParameterShape,
  parameterShapes,
  SCORER_HEADS,
  type ScorerSpec,
} from "./scorer-spec.ts";

/** The model that the states come from. */
export interface BaseModel {
  readonly name: string;
  /** Equal only for the same weights. */
  readonly fingerprint: string;
}

export interface SavedScorer {
  readonly spec: ScorerSpec;
  /** With layer and pooling: where the states come from; null where the features did not say. */
  readonly base: BaseModel | null;
  readonly layer: number | null;
  readonly pooling: Pooling | null;
  /** The system message put before each list's messages. */
  readonly system: string | null;
  /** A state x enters as (x - mean) * scale; null where it is taken as it is. */
  readonly standardise: Standardisation | null;
  /** How it was trained: anything that JSON holds. */
  readonly training: Readonly<Record<string, unknown>>;
  /** By the names of `parameterShapes`. */
  readonly weights: ReadonlyMap<string, Float32Array>;
}

export const SCORER_FORMAT_VERSION = 1;

const WEIGHTS = "scorer.safetensors";
const CONFIG = "scorer.json";
const CONFIG_FILE = {
  what: "the scorer's scorer.json",
  maxBytes: 64 * 2 ** 20,
  missing: "scorer/missing-file",
  bad: "scorer/bad-json",
  fix: "give a folder that `stratum train` wrote, with scorer.json and scorer.safetensors",
} as const;
/** Between the two renames of a writer lie microseconds; a reader that falls between them looks again. */
const TRIES = 3;
const RETRY_MS = 50;

const size = z.int().min(1);
const configSchema = z.object({
  format: z.literal("stratum-scorer"),
  version: z.literal(SCORER_FORMAT_VERSION),
  base_model: z.object({ name: z.string(), fingerprint: z.string().min(1) }).nullable(),
  layer: z.int().min(0).nullable(),
  pooling: z.enum(POOLINGS).nullable(),
  system: z.string().nullable(),
  head: z.enum(SCORER_HEADS),
  sizes: z.object({ dim: size, width: size, heads: size, ffn: size }),
  tau: z.number(),
  standardise: z.boolean(),
  training: z.record(z.string(), z.unknown()),
  sha256: z.string().regex(/^[0-9a-f]{64}$/, "expected 64 hexadecimal digits"),
});
type Config = z.infer<typeof configSchema>;

/** Instruction and responses, in the order of a standardisation's rows. */
const ROLES = ["inst", "resp"] as const;

/** The tensors of the standardisation, (D) each; `scale` is 1 / deviation. */
function standardiseShapes(dim: number): readonly ParameterShape[] {
  return ROLES.flatMap((role) =>
    ["mean", "scale"].map((what) => ({ name: `standardise.${role}.${what}`, shape: [dim] })),
  );
}

/** Tensors to be written, checked. @throws {StratumError} `scorer/missing-tensor`, `scorer/tensor-shape`, `scorer/not-finite` */
function tensorsOf(shapes: readonly ParameterShape[], values: ReadonlyMap<string, Float32Array>): TensorData[] {
  return shapes.map(({ name, shape }): TensorData => {
    const tensor = values.get(name);
    const count = elementCount(shape);
    if (tensor === undefined) throw missingTensor("the scorer to be saved", name);
    if (tensor.length !== count) throw wrongShape("the scorer to be saved", name, [tensor.length], shape);
    checkValues("the scorer to be saved", name, tensor);
    return { name, dtype: "F32", shape, bytes: encodeFloats(tensor, "F32") };
  });
}

/**
 * Writes a scorer's folder, over an older scorer. A process that is killed at any point leaves a folder that loads as the
 * old scorer or as the new one.
 * @throws {StratumError} `scorer/bad-size`, `scorer/missing-tensor`, `scorer/tensor-shape`, `scorer/not-finite`,
 *   `scorer/bad-scale`, `file/write-failed`
 */
export async function saveScorer(folder: string, scorer: SavedScorer): Promise<void> {
  const { spec, base, standardise } = scorer;
  checkScorerSpec(spec);
  const values = new Map(scorer.weights);
  for (const [i, role] of ROLES.entries()) {
    if (standardise === null) break;
    const own = (rows: Float32Array) => rows.subarray(i * spec.dim, (i + 1) * spec.dim);
    values.set(`standardise.${role}.mean`, own(standardise.mean));
    values.set(`standardise.${role}.scale`, own(standardise.scale));
  }
  const shapes = [...parameterShapes(spec), ...(standardise === null ? [] : standardiseShapes(spec.dim))];
  const tensors = tensorsOf(shapes, values);

  const [weightsPath, configPath] = [join(folder, WEIGHTS), join(folder, CONFIG)];
  const [newWeights, newConfig] = [temporaryName(weightsPath), temporaryName(configPath)];
  let replacing = false;
  try {
    await makeFolder(folder);
    await writeSafetensors(newWeights, tensors);
    const config: Config = {
      format: "stratum-scorer",
      version: SCORER_FORMAT_VERSION,
      base_model: base,
      layer: scorer.layer,
      pooling: scorer.pooling,
      system: scorer.system,
      head: spec.head,
      sizes: { dim: spec.dim, width: spec.width, heads: spec.heads, ffn: spec.ffn },
      tau: spec.tau,
      standardise: standardise !== null,
      training: scorer.training,
      sha256: await hashFile(newWeights),
    };
    await writeSynced(newConfig, `${JSON.stringify(config, null, 2)}\n`);
    // Once the weights are in place, the new scorer.json belongs to them under whatever name it has.
    await rename(newWeights, weightsPath);
    replacing = true;
    await rename(newConfig, configPath);
    await syncFolder(folder);
  } catch (cause) {
    await rm(newWeights, { force: true }).catch(() => undefined);
    if (!replacing) await rm(newConfig, { force: true }).catch(() => undefined);
    throw writeFailed(folder, cause);
  }
  await removeStale(folder);
}

/**
 * Loads a scorer's folder.
 * @throws {StratumError} `scorer/missing` (no folder), `scorer/missing-file`, `scorer/bad-json`, `scorer/unknown-version`,
 *   `scorer/bad-config`, `scorer/bad-size`, `scorer/mixed-files`, `scorer/missing-tensor`, `scorer/tensor-shape`,
 *   `scorer/tensor-dtype`, `scorer/not-finite`, `scorer/bad-scale`, `safetensors/...`, `file/...`
 */
export async function loadScorer(folder: string): Promise<SavedScorer> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await loadPair(folder);
    } catch (thrown) {
      const between = thrown instanceof StratumError && thrown.code === "scorer/mixed-files";
      if (!between || attempt === TRIES) throw thrown;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

async function loadPair(folder: string): Promise<SavedScorer> {
  const names = await readdir(folder).catch((cause: unknown) => {
    if (!isSystemError(cause, "ENOENT", "ENOTDIR")) throw unreadable(folder, cause);
    const what = `there is no folder ${folder}`;
    throw new StratumError("scorer/missing", what, "give the folder of a scorer, see stratum train", cause);
  });
  const path = join(folder, WEIGHTS);
  if (!names.includes(WEIGHTS)) {
    throw new StratumError("scorer/missing-file", `${folder} has no ${WEIGHTS}`, CONFIG_FILE.fix);
  }
  const hash = await hashFile(path).catch((cause: unknown) => {
    throw unreadable(path, cause);
  });
  const config = await configOf(folder, names, hash);
  await using file = await openSafetensors(path);
  const spec: ScorerSpec = { head: config.head, ...config.sizes, tau: config.tau };
  checkScorerSpec(spec);
  const weights = await readParameters(file, parameterShapes(spec), "");
  const standardise = config.standardise ? await readStandardisation(file, spec.dim) : null;
  // The file may have been replaced since it was hashed.
  if ((await hashFile(path)) !== hash) throw mixed(folder, "changed while it was read");
  const { base_model: base, layer, pooling, system, training } = config;
  return { spec, base, layer, pooling, system, standardise, training, weights };
}

/** The scorer.json that belongs to weights of this hash: the one in place, or that of a writer killed before its last step. */
async function configOf(folder: string, names: readonly string[], hash: string): Promise<Config> {
  const left = names.filter((name) => isTemporaryOf(name, CONFIG));
  let failure: unknown;
  try {
    const config = await readConfig(join(folder, CONFIG));
    if (config.sha256 === hash) return config;
    failure = mixed(folder, `has SHA-256 ${hash}; ${CONFIG} was written for ${config.sha256}`);
  } catch (thrown) {
    failure = thrown;
  }
  for (const name of left) {
    const config = await readConfig(join(folder, name)).catch(() => undefined);
    if (config?.sha256 === hash) return config;
  }
  throw failure;
}

async function readConfig(path: string): Promise<Config> {
  const value = await readJsonFile(path, CONFIG_FILE);
  const version = isJsonObject(value) ? value["version"] : undefined;
  if (version !== undefined && version !== SCORER_FORMAT_VERSION) {
    throw new StratumError(
      "scorer/unknown-version",
      `${path} has format version ${show(version)}; this Stratum reads ${SCORER_FORMAT_VERSION}`,
      "update Stratum, or train the scorer again with this one",
    );
  }
  const parsed = configSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  const at = issue === undefined || issue.path.length === 0 ? "" : `${issue.path.map(String).join(".")}: `;
  throw new StratumError(
    "scorer/bad-config",
    `${path} is no scorer's: ${at}${clip(issue?.message ?? "invalid")}`,
    CONFIG_FILE.fix,
    parsed.error,
  );
}

async function readStandardisation(file: SafetensorsFile, dim: number): Promise<Standardisation> {
  const standardise = { mean: new Float32Array(2 * dim), scale: new Float32Array(2 * dim) };
  const values = await readParameters(file, standardiseShapes(dim), "");
  for (const [i, role] of ROLES.entries()) {
    for (const what of ["mean", "scale"] as const) {
      const name = `standardise.${role}.${what}`;
      const row = values.get(name) ?? new Float32Array(dim);
      checkValues(file.path, name, row);
      standardise[what].set(row, i * dim);
    }
  }
  return standardise;
}

/**
 * First weights from a file (`--init`): its tensors under the names of `parameterShapes`, or under those with `init.` in
 * front; other tensors are left alone.
 * @throws {StratumError} `scorer/missing-tensor`, `scorer/tensor-shape`, `scorer/tensor-dtype`, `scorer/not-finite`,
 *   `scorer/missing-file`, `safetensors/...`, `file/...`
 */
export async function loadWeights(path: string, spec: ScorerSpec): Promise<Map<string, Float32Array<ArrayBuffer>>> {
  await using file = await openWeights(path);
  const shapes = parameterShapes(spec);
  const plain = shapes.some(({ name }) => file.tensors.has(name));
  const prefixed = !plain && shapes.some(({ name }) => file.tensors.has(`init.${name}`));
  return await readParameters(file, shapes, prefixed ? "init." : "");
}

function openWeights(path: string): Promise<SafetensorsFile> {
  return openSafetensors(path).catch((cause: unknown) => {
    if (!(cause instanceof StratumError) || cause.code !== "model/file-missing") throw cause;
    throw new StratumError("scorer/missing-file", cause.message, "check the path of the weights", cause);
  });
}

/** What sizes a file of weights has, read off its tensors; heads and tau leave no trace in them. */
export type WeightSizes = Pick<ScorerSpec, "head" | "dim" | "width" | "ffn">;

/**
 * The sizes of the weights that {@link loadWeights} would read.
 * @throws {StratumError} `scorer/missing-tensor`, `scorer/missing-file`, `safetensors/...`
 */
export async function inspectWeights(path: string): Promise<WeightSizes> {
  await using file = await openWeights(path);
  const shapeOf = (name: string) => file.tensors.get(name)?.shape ?? file.tensors.get(`init.${name}`)?.shape;
  const proj = shapeOf("proj.weight");
  const [listwise, pointwise] = ["encoder.layers.0.linear1.weight", "linear1.weight"].map(shapeOf);
  if (proj === undefined) throw missingTensor(path, "proj.weight");
  const ffn = (listwise ?? pointwise)?.[0];
  if (ffn === undefined) throw missingTensor(path, "encoder.layers.0.linear1.weight");
  return { head: listwise === undefined ? "pointwise" : "listwise", width: proj[0] ?? 0, dim: proj[1] ?? 0, ffn };
}

/** Writes weights alone, under PyTorch's names, without `__metadata__`. @throws {StratumError} as {@link saveScorer} */
export async function saveWeights(
  path: string,
  spec: ScorerSpec,
  weights: ReadonlyMap<string, Float32Array>,
): Promise<void> {
  await writeSafetensors(path, tensorsOf(parameterShapes(spec), weights));
}

/** Tensors as f32, checked, by their names without the prefix. */
async function readParameters(
  file: SafetensorsFile,
  shapes: readonly ParameterShape[],
  prefix: string,
): Promise<Map<string, Float32Array<ArrayBuffer>>> {
  const values = new Map<string, Float32Array<ArrayBuffer>>();
  for (const { name: plain, shape } of shapes) {
    const name = prefix + plain;
    const info = file.tensors.get(name);
    if (info === undefined) throw missingTensor(file.path, name);
    if (info.shape.length !== shape.length || shape.some((length, i) => length !== info.shape[i])) {
      throw wrongShape(file.path, name, info.shape, shape);
    }
    if (!isFloatDtype(info.dtype)) {
      const what = `${file.path}: tensor '${name}' is ${info.dtype}`;
      throw new StratumError("scorer/tensor-dtype", what, "store a scorer's weights as F32");
    }
    const tensor = decodeFloats(await file.read(name), info.dtype);
    checkValues(file.path, name, tensor);
    values.set(plain, tensor);
  }
  return values;
}

/** An instruction's scale may be 0: a learned vector then stands in its place (`anchor`). A response's may not. */
function checkValues(where: string, name: string, values: Float32Array): void {
  const [scale, positive] = [name.endsWith(".scale"), name === "standardise.resp.scale"];
  const at = values.findIndex((value) => !Number.isFinite(value) || (scale && value < 0) || (positive && value === 0));
  if (at < 0) return;
  throw new StratumError(
    Number.isFinite(values[at]) ? "scorer/bad-scale" : "scorer/not-finite",
    `${where}: tensor '${name}' holds ${values[at]} at ${at}`,
    "the training diverged or the file is damaged: train again, with a lower --lr",
  );
}

function missingTensor(where: string, name: string): StratumError {
  const fix = "the file belongs to a scorer of another head, or is no scorer: check --head and the path";
  return new StratumError("scorer/missing-tensor", `${where} has no tensor '${name}'`, fix);
}

function wrongShape(where: string, name: string, found: readonly number[], shape: readonly number[]): StratumError {
  return new StratumError(
    "scorer/tensor-shape",
    `${where}: tensor '${name}' has shape ${show(found)}; these sizes need ${show(shape)}`,
    "give the sizes that the weights were made for (dim, width, ffn)",
  );
}

function mixed(folder: string, what: string): StratumError {
  return new StratumError(
    "scorer/mixed-files",
    `${join(folder, WEIGHTS)} ${what}`,
    "the two files are of different scorers, or one is damaged: copy both again, or train again",
  );
}

/** What the states at hand are. */
export interface StateOrigin {
  readonly fingerprint: string;
  /** The model's name, for messages. */
  readonly name?: string | undefined;
  /** D */
  readonly dim: number;
  readonly layer?: number | undefined;
  readonly pooling?: Pooling | undefined;
  /** The system message of the prompts. */
  readonly system?: string | undefined;
}

/**
 * Checks that a scorer was trained on states like those at hand. What either side does not know is not compared.
 * @throws {StratumError} `scorer/model-mismatch`, `scorer/layer-mismatch`, `scorer/width-mismatch`,
 *   `scorer/pooling-mismatch`, `scorer/system-mismatch`
 */
export function checkScorerFits(
  scorer: Pick<SavedScorer, "spec" | "base" | "layer" | "pooling"> & Partial<Pick<SavedScorer, "system">>,
  { fingerprint, name, dim, layer, pooling, system }: StateOrigin,
): void {
  // Fingerprints are taken down to a layer: another layer's would look like another model's.
  if (scorer.layer !== null && layer !== undefined && scorer.layer !== layer) {
    throw new StratumError(
      "scorer/layer-mismatch",
      `the scorer was trained on layer ${scorer.layer}; the states are of layer ${layer}`,
      `use --layer ${scorer.layer}, or train a scorer for layer ${layer}`,
    );
  }
  const { base } = scorer;
  if (base !== null && base.fingerprint !== fingerprint) {
    const model = name === undefined ? "this model" : `'${name}'`;
    throw new StratumError(
      "scorer/model-mismatch",
      `the scorer was trained on '${base.name}' (${base.fingerprint}); ${model} has the fingerprint ${fingerprint}`,
      `use --model with '${base.name}', or train a scorer for this model`,
    );
  }
  if (scorer.spec.dim !== dim) {
    throw new StratumError(
      "scorer/width-mismatch",
      `the scorer takes states ${scorer.spec.dim} wide; these are ${dim} wide`,
      "use the model that the scorer was trained on, or train a scorer for this one",
    );
  }
  if (scorer.pooling !== null && pooling !== undefined && scorer.pooling !== pooling) {
    throw new StratumError(
      "scorer/pooling-mismatch",
      `the scorer was trained with pooling '${scorer.pooling}'; the states have pooling '${pooling}'`,
      `use --pooling ${scorer.pooling}, or train a scorer with --pooling ${pooling}`,
    );
  }
  if (system !== undefined && scorer.base !== null && scorer.system !== undefined && scorer.system !== system) {
    throw new StratumError(
      "scorer/system-mismatch",
      `the scorer was trained with ${scorer.system === null ? "no system message" : `the system message ${show(scorer.system)}`}; asked for is ${show(system)}`,
      "leave out --system, or train a scorer with this one",
    );
  }
}
