/** Where the hub and its cache are, and who asks: from the environment variables that Python's huggingface_hub reads. */
import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { StratumError } from "../errors.ts";
import { isSystemError, show, unreadable } from "./json.ts";

export interface HubSettings {
  /** Without a slash at its end. */
  readonly endpoint: string;
  /** The cache's folder, which holds one folder a repository. */
  readonly cache: string;
  /** Sent to the endpoint, and to no other host. */
  readonly token: string | null;
  /** No request is made. */
  readonly offline: boolean;
  /** Milliseconds without an answer after which a request for metadata, or for bytes, has failed. */
  readonly timeoutMs: { readonly metadata: number; readonly bytes: number };
}

type Environment = Readonly<Record<string, string | undefined>>;

const ENDPOINT = "https://huggingface.co";
const TIMEOUT_SECONDS = 30;

/**
 * Reads the settings.
 * @throws {StratumError} `usage/hub-settings`, `file/unreadable` for a token file that is there
 */
export async function hubSettings(env: Environment = process.env): Promise<HubSettings> {
  return {
    endpoint: endpointOf(env),
    cache: cacheFolder(env),
    token: await tokenOf(env),
    offline: isTrue(env["HF_HUB_OFFLINE"]) || isTrue(env["TRANSFORMERS_OFFLINE"]),
    timeoutMs: { metadata: timeoutMs(env, "HF_HUB_ETAG_TIMEOUT"), bytes: timeoutMs(env, "HF_HUB_DOWNLOAD_TIMEOUT") },
  };
}

/** A variable's value; an empty one counts as none, `~` is the home folder. */
function pathOf(env: Environment, name: string): string | undefined {
  const value = env[name];
  return value?.replace(/^~(?=$|[/\\])/, homedir()) || undefined;
}

function homeFolder(env: Environment): string {
  const caches = pathOf(env, "XDG_CACHE_HOME") ?? join(homedir(), ".cache");
  return pathOf(env, "HF_HOME") ?? join(caches, "huggingface");
}

function cacheFolder(env: Environment): string {
  return pathOf(env, "HF_HUB_CACHE") ?? pathOf(env, "HUGGINGFACE_HUB_CACHE") ?? join(homeFolder(env), "hub");
}

async function tokenOf(env: Environment): Promise<string | null> {
  if (isTrue(env["HF_HUB_DISABLE_IMPLICIT_TOKEN"])) return null;
  const given = cleanToken(env["HF_TOKEN"]) ?? cleanToken(env["HUGGING_FACE_HUB_TOKEN"]);
  if (given !== null) return given;
  const path = pathOf(env, "HF_TOKEN_PATH") ?? join(homeFolder(env), "token");
  try {
    return cleanToken(await readFile(path, "utf8"));
  } catch (cause) {
    if (isSystemError(cause, "ENOENT", "ENOTDIR")) return null;
    throw unreadable(path, cause);
  }
}

function cleanToken(value: string | undefined): string | null {
  const token = value?.trim();
  if (!token) return null;
  if (/^[\x21-\x7e]+$/.test(token)) return token;
  throw new StratumError(
    "usage/hub-settings",
    "the Hugging Face token holds characters that no token has",
    "check HF_TOKEN, or the token file that HF_TOKEN_PATH names",
  );
}

function endpointOf(env: Environment): string {
  const given = env["HF_ENDPOINT"] || ENDPOINT;
  const url = URL.canParse(given) ? new URL(given) : null;
  if (url !== null && /^https?:$/.test(url.protocol) && !url.search && !url.hash && !url.username) {
    return given.replace(/\/+$/, "");
  }
  throw new StratumError(
    "usage/hub-settings",
    `HF_ENDPOINT is ${show(given)}`,
    `set it to a URL such as ${ENDPOINT}, or leave it out`,
  );
}

function timeoutMs(env: Environment, name: string): number {
  const given = env[name];
  const seconds = given === undefined || given.trim() === "" ? TIMEOUT_SECONDS : Number(given);
  // 2^31 ms is as long as a timer can be.
  if (seconds > 0 && seconds <= 2e6) return 1000 * seconds;
  throw new StratumError("usage/hub-settings", `${name} is ${show(given)}`, "set it to a number of seconds");
}

function isTrue(value: string | undefined): boolean {
  return /^(1|on|yes|true)$/i.test(value ?? "");
}
