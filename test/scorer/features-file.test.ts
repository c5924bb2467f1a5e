/** Files of features: ragged and padded, every fault of them, and the writer. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdir, readFile, truncate, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { StratumError } from "../../errors.ts";
import { seededRandom } from "../../kernels/random.ts";
import { arraySource, type FeatureArrays, type FeatureSource, listLength } from "../../scorer/feature-source.ts";
import { openFeatures } from "../../scorer/features-file.ts";
import { createFeaturesWriter } from "../../scorer/features-writer.ts";
import { decodeFloats, encodeFloats } from "../../weights/floats.ts";
import { openSafetensors } from "../../weights/safetensors.ts";
import type { Dtype } from "../../weights/safetensors-header.ts";
import { type Folder, temporaryFolder } from "../support/cli.ts";
import { firstBitDifference } from "../support/compare.ts";
import { failing } from "../support/failing.ts";
import { bytesOf, paddedTensors, raggedTensors, randomFeatures, readList, writeTensors } from "../support/features.ts";
import { SCORER_GOLDEN } from "../support/scorer-golden.ts";

let folder: Folder;
let path: string;
beforeEach(async () => {
  folder = await temporaryFolder();
  path = join(folder.path, "features.safetensors");
});
afterEach(() => folder[Symbol.asyncDispose]());

/** Reads every list of a source and compares it, bit for bit. */
async function expectSame(source: FeatureSource, features: FeatureArrays, order?: readonly number[]): Promise<void> {
  const expected = arraySource(features);
  expect(source.dim).toBe(features.dim);
  expect(source.offsets).toEqual(features.offsets);
  expect(source.labels).toEqual(features.labels);
  for (const b of order ?? Array.from({ length: source.lists }, (_, i) => i)) {
    expect(firstBitDifference(await readList(source, b), await readList(expected, b)), `list ${b}`).toBeUndefined();
  }
}
const rounded = (features: FeatureArrays, dtype: "F32" | "F16" | "BF16"): FeatureArrays => {
  const through = (values: Float32Array) => decodeFloats(encodeFloats(values, dtype), dtype);
  return { ...features, inst: through(features.inst), resp: through(features.resp) };
};

const LENGTHS = [3, 1, 300, 2, 57, 1, 1, 64];

describe("openFeatures", () => {
  it.each(["F32", "F16", "BF16"] as const)(
    "reads ragged and padded lists of 1 to 300 candidates: %s",
    async (dtype) => {
      const features = randomFeatures(LENGTHS, 5);
      for (const tensors of [raggedTensors(features, dtype), paddedTensors(features, 301, dtype)]) {
        await writeTensors(path, tensors);
        await using source = await openFeatures(path);
        expect(source.lists).toBe(LENGTHS.length);
        await expectSame(source, rounded(features, dtype));
        await expectSame(source, rounded(features, dtype), [7, 2, 2, 0, 5, 6, 1]);
      }
    },
  );

  it.each([
    ["ragged", "F32"],
    ["ragged", "BF16"],
    ["padded", "F32"],
    ["padded", "F16"],
  ] as const)(
    "reads a file past the read-ahead, forward, in any order and many at a time: %s %s",
    async (kind, dtype) => {
      // 1,500 lists of up to 6: about 10 MiB of F32 states.
      const random = seededRandom(3);
      const lengths = Array.from({ length: 1500 }, () => 1 + Math.floor(6 * random()));
      const features = randomFeatures(lengths, 512);
      await writeTensors(path, kind === "ragged" ? raggedTensors(features, dtype) : paddedTensors(features, 7, dtype));
      await using source = await openFeatures(path);
      const expected = rounded(features, dtype);
      await expectSame(source, expected);
      await expectSame(
        source,
        expected,
        Array.from({ length: 60 }, () => Math.floor(1500 * random())),
      );
      const lists = await Promise.all(Array.from({ length: 200 }, (_, i) => readList(source, 7 * i)));
      const alone = arraySource(expected);
      for (const [i, list] of lists.entries())
        expect(firstBitDifference(list, await readList(alone, 7 * i))).toBeUndefined();
    },
  );

  it("writes a list at a place of the target, and nothing else of it", async () => {
    const features = randomFeatures([2, 3], 4);
    await writeTensors(path, raggedTensors(features));
    await using source = await openFeatures(path);
    const target = new Float32Array(30).fill(9);
    await source.readList(1, target, 6);
    expect(target.subarray(0, 6)).toEqual(new Float32Array(6).fill(9));
    expect(target.subarray(22)).toEqual(new Float32Array(8).fill(9));
    expect(target.subarray(6, 22)).toEqual(await readList(arraySource(features), 1));
  });

  it.each(["I32", "I64", "U32"] as const)("takes offsets of %s, integer labels and masks of bytes", async (dtype) => {
    const features = randomFeatures([2, 3], 4);
    const labels = Float32Array.of(1, 0, -2, 3, 1);
    const { offsets } = features;
    const types = { I32: Int32Array.from(offsets), I64: BigInt64Array.from([...offsets].map(BigInt)), U32: offsets };
    await writeTensors(path, raggedTensors(features), {
      offsets: { dtype, bytes: bytesOf(types[dtype]) },
      labels: { dtype: "I64", bytes: bytesOf(BigInt64Array.from([...labels].map(BigInt))) },
    });
    await using ragged = await openFeatures(path);
    await expectSame(ragged, { ...features, labels });
    const other = join(folder.path, "padded.safetensors");
    await writeTensors(other, paddedTensors({ ...features, labels }, 3), {
      mask: { dtype: "BOOL", bytes: Uint8Array.of(0, 1, 1, 1, 1, 1) },
      labels: { dtype: "I8", bytes: bytesOf(Int8Array.of(99, 1, 0, -2, 3, 1)) },
      resp: {
        bytes: bytesOf(Float32Array.of(...new Array(4).fill(Number.NaN), ...features.resp)),
      },
    });
    await using padded = await openFeatures(other);
    await expectSame(padded, { ...features, labels });
  });

  it("reads the padded set of the golden scorer", async () => {
    await using source = await openFeatures(SCORER_GOLDEN);
    expect([source.dim, source.lists]).toEqual([32, 6]);
    expect(Array.from({ length: 6 }, (_, b) => listLength(source, b))).toEqual([3, 5, 8, 2, 6, 4]);
    await using file = await openSafetensors(SCORER_GOLDEN);
    const resp = decodeFloats(await file.read("resp"), "F32");
    const mask = decodeFloats(await file.read("mask"), "F32");
    for (let b = 0; b < 6; b++) {
      const list = await readList(source, b);
      let row = 1;
      for (let place = 0; place < 8; place++) {
        if (mask[8 * b + place] === 0) continue;
        const at = (8 * b + place) * 32;
        expect(list.subarray(32 * row, 32 * ++row)).toEqual(resp.subarray(at, at + 32));
      }
      expect(list.length).toBe(32 * row);
    }
  });
});

