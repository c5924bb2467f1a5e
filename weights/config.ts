/**
 * A model's config.json: read, and checked entry by entry. What the entries of a family mean is said in its own file
 * (engine/families).
 */
import { readdir, stat } from "node:fs/promises";
import { z } from "zod";
import { StratumError } from "../errors.ts";
import { isJsonObject, readJsonFile, show } from "./json.ts";
import { modelFile } from "./model-folder.ts";
import { notADirectory, noWeights, otherWeights } from "./other-formats.ts";

/** A parsed config.json. */
export interface ConfigFile {
  /** For messages. */
  readonly path: string;
  readonly entries: Readonly<Record<string, unknown>>;
}

const MAX_CONFIG_BYTES = 10_000_000;
const MAX_INDEX = 2 ** 31;

// Beyond any model there is; a number past these is a fault of the file, and would only fail later as lack of memory.
/** A whole number from 1 to `max`. */
export const size = (max: number) => z.int().min(1).max(max);
/** A row length. */
export const width = size(2 ** 24);
export const positive = z.number().positive().max(1e12);
export const tokenId = z.int().min(-1).max(MAX_INDEX);
/** Tokens. */
export const positions = size(MAX_INDEX);

/**
 * Reads `config.json` of a model folder, or a file of that kind whose name ends in `.json`.
 * @throws {StratumError} `config/missing`, `config/bad-json` (also for more than 10 MB), `file/unreadable`;
 *   `model/outside-link`, `model/not-a-directory`, and `model/no-weights` for a folder without it that holds weights of another format alone
 */
export async function readConfigFile(directory: string): Promise<ConfigFile> {
  const path = directory.endsWith(".json") ? directory : await modelFile(directory, "config.json");
  const config = await readJsonFile(path, {
    what: `the model's config.json (in ${directory})`,
    maxBytes: MAX_CONFIG_BYTES,
    missing: "config/missing",
    bad: "config/bad-json",
    fix: "pass the folder of a Hugging Face model, with its config.json; download it again if it is damaged",
  }).catch(async (thrown: unknown) => {
    throw (await whatElse(directory, thrown)) ?? thrown;
  });
  return configFile(config, path);
}

/** What a place without config.json is instead: a file, or a folder of GGUF or pickled weights; null: none of these. */
async function whatElse(directory: string, thrown: unknown): Promise<StratumError | null> {
  if (!(thrown instanceof StratumError) || thrown.code !== "config/missing") return null;
  const found = await stat(directory).catch(() => null);
  if (found?.isFile()) return notADirectory(directory, thrown);
  const files = await readdir(directory).catch(() => []);
  if (otherWeights(files).length === 0 || files.some((file) => file.endsWith(".safetensors"))) return null;
  return noWeights(directory, "neither config.json nor a .safetensors file", files);
}

/**
 * A parsed config.json as a file of entries.
 * @throws {StratumError} `config/bad-json` for anything but an object
 */
export function configFile(config: unknown, path: string): ConfigFile {
  if (isJsonObject(config)) return { path, entries: config };
  throw new StratumError("config/bad-json", `${path} is ${show(config)}, not an object`, "download config.json again");
}

/**
 * The checked entries.
 * @param prefix the key that holds `entries`; empty at the top
 * @throws {StratumError} `config/bad-value` for the first fault, with the key's full name and its value
 */
export function parseEntries<T>(schema: z.ZodType<T>, entries: object, prefix: string, path: string): T {
  const result = schema.safeParse(entries);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  const keys = issue?.path ?? [];
  const value = keys.reduce<unknown>((at, key) => (isIndexable(at) ? at[key] : undefined), entries);
  const name = [...(prefix ? [prefix] : []), ...keys].map(String).join(".");
  throw badValue(path, value === undefined ? `${name} is missing` : `${name} is ${show(value)}: ${issue?.message}`);
}

function isIndexable(value: unknown): value is Readonly<Record<PropertyKey, unknown>> {
  return typeof value === "object" && value !== null;
}

/** `config/bad-value`: an entry that no model has, or entries that do not go together. */
export function badValue(path: string, message: string): StratumError {
  return new StratumError(
    "config/bad-value",
    `${path}: ${message}`,
    "check config.json against the model's page, or download it again",
  );
}
