import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { StratumError } from "../../errors.ts";
import { type Dtype, openSafetensors } from "../../weights/safetensors.ts";
import { createSafetensorsWriter, type TensorData, writeSafetensors } from "../../weights/safetensors-writer.ts";
import { failing } from "../support/failing.ts";

/** A disk with so many bytes free, that writes so many at once, may fail to sync, and remembers what it synced. */
const disk = vi.hoisted(() => ({
  free: Number.POSITIVE_INFINITY,
  mostAtOnce: Number.POSITIVE_INFINITY,
  syncFails: false,
  synced: [] as string[],
}));

vi.mock("node:fs/promises", async (importOriginal) => {
  const real = await importOriginal<typeof import("node:fs/promises")>();
  const noSpace = () => Object.assign(new Error("ENOSPC: no space left on device, write"), { code: "ENOSPC" });
  const open: typeof real.open = async (...args) => {
    const handle = await real.open(...args);
    const write = handle.write.bind(handle) as (b: Uint8Array, o: number, l: number, p: number) => Promise<unknown>;
    const sync = handle.sync.bind(handle);
    return Object.assign(handle, {
      write: async (bytes: Uint8Array, offset: number, length: number, position: number) => {
        if (disk.free <= 0) throw noSpace();
        const taken = Math.min(length, disk.free, disk.mostAtOnce);
        disk.free -= taken;
        return write(bytes, offset, taken, position);
      },
      sync: async () => {
        disk.synced.push(String(args[0]));
        if (disk.syncFails) throw Object.assign(new Error("EIO: i/o error, fsync"), { code: "EIO" });
        return sync();
      },
    });
  };
  return { ...real, open };
});

interface SecondReader {
  SafeTensor: new (
    bytes: Uint8Array,
  ) => {
    metadata: Map<string, { dtype: string; shape: number[] }>;
    getTensor(name: string): Uint8Array;
  };
}
const { SafeTensor } = createRequire(import.meta.url)("safetensors") as SecondReader;

