/** `rank` stopped and given again: what was done is kept, and what would make it another run is refused. */
import { appendFileSync, chmodSync, existsSync, readdirSync, readFileSync, truncateSync } from "node:fs";
import { symlink } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { withLock } from "../../weights/lock.ts";
import {
  type CliRun,
  errorCodes,
  type Folder,
  lastJsonLine,
  startStratum,
  stratum,
  temporaryFolder,
  until,
  writeTinyTextModel,
} from "../support/cli.ts";
import type { TinyModel } from "../support/tiny-model.ts";

const LISTS = 3000;
const MORE = '{"id": "more", "instruction": "What is more?", "candidates": ["A.", "B."]}\n';

let folder: Folder;
let tiny: TinyModel;
let input: string;
let undisturbed: string;
const out = () => join(folder.path, "out.jsonl");

const rank = (...more: string[]): Promise<CliRun> =>
  stratum(["rank", input, "--model", tiny.directory, "--layer", "1", "--json", "-o", out(), ...more]);

beforeAll(async () => {
  folder = await temporaryFolder();
  tiny = await writeTinyTextModel({ layers: 2 });
  const lists = Array.from({ length: LISTS }, (_, i) =>
    i % 1000 === 500 ? "{" : JSON.stringify({ id: `q${i}`, instruction: `What is ${i}?`, candidates: ["A.", `${i}.`] }),
  );
  input = await folder.write("lists.jsonl", `${lists.join("\n")}\n`);
  const whole = join(folder.path, "whole.jsonl");
  const run = await stratum(["rank", input, "--model", tiny.directory, "--layer", "1", "-o", whole]);
  expect(run.code).toBe(1);
  undisturbed = readFileSync(whole, "utf8");
});
afterAll(async () => {
  await tiny[Symbol.asyncDispose]();
  await folder[Symbol.asyncDispose]();
});

const left = () => readdirSync(folder.path).filter((name) => name.startsWith("out."));

describe.skipIf(process.platform === "win32")("a run that was killed", () => {
  let done: number;
  beforeAll(async () => {
    const run = startStratum(["rank", input, "--model", tiny.directory, "--layer", "1", "-o", out()]);
    await until(
      () => (["partial", "journal"].every((end) => existsSync(`${out()}.${end}`)) ? true : undefined),
      "lines",
    );
    run.child.kill("SIGKILL");
    await run.ended;
    // Lines behind what the journal says are written again.
    const said = JSON.parse(readFileSync(`${out()}.journal`, "utf8").trimEnd().split("\n").at(-1) as string);
    done = said.state?.position.items ?? 0;
    expect(existsSync(out())).toBe(false);
  });

  it.each([
    ["--top-n", ["--top-n", "1"], /top-n was null, is 1/],
    ["--layer", ["--layer", "2"], /fingerprint was .* is .*layer was 1, is 2/],
    ["--system", ["--system", "Be brief."], /system was null, is "Be brief\."/],
  ])("is not gone on with under another %s", async (_, flags, message) => {
    const run = await rank(...flags);
    expect([run.code, errorCodes(run.stderr), existsSync(out())]).toEqual([2, ["usage/other-run"], false]);
    expect(run.stderr).toMatch(message);
  });

  it("goes on behind the lines that are there, under the kernels that it began with, and ends in the same bytes", async () => {
    const run = await rank("--tune", "off");
    expect(run.code).toBe(1);
    expect(lastJsonLine(run.stderr)).toMatchObject({ lists: LISTS, failed: 3, resumed: done, stopped: false });
    if (done > 0) expect(run.stderr).toContain(`resume  after ${done.toLocaleString("en-US")} lists`);
    expect(readFileSync(out(), "utf8")).toBe(undisturbed);
    expect(left()).toEqual(["out.jsonl"]);
  });
});

describe.skipIf(process.platform === "win32")("an input that is written to during the run", () => {
  it.each([
    ["grows", "is gone on with", (path: string) => appendFileSync(path, MORE), [1, []]],
    ["shrinks", "is refused", (path: string) => truncateSync(path, 1000), [2, ["usage/other-input"]]],
  ] as const)("and %s gives no output, and by the same command %s", async (name, _, change, [code, codes]) => {
    const lists = await folder.write(`${name}.jsonl`, readFileSync(input));
    const path = join(folder.path, `${name}.out.jsonl`);
    const args = ["rank", lists, "--model", tiny.directory, "--layer", "1", "--batch-tokens", "256", "-o", path];
    const run = startStratum(args);
    await until(() => (existsSync(`${path}.partial`) ? true : undefined), "lines");
    change(lists);
    const ended = await run.ended;
    expect([ended.code, errorCodes(ended.stderr).at(-1), existsSync(path)]).toEqual([2, "usage/other-input", false]);
    expect(ended.stderr).toMatch(/was changed while it was read: it had \d+ bytes and has \d+/);
    const again = await stratum(args);
    expect([again.code, errorCodes(again.stderr)]).toEqual([code, codes]);
    if (code !== 1) return;
    const more = await stratum(["rank", "-", ...args.slice(2, -2)], { stdin: readFileSync(lists) });
    expect(readFileSync(path, "utf8")).toBe(more.stdout);
    expect(more.stdout.startsWith(undisturbed)).toBe(true);
  });
});

