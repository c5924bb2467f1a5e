/** A server with the shape of the Hugging Face hub, on loopback: one model, its storage on another origin, and faults. */
import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { openSafetensors } from "../../weights/safetensors.ts";
import { type TensorData, writeSafetensors } from "../../weights/safetensors-writer.ts";

/** What a request asks for: the commit of a revision, the files of a commit, a file's place, a file's bytes. */
export type Route = "revision" | "tree" | "resolve" | "bytes";

export type Fault =
  /** The connection is cut after so many bytes of the body. */
  | { readonly kind: "drop"; readonly after: number }
  /** Nothing follows after so many bytes. */
  | { readonly kind: "stall"; readonly after: number }
  /** The whole file, whatever range was asked for. */
  | { readonly kind: "ignore-range" }
  /** Another range than the one that was asked for. */
  | { readonly kind: "shift-range" }
  /** Bytes of the same number that are not the file's. */
  | { readonly kind: "wrong-bytes" }
  | {
      readonly kind: "answer";
      readonly status: number;
      readonly headers?: Readonly<Record<string, string>>;
      readonly body?: string;
    };

export interface SeenRequest {
  readonly route: Route;
  /** The file, where there is one. */
  readonly file: string | null;
  readonly range: string | null;
  readonly ifRange: string | null;
  readonly authorization: string | null;
  /** Bytes of the body that were sent. */
  sent: number;
}

export interface HubServer extends AsyncDisposable {
  /** For HF_ENDPOINT. */
  readonly endpoint: string;
  readonly id: string;
  /** What `main` names; may be changed with `files`. */
  commit: string;
  /** By name. */
  readonly files: Map<string, Uint8Array>;
  /** All requests, in order. */
  readonly requests: SeenRequest[];
  /** What a file's tree entry says instead of the truth. */
  readonly claims: Map<string, Readonly<Record<string, unknown>>>;
  /** The next `times` requests of a route, for a file if one is named, meet a fault. */
  fail(route: Route, fault: Fault, options?: { readonly times?: number; readonly file?: string }): void;
  /** Only requests with this token may see the model. */
  token: string | null;
  /** Files whose bytes were asked for, each once. */
  fetched(): string[];
  forget(): void;
}

interface Planned {
  readonly route: Route;
  readonly fault: Fault;
  readonly file: string | undefined;
  left: number;
}

export const COMMIT = "0123456789abcdef0123456789abcdef01234567";

/** Large files lie in a storage of their own. */
const isLarge = (name: string) => name.endsWith(".safetensors") || name.endsWith(".bin");

/** The name of a file's blob: what the hub gives as its etag. */
export function blobHash(name: string, bytes: Uint8Array): string {
  if (isLarge(name)) return createHash("sha256").update(bytes).digest("hex");
  return createHash("sha1").update(`blob ${bytes.byteLength}\0`).update(bytes).digest("hex");
}

