/** Runs batches through a loaded model: owns the working buffers, taps layers, reads out states or scores. */
import { StratumError } from "../errors.ts";
import { attentionTiles } from "../kernels/attention.ts";
import { cosine, cosineDefaults } from "../kernels/cosine.ts";
import { ropeFrequencies } from "../weights/rope-frequencies.ts";
import { type Batch, rowOf } from "./batch.ts";
import type { DeviceBuffer } from "./device.ts";
import {
  type DispatchSteps,
  type ForwardKernels,
  forwardKernels,
  type Params,
  type RowSet,
  recordBlock,
  type Workspace,
} from "./forward.ts";
import type { LoadedModel } from "./model.ts";
import { dispatch, type Pipeline } from "./pipelines.ts";
import {
  batchBudget,
  checkPlan,
  DISPATCH_FLOPS,
  PARAM_SLOT_BYTES,
  type PlannedBuffer,
  paramSlots,
  planWorkspace,
  type RunOutput,
  rowsPerDispatch,
  sumBytes,
  tilesPerDispatch,
  type WorkspaceName,
} from "./plan.ts";

export interface RunnerOptions {
  /** Layers to tap, in the order of the output; each at most the model's loaded depth. */
  readonly layers: readonly number[];
  readonly output: RunOutput;
  /** Rows of a batch, a hard bound. Absent: `DEFAULT_BATCH_TOKENS`, grown for longer sequences and lists as far as the adapter allows. */
  readonly batchTokens?: number | undefined;
}

/** Runs batches. Disposing it frees the working buffers. */
export interface Runner extends Disposable {
  readonly layers: readonly number[];
  /** The budget for `packBatches`. */
  readonly budget: number;
  /** The largest budget that the runner may grow to. */
  readonly maxBudget: number;
  /** The working buffers that are held now. */
  readonly plan: readonly PlannedBuffer[];
  /** Bytes of model and working buffers together: what the device holds for this run. */
  readonly bytes: number;
  /** Makes room for batches of a larger budget, at most `maxBudget`. @throws {StratumError} `memory/buffer-limit` */
  grow(budget: number): void;
  /**
   * With output `last`: the states (S, K, D) of the last tokens of the batch's S sequences.
   * @throws {StratumError} what the device latched
   */
  lastStates(batch: Batch): Promise<Float32Array>;
  /** With output `all`: calls back once a tapped layer, shallowest first, with the states (T, D) of all rows of the batch. */
  allStates(batch: Batch, onLayer: (layer: number, states: Float32Array) => void): Promise<void>;
  /**
   * With output `scores`: cosines of pairs of sequences (indices into the batch) at the first tapped layer.
   * @returns a score a pair; NaN where a state holds NaN or infinity
   */
  cosines(batch: Batch, pairs: readonly (readonly [number, number])[]): Promise<Float32Array>;
}

