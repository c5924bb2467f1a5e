/** Where lines of data go: stdout, or a file that gets its name only when it is whole. */
import { access, constants, type FileHandle, open, rename, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { messageOf, StratumError } from "../errors.ts";
import { note, writeStdout } from "./terminal.ts";

export interface LineOutput {
  write(line: string): Promise<void>;
  /** Everything was written: gives the file its name. */
  finish(): Promise<void>;
  /** The work ended early: what was written stays under `PATH.partial`, named on stderr. */
  leave(): Promise<void>;
}

const BUFFER_BYTES = 1 << 16;

function writeFailed(path: string, partial: string, cause: unknown): StratumError {
  return new StratumError(
    "file/write-failed",
    `${path} could not be written: ${messageOf(cause)}${partial === path ? "" : ` (what was written before lies in ${partial})`}`,
    "check free space, permissions and that the folder exists",
    cause,
  );
}

/** What a path names now; a file that is no regular one (a device, a pipe) is written in place. */
async function isSpecial(path: string): Promise<boolean> {
  const found = await stat(path).catch(() => undefined);
  if (found?.isDirectory())
    throw new StratumError("file/not-a-file", `${path} is a folder`, "give -o the name of a file");
  return found !== undefined && !found.isFile();
}

/**
 * Opens an output; stdout without a path.
 * @throws {StratumError} `file/write-failed`, `file/not-a-file`
 */
export async function openOutput(path: string | undefined): Promise<LineOutput> {
  if (path === undefined || path === "-") {
    return { write: writeStdout, finish: async () => undefined, leave: async () => undefined };
  }
  const special = await isSpecial(path);
  const partial = special ? path : `${path}.partial`;
  await checkFolder(path, special);
  // Opened by the first line: a run that fails before it leaves nothing, and an earlier run's partial file as it is.
  let file: FileHandle | undefined;
  let buffered = "";
  let failed = false;
  const flush = async () => {
    const text = buffered;
    buffered = "";
    try {
      file ??= await open(partial, "w");
      // appendFile keeps writing until all is written; write() may stop short.
      await file.appendFile(text);
    } catch (cause) {
      failed = true;
      await file?.close().catch(() => undefined);
      throw writeFailed(path, partial, cause);
    }
  };
  return {
    async write(line) {
      buffered += line;
      if (file === undefined || buffered.length >= BUFFER_BYTES) await flush();
    },
    async finish() {
      await flush();
      try {
        if (!special) await file?.sync();
        await file?.close();
        if (!special) await rename(partial, path);
      } catch (cause) {
        throw writeFailed(path, partial, cause);
      }
    },
    async leave() {
      if (failed || file === undefined) return;
      await flush();
      await file.close();
      if (!special) note(`unfinished: what was done lies in ${partial}`);
    },
  };
}

/** Fails early where the folder of an output does not exist or cannot be written. */
async function checkFolder(path: string, special: boolean): Promise<void> {
  try {
    await access(special ? path : dirname(path), constants.W_OK);
  } catch (cause) {
    throw writeFailed(path, path, cause);
  }
}
