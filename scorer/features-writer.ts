/**
 * Writes a ragged file of features list by list. `resp` is written where it will stand, behind room for the header;
 * `inst` goes through a second file and is appended. In memory are two small buffers and 4 bytes a candidate.
 */
import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { StratumError } from "../errors.ts";
import { syncFolder, temporaryName, writeFailed } from "../weights/durable.ts";

/** An unfinished file. Disposing of it before `finish` aborts it. */
export interface FeaturesWriter extends AsyncDisposable {
  /** Lists appended so far. */
  readonly lists: number;
  /**
   * Appends a list; the arrays may be reused once the promise is fulfilled. One call at a time.
   * @param inst (D)
   * @param resp (m, D), m >= 1
   * @param labels (m), NaN for none
   * @throws {StratumError} `features/bad-shape`, `features/bad-labels`, `features/empty-list` (the writer stays usable);
   *   `features/too-large`, `file/write-failed` (it is aborted); `features/closed`
   */
  append(inst: Float32Array, resp: Float32Array, labels: ArrayLike<number>): Promise<void>;
  /** Gives the file its name, over an older one. @returns its size in bytes @throws {StratumError} `file/write-failed` */
  finish(): Promise<number>;
  /** Removes what was written; after `finish` it does nothing. */
  abort(): Promise<void>;
}

/** The header with its length in front: four entries of at most 110 bytes, padded with spaces. */
const HEADER_BYTES = 1024;
const BUFFER_BYTES = 2 ** 20;
const COPY_BYTES = 8 * 2 ** 20;
/** `offsets` are I32, which every reader knows. */
const MAX_CANDIDATES = 2 ** 31 - 1;

/**
 * Begins a file of features.
 * @param options.dim D
 * @throws {StratumError} `file/write-failed`, `features/bad-shape`
 */
export async function createFeaturesWriter(path: string, { dim }: { readonly dim: number }): Promise<FeaturesWriter> {
  if (!Number.isSafeInteger(dim) || dim < 1) throw badShape(`states are ${dim} wide`, "give a width from 1");
  const bodyPath = temporaryName(path);
  const spoolPath = `${bodyPath}.inst`;
  const handles: FileHandle[] = [];
  let closed = false;

  async function cleanUp(): Promise<void> {
    closed = true;
    for (const handle of handles.splice(0)) await handle.close().catch(() => undefined);
    for (const file of [bodyPath, spoolPath]) await rm(file, { force: true }).catch(() => undefined);
  }
  async function guarded<T>(step: () => Promise<T>): Promise<T> {
    if (closed) throw new StratumError("features/closed", `${path} is finished or aborted`, "create another writer");
    try {
      return await step();
    } catch (cause) {
      await cleanUp();
      throw writeFailed(path, cause);
    }
  }

  const [body, spool] = await guarded(async () => {
    for (const file of [bodyPath, spoolPath]) handles.push(await open(file, "wx+"));
    return handles.map((handle, i) => appender(handle, i === 0 ? HEADER_BYTES : 0));
  });
  const labels = growing(Float32Array);
  const offsets = growing(Int32Array);
  offsets.push(0);
  let lists = 0;

  return {
    get lists() {
      return lists;
    },
    async append(inst, resp, given) {
      const m = given.length;
      if (m === 0) throw new StratumError("features/empty-list", `list ${lists} has no candidate`, "leave it out");
      if (inst.length !== dim || resp.length !== m * dim) {
        throw badShape(
          `list ${lists}: ${inst.length} and ${resp.length} numbers for ${m} labels and states ${dim} wide`,
          "pass inst (D), resp (m, D) and m labels",
        );
      }
      for (let i = 0; i < m; i++) {
        if (Number.isNaN(given[i]) || Number.isFinite(Math.fround(given[i]))) continue;
        throw new StratumError(
          "features/bad-labels",
          `list ${lists}: the label of candidate ${i} is ${given[i]}`,
          "give finite numbers within the range of a float, or NaN where there is none",
        );
      }
      await guarded(async () => {
        if (labels.length + m > MAX_CANDIDATES) {
          throw new StratumError("features/too-large", `${path}: over ${MAX_CANDIDATES} candidates`, "split the lists");
        }
        await spool.append(bytesOf(inst));
        await body.append(bytesOf(resp));
      });
      for (let i = 0; i < m; i++) labels.push(given[i]);
      offsets.push(labels.length);
      lists++;
    },
    finish: () =>
      guarded(async () => {
        const [bodyFile, spoolFile] = handles;
        await spool.flush();
        const chunk = new Uint8Array(COPY_BYTES);
        for (let done = 0; done < spool.length; ) {
          const { bytesRead } = await spoolFile.read(chunk, 0, chunk.length, done);
          if (bytesRead === 0) throw new Error("the temporary file has shrunk");
          await body.append(chunk.subarray(0, bytesRead));
          done += bytesRead;
        }
        await body.append(bytesOf(labels.view()));
        await body.append(bytesOf(offsets.view()));
        await body.flush();
        await writeAt(bodyFile, header(lists, labels.length, dim), 0);
        await bodyFile.sync();
        // Windows renames no open file.
        for (const handle of handles.splice(0)) await handle.close();
        await rename(bodyPath, path);
        await syncFolder(dirname(path));
        await cleanUp();
        return HEADER_BYTES + body.length;
      }),
    async abort() {
      if (!closed) await cleanUp();
    },
    async [Symbol.asyncDispose]() {
      if (!closed) await cleanUp();
    },
  };
}

