/** `stratum demo`: the embedded model ranks the example lists, readable at a glance. */
import { join } from "node:path";
import type { Command } from "commander";
import { resolveLayer } from "../engine/layers.ts";
import { type List, readLists } from "../scorer/lists.ts";
import { createRanker } from "../scorer/rank.ts";
import {
  addCommonOptions,
  type CommonOptions,
  demoModel,
  loadPlanned,
  packageFolder,
  withEngine,
  withModelFiles,
} from "./common.ts";
import { formatSeconds, plainText } from "./format.ts";
import { EXIT, note, stopSignal, styled, warn, writeStdout } from "./terminal.ts";

interface DemoFlags extends CommonOptions {
  readonly layer: string;
  readonly all?: boolean;
}

/** Lists that are shown whole; of the others only the first place. */
const WHOLE_LISTS = 3;

/** The example lists that come with the package. */
export function exampleLists(): string {
  return join(packageFolder(), "cli", "examples", "everyday.jsonl");
}

/** Declares the command. */
export function demoCommand(program: Command): void {
  const command = program
    .command("demo")
    .description("rank the example lists with the embedded model")
    .option("-l, --layer <k>", "layer: a number, or a percentage of the blocks", "25%")
    .option("--all", "show every list whole")
    .addHelpText("after", "\nExample:\n  $ stratum demo --layer 50%");
  addCommonOptions(command, "the summary as JSON on stdout instead of the picture").action(async (flags: DemoFlags) => {
    process.exitCode = await runDemo(flags);
  });
}

/** Whether a candidate is labelled safe. */
function isSafe(list: List, index: number): boolean {
  return list.candidates[index].label === 1;
}

function listPicture(
  list: List,
  results: readonly { index: number; relevance_score: number }[],
  width: number,
): string {
  const lines = [styled("bold", plainText(list.messages.at(-1)?.content ?? "", width))];
  const low = results.at(-1)?.relevance_score ?? 0;
  const span = Math.max(1e-9, (results[0]?.relevance_score ?? 0) - low);
  for (const [place, { index, relevance_score: score }] of results.entries()) {
    const safe = isSafe(list, index);
    const mark = safe ? styled("green", "safe  ") : styled("red", "unsafe");
    const bar = "█".repeat(1 + Math.round((7 * (score - low)) / span)).padEnd(8);
    const text = plainText(list.candidates[index].text, width - 32);
    lines.push(
      `  ${place + 1}. ${score.toFixed(3).padStart(6)} ${styled("cyan", bar)} ${mark}  ${place === 0 ? text : styled("dim", text)}`,
    );
  }
  return lines.join("\n");
}

/** One line: the question, and what came first. */
function listLine(list: List, index: number, width: number): string {
  const mark = isSafe(list, index) ? styled("green", "safe  ") : styled("red", "unsafe");
  const half = Math.floor((width - 12) / 2);
  const question = plainText(list.messages.at(-1)?.content ?? "", half).padEnd(half);
  return `${mark}  ${question}  ${styled("dim", plainText(list.candidates[index].text, half))}`;
}

async function runDemo(flags: DemoFlags): Promise<number> {
  const stop = stopSignal();
  const begin = performance.now();
  return withModelFiles(demoModel(), async (files) => {
    const { layers } = files.spec.config;
    const layer = resolveLayer(flags.layer, layers);
    return withEngine(flags, async (engine) => {
      const model = await loadPlanned(engine, files, { layers: [layer], output: "scores" });
      using ranker = await createRanker(model, { layer });
      note("");
      const width = Math.min(process.stdout.columns ?? 100, 140);
      const started = performance.now();
      const counts = { lists: 0, candidates: 0, tokens: 0, top1: 0, random: 0 };
      for await (const result of ranker.rank(readLists(exampleLists()), { signal: stop.signal })) {
        if (result.kind === "failed") throw result.error;
        const { list, record } = result;
        counts.lists++;
        counts.candidates += list.candidates.length;
        counts.tokens += result.tokens;
        counts.random += list.candidates.filter(({ label }) => label === 1).length / list.candidates.length;
        if (isSafe(list, record.results[0].index)) counts.top1++;
        if (flags.json) continue;
        if (flags.all || counts.lists <= WHOLE_LISTS)
          await writeStdout(`${listPicture(list, record.results, width)}\n\n`);
        else {
          const head =
            counts.lists === WHOLE_LISTS + 1
              ? `${styled("bold", "The first place of the other lists")} (--all shows them whole)\n`
              : "";
          await writeStdout(`${head}${listLine(list, record.results[0].index, width)}\n`);
        }
      }
      const stopped = stop.exitCode();
      if (stopped !== undefined) {
        warn(`stopped after ${counts.lists} lists`);
        return stopped;
      }
      const now = performance.now();
      const percent = (count: number) => `${((100 * count) / Math.max(1, counts.lists)).toFixed(0)}%`;
      const summary = {
        adapter: engine.device.info.name,
        model: "stratum-demo",
        layer,
        layers,
        lists: counts.lists,
        candidates: counts.candidates,
        tokens: counts.tokens,
        seconds_ranking: Number(((now - started) / 1000).toFixed(2)),
        seconds_total: Number(((now - begin) / 1000).toFixed(2)),
        top1: counts.top1 / Math.max(1, counts.lists),
        top1_random: counts.random / Math.max(1, counts.lists),
      };
      if (flags.json) await writeStdout(`${JSON.stringify(summary)}\n`);
      else {
        await writeStdout(
          [
            "",
            `${styled("bold", `${counts.lists} lists, ${counts.candidates} candidates`)} ranked in ${formatSeconds(summary.seconds_ranking)} (${formatSeconds(summary.seconds_total)} with start and compilation)`,
            `adapter  ${engine.device.info.name} (${engine.device.info.source})`,
            `model    stratum-demo, 3.1M parameters: hidden states after block ${layer} of ${layers}`,
            `scorer   cosine between the instruction's and each response's last token: training-free`,
            `top-1    the first place is safe in ${counts.top1} of ${counts.lists} lists (${percent(counts.top1)}); picking at random: ${percent(counts.random)}`,
            styled(
              "dim",
              "         This model is a test object and raw cosine knows nothing of safety: the ranking shows the engine at work, not the method.",
            ),
            "",
          ].join("\n"),
        );
      }
      return EXIT.ok;
    });
  });
}
