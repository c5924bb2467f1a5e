/**
 * A benchmark as one page: a roofline plot (Williams et al. 2009), each kernel a point at its arithmetic intensity, and
 * the table. Points are links to the table's rows, so that a keyboard reaches them and a screen reader reads them.
 */
import type { BenchRow, Ceilings } from "../engine/bench-row.ts";
import { NUMBER_COLUMNS, type ReportDocument, ROW_HEADER, rowCells, shortNumber } from "./bench-rows.ts";
import { numberCell, type PointChart, type ShownFigure } from "./document.ts";
import { documentHtml } from "./document-html.ts";

/** A row that has a place in the plot: operations a byte, and 10^9 operations a second. */
interface Point {
  readonly index: number;
  readonly row: BenchRow;
  readonly intensity: number;
  readonly gflops: number;
  readonly series: string;
}

function pointsOf(rows: readonly BenchRow[]): Point[] {
  return rows.flatMap((row, index): Point[] => {
    const { gflops, gbps } = row;
    if (gflops === null || gbps === null || gflops <= 0 || gbps <= 0) return [];
    return [{ index, row, intensity: gflops / gbps, gflops, series: row.name.split(" ")[0] ?? row.name }];
  });
}

function roofline(points: readonly Point[], ceilings: Ceilings | null): PointChart {
  const intensities = points.map(({ intensity }) => intensity);
  const speeds = points.map(({ gflops }) => gflops);
  const knee = ceilings === null ? [] : [ceilings.gflops / ceilings.gbps];
  const [left, right] = [Math.min(...intensities, ...knee) / 3, Math.max(...intensities, ...knee) * 3];
  const top = ceilings === null ? [] : [ceilings.gflops];
  const slope = ceilings === null ? [] : [left * ceilings.gbps];
  const names = [...new Set(points.map(({ series }) => series))];
  const roof =
    ceilings === null
      ? {}
      : {
          path: [
            { x: left, y: left * ceilings.gbps },
            { x: ceilings.gflops / ceilings.gbps, y: ceilings.gflops },
            { x: right, y: ceilings.gflops },
          ],
        };
  return {
    kind: "points",
    title: "Speed against arithmetic intensity; every point is a link to its row of the table",
    x: { label: "operations a byte", log: true, domain: [left, right] },
    y: {
      ...{ label: "GFLOP/s", log: true },
      domain: [Math.min(...speeds.map((speed) => speed / 3), ...slope), Math.max(...speeds, ...top) * 2],
    },
    series: names.map((name, style) => ({
      ...{ name, style },
      points: points
        .filter(({ series }) => series === name)
        .map(({ index, row, intensity, gflops }) => ({
          ...{ x: intensity, y: gflops, href: `#row-${index + 1}` },
          title: `${row.name}, ${row.shape}, ${row.dtype}, ${row.variant}: ${shortNumber(gflops)} GFLOP/s at ${shortNumber(intensity)} operations a byte${row.ceiling_share === null ? "" : `, ${(100 * row.ceiling_share).toFixed(1)}% of the ceiling`}`,
        })),
    })),
    labels: points.map(({ index, intensity, gflops }) => ({ x: intensity, y: gflops, label: String(index + 1) })),
    ...roof,
  };
}

function figure({ rows, ceilings }: ReportDocument): ShownFigure {
  const points = pointsOf(rows);
  const most =
    ceilings && `${shortNumber(ceilings.gflops)} GFLOP/s in registers, ${shortNumber(ceilings.gbps)} GB/s of memory`;
  return {
    title: "Roofline",
    words: [
      ...(points.length > 0 ? [] : ["No row counts both operations and bytes: there is nothing to plot."]),
      ...(most === null ? [] : [`What this adapter can do at most, as measured: ${most}.`]),
    ],
    ...(points.length > 0
      ? {
          reading: `Numbers are rows of the table.${most === null ? "" : " The line is what this adapter can do at most."}`,
        }
      : {}),
    charts: points.length > 0 ? [roofline(points, ceilings)] : [],
    tables: [
      {
        caption: "Medians of interleaved runs. The share is of the least time that the ceilings allow.",
        header: ["#", ...ROW_HEADER.map((name, i) => (i === 0 ? "name" : name))],
        rows: rows.map((row, index) => [
          numberCell(String(index + 1)),
          ...rowCells(row).map((cell, i) => (NUMBER_COLUMNS.includes(i) ? numberCell(cell) : cell)),
        ]),
        anchors: "row",
      },
    ],
  };
}

/** The page of a benchmark. The document itself is in it too, as JSON in the element `data`. */
export function benchPage(document: ReportDocument): string {
  const { command, adapter, machine, node, version, model } = document;
  return documentHtml({
    title: `stratum ${command}`,
    facts: [
      ...(model === undefined ? [] : [["model", model] as const]),
      ["adapter", adapter],
      ["machine", machine],
      ["versions", `stratum ${version}, Node ${node}`],
    ],
    sections: [{ id: "speed", title: "Speed", words: [], figures: [figure(document)] }],
    files: [],
    data: document,
  });
}
