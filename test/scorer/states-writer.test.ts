/** Files of hidden states: written by the extraction's writer, read back by the reader of checkpoints. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { ExtractedSequence } from "../../scorer/extract.ts";
import { createStatesWriter, type StatesWriter, type StatesWriterOptions } from "../../scorer/states-writer.ts";
import { openSafetensors } from "../../weights/safetensors.ts";
import { type Folder, temporaryFolder } from "../support/cli.ts";

const [K, D] = [2, 3];
let folder: Folder;
let path: string;
beforeEach(async () => {
  folder = await temporaryFolder();
  path = join(folder.path, "states.safetensors");
});
afterEach(() => folder[Symbol.asyncDispose]());

const open = (options: Partial<StatesWriterOptions> = {}): Promise<StatesWriter> =>
  createStatesWriter(path, { metadata: { model: "m" }, layers: K, tokens: "last", d: D, partBytes: 1e6, ...options });

/** Sequence i of T tokens: its states count up from 100 i, -0 and the smallest float among them. */
function sequence(i: number, rows: number, tokens = 1): ExtractedSequence {
  const states = Float32Array.from({ length: K * rows * D }, (_, k) => 100 * i + k);
  states[0] = -0;
  states[1] = 2 ** -149;
  return { candidate: null, ids: Int32Array.from({ length: tokens }, (_, t) => 10 * i + t), states };
}

async function readBack(file: string, i: number) {
  await using opened = await openSafetensors(file);
  const [ids, hidden] = [opened.info(`ids_${i}`), opened.info(`hidden_${i}`)];
  return {
    metadata: { ...opened.metadata },
    types: [ids.dtype, hidden.dtype],
    shapes: [ids.shape, hidden.shape],
    ids: new Int32Array((await opened.read(ids.name)).buffer),
    states: new Float32Array((await opened.read(hidden.name)).buffer),
  };
}
const files = () => readdirSync(folder.path).sort();

describe("one file", () => {
  it.each([
    ["last", 1, [K, D]],
    ["all", 4, [K, 4, D]],
  ] as const)("with --tokens %s has ids and states of every sequence, bit for bit", async (tokens, rows, shape) => {
    const writer = await open({ tokens });
    const sequences = [sequence(0, rows, 4), sequence(1, rows, 4)];
    expect([await writer.add([sequences[0]!]), await writer.add([sequences[1]!])]).toEqual([0, 1]);
    expect(existsSync(path)).toBe(false);
    expect(await writer.finish()).toEqual([path]);
    expect(files()).toEqual(["states.safetensors"]);
    for (const [i, { ids, states }] of sequences.entries()) {
      const found = await readBack(path, i);
      expect(found).toMatchObject({ metadata: { model: "m" }, types: ["I32", "F32"], shapes: [[4], shape] });
      expect([found.ids, found.states]).toEqual([ids, states]);
      expect(Object.is(found.states[0], -0)).toBe(true);
    }
  });

  it("takes views into larger arrays as they are", async () => {
    const whole = Float32Array.from({ length: 3 * K * D }, (_, k) => k);
    const ids = Int32Array.of(9, 8, 7, 6);
    const writer = await open();
    const states = whole.subarray(K * D, 2 * K * D);
    await writer.add([{ candidate: 0, ids: ids.subarray(1, 3), states }]);
    await writer.finish();
    const found = await readBack(path, 0);
    expect([...found.ids]).toEqual([8, 7]);
    expect(found.states).toEqual(Float32Array.from(states));
  });
});

