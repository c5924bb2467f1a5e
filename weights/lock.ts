/**
 * A lock file: for one download, so that two processes do not fetch the same bytes, and for an output that one run writes.
 *
 * A holder shows that it lives by touching its file. One that is known to have ended leaves no lock; of another host or
 * container that cannot be known, so its file is watched, and is nobody's once it has not changed for a minute. That is
 * the watcher's own minute: clocks of two hosts differ and jump, and no time is compared with another's. A process that
 * slept for longer may find another in its place: who must know asks `held`.
 */
import { randomBytes } from "node:crypto";
import { readFileSync, rmSync } from "node:fs";
import { type FileHandle, link, mkdir, open, readFile, rename, rm } from "node:fs/promises";
import { hostname } from "node:os";
import { dirname } from "node:path";
import { onDisk } from "./hub-cache.ts";
import { isSystemError } from "./json.ts";
import { isGone, placeOfProcess, startOf } from "./process.ts";

/** A holder touches its file this often. */
const BEAT_MS = 5_000;
/** A file that was watched for so long and did not change has no holder: a killed process elsewhere, or a suspended one. */
export const STALE_MS = 60_000;
const POLL_MS = 200;

export interface LockOptions {
  /**
   * Called where another process holds the lock, and still does after `graceMs`: once while it is not known whether that
   * process lives, and once when it is known to.
   */
  readonly onWait?: ((holder: LockHolder) => void) | undefined;
  /** Default 0. A process that is being killed takes a moment to go. */
  readonly graceMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Runs a step that touches the disk, and turns the system's errors into the caller's; default those of the hub's cache. */
  readonly guard?: <T>(path: string, step: () => Promise<T>) => Promise<T>;
  /** Default a beat of 5 s, and 60 s. */
  readonly beatMs?: number;
  readonly staleMs?: number;
}

export interface LockHolder {
  readonly pid: number;
  readonly host: string;
  /** Whether it is known to live; where not, its file is watched. */
  readonly lives: boolean;
}

/** What a lock file says at one look. */
interface Seen {
  readonly text: string;
  /** Nanoseconds; only ever compared with an earlier look. */
  readonly touched: bigint;
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
  const { guard = onDisk, beatMs = BEAT_MS } = options;
  const start = startOf(process.pid) ?? "-";
  const token = `${process.pid} ${hostname()} ${randomBytes(6).toString("hex")} ${placeOfProcess() ?? "-"} ${start}`;
  await guard(path, () => mkdir(dirname(path), { recursive: true }));
  const file = await take(path, token, guard, options);
  own.set(token, path);
  if (own.size === 1) process.on("exit", leaveOwn);
  // Its own handle: a lock that was taken away is not touched for whoever has it now.
  const beat = setInterval(() => void file.utimes(new Date(), new Date()).catch(() => undefined), beatMs);
  beat.unref();
  try {
    return await use(async () => (await look(path))?.text === token);
  } finally {
    clearInterval(beat);
    const found = await look(path).catch(() => null);
    if (found?.text === token) await rm(path, { force: true }).catch(() => undefined);
    await file.close().catch(() => undefined);
    own.delete(token);
    if (own.size === 0) process.off("exit", leaveOwn);
  }
}

/** This process's locks: what each says, and where it lies. */
const own = new Map<string, string>();

/** A process that ends at once, as by a second signal, has no turn left: for another host its lock would be a minute's wait. */
function leaveOwn(): void {
  for (const [token, path] of own) {
    try {
      if (readFileSync(path, "utf8") === token) rmSync(path);
    } catch {
      // It is gone already.
    }
  }
}

async function take(
  path: string,
  token: string,
  guard: NonNullable<LockOptions["guard"]>,
  { onWait, graceMs = 0, signal, staleMs = STALE_MS }: LockOptions,
): Promise<FileHandle> {
  const begin = performance.now();
  const watch = startWatch();
  const told = new Set<boolean>();
  for (;;) {
    const file = await guard(path, () => acquire(path, token));
    if (file !== null) return file;
    signal?.throwIfAborted();
    const seen = await guard(path, () => look(path));
    if (seen === null) continue;
    const { still, beaten } = watch(seen);
    const known = holderLives(seen.text);
    if (known === false || still >= staleMs) {
      await takeAway(path, seen.text);
      continue;
    }
    const lives = known ?? beaten;
    if (onWait !== undefined && performance.now() - begin >= graceMs && !told.has(lives)) {
      told.add(lives);
      const { pid, host } = parseHolder(seen.text);
      onWait({ pid, host, lives });
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

/** Looks at a lock again and again. @returns a function that says how long it has not changed, ms, and whether its holder was seen to touch it */
function startWatch(): (seen: Seen) => { readonly still: number; readonly beaten: boolean } {
  let last: Seen | undefined;
  let since = 0;
  let beaten = false;
  return (seen) => {
    const now = performance.now();
    const same = seen.text === last?.text;
    const touched = seen.touched !== last?.touched;
    if (!same || touched) since = now;
    beaten = same && (beaten || touched);
    last = seen;
    return { still: now - since, beaten };
  };
}

async function acquire(path: string, token: string): Promise<FileHandle | null> {
  let file: FileHandle | undefined;
  try {
    file = await open(path, "wx");
    await file.writeFile(token);
    return file;
  } catch (cause) {
    if (file === undefined && isSystemError(cause, "EEXIST")) return null;
    // A disk that is full takes the name and not the words: whoever comes next is not to wait for nobody.
    if (file !== undefined) await rm(path, { force: true }).catch(() => undefined);
    await file?.close().catch(() => undefined);
    throw cause;
  }
}

function parseHolder(text: string): { pid: number; host: string; place: string; start: string } {
  const [pid = "", host = "", , place = "-", start = "-"] = text.split(" ");
  return { pid: Number(pid), host, place, start };
}

/** Whether the process of a lock lives; null where this one cannot know it. */
function holderLives(text: string): boolean | null {
  const { pid, place, start } = parseHolder(text);
  if (place === "-" || place !== placeOfProcess()) return null;
  if (isGone(pid)) return false;
  const now = startOf(pid);
  return start === "-" || now === null ? null : start === now;
}

/** Null without a lock. Opened and not just asked for: a network's file system then asks its server. */
async function look(path: string): Promise<Seen | null> {
  let file: FileHandle | undefined;
  try {
    file = await open(path, "r");
    return { text: await file.readFile("utf8"), touched: (await file.stat({ bigint: true })).mtimeNs };
  } catch (cause) {
    if (isSystemError(cause, "ENOENT", "ESTALE")) return null;
    throw cause;
  } finally {
    await file?.close();
  }
}

/** Takes away a lock that was seen to be nobody's. */
async function takeAway(path: string, text: string): Promise<void> {
  // Renamed first: of several that find it so, one gets it.
  const aside = `${path}.${process.pid}-${randomBytes(6).toString("hex")}`;
  await rename(path, aside).catch(() => undefined);
  // Another may have been faster, and this be the next holder's.
  const found = await readFile(aside, "utf8").catch(() => null);
  if (found !== null && found !== text) await link(aside, path).catch(() => undefined);
  await rm(aside, { force: true }).catch(() => undefined);
}
