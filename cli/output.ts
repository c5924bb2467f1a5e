/** Where lines of data go: stdout, or a file that gets its name only when it is whole. */
import { existsSync } from "node:fs";
import { access, constants, type FileHandle, open, rename, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { messageOf, StratumError } from "../errors.ts";
import { forget, journalPath, takenError } from "../scorer/resume.ts";
import { syncFolder } from "../weights/durable.ts";
import { STALE_MS, withLock } from "../weights/lock.ts";
import { note, unfinished, warn, writeStdout } from "./terminal.ts";

export interface LineOutput {
  write(line: string): Promise<void>;
  /** Everything was written: gives the file its name. */
  finish(): Promise<void>;
}

export interface OutputOptions {
  /** Files that the output is made of: it cannot take the place of one. */
  readonly inputs?: readonly string[];
  /** Whether a part of the output is of use: it stays under `PATH.partial`, named on stderr. Default false: it is removed. */
  readonly keeps?: boolean;
  /** Whether to throw away what a stopped run left beside the output; undefined where a command has no such option. */
  readonly restart?: boolean | undefined;
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
 * Runs `use` with an output that no other process writes meanwhile; stdout without a path. What is not finished by then
 * has no name.
 * @throws {StratumError} `file/write-failed`, `usage/output`, `usage/in-use`, `usage/other-run`
 */
export async function withOutput<T>(
  path: string | undefined,
  { inputs, keeps = false, restart }: OutputOptions,
  use: (output: LineOutput) => Promise<T>,
): Promise<T> {
  if (path === undefined || path === "-") return use({ write: writeStdout, finish: async () => undefined });
  if (await checkOutput(path, inputs)) return writeInPlace(path, use);
  return withOutputLock(path, async (held) => {
    await checkFree(path, restart);
    return writeRegular(path, keeps, held, use);
  });
}

/** Writes a text that is at hand as an output; to stdout without a path. @throws {StratumError} as {@link withOutput} */
export async function writeOutput(path: string | undefined, text: string): Promise<void> {
  await withOutput(path, {}, async (output) => {
    await output.write(text);
    await output.finish();
  });
}

/** The output would take the place of what an unfinished run has done so far. @throws {StratumError} `usage/other-run` */
async function checkFree(path: string, restart: boolean | undefined): Promise<void> {
  if (restart) await forget(path, [`${path}.partial`]);
  const journal = journalPath(path);
  if (!existsSync(journal)) return;
  throw new StratumError(
    "usage/other-run",
    `${journal} is of a run that writes ${path} itself and is not finished`,
    `go on with that run, give -o another name, or ${restart === undefined ? `remove ${journal}` : "throw away what there is with --restart"}`,
  );
}

/** A device or a pipe. */
async function writeInPlace<T>(path: string, use: (output: LineOutput) => Promise<T>): Promise<T> {
  let file: FileHandle | undefined;
  const guarded = (step: () => Promise<void>) =>
    step().catch((cause: unknown) => {
      throw writeFailed(path, path, cause);
    });
  const opened = async () => {
    file ??= await open(path, "w");
    return file;
  };
  try {
    return await use({
      write: (line) => guarded(async () => (await opened()).appendFile(line)),
      // Opened even for nothing: whoever reads a pipe waits for its end.
      finish: () => guarded(async () => (await opened()).close()),
    });
  } finally {
    await file?.close().catch(() => undefined);
  }
}

async function writeRegular<T>(
  path: string,
  keeps: boolean,
  held: () => Promise<boolean>,
  use: (output: LineOutput) => Promise<T>,
): Promise<T> {
  const partial = `${path}.partial`;
  // Opened by the first line: a run that fails before it leaves nothing, and an earlier run's partial file as it is.
  let file: FileHandle | undefined;
  let finished = false;
  const guarded = (step: () => Promise<void>) =>
    step().catch((cause: unknown) => {
      throw cause instanceof StratumError ? cause : writeFailed(path, keeps ? partial : path, cause);
    });
  const opened = async (): Promise<FileHandle> => {
    if (file !== undefined) return file;
    // A file of its own: a process that stood still for so long that its lock was taken away may hold the one of before.
    await rm(partial, { force: true });
    file = await open(partial, "wx");
    unfinished.add(partial);
    return file;
  };
  try {
    return await use({
      // Written at once, line by line: a run that is killed leaves all that it finished.
      write: (line) => guarded(async () => (await opened()).appendFile(line)),
      finish: () =>
        guarded(async () => {
          const whole = await opened();
          await whole.sync();
          await whole.close();
          if (!(await held())) throw takenError(path);
          await rename(partial, path);
          finished = true;
          await syncFolder(dirname(path));
        }),
    });
  } finally {
    unfinished.delete(partial);
    if (file !== undefined && !finished) {
      await file.close().catch(() => undefined);
      if (keeps) warn(`unfinished: what was done lies in ${partial}`);
      else if (await held()) await rm(partial, { force: true });
    }
  }
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
