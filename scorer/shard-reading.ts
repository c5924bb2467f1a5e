/**
 * The files of shards from front to back, by turns: what differs from the shards' records is told by their end. There may
 * be more of them than the system lets a process hold open, or than there is memory for: the last few that were read are
 * open, and all share the room for what was read ahead.
 */
import { createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import { unreadable } from "../weights/json.ts";
import { CHANGED, changedFile, type ShardFile } from "./shard-manifest.ts";

/** Files of shards, read one at a time. */
export interface ShardFiles {
  /** A reading of a file from its beginning. */
  read(path: string, file: ShardFile): ShardReading;
  close(): Promise<void>;
}

/** One file; each of its ways to go on throws `file/unreadable` where the system refuses. */
export interface ShardReading {
  /** Bytes that are left. */
  readonly left: number;
  /** The next line, without its newline. @throws {StratumError} `usage/shard-changed` where there is none */
  line(): Promise<string>;
  /** The next `length` bytes, in a buffer of their own. @throws {StratumError} `usage/shard-changed` where there are fewer */
  take(length: number): Promise<Uint8Array<ArrayBuffer>>;
  /** Reads past them. @throws {StratumError} `usage/shard-changed` where there are fewer */
  skip(length: number): Promise<void>;
  /** @throws {StratumError} `usage/shard-changed` unless that was all of it, and as it was */
  end(): Promise<void>;
}

/** Systems allow a process 256 and more; what else it needs is some thirty. */
const MOST_OPEN = 32;
/** Of what all files are read ahead. */
const AHEAD_BYTES = 2 ** 27;
/** Of one file: reading more at once is no faster. */
const CHUNK_BYTES = 2 ** 18;

const NEWLINE = 0x0a;

/** @param readings how many there are that have begun and not ended, at most */
export function openShardFiles(readings: number): ShardFiles {
  // The one that was used last is the last.
  const handles = new Map<string, FileHandle>();

  async function handleOf(path: string): Promise<FileHandle> {
    const known = handles.get(path);
    handles.delete(path);
    for (const [other, handle] of handles) {
      if (handles.size < MOST_OPEN) break;
      handles.delete(other);
      await handle.close();
    }
    const handle = known ?? (await open(path, "r"));
    handles.set(path, handle);
    return handle;
  }

  async function fill(path: string, target: Uint8Array, position: number): Promise<number> {
    try {
      const { bytesRead } = await (await handleOf(path)).read(target, 0, target.length, position);
      return bytesRead;
    } catch (cause) {
      throw unreadable(path, cause);
    }
  }

  const ahead = Math.max(1, Math.min(CHUNK_BYTES, Math.floor(AHEAD_BYTES / readings)));
  return {
    read: (path, file) => readFile(path, file, ahead, (target, position) => fill(path, target, position)),
    async close() {
      for (const handle of handles.values()) await handle.close();
      handles.clear();
    },
  };
}

/** @param fill fills a buffer from a position, and says how many bytes there were */
function readFile(
  path: string,
  file: ShardFile,
  ahead: number,
  fill: (target: Uint8Array, position: number) => Promise<number>,
): ShardReading {
  const hash = createHash("sha256");
  const chunk = Buffer.alloc(Math.max(1, Math.min(ahead, file.bytes)));
  // What was read ahead lies in the chunk between `at` and `end`, and ends in the file at `position`.
  let [at, end, position] = [0, 0, 0];
  const left = () => file.bytes - position + end - at;

  async function read(target: Uint8Array): Promise<number> {
    const count = await fill(target, position);
    hash.update(target.subarray(0, count));
    position += count;
    return count;
  }

  /** Reads ahead where nothing is. */
  async function refill(): Promise<void> {
    if (at < end) return;
    [at, end] = [0, await read(chunk)];
    if (end === 0) throw changedFile(path, file, CHANGED);
  }

  function checkLeft(length: number): void {
    if (length > left()) throw changedFile(path, file, CHANGED);
  }

  return {
    get left() {
      return left();
    },
    async line() {
      const parts: Uint8Array[] = [];
      for (;;) {
        await refill();
        const newline = chunk.subarray(0, end).indexOf(NEWLINE, at);
        const piece = chunk.subarray(at, newline < 0 ? end : newline);
        at += piece.length;
        if (newline < 0) {
          parts.push(Uint8Array.from(piece));
          continue;
        }
        at++;
        return (parts.length === 0 ? piece : Buffer.concat([...parts, piece])).toString("utf8");
      }
    },
    async take(length) {
      checkLeft(length);
      const bytes = new Uint8Array(length);
      for (let done = 0; done < length; ) {
        if (at === end && length - done >= chunk.length) {
          const count = await read(bytes.subarray(done));
          if (count === 0) throw changedFile(path, file, CHANGED);
          done += count;
          continue;
        }
        await refill();
        const piece = chunk.subarray(at, Math.min(end, at + length - done));
        bytes.set(piece, done);
        at += piece.length;
        done += piece.length;
      }
      return bytes;
    },
    async skip(length) {
      checkLeft(length);
      for (let done = 0; done < length; ) {
        await refill();
        const count = Math.min(end - at, length - done);
        at += count;
        done += count;
      }
    },
    async end() {
      const more = (await read(new Uint8Array(1))) > 0;
      if (more || left() !== 0 || hash.digest("hex") !== file.sha256) throw changedFile(path, file, CHANGED);
    },
  };
}
