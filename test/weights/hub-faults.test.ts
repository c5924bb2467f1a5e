/** What goes wrong between here and the hub: what is tried again, what is kept, what is never believed. */
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { mkdir, readdir, stat, writeFile } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { StratumError } from "../../errors.ts";
import type { HubModel } from "../../weights/hub.ts";
import { diskFull, onDisk } from "../../weights/hub-cache.ts";
import { failing } from "../support/failing.ts";
import { type HubPlace, hubPlace, LAYERS, tinyFiles } from "../support/hub.ts";
import { blobHash, COMMIT, type Fault, shardName } from "../support/hub-server.ts";

const SHARD = shardName(0, LAYERS);
const HTML: Fault = {
  kind: "answer",
  status: 200,
  headers: { "content-type": "text/html" },
  body: "<!doctype html><title>Sign in</title>",
};
const answer = (status: number, headers: Record<string, string> = {}): Fault => ({ kind: "answer", status, headers });

let files: ReadonlyMap<string, Uint8Array>;
let size = 0;
let place: HubPlace;
let model: HubModel;
beforeAll(async () => {
  files = await tinyFiles();
  size = files.get(SHARD)!.byteLength;
});
beforeEach(async () => {
  place = await hubPlace(files);
  model = await place.open();
  place.hub.forget();
});
afterEach(() => place[Symbol.asyncDispose]());

const blob = () => join(place.repository, "blobs", blobHash(SHARD, files.get(SHARD)!));
const partial = () => `${blob()}.stratum.incomplete`;
const bytesRequests = () => place.hub.requests.filter(({ route }) => route === "bytes");

function expectWhole(): void {
  expect(Buffer.compare(readFileSync(join(model.directory, SHARD)), files.get(SHARD)!)).toBe(0);
  expect(existsSync(partial())).toBe(false);
}

function expectNothingKept(): void {
  expect([existsSync(blob()), existsSync(partial()), existsSync(join(model.directory, SHARD))]).toEqual([
    false,
    false,
    false,
  ]);
}

describe("a connection that breaks", () => {
  it.each(["drop", "stall"] as const)("by a %s goes on where it was, in the same run", async (kind) => {
    place.hub.fail("bytes", { kind, after: 50_000 }, { times: 2 });
    await model.fetch([SHARD]);
    expectWhole();
    const [first, ...rest] = bytesRequests();
    expect(first!.range).toBeNull();
    expect(rest.map(({ range }) => range)).toEqual(["bytes=50000-", "bytes=100000-"]);
    // What has changed meanwhile is sent whole, and not put together with what was there.
    for (const { ifRange } of rest) expect(ifRange).toBe(`"storage-${SHARD}"`);
    expect(bytesRequests().reduce((sum, { sent }) => sum + sent, 0)).toBe(size);
  });

  it("for good keeps what there is, and a later run goes on from there", async () => {
    place.hub.fail("bytes", { kind: "drop", after: 70_000 });
    place.hub.fail("bytes", { kind: "drop", after: 0 }, { times: 20 });
    await expect(model.fetch([SHARD])).rejects.toThrow(failing("hub/interrupted", SHARD));
    // The first, and five tries without progress behind it.
    expect(bytesRequests()).toHaveLength(1 + 5);
    expect((await stat(partial())).size).toBe(70_000);
    expect(existsSync(join(model.directory, SHARD))).toBe(false);

    place.hub.forget();
    await (await place.open()).fetch([SHARD]);
    expectWhole();
    expect(bytesRequests()).toMatchObject([{ range: "bytes=70000-", sent: size - 70_000 }]);
  });

  it("as often as it likes is no error while every try gets further", async () => {
    place.hub.fail("bytes", { kind: "drop", after: 15_000 }, { times: 12 });
    await model.fetch([SHARD]);
    expectWhole();
    expect(bytesRequests()).toHaveLength(13);
  });

  it("and a server that knows no ranges: from the beginning, not glued together", async () => {
    place.hub.fail("bytes", { kind: "drop", after: 50_000 });
    place.hub.fail("bytes", { kind: "ignore-range" });
    await model.fetch([SHARD]);
    expectWhole();
    expect(bytesRequests().at(-1)).toMatchObject({ range: "bytes=50000-", sent: size });
  });

  it("and a server that sends another range is refused, what there is stays", async () => {
    place.hub.fail("bytes", { kind: "drop", after: 50_000 });
    place.hub.fail("bytes", { kind: "shift-range" });
    await expect(model.fetch([SHARD])).rejects.toThrow(failing("hub/bad-answer", "bytes 50001-"));
    expect((await stat(partial())).size).toBe(50_000);
  });
});

