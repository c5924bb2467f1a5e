/**
 * A Hugging Face model folder as one set of named tensors: `model.safetensors`, or shards with their index, or a single
 * other safetensors file. A shard is opened only when a tensor of it is asked for, so the shards of layers that are never
 * computed need not even exist.
 */

import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { StratumError } from "../errors.ts";
import { isJsonObject, isSystemError, readJsonFile, show, unreadable } from "./json.ts";
import { modelFile } from "./model-folder.ts";
import { notADirectory, noWeights } from "./other-formats.ts";
import { newReadLog, openSafetensors, type ReadLog, type SafetensorsFile, type TensorInfo } from "./safetensors.ts";
import { type RowRange, readTensorColumns, readTensorRows } from "./tensor-rows.ts";

/** Where the files of a model come from that are not on disk yet. */
export interface RemoteFiles {
  /** The model's name, for messages. */
  readonly name: string;
  /** Names of all the model's files. */
  list(): Promise<readonly string[]>;
  /** Puts files into the folder; those that are there already are no work. */
  fetch(files: readonly string[]): Promise<void>;
  /** The tensors of a safetensors file, without fetching it. */
  tensors(file: string): Promise<ReadonlyMap<string, TensorInfo>>;
}

/** An open model folder. Reads may run at the same time; none may follow `close`. */
export interface Checkpoint extends AsyncDisposable {
  readonly directory: string;
  /** Bytes read so far over all files, and by tensor. */
  readonly log: ReadLog;
  /** The names of all tensors; opens no shard. */
  names(): Iterable<string>;
  /** Whether the checkpoint lists a tensor; opens no shard. */
  has(name: string): boolean;
  /** Dtype and shape; opens the tensor's shard, or asks for the header of one that is not on disk. */
  info(name: string): Promise<TensorInfo>;
  /**
   * Has the files that hold these tensors on disk before any is read: together, so that how much is to come is known. What
   * was not required is fetched by the read that meets it. Of a model that is on disk this does nothing.
   */
  require(names: readonly string[]): Promise<void>;
  /** A whole tensor, in a buffer of its own that begins at offset 0. */
  read(name: string): Promise<Uint8Array<ArrayBuffer>>;
  /**
   * Rows of a (rows, columns) tensor, concatenated in the asked order; a row that is asked for twice is read once, and
   * neighbouring rows are read together.
   *
   * @throws StratumError `model/not-a-matrix`, `model/row-out-of-range`
   */
  readRows(name: string, rows: readonly number[] | RowRange): Promise<Uint8Array<ArrayBuffer>>;
  /**
   * Neighbouring columns of a (rows, columns) tensor, (rows, count).
   *
   * @throws StratumError `model/not-a-matrix`, `model/column-out-of-range`
   */
  readColumns(name: string, columns: RowRange): Promise<Uint8Array<ArrayBuffer>>;
  /** Closes all files; again is no error. */
  close(): Promise<void>;
}

const SINGLE = "model.safetensors";
const INDEX = "model.safetensors.index.json";
const INDEX_BYTES = 2 ** 26;

/** A LoRA adapter has the form of a model file but not its weights. */
const NOT_A_MODEL = new Set(["adapter_model.safetensors"]);

/**
 * Opens the weights of a model folder. With `remote`, files that the folder lacks are fetched when a tensor of them is
 * read, and not before. Names in an index that are no files of the folder are refused, and links that lead out of it
 * elsewhere than into the hub cache.
 *
 * The reading methods throw `model/missing-tensor`, `model/missing-shard`, `model/bad-index`, `model/outside-link`, and
 * what {@link openSafetensors} throws.
 *
 * @throws StratumError `model/missing`, `model/not-a-directory`, `model/no-weights`, `model/ambiguous-weights`,
 *   `model/bad-index`, `model/outside-link`, for a single file what {@link openSafetensors} throws, and what `remote` throws
 */
