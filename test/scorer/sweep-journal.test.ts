/** A sweep's folder: it goes on where it was stopped, and belongs to one run. */
import { appendFile, mkdir, readdir, readFile, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { ReportCell } from "../../scorer/report-data.ts";
import { type CellKey, checkReportFolder, openJournal } from "../../scorer/sweep-journal.ts";
import { temporaryFolder } from "../support/cli.ts";
import { failing } from "../support/failing.ts";

let parent: Awaited<ReturnType<typeof temporaryFolder>>;
let folder = "";
beforeEach(async () => {
  parent = await temporaryFolder();
  folder = join(parent.path, "report");
});
afterEach(() => parent[Symbol.asyncDispose]());

const cell = (method: string, seed: number, layers: number[] | null = [1]): ReportCell => ({
  ...{ method, seed, layers, pooling: layers && "last", trained: "a", measured: "a", pointwise: true },
  ...{
    lists: [3, 5],
    top1: [1, null],
    pairwise: [0.5, 1 / 3],
    mrr: [1, 0.5],
    ndcg: [1, 0.9],
    highest: [0.25, -1e-9],
    ms: 7,
  },
});
const UNITS = [
  [cell("random", 0, null)],
  [cell("raw cosine", 0), cell("linear probe", 0)],
  [cell("raw cosine", 1), cell("linear probe", 1)],
];
const keys: readonly (readonly CellKey[])[] = UNITS;
const IDENTITY = { model: "demo", seeds: [0, 1], safe_from: null, absent: undefined };
const openWith = (identity: Readonly<Record<string, unknown>> = IDENTITY, overwrite = false) =>
  openJournal(folder, identity, { overwrite, units: keys });
const cells = () => join(folder, "cells.jsonl");

/** What a folder holds. */
async function look() {
  await using journal = await openWith();
  const { cells, units, costs } = journal;
  return { cells, units, costs };
}

async function addAll(from = 0, to = UNITS.length): Promise<void> {
  await using journal = await openWith();
  for (const unit of UNITS.slice(from, to)) await journal.add(unit);
}

describe("a folder", () => {
  it("takes units in their order, and gives them back to the bit", async () => {
    await addAll();
    expect(await look()).toEqual({ units: 3, cells: UNITS.flat(), costs: null });
  });

  it("keeps costs, and measures damaged ones again", async () => {
    const costs = [
      {
        ...{ layer: 1, pooling: "last", lists: 3, ms: { median: 1.5, low: 1, high: 2 }, tokens_per_s: 10 },
        ...{ gpu_bytes: 4, weight_bytes: 3, disk_bytes: 2 },
      },
    ];
    await using journal = await openWith();
    await journal.keepCosts(costs);
    expect((await look()).costs).toEqual(costs);
    await truncate(join(folder, "costs.json"), 20);
    expect((await look()).costs).toBeNull();
  });

  /** Length of the file with so many units. */
  const sizes = async () => {
    await addAll();
    const lines = (await readFile(cells(), "utf8")).trimEnd().split("\n");
    const lengths = lines.map((line) => Buffer.byteLength(line) + 1);
    return { lengths, whole: lengths.reduce((sum, length) => sum + length, 0) };
  };

  it("goes on after the last whole unit, wherever its file was cut", async () => {
    const { lengths, whole } = await sizes();
    const [first, second, third] = lengths as [number, number, number];
    for (const [length, units] of [
      [0, 0],
      [first - 1, 0],
      [first, 1],
      [first + 1, 1],
      // One line of two: the unit is not whole.
      [first + second, 1],
      [first + second + third - 1, 1],
      [first + second + third, 2],
      [whole - 1, 2],
    ] as const) {
      await truncate(cells(), length);
      await using journal = await openWith();
      expect([length, journal.units]).toEqual([length, units]);
      for (const unit of UNITS.slice(units)) await journal.add(unit);
      expect((await look()).cells).toEqual(UNITS.flat());
    }
  });

  it("drops what follows a line that is no cell of this run", async () => {
    const { lengths } = await sizes();
    const bytes = await readFile(cells());
    bytes[lengths[0]! + 5] = 0x7b;
    await writeFile(cells(), bytes);
    await using journal = await openWith();
    expect([journal.units, journal.cells]).toEqual([1, UNITS[0]]);
    expect((await stat(cells())).size).toBe(lengths[0]);
  });

  it("takes no value that has changed since it was written, though it reads as one", async () => {
    const { lengths } = await sizes();
    const text = await readFile(cells(), "utf8");
    await writeFile(cells(), text.replaceAll('"ms":7', '"ms":8'));
    expect((await look()).units).toBe(0);
    await addAll();
    const again = await readFile(cells(), "utf8");
    expect(again).toBe(text);
    // Of the last unit alone.
    await writeFile(cells(), text.slice(0, -9).replace(/$/, text.slice(-9).replace("7", "8")));
    expect((await look()).units).toBe(2);
    expect((await stat(cells())).size).toBe(lengths.slice(0, 3).reduce((sum, length) => sum + length, 0));
  });

  it("takes no cell of another method, seed or place for the expected one", async () => {
    for (const other of [cell("shortest", 0, null), cell("random", 1, null), cell("random", 0, [1])]) {
      await addAll(0, 0);
      await writeFile(cells(), `${JSON.stringify(other)}\n`);
      expect((await look()).units).toBe(0);
    }
  });

  it("of another run is refused, with what differs and nothing else", async () => {
    await addAll();
    const refused = openWith({ ...IDENTITY, seeds: [0, 1, 2], k: 5 });
    await expect(refused).rejects.toThrow(
      failing("report/other-run", /seeds was \[0,1\], is \[0,1,2\]; k was undefined, is 5/),
    );
    await expect(refused).rejects.not.toThrow("demo");
    expect((await look()).units).toBe(3);
  });

  it("is replaced when that is asked for, with nothing of the old run left but other people's files", async () => {
    await addAll();
    await writeFile(join(folder, "report.json"), "{}");
    await writeFile(join(folder, "notes.txt"), "mine");
    await using journal = await openWith({ ...IDENTITY, seeds: [4] }, true);
    expect(journal.units).toBe(0);
    expect((await readdir(folder)).sort()).toEqual(["cells.jsonl", "cells.sums", "notes.txt", "run.json"]);
  });

  it("that holds other things is refused, and a damaged record is told", async () => {
    await mkdir(folder);
    await checkReportFolder(folder, false);
    await writeFile(join(folder, "thesis.tex"), "");
    await expect(checkReportFolder(folder, false)).rejects.toThrow(failing("usage/output-exists", "holds no sweep"));
    await checkReportFolder(folder, true);
    await expect(checkReportFolder(join(folder, "thesis.tex"), true)).rejects.toThrow(
      failing("usage/output", "is a file"),
    );
    await appendFile(join(folder, "run.json"), '{"format": "stratum-sweep"}');
    await expect(openWith()).rejects.toThrow(failing("report/damaged", "run.json"));
    await checkReportFolder(join(parent.path, "absent"), false);
  });
});
