/** Ranged reads of a safetensors file: the header once, then exactly the bytes that are asked for, each of them counted. */

import { type FileHandle, lstat, open } from "node:fs/promises";
import { StratumError } from "../errors.ts";
import { isSystemError, show, statRegular, unreadable } from "./json.ts";
import { isSize, MAX_HEADER_BYTES, parseSafetensorsHeader, type TensorInfo } from "./safetensors-header.ts";

export type { Dtype, TensorInfo } from "./safetensors-header.ts";

/** What was read: proof of what was not. */
export interface ReadLog {
  /** Bytes of tensors, over all reads. */
  bytes: number;
  /** Bytes of headers and of their lengths. */
  headerBytes: number;
  /** Bytes by tensor name; a tensor that was never read is absent. */
  readonly tensors: Map<string, number>;
}

/** An open file. Reads may run at the same time; none may follow `close`. */
export interface SafetensorsFile extends AsyncDisposable {
  readonly path: string;
  /** In the order of the file's body. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly metadata: Readonly<Record<string, string>>;
  readonly log: ReadLog;
  /** @throws StratumError `safetensors/no-tensor` */
  info(name: string): TensorInfo;
  /** A whole tensor, in a buffer of its own that begins at offset 0 (so any typed array can view it). */
  read(name: string): Promise<Uint8Array<ArrayBuffer>>;
  /** `byteLength` bytes of a tensor from its byte `byteStart` on. */
  readRange(name: string, byteStart: number, byteLength: number): Promise<Uint8Array<ArrayBuffer>>;
  /** Fills `target` from the tensor's byte `byteStart` on. */
  readInto(name: string, byteStart: number, target: Uint8Array): Promise<void>;
  /** Closes the file; again is no error. */
  close(): Promise<void>;
}

/** One call of the system reads at most 2^31 - 1 bytes. */
const READ_BYTES = 2 ** 28;

/** An empty log, to be shared by several files. */
export function newReadLog(): ReadLog {
  return { bytes: 0, headerBytes: 0, tensors: new Map() };
}

/**
 * Opens a safetensors file, reads its header and checks it. No byte of a tensor is read.
 *
 * The reading methods throw `safetensors/no-tensor`, `safetensors/bad-range`, `safetensors/closed`, `memory/too-large`
 * (no buffer of that size), `safetensors/file-changed` (fewer bytes than the header promised) and `file/unreadable`.
 *
 * @param log where the read bytes are counted
 * @throws StratumError `model/file-missing`, `file/not-a-file`, `file/unreadable`, or `safetensors/...` for every fault of the file
 */
export async function openSafetensors(path: string, log: ReadLog = newReadLog()): Promise<SafetensorsFile> {
  const handle = await openRegular(path);
  try {
    const fileBytes = (await handle.stat()).size;
    const header = await readHeader(handle, fileBytes, path, log);
    const { tensors, metadata } = parseSafetensorsHeader(header, fileBytes, path);
    return openedFile(handle, path, tensors, metadata, log);
  } catch (error) {
    await handle.close();
    throw error instanceof StratumError ? error : unreadable(path, error);
  }
}

function openedFile(
  handle: FileHandle,
  path: string,
  tensors: ReadonlyMap<string, TensorInfo>,
  metadata: Readonly<Record<string, string>>,
  log: ReadLog,
): SafetensorsFile {
  let closing: Promise<void> | null = null;

  function info(name: string): TensorInfo {
    const tensor = tensors.get(name);
    if (tensor) return tensor;
    throw new StratumError(
      "safetensors/no-tensor",
      `${path} has no tensor ${show(name)} (it has ${tensors.size})`,
      "check the name against the file's header",
    );
  }

  async function readInto(name: string, byteStart: number, target: Uint8Array): Promise<void> {
    const tensor = rangeOf(name, byteStart, target.byteLength);
    if (closing) {
      throw new StratumError("safetensors/closed", `${path} is closed`, "read before closing the file");
    }
    const position = tensor.fileOffset + byteStart;
    const got = await readAt(handle, target, position).catch((cause: unknown) => {
      throw unreadable(path, cause);
    });
    log.bytes += got;
    log.tensors.set(name, (log.tensors.get(name) ?? 0) + got);
    if (got < target.byteLength) {
      throw new StratumError(
        "safetensors/file-changed",
        `${path}: tensor ${show(name)}: ${got} of ${target.byteLength} bytes at byte ${position}: the file has shrunk since it was opened`,
        "leave the file alone while it is read, then run again",
      );
    }
  }

  function rangeOf(name: string, byteStart: number, byteLength: number): TensorInfo {
    const tensor = info(name);
    if (isSize(byteStart) && isSize(byteLength) && byteStart + byteLength <= tensor.byteLength) return tensor;
    throw new StratumError(
      "safetensors/bad-range",
      `${path}: tensor ${show(name)} has ${tensor.byteLength} bytes; asked for ${byteLength} from byte ${byteStart} on`,
      "ask for bytes within the tensor",
    );
  }

  async function readRange(name: string, byteStart: number, byteLength: number): Promise<Uint8Array<ArrayBuffer>> {
    rangeOf(name, byteStart, byteLength);
    const target = allocate(byteLength, name);
    await readInto(name, byteStart, target);
    return target;
  }

  function close(): Promise<void> {
    closing ??= handle.close();
    return closing;
  }

  return {
    path,
    tensors,
    metadata,
    log,
    info,
    readInto,
    readRange,
    read: async (name) => readRange(name, 0, info(name).byteLength),
    close,
    [Symbol.asyncDispose]: close,
  };
}

