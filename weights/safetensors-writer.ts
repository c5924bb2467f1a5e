/**
 * Writes safetensors files tensor by tensor, without holding them. The final name appears whole or not at all: bodies are
 * spooled beside it, the file is synced, then renamed.
 *
 * The header stands in front but is known last. The spool therefore begins with room for one: a large file whose header fits
 * is finished in place, and only small files and those of very many tensors are copied. The order of the tensors is the
 * order in which they were added. Add wider types first when types are mixed: the format has no padding between tensors,
 * and some readers cannot view a misaligned one.
 */

import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { messageOf, StratumError } from "../errors.ts";
import { show } from "./json.ts";
import { type Dtype, isDtype, isSize, MAX_HEADER_BYTES, tensorBytes } from "./safetensors-header.ts";

export interface SafetensorsWriterOptions {
  /** Becomes `__metadata__`; no such key is written without it. */
  readonly metadata?: Readonly<Record<string, string>>;
  /** Go on with the file that `leave` or a killed process left, behind these tensors; without it one is begun anew. */
  readonly begun?: Iterable<Omit<TensorData, "bytes">>;
  /** What fails leaves the tensors that were written, to be gone on with. */
  readonly keep?: boolean;
}

/** An unfinished file. Disposing of it before `finish` aborts it. */
export interface SafetensorsWriter extends AsyncDisposable {
  readonly path: string;
  /** Bytes of all tensors added so far. */
  readonly bodyBytes: number;
  /**
   * Appends a tensor; `bytes` (row-major, little endian) may be reused once the promise is fulfilled.
   *
   * @throws StratumError `safetensors/duplicate-key`, `safetensors/bad-name`, `safetensors/unknown-dtype`,
   *   `safetensors/bad-shape`, `safetensors/size-mismatch` (the writer stays usable); `file/write-failed` (it is aborted,
   *   or with `keep` left);
   *   `safetensors/closed`
   */
  add(name: string, dtype: Dtype, shape: readonly number[], bytes: Uint8Array): Promise<void>;
  /** Brings the tensors so far to the disk. @throws StratumError `file/write-failed` */
  sync(): Promise<void>;
  /** Ends the writer and leaves what it wrote under its temporary name, to be gone on with. */
  leave(): Promise<void>;
  /** Bytes that the header takes so far, about. */
  readonly headerBytes: number;
  /**
   * Writes the header, syncs, and gives the file its name, over an older file if there is one.
   *
   * @param partial - end an interrupted run: the file is whole, but is called `path.partial`, and `path` is left alone.
   * @returns the size of the file in bytes
   * @throws StratumError `file/write-failed`, `safetensors/header-too-large` (both abort), `safetensors/closed`
   */
  finish(partial?: boolean): Promise<number>;
  /** Removes everything that was written; after `finish` or another `abort` it does nothing. */
  abort(): Promise<void>;
}

