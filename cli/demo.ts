/** `stratum demo`: trains a scorer on states of the embedded model, and ranks lists that it has not seen. */
import { join } from "node:path";
import type { Command } from "commander";
import type { Model } from "../engine/hidden-states.ts";
import { resolveLayer } from "../engine/layers.ts";
import type { Engine } from "../engine/model.ts";
import { type Pooling, runPooling } from "../scorer/encode.ts";
import { arraySource } from "../scorer/feature-source.ts";
import { computeFeatures } from "../scorer/features.ts";
import { instructionKey } from "../scorer/instructions.ts";
import { type List, readLists } from "../scorer/lists.ts";
import { measureLists } from "../scorer/measures.ts";
import { randomMethod, spread, stateMethods, textMethods } from "../scorer/methods.ts";
import { PRESETS, type Recipe, trainOptionsOf } from "../scorer/presets.ts";
import { rankingRecord } from "../scorer/rankings.ts";
import { splitByInstruction } from "../scorer/sampling.ts";
import { scoreFeatures } from "../scorer/scorer.ts";
import { trainAnchored } from "../scorer/train-anchors.ts";
import { curve } from "./chart.ts";
import {
  addCommonOptions,
  type CommonOptions,
  countLines,
  demoModel,
  loadPlanned,
  packageFolder,
  withEngine,
  withModelFiles,
} from "./common.ts";
import { formatCount, formatSeconds, formatTable, plainText } from "./format.ts";
import { addProfileOptions } from "./profile.ts";
import { EXIT, note, startProgress, startTrainProgress, stopSignal, styled, warn, writeStdout } from "./terminal.ts";
import { addTuneOption, type TuneFlags, tuneModel } from "./tuning.ts";

interface DemoFlags extends CommonOptions, Pick<TuneFlags, "tune"> {
  readonly layer: string;
  readonly all?: boolean;
}