describe("parts", () => {
  it("begin past the size, are numbered, and an index names each tensor's part", async () => {
    await writeFile(path, "of an earlier run");
    // A sequence takes 24 bytes of states and 4 of ids.
    const writer = await open({ partBytes: 60 });
    for (let i = 0; i < 5; i++) expect(await writer.add([sequence(i, 1)])).toBe(i);
    const parts = [1, 2, 3].map((part) => join(folder.path, `states-0000${part}.safetensors`));
    expect(await writer.finish()).toEqual([...parts, `${path}.index.json`]);
    // The whole-file form of the earlier run would contradict the parts.
    expect(files()).toEqual([
      ...parts.map((part) => part.slice(folder.path.length + 1)),
      "states.safetensors.index.json",
    ]);
    const index = JSON.parse(readFileSync(`${path}.index.json`, "utf8")) as Record<string, unknown>;
    const part = (n: number) => `states-0000${n}.safetensors`;
    const map = [1, 1, 2, 2, 3].flatMap((n, i) => [
      [`ids_${i}`, part(n)],
      [`hidden_${i}`, part(n)],
    ]);
    expect(index).toEqual({ metadata: { total_size: 5 * 28 }, weight_map: Object.fromEntries(map) });
    for (const [i, n] of [1, 1, 2, 2, 3].entries()) {
      const found = await readBack(parts[n - 1]!, i);
      expect(found).toMatchObject({ metadata: { model: "m" } });
      expect(found.states).toEqual(sequence(i, 1).states);
    }
  });

  it("hold a sequence that is larger than a part alone", async () => {
    const writer = await open({ partBytes: 10 });
    await writer.add([sequence(0, 1)]);
    await writer.add([sequence(1, 1)]);
    expect(await writer.finish()).toHaveLength(3);
    expect((await readBack(join(folder.path, "states-00002.safetensors"), 1)).states).toEqual(sequence(1, 1).states);
  });

  it("hold the sequences of one line together", async () => {
    // 28 bytes a sequence: two lines of two fit into 112, into 111 they do not.
    const lines = [0, 2].map((i) => [sequence(i, 1), sequence(i + 1, 1)]);
    const loose = await open({ partBytes: 112 });
    for (const line of lines) await loose.add(line);
    expect(await loose.finish()).toEqual([path]);
    const tight = await open({ partBytes: 111 });
    for (const line of lines) await tight.add(line);
    expect(await tight.finish()).toHaveLength(3);
    expect((await readBack(join(folder.path, "states-00002.safetensors"), 3)).states).toEqual(sequence(3, 1).states);
  });
});

describe("another form of the same name", () => {
  it("is removed when the new one is whole; files that the index does not name stay", async () => {
    const foreign = join(folder.path, "states-00042.safetensors");
    await writeFile(foreign, "somebody else's");
    const parted = await open({ partBytes: 60 });
    for (let i = 0; i < 5; i++) await parted.add([sequence(i, 1)]);
    await parted.finish();
    const whole = await open();
    await whole.add([sequence(0, 1)]);
    expect(files()).toContain("states-00003.safetensors");
    await whole.finish();
    expect(files()).toEqual(["states-00042.safetensors", "states.safetensors"]);
  });

  it("is no way to other files, whatever an index names", async () => {
    const others = ["model.safetensors", "lists.jsonl", "states-00001.safetensors.bak", "other-00001.safetensors"];
    for (const name of others) await writeFile(join(folder.path, name), "somebody else's");
    const map = Object.fromEntries(
      [...others, "../x", "states.safetensors.index.json"].map((name, i) => [`t${i}`, name]),
    );
    await writeFile(join(folder.path, "states.safetensors.index.json"), JSON.stringify({ weight_map: map }));
    const whole = await open();
    await whole.add([sequence(0, 1)]);
    await whole.finish();
    expect(files()).toEqual([...others, "states.safetensors"].sort());
  });

  it("is left alone by a run that ends early", async () => {
    const parted = await open({ partBytes: 60 });
    for (let i = 0; i < 5; i++) await parted.add([sequence(i, 1)]);
    await parted.finish();
    const before = readFileSync(join(folder.path, "states-00001.safetensors"));
    const second = await open({ partBytes: 30 });
    for (let i = 5; i < 8; i++) await second.add([sequence(i, 1)]);
    await second.abort();
    expect(files()).toEqual(
      [1, 2, 3].map((n) => `states-0000${n}.safetensors`).concat("states.safetensors.index.json"),
    );
    expect(readFileSync(join(folder.path, "states-00001.safetensors"))).toEqual(before);
  });
});

