/** A shard's files from front to back, hashed on the way: what differs from the shard's record is told by their end. */
import { createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import { unreadable } from "../weights/json.ts";
import { splitLines } from "./json-lines.ts";
import { CHANGED, changedFile, type ShardFile } from "./shard-manifest.ts";

/** Lines. */
export interface LinesReading {
  /**
   * The next line, without its newline.
   * @throws {StratumError} `usage/shard-changed` where there is none
   */
  next(): Promise<string>;
  /** @throws {StratumError} `usage/shard-changed` unless that was all of it, and as it was */
  end(): Promise<void>;
  /** Stops before the end. */
  close(): Promise<void>;
}

/** Bytes. */
export interface BytesReading {
  /** Bytes that are left. */
  readonly left: number;
  /** The next `length` bytes, in a buffer of their own. @throws {StratumError} `usage/shard-changed` where there are fewer */
  take(length: number): Promise<Uint8Array<ArrayBuffer>>;
  /** Reads past them. @throws {StratumError} `usage/shard-changed` where there are fewer */
  skip(length: number): Promise<void>;
  /** As of {@link LinesReading}; closes the file. */
  end(): Promise<void>;
  close(): Promise<void>;
}

/** Begins with the first line. */
export function readLines(path: string, file: ShardFile): LinesReading {
  const lines = splitLines(path, Number.POSITIVE_INFINITY);
  const hash = createHash("sha256");
  let bytes = 0;
  return {
    async next() {
      const { value, done } = await lines.next();
      if (done || value.bytes === null) throw changedFile(path, file, CHANGED);
      hash.update(value.bytes).update("\n");
      bytes += value.bytes.length + 1;
      return Buffer.from(value.bytes).toString("utf8");
    },
    async end() {
      if (!(await lines.next()).done || bytes !== file.bytes || hash.digest("hex") !== file.sha256)
        throw changedFile(path, file, CHANGED);
    },
    async close() {
      await lines.return(undefined);
    },
  };
}

/** States of many sequences are small: what is read at once is more. */
const CHUNK_BYTES = 2 ** 18;

/** Opens a file. @throws {StratumError} `file/unreadable` */
export async function readBytes(path: string, file: ShardFile): Promise<BytesReading> {
  let handle: FileHandle | null = await open(path, "r").catch((cause: unknown) => {
    throw unreadable(path, cause);
  });
  const hash = createHash("sha256");
  const chunk = new Uint8Array(CHUNK_BYTES);
  let [at, end, position] = [0, 0, 0];
  const left = () => file.bytes - position + end - at;

  /** Fills `target` from the file itself. @returns how many bytes there were */
  async function fill(target: Uint8Array): Promise<number> {
    const { bytesRead = 0 } =
      (await handle?.read(target, 0, target.length, position).catch((cause: unknown) => {
        throw unreadable(path, cause);
      })) ?? {};
    hash.update(target.subarray(0, bytesRead));
    position += bytesRead;
    return bytesRead;
  }

  async function* pieces(length: number): AsyncGenerator<Uint8Array> {
    if (length > left()) throw changedFile(path, file, CHANGED);
    for (let done = 0; done < length; ) {
      if (at === end) [at, end] = [0, await fill(chunk)];
      if (end === 0) throw changedFile(path, file, CHANGED);
      const piece = chunk.subarray(at, Math.min(end, at + length - done));
      at += piece.length;
      done += piece.length;
      yield piece;
    }
  }

  async function close(): Promise<void> {
    await handle?.close();
    handle = null;
  }

  return {
    get left() {
      return left();
    },
    async take(length) {
      if (length > left()) throw changedFile(path, file, CHANGED);
      const bytes = new Uint8Array(length);
      let done = 0;
      for await (const piece of pieces(length)) {
        bytes.set(piece, done);
        done += piece.length;
      }
      return bytes;
    },
    async skip(length) {
      for await (const _ of pieces(length));
    },
    async end() {
      const more = (await fill(new Uint8Array(1))) > 0;
      if (more || left() !== 0 || hash.digest("hex") !== file.sha256) throw changedFile(path, file, CHANGED);
      await close();
    },
    close,
  };
}