export async function openCheckpoint(directory: string, remote?: RemoteFiles): Promise<Checkpoint> {
  const files = await listFolder(directory);
  const log = newReadLog();
  if (!files.includes(SINGLE) && files.includes(INDEX)) {
    return shardedCheckpoint(directory, await readIndex(directory), log, remote);
  }
  if (remote !== undefined && !files.includes(SINGLE)) {
    const file = onlyWeightFile(remote.name, [...new Set([...files, ...(await remote.list())])]);
    if (!files.includes(file)) {
      const tensors = await remote.tensors(file);
      const shardOf = new Map([...tensors.keys()].map((name) => [name, file]));
      return shardedCheckpoint(directory, shardOf, log, remote, new Map([[file, Promise.resolve(tensors)]]));
    }
  }
  const file = await openSafetensors(await modelFile(directory, onlyWeightFile(directory, files)), log);
  return checkpointOf(directory, file.tensors, { fileOf: async () => file, close: file.close }, log);
}

/** @param headers of shards that are not on disk */
function shardedCheckpoint(
  directory: string,
  shardOf: ReadonlyMap<string, string>,
  log: ReadLog,
  remote?: RemoteFiles,
  headers = new Map<string, Promise<ReadonlyMap<string, TensorInfo>>>(),
): Checkpoint {
  const opened = new Map<string, Promise<SafetensorsFile>>();
  let closed = false;

  async function openShard(shard: string, name: string): Promise<SafetensorsFile> {
    try {
      await remote?.fetch([shard]);
      return await openSafetensors(await modelFile(directory, shard), log);
    } catch (error) {
      // So that a shard that is fetched meanwhile is found by the next try.
      opened.delete(shard);
      if (!(error instanceof StratumError) || error.code !== "model/file-missing") throw error;
      throw new StratumError(
        "model/missing-shard",
        `${join(directory, shard)} is missing; ${INDEX} says that it holds ${show(name)}`,
        "download the rest of the model",
        error,
      );
    }
  }

  async function fileOf(name: string): Promise<SafetensorsFile> {
    const shard = shardOf.get(name) ?? "";
    if (closed) throw new StratumError("safetensors/closed", `${directory} is closed`, "read before closing it");
    const opening = opened.get(shard) ?? openShard(shard, name);
    opened.set(shard, opening);
    const file = await opening;
    if (file.tensors.has(name)) return file;
    throw notInShard(shard, name);
  }

  function notInShard(shard: string, name: string): StratumError {
    return new StratumError(
      "model/bad-index",
      `${join(directory, shard)} has no tensor ${show(name)}, though ${INDEX} says so`,
      "the index and the shards are of different models or revisions: download the model again",
    );
  }

  /** A tensor of a shard that is on disk, or else of its header. */
  async function infoOf(name: string): Promise<TensorInfo> {
    const shard = shardOf.get(name) ?? "";
    if (remote === undefined || opened.has(shard) || existsSync(join(directory, shard))) {
      return (await fileOf(name)).info(name);
    }
    const asking = headers.get(shard) ?? remote.tensors(shard);
    headers.set(shard, asking);
    try {
      const info = (await asking).get(name);
      if (info !== undefined) return info;
    } catch (error) {
      headers.delete(shard);
      throw error;
    }
    throw notInShard(shard, name);
  }

  async function require(names: readonly string[]): Promise<void> {
    await remote?.fetch([...new Set(names.flatMap((name) => shardOf.get(name) ?? []))]);
  }

  async function close(): Promise<void> {
    closed = true;
    const results = await Promise.allSettled(opened.values());
    await Promise.all(results.map((result) => (result.status === "fulfilled" ? result.value.close() : undefined)));
  }

  return checkpointOf(directory, shardOf, { fileOf, infoOf, require, close }, log);
}

/** Where the tensors of a checkpoint lie. */
interface TensorFiles {
  fileOf(name: string): Promise<SafetensorsFile>;
  /** Default: from the tensor's file. */
  infoOf?(name: string): Promise<TensorInfo>;
  /** Default: nothing is to be done. */
  require?(names: readonly string[]): Promise<void>;
  close(): Promise<void>;
}

