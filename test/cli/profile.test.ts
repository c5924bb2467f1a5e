/** `--profile` and `--trace`: the data stay what they are, byte for byte. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ProfileReport } from "../../engine/profile-report.ts";
import { type CliRun, errorCodes, exampleLines, type Folder, stratum, temporaryFolder } from "../support/cli.ts";

let folder: Folder;
let rank: string[];
let plain: CliRun;
beforeAll(async () => {
  folder = await temporaryFolder();
  rank = ["rank", await folder.write("few.jsonl", `${exampleLines.slice(0, 4).join("\n")}\n`)];
  plain = await stratum(rank);
});
afterAll(() => folder[Symbol.asyncDispose]());

describe("stratum rank", () => {
  it("--profile tells kernels and layers on stderr", async () => {
    const run = await stratum([...rank, "--profile"]);
    expect([run.code, run.stdout]).toEqual([0, plain.stdout]);
    expect(run.stderr).toMatch(
      /^profile .*: [\d,]+ dispatches and copies took [\d.]+ ms of [\d.]+ ms \(timestamps of the GPU\)$/m,
    );
    expect(run.stderr).toMatch(/^matmul +gate +k:192 .* +\d+\.\d+ +\d+\.\d%/m);
    expect(run.stderr).toMatch(/^layer 2 +\d+ +\d+\.\d+ +\d+\.\d%/m);
    expect(run.stderr).toMatch(/^tokenise +4 /m);
    expect(plain.stderr).not.toContain("profile");
  });

  it.each(["gpu", "host"])("--trace writes the report and the trace, by the clock '%s'", async (clock) => {
    const run = await stratum([
      ...rank,
      "--json",
      "--trace",
      join(folder.path, "trace.json"),
      "--profile-clock",
      clock,
    ]);
    expect([run.code, run.stdout]).toEqual([0, plain.stdout]);
    const trace = JSON.parse(await folder.read("trace.json")) as {
      traceEvents: readonly { ph: string; cat?: string; tid: number }[];
      profile: ProfileReport;
    };
    const { profile, traceEvents } = trace;
    expect(profile).toMatchObject({ clock, untimed: 0 });
    const dispatches = traceEvents.filter(({ ph, cat, tid }) => ph === "X" && tid === 1 && cat !== "scope");
    expect(dispatches).toHaveLength(profile.calls);
    // With --json the report is a line of JSON too.
    const last = run.stderr
      .trimEnd()
      .split("\n")
      .find((line) => line.startsWith('{"profile"'));
    expect(JSON.parse(last ?? "")).toEqual({ profile });
  });

  it.each([
    ["-", "stdout"],
    [join("nowhere", "trace.json"), "folder does not exist"],
  ])("refuses --trace %s before any work", async (trace, why) => {
    const run = await stratum([...rank, "--trace", trace]);
    expect([run.code === 0, run.stdout, errorCodes(run.stderr)]).toEqual([false, "", ["usage/output"]]);
    expect(run.stderr).toContain(why);
    expect(existsSync(trace)).toBe(false);
  });
});

it("every command that runs the GPU has it", async () => {
  const commands = [
    "rank",
    "extract",
    "train",
    "eval",
    "sweep",
    "demo",
    "bench rank",
    "bench depth",
    "bench train",
    "bench forward",
    "bench kernels",
  ];
  for (const command of commands) {
    const { stdout } = await stratum([...command.split(" "), "--help"]);
    expect([command, stdout.includes("--profile "), stdout.includes("--trace <file>")]).toEqual([command, true, true]);
  }
});