describe("bytes that are not the file's", () => {
  it("are an error, and removed", async () => {
    place.hub.fail("bytes", { kind: "wrong-bytes" });
    await expect(model.fetch([SHARD])).rejects.toThrow(failing("hub/damaged", SHARD, "SHA-256"));
    expectNothingKept();
  });

  it("of a small file are told by git's hash", async () => {
    place.hub.fail("bytes", { kind: "wrong-bytes" });
    await expect(model.fetch(["tokenizer_config.json"])).rejects.toThrow(failing("hub/damaged", "git SHA-1"));
    expect(await readdir(model.directory)).toEqual(["config.json"]);
  });

  it("in what an earlier run left cost only a second try", async () => {
    await mkdir(join(place.repository, "blobs"), { recursive: true });
    await writeFile(partial(), new Uint8Array(60_000));
    await model.fetch([SHARD]);
    expectWhole();
    expect(bytesRequests().map(({ range }) => range)).toEqual(["bytes=60000-", null]);
    expect(place.notes).toEqual([expect.stringMatching(`${SHARD}.*is damaged`)]);
  });

  it("past the file's end are thrown away", async () => {
    await mkdir(join(place.repository, "blobs"), { recursive: true });
    await writeFile(partial(), new Uint8Array(size + 1));
    await model.fetch([SHARD]);
    expectWhole();
    expect(bytesRequests()).toMatchObject([{ range: null }]);
  });

  it.each([
    ["a web page", HTML],
    ["a file of another length", answer(200, { "content-type": "application/octet-stream", "content-length": "0" })],
  ])("%s is told before a byte of what there is is lost", async (_, fault) => {
    await mkdir(join(place.repository, "blobs"), { recursive: true });
    await writeFile(partial(), files.get(SHARD)!.subarray(0, 1000));
    place.hub.fail("bytes", fault);
    await expect(model.fetch([SHARD])).rejects.toThrow(failing("hub/bad-answer", SHARD));
    expect((await stat(partial())).size).toBe(1000);
  });

  it("by the hub's own word on the way there are refused", async () => {
    const headers = { "x-linked-etag": `"${"a".repeat(64)}"`, location: "/api/resolve-cache/elsewhere" };
    place.hub.fail("resolve", answer(302, headers));
    place.hub.files.set("elsewhere", files.get(SHARD)!);
    await expect(model.fetch([SHARD])).rejects.toThrow(failing("hub/changed", "aaaa"));
  });
});

