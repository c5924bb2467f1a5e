/**
 * Requests to the hub: with a limit on silence, redirects that never carry the token to another host, and every way of
 * failing as an error that says what to do.
 */
import { messageOf, StratumError } from "../errors.ts";
import type { HubSettings } from "./hub-settings.ts";
import { clip, isSystemError, show } from "./json.ts";

/** What all requests of one model share. */
export interface HubClient extends Pick<HubSettings, "endpoint" | "token" | "timeoutMs"> {
  /** The model's id, for messages. */
  readonly id: string;
  /** Tries after a failure that may pass, without progress in between. */
  readonly retries: { readonly metadata: number; readonly bytes: number };
  /** Milliseconds before the first of them; doubled for each. */
  readonly backoffMs: number;
  readonly onNote: (text: string) => void;
  readonly signal?: AbortSignal | undefined;
}

export interface HubAnswer {
  readonly status: number;
  readonly headers: Headers;
  /** A header of the hub's own answers, where the last one is of another host; of several, the first one's. */
  readonly hubHeader: (name: string) => string | null;
  /** Throws `hub/timeout`, `hub/interrupted`, `hub/unreachable`. */
  readonly body: AsyncIterable<Uint8Array>;
  /** Ends the connection where the body was not read to its end. */
  close(): void;
}

const MAX_REDIRECTS = 8;
const MAX_JSON_BYTES = 2 ** 26;
/** A wait that the hub asks for is kept up to this; a longer one is an error. */
const MAX_WAIT_MS = 60_000;

const TRANSIENT: ReadonlySet<string> = new Set([
  "hub/unreachable",
  "hub/timeout",
  "hub/interrupted",
  "hub/server-error",
  "hub/rate-limited",
]);

/** What the hub said about when to try again. */
const retryAfter = new WeakMap<StratumError, number>();

/** Whether the hub could not be asked, or was too busy to answer: it said nothing about the model. */
export function isTransient(thrown: unknown): thrown is StratumError {
  return thrown instanceof StratumError && TRANSIENT.has(thrown.code);
}

/**
 * Calls `attempt` until it succeeds, fails for good, or fails `retries` times in a row without progress.
 * @param progress a number that grows when an attempt gets further than all before it
 */
export async function retrying<T>(
  client: HubClient,
  retries: number,
  attempt: () => Promise<T>,
  progress: () => number = () => 0,
): Promise<T> {
  let reached = progress();
  for (let failures = 0; ; ) {
    try {
      return await attempt();
    } catch (thrown) {
      client.signal?.throwIfAborted();
      if (!isTransient(thrown)) throw thrown;
      if (progress() > reached) failures = 0;
      reached = Math.max(reached, progress());
      if (++failures > retries) throw thrown;
      const asked = retryAfter.get(thrown);
      if (asked !== undefined && asked > MAX_WAIT_MS) throw thrown;
      await pause(asked ?? client.backoffMs * 2 ** (failures - 1), client.signal);
    }
  }
}

async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  await new Promise<void>((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", done);
  });
  signal?.throwIfAborted();
}

interface RequestOptions {
  readonly method?: string | undefined;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | undefined;
  readonly timeoutMs: number;
  /** What is asked for, in messages. */
  readonly what: string;
}

/**
 * One request, redirects followed. Answers other than 200 and 206 are thrown.
 * @throws {StratumError} `hub/...`, `model/...` for what the hub says about the model; the signal's reason
 */
