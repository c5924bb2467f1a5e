/** Outputs that are written in one go: one process at a time, and never over what a stopped run has done. */
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { withOutput } from "../../cli/output.ts";
import { withLock } from "../../weights/lock.ts";
import { errorCodes, type Folder, jsonLines, startStratum, stratum, temporaryFolder, until } from "../support/cli.ts";
import { failing } from "../support/failing.ts";

let folder: Folder;
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());

const row = (i: number) => `${JSON.stringify({ prompt: `q${i}`, response: "a", label: 1 })}\n`;
const left = (name: string) =>
  readdirSync(folder.path)
    .filter((file) => file.startsWith(name))
    .sort();

const COMMANDS = [
  ["convert", ["convert", "-"]],
  ["rank --instruction", ["rank", "--layer", "0", "--instruction", "q", "--candidate", "a", "--candidate", "b"]],
] as const;

describe.each(COMMANDS)("%s -o", (name, args) => {
  const run = (out: string, ...more: string[]) => stratum([...args, "-o", out, ...more], { stdin: row(0) });

  it("leaves an output to the process that writes it", async () => {
    const out = join(folder.path, `busy ${name}`);
    const { code, stderr } = await withLock(`${out}.journal.lock`, () => run(out));
    expect([code, errorCodes(stderr)]).toEqual([2, ["usage/in-use"]]);
    expect(stderr).toContain(`process ${process.pid} on`);
    expect(left(`busy ${name}`)).toEqual([]);
  });

  it("leaves what a stopped run has done", async () => {
    const out = join(folder.path, `stopped ${name}`);
    for (const end of ["partial", "journal"]) writeFileSync(`${out}.${end}`, `days of work: ${end}`);
    const { code, stderr } = await run(out);
    expect([code, errorCodes(stderr)]).toEqual([2, ["usage/other-run"]]);
    expect(stderr).toContain(name === "convert" ? `or remove ${out}.journal` : "--restart");
    for (const end of ["partial", "journal"])
      expect(readFileSync(`${out}.${end}`, "utf8")).toBe(`days of work: ${end}`);
    expect(left(`stopped ${name}`)).toEqual(["journal", "partial"].map((end) => `stopped ${name}.${end}`));
  });
});

it("rank --instruction --restart throws it away", async () => {
  const out = join(folder.path, "again");
  for (const end of ["partial", "journal", "journal.ids"]) writeFileSync(`${out}.${end}`, "days of work");
  expect((await stratum([...COMMANDS[1][1], "-o", out, "--restart"])).code).toBe(0);
  expect(left("again")).toEqual(["again"]);
});

describe("two processes that write one output", () => {
  const begun = async (name: string) => {
    const out = join(folder.path, name);
    const run = startStratum(["convert", "-", "--group", "none", "-o", out]);
    run.child.stdin?.write(row(0));
    await until(() => existsSync(`${out}.journal.lock`) || undefined, "the first one's lock");
    return { out, run };
  };

  it("are one: the second is refused, the first has its every line", async () => {
    const { out, run } = await begun("shared");
    const second = await stratum(["convert", "-", "-o", out], { stdin: row(1) });
    expect([second.code, errorCodes(second.stderr)]).toEqual([2, ["usage/in-use"]]);
    run.child.stdin?.end(row(2));
    expect((await run.ended).code).toBe(0);
    expect(jsonLines(readFileSync(out, "utf8")).map((list) => list["instruction"])).toEqual(["q0", "q2"]);
    expect(left("shared")).toEqual(["shared"]);
  });

  it.skipIf(process.platform === "win32").each(["one signal", "two signals"])(
    "%s: the first leaves no lock",
    async (signals) => {
      const { run } = await begun(signals);
      run.child.kill("SIGINT");
      await until(() => run.stderr().includes("stopping") || undefined, "the first signal");
      if (signals === "two signals") run.child.kill("SIGINT");
      else run.child.stdin?.end(row(1));
      expect((await run.ended).code).toBe(130);
      expect(left(signals)).toEqual([]);
    },
  );
});

it("a process that stood still until another began leaves that one's lines alone", async () => {
  const out = join(folder.path, "slept");
  await withOutput(out, {}, async (first) => {
    await first.write("the first's\n");
    // As another host does that has watched it for a minute.
    rmSync(`${out}.journal.lock`);
    await withOutput(out, {}, async (second) => {
      await second.write("the second's\n");
      await first.write("the first's, who woke up\n");
      await expect(first.finish()).rejects.toThrow(failing("usage/in-use", "stood still"));
      await second.finish();
    });
  });
  expect(readFileSync(out, "utf8")).toBe("the second's\n");
  expect(left("slept")).toEqual(["slept"]);
});
