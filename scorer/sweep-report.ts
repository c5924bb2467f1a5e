/** A report out of a sweep: what was measured, what follows from it, and the files that hold it. */
import { join } from "node:path";
import type { Estimate } from "./bootstrap.ts";
import { csvText } from "./csv.ts";
import {
  REPORT_FILES,
  REPORT_VERSION,
  type Report,
  type ReportCell,
  type ReportCost,
  type ReportMethod,
  type ReportRun,
} from "./report-data.ts";
import type { ReportStates } from "./states-data.ts";
import type { SweepFile } from "./sweep.ts";
import { writeWhole } from "./sweep-journal.ts";
import { recommend, timeOf } from "./sweep-recommend.ts";
import { summariseCoverage, summariseRows, summariseSlices, summariseTransfer } from "./sweep-summary.ts";

/** What a report is made of. */
export interface SweepFindings {
  readonly run: ReportRun;
  /** Those that are measured; the first is the one that rows and slices are about. */
  readonly files: readonly Pick<SweepFile, "name" | "keys" | "labels" | "texts">[];
  /** Names of the files that were trained on. */
  readonly trained: readonly string[];
  readonly methods: readonly ReportMethod[];
  /** All of the sweep's. */
  readonly cells: readonly ReportCell[];
  readonly costs: readonly ReportCost[];
  readonly costsNote: string | null;
  readonly states: ReportStates | null;
}

/** Puts a report together. Depends on nothing but what it is given. */
export function makeReport(findings: SweepFindings): Report {
  const { run, files, trained, methods, cells, costs, costsNote, states } = findings;
  const [main] = files;
  const keysOf = new Map(files.map(({ name, keys }) => [name, keys]));
  const draws = { samples: run.options.bootstrap };
  const own = cells.filter((cell) => cell.trained === main.name && cell.measured === main.name);
  return {
    format: "stratum-report",
    version: REPORT_VERSION,
    run,
    methods: [...methods],
    rows: summariseRows(own, keysOf, draws),
    costs: [...costs],
    costs_note: costsNote,
    recommendation: recommend(own, methods, costs, keysOf, draws),
    transfer:
      files.length === 1
        ? null
        : summariseTransfer(
            cells,
            trained,
            files.map(({ name }) => name),
            keysOf,
            draws,
          ),
    slices: summariseSlices(own, main, draws, run.options.safe_from ?? undefined),
    states,
    coverage: summariseCoverage(own, methods, keysOf),
  };
}

/** Writes a report's files, each whole, the report itself last. @throws {StratumError} `file/write-failed` */
export async function writeReport(folder: string, report: Report): Promise<void> {
  await writeWhole(join(folder, REPORT_FILES.rows), reportCsv(report));
  await writeWhole(join(folder, REPORT_FILES.report), `${JSON.stringify(report)}\n`);
}

const MEASURES = ["top1", "pairwise", "mrr", "ndcg"] as const;

/** The rows as CSV (RFC 4180): a line a method and place, with what the place costs. Empty where there is no value. */
export function reportCsv({ rows, methods, costs }: Report): string {
  const header = [
    ...["method", "kind", "layers", "pooling"],
    ...MEASURES.flatMap((name) => [name, `${name}_low`, `${name}_high`]),
    ...["deviation", "lists", "seeds", "ms_per_list", "gpu_bytes"],
  ];
  const estimate = (found: Estimate | null): (string | number)[] =>
    found === null ? ["", "", ""] : [found.mean, found.low, found.high];
  const lines = rows.map((row): (string | number)[] => {
    const { method, layers, pooling } = row;
    const cost =
      layers === null
        ? undefined
        : costs.find((each) => each.layer === Math.max(...layers) && each.pooling === pooling);
    return [
      ...[method, methods.find(({ name }) => name === method)?.kind ?? "", layers?.join("+") ?? "", pooling ?? ""],
      ...MEASURES.flatMap((name) => estimate(row[name])),
      ...[row.deviation, row.top1?.lists ?? 0, row.seeds.length],
      ...[layers === null ? "" : (timeOf(layers, pooling ?? "", costs) ?? ""), cost?.gpu_bytes ?? ""],
    ];
  });
  return csvText(header, lines);
}
