/** `stratum train` as a process: killed, stopped and resumed, it writes what an undisturbed run writes. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { cp, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { errorCodes, type Folder, jsonLines, startStratum, stratum, temporaryFolder, until } from "../support/cli.ts";
import { raggedTensors, writeTensors } from "../support/features.ts";
import { plantedLists } from "../support/planted.ts";

const onPosix = describe.skipIf(process.platform === "win32");
const STACK_FRAME = /^\s+at .+[:(]/m;
const FILES = ["scorer.safetensors", "scorer.json", "last.safetensors", "checkpoint.safetensors"];

let folder: Folder;
let features: string;
let straight: Readonly<Record<string, Buffer>>;

const at = (name: string) => join(folder.path, name);
/** Small lists, mini-batches, dropout, parts of lists, clip and early stopping: the preset's own. */
const command = (out: string, ...more: readonly string[]) => [
  ...["train", "--features", features, "-o", at(out), "--log", at(`${out}.jsonl`)],
  ...[
    "--width",
    "8",
    "--heads",
    "2",
    "--batch-lists",
    "2",
    "--epochs",
    "8",
    "--checkpoint-every",
    "7",
    "--anchor",
    "instruction",
    ...more,
  ],
];
/** All that a run wrote. */
const written = (out: string) => ({
  ...Object.fromEntries(FILES.map((name) => [name, readFileSync(join(at(out), name))])),
  log: readFileSync(at(`${out}.jsonl`)),
});
const differing = (out: string) =>
  Object.entries(written(out)).flatMap(([name, bytes]) => (straight[name]?.equals(bytes) ? [] : [name]));

beforeAll(async () => {
  folder = await temporaryFolder();
  features = at("features.safetensors");
  await writeTensors(features, raggedTensors(plantedLists({ lists: 60, dim: 8 })));
  const run = await stratum(command("straight", "--json"));
  expect([run.code, errorCodes(run.stderr)]).toEqual([0, []]);
  straight = written("straight");
});
afterAll(() => folder[Symbol.asyncDispose]());

it("writes a scorer, a log of every step and a summary", async () => {
  const run = await stratum(command("summary", "--json", "--gpu-memory", "1"));
  expect([run.code, run.stderr.includes("features streamed")]).toEqual([0, true]);
  const [summary] = jsonLines(run.stdout);
  const log = jsonLines<{ step: number; loss: number }>(straight["log"]!.toString());
  expect(log.map(({ step }) => step)).toEqual(log.map((_, i) => i));
  expect(summary).toMatchObject({ steps: log.length, last_loss: log.at(-1)?.loss, lists: 48, validation_lists: 12 });
  const config = JSON.parse(straight["scorer.json"]!.toString());
  expect(config.training).toMatchObject({ steps: log.length, lists: 48, options: { seed: 0, batchLists: 2 } });
  expect(config.training.epochs[0].loss).toBeCloseTo(log.slice(0, 24).reduce((sum, { loss }) => sum + loss, 0) / 24, 6);
  // Streamed features and resident ones, the same bytes.
  expect(differing("summary")).toEqual([]);
});

it("writes other bytes for another seed", async () => {
  expect((await stratum(command("seed", "--seed", "1", "-q"))).code).toBe(0);
  expect(differing("seed")).toEqual([...FILES, "log"]);
});

/** Starts a run and sends a signal once its checkpoint covers a step. */
async function stopRun(out: string, signal: NodeJS.Signals, when: (out: string) => true | undefined, resume: boolean) {
  const run = startStratum(command(out, ...(resume ? ["--resume"] : [])));
  await until(() => (run.child.exitCode !== null ? true : when(out)), `the moment of ${signal}`);
  run.child.kill(signal);
  return { ...(await run.ended), signal: run.child.signalCode };
}

/** The step that the checkpoint on disk covers. */
function covered(out: string): number {
  const path = join(at(out), "checkpoint.safetensors");
  if (!existsSync(path)) return -1;
  const header = readFileSync(path);
  const text = header.toString("utf8", 8, 8 + Number(header.readBigUInt64LE(0)));
  const { progress } = (JSON.parse(text) as { __metadata__: { progress: string } }).__metadata__;
  return (JSON.parse(progress) as { step: number }).step;
}
const past = (step: number) => (out: string) => (covered(out) >= step ? (true as const) : undefined);

