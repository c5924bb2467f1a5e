/**
 * Charts as SVG, by Observable Plot on a DOM of its own: no script is left in what it gives. Colours are the page's
 * variables `--c0` ... `--c7`, so that one drawing serves light and dark.
 */
import * as Plot from "@observablehq/plot";
import { DOMParser } from "linkedom";
import type { Axis, Chart, ChartPoint, LineChart, MatrixChart, PointChart, Series } from "./document.ts";

/** Colours and symbols of series; beyond so many they come again. */
export const STYLES = 8;
const SYMBOLS = ["circle", "square", "triangle", "diamond", "star", "cross", "hexagon", "wye"] as const;

/** Of a drawing in its own units, which are pixels where there is room. */
interface Size {
  readonly width: number;
  readonly height: number;
}

/** As a phone is wide, and as a page of text is. */
const NARROW: Size = { width: 350, height: 300 };
const WIDE: Size = { width: 1000, height: 400 };

/** The little that is used of an element; the compiler knows no DOM here. */
interface Element {
  readonly localName: string;
  readonly textContent: string | null;
  readonly outerHTML: string;
  getAttributeNames(): string[];
  getAttribute(name: string): string | null;
  setAttribute(name: string, value: string): void;
  removeAttribute(name: string): void;
  querySelector(selector: string): Element | null;
  querySelectorAll(selector: string): Iterable<Element>;
  remove(): void;
}

