/** Where lines of data go: stdout, or a file that gets its name only when it is whole. */
import { access, constants, type FileHandle, open, rename, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { messageOf, StratumError } from "../errors.ts";
import { STALE_MS, withLock } from "../weights/lock.ts";
import { note, unfinished, warn, writeStdout } from "./terminal.ts";

export interface LineOutput {
  write(line: string): Promise<void>;
  /** Everything was written: gives the file its name. */
  finish(): Promise<void>;
  /** The work ended early: what was written stays under `PATH.partial`, named on stderr, or is removed where it is of no use. */
  leave(): Promise<void>;
}

export interface OutputOptions {
  /** Files that the output is made of: it cannot take the place of one. */
  readonly inputs?: readonly string[];
  /** Whether a part of the output is of use; default true. */
  readonly keeps?: boolean;
}

/** Runs `use` while no other process writes an output. @throws {StratumError} `usage/in-use` */
export async function withOutputLock<T>(output: string, use: (held: () => Promise<boolean>) => Promise<T>): Promise<T> {
  return withLock(`${output}.journal.lock`, use, {
    graceMs: 1000,
    onWait: ({ pid, host, lives }) => {
      if (!lives) {
        note(
          `wait    process ${pid} on ${host} began to write ${output}: up to ${STALE_MS / 1000} s to see whether it lives`,
        );
        return;
      }
      throw new StratumError(
        "usage/in-use",
        `process ${pid} on ${host} writes ${output}`,
        "wait for it, or give -o another name",
      );
    },
    guard: (path, step) =>
      step().catch((cause: unknown) => {
        throw writeFailed(path, path, cause);
      }),
  });
}

function writeFailed(path: string, partial: string, cause: unknown): StratumError {
  return new StratumError(
    "file/write-failed",
    `${path} could not be written: ${messageOf(cause)}${partial === path ? "" : ` (what was written before lies in ${partial})`}`,
    "check free space, permissions and that the folder exists",
    cause,
  );
}

/**
 * Checks that an output can be written.
 * @param inputs files that it is made of: it cannot take the place of one
 * @returns whether it is a file that is no regular one (a device, a pipe), which is
 * written in place
 * @throws {StratumError} `usage/output`, `file/write-failed`
 */
export async function checkOutput(path: string, inputs: readonly string[] = []): Promise<boolean> {
  const special = await isSpecial(path);
  if (!special) await checkNoInput(path, inputs);
  await checkFolder(path, special);
  return special;
}

/** By what the files are: a path can be spelled in many ways. */
async function checkNoInput(path: string, inputs: readonly string[]): Promise<void> {
  const identity = async (file: string) => {
    const found = await stat(file, { bigint: true }).catch(() => undefined);
    return found === undefined ? null : `${found.dev}:${found.ino}`;
  };
  const own = await identity(path);
  if (own === null) return;
  for (const input of inputs) {
    if (input === "-" || (await identity(input)) !== own) continue;
    throw new StratumError(
      "usage/output",
      `${path} is ${input === path ? "the input" : `the input ${input}`}, which the output would take the place of`,
      "give -o another name",
    );
  }
}

async function isSpecial(path: string): Promise<boolean> {
  const found = await stat(path).catch(() => undefined);
  if (path === "" || found?.isDirectory()) {
    throw new StratumError(
      "usage/output",
      path === "" ? "the name of the output is empty" : `${path} is a folder`,
      "give -o the name of a file",
    );
  }
  return found !== undefined && !found.isFile();
}

/**
 * Opens an output; stdout without a path.
 * @throws {StratumError} `file/write-failed`, `usage/output`
 */
export async function openOutput(
  path: string | undefined,
  { inputs, keeps = true }: OutputOptions = {},
): Promise<LineOutput> {
  if (path === undefined || path === "-") {
    const nothing = async () => undefined;
    return { write: writeStdout, finish: nothing, leave: nothing };
  }
  const special = await checkOutput(path, inputs);
  const partial = special ? path : `${path}.partial`;
  // Opened by the first line: a run that fails before it leaves nothing, and an earlier run's partial file as it is.
  let file: FileHandle | undefined;
  // A handle that failed is of no more use; trying again would hide the first reason behind another.
  let failed = false;
  const guarded = async (step: () => Promise<void>) => {
    try {
      await step();
    } catch (cause) {
      failed = true;
      await file?.close().catch(() => undefined);
      throw writeFailed(path, keeps ? partial : path, cause);
    }
  };
  const opened = async (): Promise<FileHandle> => {
    file ??= await open(partial, "w");
    if (!special) unfinished.add(partial);
    return file;
  };
  return {
    // Written at once, line by line: a run that is killed leaves all that it finished.
    write: (line) => guarded(async () => (await opened()).appendFile(line)),
    finish: () =>
      guarded(async () => {
        const whole = await opened();
        if (!special) await whole.sync();
        await whole.close();
        if (!special) await rename(partial, path);
        unfinished.delete(partial);
      }),
    async leave() {
      if (file === undefined) return;
      if (!failed) await file.close().catch(() => undefined);
      if (!special && keeps) warn(`unfinished: what was done lies in ${partial}`);
      if (!special && !keeps) await rm(partial, { force: true });
      unfinished.delete(partial);
    },
  };
}

/** Fails early where the folder of an output does not exist or cannot be written. */
async function checkFolder(path: string, special: boolean): Promise<void> {
  try {
    await access(special ? path : dirname(path), constants.W_OK);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code !== "ENOENT" && code !== "ENOTDIR") throw writeFailed(path, path, cause);
    throw new StratumError(
      "usage/output",
      `${path}: its folder does not exist`,
      "create the folder, or give -o another name",
      cause,
    );
  }
}
