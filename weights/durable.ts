/** Files that are whole or absent: written under a name of the process's own, synced, then renamed. */
import { createHash, randomBytes } from "node:crypto";
import { createReadStream, existsSync } from "node:fs";
import { mkdir, open, readdir, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { messageOf, StratumError } from "../errors.ts";
import { isGone } from "./process.ts";

/** The end of a temporary name, whatever a writer appends to it. */
const TEMPORARY = /\.(\d+)-[0-9a-f]{12}\.partial/;
/** A week: temporary files this old belong to no process that still runs, unless the clock has jumped. */
const STALE_MS = 7 * 24 * 3600 * 1000;

/** A name beside `path` that no other process and no other call uses. */
export function temporaryName(path: string): string {
  return `${path}.${process.pid}-${randomBytes(6).toString("hex")}.partial`;
}

/** Whether a file's name is a temporary one of `name`. */
export function isTemporaryOf(file: string, name: string): boolean {
  return file.startsWith(`${name}.`) && file.slice(name.length).search(TEMPORARY) === 0;
}

/** Removes what killed processes left in a folder long ago. */
export async function removeStale(folder: string): Promise<void> {
  for (const name of await readdir(folder).catch(() => [])) {
    const pid = TEMPORARY.exec(name)?.[1];
    if (pid === undefined || !isGone(Number(pid))) continue;
    const path = join(folder, name);
    const found = await stat(path).catch(() => undefined);
    if (found === undefined || Date.now() - found.mtimeMs < STALE_MS) continue;
    await rm(path, { recursive: true, force: true }).catch(() => undefined);
  }
}

/** Writes a text, whole or piece by piece, under a temporary name, synced; renaming is the caller's. */
export async function writeSynced(path: string, text: string | Iterable<string>): Promise<void> {
  const file = await open(path, "wx");
  try {
    for (const piece of typeof text === "string" ? [text] : text) await file.writeFile(piece);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Makes the renames in a folder survive a power cut, where the system can sync a folder. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, "r").catch(() => null);
  await handle?.sync().catch(() => undefined);
  await handle?.close();
}

/** `mkdir -p`; Node's own loops for ever where a file system answers that a parent which exists does not (/proc). */
export async function makeFolder(path: string, mode = 0o777): Promise<void> {
  if (existsSync(path)) return;
  if (dirname(path) !== path) await makeFolder(dirname(path), mode);
  await mkdir(path, { mode }).catch((cause: unknown) => {
    // Another process may have been first.
    if (!existsSync(path)) throw cause;
  });
}

/** SHA-256 of a file's bytes, in hex. */
export async function hashFile(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path, { highWaterMark: 2 ** 20 })) hash.update(chunk as Buffer);
  return hash.digest("hex");
}

/** `file/write-failed`, unless what was thrown is an error of ours already. */
export function writeFailed(path: string, cause: unknown): StratumError {
  if (cause instanceof StratumError) return cause;
  return new StratumError(
    "file/write-failed",
    `${path} could not be written: ${messageOf(cause)}`,
    "check free space, permissions and that the folder exists",
    cause,
  );
}
