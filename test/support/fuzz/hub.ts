/**
 * What a hub answers, down to the bytes of HTTP: a listing, a commit, the header of a shard, and redirects. Whatever comes
 * is understood or refused; names stay in their folder, and the token with its host.
 */
import { createServer, type Server } from "node:net";
import fc from "fast-check";
import { type HubClient, request } from "../../../weights/hub-http.ts";
import { filesOf, type HubFile, resolveCommit } from "../../../weights/hub-metadata.ts";
import { isCommit } from "../../../weights/hub-name.ts";
import { remoteTensors } from "../../../weights/hub-tensors.ts";
import { type FuzzTarget, fuzzTarget, type Outcome, outcomeOf } from "./harness.ts";
import { changedJsonText, damaged } from "./mutations.ts";

const TOKEN = "hf_secret";
const COMMIT = "0123456789abcdef0123456789abcdef01234567";

interface Host {
  readonly origin: string;
  /** What it was asked, head by head. */
  readonly heads: string[];
  /** Answers to the next requests; the last one stays. */
  answers: readonly Uint8Array[];
}

/** A server that says what it is told to say, then hangs up. */
async function startHost(): Promise<Host> {
  const heads: string[] = [];
  const server: Server = createServer((socket) => {
    let head = "";
    socket.on("error", () => undefined);
    socket.on("data", (bytes) => {
      head += bytes.toString("latin1");
      if (!head.includes("\r\n\r\n")) return;
      heads.push(head);
      const answer = host.answers[Math.min(heads.length, host.answers.length) - 1] ?? new Uint8Array();
      head = "";
      socket.end(answer);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  server.unref();
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port");
  const host: Host = { origin: `http://127.0.0.1:${address.port}`, heads, answers: [] };
  return host;
}

const hub = await startHost();
const other = await startHost();
const client: HubClient = {
  ...{ id: "org/tiny", endpoint: hub.origin, token: TOKEN, backoffMs: 1, onNote: () => undefined },
  ...{ timeoutMs: { metadata: 2000, bytes: 2000 }, retries: { metadata: 0, bytes: 0 } },
};

async function asked<T>(answers: readonly Uint8Array[], ask: () => Promise<T>, check: (value: T) => void) {
  hub.heads.length = 0;
  other.heads.length = 0;
  hub.answers = answers;
  const outcome: Outcome = await outcomeOf(async () => check(await ask()));
  const told = other.heads.find((head) => head.includes(TOKEN));
  if (told !== undefined) throw new Error(`the token went elsewhere: ${told}`);
  return outcome;
}

/** Bytes of an answer of HTTP. */
function http(body: Uint8Array | string, head = "200 OK", ...headers: readonly string[]): Buffer {
  const bytes = Buffer.from(body);
  const lines = [`HTTP/1.1 ${head}`, "connection: close", `content-length: ${bytes.length}`, ...headers];
  return Buffer.concat([Buffer.from(`${lines.join("\r\n")}\r\n\r\n`), bytes]);
}

const JSON_TYPE = "content-type: application/json";
const INFO = { _id: "1", id: "org/tiny", sha: COMMIT, private: false, lastModified: "2024-01-01" };
const TREE = [
  { type: "file", path: "config.json", size: 10, oid: COMMIT },
  {
    ...{ type: "file", path: "model.safetensors", size: 300, oid: COMMIT },
    lfs: { oid: "ab".repeat(32), size: 300, pointerSize: 134 },
  },
  { type: "directory", path: "onnx", size: 0, oid: COMMIT },
];
const KEYS = ["sha", "type", "path", "size", "oid", "lfs", "error"];
const PLACES = ["../config.json", "a/b", "a\\b", "C:x", "..", "\u0000", "ab".repeat(32), 2 ** 44 + 1, "directory"];

const json = (documents: readonly unknown[]) =>
  changedJsonText(documents, KEYS, PLACES).map((text) => http(text, "200 OK", JSON_TYPE));

/** Of a listing that names another page, and that again. */
const pages = fc
  .tuple(fc.constantFrom(`${hub.origin}/x`, `${other.origin}/x`, "/x", "file:///etc/passwd", ""), fc.nat(3))
  .map(([next, from]) => http(JSON.stringify(TREE.slice(from)), "200 OK", JSON_TYPE, `link: <${next}>; rel="next"`));

function checkFiles(files: ReadonlyMap<string, HubFile>): void {
  for (const [name, { size, hash, algorithm }] of files) {
    const digits = algorithm === "sha256" ? 64 : 40;
    if (/[/\\:\p{Cc}]/u.test(name) || [".", "..", ""].includes(name)) throw new Error(`the name ${name}`);
    if (!Number.isSafeInteger(size) || size < 0 || !new RegExp(`^[0-9a-f]{${digits}}$`).test(hash))
      throw new Error(`${name}: ${size} ${hash}`);
  }
}

const HEADER = Buffer.from(
  JSON.stringify({
    a: { dtype: "F32", shape: [2, 3], data_offsets: [0, 24] },
    b: { dtype: "BF16", shape: [4], data_offsets: [24, 32] },
  }),
);
const SHARD = Buffer.alloc(8 + HEADER.length + 32);
SHARD.writeBigUInt64LE(BigInt(HEADER.length));
HEADER.copy(SHARD, 8);
const ranged = (bytes: Uint8Array, range: string) =>
  http(bytes, "206 Partial Content", `content-range: bytes ${range}/${SHARD.length}`);
const WHOLE = `0-${SHARD.length - 1}`;

/** To another host, to itself, to what is no place, and on and on. */
const PLACES_OF_REDIRECTS = [
  other.origin,
  `${other.origin}/x`,
  `//127.0.0.1:${new URL(other.origin).port}/x`,
  `http://${TOKEN}@127.0.0.1:${new URL(other.origin).port}/`,
  "/again",
  "again",
  "",
  "file:///etc/passwd",
  "data:text/plain,x",
  "javascript:0",
  "http://",
  "http://127.0.0.1:1/",
  "http://[::1/",
  "\\\\host\\x",
];
const redirects = fc.array(
  fc
    .tuple(fc.constantFrom(301, 302, 303, 307, 308), fc.constantFrom(...PLACES_OF_REDIRECTS))
    .map(([status, place]) => http("", `${status} Elsewhere`, `location: ${place}`)),
  { minLength: 1, maxLength: 10 },
);

const STATUSES = [200, 204, 301, 400, 401, 403, 404, 408, 416, 429, 500, 503, 999];
const refusals = fc
  .record({
    status: fc.constantFrom(...STATUSES),
    code: fc.constantFrom("GatedRepo", "RevisionNotFound", "EntryNotFound", "RepoNotFound", "", "\u001b[2J"),
    said: fc.constantFrom("no", "bad credentials", "x".repeat(10_000), "\u009b31m"),
    after: fc.constantFrom("0", "61", "1e9", "-1", "Wed, 21 Oct 2015 07:28:00 GMT", "soon", "9".repeat(400)),
  })
  .map(({ status, code, said, after }) =>
    http("", `${status} Said`, `x-error-code: ${code}`, `x-error-message: ${said}`, `retry-after: ${after}`),
  );

export const HUB_TARGETS: readonly FuzzTarget[] = [
  fuzzTarget(
    "a hub's answer for a revision: changed, and damaged",
    400,
    ["ok", "hub/bad-answer"],
    fc.oneof(json([INFO]), damaged([http(JSON.stringify(INFO), "200 OK", JSON_TYPE)])),
    (answer) =>
      asked(
        [answer],
        () => resolveCommit(client, "main"),
        (commit) => {
          if (!isCommit(commit)) throw new Error(commit);
        },
      ),
  ),
  fuzzTarget(
    "a hub's listing: changed, damaged, and without end",
    400,
    ["ok", "hub/bad-answer"],
    fc.oneof(
      { weight: 8, arbitrary: json([TREE]) },
      { weight: 8, arbitrary: damaged([http(JSON.stringify(TREE), "200 OK", JSON_TYPE)]) },
      { weight: 1, arbitrary: pages },
    ),
    (answer) => asked([answer], () => filesOf(client, COMMIT), checkFiles),
  ),
  fuzzTarget(
    "a hub's answer for a shard's header: damaged",
    400,
    ["ok", "hub/bad-answer", "hub/interrupted", "safetensors/header-json"],
    fc.oneof(
      damaged([SHARD]).map((bytes) => ranged(bytes, `0-${bytes.length - 1}`)),
      damaged([ranged(SHARD, WHOLE)]),
    ),
    (answer) => {
      const length = answer.length - Buffer.from(answer).indexOf("\r\n\r\n") - 4;
      const file: HubFile = { name: "m.safetensors", size: length, algorithm: "sha256", hash: "ab".repeat(32) };
      return asked(
        [answer],
        () => remoteTensors(client, file, `${hub.origin}/m.safetensors`),
        (tensors) => {
          for (const { name, fileOffset, byteLength } of tensors.values())
            if (fileOffset + byteLength > length) throw new Error(`${name} ends behind the file`);
        },
      );
    },
  ),
  fuzzTarget(
    "a hub's redirects: elsewhere, nowhere, in circles",
    400,
    ["ok", "hub/bad-answer", "hub/unreachable"],
    redirects,
    (answers) => {
      other.answers = [http("there")];
      const ask = () => request(client, `${hub.origin}/file`, { what: "a file", timeoutMs: 2000 });
      return asked([...answers, http("here")], ask, (answer) => answer.close());
    },
  ),
  fuzzTarget(
    "a hub's refusals: every status and reason",
    300,
    ["model/gated", "model/no-revision", "model/not-on-hub", "hub/rate-limited", "hub/server-error", "hub/bad-answer"],
    refusals,
    (answer) => {
      const ask = () => resolveCommit({ ...client, retries: { metadata: 1, bytes: 1 } }, "main");
      return asked([answer], ask, () => undefined);
    },
  ),
];
