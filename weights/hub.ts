/**
 * A model of the Hugging Face hub as a folder: looked for in the standard cache first, and downloaded into it as far as it
 * is asked for, each file checked against the hub's hash.
 */
import { mkdir, readdir, statfs } from "node:fs/promises";
import { StratumError } from "../errors.ts";
import type { RemoteFiles } from "./checkpoint.ts";
import {
  diskFull,
  type HubRepository,
  hubRepository,
  linkBlob,
  markAbsent,
  onDisk,
  readRef,
  sizeOf,
  writeRef,
} from "./hub-cache.ts";
import { type HubClient, isTransient } from "./hub-http.ts";
import { filesOf, type HubFile, resolveCommit } from "./hub-metadata.ts";
import { type HubName, isCommit } from "./hub-name.ts";
import { type HubSettings, hubSettings } from "./hub-settings.ts";
import { remoteTensors } from "./hub-tensors.ts";
import { transfer } from "./hub-transfer.ts";
import { withLock } from "./lock.ts";
import { noWeights, otherWeights } from "./other-formats.ts";

/** How far the files that were asked for together have come. */
export interface HubProgress {
  /** The model's name with its commit. */
  readonly model: string;
  /** The folder of the cache that they come to lie in. */
  readonly folder: string;
  /** Those that were not in the cache: the same array for all reports of one download. */
  readonly files: readonly string[];
  /** The one that is under way. */
  readonly file: string;
  /** Bytes of that file. */
  readonly done: number;
  readonly total: number;
  /** Bytes of all of them. */
  readonly doneAll: number;
  readonly totalAll: number;
}

