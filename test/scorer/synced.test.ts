/** What is on the disk, not only in the system's memory, when a name or a journal says that it is there. */
import { appendFileSync, cpSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { afterAll, beforeAll, beforeEach, expect, it, vi } from "vitest";
import { withOutput } from "../../cli/output.ts";
import { CLAIM_BYTES } from "../../scorer/id-register.ts";
import { readLists } from "../../scorer/lists.ts";
import { openRankingsFile } from "../../scorer/rankings-file.ts";
import { createStatesWriter } from "../../scorer/states-writer.ts";
import { type Folder, temporaryFolder } from "../support/cli.ts";
import { failing } from "../support/failing.ts";

/** A disk that knows how much of each file was brought to it, and which folders since a file in them got its name. */
const disk = vi.hoisted(() => ({
  bytes: new Map<string, number>(),
  folders: new Set<string>(),
  /** Called when a file has got a name. */
  named: (_to: string): void => undefined,
}));

vi.mock("node:fs", async (importOriginal) => {
  const real = await importOriginal<typeof import("node:fs")>();
  const opened = new Map<number, string>();
  const openSync: typeof real.openSync = (path, ...more) => {
    const file = real.openSync(path, ...more);
    opened.set(file, String(path));
    return file;
  };
  const fdatasync = ((file, done) => {
    disk.bytes.set(opened.get(file) ?? "", real.fstatSync(file).size);
    real.fdatasync(file, done);
  }) as typeof real.fdatasync;
  return { ...real, openSync, fdatasync };
});

vi.mock("node:fs/promises", async (importOriginal) => {
  const real = await importOriginal<typeof import("node:fs/promises")>();
  const open: typeof real.open = async (...args) => {
    const handle = await real.open(...args);
    const synced = (sync: () => Promise<void>) => async () => {
      const found = await handle.stat();
      if (found.isDirectory()) disk.folders.add(String(args[0]));
      else disk.bytes.set(String(args[0]), found.size);
      return sync();
    };
    const [sync, datasync] = [handle.sync.bind(handle), handle.datasync.bind(handle)];
    return Object.assign(handle, { sync: synced(sync), datasync: synced(datasync) });
  };
  const rename: typeof real.rename = async (from, to) => {
    await real.rename(from, to);
    const bytes = disk.bytes.get(String(from)) ?? 0;
    disk.bytes.delete(String(from));
    disk.bytes.set(String(to), bytes);
    disk.folders.delete(dirname(String(to)));
    disk.named(String(to));
  };
  return { ...real, open, rename };
});

let folder: Folder;
let places = 0;
let place = "";
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());
beforeEach(() => {
  place = join(folder.path, `${places++}`);
  mkdirSync(place);
  Object.assign(disk, { bytes: new Map(), folders: new Set(), named: () => undefined });
});

const LISTS = 200;
const TEXT = '{"instruction": "Why?", "candidates": ["a", "b"]}\n'.repeat(LISTS);

/** Ranks without a model. @param until stops, as a process that is killed, once so many lists are written */
async function rank(path: string, append: boolean, until = Number.POSITIVE_INFINITY): Promise<void> {
  const [input, output] = [join(path, "lists"), join(path, "out")];
  const file = await openRankingsFile({
    ...{ output, input, run: {}, append, restart: false, held: async () => true },
    plan: async () => ({ total: LISTS, ranges: null, whole: null }),
  });
  const sink = file.begin({ adapter: "a", kernels: "k", tiles: [] });
  for await (const { id, position } of readLists(input, file.resumed.read)) {
    const { counts, base } = sink.state;
    const next = { ...counts, lists: counts.lists + 1 };
    await sink.write(`${JSON.stringify({ id })}\n`, { position: position!, base, counts: next, finishing: false });
    if (next.lists % 20 === 0) await new Promise(setImmediate);
    if (next.lists === until) {
      await vi.waitFor(() => expect(sink.written.position.items).toBe(until));
      cpSync(path, `${path}.killed`, { recursive: true, preserveTimestamps: true });
      return sink.leave();
    }
  }
  await sink.finish();
}

it("a journal says no more than the disk has, of what an earlier process wrote as well", async () => {
  writeFileSync(join(place, "lists"), TEXT);
  await rank(place, false, 100);
  const killed = `${place}.killed`;
  const [partial, ids, journal] = ["out.partial", "out.journal.ids", "out.journal"].map((name) => join(killed, name));
  const ends = readFileSync(journal!, "utf8").trimEnd().split("\n");
  // Lines that were never synced.
  expect(JSON.parse(ends[0]!).state.out).toBeLessThan(JSON.parse(ends.at(-1)!).state.out);
  const said: number[] = [];
  disk.named = (to) => {
    if (to !== journal) return;
    const { state } = JSON.parse(readFileSync(to, "utf8"));
    said.push(state.position.items);
    expect(disk.bytes.get(partial!) ?? 0).toBeGreaterThanOrEqual(state.out);
    expect(disk.bytes.get(ids!) ?? 0).toBeGreaterThanOrEqual(state.position.items * CLAIM_BYTES);
  };
  await rank(killed, false);
  expect([said[0], said.at(-1)]).toEqual([100, LISTS]);
});

it("what another program appends to an output while the journal is written stays", async () => {
  writeFileSync(join(place, "lists"), TEXT);
  const out = join(place, "out");
  writeFileSync(out, "before\n");
  disk.named = () => {
    disk.named = () => undefined;
    appendFileSync(out, "another's\n");
  };
  await expect(rank(place, true)).rejects.toThrow(failing("usage/output-changed", "had 7 bytes", "has 17"));
  expect(readFileSync(out, "utf8")).toBe("before\nanother's\n");
  expect(existsSync(`${out}.journal`)).toBe(false);
});

it("an index of parts has its name once the disk has it", async () => {
  const path = join(place, "st.safetensors");
  const options = { metadata: {}, layers: 1, tokens: "last", d: 1, partBytes: 8 } as const;
  const writer = await createStatesWriter(path, options);
  for (let i = 0; i < 3; i++)
    await writer.add([{ candidate: null, ids: Int32Array.of(i), states: Float32Array.of(i) }]);
  const named: string[] = [];
  disk.named = (to) => {
    named.push(basename(to));
    expect(disk.bytes.get(to)).toBe(statSync(to).size);
  };
  const written = await writer.finish();
  expect(named.at(-1)).toBe("st.safetensors.index.json");
  expect(written).toHaveLength(4);
});

it("an output that is written in one go has its name on the disk when it is finished", async () => {
  const out = join(place, "out");
  await withOutput(out, {}, async (output) => {
    await output.write("all of it\n");
    await output.finish();
    expect([disk.bytes.get(out), disk.folders.has(place)]).toEqual([10, true]);
  });
});