/** One tensor of {@link writeSafetensors}. */
export interface TensorData {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** Room for a header (about 10,000 tensors) at the start of the spool; a hole until it is written. */
const HEADER_ROOM = 2 ** 20;

/** From here on the padding of a header to its room is below 1% of the file, and copying the bodies is what costs. */
const IN_PLACE_BYTES = 2 ** 27;

/** Header entries that are packed together. */
const CHUNK_ENTRIES = 1024;

const COPY_BYTES = 2 ** 23;

/** One call of the system writes at most 2^31 - 1 bytes. */
const WRITE_BYTES = 2 ** 28;

/**
 * Begins a file at `path`, through `path.partial.body` and `path.partial` beside it; what an earlier, interrupted run left
 * under these names is replaced, or gone on with as `begun` says. One writer a path at a time.
 *
 * @throws StratumError `file/write-failed`; `safetensors/other-body` where less was left than `begun` says
 */
export async function createSafetensorsWriter(
  path: string,
  options: SafetensorsWriterOptions = {},
): Promise<SafetensorsWriter> {
  const spoolPath = `${path}.partial.body`;
  const filePath = `${path}.partial`;
  const names = new Set<string>();
  // Entries go into packed chunks: hundreds of thousands of small strings would cost several times their text.
  const entries: Buffer[] = [];
  let recent: string[] = [];
  let bodyBytes = 0;
  let entryBytes = 0;
  let state: "open" | "done" = "open";
  let spool: FileHandle | null = null;
  // Writes happen one after the other, in the order of the calls, whether or not the caller waits.
  let last: Promise<unknown> = Promise.resolve();

  async function release(): Promise<void> {
    state = "done";
    await spool?.close().catch(() => undefined);
    spool = null;
  }

  async function cleanUp(keep?: string): Promise<void> {
    await release();
    const files = [spoolPath, filePath].filter((file) => file !== keep);
    await Promise.all(files.map((file) => rm(file, { force: true }).catch(() => undefined)));
  }

  /** Runs `step` after all earlier ones; whatever it throws ends the writer and its temporary files. */
  function inTurn<T>(step: (spool: FileHandle) => Promise<T>): Promise<T> {
    const turn = last.then(async () => {
      if (state === "done" || !spool) {
        throw new StratumError("safetensors/closed", `${path} is finished or aborted`, "create another writer");
      }
      try {
        return await step(spool);
      } catch (error) {
        await (options.keep ? release() : cleanUp());
        if (error instanceof StratumError) throw error;
        throw writeFailed(path, error, options.keep ? `what was written before lies in ${spoolPath}` : NOTHING_LEFT);
      }
    });
    last = turn.catch(() => undefined);
    return turn;
  }

  function pack(): void {
    if (recent.length > 0) entries.push(Buffer.from(recent.join(",")));
    recent = [];
  }

  /** Enters a tensor into the header. @returns where it begins */
  function enter(name: string, dtype: Dtype, shape: readonly number[], byteLength: number): number {
    if (names.has(name)) {
      const message = `${path}: tensor ${show(name)} is added twice`;
      throw new StratumError("safetensors/duplicate-key", message, "give every tensor a name of its own");
    }
    const start = bodyBytes;
    bodyBytes += byteLength;
    const entry = entryText(name, dtype, shape, start, bodyBytes);
    names.add(name);
    recent.push(entry);
    entryBytes += entry.length + 1;
    if (recent.length === CHUNK_ENTRIES) pack();
    return start;
  }

  async function add(name: string, dtype: Dtype, shape: readonly number[], bytes: Uint8Array): Promise<void> {
    checkTensor({ name, dtype, shape, bytes }, path);
    const start = enter(name, dtype, shape, bytes.byteLength);
    await inTurn((spool) => writeAt(spool, bytes, HEADER_ROOM + start));
  }

  /** Opens what an earlier writer left, cut behind the tensors that are said to be whole. */
  async function openBegun(begun: Iterable<Omit<TensorData, "bytes">>): Promise<FileHandle> {
    for (const { name, dtype, shape } of begun) enter(name, dtype, shape, tensorBytes(dtype, shape) ?? 0);
    const found = await open(spoolPath, "r+");
    const end = HEADER_ROOM + bodyBytes;
    let size: number;
    try {
      ({ size } = await found.stat());
      if (size >= end || bodyBytes === 0) {
        await found.truncate(end);
        return found;
      }
    } catch (cause) {
      await found.close();
      throw cause;
    }
    await found.close();
    throw new StratumError(
      "safetensors/other-body",
      `${spoolPath} has ${size} bytes, and ${end} were written`,
      "throw away what there is, and begin anew",
    );
  }

  function finish(partial = false): Promise<number> {
    const target = partial ? filePath : path;
    return inTurn(async (spool) => {
      pack();
      const inPlace = bodyBytes >= IN_PLACE_BYTES;
      let header = headerBytes(entries, options.metadata, inPlace ? HEADER_ROOM : 0, path);
      const finished = inPlace && header.byteLength === HEADER_ROOM ? spoolPath : filePath;
      if (finished === spoolPath) {
        await writeAt(spool, header, 0);
        await spool.sync();
      } else {
        header = headerBytes(entries, options.metadata, 0, path);
        await copyBehind(header, spool, bodyBytes, filePath);
      }
      // Windows renames no open file.
      await spool.close();
      await rename(finished, target);
      await syncFolder(path);
      await cleanUp(target);
      return header.byteLength + bodyBytes;
    });
  }

  async function abort(): Promise<void> {
    await last;
    if (state === "open") await cleanUp();
  }

  try {
    checkMetadata(options.metadata, path);
    await rm(filePath, { force: true });
    if (options.begun === undefined) await rm(spoolPath, { force: true });
    spool = options.begun === undefined ? await open(spoolPath, "wx+") : await openBegun(options.begun);
  } catch (error) {
    throw error instanceof StratumError ? error : writeFailed(path, error, NOTHING_LEFT);
  }
  return {
    path,
    get bodyBytes() {
      return bodyBytes;
    },
    get headerBytes() {
      return entryBytes;
    },
    add,
    sync: () => inTurn((spool) => spool.datasync()),
    async leave() {
      await last;
      if (state === "open") await release();
    },
    finish,
    abort,
    [Symbol.asyncDispose]: abort,
  };
}

/**
 * Writes tensors that are all at hand as one safetensors file, whole or not at all.
 *
 * @returns the size of the file in bytes
 * @throws StratumError as {@link SafetensorsWriter} does
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<TensorData>,
  options: SafetensorsWriterOptions = {},
): Promise<number> {
  const writer = await createSafetensorsWriter(path, options);
  try {
    for (const { name, dtype, shape, bytes } of tensors) await writer.add(name, dtype, shape, bytes);
    return await writer.finish();
  } finally {
    await writer.abort();
  }
}

function checkTensor({ name, dtype, shape, bytes }: TensorData, path: string): void {
  const tensor = `${path}: tensor ${show(name)}`;
  // Half a surrogate pair has no UTF-8, and other readers refuse its escape.
  if (name === "__metadata__" || /\p{Surrogate}/u.test(name)) {
    const message = `${tensor} cannot have this name`;
    throw new StratumError("safetensors/bad-name", message, "use another name, of whole characters");
  }
  if (!isDtype(dtype)) {
    throw new StratumError("safetensors/unknown-dtype", `${tensor} has dtype ${show(dtype)}`, "use e.g. F32 or BF16");
  }
  if (!shape.every(isSize)) {
    const message = `${tensor} has shape ${show(shape)}`;
    throw new StratumError("safetensors/bad-shape", message, "sizes are non-negative integers");
  }
  const expected = tensorBytes(dtype, shape);
  if (expected !== bytes.byteLength) {
    const message = `${tensor}: ${dtype} ${show(shape)} takes ${expected ?? "no countable"} bytes, got ${bytes.byteLength}`;
    throw new StratumError("safetensors/size-mismatch", message, "pass the tensor's own bytes, all of them");
  }
}

function checkMetadata(metadata: Readonly<Record<string, string>> | undefined, path: string): void {
  for (const [key, value] of Object.entries(metadata ?? {})) {
    if (typeof value === "string") continue;
    const message = `${path}: metadata ${show(key)} is ${show(value)}, not a string`;
    throw new StratumError("safetensors/header-schema", message, "turn metadata values into strings");
  }
}

function entryText(name: string, dtype: Dtype, shape: readonly number[], start: number, end: number): string {
  return `${JSON.stringify(name)}:{"dtype":"${dtype}","shape":[${shape.join(",")}],"data_offsets":[${start},${end}]}`;
}

/** The header with its length in front, padded with spaces to a multiple of 8 and to at least `room` bytes. */
function headerBytes(
  entries: readonly Buffer[],
  metadata: Readonly<Record<string, string>> | undefined,
  room: number,
  path: string,
): Uint8Array {
  const parts =
    metadata === undefined ? entries : [Buffer.from(`"__metadata__":${JSON.stringify(metadata)}`), ...entries];
  const text = Buffer.concat([
    Buffer.from("{"),
    ...parts.flatMap((part, i) => (i === 0 ? [part] : [Buffer.from(","), part])),
    Buffer.from("}"),
  ]);
  const total = Math.max(room, 8 + Math.ceil(text.byteLength / 8) * 8);
  if (total - 8 > MAX_HEADER_BYTES) {
    throw new StratumError(
      "safetensors/header-too-large",
      `${path}: the header takes ${text.byteLength} bytes, the format allows ${MAX_HEADER_BYTES}`,
      "write several smaller files",
    );
  }
  const bytes = new Uint8Array(total).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(total - 8), true);
  bytes.set(text, 8);
  return bytes;
}

