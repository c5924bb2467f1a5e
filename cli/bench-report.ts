/** What every benchmark prints: its rows as a table or JSON, the comparison with an earlier run, the page. */
import { cpus } from "node:os";
import type { Command } from "commander";
import { z } from "zod";
import { type ComparedRow, compareRows } from "../engine/bench-compare.ts";
import { measurePeak } from "../engine/bench-peak.ts";
import { type BenchRow, type Ceilings, withCeilings } from "../engine/bench-row.ts";
import type { Engine } from "../engine/model.ts";
import { StratumError } from "../errors.ts";
import { readJsonFile } from "../weights/json.ts";
import { NUMBER_COLUMNS, type ReportDocument, ROW_HEADER, rowCells, shortNumber } from "./bench-rows.ts";
import { addCommonOptions, type CommonOptions, packageVersion, positiveInteger } from "./common.ts";
import { formatTable } from "./format.ts";
import { number } from "./numbers.ts";
import { checkOutput, writeOutput } from "./output.ts";
import { addProfileOptions } from "./profile.ts";
import { EXIT, note, stopping, writeStdout } from "./terminal.ts";

export interface ReportFlags extends CommonOptions {
  readonly runs: number;
  readonly maxSeconds: number;
  readonly compare?: string;
  readonly html?: string;
}

/** Adds the options of {@link ReportFlags}. */
export function addReportOptions(command: Command, runs: number, maxSeconds: number): Command {
  command
    .option("--runs <n>", "counted runs", positiveInteger, runs)
    .option(
      "--max-seconds <s>",
      "begin nothing new after this time; every row still gets one run",
      number(1, 86_400, "a number of seconds from 1"),
      maxSeconds,
    )
    .option(
      "--compare <old.json>",
      "compare with what --json printed before; exit 1 where a row is slower beyond the noise",
    )
    .option("--html <page.html>", "also write a page with the roofline plot and the table, in one file");
  return addProfileOptions(addCommonOptions(command, "JSON on stdout"));
}

/** What a benchmark found. */
export interface Report {
  /** The command, as typed after `stratum`. */
  readonly command: string;
  readonly model?: string;
  readonly ceilings: Ceilings | null;
  readonly rows: readonly BenchRow[];
  /** More numbers, for the JSON. */
  readonly figures?: Readonly<Record<string, unknown>>;
  /** Lines below the table. */
  readonly notes?: readonly string[];
  /** Whether something was wrong that the exit code must tell. */
  readonly failed?: boolean;
}

const EarlierRun = z.object({
  adapter: z.string(),
  rows: z.array(
    z.object({
      name: z.string(),
      shape: z.string(),
      dtype: z.string(),
      variant: z.string(),
      median_ms: z.number().positive(),
      iqr_ms: z.number().min(0),
    }),
  ),
});

type Earlier = z.infer<typeof EarlierRun>;

const MAX_BYTES = 2 ** 26;

/** What a report needs beside its rows, made sure of before anything is timed. */
export interface ReportTargets {
  readonly earlier: Earlier | null;
}

/**
 * Reads the earlier run and checks that the page can be written.
 * @throws {StratumError} `usage/compare`, `usage/output`, `file/...`
 */
export async function openReport({ compare, html }: ReportFlags): Promise<ReportTargets> {
  if (html !== undefined && html !== "-") await checkOutput(html);
  return { earlier: compare === undefined ? null : await readEarlier(compare) };
}

async function readEarlier(path: string): Promise<Earlier> {
  const fix = "give --compare a file that `stratum bench ... --json > FILE` wrote";
  const bad = "usage/compare";
  const parsed = await readJsonFile(path, { what: "the earlier run", maxBytes: MAX_BYTES, missing: bad, bad, fix });
  const found = EarlierRun.safeParse(parsed);
  if (found.success) return found.data;
  const [issue] = found.error.issues;
  throw new StratumError(
    "usage/compare",
    `${path} holds no benchmark: ${issue === undefined ? "" : `${issue.path.join(".")}: ${issue.message}`}`,
    fix,
  );
}

/** The two ceilings that shares are told of, with progress on stderr. */
async function measureCeilings(engine: Engine): Promise<Ceilings> {
  note("measuring the adapter's ceilings (fma, memory)");
  const peak = await measurePeak(engine, { only: "roofline", runs: 3, maxSeconds: 15, signal: stopping()?.signal });
  note(`        ${peak.gflops} GFLOP/s in registers, ${peak.gbps} GB/s of memory`);
  return peak;
}

