/**
 * A lock file: for one download, so that two processes do not fetch the same bytes, and for an output that one run writes.
 * A holder that is gone leaves no lock: on the same host at once, of another host after a minute without a sign of life.
 * A process that slept for longer than that may find another in its place: who must know asks `held`.
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
  /** Called once where another process holds the lock, and still does after `graceMs`. */
  readonly onWait?: ((holder: LockHolder) => void) | undefined;
  /** Default 0. A process that is being killed takes a moment to go. */
  readonly graceMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Runs a step that touches the disk, and turns the system's errors into the caller's; default those of the hub's cache. */
  readonly guard?: <T>(path: string, step: () => Promise<T>) => Promise<T>;
}

export interface LockHolder {
  readonly pid: number;
  readonly host: string;
}

/**
 * Runs `use` while this process holds the lock. `use` gets a function that says whether it still does.
 * @throws what `onWait` throws: that is how not to wait
 */
export async function withLock<T>(
  path: string,
  use: (held: () => Promise<boolean>) => Promise<T>,
  options: LockOptions = {},
): Promise<T> {
  const token = `${process.pid} ${hostname()} ${randomBytes(6).toString("hex")}`;
  const { guard = onDisk, graceMs = 0 } = options;
  await guard(path, () => mkdir(dirname(path), { recursive: true }));
  const begin = performance.now();
  let waited = false;
  while (!(await guard(path, () => acquire(path, token)))) {
    options.signal?.throwIfAborted();
    if (await removeStale(path)) continue;
    if (!waited && performance.now() - begin >= graceMs) {
      options.onWait?.(parseHolder((await holderOf(path)) ?? ""));
      waited = true;
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  const beat = setInterval(() => void utimes(path, new Date(), new Date()).catch(() => undefined), BEAT_MS);
  beat.unref();
  try {
    return await use(async () => (await holderOf(path)) === token);
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

function parseHolder(text: string): LockHolder {
  const [pid = "", host = ""] = text.split(" ");
  return { pid: Number(pid), host };
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
  const { pid, host } = parseHolder(holder);
  if (!old && !(host === hostname() && isGone(pid))) return false;
  // Renamed first: of several that find it stale, one gets it.
  const aside = `${path}.${process.pid}-${randomBytes(6).toString("hex")}`;
  await rename(path, aside).catch(() => undefined);
  await rm(aside, { force: true }).catch(() => undefined);
  return true;
}