function checkpointOf(
  directory: string,
  listed: ReadonlyMap<string, unknown>,
  files: TensorFiles,
  log: ReadLog,
): Checkpoint {
  function checkListed(name: string): void {
    if (listed.has(name)) return;
    const packed = name.replace(/\.weight$/, ".qweight");
    if (listed.has(packed)) {
      throw new StratumError(
        "model/unsupported-dtype",
        `${directory} stores ${show(name)} quantised, as ${show(packed)} (GPTQ or AWQ); quantised weights cannot be read`,
        "use the model's unquantised weights (bf16, f16 or f32); --weights int8 or int4 quantises them on load",
      );
    }
    const near = nearestNames(name, listed.keys());
    throw new StratumError(
      "model/missing-tensor",
      `${directory} has no tensor ${show(name)}; ${near.length > 0 ? `the nearest are ${near.map(show).join(", ")}` : "it has none at all"}`,
      "check that config.json and the weights belong to the same model",
    );
  }
  async function find(name: string): Promise<SafetensorsFile> {
    checkListed(name);
    return files.fileOf(name);
  }
  async function info(name: string): Promise<TensorInfo> {
    checkListed(name);
    return files.infoOf?.(name) ?? (await files.fileOf(name)).info(name);
  }
  const { close } = files;
  return {
    directory,
    log,
    names: () => listed.keys(),
    has: (name) => listed.has(name),
    info,
    require: async (names) => files.require?.(names),
    read: async (name) => (await find(name)).read(name),
    readRows: async (name, rows) => readTensorRows(await find(name), name, rows),
    readColumns: async (name, columns) => readTensorColumns(await find(name), name, columns),
    close,
    [Symbol.asyncDispose]: close,
  };
}

async function listFolder(directory: string): Promise<readonly string[]> {
  try {
    return await readdir(directory);
  } catch (cause) {
    if (isSystemError(cause, "ENOENT")) {
      throw new StratumError(
        "model/missing",
        `the model folder ${directory} does not exist; looked there for ${SINGLE} or ${INDEX}`,
        "check the path, or download the model first",
        cause,
      );
    }
    if (!isSystemError(cause, "ENOTDIR")) throw unreadable(directory, cause);
    throw notADirectory(directory, cause);
  }
}

function onlyWeightFile(directory: string, files: readonly string[]): string {
  if (files.includes(SINGLE)) return SINGLE;
  const candidates = files.filter((file) => file.endsWith(".safetensors") && !NOT_A_MODEL.has(file)).sort();
  const [only] = candidates;
  if (only !== undefined && candidates.length === 1) return only;
  if (only !== undefined) {
    throw new StratumError(
      "model/ambiguous-weights",
      `${directory} has ${candidates.length} safetensors files and no ${INDEX}: ${candidates.slice(0, 5).join(", ")}`,
      `download ${INDEX}, or leave one file in the folder`,
    );
  }
  throw noWeights(directory, `neither ${SINGLE} nor ${INDEX} nor another .safetensors file`, files);
}

async function readIndex(directory: string): Promise<ReadonlyMap<string, string>> {
  const path = await modelFile(directory, INDEX);
  const fix = "download the index again";
  const file = { what: "the shards' index", maxBytes: INDEX_BYTES, fix } as const;
  const index = await readJsonFile(path, { ...file, missing: "model/bad-index", bad: "model/bad-index" });
  const shards = isJsonObject(index) ? index["weight_map"] : undefined;
  if (!isJsonObject(shards)) {
    throw new StratumError("model/bad-index", `${path} has no "weight_map" object, but ${show(shards)}`, fix);
  }
  const shardOf = new Map<string, string>();
  for (const [name, shard] of Object.entries(shards)) {
    if (typeof shard !== "string" || !isPlainFileName(shard)) {
      const message = `${path} places ${show(name)} in ${show(shard)}; only names of .safetensors files in the same folder are allowed`;
      throw new StratumError("model/bad-index", message, fix);
    }
    shardOf.set(name, shard);
  }
  return shardOf;
}

/** A name that stays within its folder on every system: no separator, drive, stream or control character. */
function isPlainFileName(name: string): boolean {
  return /^[^/\\:\p{Cc}]+\.safetensors$/u.test(name) && name.length <= 255;
}

/** Up to three names by the length of the beginning and end that they share with `name`. */
function nearestNames(name: string, names: Iterable<string>): string[] {
  let best: { readonly name: string; readonly score: number }[] = [];
  for (const candidate of names) {
    const most = Math.min(name.length, candidate.length);
    let start = 0;
    while (start < most && name[start] === candidate[start]) start++;
    let end = 0;
    while (end < most - start && name.at(-1 - end) === candidate.at(-1 - end)) end++;
    const score = start + end - Math.max(name.length, candidate.length) / 2;
    best = [...best, { name: candidate, score }].sort((a, b) => b.score - a.score).slice(0, 3);
  }
  return best.map((near) => near.name);
}
