/**
 * The tuner: times the matmul variants that an adapter allows on the shapes that a model needs, and keeps one where it
 * beats the default beyond the noise. Every variant is compared with its CPU twin on this adapter before it is timed.
 * All are timed on one number of rows: what is chosen must not depend on a batch.
 */
import { StratumError } from "../errors.ts";
import { type MatmulShape, type MatmulTile, type MatmulVariant, matmulChoices } from "../kernels/matmul.ts";
import type { BenchCase } from "./bench-case.ts";
import { matmulBenchCase } from "./bench-cases-matmul.ts";
import { type CaseBuffers, costOf, prepareVariant, type WrongKernel } from "./bench-kernels.ts";
import { type BenchRow, rates } from "./bench-row.ts";
import { interleaveTimed, ownedBuffers, type PreparedKernel, spreadOf } from "./bench-timer.ts";
import type { Engine } from "./model.ts";
import { type PlannedShape, type TileTable, tileKey, tileText } from "./tiles.ts";

/** Milliseconds of a whole tuning. */
export const TUNE_BUDGET_MS = 10_000;

/** Rows of a trial: a multiple of every tile's and of a staged workgroup's. A GPU needs more of them to be busy. */
const TRIAL_ROWS = { software: 192, hardware: 960 } as const;
/** Columns of a trial, at most: what a wider matrix pays beyond them is in proportion. */
const TRIAL_COLUMNS = 2048;
/** Measurements of a variant, each beside one of the default. */
const ROUNDS = 5;
const MIN_MS = 5;
/** A variant this much slower in a first run is not looked at again. */
const HOPELESS = 1.3;
/** Share of a shape's time in which variants are tried; the rest is for the winner to win again. */
const TRYING = 0.8;
/** Winners that may try to win again: of many variants some are faster by chance. */
const FINALISTS = 3;
/** What a variant must gain over the default in three of four rounds. */
const LEAST_GAIN = 0.05;

/** Times of a variant and of the default beside it, in milliseconds: a pair a round. */
export interface TimedPairs {
  readonly own: readonly number[];
  readonly standard: readonly number[];
}

/** A product on the GPU whose variants can be tried. Disposing it frees its buffers. */
export interface Trial extends Disposable {
  /**
   * Checks and times a variant; the first that is right is what the others are timed beside.
   * @param deadline of the clock: no second round begins after it
   * @returns what is wrong with it, or times
   */
  time(tile: MatmulTile, deadline: number): Promise<string | TimedPairs>;
}

export interface TuneOptions {
  /** Milliseconds; no variant is tried after them. Default {@link TUNE_BUDGET_MS}. */
  readonly budgetMs?: number;
  readonly signal?: AbortSignal | undefined;
  /** Called before a shape. */
  readonly onShape?: ((shape: MatmulShape, done: number, total: number) => void) | undefined;
  /** The variants of a shape, the default first; default `matmulChoices`. */
  readonly choices?: (shape: MatmulShape) => readonly MatmulTile[];
  /** Default: on the GPU. */
  readonly open?: (engine: Engine, planned: PlannedShape) => Promise<Trial>;
  /** Milliseconds of a clock; default `performance.now`, which the trials on the GPU go by. */
  readonly now?: () => number;
}

/** What became of a shape. */
export interface TunedShape {
  readonly shape: MatmulShape;
  /** What it runs with from now on; null where the time did not suffice for a look at more than the default. */
  readonly tile: MatmulTile | null;
  /** Time of that variant over the default's, as measured side by side; null where the default is wrong. */
  readonly ratio: number | null;
}

export interface Tuning {
  /** The variants that were chosen, defaults that won among them. */
  readonly tiles: TileTable;
  readonly shapes: readonly TunedShape[];
  readonly rows: readonly BenchRow[];
  /** Variants that do not compute what their twin does, or do not compile. They are never used. */
  readonly wrong: readonly WrongKernel[];
  /** Variants that the time did not suffice for. */
  readonly left: number;
}

/**
 * Tunes shapes in their order, each with an equal share of the time that is left.
 * @throws {StratumError} `kernel/wrong` where no variant of a shape computes right, what the device latched; the reason of `signal`
 */