onPosix("a run that is ended from outside", () => {
  it("goes on to the same bytes after two kills, one of them right after the start", async () => {
    const first = await stopRun("killed", "SIGKILL", past(0), false);
    expect(first.signal).toBe("SIGKILL");
    const second = await stopRun("killed", "SIGKILL", past(30), true);
    expect([second.signal, errorCodes(second.stderr)]).toEqual(["SIGKILL", []]);
    expect(covered("killed")).toBeLessThan(192);
    expect(existsSync(join(at("killed"), "scorer.json"))).toBe(false);
    const run = await stratum(command("killed", "--resume"));
    expect([run.code, errorCodes(run.stderr)]).toEqual([0, []]);
    expect(run.stderr).toMatch(/resumed after \d+/);
    expect(differing("killed")).toEqual([]);
  });

  it.each([
    ["SIGTERM", 143, 20],
    ["SIGINT", 130, 90],
  ] as const)(
    "%s: exit code %d, a checkpoint of the last step, and the same bytes after --resume",
    async (signal, code, step) => {
      const run = await stopRun(signal, signal, past(step), false);
      expect([run.code, errorCodes(run.stderr), STACK_FRAME.test(run.stderr)]).toEqual([code, [], false]);
      const steps = Number(/stopped after (\d+) steps; go on with the same command and --resume/.exec(run.stderr)?.[1]);
      expect(steps).toBeGreaterThanOrEqual(step);
      expect(covered(signal)).toBe(steps);
      expect(jsonLines(readFileSync(at(`${signal}.jsonl`), "utf8")).length).toBe(steps);
      expect(readdirSync(at(signal))).toEqual(["checkpoint.safetensors"]);
      expect((await stratum(command(signal, "--resume", "-q"))).code).toBe(0);
      expect(differing(signal)).toEqual([]);
    },
  );

  it("goes on where the log holds more than the checkpoint, and a half-written line", async () => {
    await stopRun("torn", "SIGTERM", past(20), false);
    const more = straight["log"]!.toString().split("\n").slice(0, 100).join("\n");
    await writeFile(at("torn.jsonl"), `${more}\n{"step":100,"lo`);
    expect((await stratum(command("torn", "--resume", "-q"))).code).toBe(0);
    expect(differing("torn")).toEqual([]);
  });
});

onPosix("with both anchors tried", () => {
  const names = [...FILES, "checkpoint-learned.safetensors"];
  const bytes = (out: string) => [
    ...names.map((name) => readFileSync(join(at(out), name), "base64")),
    ...[".jsonl", "-learned.jsonl"].map((end) => readFileSync(at(`${out}${end}`), "base64")),
  ];

  it("keeps the one that validates better, and a kill in the second run costs nothing of the first", async () => {
    const whole = await stratum(command("auto", "--anchor", "auto", "--epochs", "3"));
    expect([whole.code, errorCodes(whole.stderr)]).toEqual([0, []]);
    const { training } = JSON.parse(readFileSync(join(at("auto"), "scorer.json"), "utf8"));
    const tried = training.tried as { anchor: string; validation: { loss: number } }[];
    expect(tried.map(({ anchor }) => anchor)).toEqual(["instruction", "learned"]);
    const least = Math.min(...tried.map(({ validation }) => validation.loss));
    expect(tried.find(({ validation }) => validation.loss === least)?.anchor).toBe(training.anchor);
    expect(training.best.validation.loss).toBe(least);

    const again = command("auto-killed", "--anchor", "auto", "--epochs", "3");
    const run = startStratum(again);
    const second = join(at("auto-killed"), "checkpoint-learned.safetensors");
    await until(() => (run.child.exitCode !== null || existsSync(second) ? true : undefined), "the second run");
    run.child.kill("SIGKILL");
    await run.ended;
    expect(run.child.signalCode).toBe("SIGKILL");
    expect((await stratum([...again, "--resume"])).code).toBe(0);
    expect(bytes("auto-killed")).toEqual(bytes("auto"));
  });
});

describe("--resume", () => {
  beforeAll(() => cp(at("straight"), at("finished"), { recursive: true }));

  it("of a finished run writes the same bytes", async () => {
    await cp(at("straight.jsonl"), at("finished.jsonl"));
    expect((await stratum(command("finished", "--resume", "-q"))).code).toBe(0);
    expect(differing("finished")).toEqual([]);
  });

  it.each([
    [["--lr", "0.01"], "lr was 0.001, is 0.01"],
    [["--width", "12"], '"width":12'],
    [["--hold-out", "0.2"], "lists was"],
  ])("is refused with %j, and touches nothing", async (change, message) => {
    const run = await stratum(command("finished", "--resume", ...change));
    expect([run.code, errorCodes(run.stderr)]).toEqual([1, ["train/other-run"]]);
    expect(run.stderr).toContain(message);
    expect(differing("finished")).toEqual([]);
  });

  it("is refused with a damaged checkpoint, and without one", async () => {
    await mkdir(at("damaged"));
    await writeFile(
      join(at("damaged"), "checkpoint.safetensors"),
      straight["checkpoint.safetensors"]!.subarray(0, 999),
    );
    const damaged = await stratum(command("damaged", "--resume"));
    expect([damaged.code, errorCodes(damaged.stderr)]).toEqual([1, ["train/bad-checkpoint"]]);
    const none = await stratum(command("none", "--resume"));
    expect([none.code, errorCodes(none.stderr), existsSync(at("none"))]).toEqual([1, ["train/no-checkpoint"], false]);
    expect(`${damaged.stderr}${none.stderr}`).not.toMatch(STACK_FRAME);
  });
});

it("ends a diverged training with its step, its loss and the last good checkpoint, and no scorer", async () => {
  const run = await stratum(command("diverged", "--lr", "1e12"));
  expect([run.code, errorCodes(run.stderr), STACK_FRAME.test(run.stderr)]).toEqual([1, ["train/diverged"], false]);
  expect(run.stderr).toMatch(/at step 1: the loss is NaN/);
  expect(run.stderr).toContain(join(at("diverged"), "checkpoint.safetensors"));
  expect(readdirSync(at("diverged"))).toEqual(["checkpoint.safetensors"]);
  expect(readFileSync(at("diverged.jsonl"), "utf8")).not.toMatch(/null|NaN/);
});
