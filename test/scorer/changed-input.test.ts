/** A file of lists that somebody writes to while it is read: lines that were in no version of it are not ranked in silence. */
import { appendFileSync, readFileSync, renameSync, truncateSync, unlinkSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { START } from "../../scorer/json-lines.ts";
import { type ReadOptions, readLists } from "../../scorer/lists.ts";
import { inputFacts } from "../../scorer/resume.ts";
import { planShard } from "../../scorer/shards.ts";
import { type Folder, temporaryFolder } from "../support/cli.ts";

let folder: Folder;
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());

/** More than a reader takes at once. */
const COUNT = 20_000;
const line = (i: number) => `${JSON.stringify({ id: i, instruction: `What is ${i}?`, candidates: ["A.", `${i}.`] })}\n`;
const TEXT = Array.from({ length: COUNT }, (_, i) => line(i)).join("");
let files = 0;
const fresh = () => folder.write(`${++files}.jsonl`, TEXT);

/** Reads the file, and changes it after the first list. @returns how many lists came, and the error at the end */
async function read(path: string, change: (path: string) => void, options: ReadOptions = {}) {
  let lists = 0;
  try {
    for await (const item of readLists(path, options)) {
      expect(item.kind).toBe("list");
      if (lists++ === 0) change(path);
    }
  } catch (thrown) {
    return { lists, error: thrown };
  }
  return { lists, error: null };
}

const changed = expect.objectContaining({ code: "usage/other-input" });

describe("a file of lists that, while it is read,", () => {
  it.each([
    ["is cut at a line's end", (path: string) => truncateSync(path, TEXT.indexOf("\n", TEXT.length / 2) + 1)],
    ["is emptied", (path: string) => truncateSync(path)],
    ["grows by a line", (path: string) => appendFileSync(path, line(COUNT))],
    ["grows by a part of one", (path: string) => appendFileSync(path, '{"id": 9')],
    ["gets other bytes", (path: string) => writeFileSync(path, TEXT.replaceAll("What", "Such"))],
  ])("%s is told of at its end", async (_, change) => {
    expect((await read(await fresh(), change)).error).toEqual(changed);
    expect((await read(await fresh(), change, { from: START })).error).toEqual(changed);
  });

  it.each([
    ["is left alone", () => undefined],
    [
      "gives way to another of its name",
      (path: string) => {
        writeFileSync(`${path}.next`, "{");
        renameSync(`${path}.next`, path);
      },
    ],
    ["loses its name", unlinkSync],
  ])("%s is read to its end as it was", async (_, change) => {
    expect(await read(await fresh(), change)).toEqual({ lists: COUNT, error: null });
  });

  it("changes between two stretches of a shard is told of", async () => {
    const path = await fresh();
    const { ranges, total } = await planShard(path, { index: 2, count: 3 });
    expect(await read(path, () => undefined, { from: START, ranges })).toEqual({ lists: total, error: null });
    expect((await read(path, (own) => utimesSync(own, 1, 1), { from: START, ranges })).error).toEqual(changed);
    const other = (own: string) => {
      writeFileSync(`${own}.next`, readFileSync(own));
      renameSync(`${own}.next`, own);
    };
    expect((await read(path, other, { from: START, ranges })).error).toEqual(changed);
  });
});

it("a file that is another than when the run began is told of at once", async () => {
  const path = await fresh();
  const facts = await inputFacts(path);
  expect((await read(path, () => undefined, { facts })).error).toBeNull();
  appendFileSync(join(path), "\n");
  expect(await read(path, () => undefined, { facts })).toEqual({ lists: 0, error: changed });
});
