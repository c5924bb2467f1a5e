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
import {
  hashFile,
  isTemporaryOf,
  makeFolder,
  removeStale,
  syncFolder,
  temporaryName,
  writeFailed,
  writeSynced,
} from "../weights/durable.ts";
import { clip, isJsonObject, isSystemError, readJsonFile, show, statRegular, unreadable } from "../weights/json.ts";
import { openSafetensors, type SafetensorsFile } from "../weights/safetensors.ts";
import { writeSafetensors } from "../weights/safetensors-writer.ts";
import { nonEmpty } from "../weights/schema.ts";
import { isPooling, POOLING_NAMES, type Pooling } from "./encode.ts";
import type { Standardisation } from "./feeder.ts";
import { checkScorerSpec, type ParameterShape, parameterShapes, SCORER_HEADS, type ScorerSpec } from "./scorer-spec.ts";
import { checkValues, readParameters, tensorsOf } from "./scorer-weights.ts";

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
  base_model: z.object({ name: z.string(), fingerprint: nonEmpty(z.string()) }).nullable(),
  layer: z.int().min(0).nullable(),
  pooling: z
    .custom<Pooling>((value) => typeof value === "string" && isPooling(value), `one of ${POOLING_NAMES}`)
    .nullable(),
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
  const hash = await hashOf(path);
  const config = await configOf(folder, names, hash);
  await using file = await openSafetensors(path);
  const spec: ScorerSpec = { head: config.head, ...config.sizes, tau: config.tau };
  checkScorerSpec(spec);
  const weights = await readParameters(file, parameterShapes(spec), "");
  const standardise = config.standardise ? await readStandardisation(file, spec.dim) : null;
  // The file may have been replaced since it was hashed.
  if ((await hashOf(path)) !== hash) throw mixed(folder, "changed while it was read");
  const { base_model: base, layer, pooling, system, training } = config;
  return { spec, base, layer, pooling, system, standardise, training, weights };
}

async function hashOf(path: string): Promise<string> {
  try {
    await statRegular(path);
    return await hashFile(path);
  } catch (cause) {
    throw cause instanceof StratumError ? cause : unreadable(path, cause);
  }
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

function mixed(folder: string, what: string): StratumError {
  return new StratumError(
    "scorer/mixed-files",
    `${join(folder, WEIGHTS)} ${what}`,
    "the two files are of different scorers, or one is damaged: copy both again, or train again",
  );
}
