/**
 * A sweep's folder while it runs: what the run is, its finished units, its costs. Started again in the same folder, the
 * same run goes on after the last unit that is whole; another run's folder is refused. Beside the cells, which are for
 * everybody to read, lies a hash of each unit: a digit that has changed would be a result.
 */
import { createHash } from "node:crypto";
import { type FileHandle, open, readdir, readFile, rename, rm, stat, truncate } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { messageOf, StratumError } from "../errors.ts";
import { makeFolder, removeStale, syncFolder, temporaryName, writeFailed, writeSynced } from "../weights/durable.ts";
import { isSystemError, readJsonFile, show } from "../weights/json.ts";
import { sealed, unsealed } from "../weights/seal.ts";
import { cellSchema, costSchema, REPORT_FILES, type ReportCell, type ReportCost } from "./report-data.ts";

/** What must be the same for a run to go on, by name, in the words that a difference is told with. */
export type SweepIdentity = Readonly<Record<string, unknown>>;

/** Of a cell, what says which one it is. */
export type CellKey = Pick<ReportCell, "method" | "layers" | "pooling" | "seed" | "trained" | "measured">;

const RUN_FILE = "run.json";
const COSTS_FILE = "costs.json";
const SUMS_FILE = "cells.sums";
const RUN_VERSION = 1;

const runSchema = z.object({
  format: z.literal("stratum-sweep"),
  version: z.literal(RUN_VERSION),
  run: z.record(z.string(), z.unknown()),
});
const MAX_BYTES = 2 ** 28;

/** Disposing it closes its file; what was added stays. */
export interface SweepJournal extends AsyncDisposable {
  /** Cells of the units that an earlier part of the run has finished. */
  readonly cells: readonly ReportCell[];
  /** How many units those are. */
  readonly units: number;
  /** Null where they have not been measured. */
  readonly costs: readonly ReportCost[] | null;
  /** Adds a finished unit; on disk when it returns. @throws {StratumError} `file/write-failed` */
  add(cells: readonly ReportCell[]): Promise<void>;
  /** @throws {StratumError} `file/write-failed` */
  keepCosts(costs: readonly ReportCost[]): Promise<void>;
}

export interface JournalOptions {
  /** Replace another run's files. */
  readonly overwrite: boolean;
  /** The cells of every unit, in the order in which they are added. */
  readonly units: readonly (readonly CellKey[])[];
}

/**
 * Checks that a folder can be used, before any work: it is absent, empty, or a sweep's.
 * @throws {StratumError} `usage/output`, `usage/output-exists`, `file/write-failed`
 */
export async function checkReportFolder(folder: string, overwrite: boolean): Promise<void> {
  const found = await stat(folder).catch((cause: unknown) => {
    if (isSystemError(cause, "ENOENT")) return undefined;
    throw writeFailed(folder, cause);
  });
  if (found === undefined) return;
  if (!found.isDirectory())
    throw new StratumError("usage/output", `${folder} is a file`, "give -o the name of a folder");
  const names = await readdir(folder).catch((cause: unknown) => {
    throw writeFailed(folder, cause);
  });
  if (names.length === 0 || names.includes(RUN_FILE) || overwrite) return;
  throw new StratumError(
    "usage/output-exists",
    `${folder} exists, is not empty, and holds no sweep`,
    "give -o another name, or put a sweep into it all the same with --overwrite",
  );
}

/**
 * Opens a run's folder, or makes it.
 * @throws {StratumError} `report/other-run` with what differs, `report/damaged`, `usage/output`, `usage/output-exists`,
 *   `file/...`
 */
export async function openJournal(
  folder: string,
  identity: SweepIdentity,
  { overwrite, units }: JournalOptions,
): Promise<SweepJournal> {
  await checkReportFolder(folder, overwrite);
  const guarded = async <T>(step: () => Promise<T>): Promise<T> =>
    step().catch((cause: unknown) => {
      throw writeFailed(folder, cause);
    });
  // As it will be read back.
  const run = JSON.parse(JSON.stringify(identity)) as Record<string, unknown>;
  const runPath = join(folder, RUN_FILE);
  const before = overwrite ? null : await readRun(runPath);
  if (before !== null) checkSameRun(folder, before, run);
  else {
    await guarded(async () => {
      await makeFolder(folder);
      await removeStale(folder);
      for (const name of [RUN_FILE, COSTS_FILE, SUMS_FILE, ...Object.values(REPORT_FILES)])
        await rm(join(folder, name), { force: true });
      await writeWhole(runPath, `${JSON.stringify({ format: "stratum-sweep", version: RUN_VERSION, run }, null, 2)}\n`);
    });
  }
  const path = join(folder, REPORT_FILES.cells);
  const sumsPath = join(folder, SUMS_FILE);
  const kept = await readCells(path, sumsPath, units);
  const [file, sums]: readonly FileHandle[] = await guarded(async () => {
    if (kept.bytes !== null) await truncate(path, kept.bytes);
    await writeWhole(sumsPath, kept.sums.map((sum) => `${sum}\n`).join(""));
    return [await open(path, "a"), await open(sumsPath, "a")];
  });
  let added = kept.units;
  return {
    cells: kept.cells,
    units: kept.units,
    costs: await readCosts(join(folder, COSTS_FILE)),
    add: (cells) =>
      guarded(async () => {
        const text = cells.map((cell) => `${JSON.stringify(cell)}\n`).join("");
        await file.appendFile(text);
        await file.datasync();
        await sums.appendFile(`${sumOf(added++, Buffer.from(text))}\n`);
        await sums.datasync();
      }),
    keepCosts: (costs) => guarded(() => writeWhole(join(folder, COSTS_FILE), `${sealed({ costs })}\n`)),
    async [Symbol.asyncDispose]() {
      await file.close();
      await sums.close();
    },
  };
}

