/** Ends that come from outside: signals, closed pipes, full disks. Nothing half-written ever bears the output's name. */
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { open, symlink } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { RankingRecord } from "../../scorer/rankings.ts";
import {
  type CliProcess,
  EXAMPLES,
  errorCodes,
  type Folder,
  jsonLines,
  lastJsonLine,
  startStratum,
  stratum,
  temporaryFolder,
  until,
} from "../support/cli.ts";

/** Windows has neither signals that a process can catch nor devices as files; the project is not tested there. */
const onPosix = describe.skipIf(process.platform === "win32");
/** /dev/full is Linux's own. */
const onLinux = describe.skipIf(process.platform !== "linux");

let folder: Folder;
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());

const STACK_FRAME = /^\s+at .+[:(]/m;
const list = (i: number) =>
  `${JSON.stringify({ id: `list-${i}`, instruction: `What is ${i}?`, candidates: ["A number.", `It is ${i}.`] })}\n`;

/** Feeds lists for as long as the process reads them: no adapter is fast enough to reach the end. */
async function feed({ child }: CliProcess, most = Number.POSITIVE_INFINITY): Promise<void> {
  const stdin = child.stdin!;
  const exited = new Promise((resolve) => child.once("exit", resolve));
  for (let i = 0; i < most && child.exitCode === null && child.signalCode === null && stdin.writable; i++) {
    if (stdin.write(list(i))) continue;
    await Promise.race([new Promise((resolve) => stdin.once("drain", resolve)), exited]);
  }
}

/** Waits until records have reached the disk. */
const untilWritten = (path: string) =>
  until(() => (existsSync(path) && statSync(path).size > 0 ? true : undefined), `records in ${path}`);

onPosix("a signal in the middle of a run", () => {
  it.each([
    // One waits for a line that never comes, the other runs batch after batch.
    { signal: "SIGINT", code: 130, lists: 4 },
    { signal: "SIGTERM", code: 143, lists: Number.POSITIVE_INFINITY },
    { signal: "SIGHUP", code: 129, lists: 2 },
  ] as const)(
    "$signal ends it with $code and leaves what was done under another name",
    async ({ signal, code, lists }) => {
      const out = join(folder.path, `${signal}.jsonl`);
      const run = startStratum(["rank", "-", "-o", out, "--json"]);
      const fed = feed(run, lists);
      await untilWritten(`${out}.partial`);
      const begin = performance.now();
      run.child.kill(signal);
      const { code: exit, stdout, stderr } = await run.ended;
      expect([exit, stdout]).toEqual([code, ""]);
      // One batch of 2048 tokens may have to end first.
      expect(performance.now() - begin).toBeLessThan(20_000);
      await fed;
      expect(existsSync(out)).toBe(false);
      expect(stderr).toContain(`unfinished: what was done lies in ${out}.partial`);
      expect(stderr).toMatch(/"stopped":true/);
      expect([errorCodes(stderr), STACK_FRAME.test(stderr)]).toEqual([[], false]);
      const records = jsonLines<RankingRecord>(readFileSync(`${out}.partial`, "utf8"));
      expect(records.length).toBeGreaterThanOrEqual(2);
      expect(records.map(({ id, results }) => [id, results.length])).toEqual(records.map((_, i) => [`list-${i}`, 2]));
    },
  );

  it("SIGKILL leaves no file of the output's name, and another input is not taken for the one of before", async () => {
    const out = join(folder.path, "killed.jsonl");
    const run = startStratum(["rank", "-", "-o", out]);
    void feed(run);
    await untilWritten(`${out}.partial`);
    run.child.kill("SIGKILL");
    await run.ended;
    expect(run.child.signalCode).toBe("SIGKILL");
    expect(existsSync(out)).toBe(false);
    const other = await stratum(["rank", "-", "-o", out], { stdin: list(7) });
    expect([other.code, errorCodes(other.stderr), existsSync(out)]).toEqual([2, ["usage/other-input"], false]);
    const next = await stratum(["rank", "-", "-o", out, "--restart"], { stdin: list(7) });
    expect(next.code).toBe(0);
    expect(jsonLines<RankingRecord>(readFileSync(out, "utf8")).map(({ id }) => id)).toEqual(["list-7"]);
    expect(readdirSync(folder.path).filter((name) => name.startsWith("killed.jsonl"))).toEqual(["killed.jsonl"]);
  });

  it("ends a dry run at once: there is nothing to keep", async () => {
    const run = startStratum(["rank", "-", "--dry-run"]);
    const fed = feed(run, 4);
    await until(() => (run.stderr().includes("no --model") ? true : undefined), "the command");
    run.child.kill("SIGINT");
    await fed;
    const { code, stdout } = await run.ended;
    expect([code, stdout]).toEqual([130, ""]);
  });

  it("ends extract with what it takes to go on, and the same command does", async () => {
    const out = join(folder.path, "states.safetensors");
    const input = join(folder.path, "states.jsonl");
    writeFileSync(input, Array.from({ length: 600 }, (_, i) => list(i)).join(""));
    const command = ["extract", input, "--layers", "1", "--part-size", "400kB", "--json"];
    const run = startStratum([...command, "-o", out]);
    await untilWritten(`${out}.index.jsonl.partial`);
    run.child.kill("SIGINT");
    const { code, stderr } = await run.ended;
    expect([code, errorCodes(stderr), STACK_FRAME.test(stderr)]).toEqual([130, [], false]);
    expect([out, `${out}.index.jsonl`].map((path) => existsSync(path))).toEqual([false, false]);
    expect(stderr).toContain(`unfinished: what was done lies beside ${out}; the same command goes on`);
    const { lines } = lastJsonLine(stderr);
    expect(lines).toBeGreaterThan(0);
    const next = await stratum([...command, "-o", out]);
    expect(lastJsonLine(next.stderr)).toMatchObject({ resumed: lines, lines: 600, failed: 0, stopped: false });
    const whole = join(folder.path, "whole.safetensors");
    await stratum([...command, "-o", whole]);
    const of = (name: string) =>
      readdirSync(folder.path)
        .filter((file) => file.startsWith(`${name}-0`) || file.startsWith(`${name}.s`))
        .sort();
    expect(of("states").length).toBeGreaterThan(3);
    expect(of("states").map((file) => file.replace("states", "whole"))).toEqual(of("whole"));
    for (const file of of("states").filter((name) => !name.endsWith("index.json")))
      expect(
        readFileSync(join(folder.path, file)).equals(readFileSync(join(folder.path, file.replace("states", "whole")))),
        file,
      ).toBe(true);
  });
});

onPosix("a reader that closes the pipe", () => {
  it("ends the run promptly and quietly, as SIGPIPE ends other programs", async () => {
    const run = startStratum(["rank", "-"]);
    void feed(run);
    await new Promise((resolve) => run.child.stdout!.once("data", resolve));
    const begin = performance.now();
    run.child.stdout!.destroy();
    const { code, stderr } = await run.ended;
    expect(performance.now() - begin).toBeLessThan(20_000);
    expect(code).toBe(141);
    // What was said before the work began, and nothing of its end.
    expect(stderr).toMatch(/layer {3}\d of \d[^\n]*\n$/);
  });

  it("and one that reads slowly gets every byte", async () => {
    const lists = Array.from({ length: 1000 }, (_, i) => list(i)).join("");
    const input = await folder.write("slow.jsonl", lists);
    const whole = await stratum(["rank", input, "--layer", "0"]);
    const slow =
      "node -e \"process.stdin.on('data', (d) => { process.stdin.pause(); process.stdout.write(d); setTimeout(() => process.stdin.resume(), 200); })\"";
    const below = ["sh", "-c", `"$0" "$@" | ${slow}`];
    const read = await stratum(["rank", input, "--layer", "0"], { below });
    expect([read.code, read.stdout === whole.stdout, whole.stdout.length > 2 ** 16]).toEqual([0, true, true]);
  });
});

// A file system that is really full takes a mount, which CI does not grant: /dev/full refuses every byte in its place,
// and a link to it refuses those of a regular output. How extract's safetensors files meet a full disk: test/weights.
onLinux("a full disk", () => {
  it("behind -o is an error that names the file", async () => {
    const run = await stratum(["rank", EXAMPLES, "--layer", "0", "-o", "/dev/full"]);
    expect([run.code, run.stdout, errorCodes(run.stderr)]).toEqual([3, "", ["file/write-failed"]]);
    expect(run.stderr).toMatch(/\/dev\/full could not be written: ENOSPC/);
    expect(run.stderr).not.toMatch(STACK_FRAME);
  });

  it("behind stdout is one too", async () => {
    await using full = await open("/dev/full", "w");
    const run = await stratum(["rank", EXAMPLES, "--layer", "0"], { stdio: ["ignore", full.fd, "pipe"] });
    expect([run.code, errorCodes(run.stderr)]).toEqual([3, ["file/stdout"]]);
    expect(run.stderr).toMatch(/ENOSPC/);
    expect(run.stderr).not.toMatch(STACK_FRAME);
  });

  it("in the middle of a regular output leaves nothing of the output's name", async () => {
    const out = join(folder.path, "full.jsonl");
    await symlink("/dev/full", `${out}.partial`);
    const run = startStratum(["rank", "-", "-o", out]);
    void feed(run);
    const { code, stdout, stderr } = await run.ended;
    expect([code, stdout, errorCodes(stderr)]).toEqual([3, "", ["file/write-failed"]]);
    expect(stderr).toContain(`${out} could not be written: ENOSPC`);
    expect(stderr).toContain(`(what was written before lies in ${out}.partial)`);
    expect(stderr).not.toMatch(STACK_FRAME);
    expect(existsSync(out)).toBe(false);
  });

  it("and a device cannot be extract's output: its files are renamed into place", async () => {
    const run = await stratum(["extract", EXAMPLES, "--layers", "0", "-o", "/dev/full"]);
    expect([run.code, errorCodes(run.stderr)]).toEqual([3, ["file/not-a-file"]]);
  });
});

onPosix("an output that is no regular file", () => {
  it("is written in place: a named pipe gets the records", async () => {
    const pipe = join(folder.path, "pipe");
    const reader = 'mkfifo "$PIPE" && cat "$PIPE" & while [ ! -p "$PIPE" ]; do sleep 0.02; done; "$0" "$@"; wait';
    const run = await stratum(["rank", "-o", pipe], {
      stdin: list(1),
      below: ["env", `PIPE=${pipe}`, "sh", "-c", reader],
    });
    expect(jsonLines<RankingRecord>(run.stdout).map(({ id }) => id)).toEqual(["list-1"]);
    expect(existsSync(`${pipe}.partial`)).toBe(false);
  });
});