async function copyBehind(header: Uint8Array, spool: FileHandle, bodyBytes: number, path: string): Promise<void> {
  const file = await open(path, "wx");
  try {
    await writeAt(file, header, 0);
    const chunk = new Uint8Array(Math.min(COPY_BYTES, bodyBytes));
    for (let done = 0; done < bodyBytes; ) {
      const length = Math.min(chunk.byteLength, bodyBytes - done);
      const { bytesRead } = await spool.read(chunk, 0, length, HEADER_ROOM + done);
      if (bytesRead === 0) throw new Error("the temporary file has shrunk");
      await writeAt(file, chunk.subarray(0, bytesRead), header.byteLength + done);
      done += bytesRead;
    }
    await file.sync();
  } finally {
    await file.close();
  }
}

async function writeAt(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.byteLength; ) {
    const length = Math.min(WRITE_BYTES, bytes.byteLength - done);
    done += (await file.write(bytes, done, length, position + done)).bytesWritten;
  }
}

/** Makes the rename itself survive a power cut, where the system can sync a folder. */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(dirname(path), "r").catch(() => null);
  await folder?.sync().catch(() => undefined);
  await folder?.close();
}

const NOTHING_LEFT = "nothing was left behind";

function writeFailed(path: string, cause: unknown, left: string): StratumError {
  return new StratumError(
    "file/write-failed",
    `${path} could not be written: ${messageOf(cause)}`,
    `check free space, permissions and that the folder exists; ${left}`,
    cause,
  );
}
