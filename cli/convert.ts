/** `stratum convert`: lists out of preference pairs and labelled responses, as JSON Lines, JSON, CSV or Parquet. */
import { type Command, InvalidArgumentError, Option } from "commander";
import { StratumError } from "../errors.ts";
import {
  CONTRADICTIONS,
  type Contradictions,
  GROUPINGS,
  type Grouping,
  type ImportCounts,
  importCounts,
  importLists,
} from "../scorer/import-lists.ts";
import {
  IMPORT_SHAPES,
  type ImportedRow,
  type ImportFields,
  type ImportPlan,
  importRow,
  LABEL_MEANINGS,
  planFields,
  planImport,
  planWords,
} from "../scorer/import-shape.ts";
import { openRows, ROW_FORMATS, type RowFormat, type RowSource } from "../scorer/rows.ts";
import { addOutputOptions } from "./common.ts";
import { counted, plainText } from "./format.ts";
import { type LineOutput, withOutput } from "./output.ts";
import {
  EXIT,
  note,
  type Progress,
  reportError,
  type StopSignal,
  startProgress,
  stopSignal,
  warn,
} from "./terminal.ts";

interface ConvertFlags {
  readonly output?: string;
  readonly format?: RowFormat;
  readonly delimiter?: string;
  readonly shape?: ImportFields["shape"];
  readonly promptField?: string;
  readonly chosenField?: string;
  readonly rejectedField?: string;
  readonly responseField?: string;
  readonly labelField?: string;
  readonly labelMeans?: ImportFields["labelMeans"];
  readonly group: Grouping;
  readonly contradictions: Contradictions;
  readonly keepDuplicates?: boolean;
  readonly contrastOnly?: boolean;
  readonly json?: boolean;
}

/** Characters written at a time. */
const WRITTEN = 2 ** 16;
/** Errors of rows that are told one by one. */
const TOLD = 20;

const HELP = `
Examples:
  $ stratum convert train-*.parquet -o lists.jsonl
  $ stratum convert hh-rlhf/train.jsonl.gz -o lists.jsonl
  $ stratum convert answers.csv --prompt-field question --response-field reply --label-field ok -o lists.jsonl
  $ stratum convert pku.jsonl --label-field safer_response_id | stratum train - ...

Three shapes are found by the names of their fields, or named with --shape:
  pairs      chosen and rejected: texts beside a prompt, message arrays, or transcripts ("\\n\\nHuman: ...\\n\\nAssistant: ...")
             that hold the prompt; chosen gets the label 1, rejected 0
  rows       a prompt, a response and its label: true or false, 1 or 0, safe or unsafe, or a grade
  responses  a prompt, response_0, response_1, ..., is_response_0_safe, ... (PKU-SafeRLHF), or a field with the number of
             the better one
A prompt's rows become one list, whose id is a hash of the prompt. A response that comes twice stays once; one that comes
with different labels is dropped, unless --contradictions says otherwise. The lists are what rank and train read.
Files: .jsonl, .ndjson, .json (an array), .csv, .tsv, .parquet; gzipped text is unzipped; - is stdin.
Exit codes: 0 all rows used, 1 some rows failed (told on stderr), 2 usage, 3 environment, 129/130/143 stopped by a signal.`;

/** Declares the command. */
export function convertCommand(program: Command): void {
  const command = program
    .command("convert")
    .description("make lists from preference pairs or labelled responses: JSON Lines, JSON, CSV, Parquet")
    .argument("<files...>", "files of rows, or - for stdin")
    .option("-o, --output <file>", "write lists there instead of stdout")
    .addOption(new Option("--format <name>", "what the files hold, where their names do not say").choices(ROW_FORMATS))
    .option("--delimiter <character>", "between the fields of CSV (default: a comma, a tab for .tsv)", oneCharacter)
    .addOption(new Option("--shape <name>", "what a row is (default: by its fields)").choices(IMPORT_SHAPES))
    .option("--prompt-field <name>", "the prompt; none: it is in the conversations")
    .option("--chosen-field <name>", "the preferred response of a pair")
    .option("--rejected-field <name>", "the other one")
    .option("--response-field <name>", "the response of a row")
    .option("--label-field <name>", "its label; of numbered responses, the number of the better one")
    .addOption(new Option("--label-means <what>", "what true or 1 says (default: safe)").choices(LABEL_MEANINGS))
    .addOption(
      new Option(
        "--group <rows>",
        "which rows of a prompt become one list: all, adjacent ones (in little memory), or none",
      )
        .choices(GROUPINGS)
        .default("all"),
    )
    .addOption(
      new Option(
        "--contradictions <how>",
        "a response with different labels in one list: drop it, or take the majority's label, their mean, or the first",
      )
        .choices(CONTRADICTIONS)
        .default("drop"),
    )
    .option("--keep-duplicates", "keep a response as often as it comes")
    .option("--contrast-only", "leave out lists that teach nothing: a missing label, or labels all alike")
    .addHelpText("after", HELP);
  addOutputOptions(command, "a JSON summary as the last line on stderr").action(
    async (files: readonly string[], flags: ConvertFlags) => {
      process.exitCode = await runConvert(files, flags);
    },
  );
}

function oneCharacter(text: string): string {
  const character = text === "\\t" ? "\t" : text;
  if ([...character].length === 1) return character;
  throw new InvalidArgumentError("one character is needed, such as ; or \\t for a tab.");
}

/** Rows that could not be used. */
interface Failures {
  count: number;
}