const PRESET = "few-lists";
/** Too few lists to spare some for validation, or to fill the preset's batches. */
const RECIPE: Recipe = { ...PRESETS[PRESET], validation: 0, batchLists: 8 };
const SEED = 0;
/** Share of the lists that the training does not see. */
const HELD_OUT = 1 / 3;
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
    .description("train a scorer on example lists and rank others, with the embedded model")
    .option("-l, --layer <k>", "layer: a number, or a percentage of the blocks", "60%")
    .option("--all", "show every list whole")
    .addHelpText("after", "\nExample:\n  $ stratum demo --layer 2 --all");
  addProfileOptions(
    addCommonOptions(addTuneOption(command), "the summary as JSON on stdout instead of the picture"),
  ).action(async (flags: DemoFlags) => {
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

/** Everything that the demo measures, on lists that nothing was fitted on. */
interface DemoResult {
  readonly name: string;
  readonly top1: number;
}

async function runDemo(flags: DemoFlags): Promise<number> {
  const stop = stopSignal();
  const begin = performance.now();
  return withModelFiles(demoModel(), async (files) => {
    const { layers, hiddenSize: dim } = files.spec.config;
    const layer = resolveLayer(flags.layer, layers);
    return withEngine(flags, async (opened) => {
      const { engine, kernels } = await tuneModel(opened, files, layer, flags);
      const run = { layers: [layer], output: "pooled", pooling: runPooling(RECIPE.pooling) } as const;
      const model = await loadPlanned(engine, files, run);
      const { lists, source, tokens } = await readStates(model, layer, RECIPE.pooling, stop.signal);
      const states = performance.now();
      const keys = lists.map(instructionKey);
      const [seen, unseen] = splitByInstruction(keys, [1 - HELD_OUT, HELD_OUT], SEED);
      note(`\ntraining on ${seen.length} lists; ${unseen.length} are held out`);
      const progress = startTrainProgress();
      const losses: number[] = [];
      const trained = await trainAnchored(engine, source, { ...trainOptionsOf(RECIPE, dim), seed: SEED }, () => ({
        ...{ instructions: keys, lists: seen, signal: stop.signal },
        onPlan: ({ steps, from }) => progress.start(steps, from),
        onStep(record) {
          losses.push(record.loss);
          progress.step(record);
        },
        onEpoch: (record, best) => progress.epoch(record, best),
      })).finally(() => progress.stop());
      const stopped = stop.exitCode();
      if (stopped !== undefined) {
        warn("stopped during the training");
        return stopped;
      }
      const { spec } = trainOptionsOf(RECIPE, dim);
      const { weights, standardisation } = trained;
      const scores = await scoreFeatures(engine, { spec, weights, standardisation }, source, unseen);
      const trainedAt = performance.now();
      const methods = [
        { name: "trained scorer", scores: spread(source, unseen, scores) },
        ...(await stateMethods(
          { of: { source, clusters: keys }, lists: unseen },
          { of: { source, clusters: keys }, lists: seen },
          { seed: SEED },
        )),
        ...textMethods(
          { texts: lists, clusters: keys },
          { of: { texts: lists, clusters: keys }, lists: seen },
          { seed: SEED },
        ),
        randomMethod(source.labels.length),
      ];
      const results = methods.map(({ name, scores: own }): DemoResult => {
        const { top1 } = measureLists(own, source);
        return { name, top1: unseen.reduce((sum, b) => sum + top1[b] / unseen.length, 0) };
      });
      const seconds = (from: number, to: number) => Number(((to - from) / 1000).toFixed(2));
      const summary = {
        ...{
          adapter: engine.device.info.name,
          kernels: kernels.id,
          model: "stratum-demo",
          layer,
          layers,
          preset: PRESET,
          pooling: RECIPE.pooling,
        },
        ...{
          lists: lists.length,
          candidates: source.labels.length,
          tokens,
          trained_on: seen.length,
          unseen: unseen.length,
        },
        ...{ steps: trained.steps, parameters: trained.plan.parameters },
        ...{ seconds_states: seconds(begin, states), seconds_training: seconds(states, trainedAt) },
        ...{
          seconds_total: seconds(begin, performance.now()),
          top1: Object.fromEntries(results.map(({ name, top1 }) => [name, top1])),
        },
      };
      if (flags.json) await writeStdout(`${JSON.stringify(summary)}\n`);
      else await show(lists, unseen, scores, losses, results, summary, engine, flags);
      return EXIT.ok;
    });
  });
}

/** The example lists, and their states at a layer. */
async function readStates(model: Model, layer: number, pooling: Pooling, signal: AbortSignal) {
  const lists: List[] = [];
  const states: Float32Array[] = [];
  const labels: number[] = [];
  const offsets = [0];
  let tokens = 0;
  async function* lines() {
    for await (const line of readLists(exampleLists())) {
      if (line.kind === "list") lists.push(line.list);
      yield line;
    }
  }
  const progress = startProgress(await countLines(exampleLists()), "lists");
  try {
    for await (const each of computeFeatures(model, lines(), {
      layers: [layer],
      pooling,
      signal,
      onLeftOut: ({ error }) => {
        throw error;
      },
    })) {
      states.push(each.states[0]);
      labels.push(...each.labels);
      offsets.push(labels.length);
      tokens += each.tokens;
      progress.add(1, each.tokens);
    }
  } finally {
    progress.stop();
  }
  const dim = model.files.spec.config.hiddenSize;
  const inst = Float32Array.from(states.flatMap((own) => [...own.subarray(0, dim)]));
  const resp = Float32Array.from(states.flatMap((own) => [...own.subarray(dim)]));
  const source = arraySource({
    dim,
    inst,
    resp,
    labels: Float32Array.from(labels),
    offsets: Uint32Array.from(offsets),
  });
  return { lists, source, tokens };
}

/** The pictures: the curve, the rankings, the table. */
async function show(
  lists: readonly List[],
  unseen: readonly number[],
  scores: readonly Float32Array[],
  losses: readonly number[],
  results: readonly DemoResult[],
  summary: {
    readonly layer: number;
    readonly layers: number;
    readonly trained_on: number;
    readonly parameters: number;
    readonly seconds_states: number;
    readonly seconds_training: number;
    readonly seconds_total: number;
  },
  engine: Engine,
  flags: DemoFlags,
): Promise<void> {
  const width = Math.min(process.stdout.columns ?? 100, 140);
  await writeStdout(
    `${styled("bold", "Training")}: loss by step on ${summary.trained_on} lists\n${curve(losses, Math.min(width, 72))}\n\n`,
  );
  await writeStdout(`${styled("bold", "Rankings of lists that the scorer has not seen")}\n\n`);
  for (const [place, b] of unseen.entries()) {
    const { results: ranked } = rankingRecord(lists[b], scores[place]);
    if (flags.all || place < WHOLE_LISTS) await writeStdout(`${listPicture(lists[b], ranked, width)}\n\n`);
    else {
      const head =
        place === WHOLE_LISTS ? `${styled("bold", "The first place of the others")} (--all shows them whole)\n` : "";
      await writeStdout(`${head}${listLine(lists[b], ranked[0].index, width)}\n`);
    }
  }
  const table = formatTable(
    ["top-1 on the unseen lists", "safe first", ""],
    results.map(({ name, top1 }) => [name, `${Math.round(100 * top1)}%`, "█".repeat(Math.round(20 * top1))]),
    [1],
  );
  const { layer, layers, seconds_states, seconds_training, seconds_total } = summary;
  await writeStdout(
    [
      "",
      table,
      "",
      `adapter  ${engine.device.info.name} (${engine.device.info.source})`,
      `model    stratum-demo, 3.1M parameters: states after block ${layer} of ${layers}, ${formatSeconds(seconds_states)} with start and compilation`,
      `scorer   ${formatCount(summary.parameters)} parameters, preset ${PRESET}, trained in ${formatSeconds(seconds_training)}; all in ${formatSeconds(seconds_total)}`,
      styled(
        "dim",
        `         The model is a test object and ${unseen.length} lists are few: one list more or less is ${Math.round(100 / unseen.length)} points. See the README for measured tables.`,
      ),
      "",
    ].join("\n"),
  );
}
