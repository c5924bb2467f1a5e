/** Runs batches through a loaded model: owns the working buffers, taps layers, reads out states or scores. */
import { StratumError } from "../errors.ts";
import { attentionExtent, attentionTiles } from "../kernels/attention.ts";
import { cosine, cosineDefaults } from "../kernels/cosine.ts";
import { PARAMS_BYTES } from "../kernels/kernel.ts";
import { spanMean } from "../kernels/span-mean.ts";
import { type Batch, type PackOptions, pooledRows, rowOf } from "./batch.ts";
import type { DeviceBuffer, DeviceTexture } from "./device.ts";
import { DISPATCH_FLOPS, meansPerDispatch, rowsPerDispatch, tilesPerDispatch } from "./dispatch-size.ts";
import {
  type ForwardKernels,
  forwardKernels,
  type Params,
  type Recording,
  type RowSet,
  recordBlock,
  type Workspace,
} from "./forward.ts";
import type { LoadedModel } from "./model.ts";
import type { BoundBuffer, Pipeline } from "./pipelines.ts";
import {
  batchBudget,
  PARAM_SLOT_BYTES,
  paramSlots,
  planWorkspace,
  type RunOutput,
  type RunRequest,
  type WorkspaceName,
} from "./plan.ts";
import { checkPlan, createPlanned, type PlannedMemory, sumBytes } from "./planned-buffer.ts";
import { Recorder } from "./recorder.ts";
import { longFrom, ropeRegions, ropeTables, turnRows } from "./rope-table.ts";
import { textureWidths } from "./weight-plan.ts";

/** A pair of sequences, as indices into a batch's. */
export type SequencePair = readonly [number, number];
/** Cosines of pairs of sequences at the first tapped layer; NaN where a state of the pair holds NaN or infinity. */
export type Cosines = (pairs: readonly SequencePair[]) => Promise<Float32Array>;

/** Runs batches. Disposing it frees the working buffers. */
export interface Runner extends Disposable {
  readonly layers: readonly number[];
  /** Rows that a batch may hold. */
  readonly budget: number;
  /** What `packBatches` makes batches for this runner by: the budget, and which sequences share no prefix. */
  readonly packing: Required<Pick<PackOptions, "budget" | "longFrom">>;
  /** The largest budget that the runner may grow to; less once the GPU had no memory for as much. */
  readonly maxBudget: number;
  /** The working buffers that are held now. */
  readonly plan: readonly PlannedMemory[];
  /** Bytes of model and working buffers together: what the device holds for this run. */
  readonly bytes: number;
  /**
   * Makes room for batches of a larger budget, at most `maxBudget`; for half as many where the GPU has no memory for so many.
   * @throws {StratumError} `memory/buffer-limit`, `memory/out-of-memory`
   */
  grow(budget: number): Promise<void>;
  /**
   * With output `pooled`: the states (S, K, D) of the batch's S sequences, one each a layer, as the runner pools them.
   * @throws {StratumError} what the device latched
   */
  pooledStates(batch: Batch): Promise<Float32Array>;
  /** With output `all`: calls back once a tapped layer, shallowest first, with the states (T, D) of all rows of the batch. */
  allStates(batch: Batch, onLayer: (layer: number, states: Float32Array) => void): Promise<void>;
  /**
   * With output `scores`: cosines of pairs of sequences (indices into the batch) at the first tapped layer.
   * @returns a score a pair; NaN where a state holds NaN or infinity
   * @throws {StratumError} `usage/pairs` for more pairs than sequences
   */
  cosines(batch: Batch, pairs: readonly SequencePair[]): Promise<Float32Array>;
  /**
   * With output `scores`: runs the batch and lends its pooled states, on the GPU, to `use`. No other call of the runner
   * runs before `use` has ended, so that `use` must not wait for one.
   * @param use gets the states (K, S, D), S, and `cosines` of the same run: one pass gives both what `use` computes and,
   *   as a score that is not NaN, whether the states of a pair are finite (one call at a time). The buffer is larger than
   *   what it holds; like `cosines` it is lent until `use` ends.
   * @returns what `use` gives
   */
  withStates<T>(batch: Batch, use: (states: DeviceBuffer, count: number, cosines: Cosines) => Promise<T>): Promise<T>;
}

