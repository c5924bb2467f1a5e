/** From a config.json and a checkpoint's names to a model as data: finds the family, and where its tensors lie. */
import { StratumError } from "../errors.ts";
import type { Checkpoint } from "../weights/checkpoint.ts";
import { type ConfigFile, configFile } from "../weights/config.ts";
import { isJsonObject, show } from "../weights/json.ts";
import { blockTensors, type ModelSpec, tensorsTo, type WeightForm } from "./decoder.ts";
import { FAMILIES } from "./families/all.ts";
import type { Architecture, FamilySource } from "./families/family.ts";
import { whyUnsupported } from "./families/unsupported.ts";

/** The `model_type`s that are understood. */
export const SUPPORTED_MODEL_TYPES: readonly string[] = FAMILIES.flatMap(({ modelTypes }) => modelTypes);

/** The entries under which models of several media keep the configuration of their text part. */
const TEXT_PARTS = ["text_config", "llm_config", "language_config"];

/** Entries beside a text part that hold for it too, unless it has its own. */
const INHERITED = [
  "tie_word_embeddings",
  "torch_dtype",
  "dtype",
  "quantization_config",
  "bos_token_id",
  "eos_token_id",
];

/**
 * Reads the description of a decoder out of a config.json. The model type is looked at first: of a model that is not
 * supported, nothing else is judged.
 *
 * @throws {StratumError} `config/unsupported-model`, `config/unsupported-rope`, `config/unsupported-activation`,
 *   `config/unsupported-quantization`, `config/bad-value` (the key and its value are named)
 */
export function describeModel(config: ConfigFile): Architecture {
  const source = sourceOf(config);
  const family = FAMILIES.find(({ modelTypes }) => modelTypes.includes(source.modelType));
  if (family === undefined) throw unsupported(config.path, source.modelType);
  const { path, entries } = source;
  if (entries["quantization_config"] != null) {
    throw new StratumError(
      "config/unsupported-quantization",
      `${path}: quantization_config is ${show(entries["quantization_config"])}; quantised weights cannot be read`,
      "use the model's unquantised weights (bf16, f16 or f32)",
    );
  }
  if (entries["is_causal"] === false) {
    throw new StratumError(
      "config/unsupported-model",
      `${path}: is_causal is false: every token sees the later ones, as in an encoder`,
      "use a decoder",
    );
  }
  return family.describe(source);
}

/** {@link describeModel} of a parsed config.json. */
export function parseModelConfig(config: unknown, path: string): Architecture {
  return describeModel(configFile(config, path));
}

/** The entries of the decoder: those of the file, or of its text part. */
function sourceOf({ path, entries }: ConfigFile): FamilySource {
  const outer = entries["model_type"];
  const own = typeof outer === "string" && SUPPORTED_MODEL_TYPES.includes(outer);
  const key = own ? undefined : TEXT_PARTS.find((name) => isJsonObject(entries[name]));
  if (key === undefined) {
    if (typeof outer !== "string") throw unsupported(path, outer);
    return { path, entries, modelType: outer, nested: false };
  }
  const text = entries[key] as Readonly<Record<string, unknown>>;
  const inherited = INHERITED.filter((name) => text[name] === undefined && entries[name] !== undefined);
  const modelType = text["model_type"];
  if (typeof modelType !== "string") throw unsupported(`${path}, ${key}`, modelType);
  return {
    path: `${path}, ${key}`,
    entries: { ...Object.fromEntries(inherited.map((name) => [name, entries[name]])), ...text },
    modelType,
    nested: true,
  };
}

function unsupported(path: string, modelType: unknown): StratumError {
  const why = typeof modelType === "string" ? whyUnsupported(modelType) : undefined;
  const what = modelType === undefined ? "there is no model_type" : `model_type is ${show(modelType)}`;
  return new StratumError(
    "config/unsupported-model",
    `${path}: ${what}${why === undefined ? "" : `, ${why}`}; supported are ${SUPPORTED_MODEL_TYPES.join(", ")}`,
    "use a model of one of these types",
  );
}

/** The end of every decoder, which no hidden state needs: the last norm and the head. */
const END = /(^|\.)(lm_head|embed_out|norm|ln_f|final_layer_norm)\.(weight|bias)$/;

/** The tensors of a checkpoint that are no part of the decoder: other media, masks, what its family does not know. */
export function otherTensors({ spec, checkpoint }: { spec: ModelSpec; checkpoint: Checkpoint }): string[] {
  const own = new Set(tensorsTo(spec, spec.blocks.length));
  return [...checkpoint.names()].filter((name) => !own.has(name) && !END.test(name));
}

/** Parts of a model of several media that are no text decoder. */
const OTHER_MEDIA = /(^|\.)(vision|visual|audio|image|speech|vit)/;

/** What the names of a wrapped decoder begin with: `language_model.model.`, `model.language_model.`, ... */
function findPrefix(architecture: Architecture, names: readonly string[], has: (name: string) => boolean): string {
  const tensors = blockTensors(architecture.block(0, ""));
  const usual = architecture.prefixes.find((prefix) => tensors.some((name) => has(prefix + name)));
  if (usual !== undefined) return usual;
  const found = names
    .filter((name) => tensors.some((tensor) => name.endsWith(`.${tensor}`)))
    .map((name) => {
      const tensor = tensors.find((end) => name.endsWith(`.${end}`)) ?? "";
      return name.slice(0, name.length - tensor.length);
    })
    .filter((prefix) => !OTHER_MEDIA.test(prefix));
  return found[0] ?? architecture.prefixes[0] ?? "";
}

/**
 * The tensors that a model consists of, under the names that this checkpoint uses.
 * @param form how its matrices will be held
 * @throws {StratumError} `model/missing-tensor` where no embedding is stored
 */
export function modelSpec(architecture: Architecture, checkpoint: Checkpoint, form: WeightForm = "stored"): ModelSpec {
  const { config, embedding, positions, block } = architecture;
  const prefix = findPrefix(architecture, [...checkpoint.names()], (name) => checkpoint.has(name));
  const heads = [...checkpoint.names()].filter((name) => config.tiedEmbeddings && /(^|\.)lm_head\.weight$/.test(name));
  const candidates = [prefix + embedding, ...heads];
  const table = candidates.find((name) => checkpoint.has(name));
  if (table === undefined) {
    throw new StratumError(
      "model/missing-tensor",
      `${checkpoint.directory} has no embedding: looked for ${[prefix + embedding, ...(config.tiedEmbeddings ? ["lm_head.weight"] : [])].join(", ")}`,
      "download the checkpoint again; a tied one may store lm_head.weight alone, with tie_word_embeddings true in config.json",
    );
  }
  return {
    config,
    form,
    embedding: table,
    positions: positions === null ? null : { weight: prefix + positions, rows: config.maxPositions },
    blocks: Array.from({ length: config.layers }, (_, i) => block(i, prefix)),
    prefix,
  };
}
