/** The file of tuned kernels: what is found in it, what is not, and what becomes of a file that is not ours. */
import { readdirSync } from "node:fs";
import { utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Engine } from "../../engine/model.ts";
import { type TileTable, tileKey } from "../../engine/tiles.ts";
import { readTuning, tuningFile, tuningKey, writeTuning } from "../../engine/tuner-cache.ts";
import { type MatmulTile, matmulChoices } from "../../kernels/matmul.ts";
import { type Folder, temporaryFolder } from "../support/cli.ts";

const on = (identity: string, subgroupSize = 8) =>
  ({ target: { subgroupSize, textures: true }, device: { info: { identity } } }) as unknown as Engine;
const HERE = on("maker, model, driver 1");

const shape = (n: number) => ({ k: 64, n, weight: "bf16", epilogue: "store" }) as const;
const table = (...sizes: readonly number[]): TileTable =>
  new Map(sizes.map((n) => [tileKey(shape(n)), matmulChoices(HERE.target, shape(n))[3]] as const));

let folder: Folder;
let file: string;
beforeEach(async () => {
  folder = await temporaryFolder();
  file = join(folder.path, "stratum", "tuning.json");
});
afterEach(() => folder[Symbol.asyncDispose]());

async function read(engine = HERE) {
  const notes: string[] = [];
  const tiles = await readTuning(engine, file, (text) => notes.push(text));
  return { tiles, notes };
}
const NOTHING = { tiles: new Map(), notes: [] };
const stored = async () => JSON.parse(await folder.read("stratum/tuning.json"));
const change = async (edit: (entry: Record<string, unknown>) => void) => {
  const content = await stored();
  edit(content.entries[0]);
  await writeFile(file, JSON.stringify(content));
};

it("gives back what was written, and adds to it", async () => {
  expect(await read()).toEqual(NOTHING);
  await writeTuning(HERE, table(96, 128), file);
  expect(await read()).toEqual({ tiles: table(96, 128), notes: [] });
  const other = matmulChoices(HERE.target, shape(96))[5];
  await writeTuning(HERE, new Map([...table(160), [tileKey(shape(96)), other]]), file);
  const expected = new Map<string, MatmulTile>([...table(96, 128, 160), [tileKey(shape(96)), other]]);
  expect(await read()).toEqual({ tiles: expected, notes: [] });
  expect(readdirSync(join(folder.path, "stratum"))).toEqual(["tuning.json"]);
});

describe("does not use what was measured", () => {
  beforeEach(() => writeTuning(HERE, table(96), file));

  it.each([
    ["on another driver", on("maker, model, driver 2")],
    ["with subgroups of another size", on("maker, model, driver 1", 4)],
  ])("%s, and keeps it", async (_, engine) => {
    expect(await read(engine)).toEqual(NOTHING);
    await writeTuning(engine, new Map(), file);
    expect(await read()).toEqual({ tiles: table(96), notes: [] });
    expect((await stored()).entries).toHaveLength(2);
  });

  it.each(["dawn", "kernels"])("under another version: %s", async (name) => {
    await change((entry) => {
      entry[name] = `${entry[name]}0`;
    });
    expect(await read()).toEqual(NOTHING);
  });

  it("where the adapter does not run the variant, or the shape's name is none", async () => {
    await writeTuning(HERE, table(128), file);
    await change((entry) => {
      const tiles = entry["tiles"] as Record<string, MatmulTile>;
      const [good] = Object.values(tiles);
      tiles[tileKey(shape(96))] = { ...good, lanes: 31 };
      tiles["a shape"] = good;
      tiles["64x0 bf16"] = good;
      tiles["64x96 q4"] = good;
    });
    expect(await read()).toEqual({ tiles: table(128), notes: [] });
  });
});

it("forgets the entries that were written longest ago", async () => {
  for (let i = 0; i < 34; i++) await writeTuning(on(`driver ${i}`), table(96), file);
  const { entries } = (await stored()) as { entries: { adapter: string }[] };
  expect(entries).toHaveLength(32);
  expect([entries[0].adapter, entries.at(-1)!.adapter]).toEqual(["driver 2", "driver 33"]);
});

it.each([
  ["no JSON", '{"format": "stratum-tuning", "ver'],
  ["empty", ""],
  ["another's", '{"entries": []}'],
  ["of a later version", '{"format": "stratum-tuning", "version": 2, "entries": []}'],
  ["damaged within", '{"format": "stratum-tuning", "version": 1, "entries": [{"adapter": 3}]}'],
  ["too large", " ".repeat(5 * 2 ** 20)],
])("a file that is %s is told of, not used, and written anew", async (_, content) => {
  await writeTuning(HERE, table(96), file);
  await writeFile(file, content);
  const { tiles, notes } = await read();
  expect(tiles).toEqual(new Map());
  expect(notes).toEqual([expect.stringContaining(file)]);
  await writeTuning(HERE, table(128), file);
  expect(await read()).toEqual({ tiles: table(128), notes: [] });
});

it("loses nothing of what several write at once", async () => {
  const sizes = Array.from({ length: 12 }, (_, i) => 96 + 32 * i);
  const drivers = [HERE, on("another")];
  await Promise.all(sizes.flatMap((n) => drivers.map((engine) => writeTuning(engine, table(n), file))));
  for (const engine of drivers) {
    const { tiles, notes } = await read(engine);
    expect(notes).toEqual([]);
    expect(new Map([...tiles].sort())).toEqual(new Map([...table(...sizes)].sort()));
  }
  expect(readdirSync(join(folder.path, "stratum"))).toEqual(["tuning.json"]);
});

it("does not wait for long for a lock that nobody holds, whatever the clocks say", async () => {
  await writeTuning(HERE, table(96), file);
  await writeFile(`${file}.lock`, "");
  const ahead = Date.now() / 1000 + 1e6;
  await utimes(`${file}.lock`, ahead, ahead);
  await writeTuning(HERE, table(128), file);
  expect((await read()).tiles).toEqual(table(96, 128));
});

it("says where it could not write", async () => {
  await writeFile(join(folder.path, "stratum"), "a file where the folder would be");
  await expect(writeTuning(HERE, table(96), file)).rejects.toMatchObject({ code: "file/write-failed" });
  expect((await read()).tiles).toEqual(new Map());
});

it("lies in the cache folder", () => {
  const before = process.env["XDG_CACHE_HOME"];
  try {
    process.env["XDG_CACHE_HOME"] = folder.path;
    expect(tuningFile()).toBe(file);
  } finally {
    if (before === undefined) delete process.env["XDG_CACHE_HOME"];
    else process.env["XDG_CACHE_HOME"] = before;
  }
});

it("is keyed by adapter, Dawn and text", () => {
  const key = tuningKey(HERE);
  expect(key).toMatchObject({ adapter: "maker, model, driver 1", subgroup: 8 });
  expect(key.dawn).toMatch(/^\d+\.\d+\.\d+/);
  expect(key.kernels).toMatch(/^[0-9a-f]{16}$/);
});