async function runConvert(files: readonly string[], flags: ConvertFlags): Promise<number> {
  const stop = stopSignal();
  if (files.filter((path) => path === "-").length > 1 || new Set(files).size < files.length) {
    throw new StratumError("usage/arguments", "a file is named twice", "name every file once");
  }
  const counts = importCounts();
  const failures = { count: 0 };
  // The first file is opened before anything is written: its fields decide whether there is anything to do.
  const [first] = files;
  const opened = { source: await openRows(first, flags), path: first };
  planImport(opened.source.names, fieldsOf(flags));
  return withOutput(flags.output, { inputs: files }, async (output) => {
    const total = files.length === 1 ? opened.source.total : undefined;
    const progress = startProgress(total, "rows");
    try {
      const rows = rowsOf(files, opened.source, flags, failures, progress, stop);
      await writeLists(importLists(rows, flags, counts), output, stop);
    } finally {
      progress.stop();
    }
    const stopped = stop.exitCode();
    if (stopped !== undefined) return stopped;
    if (counts.lists === 0) throw nothingLeft(counts, failures, flags);
    await output.finish();
    tell(counts, failures, files, flags);
    return failures.count > 0 ? EXIT.someFailed : EXIT.ok;
  });
}

async function writeLists(lists: AsyncIterable<unknown>, output: LineOutput, stop: StopSignal): Promise<void> {
  let waiting = "";
  for await (const list of lists) {
    if (stop.exitCode() !== undefined) break;
    waiting += `${JSON.stringify(list)}\n`;
    if (waiting.length < WRITTEN) continue;
    await output.write(waiting);
    waiting = "";
  }
  if (waiting !== "") await output.write(waiting);
}

const fieldsOf = (flags: ConvertFlags): ImportFields => ({
  ...{ shape: flags.shape, prompt: flags.promptField, chosen: flags.chosenField, rejected: flags.rejectedField },
  ...{ response: flags.responseField, label: flags.labelField, labelMeans: flags.labelMeans },
});

/** The rows of all files that can be used; what is wrong with the others is told. */
async function* rowsOf(
  files: readonly string[],
  first: RowSource,
  flags: ConvertFlags,
  failures: Failures,
  progress: Progress,
  stop: StopSignal,
): AsyncGenerator<ImportedRow> {
  let told: string | undefined;
  for (const path of files) {
    const source = path === files[0] ? first : await openRows(path, flags);
    const plan: ImportPlan = planImport(source.names, fieldsOf(flags));
    const read = planFields(plan);
    const unread = source.names.filter((name) => !read.includes(name)).map((name) => `'${name}'`);
    const words = `${planWords(plan)}${unread.length > 0 ? `; not read: ${unread.join(", ")}` : ""}`;
    if (words !== told) progress.aside(() => note(`${plainText(path)}: ${plainText(words, 400)}`));
    told = words;
    for await (const { place, fields, error } of source.rows(read)) {
      if (stop.exitCode() !== undefined) return;
      progress.add(1, 0);
      try {
        if (error !== undefined) throw error;
        yield importRow(fields, plan);
      } catch (thrown) {
        if (!(thrown instanceof StratumError)) throw thrown;
        failures.count++;
        const where = `${path} ${place}: ${thrown.message}`;
        if (failures.count <= TOLD)
          progress.aside(() => reportError(new StratumError(thrown.code, where, thrown.fix, thrown.cause)));
        if (failures.count === TOLD) progress.aside(() => warn("further rows that fail are only counted"));
      }
    }
  }
}

function nothingLeft({ rows, emptied }: ImportCounts, { count }: Failures, flags: ConvertFlags): StratumError {
  if (rows === 0)
    return new StratumError(
      "list/empty-file",
      `none of ${counted(count, "row")} can be used`,
      "mend the rows that are named above, or name their fields",
    );
  return new StratumError(
    "list/no-contrast",
    `no list is left of ${counted(rows, "row")}: ${emptied} lost all responses to contradictions, the others teach nothing`,
    flags.contrastOnly ? "leave out --contrast-only to see them" : "see --contradictions",
  );
}

/** What a contradiction came to. */
const RESOLVED: Readonly<Record<Contradictions, string>> = {
  drop: "dropped",
  majority: "given the label of the majority, or dropped at a draw",
  mean: "given the mean of their labels",
  first: "given their first label",
};

function tell(counts: ImportCounts, failures: Failures, files: readonly string[], flags: ConvertFlags): void {
  const { rows, lists, candidates, duplicates, contradictions, withoutContrast, unlabelled, emptied } = counts;
  if (duplicates > 0)
    note(`note    ${counted(duplicates, "duplicate")} of responses ${flags.keepDuplicates ? "kept" : "left out"}`);
  if (contradictions > 0)
    note(
      `note    ${counted(contradictions, "response")} with different labels in one list ${RESOLVED[flags.contradictions]} (--contradictions)${emptied > 0 ? `; ${counted(emptied, "list")} lost all of theirs` : ""}`,
    );
  if (withoutContrast > 0)
    note(
      `note    ${counted(withoutContrast, "list")} with a missing label or labels all alike ${flags.contrastOnly ? "left out" : "kept: train leaves them out (--contrast-only)"}`,
    );
  if (flags.json) {
    const summary = {
      ...{ files, rows: rows + failures.count, failed: failures.count, lists, candidates, duplicates, contradictions },
      ...{ unlabelled, without_contrast: withoutContrast, emptied, output: flags.output ?? null },
    };
    process.stderr.write(`${JSON.stringify(summary)}\n`);
  } else
    note(
      `done    ${counted(rows, "row")} in ${counted(lists, "list")} of ${counted(candidates, "candidate")}${unlabelled > 0 ? `, ${unlabelled} of them without a label` : ""}${failures.count > 0 ? `; ${counted(failures.count, "row")} failed` : ""}`,
    );
}
