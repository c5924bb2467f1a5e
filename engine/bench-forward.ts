/** The stack of blocks on batches of random tokens: its time, and how that grows with layers and with tokens. */
import type { Cost } from "../kernels/kernel.ts";
import { seededRandom } from "../kernels/random.ts";
import { type Batch, packBatches } from "./batch.ts";
import type { BatchShape } from "./bench-case.ts";
import { attentionBenchCases } from "./bench-cases.ts";
import { type LinearFit, linearFit } from "./bench-fit.ts";
import { costOf, prepareCase } from "./bench-kernels.ts";
import { type BenchRow, type Ceilings, rates } from "./bench-row.ts";
import { interleaveTimed, ownedBuffers, spreadOf, type Timed } from "./bench-timer.ts";
import { batchFlops } from "./cost.ts";
import type { Model } from "./hidden-states.ts";
import { createRunner } from "./runner.ts";

export interface ForwardBenchOptions extends BatchShape {
  readonly layer: number;
  /** Type of the weights, for the rows. */
  readonly dtype: string;
  /** Default null: no shares. */
  readonly ceilings?: Ceilings | null;
  /** Counted runs; default 5. */
  readonly runs?: number;
  /** Bound of the whole, in seconds; every piece of work still runs once. Default 120. */
  readonly maxSeconds?: number;
  /** Of the tokens; default 1. */
  readonly seed?: number;
  readonly signal?: AbortSignal | undefined;
}

/** Sequences of equal length of random tokens, in one batch. */
export function randomBatch(vocab: number, { batch, tokens }: BatchShape, seed: number): Batch {
  const random = seededRandom(seed);
  const ids = () => Int32Array.from({ length: tokens }, () => Math.floor(random() * vocab));
  const groups = Array.from({ length: batch }, () => ({ sequences: [ids()] }));
  const [packed] = packBatches(groups, { budget: batch * Math.max(8, tokens) });
  return packed;
}

/** A forward pass that is ready to run, from token ids to states on the host. */
interface ForwardWork extends Timed {
  readonly shape: BatchShape;
  readonly layer: number;
  readonly cost: Cost;
}

async function openForward(model: Model, shape: BatchShape, layer: number, seed: number): Promise<ForwardWork> {
  const { spec } = model.files;
  const { hiddenSize, vocab } = spec.config;
  const batch = randomBatch(vocab, shape, seed);
  const rows = batch.ids.length;
  const runner = await createRunner(model.loaded, {
    layers: [layer],
    output: "pooled",
    batchTokens: shape.batch * Math.max(8, shape.tokens),
  });
  const weightBytes = (model.loaded.plan.bytes / model.loaded.plan.depth) * layer;
  return {
    shape,
    layer,
    cost: { flops: batchFlops(spec, batch, layer), bytes: weightBytes + 4 * hiddenSize * (rows + shape.batch) },
    async run(times) {
      const begin = performance.now();
      for (let i = 0; i < times; i++) await runner.pooledStates(batch);
      return performance.now() - begin;
    },
    [Symbol.dispose]: () => runner[Symbol.dispose](),
  };
}

function forwardRow(
  { shape, layer, cost }: ForwardWork,
  times: readonly number[],
  options: ForwardBenchOptions,
): BenchRow {
  const rows = shape.batch * shape.tokens;
  const spread = spreadOf(times);
  return {
    name: "forward",
    shape: `${shape.batch} x ${shape.tokens} tokens to layer ${layer}`,
    dtype: options.dtype,
    variant: "stack",
    runs: times.length,
    ...rates(spread, cost, options.ceilings ?? null),
    rows,
    tokens_per_s: Number(((1000 * rows) / spread.median_ms).toPrecision(4)),
  };
}

/** Opens pieces of work, times them in turn, and frees them. */
async function timeAll<T extends Timed>(
  opens: readonly (() => Promise<T>)[],
  { runs = 5, signal }: ForwardBenchOptions,
  deadline: number,
): Promise<{ readonly works: readonly T[]; readonly times: readonly number[][] }> {
  const works: T[] = [];
  try {
    for (const open of opens) works.push(await open());
    return { works, times: await interleaveTimed(works, { runs, minMs: 0, deadline, signal }) };
  } finally {
    for (const work of works) work[Symbol.dispose]();
  }
}

function deadlineOf({ maxSeconds = 120 }: ForwardBenchOptions, share: number): number {
  return performance.now() + 1000 * maxSeconds * share;
}

/**
 * Times the forward pass of one batch, from token ids to the last tokens' states on the host.
 * @param model loaded at least to `layer`
 */
