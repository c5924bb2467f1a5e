/**
 * A lock file for one download, so that two processes do not fetch the same bytes. It spares work; what is right does not
 * hang on it: a download's file is named by its content's hash and written at the bytes' own positions, so two writers
 * that both think they hold the lock write the same.
 */
import { randomBytes } from "node:crypto";
import { mkdir, open, readFile, rename, rm, stat, utimes } from "node:fs/promises";
import { hostname } from "node:os";
import { dirname } from "node:path";
import { isGone } from "./durable.ts";
import { onDisk } from "./hub-cache.ts";
import { isSystemError } from "./json.ts";

/** A holder shows that it lives by touching its file this often. */
const BEAT_MS = 5_000;
/** A file that was not touched for so long has no holder: a killed process on another host, or a suspended one. */
const STALE_MS = 60_000;
const POLL_MS = 200;

export interface LockOptions {
  /** Called once where another process holds the lock. */
  readonly onWait?: (() => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Runs `use` while this process holds the lock. */
export async function withLock<T>(path: string, use: () => Promise<T>, options: LockOptions = {}): Promise<T> {
  const token = `${process.pid} ${hostname()} ${randomBytes(6).toString("hex")}`;
  await onDisk(path, () => mkdir(dirname(path), { recursive: true }));
  let waited = false;
  while (!(await onDisk(path, () => acquire(path, token)))) {
    options.signal?.throwIfAborted();
    if (await removeStale(path)) continue;
    if (!waited) options.onWait?.();
    waited = true;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  const beat = setInterval(() => void utimes(path, new Date(), new Date()).catch(() => undefined), BEAT_MS);
  beat.unref();
  try {
    return await use();
  } finally {
    clearInterval(beat);
    if ((await holderOf(path)) === token) await rm(path, { force: true }).catch(() => undefined);
  }
}

async function acquire(path: string, token: string): Promise<boolean> {
  try {
    const file = await open(path, "wx");
    await file.writeFile(token).finally(() => file.close());
    return true;
  } catch (cause) {
    if (isSystemError(cause, "EEXIST")) return false;
    throw cause;
  }
}

function holderOf(path: string): Promise<string | null> {
  return readFile(path, "utf8").catch(() => null);
}

/** Takes away the lock of a process that is gone. @returns whether it is worth trying again at once */
async function removeStale(path: string): Promise<boolean> {
  const holder = await holderOf(path);
  const found = await stat(path).catch(() => null);
  if (holder === null || found === null) return true;
  // A time to come is one before the clock was put back.
  const old = Math.abs(Date.now() - found.mtimeMs) > STALE_MS;
  const [pid = "", host] = holder.split(" ");
  if (!old && !(host === hostname() && isGone(Number(pid)))) return false;
  // Renamed first: of several that find it stale, one gets it.
  const aside = `${path}.${process.pid}-${randomBytes(6).toString("hex")}`;
  await rename(path, aside).catch(() => undefined);
  await rm(aside, { force: true }).catch(() => undefined);
  return true;
}