export async function request(client: HubClient, address: string, options: RequestOptions): Promise<HubAnswer> {
  const { timeoutMs, what } = options;
  const own = new URL(client.endpoint);
  const silence = new AbortController();
  const give = () => silence.abort(client.signal?.reason);
  client.signal?.throwIfAborted();
  client.signal?.addEventListener("abort", give);
  let timer: NodeJS.Timeout | undefined;
  let url = new URL(address);
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(timedOut(url, timeoutMs, what)), timeoutMs);
  };
  const end = () => {
    clearTimeout(timer);
    client.signal?.removeEventListener("abort", give);
    silence.abort();
  };
  /** Whatever failed, as an error of ours. */
  const failed = (thrown: unknown): unknown => {
    if (client.signal?.aborted) return client.signal.reason;
    return silence.signal.reason instanceof StratumError ? silence.signal.reason : networkError(url, thrown, what);
  };
  const hubHeaders: Headers[] = [];
  const hubHeader = (name: string) =>
    hubHeaders.map((headers) => headers.get(name)).find((value) => value !== null) ?? null;
  try {
    for (let hops = 0; ; hops++) {
      heard();
      const mine = url.origin === own.origin;
      const response = await fetch(url, {
        method: options.method ?? "GET",
        headers: {
          ...options.headers,
          "user-agent": "stratum-rank",
          // Lengths and ranges are those of the file, not of what a server makes of it.
          "accept-encoding": "identity",
          ...(mine && client.token !== null ? { authorization: `Bearer ${client.token}` } : {}),
        },
        ...(options.body === undefined ? {} : { body: options.body }),
        redirect: "manual",
        signal: silence.signal,
      }).catch((thrown: unknown) => {
        throw failed(thrown);
      });
      if (mine) hubHeaders.push(response.headers);
      const to = [301, 302, 303, 307, 308].includes(response.status) ? response.headers.get("location") : null;
      if (to !== null) {
        await response.body?.cancel().catch(() => undefined);
        url = redirected(url, to, hops, what);
        continue;
      }
      if (response.status !== 200 && response.status !== 206) throw statusError(client, response, mine, what);
      clearTimeout(timer);
      const body = bytesOf(response, heard, () => clearTimeout(timer), failed);
      return { status: response.status, headers: response.headers, hubHeader, body, close: end };
    }
  } catch (thrown) {
    end();
    throw thrown;
  }
}

async function* bytesOf(
  response: Response,
  heard: () => void,
  pause: () => void,
  failed: (thrown: unknown) => unknown,
): AsyncGenerator<Uint8Array, void, undefined> {
  const reader = response.body?.getReader();
  while (reader !== undefined) {
    heard();
    const { done, value } = await reader
      .read()
      .catch((thrown: unknown) => {
        throw failed(thrown);
      })
      .finally(pause);
    if (done) return;
    yield value;
  }
}

function redirected(from: URL, to: string, hops: number, what: string): URL {
  const fix = "try again later; HF_ENDPOINT must name a hub, or a mirror of it";
  const url = URL.canParse(to, from.href) ? new URL(to, from) : null;
  if (url === null || !/^https?:$/.test(url.protocol) || (from.protocol === "https:" && url.protocol !== "https:")) {
    throw new StratumError("hub/bad-answer", `${from.host} redirects ${what} to ${show(clip(to))}`, fix);
  }
  if (hops < MAX_REDIRECTS) return url;
  throw new StratumError(
    "hub/bad-answer",
    `${what}: more than ${MAX_REDIRECTS} redirects, the last to ${url.host}`,
    fix,
  );
}

/** A `fetch` for the hub package, which asks for JSON alone. */
export function jsonFetch(client: HubClient, what: string): typeof fetch {
  return async (input, init) => {
    const address = input instanceof Request ? input.url : String(input);
    // The next page of a listing is an address that the answer names.
    if (new URL(address).origin !== new URL(client.endpoint).origin) {
      throw badAnswer(client, what, `it names ${new URL(address).host} for the rest`);
    }
    const headers = Object.fromEntries(new Headers(init?.headers));
    const body = typeof init?.body === "string" ? init.body : undefined;
    const asked = { method: init?.method, headers, body, timeoutMs: client.timeoutMs.metadata, what };
    return retrying(client, client.retries.metadata, async () => {
      const answer = await request(client, address, asked);
      const bytes = await readAll(answer, MAX_JSON_BYTES);
      if (bytes === null) throw badAnswer(client, what, `it is longer than ${MAX_JSON_BYTES} bytes`);
      const text = bytes.toString("utf8");
      try {
        JSON.parse(text);
      } catch {
        const type = answer.headers.get("content-type") ?? "of no type";
        throw badAnswer(client, what, `it is no JSON (${clip(type)}), and begins ${show(text.slice(0, 60))}`);
      }
      // Where the rest of a listing is; other headers may be none that a Response takes.
      const link = answer.headers.get("link");
      return new Response(text, { headers: link === null ? {} : { link } });
    });
  };
}

/** An answer's whole body; null where it is longer than `most`. */
export async function readAll(answer: HubAnswer, most: number): Promise<Buffer | null> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  try {
    for await (const chunk of answer.body) {
      size += chunk.byteLength;
      if (size > most) return null;
      chunks.push(chunk);
    }
  } finally {
    answer.close();
  }
  return Buffer.concat(chunks);
}

/** `hub/bad-answer`: the hub, or what stands before it, answers with something else. */
export function badAnswer(client: HubClient, what: string, how: string, cause?: unknown): StratumError {
  return new StratumError(
    "hub/bad-answer",
    `the answer of ${new URL(client.endpoint).host} for ${what} cannot be used: ${how}`,
    "try again later; a proxy or a login page in between, or an HF_ENDPOINT that is no hub, looks like this too",
    cause,
  );
}

