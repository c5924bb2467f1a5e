/**
 * A million tiny lists (STRATUM_LOAD_LISTS: another number) through `rank`, stopped at 90%: the resident size does not
 * grow with the lists but by what their ids take, the journal stays small, and what was done is not read again.
 */
import { execFile } from "node:child_process";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type Folder, lastJsonLine, REPOSITORY, startStratum, temporaryFolder } from "../support/cli.ts";

const LISTS = Number(process.env["STRATUM_LOAD_LISTS"] ?? 1_000_000);
const HOURS_MS = 4 * 3_600_000;
const MIB = 2 ** 20;
/** Of the ids: 16 bytes, and a place in a table that is at least a third full and doubles beside its old self. */
const BYTES_A_LIST = 64;

let folder: Folder;
beforeAll(async () => {
  folder = await temporaryFolder();
  await promisify(execFile)("npx", ["tsx", "test/large/make-tiny-lists.ts", folder.path, String(LISTS)], {
    cwd: REPOSITORY,
  });
}, 600_000);
afterAll(() => folder[Symbol.asyncDispose]());

it(`${LISTS} tiny lists stream through, and a stop at 90% costs seconds`, { timeout: HOURS_MS }, async () => {
  const out = join(folder.path, "out.jsonl");
  const flags = ["--model", join(folder.path, "model"), "--layer", "1", "--json", "-o", out];
  const start = () => startStratum(["rank", join(folder.path, "lists.jsonl"), ...flags], { hangsMs: HOURS_MS });
  const inputBytes = statSync(join(folder.path, "lists.jsonl")).size;
  const size = (path: string) => statSync(path, { throwIfNoEntry: false })?.size ?? 0;
  const written = () => size(`${out}.partial`);
  const pause = () => new Promise((resolve) => setTimeout(resolve, 100));

  const first = start();
  const resident: { lists: number; mib: number }[] = [];
  let journal = 0;
  // A ranking takes 130 bytes, about: the real share is asked of the journal.
  const done = () => {
    try {
      const line = readFileSync(`${out}.journal`, "utf8").trimEnd().split("\n").at(-1) ?? "";
      return (JSON.parse(line) as { state: { position: { items: number; bytes: number } } }).state.position;
    } catch {
      return { items: 0, bytes: 0 };
    }
  };
  while (done().items < 0.9 * LISTS) {
    await pause();
    expect(first.child.exitCode, first.stderr()).toBe(null);
    journal = Math.max(journal, size(`${out}.journal`));
    const status = readFileSync(`/proc/${first.child.pid}/status`, "utf8");
    resident.push({ lists: done().items, mib: Number(/VmRSS:\s+(\d+)/.exec(status)?.[1]) / 1024 });
  }
  first.child.kill("SIGTERM");
  const stopped = await first.ended;
  expect(stopped.code).toBe(143);
  const before = lastJsonLine(stopped.stderr) as { lists: number; lists_per_second: number };
  const position = done();

  const begin = performance.now();
  const second = start();
  const cut = written();
  while (written() <= cut && second.child.exitCode === null) await new Promise((resolve) => setTimeout(resolve, 20));
  const restart = (performance.now() - begin) / 1000;
  const read = Number(/rchar: (\d+)/.exec(readFileSync(`/proc/${second.child.pid}/io`, "utf8"))?.[1]);
  const run = await second.ended;
  expect(run.code).toBe(0);
  expect(lastJsonLine(run.stderr)).toMatchObject({ lists: LISTS, failed: 0, resumed: before.lists });

  const early = resident.filter(({ lists }) => lists > 0.1 * LISTS && lists < 0.2 * LISTS).map(({ mib }) => mib);
  const late = resident.filter(({ lists }) => lists > 0.8 * LISTS).map(({ mib }) => mib);
  const growth = Math.max(...late) - Math.max(...early);
  process.stdout.write(
    `${before.lists_per_second} lists/s; resident ${Math.max(...resident.map(({ mib }) => mib)).toFixed(0)} MiB at most, ` +
      `${growth.toFixed(0)} MiB more in the last fifth than in the second tenth; journal of at most ${journal} bytes; ` +
      `first line ${restart.toFixed(1)} s after the restart at ${before.lists} lists, ${(read / MIB).toFixed(0)} MiB read by then\n`,
  );
  expect(journal).toBeLessThan(2 ** 18);
  expect(growth).toBeLessThan(32 + (0.8 * LISTS * BYTES_A_LIST) / MIB);
  expect(restart).toBeLessThan(30);
  // The ids, and programs and libraries; not the nine tenths of the input.
  if (position.bytes > 64 * MIB) expect(read).toBeLessThan(0.9 * inputBytes);
  expect(readFileSync(out).subarray(-1).toString()).toBe("\n");
});
