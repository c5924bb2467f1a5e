/** Runs batches through a loaded model: owns the working buffers, taps layers, reads out states or scores. */
import { StratumError } from "../errors.ts";
import { attentionExtent, attentionTiles } from "../kernels/attention.ts";
import { cosine, cosineDefaults } from "../kernels/cosine.ts";
import { PARAMS_BYTES } from "../kernels/kernel.ts";
import { spanMean } from "../kernels/span-mean.ts";
import { type Batch, type PackOptions, pooledRows, rowOf } from "./batch.ts";
import type { DeviceBuffer } from "./device-memory.ts";
import { DISPATCH_FLOPS, meansPerDispatch, rowsPerDispatch, tilesPerDispatch } from "./dispatch-size.ts";
import {
  type ForwardKernels,
  forwardKernels,
  type Params,
  type Recording,
  type RowSet,
  recordBlock,
} from "./forward.ts";
import type { LoadedModel } from "./model.ts";
import type { Pipeline } from "./pipelines.ts";
import { batchBudget, PARAM_SLOT_BYTES, paramSlots, type RunOutput, type RunRequest } from "./plan.ts";
import { type PlannedMemory, sumBytes } from "./planned-buffer.ts";
import { Recorder } from "./recorder.ts";
import { longFrom, turnRows } from "./rope-table.ts";
import { textureWidths } from "./weight-plan.ts";
import { createWorkingBuffers } from "./working-buffers.ts";

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
  /** The largest budget that limits and options allow, whatever memory there is. */
  readonly grantedBudget: number;
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
  const most = (rows: number) => Math.min(rows, mostRows);
  const held = await createWorkingBuffers(device, spec, size, {
    budget: most(granted.budget),
    maxBudget: most(granted.maxBudget),
  });
  const packing = { longFrom: longFrom(spec.config) };

  let kernels: ForwardKernels;
  let cosinePipeline: Pipeline | null;
  let meanPipeline: Pipeline | null;
  try {
    kernels = await forwardKernels(model);
    cosinePipeline = output === "scores" ? await pipelines.get(cosine({ d, ...cosineDefaults(target) })) : null;
    meanPipeline = output !== "all" && pooling === "mean" ? await pipelines.get(spanMean({ d })) : null;
  } catch (cause) {
    held[Symbol.dispose]();
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
    if (rows > held.budget)
      throw new StratumError(
        "memory/batch",
        `a batch of ${rows} rows in a workspace of ${held.budget}`,
        "pack batches by the runner's budget",
      );
    const positions = Uint32Array.from({ length: rows }, (_, row) => batch.spans[row * 4 + 3]);
    const states = await device.span("embed", () => model.embedding.rows(batch.ids, positions));
    device.write(held.buffers.x, states);
    device.write(held.buffers.spans, batch.spans as Uint32Array<ArrayBuffer>);
    if (held.ropeTables.length > 0) device.write(held.buffers.turns, turnRows(batch, held.budget, packing.longFrom));
    const tiles = attentionTiles(batch.spans, rows, kernels.tileRows);
    device.write(held.buffers.tiles, tiles as Uint32Array<ArrayBuffer>);
    const slots = new Map<string, number>();
    const params: Params = (count, offset = 0) => {
      const key = `${count} ${offset}`;
      let slot = slots.get(key);
      if (slot === undefined) {
        slot = slots.size;
        if (slot >= paramSlots(spec.config, { ...size, rows: held.budget }))
          throw new StratumError(
            "kernel/params",
            `more than ${slot} distinct dispatch sizes in a batch`,
            "this is a defect of Stratum: please report it",
          );
        slots.set(key, slot);
        device.write(held.buffers.params, Uint32Array.of(count, offset, 0, 0), slot * PARAM_SLOT_BYTES);
      }
      return { buffer: held.buffers.params, offset: slot * PARAM_SLOT_BYTES, size: 16 };
    };
    const keys = 1 + positions.reduce((most, position) => Math.max(most, position), 0);
    const { spans, turns, tiles: uploaded } = held.buffers;
    return {
      model,
      kernels,
      workspace: held.buffers,
      ropeTables: held.ropeTables,
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
    device.write(held.buffers.readIndex, Uint32Array.from(lastRows));
    device.write(held.buffers.readSpans, spans);
    device.write(held.buffers.readTiles, tiles);
    if (held.ropeTables.length > 0) {
      const turns = turnRows(batch, held.budget, packing.longFrom);
      device.write(
        held.buffers.readTurns,
        Uint32Array.from(lastRows, (row) => turns[row]),
      );
    }
    const { readSpans, readTurns, readTiles } = held.buffers;
    return {
      ...{ rows: count, spans: readSpans, turns: readTurns, tiles: readTiles, tileCount: count },
      reach: (window, first, end) => attentionExtent(spans, tiles, window ?? 0, first, end),
    };
  }

  /** Uploads which rows are averaged. @returns the sequences of one dispatch */
  function prepareMeans({ sequences }: Batch): number {
    const spans = sequences.map(pooledRows);
    device.write(held.buffers.poolSpans, Uint32Array.from(spans.flat()));
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
      const [x, out] = [held.buffers.x, held.buffers.states];
      const at = (first: number, n: number) => params(n, tap * count + first);
      if (meanPipeline === null) {
        const bound = { x, index: held.buffers.readIndex, out, params: at(0, count) };
        recorder.dispatch(kernels.gather, bound, count, { role: "read out" });
        return;
      }
      for (let first = 0; first < count; first += means) {
        const n = Math.min(means, count - first);
        // To the end of the buffer: a size of its own for every number of sequences would be a bind group for each.
        const spans = {
          buffer: held.buffers.poolSpans,
          offset: 16 * first,
          size: held.buffers.poolSpans.size - 16 * first,
        };
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
      if (pruned !== null) recorder.copy(held.buffers.read, 0, held.buffers.states, tap * count * d * 4, count * d * 4);
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
    device.write(held.buffers.pairs, Uint32Array.from(pairs.flat()));
    // The run is submitted: its slots are free again.
    device.write(held.buffers.params, Uint32Array.of(pairs.length, 0, 0, 0));
    const recorder = new Recorder(device, "scores");
    recorder.dispatch(
      cosinePipeline as Pipeline,
      {
        x: held.buffers.states,
        pairs: held.buffers.pairs,
        out: held.buffers.scores,
        params: { buffer: held.buffers.params, offset: 0, size: PARAMS_BYTES },
      },
      pairs.length,
      { extent: { outputs: pairs.length, inputs: new Set(pairs.flat()).size, pairs: pairs.length } },
    );
    await recorder.submit();
    const result = new Float32Array(await device.read(held.buffers.scores, pairs.length * 8, held.buffers.staging));
    return Float32Array.from(pairs, (_, i) => (result[2 * i + 1] === 1 ? result[2 * i] : Number.NaN));
  }

  const runner: Runner = {
    layers,
    get budget() {
      return held.budget;
    },
    get maxBudget() {
      return held.maxBudget;
    },
    grantedBudget: granted.maxBudget,
    get packing() {
      return { ...packing, budget: held.budget };
    },
    get plan() {
      return held.plan;
    },
    get bytes() {
      return model.plan.bytes + sumBytes(held.plan);
    },
    grow: (rows) => inTurn(null, () => held.grow(rows)),
    pooledStates: (batch) =>
      inTurn("pooled", async () => {
        const count = await runToStates(batch);
        const size = layers.length * count * d;
        const flat = new Float32Array(await device.read(held.buffers.states, size * 4, held.buffers.staging));
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
            onLayer(layer, new Float32Array(await device.read(held.buffers.x, rows * d * 4, held.buffers.staging)));
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
          return await use(held.buffers.states, count, async (pairs) => {
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
      held[Symbol.dispose]();
    },
  };
  return runner;
}
