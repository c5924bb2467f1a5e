/** A document as lines for a terminal: words, curves and the tables that are not folded. */
import { curve } from "./chart.ts";
import { type Chart, cellText, numberColumns, type ShownDocument, type ShownFigure } from "./document.ts";
import { formatFields, formatTable, plainText } from "./format.ts";

/** @param width columns of the terminal */
export function documentText({ title, facts, sections }: ShownDocument, width: number): string {
  const blocks = sections.flatMap(({ title: name, words, figures }) => [
    [name, "=".repeat(name.length), ...words.map((text) => wrapped(text, width))].join("\n"),
    ...figures.flatMap((figure) => figureText(figure, width)),
  ]);
  const about = formatFields(facts.map(([name, value]) => [name, plainText(value, 2 * width)]));
  return `${[plainText(title), about, ...blocks].join("\n\n")}\n`;
}

function figureText({ title, words, charts, tables }: ShownFigure, width: number): string[] {
  const shown = tables.filter(({ folded }) => !folded);
  const drawn = charts.flatMap((chart) => chartText(chart, width));
  if (shown.length + drawn.length + words.length === 0) return [];
  const text = words.map((each) => wrapped(each, width)).join("\n");
  return [
    [title, "-".repeat(title.length)].join("\n"),
    ...(text === "" ? [] : [text]),
    ...drawn,
    ...shown.map((table) => {
      const rows = table.rows.map((row) => row.map((cell) => plainText(cellText(cell), 60)));
      return `${formatTable(table.header, rows, numberColumns(table))}\n(${table.caption})`;
    }),
  ];
}

/** A curve for the series that stands out, or the first: lines that cross cannot be told apart without colours. */
function chartText(chart: Chart, width: number): string[] {
  // Charts with faint company repeat one that has all.
  if (chart.kind !== "lines" || chart.series.some(({ line }) => line === "faint")) return [];
  const series = chart.series.find(({ band }) => band) ?? chart.series[0];
  if (series === undefined || series.points.length < 3) return [];
  const { points, name } = series;
  const scale = chart.y.percent ? 100 : 1;
  const [first, last] = [points[0], points[points.length - 1]];
  const values = points.map(({ y }) => scale * y);
  const what = [chart.y.label, name].filter((part) => part !== "").join(", ");
  const axis = `${what}; ${chart.x.label} ${shortX(first.x)} to ${shortX(last.x)}`;
  return [`${axis}\n${curve(stretched(values, Math.min(width - 12, 60)), width)}`];
}

const shortX = (value: number) => String(Number(value.toFixed(3)));

/** Values in between on straight lines, so that a few make a curve as wide as many. */
function stretched(values: readonly number[], width: number): number[] {
  if (values.length >= width) return [...values];
  return Array.from({ length: width }, (_, i) => {
    const at = (i * (values.length - 1)) / (width - 1);
    const below = Math.min(Math.floor(at), values.length - 2);
    return values[below] + (at - below) * (values[below + 1] - values[below]);
  });
}

function wrapped(text: string, width: number): string {
  const lines: string[] = [""];
  for (const word of plainText(text, 10_000).split(" ")) {
    const line = lines[lines.length - 1];
    if (line !== "" && line.length + 1 + word.length > width) lines.push(word);
    else lines[lines.length - 1] = line === "" ? word : `${line} ${word}`;
  }
  return lines.join("\n");
}