/** Starts a hub with one model. */
export async function startHub(files: ReadonlyMap<string, Uint8Array>, id = "org/tiny"): Promise<HubServer> {
  const requests: SeenRequest[] = [];
  const planned: Planned[] = [];
  const claims = new Map<string, Readonly<Record<string, unknown>>>();
  const held = new Map(files);

  function faultOf(route: Route, file: string | null): Fault | null {
    const found = planned.find((plan) => plan.route === route && plan.left > 0 && (plan.file ?? file) === file);
    if (found === undefined) return null;
    found.left--;
    return found.fault;
  }

  function begin(request: IncomingMessage, route: Route, file: string | null): SeenRequest {
    const { range = null, "if-range": ifRange = null, authorization = null } = request.headers;
    const seen = { route, file, range, ifRange: ifRange as string | null, authorization, sent: 0 };
    requests.push(seen);
    return seen;
  }

  /** Answers with a fault that takes the place of everything else. @returns whether it did */
  function answered(response: ServerResponse, fault: Fault | null): boolean {
    if (fault?.kind !== "answer") return false;
    response.writeHead(fault.status, fault.headers).end(fault.body);
    return true;
  }

  function sendBytes(response: ServerResponse, seen: SeenRequest, bytes: Uint8Array, etag: string): void {
    const fault = faultOf("bytes", seen.file);
    if (answered(response, fault)) return;
    const whole = fault?.kind === "ignore-range" || (seen.ifRange ?? `"${etag}"`) !== `"${etag}"`;
    const asked = /^bytes=(\d+)-(\d*)$/.exec(whole ? "" : (seen.range ?? ""));
    const from = asked ? Number(asked[1]) : 0;
    const end = asked?.[2] ? Number(asked[2]) + 1 : bytes.byteLength;
    const shift = fault?.kind === "shift-range" ? 1 : 0;
    let body = bytes.slice(from, end);
    if (fault?.kind === "wrong-bytes") body = body.map((byte) => byte ^ 1);
    response.writeHead(asked ? 206 : 200, {
      "content-type": "application/octet-stream",
      "content-length": body.byteLength,
      "accept-ranges": "bytes",
      etag: `"${etag}"`,
      ...(asked ? { "content-range": `bytes ${from + shift}-${end - 1}/${bytes.byteLength}` } : {}),
    });
    // A whole body that is never ended would hold back what follows on its connection.
    if ((fault?.kind !== "drop" && fault?.kind !== "stall") || fault.after >= body.byteLength) {
      seen.sent = body.byteLength;
      response.end(body);
      return;
    }
    seen.sent = Math.min(fault.after, body.byteLength);
    response.write(body.subarray(0, fault.after), () => {
      // Closed once the bytes are out: what is cut are those that follow.
      if (fault.kind === "drop") setTimeout(() => response.socket?.end(), 20);
    });
  }

  function hub(request: IncomingMessage, response: ServerResponse): void {
    const { pathname } = new URL(request.url ?? "/", "http://hub");
    const path = decodeURIComponent(pathname);
    const refused = () => {
      if (server.token === null || request.headers.authorization === `Bearer ${server.token}`) return false;
      response.writeHead(401, { "x-error-code": "RepoNotFound", "x-error-message": "Repository not found" }).end();
      return true;
    };
    const api = `/api/models/${id}/`;
    if (path.startsWith(`${api}revision/`)) {
      begin(request, "revision", null);
      if (answered(response, faultOf("revision", null)) || refused()) return;
      const revision = path.slice(`${api}revision/`.length);
      if (revision !== "main" && revision !== server.commit) {
        response.writeHead(404, { "x-error-code": "RevisionNotFound", "x-error-message": "Invalid rev id" }).end();
        return;
      }
      response.writeHead(200, { "content-type": "application/json" });
      response.end(JSON.stringify({ _id: "1", id, sha: server.commit, private: false, lastModified: "2024-01-01" }));
    } else if (path.startsWith(`${api}tree/`)) {
      begin(request, "tree", null);
      if (answered(response, faultOf("tree", null)) || refused()) return;
      const entries = [...held].map(([name, bytes]) => {
        const [size, hash] = [bytes.byteLength, blobHash(name, bytes)];
        const lfs = isLarge(name) ? { lfs: { oid: hash, size, pointerSize: 134 } } : {};
        return {
          type: "file",
          path: name,
          size,
          oid: isLarge(name) ? "0".repeat(40) : hash,
          ...lfs,
          ...claims.get(name),
        };
      });
      response.writeHead(200, { "content-type": "application/json" });
      response.end(JSON.stringify([...entries, { type: "directory", path: "onnx", size: 0, oid: "0".repeat(40) }]));
    } else if (path.startsWith(`/${id}/resolve/`)) {
      const name = path.slice(`/${id}/resolve/${server.commit}/`.length);
      begin(request, "resolve", name);
      if (answered(response, faultOf("resolve", name)) || refused()) return;
      const bytes = held.get(name);
      if (bytes === undefined) {
        response.writeHead(404, { "x-error-code": "EntryNotFound" }).end();
        return;
      }
      const etag = `"${blobHash(name, bytes)}"`;
      const large = {
        "x-linked-etag": etag,
        "x-linked-size": bytes.byteLength,
        location: `${origin(storage)}/${name}?signed`,
      };
      const small = { etag, location: `/api/resolve-cache/${name}` };
      response.writeHead(isLarge(name) ? 302 : 307, {
        "x-repo-commit": server.commit,
        ...(isLarge(name) ? large : small),
      });
      response.end();
    } else if (path.startsWith("/api/resolve-cache/")) {
      const name = path.slice("/api/resolve-cache/".length);
      const bytes = held.get(name) ?? new Uint8Array();
      sendBytes(response, begin(request, "bytes", name), bytes, blobHash(name, bytes));
    } else {
      response.writeHead(404, { "x-error-code": "RepoNotFound", "x-error-message": "Repository not found" }).end();
    }
  }

  const storage = await listen((request, response) => {
    const name = decodeURIComponent(new URL(request.url ?? "/", "http://storage").pathname.slice(1));
    // The storage has names of its own for versions, as a CDN does.
    sendBytes(response, begin(request, "bytes", name), held.get(name) ?? new Uint8Array(), `storage-${name}`);
  });
  const front = await listen(hub);
  const server: HubServer = {
    endpoint: origin(front),
    id,
    commit: COMMIT,
    files: held,
    requests,
    claims,
    token: null,
    fail: (route, fault, { times = 1, file } = {}) => void planned.push({ route, fault, file, left: times }),
    fetched: () => [...new Set(requests.flatMap(({ route, file }) => (route === "bytes" && file ? [file] : [])))],
    forget() {
      requests.length = 0;
      planned.length = 0;
    },
    async [Symbol.asyncDispose]() {
      for (const one of [front, storage]) {
        one.closeAllConnections();
        await new Promise((resolve) => one.close(resolve));
      }
    },
  };
  return server;
}

