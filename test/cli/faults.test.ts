/** Commands under faults of the GPU, of the clock and of the disk: what they write is what they write undisturbed. */
import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  errorCodes,
  exampleLines,
  type Folder,
  jsonLines,
  lastJsonLine,
  REPOSITORY,
  stratum,
  temporaryFolder,
  writeTinyTextModel,
} from "../support/cli.ts";
import type { TinyModel } from "../support/tiny-model.ts";

let folder: Folder;
let tiny: TinyModel;
let lists: string;
beforeAll(async () => {
  folder = await temporaryFolder();
  tiny = await writeTinyTextModel({ layers: 1 });
  lists = await folder.write("lists.jsonl", `${exampleLines.slice(0, 24).join("\n")}\n`);
});
afterAll(async () => {
  await folder[Symbol.asyncDispose]();
  await tiny[Symbol.asyncDispose]();
});

const STACK_FRAME = /^\s+at .+[:(]/m;
/** Runs a command with variables of the environment. */
const under = (variables: Readonly<Record<string, string>>, args: readonly string[]) =>
  stratum(args, { below: ["env", ...Object.entries(variables).map(([name, value]) => `${name}=${value}`)] });
const at = (name: string) => join(folder.path, name);
const bytes = (name: string) => readFileSync(at(name)).toString("base64");
const run = (...args: readonly string[]) => [args[0]!, lists, "--model", tiny.directory, ...args.slice(1)];

describe.skipIf(process.platform === "win32")("a command whose GPU", () => {
  let rankings: string;
  beforeAll(async () => {
    const whole = await stratum(run("rank", "--layer", "1"));
    expect([whole.code, errorCodes(whole.stderr)]).toEqual([0, []]);
    rankings = whole.stdout;
  });

  it.each([
    ["device-lost@2", "is lost: rank", /warning: the GPU device was lost .*; it is opened again/],
    ["submit-out-of-memory@2", "is short of memory: rank", /warning: the GPU is out of memory: .* at most 512 tokens/],
  ])("%s %s writes the same bytes, and says so", async (STRATUM_FAULTS, _, told) => {
    const found = await under({ STRATUM_FAULTS }, run("rank", "--layer", "1"));
    expect([found.code, errorCodes(found.stderr)]).toEqual([0, []]);
    expect(found.stderr).toMatch(told);
    expect(found.stdout).toBe(rankings);
  });

  it("is short of memory for one list alone: it is tried again, and no list fails for it", async () => {
    const long = JSON.stringify({ id: "long", instruction: "number ".repeat(170), candidates: ["One.", "Two."] });
    const mixed = await folder.write(
      "mixed.jsonl",
      [...exampleLines.slice(0, 4), long, exampleLines[4], ""].join("\n"),
    );
    const args = ["rank", mixed, "--model", tiny.directory, "--layer", "0", "--batch-tokens", "256"];
    const whole = await stratum(args);
    expect([whole.code, jsonLines(whole.stdout).length]).toEqual([0, 6]);
    const once = await under({ STRATUM_FAULTS: "submit-out-of-memory@1" }, args);
    expect([once.code, errorCodes(once.stderr), once.stdout]).toEqual([0, [], whole.stdout]);
    // Where memory stays short the run ends, and goes on when there is more.
    const out = at("mixed-out.jsonl");
    const always = await under({ STRATUM_FAULTS: "submit-out-of-memory@1+" }, [...args, "-o", out]);
    expect([always.code, errorCodes(always.stderr)]).toEqual([3, ["memory/out-of-memory"]]);
    expect((await stratum([...args, "-o", out])).code).toBe(0);
    expect(readFileSync(out, "utf8")).toBe(whole.stdout);
  });

  it("is lost: extract writes the same file", async () => {
    const extract = (out: string) => run("extract", "--layers", "0,1", "-o", at(out), "--quiet");
    expect((await stratum(extract("whole.safetensors"))).code).toBe(0);
    const found = await under({ STRATUM_FAULTS: "device-lost@3" }, extract("lost.safetensors"));
    expect([found.code, found.stderr.match(/^warning/gm)?.length]).toEqual([0, 1]);
    expect(bytes("lost.safetensors")).toBe(bytes("whole.safetensors"));
    expect(bytes("lost.safetensors.index.jsonl")).toBe(bytes("whole.safetensors.index.jsonl"));
  });

  it("is lost in the pass over the model, and again in the training: the scorer and the log are the same", async () => {
    const small = ["--layer", "0", "--preset", "pointwise", "--width", "8", "--ffn", "16", "--epochs", "4"];
    const train = (out: string) =>
      run(
        "train",
        ...small,
        "--batch-lists",
        "4",
        "--checkpoint-every",
        "5",
        "--no-cache",
        "--log",
        at(`${out}.log`),
        "-o",
        at(out),
      );
    expect((await stratum(train("whole"))).code).toBe(0);
    const found = await under({ STRATUM_FAULTS: "device-lost@2,device-lost@60" }, train("lost"));
    expect([found.code, found.stderr.match(/^warning: the GPU device was lost/gm)?.length]).toEqual([0, 2]);
    expect(found.stderr).toMatch(/^training goes on after step \d*[05]$/m);
    for (const file of ["scorer.safetensors", "last.safetensors"])
      expect([file, bytes(join("lost", file)) === bytes(join("whole", file))]).toEqual([file, true]);
    expect(await folder.read("lost.log")).toBe(await folder.read("whole.log"));
    const steps = jsonLines(await folder.read("lost.log")).map(({ step }) => step);
    expect(steps).toEqual(steps.map((_, i) => i));
  });

  it("is lost again and again: an error with a code, and nothing of the output's name", async () => {
    const found = await under(
      { STRATUM_FAULTS: "device-lost@2+" },
      run("rank", "--layer", "1", "-o", at("never.jsonl")),
    );
    expect([found.code, errorCodes(found.stderr)]).toEqual([3, ["device/lost"]]);
    expect(found.stderr).toMatch(/3 times in a row/);
    expect(found.stderr).not.toMatch(STACK_FRAME);
    expect(existsSync(at("never.jsonl"))).toBe(false);
  });

  it("never ends what it was given: an error with a code, in bounded time", async () => {
    const found = await under({ STRATUM_FAULTS: "hang@1", STRATUM_GPU_TIMEOUT: "1" }, run("rank", "--layer", "0"));
    expect([found.code, found.stdout, errorCodes(found.stderr)]).toEqual([3, "", ["device/stalled"]]);
    expect(found.seconds).toBeLessThan(30);
    expect(found.stderr).not.toMatch(STACK_FRAME);
  });

  it("really never ends what it was given, as a kernel without an end: the process ends all the same", async () => {
    const args = ["--import", "tsx", join(REPOSITORY, "test/support/hung.ts")];
    const child = spawn(process.execPath, args, { env: { ...process.env, STRATUM_GPU_TIMEOUT: "2" } });
    let out = "";
    child.stdout.on("data", (chunk: Buffer) => {
      out += chunk.toString();
    });
    const code = await new Promise((resolve) => child.on("close", resolve));
    expect([code, out]).toEqual([3, "device/stalled\n"]);
  });

  it("is to suffer what is no fault: an error of usage", async () => {
    const found = await under({ STRATUM_FAULTS: "rain@3" }, run("rank"));
    expect([found.code, errorCodes(found.stderr)]).toEqual([2, ["usage/faults"]]);
  });

  it("is well, while the clock jumps by years with every look at it: nothing changes", async () => {
    const jump = await folder.write(
      "jump.mjs",
      `const Real = Date; let looks = 0;
       const now = () => Real.now() + (looks++ % 2 === 0 ? 1e11 : -1e11);
       globalThis.Date = class extends Real { constructor(...given) { super(...(given.length > 0 ? given : [now()])); } static now() { return now(); } };`,
    );
    const args = run("rank", "--layer", "1", "--json", "--profile");
    const found = await under({ NODE_OPTIONS: `--import=${jump}` }, args);
    expect([found.code, found.stdout === rankings]).toEqual([0, true]);
    const { profile } = lastJsonLine(found.stderr) as { profile: { wall_ms: number; gpu_ms: number } };
    expect([profile.wall_ms > 0, profile.wall_ms < 100_000, profile.gpu_ms <= profile.wall_ms]).toEqual([
      true,
      true,
      true,
    ]);
    const summary = jsonLines(`${found.stderr.split("\n").find((line) => line.startsWith('{"lists"'))}\n`)[0]!;
    expect([Number(summary["seconds"]) >= 0, Number(summary["seconds"]) < 100]).toEqual([true, true]);
  });
});

describe.skipIf(process.platform === "win32")("a disk that is full", () => {
  const FULL_DISK = join(REPOSITORY, "test/support/full-disk.mjs");
  const onFullDisk = (bytes: number, args: readonly string[]) =>
    under({ NODE_OPTIONS: `--import=${FULL_DISK}`, FULL_DISK_BYTES: String(bytes) }, args);
  const small = ["--layer", "0", "--preset", "pointwise", "--width", "8", "--ffn", "16", "--epochs", "4"];
  const train = (out: string) => run("train", ...small, "--batch-lists", "4", "--checkpoint-every", "5", "-o", at(out));

  it.each([
    ["rank", ["--layer", "0", "-o"], "disk.jsonl", 2000],
    ["extract", ["--layers", "0", "--tokens", "all", "-o"], "disk.safetensors", 100_000],
  ])(
    "ends %s with a code, and no file has its final name until it goes on with room",
    async (command, flags, out, bytesLeft) => {
      const found = await onFullDisk(bytesLeft, run(command, ...flags, at(out)));
      expect([found.code, errorCodes(found.stderr)]).toEqual([3, ["file/write-failed"]]);
      expect(found.stderr).toMatch(/could not be written: ENOSPC/);
      expect(found.stderr).not.toMatch(STACK_FRAME);
      expect(existsSync(at(out))).toBe(false);
      expect((await stratum(run(command, ...flags, at(`roomy-${out}`)))).code).toBe(0);
      const resumed = await stratum(run(command, ...flags, at(out)));
      expect([resumed.code, errorCodes(resumed.stderr)]).toEqual([0, []]);
      expect(bytes(out)).toBe(bytes(`roomy-${out}`));
      // Beside the output nothing of the first try is left.
      expect(readdirSync(folder.path).filter((name) => /^disk\..*(partial|journal)/.test(name))).toEqual([]);
    },
  );

  it("ends a training with its last checkpoint whole: resumed, it gives the scorer of a run that had room", async () => {
    expect((await stratum(train("roomy"))).code).toBe(0);
    const checkpoint = statSync(at("roomy/checkpoint.safetensors")).size;
    // Each is written twice, its body first: room for two of them, and a part of the third.
    const found = await onFullDisk(5 * checkpoint, train("cramped"));
    expect([found.code, errorCodes(found.stderr)]).toEqual([3, ["file/write-failed"]]);
    expect(readdirSync(at("cramped"))).toEqual(["checkpoint.safetensors"]);
    const resumed = await stratum([...train("cramped"), "--resume"]);
    expect([resumed.code, /resumed after 5/.test(resumed.stderr)]).toEqual([0, true]);
    for (const file of ["scorer.safetensors", "last.safetensors"])
      expect([file, bytes(join("cramped", file)) === bytes(join("roomy", file))]).toEqual([file, true]);
  });
});