// Of XML: only there does linkedom escape what stands in attributes, and names are other people's words.
const document = new DOMParser().parseFromString('<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml");

/**
 * A chart alone on its line, twice: `wide` and `narrow`, of which the page's style shows the one that fits.
 * @param words its text alternative
 */
export function drawWide(chart: Chart, words: string): string {
  return `<div class="wide">${draw(chart, words, WIDE)}</div><div class="narrow">${draw(chart, words, NARROW)}</div>`;
}

/** A chart as one of several. */
export function drawSmall(chart: Chart, words: string): string {
  return draw(chart, words, NARROW);
}

/** The sign of a series in a key: its symbol, with its line where it has one. */
export function drawKey({ style, line }: Pick<Series, "style" | "line">, lined: boolean): string {
  const middle = [{ x: 0.5, y: 0.5 }];
  const svg = Plot.plot({
    ...{
      document,
      width: lined ? 30 : 14,
      height: 14,
      margin: 0,
      axis: null,
      x: { domain: [0, 1] },
      y: { domain: [0, 1] },
    },
    marks: [
      lined ? Plot.ruleY(middle, { y: "y", x1: 0, x2: 1, stroke: colour(style), strokeWidth: 2, ...dashes(line) }) : [],
      Plot.dot(middle, { x: "x", y: "y", fill: colour(style), symbol: symbol(style), r: 4 }),
    ],
  });
  return finished(svg, { "aria-hidden": "true" });
}

function draw(chart: Chart, words: string, size: Size): string {
  const linked = chart.kind === "points" && chart.series.some(({ points }) => points.some(({ href }) => href));
  const svg = plotOf(chart, size);
  // Links within are reached one by one; without any, the drawing is one picture.
  return finished(svg, { role: linked ? "group" : "img", "aria-label": `${chart.title}. ${words}` });
}

function plotOf(chart: Chart, size: Size): Element {
  if (chart.kind === "matrix") return matrix(chart, size);
  return chart.kind === "lines" ? lines(chart, size) : points(chart, size);
}

function colour(style: number): string {
  return `var(--c${style % STYLES})`;
}

function symbol(style: number): (typeof SYMBOLS)[number] {
  return SYMBOLS[style % STYLES];
}

function dashes(line: Series["line"]): { strokeDasharray?: string; strokeOpacity?: number } {
  if (line === "dashed") return { strokeDasharray: "5 4" };
  return line === "faint" ? { strokeOpacity: 0.3 } : {};
}

/** Options of a scale and its axis. */
function scale(axis: Axis, horizontal: boolean): Plot.ScaleOptions {
  const { label, percent, log, ticks, domain } = axis;
  return {
    label,
    labelArrow: "none",
    grid: !horizontal || log === true,
    // Plot multiplies by 100, the domain included.
    ...(percent ? { percent } : {}),
    ...(log ? { type: "log", tickFormat: decade } : {}),
    ...(ticks ? { ticks, tickFormat: "d" } : {}),
    ...(domain ? { domain: percent ? domain.map((value) => 100 * value) : domain } : {}),
  };
}

/** Names the powers of ten: every tick of a logarithm's would stand in the way of the next. */
function decade(value: number): string {
  return Math.abs(Math.log10(value) % 1) < 1e-9 ? String(Number(value.toPrecision(1))) : "";
}

const frame = ({ width, height }: Size) => ({
  ...{ document, width, height, marginLeft: 48, marginRight: 14, marginTop: 24, marginBottom: 38 },
});

/** Few ticks where there is little room. */
function axes(
  chart: LineChart | PointChart,
  { width }: Size,
): { readonly x: Plot.ScaleOptions; readonly y: Plot.ScaleOptions } {
  const few = width < 500;
  const x = scale(chart.x, true);
  const { ticks } = chart.x;
  if (ticks !== undefined) {
    const domain = ticks.length > 1 ? { domain: [ticks[0], ticks[ticks.length - 1]] } : {};
    return { x: { ...x, ticks: thinned(ticks, few ? 9 : 24), ...domain }, y: scale(chart.y, false) };
  }
  return { x: { ...x, ...(few ? { ticks: 5 } : {}) }, y: scale(chart.y, false) };
}

/** Every n-th, so that at most `most` are left. */
function thinned(ticks: readonly number[], most: number): number[] {
  const step = [1, 2, 4, 5, 8, 10, 16, 20, 40].find((n) => ticks.length / n <= most) ?? 80;
  return ticks.filter((_, i) => i % step === 0);
}

function lines(chart: LineChart, size: Size): Element {
  const many = Math.max(...chart.series.map(({ points }) => points.length)) > (size.width < 500 ? 12 : 40);
  return Plot.plot({
    ...frame(size),
    ...axes(chart, size),
    marks: [
      chart.rules.map(({ y, style }) => Plot.ruleY([y], { stroke: colour(style), strokeDasharray: "2 3" })),
      chart.series
        .filter(({ band }) => band)
        .map(({ points, style }) =>
          Plot.areaY(intervals(points), { x: "x", y1: "low", y2: "high", fill: colour(style), fillOpacity: 0.16 }),
        ),
      // What is only there to compare with lies beneath.
      ordered(chart.series).map(({ points, style, line }) => [
        Plot.lineY(points, {
          ...{ x: "x", y: "y", stroke: line === "faint" ? "var(--faint)" : colour(style) },
          ...{ strokeWidth: line === "faint" ? 1 : 2, ...(line === "dashed" ? dashes(line) : {}) },
        }),
        line === "faint"
          ? []
          : Plot.dot(points, {
              ...{ x: "x", y: "y", fill: colour(style), symbol: symbol(style), r: many ? 2 : 3.5 },
              title: (point: ChartPoint) => point.title ?? "",
            }),
      ]),
      Plot.text(ruleNames(chart, size), {
        ...{ y: "y", text: "name", frameAnchor: "right", textAnchor: "end", dy: -7 },
        ...{ fill: "var(--soft)", stroke: "var(--back)", strokeWidth: 3 },
      }),
    ],
  });
}

/** Names of level lines; of lines too near each other for two names, one after the other at the higher. */
function ruleNames({ rules, y }: LineChart, { height }: Size): { y: number; name: string }[] {
  const named: { y: number; name: string }[] = [];
  const span = y.domain === undefined ? 0 : y.domain[1] - y.domain[0];
  for (const { y: at, name } of [...rules].sort((a, b) => b.y - a.y)) {
    const above = named[named.length - 1];
    if (above !== undefined && above.y - at < (14 / height) * span) above.name += `, ${name}`;
    else named.push({ y: at, name });
  }
  return named;
}

function intervals(points: readonly ChartPoint[]): readonly ChartPoint[] {
  return points.filter(({ low, high }) => low !== undefined && high !== undefined);
}

function ordered(series: readonly Series[]): Series[] {
  return [...series].sort((a, b) => Number(b.line === "faint") - Number(a.line === "faint"));
}

function points(chart: PointChart, size: Size): Element {
  const bare = chart.bare === true;
  const all = chart.series.flatMap(({ points: own }) => own);
  const big = all.length <= 60;
  const options = axes(chart, size);
  const labels = chart.labels ?? [];
  const ringed = labels.filter(({ ring }) => ring);
  const highest = ringed.reduce((top, { y }) => Math.max(top, y), Number.NEGATIVE_INFINITY);
  // Beside its ring, a name does not cover what lies above; only the highest has room there.
  const names = [
    { own: labels.filter(({ ring }) => !ring), dy: -12 },
    { own: ringed.filter(({ y }) => y === highest), dy: -17 },
    { own: ringed.filter(({ y }) => y !== highest), dx: 13, dy: 6, textAnchor: "start" as const },
  ];
  return Plot.plot({
    ...frame(size),
    ...(bare ? { marginLeft: 14, marginBottom: 14, marginTop: 14 } : {}),
    x: bare ? { axis: null, inset: 8 } : { ...options.x, inset: 10 },
    y: bare ? { axis: null, inset: 8 } : { ...options.y, insetTop: chart.labels ? 24 : 0 },
    marks: [
      bare ? Plot.frame({ stroke: "var(--line)" }) : [],
      chart.path
        ? Plot.line(chart.path, { x: "x", y: "y", stroke: "var(--fore)", strokeOpacity: 0.55, strokeWidth: 1.5 })
        : [],
      chart.series.map(({ points: own, style }) => {
        const linked = own.some(({ href }) => href !== undefined);
        return Plot.dot(own, {
          ...{ x: "x", y: "y", fill: colour(style), symbol: symbol(style), r: bare ? 3 : big ? 5 : 3 },
          ...(bare ? { fillOpacity: 0.75 } : {}),
          ...{ title: (point: ChartPoint) => point.title ?? "" },
          ...(linked ? { href: (point: ChartPoint) => point.href ?? null } : {}),
        });
      }),
      Plot.dot(ringed, { x: "x", y: "y", r: 9, stroke: "var(--fore)", strokeWidth: 1.5 }),
      names.map(({ own, ...at }) =>
        Plot.text(own, {
          x: "x",
          y: "y",
          text: "label",
          ...at,
          fill: "var(--fore)",
          stroke: "var(--back)",
          strokeWidth: 4,
        }),
      ),
    ],
  });
}

function matrix({ names, values, domain, label }: MatrixChart, { width }: Size): Element {
  const cells = values.flatMap((row, i) =>
    row.flatMap((value, j) => (value === null ? [] : [{ x: names[j], y: names[i], value }])),
  );
  const side = Math.min(width, 620);
  const room = names.length <= (side < 500 ? 8 : 14);
  const shown = thinned(
    names.map((_, i) => i),
    side < 500 ? 12 : 20,
  ).map((i) => names[i]);
  return Plot.plot({
    ...{ document, width: side, height: side, marginLeft: 40, marginBottom: 38, marginTop: 8, marginRight: 8 },
    x: { domain: [...names], label, labelArrow: "none", ticks: shown },
    y: { domain: [...names], label: null, ticks: shown },
    marks: [
      Plot.cell(cells, {
        ...{ x: "x", y: "y", fill: "var(--c0)", inset: 0.5 },
        fillOpacity: ({ value }: { value: number }) =>
          0.06 + 0.44 * Math.min(1, Math.max(0, (value - domain[0]) / (domain[1] - domain[0]))),
        title: ({ x, y, value }: { x: string; y: string; value: number }) => `${y}, ${x}: ${value.toFixed(3)}`,
      }),
      room
        ? Plot.text(cells, {
            ...{ x: "x", y: "y", text: ({ value }: { value: number }) => value.toFixed(2), fill: "var(--fore)" },
          })
        : [],
    ],
    // What a cell says is its opacity as it stands.
    opacity: { type: "identity" },
  });
}

/** Attributes that hold coordinates. */
const COORDINATES = ["d", "transform", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height", "points"];

/** The drawing as text: two decimals, no style or names of Plot's own, and the attributes of the whole. */
function finished(svg: Element, attributes: Readonly<Record<string, string>>): string {
  for (const style of svg.querySelectorAll("style")) style.remove();
  const [width, height] = [svg.getAttribute("width"), svg.getAttribute("height")];
  for (const element of [svg, ...svg.querySelectorAll("*")]) {
    for (const name of element.getAttributeNames()) {
      if (name.startsWith("aria-") || name === "class" || name.startsWith("font-f")) element.removeAttribute(name);
      else if (COORDINATES.includes(name)) {
        const value = element.getAttribute(name) ?? "";
        element.setAttribute(
          name,
          value.replaceAll(/-?\d+\.\d{3,}/g, (text) => String(Number(Number(text).toFixed(2)))),
        );
      }
    }
    if (element.localName === "title" && element.textContent === "") element.remove();
  }
  for (const link of svg.querySelectorAll("a")) {
    const title = link.querySelector("title")?.textContent;
    if (title) link.setAttribute("aria-label", title);
  }
  for (const [name, value] of Object.entries(attributes)) svg.setAttribute(name, value);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return svg.outerHTML;
}