export async function tune(
  engine: Engine,
  shapes: readonly PlannedShape[],
  options: TuneOptions = {},
): Promise<Tuning> {
  const { budgetMs = TUNE_BUDGET_MS, signal, onShape, now = () => performance.now() } = options;
  const { choices = (shape) => matmulChoices(engine.target, shape), open = openTrial } = options;
  const end = now() + budgetMs;
  const tiles = new Map<string, MatmulTile>();
  const tuned: TunedShape[] = [];
  const [rows, wrong]: [BenchRow[], WrongKernel[]] = [[], []];
  let left = 0;
  for (const [i, planned] of shapes.entries()) {
    const { shape } = planned;
    const allowed = choices(shape);
    const begin = now();
    signal?.throwIfAborted();
    if (begin >= end) {
      left += allowed.length;
      tuned.push({ shape, tile: null, ratio: null });
      continue;
    }
    onShape?.(shape, i, shapes.length);
    using trial = await open(engine, planned);
    const deadline = begin + (end - begin) / (shapes.length - i);
    const limits = { now, deadline, signal };
    const tried = await tryAll(trial, allowed, limits);
    for (const { tile, pairs } of tried.timed) rows.push(rowOf(engine, planned, tile, pairs));
    for (const { tile, fault } of tried.wrong) {
      const { name, shape: sizes, variants } = caseOf(engine, planned, [tile]);
      wrong.push({ name, shape: sizes, variant: variants[0].variant, fault });
    }
    left += tried.left;
    const chosen = await choose(trial, tried, allowed[0], limits);
    if (chosen === null) throw noneSound(engine, shape, tried);
    // A default that nothing was tried against has not won anything.
    const settled = allowed.length === 1 || tried.timed.length + tried.wrong.length > 1;
    if (settled) tiles.set(tileKey(shape), chosen.tile);
    tuned.push({ shape, tile: settled ? chosen.tile : null, ratio: chosen.ratio });
  }
  return { tiles, shapes: tuned, rows, wrong, left };
}

interface Tried {
  readonly timed: readonly { readonly tile: MatmulTile; readonly pairs: TimedPairs }[];
  readonly wrong: readonly { readonly tile: MatmulTile; readonly fault: string }[];
  readonly left: number;
}

interface Limits {
  readonly now: () => number;
  /** Of `now`. */
  readonly deadline: number;
  readonly signal: AbortSignal | undefined;
}

/** Tries the default, then its neighbour of each other kind, then the rest: those of the fastest kind first. */
async function tryAll(
  trial: Trial,
  [standard, ...others]: readonly MatmulTile[],
  { now, deadline, signal }: Limits,
): Promise<Tried> {
  const begin = now();
  const over = () => now() >= begin + TRYING * (deadline - begin);
  const timed: { tile: MatmulTile; pairs: TimedPairs }[] = [];
  const wrong: { tile: MatmulTile; fault: string }[] = [];
  const best = new Map<string, number>();
  const attempt = async (tile: MatmulTile) => {
    signal?.throwIfAborted();
    const result = await trial.time(tile, deadline);
    if (typeof result === "string") wrong.push({ tile, fault: result });
    else {
      timed.push({ tile, pairs: result });
      best.set(kindOf(tile), Math.min(best.get(kindOf(tile)) ?? Number.POSITIVE_INFINITY, ratioOf(result)));
    }
  };
  const near = [...others].sort((a, b) => distance(a, standard) - distance(b, standard));
  const kinds = [...new Set(near.map(kindOf))].filter((kind) => kind !== kindOf(standard));
  const first = kinds.flatMap((kind) => near.find((tile) => kindOf(tile) === kind) ?? []);
  const pending = near.filter((tile) => !first.includes(tile));
  const rankOf = (tile: MatmulTile) => best.get(kindOf(tile)) ?? Number.POSITIVE_INFINITY;
  await attempt(standard);
  let left = 0;
  for (const tile of first) {
    if (over()) left++;
    else await attempt(tile);
  }
  pending.sort((a, b) => rankOf(a) - rankOf(b) || distance(a, standard) - distance(b, standard));
  for (const tile of pending) {
    if (over()) left++;
    else await attempt(tile);
  }
  return { timed, wrong, left };
}

/** Variants of one kind differ in the tile's sizes alone. */
function kindOf({ subgroup, textures, staged }: MatmulTile): string {
  return `${subgroup} ${textures} ${staged === true}`;
}

/** How far two tiles' sizes are apart, in doublings. */
function distance(a: MatmulTile, b: MatmulTile): number {
  return Math.abs(Math.log2(a.tileRows / b.tileRows)) + Math.abs(Math.log2(a.tileCols / b.tileCols));
}

/**
 * What a shape runs with: the variant with the lowest ratio among those that beat the default beyond the noise, and do so
 * again when they are timed once more; else the default. Of a wrong default, the fastest that is right. Null: none is.
 */