/** Rows below which working buffers that find no memory are no matter of their size. */
const LEAST_ROWS = 64;

/**
 * Compiles the kernels and allocates the working buffers. The plan is checked against the adapter's limits first.
 * @param mostRows bounds a batch beyond what the request says: memory was short before
 */
export async function createRunner(
  model: LoadedModel,
  options: RunRequest,
  mostRows = Number.POSITIVE_INFINITY,
): Promise<Runner> {
  const { engine, spec, blocks } = model;
  const { device, pipelines, target } = engine;
  const { hiddenSize: d } = spec.config;
  const { layers, output, pooling = "last", batchTokens } = options;
  const deepest = Math.max(...layers);
  if (layers.length === 0 || layers.some((layer) => !Number.isInteger(layer) || layer < 0 || layer > blocks.length)) {
    throw new StratumError(
      "usage/layer",
      `layers [${layers.join(", ")}] on a model loaded to layer ${blocks.length}`,
      "load the model at least to the deepest asked-for layer",
    );
  }
  if (new Set(layers).size < layers.length) {
    throw new StratumError("usage/layer", `layers [${layers.join(", ")}] name one twice`, "ask for each layer once");
  }
  const dispatchFlops = (engine.dispatchFlops ?? DISPATCH_FLOPS) * device.pace;
  const size = { taps: layers.length, output, pooling, dispatchFlops, textures: textureWidths(model.plan) };
  const granted = batchBudget(spec, device.info.limits, { ...size, batchTokens });
  let maxBudget = Math.min(granted.maxBudget, mostRows);
  let budget = Math.min(granted.budget, mostRows);
  let plan: readonly PlannedMemory[] = [];
  let workspace = {} as Workspace;
  let tables: readonly BoundBuffer[] = [];
  const packing = { longFrom: longFrom(spec.config) };

  const release = () => {
    for (const buffer of Object.values(workspace)) buffer.destroy();
    workspace = {} as Workspace;
    plan = [];
  };
  const allocateRows = async (rows: number) => {
    const planned = planWorkspace(spec, { ...size, rows });
    checkPlan([...planned.values()], device.info.limits);
    // The old buffers first: both together may be more than there is.
    release();
    const made: Partial<Record<WorkspaceName, DeviceBuffer | DeviceTexture>> = {};
    // What a run's output does not need is absent; `inTurn` keeps each method to its output.
    workspace = made as Workspace;
    try {
      await device.allocating(() => {
        for (const [name, buffer] of planned) made[name] = createPlanned(device, buffer);
      });
      const regions = ropeRegions(spec.config, rows);
      if (regions.length > 0) device.write(workspace.ropeTable, ropeTables(regions, rows));
      tables = regions.map(({ offset, bytes }) => ({ buffer: workspace.ropeTable, offset, size: bytes }));
    } catch (cause) {
      release();
      throw cause;
    }
    plan = [...planned.values()];
    budget = rows;
  };
  const allocate = async (asked: number) => {
    for (let rows = asked; ; ) {
      try {
        await allocateRows(rows);
        return;
      } catch (cause) {
        const short = cause instanceof StratumError && cause.code === "memory/out-of-memory";
        if (!short || device.failure !== undefined || rows < 2 * LEAST_ROWS) throw cause;
        const less = Math.floor(rows / 2);
        device.note(`${cause.message}; batches have at most ${less} tokens from now on (${rows} before)`);
        rows = less;
        maxBudget = less;
      }
    }
  };
  await allocate(budget);

  let kernels: ForwardKernels;
  let cosinePipeline: Pipeline | null;
  let meanPipeline: Pipeline | null;
  try {
    kernels = await forwardKernels(model);
    cosinePipeline = output === "scores" ? await pipelines.get(cosine({ d, ...cosineDefaults(target) })) : null;
    meanPipeline = output !== "all" && pooling === "mean" ? await pipelines.get(spanMean({ d })) : null;
  } catch (cause) {
    release();
    throw cause;
  }

  let disposed = false;
  let last: Promise<unknown> = Promise.resolve();
  /** Calls share the working buffers: each runs when the one before has ended. */
  function inTurn<T>(wanted: RunOutput | null, step: () => Promise<T>): Promise<T> {
    const turn = last.then(() => {
      if (disposed) throw new StratumError("device/disposed", "the runner was disposed", "create another");
      if (wanted !== null && output !== wanted) {
        throw new StratumError(
          "usage/output-kind",
          `a runner made for '${output}' was asked for '${wanted}'`,
          `create the runner with output '${wanted}'`,
        );
      }
      return step();
    });
    last = turn.catch(() => undefined);
    return turn;
  }

  /** Uploads a batch and gives the uniforms of its dispatches. */
  async function begin(batch: Batch): Promise<Recording> {
    const rows = batch.ids.length;
    if (rows > budget)
      throw new StratumError(
        "memory/batch",
        `a batch of ${rows} rows in a workspace of ${budget}`,
        "pack batches by the runner's budget",
      );
    const positions = Uint32Array.from({ length: rows }, (_, row) => batch.spans[row * 4 + 3]);
    const states = await device.span("embed", () => model.embedding.rows(batch.ids, positions));
    device.write(workspace.x, states);
    device.write(workspace.spans, batch.spans as Uint32Array<ArrayBuffer>);
    if (tables.length > 0) device.write(workspace.turns, turnRows(batch, budget, packing.longFrom));
    const tiles = attentionTiles(batch.spans, rows, kernels.tileRows);
    device.write(workspace.tiles, tiles as Uint32Array<ArrayBuffer>);
    const slots = new Map<string, number>();
    const params: Params = (count, offset = 0) => {
      const key = `${count} ${offset}`;
      let slot = slots.get(key);
      if (slot === undefined) {
        slot = slots.size;
        if (slot >= paramSlots(spec.config, { ...size, rows: budget }))
          throw new StratumError(
            "kernel/params",
            `more than ${slot} distinct dispatch sizes in a batch`,
            "this is a defect of Stratum: please report it",
          );
        slots.set(key, slot);
        device.write(workspace.params, Uint32Array.of(count, offset, 0, 0), slot * PARAM_SLOT_BYTES);
      }
      return { buffer: workspace.params, offset: slot * PARAM_SLOT_BYTES, size: 16 };
    };
    const keys = 1 + positions.reduce((most, position) => Math.max(most, position), 0);
    const { spans, turns, tiles: uploaded } = workspace;
    return {
      model,
      kernels,
      workspace,
      ropeTables: tables,
      params,
      steps: {
        rows: rowsPerDispatch(spec.config, dispatchFlops),
        tiles: tilesPerDispatch(spec.config, keys, dispatchFlops),
      },
      all: {
        ...{ rows, spans, turns, tiles: uploaded, tileCount: tiles.length / 2 },
        reach: (window, first, end) => attentionExtent(batch.spans, tiles, window ?? 0, first, end),
      },
    };
  }

  /** Uploads which rows are read out: every sequence's last one. */
  function prepareLastRows(batch: Batch): RowSet {
    const { sequences, spans: allSpans } = batch;
    const count = sequences.length;
    const lastRows = sequences.map((sequence) => rowOf(sequence, sequence.length - 1));
    const spans = new Uint32Array(count * 4);
    for (const [i, row] of lastRows.entries()) spans.set(allSpans.subarray(row * 4, row * 4 + 4), i * 4);
    // Each read-out row is a tile of its own: neighbours in the compacted rows belong to different sequences.
    const tiles = Uint32Array.from({ length: 2 * count }, (_, i) => (i % 2 === 0 ? i / 2 : 1));
    device.write(workspace.readIndex, Uint32Array.from(lastRows));
    device.write(workspace.readSpans, spans);
    device.write(workspace.readTiles, tiles);
    if (tables.length > 0) {
      const turns = turnRows(batch, budget, packing.longFrom);
      device.write(
        workspace.readTurns,
        Uint32Array.from(lastRows, (row) => turns[row]),
      );
    }
    const { readSpans, readTurns, readTiles } = workspace;
    return {
      ...{ rows: count, spans: readSpans, turns: readTurns, tiles: readTiles, tileCount: count },
      reach: (window, first, end) => attentionExtent(spans, tiles, window ?? 0, first, end),
    };
  }

  /** Uploads which rows are averaged. @returns the sequences of one dispatch */
  function prepareMeans({ sequences }: Batch): number {
    const spans = sequences.map(pooledRows);
    device.write(workspace.poolSpans, Uint32Array.from(spans.flat()));
    const longest = sequences.reduce((most, { length, poolFrom }) => Math.max(most, length - poolFrom), 1);
    return meansPerDispatch(spec.config, longest, dispatchFlops);
  }

  /** Runs a batch to the deepest layer and leaves the pooled states (K, S, D) in `states`. */
  async function runToStates(batch: Batch): Promise<number> {
    const count = batch.sequences.length;
    const pooled = batch.sequences.find(({ length, poolFrom }) => poolFrom < length - 1);
    if (pooled !== undefined && meanPipeline === null) {
      throw new StratumError(
        "usage/pooling",
        `sequence ${pooled.index} of group ${pooled.group} is pooled from token ${pooled.poolFrom} on, in a runner that reads last tokens`,
        "create the runner with pooling 'mean', or leave poolFrom out",
      );
    }
    const recording = await begin(batch);
    const { params } = recording;
    const readOut = meanPipeline === null ? prepareLastRows(batch) : null;
    const means = meanPipeline === null ? 0 : prepareMeans(batch);
    const recorder = new Recorder(device, "layer 0", engine.submitFlops);
    /** Records the read-out of a tapped layer from the rows of the whole batch. */
    const readTap = (tap: number) => {
      const [x, out] = [workspace.x, workspace.states];
      const at = (first: number, n: number) => params(n, tap * count + first);
      if (meanPipeline === null) {
        const bound = { x, index: workspace.readIndex, out, params: at(0, count) };
        recorder.dispatch(kernels.gather, bound, count, { role: "read out" });
        return;
      }
      for (let first = 0; first < count; first += means) {
        const n = Math.min(means, count - first);
        const spans = { buffer: workspace.poolSpans, offset: 16 * first, size: 16 * n };
        const tokens = batch.sequences.slice(first, first + n).reduce((sum, s) => sum + s.length - s.poolFrom, 0);
        const extent = { outputs: n, inputs: Math.min(tokens, batch.ids.length), pairs: tokens };
        recorder.dispatch(meanPipeline, { x, spans, out, params: at(first, n) }, n, { role: "read out", extent });
      }
    };
    for (let layer = 0; layer <= deepest; layer++) {
      recorder.scope = `layer ${layer}`;
      const pruned = layer === deepest && layer > 0 ? readOut : null;
      if (layer > 0) recordBlock(recording, recorder, layer - 1, pruned);
      const tap = layers.indexOf(layer);
      if (tap >= 0 && pruned === null) readTap(tap);
      if (pruned !== null) recorder.copy(workspace.read, 0, workspace.states, tap * count * d * 4, count * d * 4);
    }
    await recorder.submit();
    return count;
  }

  function checkPairs({ sequences }: Batch, pairs: readonly SequencePair[]): void {
    const outside = pairs.flat().find((sequence) => !(sequence >= 0 && sequence < sequences.length));
    if (outside === undefined && pairs.length <= sequences.length) return;
    throw new StratumError(
      "usage/pairs",
      outside === undefined
        ? `${pairs.length} pairs of ${sequences.length} sequences`
        : `a pair names sequence ${outside} of a batch of ${sequences.length}`,
      "give indices into the batch's sequences, at most one pair a sequence",
    );
  }

  /** Cosines of the states that a run has left. */
  async function scorePairs(pairs: readonly SequencePair[]): Promise<Float32Array> {
    if (pairs.length === 0) return new Float32Array(0);
    device.write(workspace.pairs, Uint32Array.from(pairs.flat()));
    // The run is submitted: its slots are free again.
    device.write(workspace.params, Uint32Array.of(pairs.length, 0, 0, 0));
    const recorder = new Recorder(device, "scores");
    recorder.dispatch(
      cosinePipeline as Pipeline,
      {
        x: workspace.states,
        pairs: workspace.pairs,
        out: workspace.scores,
        params: { buffer: workspace.params, offset: 0, size: PARAMS_BYTES },
      },
      pairs.length,
      { extent: { outputs: pairs.length, inputs: new Set(pairs.flat()).size, pairs: pairs.length } },
    );
    await recorder.submit();
    const result = new Float32Array(await device.read(workspace.scores, pairs.length * 8, workspace.staging));
    return Float32Array.from(pairs, (_, i) => (result[2 * i + 1] === 1 ? result[2 * i] : Number.NaN));
  }

  const runner: Runner = {
    layers,
    get budget() {
      return budget;
    },
    get maxBudget() {
      return maxBudget;
    },
    get packing() {
      return { ...packing, budget };
    },
    get plan() {
      return plan;
    },
    get bytes() {
      return model.plan.bytes + sumBytes(plan);
    },
    grow: (rows) =>
      inTurn(null, async () => {
        const wanted = Math.min(rows, maxBudget);
        if (wanted > budget) await allocate(wanted);
      }),
    pooledStates: (batch) =>
      inTurn("pooled", async () => {
        const count = await runToStates(batch);
        const size = layers.length * count * d;
        const flat = new Float32Array(await device.read(workspace.states, size * 4, workspace.staging));
        const out = new Float32Array(size);
        for (let tap = 0; tap < layers.length; tap++) {
          for (let s = 0; s < count; s++)
            out.set(flat.subarray((tap * count + s) * d, (tap * count + s + 1) * d), (s * layers.length + tap) * d);
        }
        return out;
      }),
    allStates: (batch, onLayer) =>
      inTurn("all", async () => {
        const recording = await begin(batch);
        const { rows } = recording.all;
        const recorder = new Recorder(device, "layer 0", engine.submitFlops);
        for (let layer = 0; layer <= deepest; layer++) {
          if (layer > 0) {
            recorder.scope = `layer ${layer}`;
            recordBlock(recording, recorder, layer - 1, null);
          }
          if (layers.includes(layer)) {
            await recorder.submit();
            onLayer(layer, new Float32Array(await device.read(workspace.x, rows * d * 4, workspace.staging)));
          }
        }
      }),
    cosines: (batch, pairs) =>
      inTurn("scores", async () => {
        checkPairs(batch, pairs);
        await runToStates(batch);
        return await scorePairs(pairs);
      }),
    withStates: (batch, use) =>
      inTurn("scores", async () => {
        const count = await runToStates(batch);
        let lent = true;
        try {
          return await use(workspace.states, count, async (pairs) => {
            if (!lent)
              throw new StratumError(
                "usage/lent",
                "the batch's states were lent until 'use' ended",
                "await it in 'use'",
              );
            checkPairs(batch, pairs);
            return await scorePairs(pairs);
          });
        } finally {
          lent = false;
        }
      }),
    [Symbol.dispose]() {
      disposed = true;
      release();
    },
  };
  return runner;
}