/** Writes a text under a name that it gets when it is whole. @throws {StratumError} `file/write-failed` */
export async function writeWhole(path: string, text: string): Promise<void> {
  const temporary = temporaryName(path);
  try {
    await writeSynced(temporary, text);
    await rename(temporary, path);
    await syncFolder(join(path, ".."));
  } catch (cause) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw writeFailed(path, cause);
  }
}

/** What run a folder holds; null where it holds none. */
async function readRun(path: string): Promise<Record<string, unknown> | null> {
  const fix = "give -o another folder, or replace what is there with --overwrite";
  try {
    const value = await readJsonFile(path, {
      ...{
        what: "the record of the sweep",
        maxBytes: MAX_BYTES,
        missing: "report/missing",
        bad: "report/damaged",
        fix,
      },
    });
    const parsed = runSchema.safeParse(value);
    if (parsed.success) return parsed.data.run;
    throw new StratumError("report/damaged", `${path} is no record of a sweep: ${z.prettifyError(parsed.error)}`, fix);
  } catch (thrown) {
    if (thrown instanceof StratumError && thrown.code === "report/missing") return null;
    throw thrown;
  }
}

/** @throws {StratumError} `report/other-run` */
function checkSameRun(folder: string, before: SweepIdentity, now: SweepIdentity): void {
  const differs = [...new Set([...Object.keys(before), ...Object.keys(now)])].filter(
    (name) => JSON.stringify(before[name]) !== JSON.stringify(now[name]),
  );
  if (differs.length === 0) return;
  throw new StratumError(
    "report/other-run",
    `${folder} holds another run: ${differs.map((name) => `${name} was ${show(before[name])}, is ${show(now[name])}`).join("; ")}`,
    "go on with the words, data, model and adapter of the run that is there, give -o another folder, or replace it with --overwrite",
  );
}

/**
 * The cells of whole units at the beginning of a file, and where they end. What follows, a torn line or a unit that was not
 * finished, is computed again.
 */
async function readCells(
  path: string,
  sumsPath: string,
  units: JournalOptions["units"],
): Promise<{
  readonly cells: ReportCell[];
  readonly units: number;
  readonly sums: readonly string[];
  readonly bytes: number | null;
}> {
  const bytes = await readIfThere(path);
  const sums = (await readIfThere(sumsPath))?.toString("latin1").split("\n") ?? [];
  const cells: ReportCell[] = [];
  let [at, whole] = [0, 0];
  if (bytes === null) return { cells, units: 0, sums: [], bytes };
  for (const expected of units) {
    const own: ReportCell[] = [];
    let end = at;
    for (const key of expected) {
      const newline = bytes.indexOf(0x0a, end);
      const cell = newline < 0 ? null : parseCell(bytes.toString("utf8", end, newline), key);
      if (cell === null) break;
      own.push(cell);
      end = newline + 1;
    }
    if (own.length < expected.length || sumOf(whole, bytes.subarray(at, end)) !== sums[whole]) break;
    cells.push(...own);
    at = end;
    whole++;
  }
  return { cells, units: whole, sums: sums.slice(0, whole), bytes: at };
}

/** Of a unit's lines, in its place. */
function sumOf(unit: number, lines: Uint8Array): string {
  return createHash("sha256").update(`${unit}:`).update(lines).digest("hex");
}

async function readIfThere(path: string): Promise<Buffer | null> {
  return await readFile(path).catch((cause: unknown) => {
    if (isSystemError(cause, "ENOENT")) return null;
    throw new StratumError(
      "file/unreadable",
      `${path} cannot be read: ${messageOf(cause)}`,
      "check its permissions",
      cause,
    );
  });
}

/** A line's cell where it is the expected one. */
function parseCell(line: string, expected: CellKey): ReportCell | null {
  try {
    const cell = cellSchema.parse(JSON.parse(line));
    return cellName(cell) === cellName(expected) ? cell : null;
  } catch {
    return null;
  }
}

function cellName({ method, layers, pooling, seed, trained, measured }: CellKey): string {
  return JSON.stringify([method, layers, pooling, seed, trained, measured]);
}

/** Null where there are none, or damaged ones: they are measured again. */
async function readCosts(path: string): Promise<ReportCost[] | null> {
  try {
    return z.array(costSchema).parse(unsealed(JSON.parse(await readFile(path, "utf8")))?.["costs"]);
  } catch {
    return null;
  }
}