const F = randomFeatures([2, 3, 1], 4);
const u32 = (...values: number[]) => ({ bytes: bytesOf(Uint32Array.from(values)) });
const f32 = (...values: number[]) => ({ bytes: bytesOf(Float32Array.from(values)) });
const resized = (...shape: number[]) => ({
  shape,
  bytes: new Uint8Array(4 * shape.reduce((product, size) => product * size, 1)),
});

describe("a ragged file that is refused", () => {
  const faults: [string, Parameters<typeof writeTensors>[2], string, ...string[]][] = [
    ["no inst", { inst: null }, "features/missing-tensor", "'inst'"],
    ["no resp", { resp: null }, "features/missing-tensor", "'resp'"],
    ["no labels", { labels: null }, "features/missing-tensor", "'labels'"],
    ["no offsets", { offsets: null }, "features/missing-tensor", "'offsets'"],
    ["inst of one dimension", { inst: resized(12) }, "features/bad-shape", "'inst'", "\\[12\\]"],
    ["states of no width", { inst: resized(3, 0), resp: resized(6, 0) }, "features/bad-shape", "'inst'"],
    ["resp of another width", { resp: resized(6, 5) }, "features/bad-shape", "'resp'", "\\[6,5\\]", "\\[3,4\\]"],
    ["resp of one dimension", { resp: resized(24) }, "features/bad-shape", "'resp'"],
    ["too few labels", { labels: resized(5) }, "features/bad-shape", "'labels'", "\\(6\\)"],
    ["too many offsets", { offsets: resized(5) }, "features/bad-shape", "'offsets'", "\\(4\\)"],
    ["offsets of floats", { offsets: { dtype: "F32" } }, "features/bad-dtype", "'offsets'", "F32"],
    ["states of integers", { resp: { dtype: "I32" } }, "features/bad-dtype", "'resp'", "I32"],
    ["offsets from 1", { offsets: u32(1, 2, 5, 6) }, "features/bad-offsets", "begin with 1"],
    ["offsets that descend", { offsets: u32(0, 5, 2, 6) }, "features/bad-offsets", "offsets\\[1\\] is 5"],
    ["offsets that end early", { offsets: u32(0, 2, 4, 5) }, "features/bad-offsets", "end with 5"],
    ["offsets past the rows", { offsets: u32(0, 2, 5, 4e9) }, "features/bad-offsets", "4000000000"],
    ["an empty list", { offsets: u32(0, 2, 2, 6) }, "features/empty-list", "list 1"],
    ["an infinite label", { labels: f32(0, 1, Number.POSITIVE_INFINITY, 0, 0, 0) }, "features/bad-labels", "2 is"],
    ["labels of C64", { labels: { dtype: "C64" as Dtype, bytes: new Uint8Array(48) } }, "features/bad-dtype", "C64"],
  ];
  it.each(faults)("%s", async (_, change, code, ...words) => {
    await writeTensors(path, raggedTensors(F), change);
    await expect(openFeatures(path)).rejects.toThrow(failing(code, ...words));
  });

  it("negative I64 offsets", async () => {
    await writeTensors(path, raggedTensors(F), {
      offsets: { dtype: "I64", bytes: bytesOf(BigInt64Array.of(0n, -2n, 5n, 6n)) },
    });
    await expect(openFeatures(path)).rejects.toThrow(failing("features/bad-offsets", "is -2"));
  });

  it("none at all, and a folder", async () => {
    await expect(openFeatures(path)).rejects.toThrow(failing("features/missing", "features.safetensors"));
    await expect(openFeatures(folder.path)).rejects.toThrow(failing("file/not-a-file"));
  });
});

