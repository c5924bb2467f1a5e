/**
 * One file of the hub onto the disk: in ranges, resumed where it stopped, in this run or an earlier one, and believed only
 * when all of it has the hash that the hub gives it.
 */
import { createHash, type Hash } from "node:crypto";
import { type FileHandle, mkdir, open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { StratumError } from "../errors.ts";
import { onDisk, sizeOf } from "./hub-cache.ts";
import { badAnswer, type HubAnswer, type HubClient, request, retrying } from "./hub-http.ts";
import type { HubFile } from "./hub-metadata.ts";

export interface Transfer {
  readonly file: HubFile;
  readonly url: string;
  /** Where it grows; kept by a run that ends early. */
  readonly partial: string;
  /** The name that it gets when it is whole. */
  readonly target: string;
  /** Called with the bytes that are there, at the beginning and after every part. */
  readonly onBytes: (done: number) => void;
}

const READ_BYTES = 2 ** 20;

/**
 * Downloads a file.
 * @throws {StratumError} `hub/damaged` for bytes of another hash or length (they are removed), `hub/changed`,
 *   `hub/disk-full`, `hub/cache-unwritable`, and what `request` throws once trying again does not help
 */
export async function transfer(client: HubClient, job: Transfer): Promise<void> {
  await onDisk(job.partial, () => mkdir(dirname(job.partial), { recursive: true }));
  const resumed = ((await sizeOf(job.partial)) ?? 0) > 0;
  try {
    await attempt(client, job);
  } catch (thrown) {
    // A part that a crash left can hold anything: it may not cost more than its own bytes.
    if (!resumed || !isDamage(thrown)) throw thrown;
    client.onNote(`the part of ${job.file.name} that an earlier run left is damaged: it is fetched from the beginning`);
    await attempt(client, job);
  }
}

function isDamage(thrown: unknown): boolean {
  return thrown instanceof StratumError && thrown.code === "hub/damaged";
}

async function attempt(client: HubClient, job: Transfer): Promise<void> {
  const { file, partial, target } = job;
  const handle = await onDisk(partial, async () => openPartial(partial));
  let whole = false;
  try {
    const hash = await receive(client, job, handle);
    if (hash !== file.hash) {
      throw damaged(
        client,
        file,
        `its ${file.algorithm === "sha256" ? "SHA-256" : "git SHA-1"} is ${hash}, not ${file.hash}`,
      );
    }
    await onDisk(partial, () => handle.sync());
    whole = true;
  } catch (thrown) {
    if (isDamage(thrown)) await rm(partial, { force: true }).catch(() => undefined);
    throw thrown;
  } finally {
    await handle.close().catch(() => undefined);
  }
  if (!whole) return;
  try {
    await onDisk(target, () => rename(partial, target));
  } catch (thrown) {
    // Another process that took the lock for stale may have been first: the same bytes, under the same name.
    if ((await sizeOf(target)) !== file.size) throw thrown;
  }
  await syncFolder(dirname(target));
}

async function openPartial(path: string): Promise<FileHandle> {
  return open(path, "r+").catch(() => open(path, "w+"));
}

/** Receives what is missing. @returns the hash of all, in hex */
async function receive(client: HubClient, job: Transfer, handle: FileHandle): Promise<string> {
  const { file, onBytes } = job;
  let hash = newHash(file);
  let done = 0;
  /** What the storage calls this file, so that parts of two versions are never put together. */
  let etag: string | null = null;
  const restart = () => {
    hash = newHash(file);
    done = 0;
  };
  await onDisk(job.partial, async () => {
    const { size } = await handle.stat();
    if (size > file.size) await handle.truncate(0);
    else done = await hashBeginning(handle, hash);
  });
  let furthest = done;
  onBytes(done);
  const what = `${file.name} of ${client.id}`;

  async function part(): Promise<void> {
    const answer = await request(client, job.url, {
      timeoutMs: client.timeoutMs.bytes,
      what,
      headers: done === 0 ? {} : { range: `bytes=${done}-`, ...(etag === null ? {} : { "if-range": etag }) },
    });
    try {
      const from = answer.status === 206 ? done : 0;
      checkAnswer(client, file, answer, from);
      // The whole file: the server knows no ranges, or has another version.
      if (from < done) restart();
      etag = strongEtag(answer);
      for await (const chunk of answer.body) {
        if (done + chunk.byteLength > file.size) {
          throw damaged(client, file, `more than its ${file.size} bytes are sent`);
        }
        const writing = onDisk(job.partial, () => writeAt(handle, chunk, done));
        hash.update(chunk);
        await writing;
        done += chunk.byteLength;
        furthest = Math.max(furthest, done);
        onBytes(done);
      }
    } finally {
      answer.close();
    }
    if (done === file.size) return;
    throw new StratumError(
      "hub/interrupted",
      `${what} ended after ${done} of ${file.size} bytes`,
      "check the network and run again: the download goes on where it stopped",
    );
  }

  if (done < file.size) {
    await retrying(
      client,
      client.retries.bytes,
      async () => {
        if (done < file.size) await part();
      },
      () => furthest,
    );
  }
  return hash.digest("hex");
}

function newHash({ algorithm, size }: HubFile): Hash {
  return algorithm === "sha256" ? createHash("sha256") : createHash("sha1").update(`blob ${size}\0`);
}

async function hashBeginning(handle: FileHandle, hash: Hash): Promise<number> {
  const buffer = new Uint8Array(READ_BYTES);
  for (let at = 0; ; ) {
    const { bytesRead } = await handle.read(buffer, 0, READ_BYTES, at);
    if (bytesRead === 0) return at;
    hash.update(buffer.subarray(0, bytesRead));
    at += bytesRead;
  }
}

async function writeAt(handle: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.byteLength; ) {
    done += (await handle.write(bytes, done, bytes.byteLength - done, position + done)).bytesWritten;
  }
}

