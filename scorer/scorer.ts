/**
 * A trained scorer at work: states in, scores out. Candidates are scored in the canonical order of their states, so that
 * permuting them permutes the scores bit for bit, and nothing else in the batch plays a part.
 */
import type { DeviceBuffer } from "../engine/device-memory.ts";
import type { Engine } from "../engine/model.ts";
import { checkPlan, type PlannedBuffer } from "../engine/planned-buffer.ts";
import { Recorder } from "../engine/recorder.ts";
import { overLosses } from "../engine/room.ts";
import { canonicalOrder } from "../kernels/canonical-order.ts";
import { PARAMS_BYTES } from "../kernels/kernel.ts";
import { standardise } from "../kernels/standardise.ts";
import { type FeatureSource, listLength } from "./feature-source.ts";
import { identity, type Standardisation } from "./feeder.ts";
import { allocate, createNetwork, planNetwork } from "./network.ts";
import { flatten } from "./parameter-layout.ts";
import { checkListLength, type ScorerSpec } from "./scorer-spec.ts";

/** A list as rows of a buffer of states. */
export interface StateRows {
  readonly instruction: number;
  readonly candidates: readonly number[];
}

/** Scores lists. Disposing it frees its buffers. */
export interface Scorer extends Disposable {
  readonly spec: ScorerSpec;
  readonly bytes: number;
  /** Rows that are scored at a time, at most: a list's candidates and its instruction; {@link grow} raises it. */
  readonly rows: number;
  /** Makes room for lists of so many rows. @throws {StratumError} `memory/buffer-limit` */
  grow(rows: number): Promise<void>;
  /**
   * Scores lists whose states lie on the GPU.
   * @param states (S, D)
   * @returns (m) scores a list, in the order of its candidates
   */
  scoreStates(states: DeviceBuffer, lists: readonly StateRows[]): Promise<Float32Array[]>;
  /** Scores lists of features. @param lists indices; default all */
  scoreFeatures(source: FeatureSource, lists?: readonly number[]): Promise<Float32Array[]>;
}

export interface ScorerOptions {
  readonly spec: ScorerSpec;
  /** By PyTorch's names. */
  readonly weights: ReadonlyMap<string, Float32Array>;
  /** Null: the features are taken as they are. */
  readonly standardisation: Standardisation | null;
  /** Default 1,024. */
  readonly rows?: number | undefined;
}

const DEFAULT_ROWS = 1024;

/** The plan of everything that a scorer holds. */
export function planScorer(spec: ScorerSpec, rows = DEFAULT_ROWS): PlannedBuffer[] {
  return [...planNetwork(spec, rows, false).values(), ...planOwn(spec, rows).values()];
}

function planOwn({ dim }: ScorerSpec, rows: number): Map<string, PlannedBuffer> {
  const plan = new Map<string, PlannedBuffer>();
  const add = (name: string, bytes: number, use: PlannedBuffer["use"] = "storage") =>
    plan.set(name, { label: `scorer.${name}`, bytes, use });
  add("index", 4 * rows);
  add("rank", 4 * rows);
  add("order", 4 * rows);
  add("raw", 4 * rows * dim);
  add("mean", 8 * dim);
  add("scale", 8 * dim);
  add("rowParams", PARAMS_BYTES, "uniform");
  add("readback", 8 * rows, "readback");
  return plan;
}

