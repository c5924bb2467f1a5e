/** `--profile` and `--trace`: where the time of a command goes. */
import { type Command, Option } from "commander";
import type { Device } from "../engine/device.ts";
import type { ProfileChoice } from "../engine/open-device.ts";
import { type ProfileRates, type ProfileReport, profileReport, profileTrace } from "../engine/profile-report.ts";
import { StratumError } from "../errors.ts";
import { formatCount, formatTable, plainText } from "./format.ts";
import { checkOutput, writeOutput } from "./output.ts";
import { note, warn } from "./terminal.ts";

export interface ProfileFlags {
  readonly profile?: boolean;
  readonly trace?: string;
  readonly profileClock?: Exclude<ProfileChoice, "off">;
}

/** Adds the options that every command has which runs the GPU. */
export function addProfileOptions(command: Command): Command {
  return command
    .option(
      "--profile",
      "where the time went, by kernel and by layer, on stderr at the end (with --json: a line of JSON)",
    )
    .option("--trace <file>", "the same as JSON, with a trace that ui.perfetto.dev opens (implies --profile)")
    .addOption(
      new Option("--profile-clock <clock>", "timestamps of the GPU, or the host's clock around one dispatch at a time")
        .choices(["auto", "gpu", "host"])
        .default("auto", "the GPU's where it has one"),
    );
}

/** How the device is to be opened. */
export function profileChoice({ profile, trace, profileClock = "auto" }: ProfileFlags): ProfileChoice {
  return profile || trace !== undefined ? profileClock : "off";
}

/** Kernels in the table; the others are one line. */
const MOST_KERNELS = 24;
const VARIANT_WIDTH = 56;

/** Tells what a device did. */
export type TellProfile = (device: Device) => Promise<void>;

/**
 * Checks where a profile goes, ahead of the work: tables on stderr, with `--json` a line of JSON there, and with `--trace`
 * the file.
 * @throws {StratumError} `usage/output`, `file/write-failed`
 */
export async function openProfile({ trace, json }: ProfileFlags & { readonly json?: boolean }): Promise<TellProfile> {
  if (trace === "-")
    throw new StratumError("usage/output", "--trace - would mix with the data on stdout", "give --trace a file");
  if (trace !== undefined) await checkOutput(trace);
  return async (device) => {
    const report = await profileReport(device);
    if (report === null) return;
    if (json) warn(JSON.stringify({ profile: report }));
    else for (const line of profileLines(report)) note(line);
    if (trace === undefined) return;
    // Readers of traces pass over what they do not know.
    await writeOutput(
      trace,
      `${JSON.stringify({ ...profileTrace(device), displayTimeUnit: "ms", profile: report })}\n`,
    );
    note(`trace   ${trace}: open it at https://ui.perfetto.dev`);
  };
}

function rateCells({ calls, ms, share, gflops, gbps }: ProfileRates): string[] {
  const rate = (value: number | null) => (value === null ? "-" : value.toFixed(2));
  return [formatCount(calls), ms.toFixed(2), `${(100 * share).toFixed(1)}%`, rate(gflops), rate(gbps)];
}

const RATE_HEADER = ["calls", "ms", "share", "GFLOP/s", "GB/s"];

/** The tables, line by line. */
export function profileLines(report: ProfileReport): string[] {
  const { kernels, scopes, host } = report;
  const shown = kernels
    .slice(0, MOST_KERNELS)
    .map((row) => ({ ...row, variant: plainText(row.variant, VARIANT_WIDTH) }));
  const rest = kernels.slice(MOST_KERNELS);
  const restMs = rest.reduce((sum, { ms }) => sum + ms, 0);
  const clock = {
    gpu: "timestamps of the GPU",
    host: `the host's clock, one at a time, ${(report.floor_ms ?? 0).toFixed(2)} ms of each on the way`,
  }[report.clock];
  return [
    "",
    `profile ${report.adapter}: ${formatCount(report.calls)} dispatches and copies took ${report.gpu_ms.toFixed(1)} ms of ${report.wall_ms.toFixed(1)} ms (${clock})${report.untimed > 0 ? `; ${formatCount(report.untimed)} without a time` : ""}`,
    "",
    formatTable(
      ["kernel", "role", "variant", ...RATE_HEADER],
      shown.map((row) => [row.kernel, row.role, row.variant, ...rateCells(row)]),
      [3, 4, 5, 6, 7],
    ),
    ...(rest.length > 0 ? [`and ${rest.length} more, ${restMs.toFixed(2)} ms together`] : []),
    "",
    formatTable(
      ["layer", ...RATE_HEADER],
      scopes.map((row) => [row.scope, ...rateCells(row)]),
      [1, 2, 3, 4, 5],
    ),
    "",
    formatTable(
      ["host", "spans", "ms"],
      host.map(({ span, count, ms }) => [span, formatCount(count), ms.toFixed(2)]),
      [1, 2],
    ),
  ];
}
