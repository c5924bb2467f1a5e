/** A sweep's report in a terminal. */

import type { Estimate } from "../scorer/bootstrap.ts";
import type { Report, ReportRow } from "../scorer/report-data.ts";
import { placeName } from "../scorer/sweep.ts";
import { timeOf } from "../scorer/sweep-recommend.ts";
import { formatBytes, formatTable, plainText } from "./format.ts";

const percent = (estimate: Estimate | null | undefined) => (estimate ? (100 * estimate.mean).toFixed(1) : "-");
const interval = (estimate: Estimate | null) =>
  estimate === null ? "-" : `${(100 * estimate.low).toFixed(1)} to ${(100 * estimate.high).toFixed(1)}`;

/** All tables, ending in a newline. */
export function reportText(report: Report): string {
  return [textTable(report), placeTable(report), ...transferTable(report), reasonText(report)]
    .filter((part) => part !== "")
    .join("\n\n")
    .concat("\n");
}

function textTable({ rows }: Report): string {
  const texts = rows.filter(({ layers }) => layers === null);
  const cells = texts.map(({ method, top1 }) => [method, percent(top1), interval(top1)]);
  return formatTable(["text only", "top-1", "95% interval"], cells, [1]);
}

/** A line a place, a column a method. */
function placeTable({ rows, methods, costs }: Report): string {
  const onStates = rows.filter(({ layers }) => layers !== null);
  const names = methods.map(({ name }) => name).filter((name) => onStates.some(({ method }) => method === name));
  const places = new Map(onStates.map((row) => [placeName(row), row]));
  const lines = [...places].map(([name, { layers, pooling }]) => {
    const deepest = Math.max(...(layers ?? [0]));
    const cost = costs.find((each) => each.layer === deepest && each.pooling === pooling);
    const ms = timeOf(layers ?? [0], pooling ?? "", costs);
    const of = (method: string): ReportRow | undefined =>
      onStates.find((row) => row.method === method && placeName(row) === name);
    return [
      ...[layers?.join("+") ?? "", pooling ?? ""],
      ...names.map((method) => percent(of(method)?.top1)),
      ...[ms === null ? "-" : ms.toFixed(1), cost === undefined ? "-" : formatBytes(cost.gpu_bytes)],
    ];
  });
  const header = ["layer", "pooling", ...names.map(shortName), "ms a list", "on the GPU"];
  const table = formatTable(
    header,
    lines,
    header.map((_, i) => i).filter((i) => i !== 1),
  );
  return `top-1 in %, mean over seeds\n${table}`;
}

/** Columns are as wide as their names. */
function shortName(method: string): string {
  const short: Readonly<Record<string, string>> = {
    "raw cosine": "cosine",
    "difference of means": "means",
    "linear probe": "probe",
    "linear probe, random weights": "random weights",
  };
  return short[method] ?? method.replace(/^scorer \((.*)\)$/, "$1");
}

/** At the recommended place: a line a method, a column a measured file. */
function transferTable({ transfer, recommendation, methods }: Report): string[] {
  if (transfer === null || recommendation === null) return [];
  const { recommended } = recommendation;
  return transfer.trained.map((trained) => {
    const own = transfer.rows.filter(
      (row) => row.trained === trained && (row.layers === null || placeName(row) === placeName(recommended)),
    );
    const names = methods.map(({ name }) => name).filter((name) => own.some(({ method }) => method === name));
    const lines = names.map((name) => [
      name,
      ...transfer.measured.map((file) =>
        percent(own.find(({ method, measured }) => method === name && measured === file)?.top1),
      ),
    ]);
    const header = ["measured on", ...transfer.measured.map((file) => plainText(file, 40))];
    const table = formatTable(header, lines, header.map((_, i) => i).slice(1));
    return `trained on ${plainText(trained)}, ${placeName(recommended)}: top-1 in %\n${table}`;
  });
}

function reasonText({ recommendation }: Report): string {
  return recommendation === null ? "" : recommendation.reason.join("\n");
}