/** Compiles the kernels and uploads the weights. @throws {StratumError} `memory/...`, `kernel/compile` */
export async function createScorer(engine: Engine, options: ScorerOptions): Promise<Scorer> {
  const { device, pipelines } = engine;
  const { spec, weights, standardisation } = options;
  const { dim } = spec;
  const [orderPipe, standardisePipe] = await Promise.all([
    pipelines.get(canonicalOrder({ d: dim })),
    pipelines.get(standardise({ d: dim })),
  ]);
  const { mean, scale } = standardisation ?? identity(dim);

  async function make(rows: number) {
    const network = await createNetwork(engine, spec, { rows });
    try {
      const { buffers, release } = allocate(device, planOwn(spec, rows));
      device.write(network.weights, flatten(network.layout, weights));
      device.write(buffers["mean"], mean);
      device.write(buffers["scale"], scale);
      return { network, buffers, release };
    } catch (cause) {
      network[Symbol.dispose]();
      throw cause;
    }
  }
  let held = await make(options.rows ?? DEFAULT_ROWS);
  const release = () => {
    held.network[Symbol.dispose]();
    held.release();
  };

  /** Scores lists that fit the rows. */
  async function scoreBatch(states: DeviceBuffer, lists: readonly StateRows[]): Promise<Float32Array[]> {
    const { network, buffers } = held;
    const index = Uint32Array.from(lists.flatMap(({ instruction, candidates }) => [instruction, ...candidates]));
    const spans = new Uint32Array(2 * index.length);
    const starts: number[] = [];
    let row = 0;
    for (const { candidates } of lists) {
      starts.push(row);
      const end = row + 1 + candidates.length;
      for (let r = row; r < end; r++) spans.set([row, end], 2 * r);
      row = end;
    }
    const { rank, order, readback } = buffers;
    const { x, cosines } = network.buffers;
    network.begin(spans);
    device.write(buffers["index"], index);
    device.write(buffers["rowParams"], Uint32Array.of(row, 0, 0, 0));
    const shared = { x: states, spans: network.buffers["spans"], params: buffers["rowParams"] };
    const recorder = new Recorder(device, "scorer");
    recorder.dispatch(orderPipe, { ...shared, index: buffers["index"], rank, order }, row);
    recorder.dispatch(
      standardisePipe,
      { ...shared, index: order, mean: buffers["mean"], scale: buffers["scale"], out: x },
      row,
    );
    network.forward(recorder);
    await recorder.submit();
    const places = new Uint32Array(await device.read(rank, 4 * row, readback));
    const values = new Float32Array(await device.read(cosines, 8 * row, readback));
    return lists.map(({ candidates }, l) =>
      Float32Array.from(candidates, (_, i) => values[2 * places[starts[l] + 1 + i]]),
    );
  }

  /** Cuts lists into batches of at most `rows` rows. */
  function* batches<T>(lists: readonly T[], length: (list: T) => number): Generator<T[]> {
    let open: T[] = [];
    let rows = 0;
    for (const list of lists) {
      const own = 1 + length(list);
      if (open.length > 0 && rows + own > held.network.rows) {
        yield open;
        [open, rows] = [[], 0];
      }
      open.push(list);
      rows += own;
    }
    if (open.length > 0) yield open;
  }

  let last: Promise<unknown> = Promise.resolve();
  /** Calls share the working buffers: each runs when the one before has ended. */
  function inTurn<T>(step: () => Promise<T>): Promise<T> {
    const turn = last.then(step);
    last = turn.catch(() => undefined);
    return turn;
  }

  async function grow(rows: number): Promise<void> {
    if (rows <= held.network.rows) return;
    checkListLength(rows - 1);
    checkPlan(planScorer(spec, rows), device.info.limits);
    // The old buffers first: both together may be more than there is.
    const before = held.network.rows;
    release();
    await device.freed();
    try {
      held = await make(rows);
    } catch (cause) {
      held = await make(before);
      throw cause;
    }
  }

  return {
    spec,
    get bytes() {
      return held.network.bytes + Object.values(held.buffers).reduce((sum, { size }) => sum + size, 0);
    },
    get rows() {
      return held.network.rows;
    },
    grow: (rows) => inTurn(() => grow(rows)),
    scoreStates: (states, lists) =>
      inTurn(async () => {
        await grow(lists.reduce((most, { candidates }) => Math.max(most, 1 + candidates.length), 0));
        const scores: Float32Array[] = [];
        for (const batch of batches(lists, ({ candidates }) => candidates.length))
          scores.push(...(await scoreBatch(states, batch)));
        return scores;
      }),
    scoreFeatures: (source, lists = Array.from({ length: source.lists }, (_, b) => b)) =>
      inTurn(async () => {
        await grow(lists.reduce((most, b) => Math.max(most, 1 + listLength(source, b)), 0));
        const scores: Float32Array[] = [];
        const staging = new Float32Array(held.network.rows * dim);
        for (const batch of batches(lists, (b) => listLength(source, b))) {
          const rows: StateRows[] = [];
          let row = 0;
          for (const b of batch) {
            await source.readList(b, staging, row * dim);
            const first = row + 1;
            rows.push({
              instruction: row,
              candidates: Array.from({ length: listLength(source, b) }, (_, i) => first + i),
            });
            row = first + listLength(source, b);
          }
          device.write(held.buffers["raw"], staging.subarray(0, row * dim));
          scores.push(...(await scoreBatch(held.buffers["raw"], rows)));
        }
        return scores;
      }),
    [Symbol.dispose]: release,
  };
}

/**
 * Scores lists of features with a scorer made for that alone; made anew where the GPU device is lost.
 * @param lists indices; default all
 * @returns (m) scores a list
 * @throws {StratumError} as {@link createScorer} and `Scorer.scoreFeatures`
 */
export function scoreFeatures(
  engine: Engine,
  options: ScorerOptions,
  source: FeatureSource,
  lists?: readonly number[],
): Promise<Float32Array[]> {
  return overLosses(engine.device, async () => {
    using scorer = await createScorer(engine, options);
    return await scorer.scoreFeatures(source, lists);
  });
}
