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
  readonly system?: string | undefined;
  readonly cache: boolean;
  /** Lines that give no features are told on stderr; default true. */
  readonly report?: boolean | undefined;
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
  const { layers, pooling, system, cache } = request;
  const { date, truncate, batchTokens, sharePrefix } = flags;
  const total = await countLines(path);
  // One that is missing or does not fit is told before weights are fetched, as the fingerprint does.
  await files.tokenizer();
  const identity = await fingerprint(files, Math.max(...layers));
  // Before the cache is asked: other variants' states are other states.
  const { engine, kernels } = await tuneModel(opened, files, Math.max(...layers), flags);
  const folder = cache ? undefined : await mkdtemp(join(tmpdir(), "stratum-features-"));
  const seen = new Map<string, List>();
  let model: Model | undefined;
  let progress: ReturnType<typeof startProgress> | undefined;
  try {
    const found = await cachedFeatures({
      ...{ layers, pooling, system, date, truncate, batchTokens, sharePrefix, signal: stop.signal, folder },
      ...{ directory: files.directory, fingerprint: identity, adapter: engine.device.info.name, kernels: kernels.id },
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
        const run = { layers, output: "pooled", pooling: runPooling(pooling), batchTokens } as const;
        model = await loadPlanned(engine, files, run);
        progress = startProgress(total, "lists");
        return model;
      },
      onNote: note,
    });
    await using opened = found;
    progress?.stop();
    progress = undefined;
    // The features stay on disk; the model's weights are of no more use.
    model?.loaded[Symbol.dispose]();
    model = undefined;
    const [first] = opened.layers;
    if (first.reused && layers.length === 1) note(`features of layer ${first.layer} from the cache (${first.path})`);
    if (request.report !== false) for (const { error } of first.leftOut) reportError(error);
    const lists = first.ids.map((id) => seen.get(String(id)) as List);
    if (lists.length + first.leftOut.length === 0) throw emptyFileError(path);
    return await use({ lists, layers: opened.layers, leftOut: first.leftOut, fingerprint: identity, kernels });
  } finally {
    model?.loaded[Symbol.dispose]();
    progress?.stop();
    if (folder !== undefined) await rm(folder, { recursive: true, force: true });
  }
}
