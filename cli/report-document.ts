/** A report as a document: what was run, what it recommends, and the sections behind that. */
import { REPORT_FILES, type Report, type ReportDifference, type ReportRun } from "../scorer/report-data.ts";
import { STATES_FILES, type StatesRecord } from "../scorer/states-file.ts";
import { numberCell, type ShownDocument, type ShownSection, type ShownTable } from "./document.ts";
import { counted, formatCount, formatSeconds } from "./format.ts";
import { accuracySection } from "./report-accuracy.ts";
import { costSection } from "./report-cost.ts";
import { coverageSection, slicesSection, transferSection } from "./report-elsewhere.ts";
import { statesSection } from "./report-states.ts";
import { percent, placeName } from "./report-words.ts";

/** The document of a report. */
export function reportDocument(report: Report): ShownDocument {
  const { run } = report;
  return {
    title: `Which layer of ${run.model.name} knows it: ${run.data.name}`,
    facts: [
      ...runFacts(run),
      ["seeds", run.seeds.join(", ")],
      ["layers", spans(run.layers)],
      ["pooling", run.poolings.join(", ")],
      ...run.tests.map((data): [string, string] => [`also measured on ${data.name}`, dataText(data)]),
    ],
    sections: [
      recommendation(report),
      accuracySection(report),
      costSection(report),
      ...[transferSection(report), slicesSection(report), coverageSection(report)].filter((part) => part !== null),
      ...(report.states === null ? [] : [statesSection(report.states)]),
    ],
    files: [
      [REPORT_FILES.report, "everything on this page as data"],
      [REPORT_FILES.rows, "a row a method and place"],
      [REPORT_FILES.cells, "a line a method, place and seed: every list's outcome"],
    ],
  };
}

/** The document of a look at states alone. */
export function statesDocument({ run, states }: StatesRecord): ShownDocument {
  return {
    title: `States of ${run.model.name}: ${run.data.name}`,
    facts: [...runFacts(run), ["layers", spans(run.layers)], ["pooling", run.poolings.join(", ")]],
    sections: [statesSection(states)],
    files: [
      [STATES_FILES.states, "everything on this page as data"],
      [STATES_FILES.layers, "a row a layer"],
      [STATES_FILES.points, "a row a point of a map"],
    ],
  };
}

/** `0 to 6, 12`: runs of layers as spans. */
export function spans(layers: readonly number[]): string {
  const found: number[][] = [];
  for (const layer of layers) {
    const last = found[found.length - 1];
    if (last !== undefined && layer === last[last.length - 1] + 1) last.push(layer);
    else found.push([layer]);
  }
  return found.map((span) => (span.length > 2 ? `${span[0]} to ${span[span.length - 1]}` : span.join(", "))).join(", ");
}

/** What every measurement of a model on lists says of itself. */
export function runFacts(
  run: Pick<ReportRun, "command" | "date" | "seconds" | "model" | "data" | "adapter" | "kernels" | "versions">,
): [string, string][] {
  const { model, data, adapter, versions } = run;
  return [
    [
      "model",
      `${model.name}: ${model.type}, ${model.layers} blocks of width ${model.hidden_size}, weights ${model.weights}`,
    ],
    ["revision", model.revision ?? "not of the hub"],
    ["fingerprint", model.fingerprint],
    ["data", `${data.name}: ${dataText(data)}`],
    ["SHA-256 of the data", data.sha256],
    ["adapter", `${adapter.name} (${adapter.source}${adapter.software ? ", in software" : ""})`],
    ["kernels", run.kernels],
    ["versions", `stratum ${versions.stratum}, Node ${versions.node}, webgpu ${versions.webgpu}, ${versions.platform}`],
    ["finished", `${run.date}, after ${formatSeconds(run.seconds)}`],
    ["command", run.command],
  ];
}

function dataText(data: ReportRun["data"]): string {
  const left = [
    [data.failed, "could not be used"],
    [data.unlabelled, "without labels"],
    [data.no_contrast, "of one class"],
  ] as const;
  const without = left.filter(([lists]) => lists > 0).map(([lists, why]) => `${formatCount(lists)} ${why}`);
  return `${counted(data.lists, "list")} of ${counted(data.instructions, "instruction")}, ${counted(data.candidates, "candidate")}${without.length > 0 ? `; ${without.join(", ")}` : ""}`;
}

function recommendation(report: Report): ShownSection {
  const about = { id: "recommendation", title: "Recommendation" };
  const { recommendation: found } = report;
  if (found === null)
    return {
      ...about,
      words: ["No method on states was measured on any list: there is nothing to recommend."],
      figures: [],
    };
  const tables = found.differences.length > 0 ? [differences(report, found.differences)] : [];
  return {
    ...about,
    words: found.reason,
    figures: tables.length === 0 ? [] : [{ title: "Compared with", words: [], charts: [], tables }],
  };
}

function differences({ run }: Report, all: readonly ReportDifference[]): ShownTable {
  const name = (of: ReportDifference["a"]) =>
    of.layers === null ? of.method : `${of.method}, ${placeName(of, run.poolings)}`;
  const points = (value: number) => `${value > 0 ? "+" : ""}${percent(value)}`;
  return {
    caption: "Paired differences in top-1, in points, on the same lists and seeds",
    header: ["of", "minus", "difference", "interval", "level", "verdict"],
    rows: all.map(({ a, b, difference, level, verdict }) => [
      name(a),
      name(b),
      numberCell(points(difference.mean)),
      numberCell(`${points(difference.low)} to ${points(difference.high)}`),
      numberCell(`${Number((100 * level).toFixed(2))}%`),
      verdict,
    ]),
  };
}