/** Bodies in the order of the file: resp, inst, labels, offsets; all of 4 bytes an element, so that none is misaligned. */
function header(lists: number, count: number, dim: number): Uint8Array {
  const entries: Record<string, unknown> = {};
  let start = 0;
  const add = (name: string, dtype: string, shape: readonly number[]) => {
    const end = start + 4 * shape.reduce((product, size) => product * size, 1);
    entries[name] = { dtype, shape, data_offsets: [start, end] };
    start = end;
  };
  add("resp", "F32", [count, dim]);
  add("inst", "F32", [lists, dim]);
  add("labels", "F32", [count]);
  add("offsets", "I32", [lists + 1]);
  const bytes = new Uint8Array(HEADER_BYTES).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(HEADER_BYTES - 8), true);
  bytes.set(Buffer.from(JSON.stringify(entries)), 8);
  return bytes;
}

interface Appender {
  /** Bytes appended. */
  readonly length: number;
  append(bytes: Uint8Array): Promise<void>;
  flush(): Promise<void>;
}

/** Appends to a file from byte `start` on; small pieces are gathered. */
function appender(file: FileHandle, start: number): Appender {
  const buffer = new Uint8Array(BUFFER_BYTES);
  let filled = 0;
  let written = 0;
  async function flush(): Promise<void> {
    await writeAt(file, buffer.subarray(0, filled), start + written);
    written += filled;
    filled = 0;
  }
  return {
    get length() {
      return written + filled;
    },
    async append(bytes) {
      if (filled + bytes.length > BUFFER_BYTES) await flush();
      if (bytes.length > BUFFER_BYTES) {
        await writeAt(file, bytes, start + written);
        written += bytes.length;
      } else {
        buffer.set(bytes, filled);
        filled += bytes.length;
      }
    },
    flush,
  };
}

/** One call of the system writes at most 2^31 - 1 bytes. */
const WRITE_BYTES = 2 ** 28;

async function writeAt(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const length = Math.min(WRITE_BYTES, bytes.length - done);
    done += (await file.write(bytes, done, length, position + done)).bytesWritten;
  }
}

/** Numbers that arrive one by one, packed. */
function growing<T extends Float32Array | Int32Array>(Type: new (length: number) => T) {
  let values = new Type(1024);
  let length = 0;
  return {
    get length() {
      return length;
    },
    push(value: number): void {
      if (length === values.length) {
        const larger = new Type(2 * length);
        larger.set(values);
        values = larger;
      }
      values[length++] = value;
    },
    view: () => values.subarray(0, length),
  };
}

function bytesOf({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

function badShape(what: string, fix: string): StratumError {
  return new StratumError("features/bad-shape", what, fix);
}
