/**
 * The hub cache on disk, as Python's huggingface_hub lays it out, so that either finds the other's files:
 *
 *     models--org--name/refs/main                     the commit that a revision named last
 *                      /blobs/<hash>                  a file's bytes, under the hash that the hub gives them
 *                      /snapshots/<commit>/<file>     a relative link into blobs/
 *                      /.no_exist/<commit>/<file>     empty: the repository has no such file at this commit
 *
 * https://huggingface.co/docs/huggingface_hub/guides/manage-cache
 */
import { randomBytes } from "node:crypto";
import { mkdir, open, readFile, rename, rm, stat, symlink } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { messageOf, StratumError } from "../errors.ts";
import { isCommit } from "./hub-name.ts";
import { isSystemError } from "./json.ts";

/** The paths of one repository in the cache. */
export interface HubRepository {
  readonly root: string;
  ref(revision: string): string;
  blob(hash: string): string;
  /** A download that is not whole yet. Not Python's name: it checks no hash, and must not go on with a part of ours. */
  partial(hash: string): string;
  /** Held by the process that downloads. Not Python's name: it locks in another way. */
  lock(hash: string): string;
  snapshot(commit: string): string;
  file(commit: string, file: string): string;
  absent(commit: string, file: string): string;
}

/** A model's folder in a cache. */
export function hubRepository(cache: string, id: string): HubRepository {
  const name = `models--${id.replaceAll("/", "--")}`;
  const root = join(cache, name);
  return {
    root,
    ref: (revision) => join(root, "refs", ...revision.split("/")),
    blob: (hash) => join(root, "blobs", hash),
    partial: (hash) => join(root, "blobs", `${hash}.stratum.incomplete`),
    lock: (hash) => join(cache, ".locks", name, `${hash}.stratum.lock`),
    snapshot: (commit) => join(root, "snapshots", commit),
    file: (commit, file) => join(root, "snapshots", commit, file),
    absent: (commit, file) => join(root, ".no_exist", commit, file),
  };
}

/** The commit that a revision named when it was last resolved, or null. */
export async function readRef(repository: HubRepository, revision: string): Promise<string | null> {
  if (isCommit(revision)) return revision;
  const text = await readFile(repository.ref(revision), "utf8").catch(() => "");
  return isCommit(text.trim()) ? text.trim() : null;
}

/** Remembers which commit a revision names. @throws {StratumError} `hub/disk-full`, `hub/cache-unwritable` */
export async function writeRef(repository: HubRepository, revision: string, commit: string): Promise<void> {
  if (isCommit(revision) || (await readRef(repository, revision)) === commit) return;
  const path = repository.ref(revision);
  await onDisk(path, async () => {
    await mkdir(dirname(path), { recursive: true });
    await replace(path, (temporary) => writeSynced(temporary, commit));
  });
}

/** Size of a file in the cache, links followed; null where there is none. */
export async function sizeOf(path: string): Promise<number | null> {
  const found = await stat(path).catch(() => null);
  return found?.isFile() ? found.size : null;
}

/** Remembers that a commit lacks a file. @throws {StratumError} `hub/disk-full`, `hub/cache-unwritable` */
export async function markAbsent(repository: HubRepository, commit: string, file: string): Promise<void> {
  const path = repository.absent(commit, file);
  await onDisk(path, async () => {
    await mkdir(dirname(path), { recursive: true });
    await (await open(path, "a")).close();
  });
}

/**
 * Puts a blob into a commit's snapshot: a relative link, and where the file system has none, the file itself.
 * @throws {StratumError} `hub/disk-full`, `hub/cache-unwritable`
 */
export async function linkBlob(repository: HubRepository, commit: string, file: string, hash: string): Promise<void> {
  const path = repository.file(commit, file);
  const blob = repository.blob(hash);
  await onDisk(path, async () => {
    await mkdir(dirname(path), { recursive: true });
    try {
      await replace(path, (temporary) => symlink(relative(dirname(path), blob), temporary));
    } catch (cause) {
      if (isSystemError(cause, "ENOSPC", "EDQUOT", "EROFS")) throw cause;
      await rename(blob, path);
    }
  });
}

/** Makes a path's new content under a name of this process's own, then gives it the name. */
async function replace(path: string, make: (temporary: string) => Promise<void>): Promise<void> {
  const temporary = `${path}.${process.pid}-${randomBytes(6).toString("hex")}`;
  try {
    await make(temporary);
    await rename(temporary, path);
  } catch (cause) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw cause;
  }
}

async function writeSynced(path: string, text: string): Promise<void> {
  const file = await open(path, "wx");
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Runs a step on the cache's disk and says what the disk had against it. */
export async function onDisk<T>(path: string, step: () => Promise<T>): Promise<T> {
  try {
    return await step();
  } catch (cause) {
    if (!(cause instanceof Error && "syscall" in cause)) throw cause;
    if (isSystemError(cause, "ENOSPC", "EDQUOT")) throw diskFull(`${path} could not be written`, cause);
    throw new StratumError(
      "hub/cache-unwritable",
      `the hub cache cannot be written at ${path}: ${messageOf(cause)}`,
      "check its permissions, or set HF_HUB_CACHE to another folder",
      cause,
    );
  }
}

/** `hub/disk-full`: what was downloaded so far stays. */
export function diskFull(what: string, cause?: unknown): StratumError {
  return new StratumError(
    "hub/disk-full",
    `${what}: the disk is full`,
    "free space, or set HF_HUB_CACHE to a folder on another disk; what is downloaded already is kept",
    cause,
  );
}