async function choose(
  trial: Trial,
  { timed, wrong }: Tried,
  standard: MatmulTile,
  { deadline, signal }: Limits,
): Promise<{ readonly tile: MatmulTile; readonly ratio: number | null } | null> {
  if (wrong.some(({ tile }) => tile === standard)) {
    const medians = timed.map(({ tile, pairs }) => ({ tile, ms: spreadOf(pairs.own).median_ms }));
    const fastest = medians.sort((a, b) => a.ms - b.ms).at(0);
    return fastest === undefined ? null : { tile: fastest.tile, ratio: null };
  }
  const winners = timed
    .filter(({ tile, pairs }) => tile !== standard && beats(pairs))
    .sort((a, b) => ratioOf(a.pairs) - ratioOf(b.pairs));
  for (const { tile } of winners.slice(0, FINALISTS)) {
    signal?.throwIfAborted();
    const again = await trial.time(tile, deadline);
    if (typeof again !== "string" && beats(again)) return { tile, ratio: ratioOf(again) };
  }
  return { tile: standard, ratio: 1 };
}

/** A variant's time over the default's, the median of the rounds: what disturbs a round disturbs both alike. */
function ratioOf({ own, standard }: TimedPairs): number {
  return spreadOf(own.map((ms, round) => ms / standard[round])).median_ms;
}

/** Whether a variant is faster by more than the least gain in at least three of four rounds. */
function beats({ own, standard }: TimedPairs): boolean {
  const faster = own.filter((ms, round) => ms < (1 - LEAST_GAIN) * standard[round]).length;
  return own.length >= 4 && faster >= 0.75 * own.length;
}

function noneSound({ device }: Engine, shape: MatmulShape, { wrong }: Tried): StratumError {
  const faults = wrong.map(({ tile, fault }) => `${tileText(tile)}: ${fault}`);
  return new StratumError(
    "kernel/wrong",
    `no matmul variant computes right for ${tileKey(shape)} on ${device.info.name} (${faults.slice(0, 3).join("; ")}${faults.length > 3 ? "; ..." : ""})`,
    "use another adapter (--adapter embedded), update the driver, and report this with the output of `stratum doctor --json`",
  );
}

function caseOf(engine: Engine, { shape, columns }: PlannedShape, tiles: readonly MatmulTile[]): BenchCase {
  const n = Math.min(columns, TRIAL_COLUMNS);
  const product: Omit<MatmulVariant, keyof MatmulTile> = {
    ...{ ...shape, n, bias: false, outStride: n, outOffset: 0 },
    ...(shape.epilogue === "glu" ? { activation: "silu" } : {}),
  };
  const rows = engine.device.info.software ? TRIAL_ROWS.software : TRIAL_ROWS.hardware;
  return matmulBenchCase(engine.target, "matmul", product, rows, tiles);
}

function rowOf(engine: Engine, planned: PlannedShape, tile: MatmulTile, { own }: TimedPairs): BenchRow {
  const { name, shape, dtype, extent, variants } = caseOf(engine, planned, [tile]);
  const [each] = variants;
  return {
    ...{ name, shape, dtype, variant: each.variant, runs: own.length },
    ...rates(spreadOf(own), costOf(each, extent), null),
  };
}

/** Uploads a product of random numbers. Only the default and one other variant are held at a time. */
async function openTrial(engine: Engine, planned: PlannedShape): Promise<Trial> {
  const { buffers, output } = caseOf(engine, planned, []);
  const shared = ownedBuffers(engine);
  const dispose = () => {
    standard?.kernel[Symbol.dispose]();
    shared[Symbol.dispose]();
  };
  let standard: { readonly kernel: PreparedKernel; readonly ms: number } | null = null;
  let held: CaseBuffers;
  try {
    const host = buffers();
    const bound = Object.fromEntries(Object.entries(host).map(([name, data]) => [name, shared.add(name, data)]));
    held = { host, bound, output };
  } catch (cause) {
    dispose();
    throw cause;
  }
  const interleaved = (works: readonly PreparedKernel[], deadline: number) =>
    interleaveTimed(works, { runs: ROUNDS, minMs: MIN_MS, deadline });
  return {
    async time(tile, deadline) {
      const kernel = await prepareVariant(engine, caseOf(engine, planned, [tile]).variants[0], held);
      if (typeof kernel === "string") return kernel;
      if (standard === null) {
        const [own] = await interleaved([kernel], deadline);
        standard = { kernel, ms: spreadOf(own).median_ms };
        return { own, standard: own };
      }
      try {
        const first = await kernel.run(1);
        if (first > HOPELESS * standard.ms + MIN_MS) return { own: [first], standard: [standard.ms] };
        const [own, beside] = await interleaved([kernel, standard.kernel], deadline);
        return { own, standard: beside };
      } finally {
        kernel[Symbol.dispose]();
      }
    },
    [Symbol.dispose]: dispose,
  };
}