export interface HubOptions {
  readonly onProgress?: ((progress: HubProgress) => void) | undefined;
  /** Told what is unusual: the hub was not reached and the cache serves, another process downloads, ... */
  readonly onNote?: ((text: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Default: what the environment says, see {@link hubSettings}. */
  readonly settings?: HubSettings | undefined;
  /** Milliseconds before a failed request is tried again the first time, doubled for each; default 500. */
  readonly backoffMs?: number | undefined;
}

/** A model of the hub, at one commit. */
export interface HubModel extends HubName {
  readonly commit: string;
  /** `id@commit`: asks for these very files again. */
  readonly name: string;
  /** The commit's folder in the cache; holds config.json, and what was fetched beside it. */
  readonly directory: string;
  /** Fetches what belongs to a model beside its configuration and weights: tokenizer, templates, the shards' index. */
  fetchSmallFiles(): Promise<void>;
  /** Files by name. Those that are in the cache are no work. @throws {StratumError} as {@link openHubModel} */
  fetch(files: readonly string[]): Promise<void>;
  /** For `openCheckpoint`. */
  readonly remote: RemoteFiles;
}

const CONFIG = "config.json";
const WEIGHTS = "model.safetensors";
const INDEX = "model.safetensors.index.json";
/** What a model may have beside its weights; any of them may be absent. */
const SMALL_FILES = [
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "chat_template.jinja",
  "chat_template.json",
  INDEX,
];

const RETRIES = { metadata: 2, bytes: 5 } as const;
const BACKOFF_MS = 500;

/**
 * Opens a model of the hub: resolves its revision, and fetches its config.json. Where the hub cannot be reached, or must
 * not be (`HF_HUB_OFFLINE`), the cache serves as far as it goes.
 * @throws {StratumError} of what the hub says: `model/not-on-hub`, `model/no-revision`, `model/gated`, `model/no-access`,
 *   `model/not-in-repository`, `model/no-weights`; of network and disk: `hub/unreachable`, `hub/timeout`, `hub/interrupted`,
 *   `hub/server-error`, `hub/rate-limited`, `hub/bad-answer`, `hub/damaged`, `hub/changed`, `hub/not-cached`,
 *   `hub/disk-full`, `hub/cache-unwritable`; `usage/hub-settings`; the signal's reason
 */
export async function openHubModel(named: HubName, options: HubOptions = {}): Promise<HubModel> {
  const { onNote = () => undefined, onProgress, signal } = options;
  const settings = options.settings ?? (await hubSettings());
  const { id, revision } = named;
  const { endpoint, token, timeoutMs } = settings;
  const backoffMs = options.backoffMs ?? BACKOFF_MS;
  const client: HubClient = { id, endpoint, token, timeoutMs, retries: RETRIES, backoffMs, onNote, signal };
  const repository = hubRepository(settings.cache, id);
  const { commit, away } = await commitOf(client, repository, revision, settings);
  const model = `${id}@${commit}`;
  const directory = repository.snapshot(commit);
  const isCached = async (file: string) => (await sizeOf(repository.file(commit, file))) !== null;
  const isAbsent = async (file: string) => (await sizeOf(repository.absent(commit, file))) !== null;

  let listing: Promise<ReadonlyMap<string, HubFile>> | undefined;
  /** The commit's files; asked for once, and not before something is missing. */
  function listed(wanted: readonly string[]): Promise<ReadonlyMap<string, HubFile>> {
    if (away !== null) throw notCached(model, wanted, directory, away);
    listing ??= filesOf(client, commit);
    return listing;
  }

  async function fetchNow(wanted: readonly string[]): Promise<void> {
    const names: string[] = [];
    for (const name of new Set(wanted)) if (!(await isCached(name))) names.push(name);
    if (names.length === 0) return;
    const files = await listed(names);
    const missing: HubFile[] = [];
    for (const name of names) {
      const file = files.get(name) ?? notThere(model, name, [...files.keys()]);
      // Another revision may have the same bytes.
      if (await hasBlob(repository, file)) await linkBlob(repository, commit, name, file.hash);
      else missing.push(file);
    }
    if (missing.length === 0) return;
    const underWay = missing.map(({ name }) => name);
    await checkSpace(repository, missing);
    const totalAll = missing.reduce((sum, { size }) => sum + size, 0);
    let before = 0;
    for (const file of missing) {
      const { name, size } = file;
      const onBytes = (done: number) =>
        onProgress?.({
          ...{ model, folder: directory, files: underWay, file: name },
          ...{ done, total: size, doneAll: before + done, totalAll },
        });
      await fetchOne(client, repository, commit, file, onBytes);
      before += size;
    }
  }

  // One at a time: who asks for the same file meanwhile finds it in the cache.
  let last: Promise<void> = Promise.resolve();
  function fetch(files: readonly string[]): Promise<void> {
    const next = last.then(() => fetchNow(files));
    last = next.catch(() => undefined);
    return next;
  }

  async function fetchSmallFiles(): Promise<void> {
    const unknown: string[] = [];
    // Of a model in one file the index is of no use.
    const whole = await isCached(WEIGHTS);
    for (const name of SMALL_FILES) {
      if (whole && name === INDEX) continue;
      if (!(await isCached(name)) && !(await isAbsent(name))) unknown.push(name);
    }
    if (unknown.length === 0) return;
    if (away !== null) {
      onNote(`the cache does not say whether ${model} has ${unknown.join(", ")}: taken as absent`);
      return;
    }
    const files = await listed(unknown);
    await fetch(unknown.filter((name) => files.has(name) && !(name === INDEX && files.has(WEIGHTS))));
    for (const name of unknown) if (!files.has(name)) await markAbsent(repository, commit, name);
  }

  await fetch([CONFIG]);
  const remote: RemoteFiles = {
    name: model,
    async list() {
      const here = away === null ? [] : await readdir(directory);
      // All that can be had: the weights of this model may have another name.
      if (here.some((file) => file.endsWith(".safetensors"))) return here;
      return [...(await listed([WEIGHTS, INDEX])).keys()];
    },
    fetch,
    async tensors(file) {
      const found = (await listed([file])).get(file) ?? notThere(model, file, []);
      return remoteTensors(client, found, fileUrl(client, commit, file));
    },
  };
  return { id, revision, commit, name: model, directory, fetchSmallFiles, fetch, remote };
}

/** Why no request is made: an error for what then is missing. */
type Away = { readonly code: "offline" | "unreachable"; readonly why: string; readonly cause?: unknown };

async function commitOf(
  client: HubClient,
  repository: HubRepository,
  revision: string,
  { offline, cache }: HubSettings,
): Promise<{ readonly commit: string; readonly away: Away | null }> {
  const cached = await readRef(repository, revision);
  if (offline) {
    const away: Away = { code: "offline", why: "HF_HUB_OFFLINE forbids to ask the hub" };
    if (cached !== null) return { commit: cached, away };
    throw notCached(`${client.id}@${revision}`, [CONFIG], cache, away);
  }
  // A commit that is in the cache needs no asking; what it lacks is asked for by its own.
  if (isCommit(revision) && (await sizeOf(repository.file(revision, CONFIG))) !== null) {
    return { commit: revision, away: null };
  }
  try {
    const commit = await resolveCommit(client, revision);
    await writeRef(repository, revision, commit);
    return { commit, away: null };
  } catch (cause) {
    if (!isTransient(cause) || cached === null) throw cause;
    if ((await sizeOf(repository.file(cached, CONFIG))) === null) throw cause;
    client.onNote(`${cause.message}: going on with what the cache holds of ${client.id}@${cached}`);
    return { commit: cached, away: { code: "unreachable", why: cause.message, cause } };
  }
}

function notCached(model: string, files: readonly string[], folder: string, away: Away): StratumError {
  return new StratumError(
    "hub/not-cached",
    `${files.join(" or ")} of ${model} ${files.length > 1 ? "are" : "is"} not in the cache (${folder}): ${away.why}`,
    away.code === "offline"
      ? "unset HF_HUB_OFFLINE for one run, or give --model the path of a folder"
      : "run again when the hub can be reached, or give --model the path of a folder",
    away.cause,
  );
}

function notThere(model: string, name: string, files: readonly string[]): never {
  if (name === CONFIG && otherWeights(files).length > 0 && !files.some((file) => file.endsWith(".safetensors"))) {
    throw noWeights(model, `neither ${CONFIG} nor a .safetensors file`, files);
  }
  throw new StratumError(
    "model/not-in-repository",
    `${model} has no ${name}`,
    "see the model's page for what is there, or name another revision with --model NAME@REVISION",
  );
}

function fileUrl({ endpoint, id }: HubClient, commit: string, file: string): string {
  return `${endpoint}/${id}/resolve/${commit}/${encodeURIComponent(file)}`;
}

/** @throws {StratumError} `hub/disk-full` where the files cannot fit */
async function checkSpace(repository: HubRepository, files: readonly HubFile[]): Promise<void> {
  let needed = 0;
  for (const { hash, size } of files) {
    needed += Math.max(0, size - ((await sizeOf(repository.partial(hash))) ?? 0));
  }
  await onDisk(repository.root, () => mkdir(repository.root, { recursive: true }));
  const disk = await statfs(repository.root).catch(() => null);
  // Some network file systems know no sizes.
  if (disk === null || disk.blocks === 0 || needed <= disk.bavail * disk.bsize) return;
  throw diskFull(
    `${needed} bytes are to be downloaded to ${repository.root}, where ${disk.bavail * disk.bsize} are free`,
  );
}

/** A blob of another length was left by a tool that was interrupted: it is replaced. */
async function hasBlob(repository: HubRepository, { hash, size }: HubFile): Promise<boolean> {
  return (await sizeOf(repository.blob(hash))) === size;
}

/** Puts one file into the cache, by whichever process is first. */
async function fetchOne(
  client: HubClient,
  repository: HubRepository,
  commit: string,
  file: HubFile,
  onBytes: (done: number) => void,
): Promise<void> {
  const { name, hash, size } = file;
  const target = repository.blob(hash);
  const download = async () => {
    // The process that held the lock before may have been as far.
    if (await hasBlob(repository, file)) return;
    await transfer(client, {
      ...{ file, url: fileUrl(client, commit, name), onBytes },
      ...{ partial: repository.partial(hash), target },
    });
  };
  let told = false;
  const onWait = () => {
    if (!told) client.onNote(`another process downloads ${name} of ${client.id}: waiting for it`);
    told = true;
  };
  await withLock(repository.lock(hash), download, { onWait, signal: client.signal });
  await linkBlob(repository, commit, name, hash);
  onBytes(size);
}
