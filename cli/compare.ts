/** `stratum compare`: two rankings, or two scorers, on the same lists. */
import { stat } from "node:fs/promises";
import type { Command } from "commander";
import { StratumError } from "../errors.ts";
import { type Comparison, compareScores } from "../scorer/compare.ts";
import { pairRankings } from "../scorer/paired-rankings.ts";
import { loadScorer } from "../scorer/scorer-file.ts";
import { addRunOptions, countLines } from "./common.ts";
import { type Compared, type CompareFlags, comparisonTable, flipLines, jsonComparison } from "./compare-output.ts";
import { comparedScorers } from "./compare-scorers.ts";
import { counted } from "./format.ts";
import { bootstrapOption, safeFromOption } from "./measure-options.ts";
import { wholeNumber } from "./numbers.ts";
import { note, type StopSignal, stopSignal, warn, writeStdout } from "./terminal.ts";

const HELP = `
Examples:
  $ stratum compare a.jsonl b.jsonl lists.jsonl                                 two rankings of these lists
  $ stratum compare a.jsonl b.jsonl                      their labels, where they were ranked with --return-documents
  $ stratum compare scorer-a scorer-b lists.jsonl --model path/to/model         two scorers, on lists that neither has seen

Differences are paired, list by list; intervals are 95%, by the bootstrap over instructions (over lists, where nothing says
which share one). A verdict is 'above' or 'below' where the interval does not hold 0. A list has flipped where the one is
right in the first place and the other is not.
--json prints one object: {a, b, lists, instructions, left_out, measures: [{measure, a, b, difference, verdict}], both_right,
both_wrong, flips: [{id, right, a, b}]}; a and b of a flip are {index, id, label} of the first places.
Exit codes: 0 done, 1 nothing to compare, 2 usage, 3 environment, 129/130/143 stopped by a signal.`;

/** Declares the command. */
export function compareCommand(program: Command): void {
  const command = program
    .command("compare")
    .description("compare two rankings, or two scorers, on the same lists: paired difference, and which lists flipped")
    .argument("<a>", "a rankings file, or a scorer's folder")
    .argument("<b>", "another of the same kind")
    .argument("[lists]", "the labelled lists; not needed for rankings with documents")
    .option("--flips", "print every list that flipped, not the first ten")
    .option("--include-seen", "of scorers: count lists that one of them has seen, too")
    .addOption(safeFromOption())
    .option("-l, --layer <k>", "layer, where the scorers do not say")
    .option("--seed <n>", "of the bootstrap", wholeNumber, 0)
    .addOption(bootstrapOption())
    .option("--no-cache", "of scorers: compute features anew and keep none")
    .addHelpText("after", HELP);
  addRunOptions(command, "one JSON object on stdout instead of tables").action(
    async (a: string, b: string, lists: string | undefined, flags: CompareFlags) => {
      const { pooling, ...rest } = flags;
      const given = command.getOptionValueSource("pooling") === "cli" ? { pooling } : {};
      process.exitCode = await runCompare(a, b, lists, { ...rest, ...given } as CompareFlags);
    },
  );
}

async function runCompare(a: string, b: string, lists: string | undefined, flags: CompareFlags): Promise<number> {
  const stop = stopSignal();
  const [first, second] = [await isFolder(a), await isFolder(b)];
  if (first !== second) {
    throw new StratumError(
      "usage/compare",
      `${a} is ${first ? "a folder" : "a file"} and ${b} is not`,
      "give two rankings files, or two scorers' folders",
    );
  }
  try {
    const compared = first ? await scorers(a, b, lists, flags, stop) : await rankings(a, b, lists);
    const { data, clusters, sides } = compared;
    const { safeFrom, seed, bootstrap } = flags;
    const comparison = compareScores(compared.a, compared.b, data, {
      ...{ safeFrom, seed, samples: bootstrap },
      clusters: clusters ?? undefined,
    });
    if (comparison.rows.every(({ difference }) => difference === null)) {
      throw new StratumError(
        "list/no-contrast",
        `none of ${counted(sides.ids.length, "list")} has labels for all its candidates, and two grades among them`,
        "give lists with a safe and an unsafe candidate",
      );
    }
    await print(compared, comparison, flags);
    return stop.exitCode() ?? 0;
  } catch (thrown) {
    const stopped = stop.exitCode();
    if (stopped === undefined || !stop.signal.aborted) throw thrown;
    warn("stopped before anything was compared");
    return stopped;
  }
}

async function isFolder(path: string): Promise<boolean> {
  const found = await stat(path).catch((cause: unknown) => {
    const what = `there is no ${path}`;
    throw new StratumError("usage/no-input", what, "give two rankings files, or two scorers' folders", cause);
  });
  return found.isDirectory();
}

async function rankings(a: string, b: string, lists: string | undefined): Promise<Compared> {
  for (const path of lists === undefined ? [a, b] : [a, b, lists]) await countLines(path);
  const { ids, data, clusters, judged, onlyA, onlyB, failed, ...scores } = await pairRankings(a, b, lists);
  if (clusters === null)
    note("note    intervals over lists: without the lists nothing says which share an instruction");
  const sides = {
    names: [a, b] as const,
    ids,
    first: judged.map((pair) => [pair.a.results[0], pair.b.results[0]] as const),
  };
  const instructions = judged.map((pair) => pair.a.instruction);
  const leftOut = { [`only in ${a}`]: onlyA, [`only in ${b}`]: onlyB, "failed in either": failed };
  return { data, clusters, ...scores, sides: { ...sides, instructions }, leftOut };
}

async function scorers(
  a: string,
  b: string,
  lists: string | undefined,
  flags: CompareFlags,
  stop: StopSignal,
): Promise<Compared> {
  if (lists === undefined) {
    throw new StratumError(
      "usage/list",
      "two scorers need lists to be compared on",
      "name a JSONL file of labelled lists as the third argument",
    );
  }
  const loaded = [await loadScorer(a), await loadScorer(b)] as const;
  return comparedScorers([a, b], loaded, lists, flags, stop);
}

async function print({ clusters, sides, leftOut }: Compared, found: Comparison, flags: CompareFlags): Promise<void> {
  for (const [why, count] of Object.entries(leftOut))
    if (count > 0) note(`note    left out: ${counted(count, "list")} ${why}`);
  const instructions = clusters === null ? null : new Set(clusters).size;
  if (flags.json) {
    await writeStdout(`${JSON.stringify(jsonComparison(sides, found, instructions, leftOut))}\n`);
    return;
  }
  await writeStdout(`${comparisonTable(sides, found, instructions)}\n`);
  await writeStdout(flipLines(sides, found, flags.flips ? Number.POSITIVE_INFINITY : 10));
}