/** Tells another range, a web page, or another version from what was asked for, before a byte of it is kept. */
function checkAnswer(client: HubClient, file: HubFile, answer: HubAnswer, from: number): void {
  const { status, headers, hubHeader } = answer;
  const what = `${file.name} of ${client.id}`;
  if (status === 206) {
    const range = headers.get("content-range") ?? "none";
    const [, first, total] = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(range) ?? [];
    if (Number(first) !== from || (total !== "*" && Number(total) !== file.size)) {
      const asked = `bytes ${from} to ${file.size - 1} of ${file.size} were asked for`;
      throw badAnswer(client, what, `${asked}, its content-range is '${range}'`);
    }
  }
  const length = headers.get("content-length");
  const type = headers.get("content-type") ?? "of no type";
  if (/^text\/html/i.test(type) || (length !== null && Number(length) !== file.size - from)) {
    throw badAnswer(client, what, `${length ?? "some"} bytes (${type}) where ${file.size - from} are expected`);
  }
  const named = (hubHeader("x-linked-etag") ?? "").replace(/^W\/|"/g, "");
  if (file.algorithm !== "sha256" || named === "" || named === file.hash) return;
  throw new StratumError(
    "hub/changed",
    `${file.name} of ${client.id} has the hash ${named}, the commit's listing says ${file.hash}`,
    "run again; if it stays so, the hub contradicts itself: try later",
  );
}

function strongEtag({ headers }: HubAnswer): string | null {
  const etag = headers.get("etag");
  return etag === null || etag.startsWith("W/") ? null : etag;
}

function damaged(client: HubClient, { name }: HubFile, how: string): StratumError {
  return new StratumError(
    "hub/damaged",
    `the download of ${name} of ${client.id} is not the file that the hub describes: ${how}; it is removed`,
    "run again; if it fails again, something between here and the hub changes the bytes: try another network or HF_ENDPOINT",
  );
}

/** Makes a rename survive a power cut, where the system can sync a folder. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, "r").catch(() => null);
  await handle?.sync().catch(() => undefined);
  await handle?.close();
}