function origin(server: Server): string {
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

async function listen(answer: (request: IncomingMessage, response: ServerResponse) => void): Promise<Server> {
  const server = createServer(answer);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return server;
}

/** All files of a folder, by name. */
export async function filesIn(folder: string): Promise<Map<string, Uint8Array>> {
  const names = (await readdir(folder)).sort();
  return new Map(await Promise.all(names.map(async (name) => [name, await readFile(join(folder, name))] as const)));
}

/**
 * The files of a model folder, its weights in shards: the embedding and block 0 in the first, one block in each of the
 * others, what follows the blocks in the last.
 */
export async function shardedFiles(folder: string, layers: number): Promise<Map<string, Uint8Array>> {
  const files = await filesIn(folder);
  files.delete("model.safetensors");
  const shards: TensorData[][] = Array.from({ length: layers }, () => []);
  await using whole = await openSafetensors(join(folder, "model.safetensors"));
  for (const [name, { dtype, shape }] of whole.tensors) {
    const layer = /layers\.(\d+)\./.exec(name)?.[1];
    const at = layer === undefined ? (name.includes("embed_tokens") ? 0 : layers - 1) : Number(layer);
    shards[at]!.push({ name, dtype, shape, bytes: await whole.read(name) });
  }
  const weightMap: Record<string, string> = {};
  for (const [i, tensors] of shards.entries()) {
    const file = shardName(i, layers);
    const path = join(folder, `${file}.made`);
    await writeSafetensors(path, tensors);
    files.set(file, await readFile(path));
    for (const { name } of tensors) weightMap[name] = file;
  }
  files.set("model.safetensors.index.json", Buffer.from(JSON.stringify({ metadata: {}, weight_map: weightMap })));
  return files;
}

/** The name of shard `i`, counted from 0. */
export function shardName(i: number, shards: number): string {
  const digits = (n: number) => String(n).padStart(5, "0");
  return `model-${digits(i + 1)}-of-${digits(shards)}.safetensors`;
}
