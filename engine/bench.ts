/** Timed runs of a model: interleaved, so that a noisy machine disturbs all sides alike; medians and spread. */
import { seededRandom } from "../kernels/random.ts";
import { MIN_SEQUENCE_ROWS, packBatches, type SequenceGroup } from "./batch.ts";
import { type BenchRow, type Ceilings, rates } from "./bench-row.ts";
import { spreadOf } from "./bench-timer.ts";
import { batchFlops } from "./cost.ts";
import type { Model } from "./hidden-states.ts";
import { createRunner, type Runner } from "./runner.ts";

/** A prompt of random ids and candidates that follow it. */
export function randomList(
  vocab: number,
  prompt: number,
  candidates: number,
  tokens: number,
  seed: number,
): SequenceGroup {
  const random = seededRandom(seed);
  const ids = (count: number) => Int32Array.from({ length: count }, () => Math.floor(random() * vocab));
  const head = ids(prompt);
  const sequences = [head, ...Array.from({ length: candidates }, () => Int32Array.from([...head, ...ids(tokens)]))];
  return { sequences, anchored: true };
}

interface Side {
  readonly name: string;
  readonly shape: string;
  readonly runner: Runner;
  readonly sharePrefix: boolean;
  /** The last block computes all rows, not only those that are read out. */
  readonly wholeBlock: boolean;
}