describe("what the hub answers", () => {
  it.each([
    [404, { "x-error-code": "RepoNotFound" }, "model/not-on-hub", "no folder org/tiny"],
    [401, { "x-error-code": "RepoNotFound", "x-error-message": "Repository not found" }, "model/not-on-hub", "401"],
    [401, { "x-error-message": "Invalid credentials in Authorization header" }, "model/no-access", "Invalid cred"],
    [401, { "x-error-code": "GatedRepo" }, "model/gated", "org/tiny"],
    [403, { "x-error-code": "GatedRepo" }, "model/gated", "403"],
    [403, {}, "model/no-access", "403"],
    [404, { "x-error-code": "RevisionNotFound" }, "model/no-revision", "org/tiny@main"],
    [400, {}, "hub/bad-answer", "400"],
  ])("%i %o is %s", async (status, headers, code, text) => {
    place.hub.fail("revision", answer(status, headers));
    await expect(place.open()).rejects.toThrow(failing(code, text));
    expect(place.hub.requests).toHaveLength(1);
  });

  it("who is locked out is told what to do", async () => {
    const gated = { times: 2 };
    place.hub.fail("revision", answer(403, { "x-error-code": "GatedRepo" }), gated);
    const page = `${place.hub.endpoint}/org/tiny`;
    const stranger = await place.open().catch((error: StratumError) => error);
    expect(stranger).toMatchObject({
      fix: `accept the licence on ${page}, and set HF_TOKEN to a token of that account`,
    });
    const known = await place.open(undefined, { token: "hf_x" }).catch((error: StratumError) => error);
    expect(known).toMatchObject({
      fix: expect.stringMatching(`accept the licence on ${page} with the account of the token`),
    });
  });

  it("a file that is not there is named", async () => {
    await expect(model.fetch(["tokenizer.json"])).rejects.toThrow(failing("model/not-in-repository", "tokenizer.json"));
    await expect(place.open("org/tiny@no-such")).rejects.toThrow(failing("model/no-revision", "org/tiny@no-such"));
    place.hub.fail("resolve", answer(404, { "x-error-code": "EntryNotFound" }));
    await expect(model.fetch([SHARD])).rejects.toThrow(failing("model/not-in-repository", SHARD));
  });

  it.each([
    [429, { "retry-after": "0" }],
    [500, {}],
    [503, {}],
  ])("%i passes when it is asked again", async (status, headers) => {
    place.hub.fail("revision", answer(status, headers), { times: 2 });
    place.hub.fail("tree", answer(status, headers));
    place.hub.fail("resolve", answer(status, headers));
    place.hub.fail("bytes", answer(status, headers));
    model = await place.open();
    await model.fetch([SHARD]);
    expectWhole();
  });

  it("too many requests: it waits as long as it is told, or says so where that is long", async () => {
    place.hub.fail("revision", answer(429, { "retry-after": "1" }));
    const begin = performance.now();
    await place.open();
    expect(performance.now() - begin).toBeGreaterThan(900);
    place.hub.fail("bytes", answer(429, { "retry-after": "3600" }));
    await expect(model.fetch([SHARD])).rejects.toThrow(failing("hub/rate-limited", "3600 s"));
  });

  it("a server that stays broken is an error, or the cache serves", async () => {
    place.hub.fail("bytes", answer(502), { times: 99 });
    await expect(model.fetch([SHARD])).rejects.toThrow(failing("hub/server-error", "502", SHARD));
    place.hub.fail("revision", answer(502), { times: 99 });
    expect((await place.open()).commit).toBe(COMMIT);
    expect(place.notes).toEqual([expect.stringMatching("502.*going on with what the cache holds")]);
  });

  it("a server that says nothing is given up", async () => {
    place.hub.fail("bytes", { kind: "stall", after: 0 }, { times: 99 });
    const impatient = await place.open(undefined, { timeoutMs: { metadata: 300, bytes: 30 } });
    await expect(impatient.fetch([SHARD])).rejects.toThrow(failing("hub/timeout", "0.03 s", SHARD));
    place.hub.fail(
      "tree",
      { kind: "answer", status: 200, body: "[", headers: { "content-length": "9" } },
      { times: 9 },
    );
    const other = await place.open(undefined, { timeoutMs: { metadata: 30, bytes: 300 } });
    await expect(other.fetch([SHARD])).rejects.toThrow(failing("hub/timeout", "0.03 s"));
  });

  it.each([
    ["a web page", "revision", HTML, "begins .*<!doctype"],
    ["no commit", "revision", { kind: "answer", status: 200, body: '{"sha": "../.."}' }, "names the commit"],
    ["null", "revision", { kind: "answer", status: 200, body: "null" }, "org/tiny@main"],
    ["a web page", "tree", HTML, "begins .*<!doctype"],
    ["no list", "tree", { kind: "answer", status: 200, body: '{"error": 1}' }, "iterable"],
    ["a list of nothing", "tree", { kind: "answer", status: 200, body: "[null]" }, "null"],
    [
      "more on another host",
      "tree",
      { kind: "answer", status: 200, body: "[]", headers: { link: '<http://evil.test/>; rel="next"' } },
      "evil.test",
    ],
  ] as const)("%s for the %s is refused", async (_, route, fault, text) => {
    place.hub.fail(route, fault as Fault);
    const asking = place.open().then((opened) => opened.fetch([SHARD]));
    await expect(asking).rejects.toThrow(failing("hub/bad-answer", text));
  });

  it("a header without a name is passed over", async () => {
    const body = '{"sha": "none"}';
    const head = ["HTTP/1.1 200  OK\rn: close", `content-length: ${body.length}`, "connection: close"];
    const server = createServer((socket) => {
      socket.once("data", () => socket.end(`${head.join("\r\n")}\r\n\r\n${body}`));
    });
    await once(server.listen(0, "127.0.0.1"), "listening");
    try {
      const endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
      const asked = await fetch(endpoint);
      expect([...asked.headers.keys()]).toContain("");
      await expect(place.open(undefined, { endpoint })).rejects.toThrow(failing("hub/bad-answer", "names the commit"));
    } finally {
      server.close();
    }
  });

  it("a listing that always names another page is refused", async () => {
    const { endpoint, id } = place.hub;
    const headers = { link: `<${endpoint}/api/models/${id}/tree/${COMMIT}>; rel="next"` };
    place.hub.fail("tree", { kind: "answer", status: 200, body: "[]", headers }, { times: 1e9 });
    const asking = place.open().then((opened) => opened.fetch([SHARD]));
    await expect(asking).rejects.toThrow(failing("hub/bad-answer", "200 pages"));
  });

  it.each([
    { path: "../../../etc/passwd" },
    { path: "a\\b" },
    { path: ".." },
    { path: "sub/file" },
    { size: -1, lfs: undefined },
    { size: 1e300, lfs: undefined },
    { size: 0.5, lfs: undefined },
    { lfs: { oid: "../../x", size: 1 } },
    { lfs: { oid: "a".repeat(64), size: 2 ** 60 } },
    { oid: 7, lfs: undefined },
  ])("a file described as %o is refused, and nothing is fetched", async (claim) => {
    place.hub.claims.set(SHARD, claim);
    model = await place.open();
    await expect(model.fetch(["tokenizer_config.json"])).rejects.toThrow(
      failing("hub/bad-answer", "describes a file as"),
    );
    expect(place.hub.fetched()).toEqual([]);
  });
});

