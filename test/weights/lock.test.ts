/** Locks of holders that live, are gone, or cannot be asked: on this machine, in other containers, under other clocks. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, utimesSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LockHolder, withLock } from "../../weights/lock.ts";
import { placeOfProcess, startOf } from "../../weights/process.ts";
import { type Folder, REPOSITORY, temporaryFolder, until } from "../support/cli.ts";

let folder: Folder;
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());

let locks = 0;
const place = () => join(folder.path, `${++locks}.lock`);
const HERE = `${placeOfProcess()} ${startOf(process.pid) ?? "-"}`;

/** Takes a lock. @returns how long that took, ms, and whom it was told of; a holder that is known to live is not waited for */
async function taken(path: string, staleMs: number): Promise<{ waited: number; told: LockHolder[]; refused: boolean }> {
  const told: LockHolder[] = [];
  const begin = performance.now();
  let waited = Number.NaN;
  const refusal = new Error("it lives");
  const onWait = (holder: LockHolder) => {
    told.push(holder);
    if (holder.lives) throw refusal;
  };
  try {
    await withLock(
      path,
      async (held) => {
        waited = performance.now() - begin;
        expect(await held()).toBe(true);
      },
      { staleMs, onWait },
    );
    expect(existsSync(path)).toBe(false);
  } catch (cause) {
    if (cause !== refusal) throw cause;
  }
  return { waited, told, refused: Number.isNaN(waited) };
}

describe("a lock", () => {
  it("is one's at a time, and leaves nothing", async () => {
    const path = place();
    let inside = 0;
    await Promise.all(
      Array.from({ length: 4 }, () =>
        withLock(path, async () => {
          expect(++inside).toBe(1);
          await new Promise((resolve) => setTimeout(resolve, 20));
          inside--;
        }),
      ),
    );
    expect(readdirSync(folder.path)).toEqual([]);
  });

  it("of a process that lives here is told at once", async () => {
    const path = place();
    writeFileSync(path, `${process.pid} ${hostname()} 0 ${HERE}`);
    const { told, refused } = await taken(path, 60_000);
    const lives = startOf(process.pid) !== null;
    expect([refused, told[0]]).toEqual([true, { pid: process.pid, host: hostname(), lives }]);
  });

  it.runIf(process.platform === "linux").each([
    ["has ended", `4194305 ${hostname()} 0 ${placeOfProcess()} 1`],
    // As in a container that is begun again: all its processes have the numbers of the last time.
    ["had this process's number", `${process.pid} ${hostname()} 0 ${placeOfProcess()} 1`],
  ])("of a process that %s is taken at once", async (_, text) => {
    const path = place();
    writeFileSync(path, text);
    expect(await taken(path, 60_000)).toMatchObject({ told: [], refused: false });
  });

  it.each([
    ["of another host", "7 elsewhere 0 aaaa/pid:[1] 1"],
    ["of a container with this host's name", `${process.pid} ${hostname()} 0 ${placeOfProcess()?.slice(0, -1)}9] 1`],
    ["without a word", ""],
  ])("%s that is not touched is taken once it was watched", async (_, text) => {
    const path = place();
    writeFileSync(path, text);
    const { waited, told, refused } = await taken(path, 600);
    expect([refused, told.map(({ lives }) => lives)]).toEqual([false, [false]]);
    expect(waited).toBeGreaterThanOrEqual(600);
  });

  it.each([
    ["agrees", 0],
    ["is behind by a day", -86_400],
    ["is ahead by a day", 86_400],
  ])("of another host that is touched is its own, whose clock %s", async (_, skew) => {
    const path = place();
    const beat = () => utimesSync(path, Date.now() / 1000 + skew, Date.now() / 1000 + skew);
    writeFileSync(path, "7 elsewhere 0 aaaa/pid:[1] 1");
    beat();
    const timer = setInterval(beat, 150);
    const { told, refused } = await taken(path, 1500);
    clearInterval(timer);
    expect([refused, told.map(({ lives }) => lives)]).toEqual([true, [false, true]]);
    expect(readFileSync(path, "utf8")).toContain("elsewhere");
  });
});

/** A process that is alone in its namespaces, as in a container. */
const CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--uts", "--mount-proc", "--fork", "--kill-child"];
const contained = spawnSync(CONTAINER[0] ?? "", [...CONTAINER.slice(1), "true"]).status === 0;

// Where the system gives its users no namespaces, nothing of this can be had.
describe.runIf(contained)("two containers on one folder", () => {
  const running = new Set<ChildProcess>();
  afterAll(() => {
    for (const child of running) child.kill("SIGKILL");
  });

  function start(host: string, path: string, staleMs: number) {
    const script = `hostname ${host}; exec "$0" --import tsx test/support/hold-lock.ts "$1" "$2"`;
    const [command = "", ...rest] = [...CONTAINER, "sh", "-c", script, process.execPath, path, String(staleMs)];
    const child = spawn(command, rest, { cwd: REPOSITORY, stdio: ["pipe", "pipe", "inherit"] });
    running.add(child);
    let out = "";
    child.stdout.on("data", (chunk: Buffer) => {
      out += chunk.toString();
    });
    const ended = new Promise<number | null>((resolve) => child.on("close", resolve));
    return { child, ended, said: (what: RegExp) => until(() => out.match(what) ?? undefined, `${what} of ${out}`) };
  }

  it.each([
    ["of one name", "pod", "pod"],
    ["of two names", "pod-a", "pod-b"],
  ])("%s: one that lives keeps its lock, one that is killed does not", async (_, a, b) => {
    const path = place();
    const first = start(a, path, 60_000);
    const [, pid] = await first.said(/held by (\d+)/);
    const second = start(b, path, 60_000);
    // Both count from 1, so the holder's number is the asker's own.
    await second.said(new RegExp(`lives: ${pid}`));
    expect(await second.ended).toBe(2);
    first.child.kill("SIGKILL");
    await first.ended;
    expect(existsSync(path)).toBe(true);
    const third = start(b, path, 1000);
    await third.said(new RegExp(`held by ${pid}`));
    third.child.stdin.end();
    expect(await third.ended).toBe(0);
    expect(existsSync(path)).toBe(false);
  });
});
