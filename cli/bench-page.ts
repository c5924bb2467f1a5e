/**
 * A benchmark as one page: a roofline plot (Williams et al. 2009), each kernel a point at its arithmetic intensity, and
 * the table. No script runs and nothing is fetched: points are links to the table's rows, so that a keyboard reaches them
 * and a screen reader reads them.
 *
 * d3-scale makes the axes; the few shapes are written here, as the plotting libraries that draw SVG without a DOM are
 * tens of megabytes, and none gives points that can be focused.
 */
import { scaleLog } from "d3-scale";
import type { BenchRow, Ceilings } from "../engine/bench-row.ts";
import { NUMBER_COLUMNS, type ReportDocument, ROW_HEADER, rowCells, shortNumber } from "./bench-rows.ts";

/** Of the plot, in its own units. */
const WIDTH = 860;
const HEIGHT = 460;
const MARGIN = { top: 24, right: 24, bottom: 52, left: 72 };

/** Series beyond so many share a colour: the numbers beside the points tell them apart. */
const COLOURS = 6;

const ESCAPES: Readonly<Record<string, string>> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };

function escaped(text: string): string {
  return text.replaceAll(/[&<>"]/g, (character) => ESCAPES[character] ?? "");
}

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

const powersOfTen = (ticks: readonly number[]) => ticks.filter((tick) => Number.isInteger(Math.log10(tick)));

function rowId(index: number): string {
  return `row-${index + 1}`;
}

function plot(points: readonly Point[], ceilings: Ceilings | null): string {
  const intensities = points.map(({ intensity }) => intensity);
  const speeds = points.map(({ gflops }) => gflops);
  const knee = ceilings === null ? [] : [ceilings.gflops / ceilings.gbps];
  const top = ceilings === null ? [] : [ceilings.gflops];
  const x = scaleLog(
    [Math.min(...intensities, ...knee) / 3, Math.max(...intensities, ...knee) * 3],
    [MARGIN.left, WIDTH - MARGIN.right],
  );
  const slope = ceilings === null ? [] : [x.domain()[0] * ceilings.gbps];
  const y = scaleLog(
    [Math.min(...speeds.map((speed) => speed / 3), ...slope), Math.max(...speeds, ...top) * 2],
    [HEIGHT - MARGIN.bottom, MARGIN.top],
  );
  const at = (value: number) => value.toFixed(1);
  const grid = [
    ...powersOfTen(x.ticks()).map(
      (tick) =>
        `<line x1="${at(x(tick))}" x2="${at(x(tick))}" y1="${MARGIN.top}" y2="${HEIGHT - MARGIN.bottom}"/><text x="${at(x(tick))}" y="${HEIGHT - MARGIN.bottom + 20}" text-anchor="middle">${tick}</text>`,
    ),
    ...powersOfTen(y.ticks()).map(
      (tick) =>
        `<line x1="${MARGIN.left}" x2="${WIDTH - MARGIN.right}" y1="${at(y(tick))}" y2="${at(y(tick))}"/><text x="${MARGIN.left - 10}" y="${at(y(tick) + 4)}" text-anchor="end">${tick}</text>`,
    ),
  ];
  const series = [...new Set(points.map((point) => point.series))];
  const colour = (name: string) => Math.min(series.indexOf(name), COLOURS - 1);
  const marks = points.map(({ index, row, intensity, gflops, series: name }) => {
    const what = `${row.name}, ${row.shape}, ${row.dtype}, ${row.variant}: ${shortNumber(gflops)} GFLOP/s at ${shortNumber(intensity)} operations a byte${row.ceiling_share === null ? "" : `, ${(100 * row.ceiling_share).toFixed(1)}% of the ceiling`}`;
    const [cx, cy] = [at(x(intensity)), at(y(gflops))];
    return `<a href="#${rowId(index)}" class="point c${colour(name)}" aria-label="${escaped(what)}"><title>${escaped(what)}</title><circle cx="${cx}" cy="${cy}" r="6"/><text x="${at(x(intensity) + 9)}" y="${at(y(gflops) + 4)}" aria-hidden="true">${index + 1}</text></a>`;
  });
  return `<figure>
<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="group" aria-labelledby="plot-title">
<title id="plot-title">Roofline: speed against arithmetic intensity; every point is a link to its row of the table</title>
<g class="grid" aria-hidden="true">
${grid.join("\n")}
</g>
${ceilings === null ? "" : roof(x.domain(), ceilings, (intensity, gflops) => `${at(x(intensity))},${at(y(gflops))}`, [x(x.domain()[1]), y(ceilings.gflops)])}
${marks.join("\n")}
<text class="axis" x="${(WIDTH + MARGIN.left - MARGIN.right) / 2}" y="${HEIGHT - 10}" text-anchor="middle">operations a byte</text>
<text class="axis" transform="translate(18 ${HEIGHT / 2}) rotate(-90)" text-anchor="middle">GFLOP/s</text>
</svg>
<figcaption>Numbers are rows of the table. ${series.map((name) => `<span class="key c${colour(name)}">${escaped(name)}</span>`).join(" ")}${ceilings === null ? "" : ` The line is what this adapter can do at most, as measured: ${shortNumber(ceilings.gflops)} GFLOP/s in registers, ${shortNumber(ceilings.gbps)} GB/s of memory.`}</figcaption>
</figure>`;
}

/** The two ceilings as one line: bandwidth up to the knee, then multiply-adds. */
function roof(
  domain: readonly number[],
  { gflops, gbps }: Ceilings,
  place: (intensity: number, gflops: number) => string,
  [right, top]: readonly [number, number],
): string {
  const [low, high] = domain;
  const knee = gflops / gbps;
  const line = [place(low, low * gbps), place(knee, gflops), place(high, gflops)].join(" ");
  return `<polyline class="roof" points="${line}"/><text class="axis" x="${right.toFixed(1)}" y="${(top - 8).toFixed(1)}" text-anchor="end">${shortNumber(gflops)} GFLOP/s</text>`;
}

function table(rows: readonly BenchRow[]): string {
  const head = ["#", ...ROW_HEADER.map((name, i) => (i === 0 ? "name" : name))];
  const body = rows.map((row, index) => {
    const [name = "", ...cells] = rowCells(row);
    const numeric = (i: number) => (NUMBER_COLUMNS.includes(i + 1) ? ' class="number"' : "");
    return `<tr id="${rowId(index)}"><td class="number">${index + 1}</td><th scope="row">${escaped(name)}</th>${cells.map((cell, i) => `<td${numeric(i)}>${escaped(cell)}</td>`).join("")}</tr>`;
  });
  return `<div class="scroll" tabindex="0" role="region" aria-label="Rows"><table>
<caption>Medians of interleaved runs. The share is of the least time that the ceilings allow.</caption>
<thead><tr>${head.map((name) => `<th scope="col">${escaped(name)}</th>`).join("")}</tr></thead>
<tbody>
${body.join("\n")}
</tbody></table></div>`;
}

const STYLE = `:root { color-scheme: light dark; --back: #fff; --fore: #1b1f24; --soft: #5b6570; --line: #d8dee4; --mark: #fff3c4;
  --c0: #0b62c4; --c1: #b3261e; --c2: #14713a; --c3: #7a3db8; --c4: #8a5300; --c5: #4a5560; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --fore: #e6eaef; --soft: #9aa5b1; --line: #333a42; --mark: #4a3f12;
  --c0: #79b8ff; --c1: #ff8f85; --c2: #6fd58f; --c3: #cfa4ff; --c4: #f0b354; --c5: #b6c0ca; } }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; background: var(--back); color: var(--fore); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } p, figcaption, caption { color: var(--soft); } caption { text-align: left; padding-bottom: .5rem; }
figure { margin: 1.5rem 0; } svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 13px; }
.grid line { stroke: var(--line); } .roof { fill: none; stroke: var(--fore); stroke-width: 2; }
.c0 { --own: var(--c0); } .c1 { --own: var(--c1); } .c2 { --own: var(--c2); } .c3 { --own: var(--c3); } .c4 { --own: var(--c4); } .c5 { --own: var(--c5); }
.point circle { fill: var(--own); } .point text { fill: var(--fore); } .point:hover circle, .point:focus circle { stroke: var(--fore); stroke-width: 3; }
.key::before { content: ""; display: inline-block; width: .7em; height: .7em; border-radius: 50%; background: var(--own); margin-right: .35em; } .key { margin-right: .75em; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; } th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; } tbody th { font-weight: 500; } tr:target { background: var(--mark); }
:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }`;

/** The page of a benchmark. The document itself is in it too, as JSON in the element `data`. */
export function benchPage(document: ReportDocument): string {
  const { command, adapter, machine, node, version, model, ceilings, rows } = document;
  const points = pointsOf(rows);
  const where = [model, adapter, machine, `Node ${node}`, `stratum ${version}`].filter((part) => part !== undefined);
  // A closing tag within would end the element; in JSON the escape is the same text.
  const data = JSON.stringify(document).replaceAll("<", "\\u003c");
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>stratum ${escaped(command)}</title>
<style>
${STYLE}
</style>
</head>
<body>
<main>
<h1>stratum ${escaped(command)}</h1>
<p>${where.map(escaped).join(" · ")}</p>
${points.length > 0 ? plot(points, ceilings) : "<p>No row counts both operations and bytes: there is nothing to plot.</p>"}
${table(rows)}
</main>
<script type="application/json" id="data">${data}</script>
</body>
</html>
`;
}
