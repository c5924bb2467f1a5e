/** Timed runs of a model: interleaved, so that a noisy machine disturbs all sides alike; medians and spread. */
import { seededRandom } from "../kernels/random.ts";
import { MIN_SEQUENCE_ROWS, packBatches, type SequenceGroup } from "./batch.ts";
import type { Model } from "./hidden-states.ts";
import { createRunner, type Runner } from "./runner.ts";

export interface BenchRow {
  readonly name: string;
  /** What was run, in words of sizes. */
  readonly shape: string;
  /** Rows that were computed, all batches together. */
  readonly rows: number;
  readonly median_ms: number;
  /** Distance of the quartiles. */
  readonly iqr_ms: number;
  readonly runs: number;
}

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
}

/** Runs the sides in turn, `runs` times after one round that is not counted. */
async function interleave(
  sides: readonly Side[],
  group: SequenceGroup,
  runs: number,
  onRound?: (round: number) => void,
): Promise<BenchRow[]> {
  const times = sides.map((): number[] => []);
  const rows = sides.map(() => 0);
  for (let round = 0; round <= runs; round++) {
    for (const [s, { runner, sharePrefix }] of sides.entries()) {
      const batches = packBatches([group], { ...runner.packing, sharePrefix });
      const begin = performance.now();
      for (const batch of batches) {
        const first = batch.sequences.findIndex(({ index }) => index === 0);
        const pairs = batch.sequences.flatMap(({ index }, i): [number, number][] => (index === 0 ? [] : [[first, i]]));
        await runner.cosines(batch, pairs);
      }
      if (round > 0) times[s].push(performance.now() - begin);
      rows[s] = batches.reduce((sum, { ids }) => sum + ids.length, 0);
    }
    onRound?.(round);
  }
  return sides.map(({ name, shape }, s) => ({ name, shape, rows: rows[s], ...quartiles(times[s]), runs }));
}

function quartiles(times: readonly number[]): { median_ms: number; iqr_ms: number } {
  const sorted = [...times].sort((a, b) => a - b);
  const at = (share: number) => {
    const place = share * (sorted.length - 1);
    const low = Math.floor(place);
    return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
  };
  const round = (value: number) => Number(value.toFixed(3));
  return { median_ms: round(at(0.5)), iqr_ms: round(at(0.75) - at(0.25)) };
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

export interface RankBenchOptions extends ListSizes {
  readonly layer: number;
  readonly runs: number;
  readonly seed: number;
  readonly onRound?: (round: number) => void;
}

/** Times one list with its prompt computed once against the same list with the prompt computed for every candidate. */
export async function benchRank(model: Model, options: RankBenchOptions): Promise<BenchRow[]> {
  const { prompt, candidates, tokens, layer, runs, seed, onRound } = options;
  const group = randomList(model.files.spec.config.vocab, prompt, candidates, tokens, seed);
  // One batch on either side: the comparison is of the work, not of the cutting.
  using runner = await createRunner(model.loaded, {
    layers: [layer],
    output: "scores",
    batchTokens: unsharedRows(options),
  });
  const shape = `${prompt} + ${candidates} x ${tokens} tokens to layer ${layer}`;
  const sides = [
    { name: "prompt once", shape, runner, sharePrefix: true },
    { name: "prompt for every candidate", shape, runner, sharePrefix: false },
  ];
  return await interleave(sides, group, runs, onRound);
}

/** Times one list to each of the layers. */
export async function benchDepth(
  model: Model,
  layers: readonly number[],
  options: Omit<RankBenchOptions, "layer">,
): Promise<BenchRow[]> {
  const { prompt, candidates, tokens, runs, seed, onRound } = options;
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
    }));
    return await interleave(sides, group, runs, onRound);
  } finally {
    for (const runner of runners) runner[Symbol.dispose]();
  }
}