/** How sides are run, and what their rows are told of. */
interface SideOptions {
  readonly runs: number;
  readonly onRound?: ((round: number) => void) | undefined;
  /** Called before a side's first counted run. */
  readonly onSide?: ((name: string, shape: string) => void) | undefined;
  readonly dtype?: string | undefined;
  readonly ceilings?: Ceilings | null | undefined;
  /** No run begins that would end after so many seconds, as far as earlier ones tell; every side gets one. */
  readonly maxSeconds?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Runs one side on one group. @returns milliseconds, and the batches */
async function runSide({ runner, sharePrefix }: Side, group: SequenceGroup) {
  const batches = packBatches([group], { ...runner.packing, sharePrefix });
  const begin = performance.now();
  for (const batch of batches) {
    const first = batch.sequences.findIndex(({ index }) => index === 0);
    const pairs = batch.sequences.flatMap(({ index }, i): [number, number][] => (index === 0 ? [] : [[first, i]]));
    await runner.cosines(batch, pairs);
  }
  return { ms: performance.now() - begin, batches };
}

/** Runs the sides in turn, `runs` times after one round on a short list that is not counted: it pays for first use. */
async function interleave(
  model: Model,
  sides: readonly Side[],
  group: SequenceGroup,
  { runs, onRound, onSide, dtype = "", ceilings = null, maxSeconds, signal }: SideOptions,
): Promise<BenchRow[]> {
  const { spec } = model.files;
  const end = maxSeconds === undefined ? Number.POSITIVE_INFINITY : performance.now() + 1000 * maxSeconds;
  const short = randomList(spec.config.vocab, MIN_SEQUENCE_ROWS, 1, MIN_SEQUENCE_ROWS, 1);
  for (const side of sides) await runSide(side, short);
  onRound?.(0);
  const times = sides.map((): number[] => []);
  const work = sides.map(() => ({ rows: 0, flops: 0 }));
  for (let round = 0; round < runs; round++) {
    for (const [s, side] of sides.entries()) {
      signal?.throwIfAborted();
      if (round > 0 && performance.now() + Math.max(...times[s]) > end) continue;
      if (round === 0) onSide?.(side.name, side.shape);
      const { ms, batches } = await runSide(side, group);
      times[s].push(ms);
      const layer = Math.max(...side.runner.layers);
      work[s] = {
        rows: batches.reduce((sum, { ids }) => sum + ids.length, 0),
        flops: batches.reduce(
          (sum, batch) => sum + batchFlops(spec, batch, layer, side.wholeBlock ? "mean" : "last"),
          0,
        ),
      };
    }
    onRound?.(round + 1);
  }
  return sides.map(({ name, shape, runner }, s) => {
    const { depth, bytes } = model.loaded.plan;
    const cost = { flops: work[s].flops, bytes: (bytes / depth) * Math.max(...runner.layers) };
    return {
      name,
      shape,
      dtype,
      variant: "stack",
      runs: times[s].length,
      ...rates(spreadOf(times[s]), cost, ceilings),
      rows: work[s].rows,
    };
  });
}

/** A list: tokens of the prompt, and of each of the candidates behind it. */
export interface ListSizes {
  readonly prompt: number;
  readonly candidates: number;
  readonly tokens: number;
}

/** Budget of a batch that holds a list with its prompt once. */
export function sharedRows({ prompt, candidates, tokens }: ListSizes): number {
  return prompt + Math.max(MIN_SEQUENCE_ROWS, tokens) * (candidates + 1);
}

/** Budget of a batch that holds a list with its prompt for every candidate. */
export function unsharedRows({ prompt, candidates, tokens }: ListSizes): number {
  return (prompt + Math.max(MIN_SEQUENCE_ROWS, tokens)) * (candidates + 1);
}

export interface RankBenchOptions extends ListSizes, SideOptions {
  readonly layer: number;
  readonly seed: number;
}

/**
 * Times one list as it is ranked against the same list without each of the savings, one less at a time: the prompt for
 * every candidate; then also every row of the last block; then, where the model is loaded that deep, every block.
 * @param model loaded to `layer`, or to its last block for the full depth
 * @returns the rows from the most savings to the fewest
 */
export async function benchRank(model: Model, options: RankBenchOptions): Promise<BenchRow[]> {
  const { prompt, candidates, tokens, layer, seed } = options;
  const { layers, vocab } = model.files.spec.config;
  const group = randomList(vocab, prompt, candidates, tokens, seed);
  const shape = (depth: number) => `${prompt} + ${candidates} x ${tokens} tokens to layer ${depth}`;
  const runners: Runner[] = [];
  // One batch on either side: the comparison is of the work, not of the cutting.
  const open = async (depth: number, wholeBlock: boolean): Promise<Pick<Side, "shape" | "runner" | "wholeBlock">> => {
    const runner = await createRunner(model.loaded, {
      layers: [depth],
      output: "scores",
      // Means need every row of the last block; without a first token they are the last token's state.
      pooling: wholeBlock ? "mean" : "last",
      batchTokens: unsharedRows(options),
    });
    runners.push(runner);
    return { shape: shape(depth), runner, wholeBlock };
  };
  try {
    const pruned = await open(layer, false);
    const sides: Side[] = [
      { name: "prompt once", ...pruned, sharePrefix: true },
      { name: "prompt for every candidate", ...pruned, sharePrefix: false },
      { name: "every row of the last block", ...(await open(layer, true)), sharePrefix: false },
    ];
    if (model.depth === layers && layer < layers)
      sides.push({ name: "every block", ...(await open(layers, true)), sharePrefix: false });
    return await interleave(model, sides, group, options);
  } finally {
    for (const runner of runners) runner[Symbol.dispose]();
  }
}

/** Times one list to each of the layers. */
export async function benchDepth(
  model: Model,
  layers: readonly number[],
  options: Omit<RankBenchOptions, "layer">,
): Promise<BenchRow[]> {
  const { prompt, candidates, tokens, seed } = options;
  const group = randomList(model.files.spec.config.vocab, prompt, candidates, tokens, seed);
  const runners: Runner[] = [];
  try {
    for (const layer of layers)
      runners.push(
        await createRunner(model.loaded, {
          layers: [layer],
          output: "scores",
          batchTokens: sharedRows(options),
        }),
      );
    const sides = layers.map((layer, i) => ({
      name: `layer ${layer}`,
      shape: `${prompt} + ${candidates} x ${tokens} tokens`,
      runner: runners[i],
      sharePrefix: true,
      wholeBlock: false,
    }));
    return await interleave(model, sides, group, options);
  } finally {
    for (const runner of runners) runner[Symbol.dispose]();
  }
}