function timedOut(url: URL, timeoutMs: number, what: string): StratumError {
  return new StratumError(
    "hub/timeout",
    `${url.host} has been silent for ${timeoutMs / 1000} s (${what})`,
    "check the network and run again: a download goes on where it stopped; HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT set the seconds",
  );
}

function networkError(url: URL, thrown: unknown, what: string): unknown {
  if (thrown instanceof StratumError) return thrown;
  const cause = thrown instanceof Error && thrown.cause instanceof Error ? thrown.cause : thrown;
  const how = messageOf(cause) || (cause instanceof Error && "code" in cause ? String(cause.code) : "no reason given");
  if (isSystemError(cause, "UND_ERR_SOCKET", "ECONNRESET", "EPIPE", "UND_ERR_BODY_TIMEOUT")) {
    return new StratumError(
      "hub/interrupted",
      `the connection to ${url.host} broke off (${what}): ${how}`,
      "check the network and run again: a download goes on where it stopped",
      thrown,
    );
  }
  return new StratumError(
    "hub/unreachable",
    `${url.host} cannot be reached (${what}): ${how}`,
    "check the network and HF_ENDPOINT (behind a proxy: Node 24 or later with NODE_USE_ENV_PROXY=1), or give --model a folder; HF_HUB_OFFLINE=1 uses the cache alone",
    thrown,
  );
}

/** What an answer's status means; the hub names the reason in headers of its own. */
function statusError(client: HubClient, response: Response, mine: boolean, what: string): StratumError {
  const { status, headers } = response;
  const said = headers.get("x-error-message");
  const host = new URL(response.url || client.endpoint).host;
  const message = `${host} answers ${status} for ${what}${said ? `: ${clip(said)}` : ""}`;
  if (status === 429) return rateLimited(message, headers);
  const reason = headers.get("x-error-code");
  // A storage host answers 403 once its signed address has expired: the hub gives a new one.
  if (!mine || status >= 500 || status === 408) {
    return new StratumError("hub/server-error", message, "try again later: a download goes on where it stopped");
  }
  const page = `${client.endpoint}/${client.id}`;
  if (reason === "GatedRepo") {
    const fix =
      client.token === null
        ? `accept the licence on ${page}, and set HF_TOKEN to a token of that account`
        : `accept the licence on ${page} with the account of the token that is used`;
    return new StratumError("model/gated", `${client.id} is gated: ${message}`, fix);
  }
  if (reason === "RevisionNotFound") {
    const fix = `see the branches and tags on ${page}/tree/main; --model NAME@REVISION names one`;
    return new StratumError("model/no-revision", message, fix);
  }
  if (reason === "EntryNotFound") {
    return new StratumError("model/not-in-repository", message, `see ${page}/tree/main for what is there`);
  }
  const refused = status === 403 || (status === 401 && /credentials|token/i.test(said ?? ""));
  if (refused) {
    const fix =
      client.token === null
        ? `if ${client.id} is private or gated: ask for access on ${page}, and set HF_TOKEN`
        : "check HF_TOKEN (or the token file): it may have expired, or lack the right to read this model";
    return new StratumError("model/no-access", `no access to ${client.id}: ${message}`, fix);
  }
  // To a stranger the hub answers 401 for private models and for those that do not exist.
  if (status === 401 || status === 404) {
    return new StratumError(
      "model/not-on-hub",
      `there is no folder ${client.id} here, and ${message}`,
      `check the name, or give the path of a folder; if the model is private, ${client.token === null ? "set HF_TOKEN" : "use a token that may read it"}`,
    );
  }
  return new StratumError("hub/bad-answer", message, "try again later; HF_ENDPOINT must name a hub, or a mirror of it");
}

function rateLimited(message: string, headers: Headers): StratumError {
  const asked = headers.get("retry-after") ?? "";
  const seconds = /^\d+$/.test(asked) ? Number(asked) : Math.ceil((Date.parse(asked) - Date.now()) / 1000);
  const known = Number.isFinite(seconds) && seconds >= 0;
  const error = new StratumError(
    "hub/rate-limited",
    `too many requests: ${message}${known ? `; it asks to wait ${seconds} s` : ""}`,
    "wait and run again (a download goes on where it stopped); with HF_TOKEN set the limits are higher",
  );
  if (known) retryAfter.set(error, 1000 * seconds);
  return error;
}