let folder = "";
let path = "";
beforeEach(async () => {
  Object.assign(disk, {
    free: Number.POSITIVE_INFINITY,
    mostAtOnce: Number.POSITIVE_INFINITY,
    syncFails: false,
    synced: [],
  });
  folder = await mkdtemp(join(tmpdir(), "stratum-writer-"));
  path = join(folder, "out.safetensors");
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const counting = (length: number, from = 0) => Uint8Array.from({ length }, (_, i) => from + i);

const TENSORS: readonly TensorData[] = [
  { name: "w", dtype: "F32", shape: [2, 3], bytes: counting(24) },
  { name: 'quote"\\\n\u0000é', dtype: "BF16", shape: [1], bytes: counting(2, 50) },
  { name: "empty", dtype: "I64", shape: [0, 4], bytes: new Uint8Array(0) },
  { name: "__proto__", dtype: "U8", shape: [], bytes: counting(1, 60) },
  { name: "a", dtype: "F64", shape: [2], bytes: counting(16, 70) },
];

async function contents(): Promise<TensorData[]> {
  await using file = await openSafetensors(path);
  const found: TensorData[] = [];
  for (const { name, dtype, shape } of file.tensors.values())
    found.push({ name, dtype, shape, bytes: await file.read(name) });
  return found;
}

describe("writing", () => {
  it("gives back what was added, in the order of adding", async () => {
    const size = await writeSafetensors(path, TENSORS, { metadata: { model: "m", ["__proto__"]: "x" } });
    expect((await stat(path)).size).toBe(size);
    expect(await contents()).toEqual(TENSORS);
    await using file = await openSafetensors(path);
    expect({ ...file.metadata }).toEqual({ model: "m", ["__proto__"]: "x" });
    expect(await readdir(folder)).toEqual(["out.safetensors"]);
  });

  it("writes the bytes that the format's specification gives", async () => {
    await writeSafetensors(path, [{ name: "attn0", dtype: "U8", shape: [1, 2], bytes: Uint8Array.of(7, 9) }]);
    const header = '{"attn0":{"dtype":"U8","shape":[1,2],"data_offsets":[0,2]}}';
    const padded = header.padEnd(Math.ceil(header.length / 8) * 8, " ");
    const bytes = await readFile(path);
    expect(bytes.subarray(8, -2).toString()).toBe(padded);
    expect([bytes.readBigUInt64LE(0), ...bytes.subarray(-2)]).toEqual([BigInt(padded.length), 7, 9]);
  });

  it("can be read by the npm package safetensors", async () => {
    await writeSafetensors(
      path,
      TENSORS.filter((tensor) => tensor.name !== "__proto__"),
    );
    // That reader takes the bytes of a whole ArrayBuffer, which a pooled Buffer is not.
    const other = new SafeTensor(new Uint8Array(await readFile(path)));
    expect([...other.metadata.keys()]).toEqual(["w", 'quote"\\\n\u0000é', "empty", "a"]);
    expect(other.metadata.get("w")).toMatchObject({ dtype: "F32", shape: [2, 3] });
    expect([...other.getTensor("a")]).toEqual([...counting(16, 70)]);
    expect([...other.getTensor("w")]).toEqual([...counting(24)]);
  });

  it("writes no __metadata__ without metadata, and an empty file of no tensors", async () => {
    expect(await writeSafetensors(path, [])).toBe(16);
    expect((await readFile(path)).subarray(8).toString()).toBe("{}      ");
    await writeSafetensors(path, [], { metadata: {} });
    expect((await readFile(path)).subarray(8).toString().trimEnd()).toBe('{"__metadata__":{}}');
  });

  it("streams: calls need not be awaited one by one, and a buffer may be reused after its own", async () => {
    const writer = await createSafetensorsWriter(path);
    const buffer = new Uint8Array(4);
    for (let i = 0; i < 20; i++) await writer.add(`t${i}`, "U8", [4], buffer.fill(i));
    const adds = Array.from({ length: 20 }, (_, i) => writer.add(`u${i}`, "U8", [3], new Uint8Array(3).fill(100 + i)));
    expect(writer.bodyBytes).toBe(140);
    await Promise.all([...adds, writer.finish()]);
    const found = await contents();
    expect(found.map(({ name, bytes }) => [name, bytes[0], bytes.at(-1)])).toEqual([
      ...Array.from({ length: 20 }, (_, i) => [`t${i}`, i, i]),
      ...Array.from({ length: 20 }, (_, i) => [`u${i}`, 100 + i, 100 + i]),
    ]);
  });

  it("copes with a system that writes fewer bytes than asked", async () => {
    disk.mostAtOnce = 5;
    await writeSafetensors(path, TENSORS);
    expect(await contents()).toEqual(TENSORS);
  });

  it("finishes a large file in place: nothing is copied, and other readers take it", async () => {
    const half = new Uint8Array(2 ** 26);
    half[0] = 1;
    half[half.length - 1] = 2;
    const writer = await createSafetensorsWriter(path);
    await writer.add("a", "F32", [half.length / 4], half);
    await writer.add("b", "F32", [half.length / 4], half);
    await writer.add("c", "U8", [1], Uint8Array.of(3));
    // Room for the header alone: a copy of the bodies would not fit.
    disk.free = 2 ** 20;
    const size = await writer.finish();
    expect(size).toBe(2 ** 27 + 2 ** 20 + 1);
    expect(await readdir(folder)).toEqual(["out.safetensors"]);
    expect(disk.synced).toEqual([`${path}.partial.body`, folder]);
    const other = new SafeTensor(new Uint8Array(await readFile(path)));
    expect([...other.metadata.keys()]).toEqual(["a", "b", "c"]);
    expect([other.getTensor("b")[0], other.getTensor("b").at(-1), other.getTensor("c")[0]]).toEqual([1, 2, 3]);
    await using file = await openSafetensors(path);
    expect([...(await file.readRange("b", half.length - 2, 2))]).toEqual([0, 2]);
  });

  it("copies when the header outgrows the room for it", async () => {
    const writer = await createSafetensorsWriter(path);
    const long = "n".repeat(2 ** 20);
    await writer.add(long, "U8", [3], Uint8Array.of(1, 2, 3));
    await writer.add("big", "U8", [2 ** 27], new Uint8Array(2 ** 27).fill(7));
    await writer.finish();
    await using file = await openSafetensors(path);
    expect([...(await file.read(long))]).toEqual([1, 2, 3]);
    expect([...(await file.readRange("big", 2 ** 27 - 1, 1))]).toEqual([7]);
    expect(await readdir(folder)).toEqual(["out.safetensors"]);
  });
});

describe("the final name", () => {
  it("is taken only by finish; the older file stays until then", async () => {
    await writeFile(path, "older");
    const writer = await createSafetensorsWriter(path);
    await writer.add("a", "U8", [3], counting(3));
    expect(await readFile(path, "utf8")).toBe("older");
    await writer.finish();
    expect((await contents())[0]?.name).toBe("a");
  });

  it("is never taken after abort, and nothing stays behind", async () => {
    const writer = await createSafetensorsWriter(path);
    await writer.add("a", "U8", [3], counting(3));
    expect(await readdir(folder)).toEqual(["out.safetensors.partial.body"]);
    await writer.abort();
    await writer.abort();
    expect(await readdir(folder)).toEqual([]);
    await expect(writer.finish()).rejects.toThrow(failing("safetensors/closed", "out.safetensors"));
    await expect(writer.add("b", "U8", [0], new Uint8Array(0))).rejects.toThrow(failing("safetensors/closed"));
  });

  it("is not taken by an abort that overtakes no add in flight", async () => {
    const writer = await createSafetensorsWriter(path);
    const adds = ["a", "b"].map((name) => writer.add(name, "U8", [3], counting(3)));
    await writer.abort();
    await Promise.all(adds);
    expect(await readdir(folder)).toEqual([]);
  });

  it("is left alone when an unfinished writer goes out of scope", async () => {
    {
      await using writer = await createSafetensorsWriter(path);
      await writer.add("a", "U8", [3], counting(3));
    }
    expect(await readdir(folder)).toEqual([]);
  });

  it("replaces what an interrupted run left behind", async () => {
    await writeFile(`${path}.partial`, "left");
    await writeFile(`${path}.partial.body`, "left over, and longer than what follows".repeat(100_000));
    await writeSafetensors(path, TENSORS);
    expect(await contents()).toEqual(TENSORS);
    expect(await readdir(folder)).toEqual(["out.safetensors"]);
  });
});

describe("failures", () => {
  it.each([0, 1, 30])("a disk that is full after %i bytes of bodies leaves nothing", async (free) => {
    await writeFile(path, "older");
    disk.free = free;
    const error: StratumError = await writeSafetensors(path, TENSORS).then(
      () => expect.fail("written"),
      (thrown) => thrown,
    );
    expect(error).toMatchObject({ code: "file/write-failed", cause: { code: "ENOSPC" }, kind: "environment" });
    expect(error.message).toContain(path);
    expect(error.message).toContain("ENOSPC");
    expect(await readdir(folder)).toEqual(["out.safetensors"]);
    expect(await readFile(path, "utf8")).toBe("older");
  });

  it("neither does one that fills up while finishing, at any byte of it", async () => {
    const bodies = TENSORS.reduce((sum, tensor) => sum + tensor.bytes.length, 0);
    const size = await writeSafetensors(path, TENSORS);
    await rm(path);
    for (let free = bodies; free < bodies + size; free += 13) {
      disk.free = free;
      await expect(writeSafetensors(path, TENSORS)).rejects.toThrow(failing("file/write-failed", "ENOSPC"));
      expect(await readdir(folder)).toEqual([]);
    }
    disk.free = bodies + size;
    await writeSafetensors(path, TENSORS);
    expect(await contents()).toEqual(TENSORS);
  });

  it("a failed add ends the writer, also for adds in flight", async () => {
    const writer = await createSafetensorsWriter(path);
    disk.free = 10;
    const adds = ["a", "b", "c"].map((name) => writer.add(name, "U8", [8], counting(8)));
    const results = await Promise.allSettled([...adds, writer.finish()]);
    const codes = results.map((result) => (result.status === "rejected" ? result.reason.code : "done"));
    expect(codes).toEqual(["done", "file/write-failed", "safetensors/closed", "safetensors/closed"]);
    expect(await readdir(folder)).toEqual([]);
  });

  it("a failed sync keeps the file from its name", async () => {
    disk.syncFails = true;
    await expect(writeSafetensors(path, TENSORS)).rejects.toThrow(failing("file/write-failed", "EIO"));
    expect(await readdir(folder)).toEqual([]);
  });

  it("a folder that does not exist, and one under the file's name", async () => {
    const nowhere = join(folder, "no", "out.safetensors");
    await expect(writeSafetensors(nowhere, [])).rejects.toThrow(failing("file/write-failed", "ENOENT"));
    await mkdir(join(path, "full"), { recursive: true });
    await expect(writeSafetensors(path, TENSORS)).rejects.toThrow(failing("file/write-failed", "out.safetensors"));
    expect(await readdir(folder)).toEqual(["out.safetensors"]);
  });

  const wrong: [string, string, string, string, number[], number][] = [
    ["a length that is not dtype x shape", "size-mismatch", "x", "F32", [2], 7],
    ["a fractional size", "bad-shape", "x", "U8", [0.5], 1],
    ["a negative size", "bad-shape", "x", "U8", [-1], 1],
    ["an overflowing shape", "size-mismatch", "x", "U8", [2 ** 40, 2 ** 40], 1],
    ["an unknown dtype", "unknown-dtype", "x", "F12", [1], 1],
    ["the name __metadata__", "bad-name", "__metadata__", "U8", [1], 1],
    ["half a character as a name", "bad-name", "\ud83d", "U8", [1], 1],
    ["a name twice", "duplicate-key", "first", "U8", [1], 1],
  ];
  it.each(wrong)("%s is refused, and the writer goes on", async (_what, code, name, dtype, shape, length) => {
    await using writer = await createSafetensorsWriter(path);
    await writer.add("first", "U8", [1], counting(1));
    const adding = writer.add(name, dtype as Dtype, shape, new Uint8Array(length));
    await expect(adding).rejects.toThrow(failing(`safetensors/${code}`, "out.safetensors"));
    await writer.add("last", "U8", [1], counting(1));
    await writer.finish();
    expect((await contents()).map((tensor) => tensor.name)).toEqual(["first", "last"]);
  });

  it("metadata that is no text is refused before a file exists", async () => {
    const metadata = { layers: 3 as unknown as string };
    await expect(createSafetensorsWriter(path, { metadata })).rejects.toThrow(
      failing("safetensors/header-schema", "layers"),
    );
    expect(await readdir(folder)).toEqual([]);
  });
});
