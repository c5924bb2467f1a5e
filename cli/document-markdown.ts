/** A document as Markdown, for a pull request: words and tables, the folded ones behind a line to click. */
import { cellText, numberColumns, type ShownCell, type ShownDocument, type ShownTable } from "./document.ts";

/** The text. */
export function documentMarkdown({ title, facts, sections }: ShownDocument): string {
  const parts = sections.flatMap((section) => [
    `### ${plain(section.title)}`,
    ...section.words.map(plain),
    ...section.figures.flatMap(({ title: name, words, tables }) =>
      words.length + tables.length === 0
        ? []
        : [`**${plain(name)}**`, ...(words.length > 0 ? [list(words)] : []), ...tables.map(table)],
    ),
  ]);
  const about = {
    caption: "What was run",
    header: ["", ""],
    rows: facts.map(([name, value]) => [name, value]),
    folded: true,
  };
  return `${[`## ${plain(title)}`, ...parts, table(about)].join("\n\n")}\n`;
}

const list = (words: readonly string[]) => words.map((text) => `- ${plain(text)}`).join("\n");

/** Other people's names must not become markup. */
function plain(text: string): string {
  return text.replaceAll(/\s+/g, " ").replaceAll(/[\\`*_[\]<>|#~]/g, (character) => `\\${character}`);
}

function table(shown: ShownTable): string {
  const { caption, header, rows, folded } = shown;
  const numbers = numberColumns(shown);
  const line = (cells: readonly string[]) => `| ${cells.join(" | ")} |`;
  const cell = (value: ShownCell) => {
    const text = plain(cellText(value));
    return typeof value === "object" && value.strong ? `**${text}**` : text;
  };
  const text = [
    line(header.map(plain)),
    line(header.map((_, i) => (numbers.includes(i) ? "---:" : "---"))),
    ...rows.map((row) => line(row.map(cell))),
  ].join("\n");
  if (!folded) return `${plain(caption)}:\n\n${text}`;
  return `<details><summary>${plain(caption)}</summary>\n\n${text}\n\n</details>`;
}
