/** Rankings that are appended to a file: nothing of what is there is lost, and nothing of what another program adds. */
import { appendFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { failing } from "../support/failing.ts";
import { filesOf, outputOf, runFolders, stopAt, work } from "../support/rankings-run.ts";

const { place } = runFolders();

let undisturbed: string;
beforeAll(async () => {
  const path = place();
  await work(path);
  undisturbed = outputOf(path);
});

describe("--append", () => {
  it("writes behind what is there, and goes on behind its own lines", async () => {
    const path = place();
    writeFileSync(join(path, "out"), "before\n");
    await work(path, { append: true, each: stopAt(100) });
    expect(outputOf(path)).toBe(`before\n${undisturbed.split("\n").slice(0, 100).join("\n")}\n`);
    appendFileSync(join(path, "out"), "torn");
    expect(await work(path, { append: true })).toMatchObject({ began: 100 });
    expect(outputOf(path)).toBe(`before\n${undisturbed}`);
    expect(filesOf(path)).toEqual(["lists.jsonl", "out"]);
  });

  it("cuts nothing off that another program appended while it started, and writes over nothing", async () => {
    const path = place();
    writeFileSync(join(path, "out"), "before\n");
    // Asked before the first write, and long after the file was looked at: a model is opened meanwhile.
    const held = async () => {
      appendFileSync(join(path, "out"), "another's\n");
      return true;
    };
    await expect(work(path, { append: true, held })).rejects.toThrow(failing("usage/output-changed"));
    expect([outputOf(path), filesOf(path)]).toEqual(["before\nanother's\n", ["lists.jsonl", "out"]]);
    await work(path, { append: true, each: stopAt(100) });
    const half = outputOf(path);
    await expect(work(path, { append: true, held })).rejects.toThrow(failing("usage/output-changed"));
    expect(outputOf(path)).toBe(`${half}another's\n`);
    writeFileSync(join(path, "out"), half);
    await work(path, { append: true });
    expect(outputOf(path)).toBe(`before\nanother's\n${undisturbed}`);
  });

  it("begun anew with --restart leaves what was there before", async () => {
    const path = place();
    writeFileSync(join(path, "out"), "before\n");
    await work(path, { append: true, each: stopAt(100) });
    expect(await work(path, { append: true, restart: true })).toMatchObject({ began: 0 });
    expect(outputOf(path)).toBe(`before\n${undisturbed}`);
  });

  it("takes a new file, and refuses one whose last line is cut", async () => {
    const path = place();
    await work(path, { append: true });
    expect(outputOf(path)).toBe(undisturbed);
    writeFileSync(join(path, "out"), "cut");
    await expect(work(path, { append: true })).rejects.toThrow(expect.objectContaining({ code: "usage/torn-output" }));
    expect(outputOf(path)).toBe("cut");
  });
});