/**
 * Runs a benchmark between two measurements of the ceilings, of which the higher counts: whatever else the machine did
 * during one of them must not flatter the rows.
 * @param wanted false: no ceilings are measured
 */
export async function betweenCeilings<T>(
  engine: Engine,
  wanted: boolean,
  work: () => Promise<T>,
): Promise<{ readonly result: T; readonly ceilings: Ceilings | null }> {
  if (!wanted) return { result: await work(), ceilings: null };
  const before = await measureCeilings(engine);
  const result = await work();
  const after = await measureCeilings(engine);
  return {
    result,
    ceilings: { gflops: Math.max(before.gflops, after.gflops), gbps: Math.max(before.gbps, after.gbps) },
  };
}

/** `RxKxN` as numbers; null for anything else. @throws {StratumError} `usage/shapes` for sizes that no product has */
export function parseProduct(text: string): readonly [number, number, number] | null {
  const found = /^(\d+)x(\d+)x(\d+)$/.exec(text.trim());
  if (found === null) return null;
  const sizes = found.slice(1).map(Number);
  if (sizes.some((size) => size < 1 || size > 2 ** 24)) {
    throw new StratumError(
      "usage/shapes",
      `the product ${text} cannot be timed`,
      "give rows, inner size and columns as whole numbers from 1 to 16777216",
    );
  }
  const [rows, k, n] = sizes;
  return [rows, k, n];
}

/** This machine's processors. */
export function machineName(): string {
  return `${cpus().length} x ${cpus()[0]?.model.trim() ?? "unknown CPU"}`;
}

/** One line a row that is slower, faster, new or gone. @returns the lines, and whether any is slower */
export function compareReport(
  earlier: Earlier,
  adapter: string,
  rows: readonly ComparedRow[],
): { readonly lines: readonly string[]; readonly slower: boolean } {
  if (earlier.adapter !== adapter) {
    throw new StratumError(
      "usage/compare",
      `the earlier run was on ${earlier.adapter}, this one is on ${adapter}`,
      "compare runs of one adapter (--adapter)",
    );
  }
  const compared = compareRows(earlier.rows, rows);
  const told = compared.filter(({ verdict }) => verdict !== "same");
  const lines = told.map(({ row, verdict, before_ms, now_ms, noise_ms }) => {
    const times = [before_ms, now_ms].map((ms) => (ms === null ? "-" : `${shortNumber(ms)} ms`)).join(" -> ");
    const noise = noise_ms === null ? "" : ` (noise ${shortNumber(noise_ms)} ms)`;
    return `${verdict.padEnd(6)} ${row.name} ${row.shape} ${row.dtype} ${row.variant}: ${times}${noise}`;
  });
  const same = compared.length - told.length;
  return {
    lines: [...lines, `${same} of ${compared.length} rows within the noise of the earlier run`],
    slower: compared.some(({ verdict }) => verdict === "slower"),
  };
}

/** Prints a report as the flags ask. @returns the exit code */
export async function finishReport(
  engine: Engine,
  report: Report,
  flags: ReportFlags,
  { earlier }: ReportTargets,
): Promise<number> {
  const { command, model, ceilings, figures = {}, notes = [], failed = false } = report;
  const rows = ceilings === null ? report.rows : withCeilings(report.rows, ceilings);
  const document: ReportDocument = {
    command,
    adapter: engine.device.info.name,
    machine: machineName(),
    node: process.version,
    version: packageVersion(),
    ...(model === undefined ? {} : { model }),
    ceilings: ceilings === null ? null : { gflops: ceilings.gflops, gbps: ceilings.gbps },
    rows,
  };
  if (flags.html !== undefined) {
    // Drawing is loaded where there is something to draw: every other start does without.
    const { benchPage } = await import("./bench-page.ts");
    await writeOutput(flags.html, benchPage(document));
    note(`page    ${flags.html}`);
  }
  const comparison = earlier === null ? null : compareReport(earlier, document.adapter, rows);
  if (flags.json) {
    await writeStdout(`${JSON.stringify({ ...document, ...figures })}\n`);
    for (const line of comparison?.lines ?? []) note(line);
  } else {
    const where = `on ${document.adapter}, ${document.machine}, Node ${document.node}`;
    note("");
    await writeStdout(
      `${[formatTable(ROW_HEADER, rows.map(rowCells), NUMBER_COLUMNS), "", ...notes, ...(comparison?.lines ?? []), where].join("\n")}\n`,
    );
  }
  return failed || comparison?.slower ? EXIT.someFailed : EXIT.ok;
}