describe("a padded file that is refused", () => {
  const faults: [string, Parameters<typeof writeTensors>[2], string, ...string[]][] = [
    ["no mask", { mask: null }, "features/missing-tensor", "'mask'"],
    ["resp of other lists", { resp: resized(2, 3, 4) }, "features/bad-shape", "'resp'", "\\(3, M, 4\\)"],
    ["labels of another width", { labels: resized(3, 4) }, "features/bad-shape", "'labels'", "\\(3, 3\\)"],
    ["a flat mask", { mask: resized(9) }, "features/bad-shape", "'mask'"],
    ["a mask of halves", { mask: f32(1, 0.5, 0, 1, 1, 1, 0, 1, 0) }, "features/bad-mask", "list 0", "0.5 at place 1"],
    ["a mask of NaN", { mask: f32(1, 1, 0, 1, 1, 1, Number.NaN, 1, 0) }, "features/bad-mask", "list 2", "NaN"],
    ["an empty list", { mask: f32(1, 1, 0, 0, 0, 0, 0, 1, 0) }, "features/empty-list", "list 1"],
    ["an infinite label", { mask: f32(1, 1, 1, 1, 1, 1, 1, 1, 1) }, "features/bad-labels", "list 0, place"],
  ];
  it.each(faults)("%s", async (_, change, code, ...words) => {
    await writeTensors(path, paddedTensors(F, 3), change);
    await expect(openFeatures(path)).rejects.toThrow(failing(code, ...words));
  });
});

it("names list and row of a state that is not finite, and reads the other lists", async () => {
  const at = (row: number, value: number) => {
    const resp = F.resp.slice();
    resp[4 * row + 3] = value;
    return f32(...resp);
  };
  for (const [value, dtype] of [
    [Number.NaN, "F32"],
    [Number.NEGATIVE_INFINITY, "F32"],
    [1e39, "F16"],
  ] as const) {
    const resp = at(4, value);
    await writeTensors(path, raggedTensors(F), {
      resp: dtype === "F32" ? resp : { dtype, bytes: encodeFloats(new Float32Array(resp.bytes.buffer), dtype) },
    });
    await using source = await openFeatures(path);
    const words = ["list 1", "candidate 2", "row 3", "at 3"];
    await expect(readList(source, 1)).rejects.toThrow(failing("state/not-finite", ...words));
    await readList(source, 0);
    await readList(source, 2);
  }
  const inst = F.inst.slice();
  inst[8] = Number.NaN;
  await writeTensors(path, raggedTensors(F), { inst: f32(...inst) });
  await using source = await openFeatures(path);
  await expect(readList(source, 2)).rejects.toThrow(failing("state/not-finite", "list 2", "instruction", "row 0"));
});

it("takes any damage of a file as a StratumError or as other numbers", async () => {
  await writeTensors(path, paddedTensors(randomFeatures([2, 3], 2), 4));
  const whole = readFileSync(path);
  const random = seededRandom(11);
  const seen = new Set<string>();
  for (let run = 0; run < 600; run++) {
    const damaged = Uint8Array.from(whole);
    const near = run % 3 === 0 ? whole.length : 420;
    for (let k = 0; k <= random() * 3; k++) damaged[Math.floor(random() * near)] = Math.floor(random() * 256);
    const end = run % 5 === 0 ? Math.floor(random() * whole.length) : whole.length;
    await writeFile(path, damaged.subarray(0, end));
    try {
      await using source = await openFeatures(path);
      for (let b = 0; b < source.lists; b++) await readList(source, b);
      seen.add("read");
    } catch (thrown) {
      if (!(thrown instanceof StratumError)) throw thrown;
      seen.add(thrown.code.split("/")[0]!);
    }
  }
  expect([...seen]).toEqual(expect.arrayContaining(["read", "safetensors", "features"]));
});

