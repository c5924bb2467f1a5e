/** `stratum report`: shows a sweep's report again, as a page, for a pull request or in a terminal. */
import { join } from "node:path";
import { type Command, Option } from "commander";
import { REPORT_FILES, type Report } from "../scorer/report-data.ts";
import { readReport } from "../scorer/report-file.ts";
import type { ShownDocument } from "./document.ts";
import { documentMarkdown } from "./document-markdown.ts";
import { documentText } from "./document-text.ts";
import { writeOutput } from "./output.ts";
import { reportDocument } from "./report-document.ts";
import { EXIT, note, setQuiet } from "./terminal.ts";

export const FORMATS = ["html", "md", "text"] as const;
export type Format = (typeof FORMATS)[number];

interface ReportFlags {
  readonly format: Format;
  readonly output?: string;
  readonly quiet?: boolean;
}

const HELP = `
Examples:
  $ stratum report report/                    # writes report/report.html
  $ stratum report report/ --format md        # for a pull request
  $ stratum report report/ --format text | less

The folder is one that stratum sweep -o has written; nothing is measured again.`;

/** Columns where the output is no terminal. */
const WIDTH = 100;

/** Declares the command. */
export function reportCommand(program: Command): void {
  program
    .command("report")
    .description("show a sweep's report again: a page, Markdown or text")
    .argument("<folder>", "the folder of stratum sweep -o")
    .addOption(
      new Option("--format <name>", "a page in one file, Markdown, or text with plots")
        .choices(FORMATS)
        .default("html"),
    )
    .option("-o, --output <file>", "where to (default: FOLDER/report.html for html, else stdout)")
    .option("-q, --quiet", "nothing but errors on stderr")
    .addHelpText("after", HELP)
    .action(async (folder: string, flags: ReportFlags) => {
      setQuiet(Boolean(flags.quiet));
      process.exitCode = await runReport(folder, flags);
    });
}

async function runReport(folder: string, { format, output }: ReportFlags): Promise<number> {
  const document = reportDocument(await readReport(folder));
  await writeShown(document, format, output ?? (format === "html" ? join(folder, REPORT_FILES.html) : undefined));
  return EXIT.ok;
}

/** A document in one of the formats. */
export async function shown(document: ShownDocument, format: Format): Promise<string> {
  if (format === "md") return documentMarkdown(document);
  if (format === "text") return documentText(document, Math.min(process.stdout.columns ?? WIDTH, 140));
  // Drawing is loaded where there is something to draw: every other start does without.
  const { documentHtml } = await import("./document-html.ts");
  return documentHtml(document);
}

/** Writes a document to a file, or to stdout without one. */
export async function writeShown(document: ShownDocument, format: Format, path: string | undefined): Promise<void> {
  await writeOutput(path, await shown(document, format));
  if (path !== undefined && path !== "-") note(`wrote   ${path}`);
}

/** Writes the page of a report into its folder, beside its data. @returns its path */
export async function writeReportPage(folder: string, report: Report): Promise<string> {
  const path = join(folder, REPORT_FILES.html);
  await writeShown(reportDocument(report), "html", path);
  return path;
}
