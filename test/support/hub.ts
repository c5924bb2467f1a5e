/** A hub and an empty cache for one test. */
import { readdir, readlink } from "node:fs/promises";
import { join } from "node:path";
import { type HubModel, type HubOptions, openHubModel } from "../../weights/hub.ts";
import { parseHubName } from "../../weights/hub-name.ts";
import type { HubSettings } from "../../weights/hub-settings.ts";
import { temporaryFolder } from "./cli.ts";
import { COMMIT, type HubServer, shardedFiles, startHub } from "./hub-server.ts";
import { writeTinyModel } from "./tiny-model.ts";

export const LAYERS = 3;

export interface HubPlace extends AsyncDisposable {
  readonly hub: HubServer;
  readonly cache: string;
  /** The model's folder in the cache. */
  readonly repository: string;
  /** What was told. */
  readonly notes: string[];
  settings(changes?: Partial<HubSettings>): HubSettings;
  /** Opens the model with short waits. */
  open(name?: string, changes?: Partial<HubSettings>, options?: HubOptions): Promise<HubModel>;
  /** The links of the cache's snapshot, and what they lead to. */
  links(): Promise<Record<string, string>>;
}

/** Files of a sharded Llama of three layers, made once a test file. */
export async function tinyFiles(): Promise<ReadonlyMap<string, Uint8Array>> {
  await using tiny = await writeTinyModel({ layers: LAYERS });
  const files = await shardedFiles(tiny.directory, LAYERS);
  files.set("README.md", Buffer.from("# A tiny model\n"));
  files.set("pytorch_model.bin", Buffer.from("PK"));
  files.set("tokenizer_config.json", Buffer.from("{}"));
  return files;
}

export async function hubPlace(files: ReadonlyMap<string, Uint8Array>): Promise<HubPlace> {
  const hub = await startHub(files);
  const folder = await temporaryFolder();
  const cache = join(folder.path, "hub");
  const repository = join(cache, "models--org--tiny");
  const notes: string[] = [];
  const settings = (changes: Partial<HubSettings> = {}): HubSettings => ({
    endpoint: hub.endpoint,
    cache,
    token: null,
    offline: false,
    timeoutMs: { metadata: 300, bytes: 300 },
    ...changes,
  });
  return {
    hub,
    cache,
    repository,
    notes,
    settings,
    open: (name = hub.id, changes = {}, options = {}) =>
      openHubModel(parseHubName(name)!, {
        ...{ settings: settings(changes), backoffMs: 1, onNote: (text) => notes.push(text) },
        ...options,
      }),
    async links() {
      const snapshot = join(repository, "snapshots", COMMIT);
      const names = (await readdir(snapshot)).sort();
      return Object.fromEntries(
        await Promise.all(names.map(async (name) => [name, await readlink(join(snapshot, name))])),
      );
    },
    async [Symbol.asyncDispose]() {
      await hub[Symbol.asyncDispose]();
      await folder[Symbol.asyncDispose]();
    },
  };
}
