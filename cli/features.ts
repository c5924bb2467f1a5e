/** Features for the commands that train and evaluate: from a file, or from lists by way of the cache. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fingerprint } from "../engine/fingerprint.ts";
import type { Model } from "../engine/hidden-states.ts";
import type { Engine } from "../engine/model.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import type { KernelsRecord } from "../engine/tiles.ts";
import { StratumError } from "../errors.ts";
import { type Pooling, runPooling } from "../scorer/encode.ts";
import type { LeftOut } from "../scorer/features.ts";
import { type CachedLayer, cachedFeatures } from "../scorer/features-cache.ts";
import { emptyFileError, type List, readLists } from "../scorer/lists.ts";
import { countLines, loadPlanned, packageVersion, type RunFlags } from "./common.ts";
import { note, reportError, type StopSignal, startProgress } from "./terminal.ts";
import { tuneModel } from "./tuning.ts";

export interface ListsAndFeatures {
  /** In the order of the features. */
  readonly lists: readonly List[];
  readonly layers: readonly CachedLayer[];
  /** Lines of the file that gave no features, each reported on stderr. */
  readonly leftOut: readonly LeftOut[];
  /** Of the base model, down to the deepest of the layers. */
  readonly fingerprint: string;
  /** What the states come from. */
  readonly kernels: KernelsRecord;
}

export interface FeatureRequest {
  readonly layers: readonly number[];
  readonly pooling: Pooling;
  /** Several at once, instead of `pooling`. */
  readonly poolings?: readonly Pooling[] | undefined;
  readonly system?: string | undefined;
  readonly cache: boolean;
  /** Lines that give no features are told on stderr; default true. */
  readonly report?: boolean | undefined;
}

type LendFlags = Pick<RunFlags, "batchTokens" | "tune" | "verbose">;

/** A model that is loaded when its states have to be computed, and stays for other files of lists. Disposing it frees it. */
export interface LentModel extends Disposable {
  readonly files: ModelFiles;
  /** Of the model's fingerprint down to its deepest asked-for layer. */
  readonly fingerprint: string;
  /** With the kernels that were chosen. */
  readonly engine: Engine;
  readonly kernels: KernelsRecord;
  /** Loads it the first time. */
  open(): Promise<Model>;
}

/**
 * Chooses the kernels of a model; nothing of its weights is loaded yet.
 * @throws {StratumError} `tokenizer/...`, and as `fingerprint` and `tuneModel`
 */
export async function lendModel(
  opened: Engine,
  files: ModelFiles,
  { layers, pooling, poolings = [pooling] }: Pick<FeatureRequest, "layers" | "pooling" | "poolings">,
  flags: LendFlags,
): Promise<LentModel> {
  // One that is missing or does not fit is told before weights are fetched, as the fingerprint does.
  await files.tokenizer();
  const depth = Math.max(...layers);
  const identity = await fingerprint(files, depth);
  // Before a cache is asked: other variants' states are other states.
  const { engine, kernels } = await tuneModel(opened, files, depth, flags);
  const run = { layers, output: "pooled", pooling: runPooling(...poolings), batchTokens: flags.batchTokens } as const;
  let model: Model | undefined;
  return {
    ...{ files, fingerprint: identity, engine, kernels },
    async open() {
      model ??= await loadPlanned(engine, files, run);
      return model;
    },
    [Symbol.dispose]() {
      // The files are their opener's.
      model?.loaded[Symbol.dispose]();
      model = undefined;
    },
  };
}

/** @throws {StratumError} `usage/no-input` for stdin: the lists are read more than once */
export function checkListsPath(path: string): void {
  if (path !== "-") return;
  throw new StratumError("usage/no-input", "the lists are read more than once", "give a file instead of stdin");
}

/**
 * Computes or finds the features of a file of lists, and lends them to `use`.
 * @throws {StratumError} `list/empty-file`, `usage/...`, and as `cachedFeatures`
 */
export async function withFeatures<T>(
  opened: Engine,
  files: ModelFiles,
  path: string,
  request: FeatureRequest,
  flags: Pick<RunFlags, "date" | "truncate" | "batchTokens" | "sharePrefix" | "tune" | "verbose">,
  stop: StopSignal,
  use: (found: ListsAndFeatures) => Promise<T>,
): Promise<T> {
  checkListsPath(path);
  await countLines(path);
  using lent = await lendModel(opened, files, request, flags);
  return await withFeaturesOf(lent, path, request, flags, stop, async (found) => {
    // The features stay on disk; the model's weights are of no more use.
    lent[Symbol.dispose]();
    return use(found);
  });
}

/**
 * The same of a model that stays loaded: several files of lists cost one load.
 * @throws {StratumError} as {@link withFeatures}
 */
export async function withFeaturesOf<T>(
  lent: LentModel,
  path: string,
  request: FeatureRequest,
  flags: Pick<RunFlags, "date" | "truncate" | "batchTokens" | "sharePrefix">,
  stop: StopSignal,
  use: (found: ListsAndFeatures) => Promise<T>,
): Promise<T> {
  checkListsPath(path);
  const { files, engine, kernels } = lent;
  const { layers, pooling, poolings, system, cache } = request;
  const { date, truncate, batchTokens, sharePrefix } = flags;
  const total = await countLines(path);
  const folder = cache ? undefined : await mkdtemp(join(tmpdir(), "stratum-features-"));
  const seen = new Map<string, List>();
  let progress: ReturnType<typeof startProgress> | undefined;
  try {
    const found = await cachedFeatures({
      ...{ layers, pooling, poolings, system, date, truncate, batchTokens, sharePrefix, signal: stop.signal, folder },
      ...{ directory: files.directory, adapter: engine.device.info.name, kernels: kernels.id },
      fingerprint: lent.fingerprint,
      ...(files.pinned ? { commit: files.name } : {}),
      version: packageVersion(),
      async *lines() {
        for await (const line of readLists(path)) {
          if (line.kind === "list") seen.set(String(line.id), line.list);
          yield line;
          progress?.add(1, 0);
        }
      },
      async model() {
        const model = await lent.open();
        progress = startProgress(total, "lists");
        return model;
      },
      onNote: note,
    });
    await using opened = found;
    progress?.stop();
    progress = undefined;
    const [first] = opened.layers;
    if (first.reused && opened.layers.length === 1)
      note(`features of layer ${first.layer} from the cache (${first.path})`);
    if (request.report !== false) for (const { error } of first.leftOut) reportError(error);
    const lists = first.ids.map((id) => seen.get(String(id)) as List);
    if (lists.length + first.leftOut.length === 0) throw emptyFileError(path);
    return await use({
      ...{ lists, layers: opened.layers, leftOut: first.leftOut, fingerprint: lent.fingerprint, kernels },
    });
  } finally {
    progress?.stop();
    if (folder !== undefined) await rm(folder, { recursive: true, force: true });
  }
}
