/**
 * A cache of features: a file a layer under the hash of everything that the states depend on, and beside it a JSON file
 * with the lists' ids and what was hashed. A layer counts as present only where both are whole; else it is computed again.
 */
import { createHash } from "node:crypto";
import { readdir, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { z } from "zod";
import type { Model } from "../engine/hidden-states.ts";
import { messageOf, StratumError } from "../errors.ts";
import { cacheFolder } from "../weights/cache-folder.ts";
import { DEFAULT_DATE } from "../weights/chat-template.ts";
import {
  hashFile,
  makeFolder,
  removeStale,
  syncFolder,
  temporaryName,
  writeFailed,
  writeSynced,
} from "../weights/durable.ts";
import { readJsonFile, statRegular, unreadable } from "../weights/json.ts";
import { sealed, unsealed } from "../weights/seal.ts";
import type { Pooling } from "./encode.ts";
import type { FeatureSource } from "./feature-source.ts";
import { computeFeatures, type FeatureOptions, type LeftOut, poolingsOf, writeFeatures } from "./features.ts";
import { openFeatures } from "./features-file.ts";
import type { Id, ListLine } from "./lists.ts";

export interface CacheRequest extends Omit<FeatureOptions, "onLeftOut"> {
  /** The lists, from their beginning at every call: they are read once for their hash, and again to be computed. */
  readonly lines: () => AsyncIterable<ListLine>;
  /** Opens the model; called only where a layer has to be computed. Closing it is the caller's. */
  readonly model: () => Promise<Model>;
  /** The model's directory: sizes and times of its files are a part of the key. */
  readonly directory: string;
  /** `id@commit` of a model of the hub: takes the place of its files, of which a deeper layer needs more. */
  readonly commit?: string | undefined;
  /** Of the model. */
  readonly fingerprint: string;
  /** The adapter's name: a state is the same bit for bit on one adapter only. */
  readonly adapter: string;
  /** Of the kernels' variants, as `KernelsRecord.id`: states of others differ in their last bits. */
  readonly kernels?: string | undefined;
  /** Of this package, and so of its kernels. */
  readonly version: string;
  /** Default {@link featuresFolder}. */
  readonly folder?: string | undefined;
  /** Called when the cache holds a damaged entry, with what it is. */
  readonly onNote?: ((text: string) => void) | undefined;
}

/** One layer's features under one pooling. */
export interface CachedLayer {
  readonly layer: number;
  readonly pooling: Pooling;
  readonly path: string;
  /** Open until the whole result is disposed of. */
  readonly source: FeatureSource;
  /** (B), of the source's lists in order. */
  readonly ids: readonly Id[];
  readonly leftOut: readonly LeftOut[];
  /** It was there: nothing was computed for it. */
  readonly reused: boolean;
}

/** Layers in the order that was asked for, a layer's poolings side by side. Disposing it closes their files. */
export interface CachedFeatures extends AsyncDisposable {
  readonly layers: readonly CachedLayer[];
}

/** What a layer's states depend on, in clear; JSON of it is hashed. */
type Ingredients = Readonly<Record<string, unknown>>;

/** Whether a list has features here depends on what else the pass computed, not on the list alone. */
const OF_THE_PASS: ReadonlySet<string> = new Set(["state/not-finite", "list/over-budget"]);
/** Of a pass with several poolings also its length: the end token is one more. */
const OF_POOLINGS = "list/too-long";

/** A layer under a pooling. */
interface Tap {
  readonly layer: number;
  readonly pooling: Pooling;
}

/** Of folders of the cache: what is in it was made of somebody's texts. */
const PRIVATE = 0o700;
const ENTRY_VERSION = 3;
const id = z.union([z.string(), z.number()]);
const entrySchema = z.object({
  version: z.literal(ENTRY_VERSION),
  /** Of the features file. */
  sha256: z.string(),
  ids: z.array(id),
  left_out: z.array(
    z.object({
      id,
      line: z.number(),
      error: z.object({ code: z.string(), message: z.string(), fix: z.string() }),
    }),
  ),
  key: z.record(z.string(), z.unknown()),
});
type Entry = z.infer<typeof entrySchema>;

/** `$XDG_CACHE_HOME/stratum/features`, or that below `~/.cache`. */
export function featuresFolder(): string {
  return join(cacheFolder(), "features");
}

/**
 * Features of lists from the cache; layers that it lacks are computed in one pass and added.
 * @throws {StratumError} `features/data-changed` when the lists change while they are read, `file/...`, and as
 *   `computeFeatures`; the signal's reason when it ends the pass
 */
export async function cachedFeatures(request: CacheRequest): Promise<CachedFeatures> {
  const { folder = featuresFolder() } = request;
  const poolings = [...new Set(poolingsOf(request))];
  const layers = [...new Set(request.layers)];
  const common = await commonIngredients(request);
  const found = new Map<string, OpenLayer>();
  const { batchTokens = null, sharePrefix = true } = request;
  const passOf = (of: Pick<Pass, "layers" | "poolings">): Pass => ({
    ...of,
    batch_tokens: batchTokens,
    share_prefix: sharePrefix,
  });
  const whole = passOf({ layers, poolings });
  const missing = (of: Pass) => tapsOf(of).filter((tap) => !found.has(nameOf(tap)));
  const look = async (of: Pass, pass: Pass | null) => {
    for (const tap of missing(of)) {
      const opened = await openEntry(entryPath(folder, { ...common, ...tap, pass }), request);
      if (opened !== null) found.set(nameOf(tap), { ...opened, ...tap, reused: true });
    }
  };
  const drop = async (of: Pass) => {
    const taps = tapsOf(of).filter((tap) => found.has(nameOf(tap)));
    await closeAll(taps.flatMap((tap) => found.get(nameOf(tap)) ?? []));
    for (const tap of taps) found.delete(nameOf(tap));
  };
  const compute = async (of: Pass) => {
    // All of the pass again, where a part of it is damaged.
    await drop(of);
    for (const made of await computeTaps(request, folder, common, of)) found.set(nameOf(made), made);
  };
  try {
    await look(whole, null);
    const absent = missing(whole);
    const rest = passOf({
      layers: layers.filter((layer) => absent.some((tap) => tap.layer === layer)),
      poolings: poolings.filter((pooling) => absent.some((tap) => tap.pooling === pooling)),
    });
    await look(rest, rest);
    if (missing(rest).length > 0) await compute(rest);
    if (!sameLists([...found.values()])) {
      // What a pass leaves out depends on its layers and poolings: only those of one pass belong together.
      await drop(whole);
      await look(whole, whole);
      if (missing(whole).length > 0) await compute(whole);
    }
  } catch (thrown) {
    await closeAll(found.values());
    throw thrown;
  }
  return {
    layers: request.layers.flatMap((layer) =>
      poolingsOf(request).flatMap((pooling) => found.get(nameOf({ layer, pooling })) ?? []),
    ),
    [Symbol.asyncDispose]: () => closeAll(found.values()),
  };
}

/** What one pass computes, and what of it decides which lists it leaves out. */
interface Pass {
  readonly layers: readonly number[];
  readonly poolings: readonly Pooling[];
  readonly batch_tokens: number | null;
  readonly share_prefix: boolean;
}

/** In the order of `ListFeatures.states`. */
function tapsOf({ layers, poolings }: Pass): Tap[] {
  return layers.flatMap((layer) => poolings.map((pooling) => ({ layer, pooling })));
}

function nameOf({ layer, pooling }: Tap): string {
  return `${layer} ${pooling}`;
}

/** Whether layers hold the same lists in the same order. */
function sameLists([first, ...others]: readonly OpenLayer[]): boolean {
  return others.every(({ ids }) => ids.length === first?.ids.length && ids.every((id, b) => id === first.ids[b]));
}

interface OpenLayer extends CachedLayer {
  readonly source: FeatureSource & AsyncDisposable;
}

async function closeAll(layers: Iterable<OpenLayer>): Promise<void> {
  for (const { source } of layers) await source[Symbol.asyncDispose]();
}

async function commonIngredients(request: CacheRequest): Promise<Ingredients> {
  const { fingerprint, system = null, date = DEFAULT_DATE, truncate = false } = request;
  const hash = createHash("sha256");
  for await (const line of request.lines()) {
    addLine(hash, line);
    request.signal?.throwIfAborted();
  }
  return {
    entry: ENTRY_VERSION,
    version: request.version,
    adapter: request.adapter,
    kernels: request.kernels ?? null,
    model: { fingerprint, files: request.commit ?? (await modelFiles(request.directory)) },
    system,
    date,
    truncate,
    data: hash.digest("hex"),
  };
}

/** All of a line that its features depend on, its place in the file apart. */
function addLine(hash: ReturnType<typeof createHash>, line: ListLine): void {
  const content =
    line.kind === "list"
      ? [line.list.messages, line.list.candidates.map(({ text, label }) => [text, label ?? null])]
      : [line.error.code, line.error.message];
  hash.update(`${JSON.stringify([line.kind, line.id, content])}\n`);
}

/** Names, sizes and times of a model's files. */
async function modelFiles(directory: string): Promise<unknown> {
  try {
    const names = (await readdir(directory)).filter((name) => /\.(safetensors|json|jinja)$/.test(name)).sort();
    return await Promise.all(
      names.map(async (name) => {
        const { size, mtimeMs } = await stat(join(directory, name));
        return [name, size, mtimeMs];
      }),
    );
  } catch (cause) {
    throw unreadable(directory, cause);
  }
}

/** The path of a layer's features; the entry's JSON lies beside it. */
function entryPath(folder: string, key: Ingredients): string {
  const hash = createHash("sha256").update(JSON.stringify(key)).digest("hex");
  return join(folder, `${hash}.safetensors`);
}

function jsonPath(path: string): string {
  return path.replace(/\.safetensors$/, ".json");
}

/** A layer of the cache, or null where it is not there or damaged. */
async function openEntry(
  path: string,
  { onNote }: CacheRequest,
): Promise<Pick<OpenLayer, "path" | "source" | "ids" | "leftOut"> | null> {
  try {
    const value = await readJsonFile(jsonPath(path), {
      what: "the entry's JSON",
      maxBytes: 2 ** 30,
      missing: "features/missing",
      bad: "features/damaged",
      fix: "it is computed again",
    });
    const entry = entrySchema.parse(unsealed(value));
    if (entryPath(dirname(path), entry.key) !== path) throw new Error("they are another entry's");
    await statRegular(path);
    const sha256 = await hashFile(path);
    if (sha256 !== entry.sha256) throw new Error(`its SHA-256 is ${sha256}, not ${entry.sha256}`);
    const source = await openFeatures(path);
    if (source.lists !== entry.ids.length) {
      await source[Symbol.asyncDispose]();
      throw new Error(`it holds ${source.lists} lists for ${entry.ids.length} ids`);
    }
    const leftOut = entry.left_out.map(({ error: { code, message, fix }, ...at }) => ({
      ...at,
      error: new StratumError(code as StratumError["code"], message, fix),
    }));
    return { path, source, ids: entry.ids, leftOut };
  } catch (thrown) {
    if (!(thrown instanceof StratumError && thrown.code === "features/missing")) {
      onNote?.(`the cached features ${path} are damaged and computed again: ${messageOf(thrown)}`);
    }
    return null;
  }
}

async function computeTaps(
  request: CacheRequest,
  folder: string,
  common: Ingredients,
  pass: Pass,
): Promise<OpenLayer[]> {
  const { layers, poolings } = pass;
  const taps = tapsOf(pass);
  const guarded = async <T>(step: () => Promise<T>): Promise<T> => {
    try {
      return await step();
    } catch (cause) {
      const { code, message, fix } = writeFailed(folder, cause);
      throw new StratumError(code, message, `${fix}; XDG_CACHE_HOME says where the cache lies`, cause);
    }
  };
  // A folder of this process's own: nothing in it has a name that another one looks for.
  const scratch = await guarded(async () => {
    await makeFolder(folder, PRIVATE);
    await removeStale(folder);
    const made = temporaryName(join(folder, "pass"));
    await makeFolder(made, PRIVATE);
    return made;
  });
  const opened: OpenLayer[] = [];
  try {
    const model = await request.model();
    const leftOut: LeftOut[] = [];
    const hash = createHash("sha256");
    async function* hashed(): AsyncGenerator<ListLine> {
      for await (const line of request.lines()) {
        addLine(hash, line);
        yield line;
      }
    }
    const onLeftOut = (left: LeftOut) => leftOut.push(left);
    const features = computeFeatures(model, hashed(), { ...request, layers, poolings, onLeftOut });
    const made = taps.map(({ layer, pooling }) => join(scratch, `layer-${layer}-${pooling}.safetensors`));
    const ids = await writeFeatures(features, made, model.files.spec.config.hiddenSize);
    if (hash.digest("hex") !== common["data"]) {
      throw new StratumError(
        "features/data-changed",
        "the lists have changed since they were read for the cache's key",
        "leave their file alone while it is read, then run again",
      );
    }
    const ofThePass = leftOut.some(
      ({ error: { code } }) => OF_THE_PASS.has(code) || (poolings.length > 1 && code === OF_POOLINGS),
    );
    for (const [k, tap] of taps.entries()) {
      const key = { ...common, ...tap, pass: ofThePass ? pass : null };
      const path = entryPath(folder, key);
      const source = await guarded(() => publish(made[k], path, { ids, leftOut, key }));
      opened.push({ ...tap, path, source, ids, leftOut, reused: false });
    }
    return opened;
  } catch (thrown) {
    await closeAll(opened);
    throw thrown;
  } finally {
    await rm(scratch, { recursive: true, force: true }).catch(() => undefined);
  }
}

/** Opens a layer's features and gives them and their JSON their names; another process may put the same there. */
async function publish(
  made: string,
  path: string,
  { ids, leftOut, key }: { ids: readonly Id[]; leftOut: readonly LeftOut[]; key: Ingredients },
): Promise<FeatureSource & AsyncDisposable> {
  const entry: Entry = {
    version: ENTRY_VERSION,
    sha256: await hashFile(made),
    ids: [...ids],
    left_out: leftOut.map(({ id, line, error: { code, message, fix } }) => ({
      id,
      line,
      error: { code, message, fix },
    })),
    key: { ...key },
  };
  const json = join(dirname(made), basename(jsonPath(path)));
  await writeSynced(json, `${sealed(entry)}\n`);
  await rename(made, path);
  await rename(json, jsonPath(path));
  await syncFolder(dirname(path));
  return openFeatures(path);
}
