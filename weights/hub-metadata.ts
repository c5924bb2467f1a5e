/** What the hub says about a model: the commit of a revision, and the files of a commit with their sizes and hashes. */
import { messageOf, StratumError } from "../errors.ts";
import { badAnswer, type HubClient, jsonFetch } from "./hub-http.ts";
import { isCommit } from "./hub-name.ts";
import { isJsonObject, show } from "./json.ts";

export interface HubFile {
  readonly name: string;
  readonly size: number;
  /** Large files are known by their SHA-256, others by git's SHA-1 of a blob. */
  readonly algorithm: "sha256" | "git-sha1";
  /** In hex: the blob's name in the cache. */
  readonly hash: string;
}

/** The largest file that is believed: 16 TiB. */
const MAX_FILE_BYTES = 2 ** 44;
/** A listing past this is no model's. */
const MAX_FILES = 100_000;
/** A listing has up to a thousand files a page; one that always names another page would go on for ever. */
const MAX_PAGES = 200;

/**
 * The commit that a revision names now.
 * @throws {StratumError} `model/not-on-hub`, `model/no-revision`, `model/gated`, `model/no-access`, `hub/...`
 */
export async function resolveCommit(client: HubClient, revision: string): Promise<string> {
  const what = `${client.id}@${revision}`;
  const { modelInfo } = await import("@huggingface/hub");
  const info = await understood(client, what, () =>
    modelInfo({
      name: client.id,
      revision,
      hubUrl: client.endpoint,
      additionalFields: ["sha"],
      fetch: jsonFetch(client, what),
    }),
  );
  const sha: unknown = info.sha;
  if (typeof sha === "string" && isCommit(sha)) return sha;
  throw badAnswer(client, what, `it names the commit ${show(sha)}`);
}

/**
 * The files of a commit, without those in folders.
 * @throws {StratumError} as {@link resolveCommit}
 */
export async function filesOf(client: HubClient, commit: string): Promise<ReadonlyMap<string, HubFile>> {
  const what = `the files of ${client.id}@${commit}`;
  const { listFiles } = await import("@huggingface/hub");
  return understood(client, what, async () => {
    const files = new Map<string, HubFile>();
    const repo = { type: "model", name: client.id } as const;
    const ask = jsonFetch(client, what);
    let [seen, pages] = [0, 0];
    const fetch: typeof ask = (...asked) => {
      if (++pages > MAX_PAGES) throw badAnswer(client, what, `it goes on for more than ${MAX_PAGES} pages`);
      return ask(...asked);
    };
    for await (const entry of listFiles({ repo, revision: commit, hubUrl: client.endpoint, fetch })) {
      if (++seen > MAX_FILES) throw badAnswer(client, what, `it names more than ${MAX_FILES} files`);
      const value: unknown = entry;
      if (!isJsonObject(value)) throw badAnswer(client, what, `it holds ${show(value)} where a file should stand`);
      if (value["type"] === "directory") continue;
      const file = fileOf(value);
      if (file === null) throw badAnswer(client, what, `it describes a file as ${show(value)}`);
      files.set(file.name, file);
    }
    return files;
  });
}

/** The package trusts what it parses: what it stumbles over is the answer's fault. */
async function understood<T>(client: HubClient, what: string, ask: () => Promise<T>): Promise<T> {
  try {
    return await ask();
  } catch (cause) {
    if (cause instanceof StratumError || client.signal?.aborted) throw cause;
    throw badAnswer(client, what, messageOf(cause), cause);
  }
}

function fileOf(value: Readonly<Record<string, unknown>>): HubFile | null {
  const { path, oid } = value;
  const lfs = isJsonObject(value["lfs"]) ? value["lfs"] : null;
  const size = lfs?.["size"] ?? value["size"];
  if (typeof path !== "string" || !isPlainName(path)) return null;
  if (typeof size !== "number" || !Number.isSafeInteger(size) || size < 0 || size > MAX_FILE_BYTES) return null;
  const hash = lfs === null ? oid : lfs["oid"];
  const algorithm = lfs === null ? "git-sha1" : "sha256";
  const digits = lfs === null ? 40 : 64;
  if (typeof hash !== "string" || hash.length !== digits || !/^[0-9a-f]+$/.test(hash)) return null;
  return { name: path, size, algorithm, hash };
}

/** A name that stays within its folder on every system. */
function isPlainName(name: string): boolean {
  return /^[^/\\:\p{Cc}]+$/u.test(name) && name !== "." && name !== ".." && name.length <= 255;
}
