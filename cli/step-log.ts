/** `train --log`: a JSON line a step. The lines of a resumed run follow those that its checkpoint covers. */
import { type FileHandle, open, readFile, rename, stat } from "node:fs/promises";
import { messageOf, StratumError } from "../errors.ts";
import { temporaryName, writeSynced } from "../weights/durable.ts";

export interface StepLog {
  /** Opens the file, or begins again: anew, or with the lines of the steps before `from`. */
  begin(from: number): Promise<void>;
  add(record: { readonly step: number; readonly loss: number }): void;
  /** Writes what was added, and waits for the disk. */
  flush(): Promise<void>;
  close(): Promise<void>;
}

/** @param path nothing is written without */
export async function openStepLog(path: string | undefined): Promise<StepLog> {
  let file: FileHandle | undefined;
  let waiting: string[] = [];
  const guarded = async (step: () => Promise<void>) => {
    try {
      await step();
    } catch (cause) {
      const message = `the log ${path} could not be written: ${messageOf(cause)}`;
      throw new StratumError("file/write-failed", message, "check that its folder exists, and the free space", cause);
    }
  };
  return {
    begin: (from) =>
      guarded(async () => {
        if (path === undefined) return;
        await file?.close();
        waiting = [];
        if (from > 0 && (await isFile(path))) {
          // Cut under another name: a process that is killed here must not lose what the checkpoint counts on.
          const rest = temporaryName(path);
          await writeSynced(rest, (await keptLines(path, from)).join(""));
          await rename(rest, path);
        }
        file = await open(path, from > 0 ? "a" : "w");
      }),
    add({ step, loss }) {
      if (path !== undefined) waiting.push(`${JSON.stringify({ step, loss })}\n`);
    },
    flush: () =>
      guarded(async () => {
        if (file === undefined || waiting.length === 0) return;
        const lines = waiting.join("");
        waiting = [];
        await file.appendFile(lines);
        await file.sync();
      }),
    async close() {
      await file?.close();
      file = undefined;
    },
  };
}

/** Whether a path names a regular file: a pipe or a device is neither read nor replaced. */
async function isFile(path: string): Promise<boolean> {
  const found = await stat(path).catch(() => undefined);
  return found?.isFile() === true;
}

/** The lines of an earlier log that belong to steps before `from`. */
async function keptLines(path: string, from: number): Promise<string[]> {
  const text = await readFile(path, "utf8");
  const kept: string[] = [];
  for (const line of text.split("\n")) {
    const step = /^\{"step":(\d+),"loss":[^}]*\}$/.exec(line)?.[1];
    if (step !== undefined && Number(step) === kept.length && Number(step) < from) kept.push(`${line}\n`);
  }
  return kept;
}
