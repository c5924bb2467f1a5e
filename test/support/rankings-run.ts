/** Runs that write a file of rankings without a model, a record a list: to be stopped anywhere and gone on with. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll } from "vitest";
import type { Machine } from "../../scorer/journal.ts";
import type { ListLine } from "../../scorer/lists.ts";
import { readLists } from "../../scorer/lists.ts";
import { openRankingsFile, type RankingsFileRequest } from "../../scorer/rankings-file.ts";
import { type Folder, temporaryFolder } from "./cli.ts";

export const MACHINE: Machine = { adapter: "a", kernels: "k", tiles: [] };
export const LISTS = 400;
/** Duplicates, blank lines, lines that are no lists, ids and none. */
export const TEXT = Array.from({ length: LISTS }, (_, i) => {
  if (i % 37 === 5) return "";
  if (i % 41 === 7) return "{";
  const id = i % 53 === 50 ? { id: `q${i - 50}` } : i % 5 === 0 ? {} : { id: `q${i}` };
  return JSON.stringify({ ...id, instruction: `é ${"x".repeat(i % 90)}`, candidates: ["a", "b"] });
}).join("\n");

/** Folders of runs: for a file of tests, which it is gone with. */
export function runFolders(): { path(): string; place(): string } {
  let folder: Folder;
  let number = 0;
  beforeAll(async () => {
    folder = await temporaryFolder();
  });
  afterAll(() => folder[Symbol.asyncDispose]());
  return {
    path: () => folder.path,
    /** A folder of a run's own, with its lists. */
    place() {
      const path = join(folder.path, String(number++));
      mkdirSync(path);
      writeFileSync(join(path, "lists.jsonl"), TEXT);
      return path;
    },
  };
}

const record = (line: ListLine): string =>
  `${JSON.stringify({ id: line.id, ...(line.kind === "error" ? { error: line.error.message } : { results: [line.line] }) })}\n`;

export interface Work extends Partial<Omit<RankingsFileRequest, "output" | "input">> {
  readonly machine?: Machine;
  /** Called behind each record. */
  readonly each?: (records: number) => void | Promise<void>;
  /** Called when all is done but the names. */
  readonly last?: () => Promise<void>;
}

export class Stopped extends Error {}

/** Does what is left. @returns the records that were made now, and where they began */
export async function work(path: string, { machine = MACHINE, each, last, ...more }: Work = {}) {
  const input = join(path, "lists.jsonl");
  const file = await openRankingsFile({
    ...{ output: join(path, "out"), input, run: { layer: 1 }, append: false, restart: false },
    ...{ held: async () => true, plan: async () => ({ total: LISTS, ranges: null, whole: null }) },
    ...more,
  });
  const began = file.resumed.state?.counts.lists ?? 0;
  if (file.finished !== null) {
    await file.complete();
    return { began, made: 0, verify: false };
  }
  const sink = file.begin(machine);
  let made = 0;
  try {
    for await (const line of readLists(input, file.resumed.read)) {
      const { counts, base } = sink.state;
      const next = { ...counts, lists: counts.lists + 1 };
      await sink.write(record(line), { position: line.position!, base, counts: next, finishing: false });
      made++;
      await each?.(began + made);
    }
    await sink.finish(last);
  } catch (cause) {
    await sink.leave();
    if (!(cause instanceof Stopped)) throw cause;
  }
  return { began, made, verify: file.resumed.verify };
}

export const stopAt = (records: number) => (made: number) => {
  if (made === records) throw new Stopped();
};
export const outputOf = (path: string) => readFileSync(join(path, "out"), "utf8");
export const filesOf = (path: string) => readdirSync(path).sort();
