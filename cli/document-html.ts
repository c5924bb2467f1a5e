/**
 * A document as one page: nothing is fetched and no script runs, so that it opens from a disk and stays what it is. Light
 * or dark as the reader's system, one column on a phone. A drawing says in words what it shows, and its numbers stand in
 * a table behind it.
 */
import {
  type Chart,
  cellText,
  numberColumns,
  type ShownDocument,
  type ShownFigure,
  type ShownSection,
  type ShownTable,
} from "./document.ts";
import { drawKey, drawSmall, drawWide } from "./draw.ts";

const ESCAPES: Readonly<Record<string, string>> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };

function escaped(text: string): string {
  return text.replaceAll(/[&<>"]/g, (character) => ESCAPES[character] ?? "");
}

const paragraphs = (words: readonly string[]) => words.map((text) => `<p>${escaped(text)}</p>`).join("\n");

/** The page. */
export function documentHtml(document: ShownDocument): string {
  const { title, facts, sections, files, data } = document;
  const contents = sections.map(({ id, title: name }) => `<li><a href="#${id}">${escaped(name)}</a></li>`).join("");
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escaped(title)}</title>
<style>
${STYLE}
</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>${escaped(title)}</h1>
<dl class="facts">
${facts.map(([name, value]) => `<div><dt>${escaped(name)}</dt><dd>${escaped(value)}</dd></div>`).join("\n")}
</dl>
</header>
${sections.length > 1 ? `<nav aria-label="Contents"><ul>${contents}</ul></nav>` : ""}
<main id="content">
${sections.map(section).join("\n")}
${files.length > 0 ? filesBeside(files) : ""}
</main>
${data === undefined ? "" : `<script type="application/json" id="data">${json(data)}</script>`}
</body>
</html>
`;
}

/** A closing tag within would end the element; in JSON the escape is the same text. */
function json(data: unknown): string {
  return JSON.stringify(data).replaceAll("<", "\\u003c");
}

function filesBeside(files: ShownDocument["files"]): string {
  const items = files.map(
    ([name, holds]) => `<li><a href="${encodeURIComponent(name)}">${escaped(name)}</a>: ${escaped(holds)}</li>`,
  );
  return `<section aria-labelledby="files"><h2 id="files">Files beside this page</h2><ul>${items.join("")}</ul></section>`;
}

function section({ id, title, words, figures }: ShownSection): string {
  return `<section id="${id}" aria-labelledby="${id}-title">
<h2 id="${id}-title">${escaped(title)}</h2>
${paragraphs(words)}
${figures.map((shown, i) => figure(shown, `${id}-${i + 1}`)).join("\n")}
</section>`;
}

function figure({ title, words, reading, charts, tables }: ShownFigure, id: string): string {
  const text = words.join(" ");
  const drawn =
    charts.length === 1
      ? charts.map((chart) => drawWide(chart, text))
      : [
          `<div class="charts">${charts.map((chart) => `<div><h4>${escaped(chart.title)}</h4>${drawSmall(chart, text)}</div>`).join("\n")}</div>`,
        ];
  const shown = tables.map((each, i) => table(each, `${id}-table-${i + 1}`)).join("\n");
  if (charts.length === 0) return `<h3>${escaped(title)}</h3>\n<div class="words">${wordsOf(words)}</div>\n${shown}`;
  return `<figure aria-labelledby="${id}">
<figcaption><h3 id="${id}">${escaped(title)}</h3>${reading === undefined ? "" : `<p>${escaped(reading)}</p>`}</figcaption>
${key(charts)}
${drawn.join("\n")}
<div class="words">${wordsOf(words)}</div>
</figure>
${shown}`;
}

/** One sentence, or a list of them. */
function wordsOf(words: readonly string[]): string {
  if (words.length < 2) return paragraphs(words);
  return `<ul>${words.map((text) => `<li>${escaped(text)}</li>`).join("\n")}</ul>`;
}

/** What colours and symbols mean: once for all charts of a figure. */
function key(charts: readonly Chart[]): string {
  const series = new Map<string, string>();
  for (const chart of charts) {
    if (chart.kind === "matrix") continue;
    // A chart with faint company is about one series, which its title names.
    if (chart.series.some(({ line }) => line === "faint")) return "";
    for (const one of chart.series)
      if (one.name !== chart.title) series.set(one.name, drawKey(one, chart.kind === "lines"));
  }
  if (series.size < 2) return "";
  const items = [...series].map(([name, sign]) => `<li>${sign} ${escaped(name)}</li>`);
  return `<ul class="key">${items.join("")}</ul>`;
}

function table(shown: ShownTable, id: string): string {
  const { caption, header, rows, folded, anchors } = shown;
  const numbers = numberColumns(shown);
  const number = (i: number) => (numbers.includes(i) ? ' class="number"' : "");
  const body = rows.map((row, r) => {
    const cells = row.map((cell, i) => {
      const text = escaped(cellText(cell));
      if (i === 0) return `<th scope="row"${number(i)}>${text}</th>`;
      if (typeof cell === "string") return `<td>${text}</td>`;
      const { weight, strong } = cell;
      const tint = weight === undefined ? "" : ` style="--weight:${(100 * weight).toFixed(0)}%"`;
      return `<td class="number${weight === undefined ? "" : " tint"}"${tint}>${strong ? `<strong>${text}</strong>` : text}</td>`;
    });
    return `<tr${anchors === undefined ? "" : ` id="${anchors}-${r + 1}"`}>${cells.join("")}</tr>`;
  });
  const head = header.map((name, i) => `<th scope="col"${number(i)}>${escaped(name)}</th>`).join("");
  // A region that scrolls must be reached by the keyboard, and so needs a name.
  const html = `<div class="scroll" tabindex="0" role="group" aria-labelledby="${id}"><table>
<caption id="${id}">${escaped(caption)}</caption>
<thead><tr>${head}</tr></thead>
<tbody>
${body.join("\n")}
</tbody></table></div>`;
  return folded ? `<details><summary>Table: ${escaped(caption)}</summary>\n${html}\n</details>` : html;
}

const STYLE = `:root { color-scheme: light dark; --back: #fff; --fore: #1b1f24; --soft: #59636e; --line: #d8dee4; --panel: #f6f8fa; --faint: #b4bcc5; --mark: #fff3c4; --link: #0b5cad;
  --c0: #0b62c4; --c1: #b8442a; --c2: #14713a; --c3: #7a3db8; --c4: #8a5300; --c5: #4a5560; --c6: #0f7280; --c7: #ad2f72; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --fore: #e6eaef; --soft: #a3adb8; --line: #333a42; --panel: #1c2127; --faint: #56606b; --mark: #4a3f12; --link: #79b8ff;
  --c0: #79b8ff; --c1: #ff9d80; --c2: #6fd58f; --c3: #cfa4ff; --c4: #f0b354; --c5: #b6c0ca; --c6: #5fd0de; --c7: #ff92c6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.25rem 4rem; background: var(--back); color: var(--fore); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; text-wrap: balance; } h2 { font-size: 1.3rem; margin: 3rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); } h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; } h4 { font-size: .9rem; font-weight: 600; margin: 0 0 .25rem; }
p { margin: 0 0 .75rem; max-width: 46rem; } a { color: var(--link); } .skip { position: absolute; left: -999rem; } .skip:focus { left: 1rem; top: .5rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: .5rem 1.5rem; margin: 0; padding: 1rem 1.25rem; background: var(--panel); border-radius: .5rem; font-size: .9rem; } .facts div { min-width: 0; } dt { color: var(--soft); font-size: .8rem; } dd { margin: 0; overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: 1.25rem 0 0; padding: 0; font-size: .95rem; } nav a { display: inline-block; padding: .25rem 0; }
#recommendation { --ground: var(--panel); margin-top: 2rem; padding: .25rem 1.25rem 1rem; border-left: 4px solid var(--c0); background: var(--panel); border-radius: 0 .5rem .5rem 0; } #recommendation h2 { border: 0; margin: .5rem 0 .5rem; padding: 0; } #recommendation > p:first-of-type { font-size: 1.1rem; }
figure { margin: 0; } figcaption h3 { margin-bottom: .25rem; } figcaption p { color: var(--soft); font-size: .9rem; margin-bottom: .5rem; } .words ul { margin: .25rem 0 .75rem; padding-left: 1.1rem; columns: 26rem 2; column-gap: 2rem; } .words li { margin: 0 0 .25rem; break-inside: avoid; } .words p, .words li { color: var(--soft); font-size: .9rem; } svg { display: block; max-width: 100%; height: auto; overflow: visible; font-family: inherit; } svg text { font-size: 12px; fill: var(--soft); }
.narrow { display: none; } .charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18.5rem), 1fr)); gap: 1.5rem 1.25rem; margin: .75rem 0; } .charts > div { min-width: 0; }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0 0 .75rem; padding: 0; font-size: .9rem; } .key li { display: flex; align-items: center; gap: .45rem; }
.scroll { overflow-x: auto; margin: .75rem 0; } table { border-collapse: collapse; font-size: .9rem; } caption { text-align: left; color: var(--soft); padding-bottom: .4rem; } th, td { padding: .3rem .75rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; } th.number, td.number { text-align: right; padding: .3rem .6rem; font-variant-numeric: tabular-nums; } thead th { font-weight: 600; } tbody th { font-weight: 500; } th:first-child { position: sticky; left: 0; background: var(--ground, var(--back)); }
.tint { background: color-mix(in srgb, var(--c0) calc(var(--weight) * .4), transparent); } tr:target { background: var(--mark); }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--link); font-size: .9rem; padding: .25rem 0; width: fit-content; }
svg a:hover, svg a:focus { stroke: var(--fore); stroke-width: 2px; } :focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media (max-width: 44rem) { body { padding: 1.25rem 1rem 3rem; } .wide { display: none; } .narrow { display: block; } h1 { font-size: 1.35rem; } .facts { display: block; padding: .75rem 1rem; } .facts dt, .facts dd { display: inline; font-size: .8rem; } .facts dt::after { content: ": "; } }
@media print { nav, .skip { display: none; } figure { break-inside: avoid; } }`;
