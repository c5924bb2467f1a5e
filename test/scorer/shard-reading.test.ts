/** Files of shards, by turns: however little is read ahead, and more of them than are open. */
import { createHash } from "node:crypto";
import { appendFileSync, readdirSync, truncateSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openShardFiles } from "../../scorer/shard-reading.ts";
import { type Folder, temporaryFolder } from "../support/cli.ts";
import { failing } from "../support/failing.ts";

let folder: Folder;
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());

const recordOf = (text: string) => ({
  bytes: Buffer.byteLength(text),
  sha256: createHash("sha256").update(text).digest("hex"),
});

const LINES = ["", "é", "x".repeat(5000), "", "日本語".repeat(300), "a"];
const TEXT = `${LINES.join("\n")}\n${"b".repeat(4000)}c`;
const LENGTH = Buffer.byteLength(TEXT);

describe.each([
  ["all", 1],
  ["16", 2 ** 23],
  ["2", 2 ** 26],
  ["1", 2 ** 28],
])("a file of which %s bytes are read ahead", (ahead, readings) => {
  it("gives its lines and its bytes", async () => {
    const path = await folder.write(`sound-${ahead}`, TEXT);
    const files = openShardFiles(readings);
    const reading = files.read(path, recordOf(TEXT));
    for (const line of LINES) expect(await reading.line()).toBe(line);
    expect(reading.left).toBe(4001);
    await reading.skip(10);
    expect(Buffer.from(await reading.take(3000)).toString()).toBe("b".repeat(3000));
    expect(await reading.take(0)).toHaveLength(0);
    await reading.skip(989);
    expect(Buffer.from(await reading.take(2)).toString()).toBe("bc");
    expect(reading.left).toBe(0);
    await reading.end();
    await files.close();
  });

  it.each([
    ["is longer", (path: string) => appendFileSync(path, "b"), [LENGTH]],
    ["is shorter", (path: string) => truncateSync(path, LENGTH - 1), [LENGTH]],
    ["is not read to its end", () => undefined, [LENGTH - 1]],
    ["is asked for more", () => undefined, [5, LENGTH]],
  ])("and that %s is told", async (name, change, lengths) => {
    const path = await folder.write(`${name}-${ahead}`, TEXT);
    change(path);
    const files = openShardFiles(readings);
    for (const way of ["take", "skip"] as const) {
      const reading = files.read(path, recordOf(TEXT));
      const read = async () => {
        for (const length of lengths) await reading[way](length);
        await reading.end();
      };
      await expect(read()).rejects.toThrow(failing("usage/shard-changed"));
    }
    await files.close();
  });

  it("and a line that does not end is told", async () => {
    const path = await folder.write(`line-${ahead}`, "a\nb");
    const files = openShardFiles(readings);
    const reading = files.read(path, recordOf("a\nb"));
    expect(await reading.line()).toBe("a");
    await expect(reading.line()).rejects.toThrow(failing("usage/shard-changed"));
    await files.close();
  });
});

it("Files that are more than can be open are read by turns", async () => {
  const texts = Array.from({ length: 100 }, (_, i) => `${i}\n${"x".repeat(10)}\n${i}\n`);
  const paths = await Promise.all(texts.map((text, i) => folder.write(`many-${i}`, text)));
  const open = () => (process.platform === "linux" ? readdirSync("/proc/self/fd").length : 0);
  const before = open();
  // Two bytes are read ahead, so that each line has to be fetched.
  const files = openShardFiles(2 ** 26);
  const readings = paths.map((path, i) => files.read(path, recordOf(texts[i]!)));
  for (const line of [0, 1, 2]) {
    for (const [i, reading] of readings.entries())
      expect(await reading.line()).toBe(line === 1 ? "x".repeat(10) : `${i}`);
    expect(open() - before).toBeLessThanOrEqual(32);
  }
  for (const reading of readings) await reading.end();
  await files.close();
  expect(open()).toBe(before);
});

it("A file that is not there is told when it is read", async () => {
  const files = openShardFiles(1);
  const reading = files.read(`${folder.path}/none`, recordOf("a\n"));
  await expect(reading.line()).rejects.toThrow(failing("file/unreadable", "none cannot be read"));
  await files.close();
});