describe("the token", () => {
  it("opens a private model, and goes to the hub alone", async () => {
    place.hub.token = "hf_secret";
    const member = await place.open(undefined, { token: "hf_secret" });
    await member.fetch([SHARD, "tokenizer_config.json"]);
    expectWhole();
    for (const { route, file, authorization } of place.hub.requests) {
      const storage = route === "bytes" && file === SHARD;
      expect(authorization, `${route} ${file}`).toBe(storage ? null : "Bearer hf_secret");
    }
    expect(place.hub.requests.filter(({ route }) => route === "bytes")).toHaveLength(2);
  });

  it("does not stand in an error", async () => {
    place.hub.fail("bytes", answer(403), { times: 99 });
    const member = await place.open(undefined, { token: "hf_secret" });
    const error = await member.fetch([SHARD]).catch((thrown: StratumError) => thrown);
    expect(error).toMatchObject({ code: "hub/server-error" });
    expect(`${error} ${(error as StratumError).fix}`).not.toMatch(/hf_secret|signed/);
  });

  it.each(["ftp://storage.test/x", "http://[", "/loop"])("redirects to %s are refused", async (location) => {
    place.hub.fail("resolve", answer(302, { location }), { times: 99 });
    const asking = model.fetch([SHARD]);
    await expect(asking).rejects.toThrow(failing(location === "/loop" ? "model/not-on-hub" : "hub/bad-answer", SHARD));
  });

  it("redirects in a circle end", async () => {
    place.hub.fail("resolve", answer(302, { location: `/org/tiny/resolve/${COMMIT}/${SHARD}` }), { times: 99 });
    await expect(model.fetch([SHARD])).rejects.toThrow(failing("hub/bad-answer", "more than 8 redirects"));
  });
});

describe("the disk", () => {
  it("that is full is an error that says what is kept", async () => {
    const full = Object.assign(new Error("ENOSPC: no space left on device, write"), {
      code: "ENOSPC",
      syscall: "write",
    });
    const writing = onDisk("x", () => Promise.reject(full));
    await expect(writing).rejects.toMatchObject({
      code: "hub/disk-full",
      cause: full,
      fix: expect.stringMatching("kept"),
    });
    expect(diskFull("x").kind).toBe("environment");
  });

  it("that is too small is told before the first byte", async () => {
    place.hub.claims.set(SHARD, { lfs: { oid: "a".repeat(64), size: 2 ** 44 } });
    model = await place.open();
    await expect(model.fetch([SHARD])).rejects.toThrow(failing("hub/disk-full", String(2 ** 44)));
    expect(bytesRequests()).toEqual([]);
  });

  it("that takes no folder is an error", async () => {
    await writeFile(join(place.cache, "file"), "");
    const opening = place.open(undefined, { cache: join(place.cache, "file") });
    await expect(opening).rejects.toThrow(failing("hub/cache-unwritable", "ENOTDIR"));
  });
});

it("a signal ends a download at once, and keeps what there is", async () => {
  place.hub.fail("bytes", { kind: "stall", after: 40_000 });
  const stop = new AbortController();
  const reason = new Error("stopped");
  const stopped = await place.open(
    undefined,
    { timeoutMs: { metadata: 300, bytes: 60_000 } },
    {
      signal: stop.signal,
      onProgress: ({ done }) => done >= 40_000 && stop.abort(reason),
    },
  );
  await expect(stopped.fetch([SHARD])).rejects.toBe(reason);
  expect((await stat(partial())).size).toBe(40_000);
  expect(await readdir(join(place.cache, ".locks", "models--org--tiny"))).toEqual([]);
});