export async function benchForward(model: Model, options: ForwardBenchOptions): Promise<BenchRow> {
  const { layer, seed = 1 } = options;
  const { works, times } = await timeAll(
    [() => openForward(model, options, layer, seed)],
    options,
    deadlineOf(options, 1),
  );
  return forwardRow(works[0], times[0], options);
}

/** How cost grows. */
export interface ForwardFits {
  readonly rows: readonly BenchRow[];
  /** Milliseconds against layers, at the batch of the options. */
  readonly layers: LinearFit;
  /** Milliseconds against packed tokens, in sequences of the options' length. */
  readonly tokens: LinearFit;
  /**
   * At one sequence of 512 tokens: attention's time, kernel by kernel, as a share of the stack's. Its work is the only
   * one that grows with the square of the length.
   */
  readonly attentionShare512: number;
  /** Attention's time an operation at 1 x 2048 tokens over that at 8 x 128. */
  readonly attentionLongFactor: number;
}

const LONG: BatchShape = { batch: 1, tokens: 2048 };
const SHORT: BatchShape = { batch: 8, tokens: 128 };
const SQUARE: BatchShape = { batch: 1, tokens: 512 };

/** 1, 2, 4, ... and `last`. */
function doublings(last: number): number[] {
  const steps: number[] = [];
  for (let step = 1; step < last; step *= 2) steps.push(step);
  return [...steps, last];
}

/**
 * Times the stack at several depths and batch sizes and fits lines, and attention alone at three shapes.
 * @param model loaded at least to `layer`, which is at least 2
 */
export async function benchForwardFits(model: Model, options: ForwardBenchOptions): Promise<ForwardFits> {
  const { layer, batch, tokens, seed = 1 } = options;
  const depths = doublings(layer);
  const batches = doublings(Math.max(batch, 4));
  const layers = await timeAll(
    depths.map((depth) => () => openForward(model, options, depth, seed)),
    options,
    deadlineOf(options, 0.4),
  );
  const sizes = await timeAll(
    batches.map((count) => () => openForward(model, { batch: count, tokens }, layer, seed)),
    options,
    deadlineOf(options, 0.4),
  );
  const point = (x: number, times: readonly number[]) => [x, spreadOf(times).median_ms] as const;
  const attention = await benchAttention(model, options, [SQUARE, SHORT, LONG]);
  const [square, short, long] = attention.rows;
  const row = (works: readonly ForwardWork[]) => (times: readonly number[], i: number) =>
    forwardRow(works[i], times, options);
  return {
    rows: [
      ...layers.times.map(row(layers.works)),
      ...sizes.times.map(row(sizes.works)).filter(({ rows = 0 }) => rows !== batch * tokens),
      attention.forward,
      ...attention.rows,
    ],
    layers: linearFit(depths.map((depth, i) => point(depth, layers.times[i]))),
    tokens: linearFit(batches.map((count, i) => point(count * tokens, sizes.times[i]))),
    // The last block's attention is that of one row.
    attentionShare512: (square.median_ms * (layer - 1)) / attention.forward.median_ms,
    attentionLongFactor: (short.gflops ?? 0) / (long.gflops ?? 1),
  };
}

/** Attention alone at several shapes, and the stack at the first of them, in turn. */
async function benchAttention(
  model: Model,
  options: ForwardBenchOptions,
  shapes: readonly BatchShape[],
): Promise<{ readonly forward: BenchRow; readonly rows: readonly BenchRow[] }> {
  const { engine, files } = model;
  const { layer, seed = 1, ceilings = null } = options;
  const { maxPositions } = files.spec.config;
  const cases = shapes.map(({ batch, tokens }) => {
    const shape = { batch, tokens: Math.min(tokens, maxPositions) };
    return attentionBenchCases(files, engine.target, shape, "default")[0];
  });
  using shared = ownedBuffers(engine);
  const { works, times } = await timeAll<Timed>(
    [
      () => openForward(model, shapes[0], layer, seed),
      ...cases.map((each) => async () => {
        const prepared = await prepareCase(engine, each, shared);
        const [sound] = prepared.sound;
        return { run: sound.kernel.run, [Symbol.dispose]: () => prepared[Symbol.dispose]() };
      }),
    ],
    options,
    deadlineOf(options, 0.2),
  );
  return {
    forward: forwardRow(works[0] as ForwardWork, times[0], options),
    rows: cases.map(({ name, shape, dtype, variants, extent }, i) => ({
      name,
      shape,
      dtype,
      variant: variants[0].variant,
      runs: times[i + 1].length,
      ...rates(spreadOf(times[i + 1]), costOf(variants[0], extent), ceilings),
    })),
  };
}