describe("an end before the end", () => {
  const LENGTHS = [1, 3, 2, 4, 1];
  const all = LENGTHS.map((tokens, i) => sequence(i, 1, tokens));

  async function undisturbed(partBytes: number): Promise<Map<string, Buffer>> {
    const writer = await open({ partBytes });
    for (const each of all) await writer.add([each]);
    await writer.finish();
    const found = new Map(files().map((name) => [name, readFileSync(join(folder.path, name))]));
    await folder[Symbol.asyncDispose]();
    await mkdir(folder.path);
    return found;
  }
  const now = () => new Map(files().map((name) => [name, readFileSync(join(folder.path, name))]));

  // In one file, in parts of two sequences, and in parts of one.
  it.each([1e6, 70, 10].flatMap((partBytes) => LENGTHS.map((_, stop) => ({ partBytes, stop }))))(
    "after $stop sequences is gone on with, in parts of $partBytes bytes: the same files",
    async ({ partBytes, stop }) => {
      const expected = await undisturbed(partBytes);
      const first = await open({ partBytes });
      for (const each of all.slice(0, stop)) await first.add([each]);
      const { progress } = first;
      const tokens = LENGTHS.slice(stop - progress.part.sequences, stop);
      // What was written behind the progress that is known is cut off.
      if (first.fits([all[stop]!])) await first.add([all[stop]!]);
      await first.sync();
      await first.leave();
      expect(files().filter((name) => !name.includes(".partial"))).toEqual([]);
      const second = await open({ partBytes, begun: { progress, tokens } });
      expect(second.progress).toEqual(progress);
      // It is asked for with every line: parts are not copied for it.
      expect(second.progress.parts).toBe(progress.parts);
      for (const each of all.slice(stop)) await second.add([each]);
      await second.finish();
      expect(now()).toEqual(expected);
    },
  );

  it.each([1e6, 70])("while files get their names is gone on with, in parts of %d bytes", async (partBytes) => {
    const expected = await undisturbed(partBytes);
    const first = await open({ partBytes });
    for (const each of all) await first.add([each]);
    const begun = { progress: first.progress, tokens: LENGTHS.slice(LENGTHS.length - first.progress.part.sequences) };
    await first.finish();
    // The names were given, but nobody took note.
    const second = await open({ partBytes, begun });
    await second.finish();
    expect(now()).toEqual(expected);
  });

  it("with less on the disk than is said is an error", async () => {
    const first = await open();
    await first.add([sequence(0, 1)]);
    const { progress } = first;
    await first.leave();
    const more = { parts: [], part: { sequences: 2, bytes: 2 * progress.part.bytes } };
    await expect(open({ begun: { progress: more, tokens: [1, 1] } })).rejects.toThrow(
      expect.objectContaining({ code: "safetensors/other-body" }),
    );
  });

  it("leaves nothing where nothing was done, and nothing when aborted", async () => {
    const idle = await open();
    await idle.leave();
    const aborted = await open();
    await aborted.add([sequence(0, 1)]);
    await aborted.abort();
    expect(files()).toEqual([]);
  });
});

describe("a path that cannot be written", () => {
  it.each([
    ["a folder", "folder", "file/not-a-file"],
    ["a place in a folder that is not there", "nowhere/states.safetensors", "file/write-failed"],
  ])("is refused: %s", async (_, name, code) => {
    await mkdir(join(folder.path, "folder"));
    path = join(folder.path, name);
    await expect(open()).rejects.toThrow(expect.objectContaining({ code }));
  });
});