it("A shard that is whole ends at once when it is given again, whatever became of its input's mode", async () => {
  const lists = await folder.write("shared.jsonl", readFileSync(input, "utf8").split("\n").slice(0, 8).join("\n"));
  const output = join(folder.path, "shared.out.jsonl");
  const share = () =>
    stratum(["rank", lists, "--model", tiny.directory, "--layer", "1", "--shard", "2/2", "-o", output, "--json"]);
  const first = await share();
  expect([first.code, lastJsonLine(first.stderr)]).toMatchObject([0, { resumed: 0 }]);
  chmodSync(lists, 0o600);
  const again = await share();
  expect(again.stderr).toContain("resume  shard 2/2 was done");
  const { lists: count } = lastJsonLine(first.stderr);
  expect([again.code, lastJsonLine(again.stderr)]).toMatchObject([0, { lists: count, resumed: count }]);
});

it("Shards are merged under the name that they were made for, or another; one alone needs a name", async () => {
  const lists = await folder.write("named.jsonl", readFileSync(input, "utf8").split("\n").slice(0, 6).join("\n"));
  const output = join(folder.path, "named.out.jsonl");
  const rank = (...flags: string[]) =>
    stratum(["rank", lists, "--model", tiny.directory, "--layer", "1", "-o", output, ...flags]);
  for (const share of ["1/2", "2/2"]) await rank("--shard", share);
  const other = join(folder.path, "other.out.jsonl");
  for (const words of [[output], [output, "-o", other]]) expect((await stratum(["merge", ...words])).code).toBe(0);
  const merged = readFileSync(output, "utf8");
  expect(readFileSync(other, "utf8")).toBe(merged);
  expect(merged.split("\n")).toHaveLength(7);
  const alone = await stratum(["merge", join(folder.path, "named.out-00001-of-00002.jsonl")]);
  expect([alone.code, errorCodes(alone.stderr)]).toEqual([2, ["usage/output"]]);
  expect(alone.stderr).toContain("one shard and no output");
});

describe("an output", () => {
  it("that another process writes is left to it", async () => {
    const busy = join(folder.path, "busy.jsonl");
    const run = await withLock(`${busy}.journal.lock`, () => stratum(["rank", input, "-o", busy]));
    expect([run.code, errorCodes(run.stderr)]).toEqual([2, ["usage/in-use"]]);
    expect(run.stderr).toContain(`process ${process.pid} on`);
  });

  it("that is the input, however it is spelled, is refused, and the input stays", async () => {
    const text = '{"id": 1, "instruction": "Why?", "candidates": ["a", "b"]}\n';
    const own = await folder.write("own.jsonl", text);
    const rows = await folder.write("rows.csv", "prompt,response,label\nWhy?,a,1\n");
    await symlink(own, join(folder.path, "alias.jsonl"));
    const model = ["--model", tiny.directory];
    const shards = [1, 2].map((i) => join(folder.path, `parts-0000${i}-of-00002.jsonl`));
    for (const i of [1, 2]) {
      const flags = [...model, "--layer", "1", "--shard", `${i}/2`, "-o", join(folder.path, "parts.jsonl")];
      expect((await stratum(["rank", own, ...flags])).code).toBe(0);
    }
    const before = shards.map((path) => readFileSync(path, "utf8"));
    for (const args of [
      ["rank", own, ...model, "--layer", "1", "-o", join(folder.path, ".", "own.jsonl")],
      ["rank", own, ...model, "--layer", "1", "--append", "-o", own],
      ["rank", join(folder.path, "alias.jsonl"), ...model, "--layer", "1", "-o", own],
      ["extract", own, ...model, "--layers", "1", "-o", join(folder.path, "alias.jsonl")],
      ["convert", rows, "-o", rows],
      ["merge", ...shards, "-o", shards[1]!],
    ]) {
      const run = await stratum(args);
      expect([args[0], run.code, errorCodes(run.stderr)]).toEqual([args[0], 2, ["usage/output"]]);
    }
    expect([readFileSync(own, "utf8"), readFileSync(rows, "utf8")]).toEqual([
      text,
      "prompt,response,label\nWhy?,a,1\n",
    ]);
    expect(shards.map((path) => readFileSync(path, "utf8"))).toEqual(before);
  });

  it("is appended to under its own name", async () => {
    const lists = await folder.write(
      "two.jsonl",
      `${readFileSync(input, "utf8").split("\n").slice(0, 2).join("\n")}\n`,
    );
    const many = await folder.write("many.jsonl", "before\n");
    const flags = ["--model", tiny.directory, "--layer", "1", "-o", many];
    expect((await stratum(["rank", lists, ...flags, "--append"])).code).toBe(0);
    expect(readFileSync(many, "utf8")).toBe(`before\n${undisturbed.split("\n").slice(0, 2).join("\n")}\n`);
    const stdout = await stratum(["rank", lists, "--append"]);
    expect([stdout.code, errorCodes(stdout.stderr)]).toEqual([2, ["usage/append"]]);
  });
});