it("tells a file that shrinks while it is read, and one that is closed", async () => {
  await writeTensors(path, raggedTensors(randomFeatures([3000, 3000], 256)));
  await using source = await openFeatures(path);
  await truncate(path, 5000);
  await expect(readList(source, 1)).rejects.toThrow(failing("safetensors/file-changed"));
  await source[Symbol.asyncDispose]();
  await expect(readList(source, 0)).rejects.toThrow(failing("safetensors/closed"));
});

describe("createFeaturesWriter", () => {
  async function write(features: FeatureArrays): Promise<void> {
    await using writer = await createFeaturesWriter(path, { dim: features.dim });
    const source = arraySource(features);
    for (let b = 0; b < source.lists; b++) {
      const list = await readList(source, b);
      const labels = features.labels.subarray(features.offsets[b], features.offsets[b + 1]);
      await writer.append(list.subarray(0, features.dim), list.subarray(features.dim), labels);
      expect(writer.lists).toBe(b + 1);
    }
    expect(existsSync(path)).toBe(false);
    const size = await writer.finish();
    expect(readFileSync(path).length).toBe(size);
  }

  it.each([
    ["lists of 1 to 300", LENGTHS, 5],
    ["past its buffers", Array.from({ length: 900 }, (_, i) => 1 + (i % 4)), 700],
    ["a list larger than a buffer", [400, 1], 1024],
    ["no list", [], 3],
  ] as const)("writes %s, bit for bit, and leaves one file", async (_, lengths, dim) => {
    const features = randomFeatures(lengths, dim);
    await write(features);
    await using source = await openFeatures(path);
    await expectSame(source, features);
    expect(readdirSync(folder.path)).toEqual(["features.safetensors"]);
  });

  it("gives what the npm package safetensors reads: no metadata", async () => {
    const features = randomFeatures([2, 1], 3);
    await write(features);
    const { SafeTensor } = createRequire(import.meta.url)("safetensors") as {
      SafeTensor: new (
        bytes: Uint8Array,
      ) => { metadata: Map<string, { dtype: string; shape: number[] }>; getTensor(name: string): Uint8Array };
    };
    const read = new SafeTensor(Uint8Array.from(await readFile(path)));
    expect(readFileSync(path, "latin1")).not.toContain("__metadata__");
    for (const name of ["inst", "resp", "labels", "offsets"] as const) {
      const bytes = Uint8Array.from(read.getTensor(name));
      expect(bytes, name).toEqual(Uint8Array.from(bytesOf(features[name])));
    }
  });

  it("refuses what does not fit, and goes on", async () => {
    await using writer = await createFeaturesWriter(path, { dim: 2 });
    const two = Float32Array.of(1, 2);
    await expect(writer.append(two, new Float32Array(0), [])).rejects.toThrow(failing("features/empty-list"));
    await expect(writer.append(two, two, [1, 0])).rejects.toThrow(failing("features/bad-shape", "2 labels"));
    await expect(writer.append(new Float32Array(3), two, [1])).rejects.toThrow(failing("features/bad-shape"));
    await expect(writer.append(two, two, [1e300])).rejects.toThrow(failing("features/bad-labels", "1e\\+300"));
    await writer.append(two, two, [Number.NaN]);
    await writer.finish();
    await expect(writer.append(two, two, [1])).rejects.toThrow(failing("features/closed"));
    await using source = await openFeatures(path);
    expect([source.lists, ...source.labels]).toEqual([1, Number.NaN]);
    await expect(createFeaturesWriter(path, { dim: 0 })).rejects.toThrow(failing("features/bad-shape"));
  });

  it("leaves an older file alone until it is finished, and nothing when it is aborted", async () => {
    await writeFile(path, "older");
    {
      await using first = await createFeaturesWriter(path, { dim: 1 });
      await using second = await createFeaturesWriter(path, { dim: 1 });
      await first.append(Float32Array.of(1), Float32Array.of(2), [0]);
      await second.append(Float32Array.of(3), Float32Array.of(4), [0]);
      expect(readFileSync(path, "utf8")).toBe("older");
      await second.finish();
    }
    expect(readdirSync(folder.path)).toEqual(["features.safetensors"]);
    await using source = await openFeatures(path);
    expect(await readList(source, 0)).toEqual(Float32Array.of(3, 4));
  });

  it("says where it could not write", async () => {
    const nowhere = join(folder.path, "no", "f.safetensors");
    await expect(createFeaturesWriter(nowhere, { dim: 1 })).rejects.toThrow(failing("file/write-failed", "ENOENT"));
    await mkdir(join(path, "full"), { recursive: true });
    await using writer = await createFeaturesWriter(path, { dim: 1 });
    await expect(writer.finish()).rejects.toThrow(failing("file/write-failed", "features.safetensors"));
    expect(readdirSync(folder.path)).toEqual(["features.safetensors"]);
  });
});