async function openRegular(path: string): Promise<FileHandle> {
  try {
    await statRegular(path);
    return await open(path, "r");
  } catch (cause) {
    if (cause instanceof StratumError) throw cause;
    if (!isSystemError(cause, "ENOENT", "ENOTDIR")) throw unreadable(path, cause);
    const dangling = await lstat(path).then(
      () => " (it is a link to a file that is not there)",
      () => "",
    );
    throw new StratumError(
      "model/file-missing",
      `${path} does not exist${dangling}`,
      dangling ? "the download is incomplete: fetch the model again" : "check the path",
      cause,
    );
  }
}

/** The header's bytes, allocated only once its length is known to be within the limit and the file. */
async function readHeader(handle: FileHandle, fileBytes: number, path: string, log: ReadLog): Promise<Uint8Array> {
  const start = new Uint8Array(8);
  const got = await readAt(handle, start, 0);
  log.headerBytes += got;
  if (got < 8) {
    throw new StratumError(
      "safetensors/too-short",
      `${path} has ${got} bytes; a safetensors file has at least 8`,
      "the file is empty or its download stopped early: fetch it again",
    );
  }
  const length = new DataView(start.buffer).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER_BYTES)) {
    throw new StratumError(
      "safetensors/header-too-large",
      `${path}: the header's length is given as ${length} bytes, at most ${MAX_HEADER_BYTES} are allowed`,
      whatItIs(start),
    );
  }
  if (8 + Number(length) > fileBytes) {
    throw new StratumError(
      "safetensors/header-truncated",
      `${path}: the header takes ${length} bytes after the first 8, the file has ${fileBytes} in all`,
      "the download or copy stopped early: fetch the file again",
    );
  }
  const header = new Uint8Array(Number(length));
  const read = await readAt(handle, header, 8);
  log.headerBytes += read;
  if (read < header.byteLength) {
    throw new StratumError(
      "safetensors/file-changed",
      `${path}: ${read} of ${length} header bytes could be read`,
      "leave the file alone while it is read, then run again",
    );
  }
  return header;
}

/** The usual strangers under this file name, by their first bytes. */
function whatItIs(start: Uint8Array): string {
  const text = String.fromCharCode(...start);
  if (text === "version ") return "this is a Git LFS pointer, not the file itself: run `git lfs pull`";
  if (text.startsWith("PK")) return "this is a zip file, probably a PyTorch checkpoint: convert it to safetensors";
  if (text.startsWith("GGUF")) return "this is a GGUF file: use the model's safetensors instead";
  if (text.startsWith("<")) return "this looks like a web page that was saved in the file's place: download it again";
  return "this is no safetensors file, or a damaged one: download it again";
}

/** Fills `target` from `position` on; returns the bytes that were there. */
async function readAt(handle: FileHandle, target: Uint8Array, position: number): Promise<number> {
  let done = 0;
  while (done < target.byteLength) {
    const length = Math.min(READ_BYTES, target.byteLength - done);
    const { bytesRead } = await handle.read(target, done, length, position + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return done;
}

function allocate(byteLength: number, name: string): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(byteLength);
  } catch (cause) {
    const message = `no memory for ${byteLength} bytes of tensor ${show(name)}`;
    throw new StratumError("memory/too-large", message, "read the tensor in ranges, or free memory", cause);
  }
}
