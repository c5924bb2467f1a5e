/** `stratum view`: rankings to read, a list under the other, what is right and wrong marked. */
import type { Command } from "commander";
import truncatedWidth from "fast-string-truncated-width";
import { StratumError } from "../errors.ts";
import { type JudgedRanking, judge, listFinder, readRankings } from "../scorer/ranking-lines.ts";
import { addOutputOptions, countLines, positiveInteger } from "./common.ts";
import { counted, plainText } from "./format.ts";
import { safeFromOption } from "./measure-options.ts";
import { EXIT, note, stopSignal, styled, writeStdout } from "./terminal.ts";

interface ViewFlags {
  readonly wrong?: boolean;
  readonly safeFrom?: number;
  readonly width?: number;
  readonly json?: boolean;
}

const HELP = `
Examples:
  $ stratum view rankings.jsonl lists.jsonl | less
  $ stratum view rankings.jsonl --wrong        (ranked with --return-documents: the rankings carry texts and labels)
  $ stratum rank lists.jsonl --return-documents | stratum view -

A list is right where its first place is safe: where it has the list's highest label, or with --safe-from that or a higher
one. Lists with a missing label, or with labels all alike, are neither right nor wrong; abstained ones have no winner.
--json prints a line a list: {id, instruction, right, abstained, results: [{rank, index, id, score, label, text}], error}; what
is not known is null.
Exit codes: 0, 1 a line is no ranking, 2 usage, 3 environment, 129/130/143 stopped by a signal,
141 the pager was left.`;

/** Declares the command. */
export function viewCommand(program: Command): void {
  const command = program
    .command("view")
    .description("look at rankings: scores and texts, right and wrong marked")
    .argument("<rankings>", "JSONL file that stratum rank wrote, or - for stdin")
    .argument("[lists]", "the lists that were ranked: their texts and labels")
    .option("--wrong", "only lists whose first place is not safe")
    .addOption(safeFromOption())
    .option(
      "--width <columns>",
      "cut lines to so many columns (default: the terminal's, 100 without one)",
      positiveInteger,
    )
    .addHelpText("after", HELP);
  addOutputOptions(command, "JSON lines instead of the table").action(
    async (rankings: string, lists: string | undefined, flags: ViewFlags) => {
      process.exitCode = await runView(rankings, lists, flags);
    },
  );
}

async function runView(rankings: string, lists: string | undefined, flags: ViewFlags): Promise<number> {
  const stop = stopSignal();
  if (rankings === "-" && lists === "-")
    throw new StratumError("usage/list", "stdin cannot be both", "give the rankings or the lists as a file");
  for (const path of lists === undefined ? [rankings] : [rankings, lists]) await countLines(path);
  const finder = lists === undefined ? undefined : listFinder(lists);
  const width = flags.width ?? columns();
  const counts = { lists: 0, right: 0, wrong: 0, abstained: 0, failed: 0 };
  let shown = 0;
  let labelled = false;
  for await (const line of readRankings(rankings)) {
    if (stop.exitCode() !== undefined) break;
    const list = await finder?.find(line.id);
    if (finder !== undefined && list === undefined) {
      const what = `line ${line.line}: ${lists} has no list ${JSON.stringify(line.id)}`;
      throw new StratumError("list/bad-ranking", what, "give the lists that were ranked");
    }
    const judged = judge(line, list, flags);
    counts.lists++;
    labelled ||= judged.results.some(({ label }) => label !== null);
    const state = stateOf(judged);
    if (state !== "unknown") counts[state]++;
    if (flags.wrong && state !== "wrong") continue;
    shown++;
    await writeStdout(flags.json ? `${JSON.stringify(judged)}\n` : `${picture(judged, width)}\n`);
  }
  const stopped = stop.exitCode();
  if (stopped !== undefined) return stopped;
  if (counts.lists === 0)
    throw new StratumError("list/empty-file", `${rankings} holds no rankings`, "give a file that stratum rank wrote");
  tell(counts, shown);
  if (!labelled && finder === undefined)
    note("note    the rankings carry no labels: name the lists beside them, or rank with --return-documents");
  return EXIT.ok;
}

/** The terminal's width, even where stdout is a pipe to a pager. */
function columns(): number {
  return process.stdout.columns ?? process.stderr.columns ?? 100;
}

type State = "right" | "wrong" | "abstained" | "failed" | "unknown";

function stateOf({ right, abstained, error }: JudgedRanking): State {
  if (error !== null) return "failed";
  if (abstained) return "abstained";
  return right === null ? "unknown" : right ? "right" : "wrong";
}

const COLOURS = { right: "green", wrong: "red", abstained: "yellow", failed: "red", unknown: "dim" } as const;

/** A list: what it asks and how its first place fares, then a line a candidate. */
function picture(judged: JudgedRanking, width: number): string {
  const { id, instruction, results, error } = judged;
  const state = stateOf(judged);
  const mark = state === "unknown" ? "" : `${state}  `;
  const head = cut(`${plainText(String(id), 40)}  ${mark}${plainText(instruction ?? "", 2 * width)}`, width);
  // Styled once it is cut: the codes have no width.
  const named = plainText(String(id), 40).length + 2;
  const lines = [
    `${styled("bold", head.slice(0, named))}${styled(COLOURS[state], head.slice(named, named + mark.length))}${head.slice(named + mark.length)}`,
  ];
  if (error !== null) lines.push(cut(`      ${plainText(`${error.code}: ${error.message}`, 2 * width)}`, width));
  const [places, words] = [String(results.length).length, results.map(({ label }) => wordOf(label))];
  const room = Math.max(0, ...words.map((word) => word.length));
  for (const [i, { rank, index, id: own, score, label, text }] of results.entries()) {
    const number = `${String(rank).padStart(places + 2)}.  ${score.toFixed(3).padStart(6)}  `;
    const shown = text ?? (own === null ? `candidate ${index}` : `candidate ${index}, id ${own}`);
    const line = cut(`${number}${words[i].padEnd(room)}${room > 0 ? "  " : ""}${plainText(shown, 2 * width)}`, width);
    const end = number.length + words[i].length;
    const style = label === 1 ? "green" : label === 0 ? "red" : "dim";
    lines.push(`${line.slice(0, number.length)}${styled(style, line.slice(number.length, end))}${line.slice(end)}`);
  }
  return `${lines.map((line) => line.trimEnd()).join("\n")}\n`;
}

/** `safe`, `unsafe`, a grade, or nothing. */
function wordOf(label: number | null): string {
  if (label === null) return "";
  return label === 1 ? "safe" : label === 0 ? "unsafe" : String(label);
}

/** Cut to columns: wide characters count two. */
function cut(text: string, width: number): string {
  const { index, ellipsed } = truncatedWidth(text, { limit: width, ellipsis: "…" });
  return ellipsed ? `${text.slice(0, index)}…` : text.slice(0, index);
}

function tell(counts: Readonly<Record<"lists" | Exclude<State, "unknown">, number>>, shown: number): void {
  const { lists, right, wrong, abstained, failed } = counts;
  const unknown = lists - right - wrong - abstained - failed;
  const parts = [
    `${right} right`,
    `${wrong} wrong`,
    ...(abstained > 0 ? [`${abstained} abstained`] : []),
    ...(failed > 0 ? [`${failed} failed`] : []),
    ...(unknown > 0 ? [`${unknown} of which labels say nothing`] : []),
  ];
  note(`${counted(lists, "list")}: ${parts.join(", ")}${shown < lists ? `; ${shown} shown` : ""}`);
}
