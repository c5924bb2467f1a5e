/**
 * What tuners have found, in one file of the cache folder. An entry belongs to an adapter with its driver, a version of
 * Dawn and the matmul's text: under any others it is not looked at. The file only saves time: one that is broken, or
 * somebody else's, is told of and written anew.
 */
import { readFileSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { z } from "zod";
import { messageOf, StratumError } from "../errors.ts";
import type { MatmulTile } from "../kernels/matmul.ts";
import { cacheFolder } from "../weights/cache-folder.ts";
import { makeFolder, removeStale, temporaryName, writeFailed, writeSynced } from "../weights/durable.ts";
import { readJsonFile } from "../weights/json.ts";
import { withLock } from "../weights/lock.ts";
import type { Engine } from "./model.ts";
import { allowsTile, matmulVersion, shapeOfKey, type TileTable } from "./tiles.ts";

const PRIVATE = 0o700;
const MOST_BYTES = 2 ** 22;
/** Entries beyond are dropped, those written longest ago first. */
const MOST_ENTRIES = 32;
/** A lock that stays for so long was left by a process that was killed elsewhere: writing takes milliseconds. */
const LOCK_MS = 5000;

/** `$XDG_CACHE_HOME/stratum/tuning.json`, or that below `~/.cache`. */
export function tuningFile(): string {
  return join(cacheFolder(), "tuning.json");
}

/** What measurements are true of. */
export interface TuningKey {
  /** The adapter and its driver, as `DeviceInfo.identity` has them. */
  readonly adapter: string;
  /** Lanes a subgroup: a driver may be told to use others. */
  readonly subgroup: number;
  /** Version of the package `webgpu`. */
  readonly dawn: string;
  /** Of the matmul's text. */
  readonly kernels: string;
}

/** The key of what this engine measures. */
export function tuningKey({ device, target }: Pick<Engine, "device" | "target">): TuningKey {
  const { identity } = device.info;
  return { adapter: identity, subgroup: target.subgroupSize, dawn: dawnVersion(), kernels: matmulVersion() };
}

/** Of the package that brings Dawn. */
export function dawnVersion(): string {
  const path = createRequire(import.meta.url).resolve("webgpu/package.json");
  return (JSON.parse(readFileSync(path, "utf8")) as { version: string }).version;
}

const size = z.int().min(1);
export const tileSchema = z.object({
  tileRows: size,
  tileCols: size,
  lanes: size,
  subgroup: z.int().min(0),
  textures: z.boolean(),
  staged: z.literal(true).exactOptional(),
});
const fileSchema = z.object({
  format: z.literal("stratum-tuning"),
  version: z.literal(1),
  /** Written last, last. */
  entries: z.array(
    z.object({
      adapter: z.string(),
      subgroup: z.int(),
      dawn: z.string(),
      kernels: z.string(),
      /** By `tileKey`. */
      tiles: z.record(z.string(), tileSchema),
    }),
  ),
});
type Entries = z.infer<typeof fileSchema>["entries"];

const JSON_FILE = {
  what: "the file of tuned kernels",
  maxBytes: MOST_BYTES,
  missing: "file/missing",
  bad: "file/bad-json",
  fix: "it is written anew by --tune force",
} as const;

/** The entries of the file; none where it is missing, and none and a note where it is not what we write. */
async function readEntries(path: string, onNote: ((text: string) => void) | undefined): Promise<Entries> {
  try {
    return fileSchema.parse(await readJsonFile(path, JSON_FILE)).entries;
  } catch (thrown) {
    if (!(thrown instanceof StratumError && thrown.code === JSON_FILE.missing)) {
      const why = thrown instanceof z.ZodError ? "it is not a file of ours" : messageOf(thrown);
      onNote?.(`the tuned kernels in ${path} are not used: ${why}`);
    }
    return [];
  }
}

function isOf(entry: TuningKey, key: TuningKey): boolean {
  return (["adapter", "subgroup", "dawn", "kernels"] as const).every((name) => entry[name] === key[name]);
}

/**
 * The variants that were measured on this adapter; those it would not run are left out. Never throws.
 * @param onNote is told where the file is not what we write
 */
export async function readTuning(
  engine: Pick<Engine, "device" | "target">,
  path = tuningFile(),
  onNote?: (text: string) => void,
): Promise<TileTable> {
  const key = tuningKey(engine);
  const found = (await readEntries(path, onNote)).find((entry) => isOf(entry, key));
  const tiles = new Map<string, MatmulTile>();
  for (const [name, tile] of Object.entries(found?.tiles ?? {})) {
    const shape = shapeOfKey(name);
    if (shape !== null && allowsTile(engine.target, shape, tile)) tiles.set(name, tile);
  }
  return tiles;
}

/**
 * Adds variants to the file, over those of the same shapes. What other processes add at the same time stays.
 * @throws {StratumError} `file/write-failed`
 */
export async function writeTuning(
  engine: Pick<Engine, "device" | "target">,
  tiles: TileTable,
  path = tuningFile(),
): Promise<void> {
  const key = tuningKey(engine);
  const made = temporaryName(path);
  try {
    await makeFolder(dirname(path), PRIVATE);
    await removeStale(dirname(path));
    const write = async () => {
      const entries = await readEntries(path, undefined);
      const before = entries.find((entry) => isOf(entry, key))?.tiles ?? {};
      const others = entries.filter((entry) => !isOf(entry, key)).slice(-(MOST_ENTRIES - 1));
      const entry = { ...key, tiles: { ...before, ...Object.fromEntries(tiles) } };
      const file: z.infer<typeof fileSchema> = {
        format: "stratum-tuning",
        version: 1,
        entries: [...others, entry],
      };
      await writeSynced(made, `${JSON.stringify(file, null, 1)}\n`);
      await rename(made, path);
    };
    await withLock(`${path}.lock`, write, { staleMs: LOCK_MS, guard: (_, step) => step() });
  } catch (cause) {
    await rm(made, { force: true }).catch(() => undefined);
    throw writeFailed(path, cause);
  }
}
