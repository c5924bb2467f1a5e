import { existsSync, readdirSync } from "node:fs";
import { mkdtemp, open, readFile, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { newReadLog, openSafetensors } from "../../weights/safetensors.ts";
import { failing } from "../support/failing.ts";
import { encode, fileOf, TWO } from "../support/safetensors-file.ts";

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "stratum-safetensors-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function saved(bytes: Uint8Array, name = "m.safetensors"): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, bytes);
  return path;
}

describe("reading", () => {
  it("gives names, shapes, metadata and bytes, and counts what was read", async () => {
    const header = `{"__metadata__":{"format":"pt"},${TWO.slice(1)}`;
    await using file = await openSafetensors(await saved(fileOf(header, 22)));
    expect([...file.tensors.keys()]).toEqual(["a", "b"]);
    expect(file.metadata).toEqual({ format: "pt" });
    expect(file.info("b")).toEqual({
      name: "b",
      dtype: "BF16",
      shape: [3],
      byteLength: 6,
      fileOffset: 8 + header.length + 16,
    });
    expect(file.log).toEqual({ bytes: 0, headerBytes: 8 + header.length, tensors: new Map() });

    expect([...(await file.read("b"))]).toEqual([16, 17, 18, 19, 20, 21]);
    expect([...(await file.readRange("a", 5, 3))]).toEqual([5, 6, 7]);
    const target = new Uint8Array(4);
    await file.readInto("a", 12, target.subarray(1, 3));
    expect([...target]).toEqual([0, 12, 13, 0]);
    expect(file.log.bytes).toBe(11);
    expect(file.log.tensors).toEqual(
      new Map([
        ["b", 6],
        ["a", 5],
      ]),
    );
  });

  it("reads into a buffer of its own that any typed array can view", async () => {
    await using file = await openSafetensors(await saved(fileOf(TWO, 22)));
    const bytes = await file.read("a");
    expect([bytes.byteOffset, bytes.buffer.byteLength]).toEqual([0, 16]);
    expect(new Uint32Array(bytes.buffer)[1]).toBe(0x07060504);
  });

  it("refuses unknown tensors, ranges outside a tensor, and reads after closing", async () => {
    const file = await openSafetensors(await saved(fileOf(TWO, 22)));
    await expect(file.read("toString")).rejects.toThrow(failing("safetensors/no-tensor", "toString", "m.safetensors"));
    for (const [start, length] of [
      [15, 2],
      [-1, 1],
      [0.5, 1],
      [0, 17],
      [0, -1],
      [Number.NaN, 1],
    ] as const) {
      await expect(file.readRange("a", start, length)).rejects.toThrow(failing("safetensors/bad-range", '"a"'));
    }
    expect(file.log.bytes).toBe(0);
    await file.close();
    await file.close();
    await expect(file.read("a")).rejects.toThrow(failing("safetensors/closed"));
  });

  it("notices that the file shrank while it was open", async () => {
    const path = await saved(fileOf(TWO, 22));
    await using file = await openSafetensors(path);
    await truncate(path, (await readFile(path)).length - 4);
    await expect(file.read("b")).rejects.toThrow(failing("safetensors/file-changed", '"b"', "2 of 6 bytes"));
    expect(file.log.bytes).toBe(2);
    expect((await file.read("a")).length).toBe(16);
  });
});

describe("files that are none", () => {
  it("says which file is missing, and that a link leads nowhere", async () => {
    const missing = join(folder, "none.safetensors");
    await expect(openSafetensors(missing)).rejects.toThrow(failing("model/file-missing", "none.safetensors"));
    await symlink(join(folder, "blob"), join(folder, "link.safetensors"));
    await expect(openSafetensors(join(folder, "link.safetensors"))).rejects.toThrow(
      failing("model/file-missing", "link to a file that is not there"),
    );
  });

  it("refuses a folder", async () => {
    await expect(openSafetensors(folder)).rejects.toThrow(failing("file/not-a-file"));
  });

  it("refuses files too short for a header", async () => {
    await expect(openSafetensors(await saved(new Uint8Array(0)))).rejects.toThrow(
      failing("safetensors/too-short", "0 bytes"),
    );
    await expect(openSafetensors(await saved(new Uint8Array(7)))).rejects.toThrow(failing("safetensors/too-short"));
    await expect(openSafetensors(await saved(new Uint8Array(8)))).rejects.toThrow(failing("safetensors/header-json"));
  });

  it("recognises a Git LFS pointer, a zip and a web page", async () => {
    const fixes: [string, RegExp][] = [
      ["version https://git-lfs.github.com/spec/v1\n", /git lfs pull/],
      ["PK\u0003\u0004........", /zip/],
      ["<!DOCTYPE html>", /web page/],
      ["GGUF\u0003.......", /GGUF/],
    ];
    for (const [text, fix] of fixes) {
      const opening = openSafetensors(await saved(encode(text)));
      await expect(opening).rejects.toMatchObject({
        code: "safetensors/header-too-large",
        fix: expect.stringMatching(fix),
      });
    }
  });

  it("refuses a header longer than the file or the limit, without allocating it", async () => {
    const cut = fileOf(TWO, 22).subarray(0, 40);
    await expect(openSafetensors(await saved(cut))).rejects.toThrow(
      failing("safetensors/header-truncated", "40 in all"),
    );
    const huge = fileOf("{}", 0);
    new DataView(huge.buffer).setBigUint64(0, 2n ** 64n - 1n, true);
    await expect(openSafetensors(await saved(huge))).rejects.toThrow(
      failing("safetensors/header-too-large", "18446744073709551615"),
    );
    // A sparse file: the length is within the file, and yet over the limit.
    const path = await saved(new Uint8Array(0), "sparse.safetensors");
    const handle = await open(path, "r+");
    const length = new Uint8Array(8);
    new DataView(length.buffer).setBigUint64(0, 100_000_001n, true);
    await handle.write(length);
    await handle.truncate(200_000_000);
    await handle.close();
    await expect(openSafetensors(path)).rejects.toThrow(failing("safetensors/header-too-large", "100000001"));
  });
});

const families = resolve(import.meta.dirname, "../../../shared/golden/families");

describe.skipIf(!existsSync(families))(
  "files written by Python's safetensors (needs ../shared beside the repository)",
  () => {
    const paths = existsSync(families)
      ? readdirSync(families).flatMap((family) =>
          readdirSync(join(families, family))
            .filter((file) => file.endsWith(".safetensors"))
            .map((file) => join(family, file)),
        )
      : [];

    it.each(paths)("%s opens, and only its header is read", async (path) => {
      const log = newReadLog();
      await using file = await openSafetensors(join(families, path), log);
      expect(file.tensors.size).toBeGreaterThan(0);
      expect(log.bytes).toBe(0);
      const [name] = file.tensors.keys();
      const bytes = await file.read(name!);
      expect(log.bytes).toBe(bytes.byteLength);
    });
  },
);