/** Compiles the kernels and allocates the working buffers. The plan is checked against the adapter's limits first. */
export async function createRunner(model: LoadedModel, options: RunnerOptions): Promise<Runner> {
  const { engine, spec, blocks } = model;
  const { device, pipelines, target } = engine;
  const { hiddenSize: d, headDim, rope } = spec.config;
  const { layers, output } = options;
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
  const granted = batchBudget(spec, device.info.limits, {
    taps: layers.length,
    output,
    batchTokens: options.batchTokens,
  });
  const { maxBudget } = granted;
  let budget = granted.budget;
  let plan: readonly PlannedBuffer[] = [];
  let workspace = {} as Workspace;

  const dispatchFlops = engine.dispatchFlops ?? DISPATCH_FLOPS;
  const size = { taps: layers.length, dispatchFlops };
  const release = () => {
    for (const buffer of Object.values(workspace)) buffer.destroy();
    workspace = {} as Workspace;
    plan = [];
  };
  const allocate = (rows: number) => {
    const planned = planWorkspace(spec, { ...size, rows, output });
    checkPlan([...planned.values()], device.info.limits);
    // The old buffers first: both together may be more than there is.
    release();
    const made: Partial<Record<WorkspaceName, DeviceBuffer>> = {};
    // What a run's output does not need is absent; `inTurn` keeps each method to its output.
    workspace = made as Workspace;
    try {
      for (const [name, { label, bytes, use }] of planned) made[name] = device.createBuffer(label, bytes, use);
      device.write(workspace.ropeTable, ropeTable(ropeFrequencies(rope, headDim), rows));
    } catch (cause) {
      release();
      throw cause;
    }
    plan = [...planned.values()];
    budget = rows;
  };
  allocate(budget);

  let kernels: ForwardKernels;
  let cosinePipeline: Pipeline | undefined;
  try {
    kernels = await forwardKernels(model);
    cosinePipeline = output === "scores" ? await pipelines.get(cosine({ d, ...cosineDefaults(target) })) : undefined;
  } catch (cause) {
    release();
    throw cause;
  }

  let disposed = false;
  let last: Promise<unknown> = Promise.resolve();
  /** Calls share the working buffers: each runs when the one before has ended. */
  function inTurn<T>(wanted: RunOutput, step: () => Promise<T>): Promise<T> {
    const turn = last.then(() => {
      if (disposed) throw new StratumError("device/disposed", "the runner was disposed", "create another");
      if (output !== wanted) {
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
  async function begin(batch: Batch): Promise<{ params: Params; all: RowSet; rows: number; steps: DispatchSteps }> {
    const rows = batch.ids.length;
    if (rows > budget)
      throw new StratumError(
        "memory/batch",
        `a batch of ${rows} rows in a workspace of ${budget}`,
        "pack batches by the runner's budget",
      );
    device.write(workspace.x, await model.embedding.rows(batch.ids));
    device.write(workspace.spans, batch.spans as Uint32Array<ArrayBuffer>);
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
    let keys = 1;
    for (let row = 0; row < rows; row++) keys = Math.max(keys, batch.spans[row * 4 + 3] + 1);
    const steps: DispatchSteps = {
      rows: rowsPerDispatch(spec.config, dispatchFlops),
      tiles: tilesPerDispatch(spec.config, keys, dispatchFlops),
    };
    return {
      params,
      rows,
      steps,
      all: { rows, spans: workspace.spans, tiles: workspace.tiles, tileCount: tiles.length / 2 },
    };
  }

  /** Runs a batch to the deepest layer and leaves the read-out rows (K, S, D) in `states`. */
  async function runToStates(batch: Batch): Promise<{ params: Params; count: number }> {
    const { params, all, steps } = await begin(batch);
    const { sequences } = batch;
    const count = sequences.length;
    const lastRows = sequences.map((sequence) => rowOf(sequence, sequence.length - 1));
    const spans = new Uint32Array(count * 4);
    for (const [i, row] of lastRows.entries()) spans.set(batch.spans.subarray(row * 4, row * 4 + 4), i * 4);
    // Each read-out row is a tile of its own: neighbours in the compacted rows belong to different sequences.
    const tiles = Uint32Array.from({ length: 2 * count }, (_, i) => (i % 2 === 0 ? i / 2 : 1));
    device.write(workspace.readIndex, Uint32Array.from(lastRows));
    device.write(workspace.readSpans, spans);
    device.write(workspace.readTiles, tiles);
    const readOut: RowSet = { rows: count, spans: workspace.readSpans, tiles: workspace.readTiles, tileCount: count };
    for (let layer = 0; layer <= deepest; layer++) {
      const encoder = device.gpu.createCommandEncoder();
      const pruned = layer === deepest && layer > 0;
      const pass = encoder.beginComputePass();
      if (layer > 0)
        recordBlock(model, kernels, workspace, params, pass, blocks[layer - 1], all, pruned ? readOut : null, steps);
      const tap = layers.indexOf(layer);
      if (tap >= 0 && !pruned) {
        dispatch(
          device,
          pass,
          kernels.gather,
          { x: workspace.x, index: workspace.readIndex, out: workspace.states, params: params(count, tap * count) },
          count,
        );
      }
      pass.end();
      if (pruned)
        encoder.copyBufferToBuffer(workspace.read.gpu, 0, workspace.states.gpu, tap * count * d * 4, count * d * 4);
      device.submit(encoder);
    }
    return { params, count };
  }

  const runner: Runner = {
    layers,
    get budget() {
      return budget;
    },
    maxBudget,
    get plan() {
      return plan;
    },
    get bytes() {
      return model.plan.bytes + sumBytes(plan);
    },
    grow(rows) {
      if (rows > budget) allocate(Math.min(rows, maxBudget));
    },
    lastStates: (batch) =>
      inTurn("last", async () => {
        const { count } = await runToStates(batch);
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
        const { params, all, rows, steps } = await begin(batch);
        for (let layer = 0; layer <= deepest; layer++) {
          if (layer > 0) {
            const encoder = device.gpu.createCommandEncoder();
            const pass = encoder.beginComputePass();
            recordBlock(model, kernels, workspace, params, pass, blocks[layer - 1], all, null, steps);
            pass.end();
            device.submit(encoder);
          }
          if (layers.includes(layer))
            onLayer(layer, new Float32Array(await device.read(workspace.x, rows * d * 4, workspace.staging)));
        }
      }),
    cosines: (batch, pairs) =>
      inTurn("scores", async () => {
        const outside = pairs.flat().find((sequence) => !(sequence >= 0 && sequence < batch.sequences.length));
        if (outside !== undefined || pairs.length > batch.sequences.length || cosinePipeline === undefined) {
          throw new StratumError(
            "usage/pairs",
            outside === undefined
              ? `${pairs.length} pairs of ${batch.sequences.length} sequences`
              : `a pair names sequence ${outside} of a batch of ${batch.sequences.length}`,
            "give indices into the batch's sequences, at most one pair a sequence",
          );
        }
        const { params } = await runToStates(batch);
        device.write(workspace.pairs, Uint32Array.from(pairs.flat()));
        const encoder = device.gpu.createCommandEncoder();
        const pass = encoder.beginComputePass();
        dispatch(
          device,
          pass,
          cosinePipeline,
          { x: workspace.states, pairs: workspace.pairs, out: workspace.scores, params: params(pairs.length) },
          pairs.length,
        );
        pass.end();
        device.submit(encoder);
        const result = new Float32Array(await device.read(workspace.scores, pairs.length * 8, workspace.staging));
        return Float32Array.from(pairs, (_, i) => (result[2 * i + 1] === 1 ? result[2 * i] : Number.NaN));
      }),
    [Symbol.dispose]() {
      disposed = true;
      release();
    },
  };
  return runner;
}

/** (positions, E/2) pairs (cos, sin), made in float64: position times inverse frequency. */
function ropeTable(frequencies: Float64Array, positions: number): Float32Array<ArrayBuffer> {
  const half = frequencies.length;
  const table = new Float32Array(positions * half * 2);
  for (let position = 0; position < positions; position++) {
    for (let i = 0; i < half; i++) {
      table[2 * (position * half + i)] = Math.cos(position * frequencies[i]);
      table[2 * (position * half + i) + 1] = Math.sin(position * frequencies[i]);
    }
  }
  return table;
}
