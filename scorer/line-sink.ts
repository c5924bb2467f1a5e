/**
 * Writes the lines of a run that can go on later. Lines that come in one turn of the event loop go out together, and
 * nothing of the process's own comes between their bytes and the journal's word for them: killed at any time, a run
 * has all but the lines that were never written. Syncing goes on beside the work.
 */
import { closeSync, existsSync, fdatasync, ftruncateSync, openSync, writeSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { promisify } from "node:util";
import { messageOf, StratumError } from "../errors.ts";
import { syncFolder } from "../weights/durable.ts";
import { CLAIM_BYTES, type IdRegister } from "./id-register.ts";
import type { Journal } from "./journal.ts";
import { claimsPath, type RunState, takenError } from "./resume.ts";

const datasync = promisify(fdatasync);

/** A state of a run whose output is lines. */
export interface LineState extends RunState {
  /** Bytes of the file of lines. */
  readonly out: number;
}

export interface LineSinkOptions<S extends LineState> {
  /** The output's final name, and the one that the lines have until then; the same for `--append`. */
  readonly output: string;
  readonly partial: string;
  /** The name that the lines get; default `output`. */
  readonly target?: string;
  readonly journal: Journal<S>;
  readonly register: IdRegister;
  /** Where it begins: an earlier run's state. */
  readonly begin: S;
  /** Hash of a chunk; without it a chunk counts once it is synced. */
  readonly digest?: (lines: Uint8Array, claims: Uint8Array) => string;
  /** Brings the run's other files to the disk. */
  readonly sync?: () => Promise<void>;
  /** Throws where the file of lines is not as it was found; asked before its first byte is written. */
  readonly unchanged?: () => Promise<void>;
  /** Whether the output is still this process's own. */
  readonly held: () => Promise<boolean>;
}

export interface LineSink<S extends LineState> {
  /** What the text so far leads to; `out` is that of `written`. */
  readonly state: S;
  /** What is in the file. */
  readonly written: S;
  /**
   * Takes text, lines with their newlines, and the state that it leads to (`out` is the sink's own to count). It waits
   * only while much is on its way.
   * @throws {StratumError} `file/write-failed`, `usage/in-use`
   */
  write(text: string, state: Omit<S, "out">): Promise<void>;
  /** Waits until all of it is on the disk and in the journal. */
  settle(): Promise<void>;
  /** As `settle`; then `last` runs, which may be cut short and done again, the file gets its name and the journal goes. */
  finish(last?: () => Promise<void>): Promise<void>;
  /** The work ended early: what was done stays, for a later run. */
  leave(): Promise<void>;
}

/** Characters on their way before a writer waits. */
const MOST_WAITING = 2 ** 22;
/** Between two checkpoints. */
const CHECKPOINT_MS = 1000;
/** Chunks after which the journal is started anew. */
const MOST_APPENDED = 256;

/** Opens no file before the first line. */
export function createLineSink<S extends LineState>(options: LineSinkOptions<S>): LineSink<S> {
  const { output, partial, target = output, journal, register, digest, held } = options;
  let files: { readonly lines: number; readonly claims: number } | null = null;
  let waiting: string[] = [];
  let characters = 0;
  /** What the lines so far lead to; `written`: those that are written. */
  let state = options.begin;
  let written = options.begin;
  /** What was written since the last checkpoint. */
  let dirty = false;
  let failure: StratumError | null = null;
  /** A checkpoint under way; lines wait for its end, as the new journal would not know them. */
  let busy: Promise<void> | null = null;
  let turn: NodeJS.Immediate | undefined;
  let timer: NodeJS.Timeout | undefined;
  let checkpointed = performance.now();

  function failed(cause: unknown): StratumError {
    if (cause instanceof StratumError) return cause;
    const left = partial === target || !existsSync(partial) ? "" : ` (what was written before lies in ${partial})`;
    return new StratumError(
      "file/write-failed",
      `${target} could not be written: ${messageOf(cause)}${left}`,
      "check free space, permissions and that the folder exists; the same command then goes on",
      cause,
    );
  }

  async function checkpoint(): Promise<void> {
    if (!(await held())) throw takenError(output);
    if (files === null) {
      const { out, position } = written;
      await options.unchanged?.();
      // The journal is about to say what is on the disk: what this process found may be in no more than the system's memory.
      if (out > 0) await bringToDisk(partial);
      if (position.items > 0) await bringToDisk(claimsPath(output));
      await options.sync?.();
      // A journal before the first byte: whoever finds lines finds what they are.
      await journal.checkpoint(written);
      await options.unchanged?.();
      files = {
        lines: openSync(partial, out > 0 ? "r+" : "w"),
        claims: openSync(claimsPath(output), position.items > 0 ? "r+" : "w"),
      };
      if (out > 0) ftruncateSync(files.lines, out);
      ftruncateSync(files.claims, position.items * CLAIM_BYTES);
    } else {
      await datasync(files.lines);
      await datasync(files.claims);
      await options.sync?.();
      await journal.checkpoint(written);
    }
    dirty = false;
    checkpointed = performance.now();
  }

  /** Begins a checkpoint; what has come by its end is written then. */
  function startCheckpoint(): void {
    clearTimeout(timer);
    timer = undefined;
    busy = checkpoint()
      .catch((cause: unknown) => {
        failure ??= failed(cause);
      })
      .then(() => {
        busy = null;
        flush();
      });
  }

  function flush(): void {
    turn = undefined;
    // What failed is not tried again: that would hide the first reason behind another.
    if (failure !== null || busy !== null || waiting.length === 0) return;
    if (files === null) {
      startCheckpoint();
      return;
    }
    try {
      const bytes = Buffer.from(waiting.join(""));
      const next: S = { ...state, out: written.out + bytes.byteLength };
      waiting = [];
      characters = 0;
      const ids = register.bytes(written.position.items, next.position.items);
      writeAll(files.lines, bytes, written.out);
      writeAll(files.claims, ids, written.position.items * CLAIM_BYTES);
      if (digest !== undefined) journal.append(next, digest(bytes, ids));
      written = next;
      dirty = true;
    } catch (cause) {
      failure = failed(cause);
      return;
    }
    if (performance.now() - checkpointed >= CHECKPOINT_MS || journal.appended >= MOST_APPENDED) startCheckpoint();
    // The last lines of a batch are not to wait for the next batch.
    else timer ??= setTimeout(startCheckpoint, CHECKPOINT_MS).unref();
  }

  async function settle(): Promise<void> {
    clearImmediate(turn);
    for (;;) {
      flush();
      if (failure !== null) throw failure;
      if (busy === null && dirty) startCheckpoint();
      if (busy === null) return;
      await busy;
    }
  }

  async function close(): Promise<void> {
    clearImmediate(turn);
    clearTimeout(timer);
    await busy;
    if (files !== null) for (const file of Object.values(files)) closeSync(file);
    files = null;
    journal.close();
  }

  return {
    get state() {
      return { ...state, out: written.out };
    },
    get written() {
      return written;
    },
    async write(text, next) {
      if (failure !== null) throw failure;
      waiting.push(text);
      characters += text.length;
      state = { ...next, out: written.out } as S;
      turn ??= setImmediate(flush);
      while (characters >= MOST_WAITING && failure === null) await (busy ?? new Promise(setImmediate));
    },
    settle,
    async finish(last) {
      await settle();
      try {
        if (files === null) await checkpoint();
        written = { ...written, finishing: true };
        await checkpoint();
        await close();
        await last?.();
        if (partial !== target) await rename(partial, target);
        await syncFolder(dirname(target));
        await rm(claimsPath(output), { force: true });
        await journal.remove();
      } catch (cause) {
        throw failed(cause);
      }
    },
    async leave() {
      await settle().catch(() => undefined);
      await close();
    },
  };
}

async function bringToDisk(path: string): Promise<void> {
  const file = openSync(path, "r+");
  try {
    await datasync(file);
  } finally {
    closeSync(file);
  }
}

function writeAll(file: number, bytes: Uint8Array, position: number): void {
  for (let done = 0; done < bytes.byteLength; )
    done += writeSync(file, bytes, done, bytes.byteLength - done, position + done);
}
