/**
 * One optimisation step after another on the GPU: weights, gradients, moments and features stay there; what comes back
 * is a row of the log every few steps.
 */

import type { DeviceLimits } from "../engine/device-info.ts";
import type { DeviceBuffer } from "../engine/device-memory.ts";
import type { Engine } from "../engine/model.ts";
import type { PlannedBuffer } from "../engine/planned-buffer.ts";
import { Recorder } from "../engine/recorder.ts";
import { ADAMW_HYPER, adamw } from "../kernels/adamw.ts";
import { PARAMS_BYTES } from "../kernels/kernel.ts";
import { LIST_LOSS_AUX_BYTES, type LossName, listLoss, listLossDefaults } from "../kernels/list-loss.ts";
import { SQUARE_SUM_PARTS, squareSum, stepStatus } from "../kernels/step-status.ts";
import { type FeatureSource, listLength } from "./feature-source.ts";
import { createFeeder, type DrawnList, drawnRows, type Feeder, planFeeder, type Standardisation } from "./feeder.ts";
import { allocate, createNetwork, type Network, planNetwork } from "./network.ts";
import { parameterLayout } from "./parameter-layout.ts";
import type { ScorerSpec } from "./scorer-spec.ts";

export interface TrainerOptions {
  readonly spec: ScorerSpec;
  readonly loss: LossName;
  readonly dropout: number;
  /** Rate of the dropout at the features. */
  readonly inputDropout: number;
  /** Bound of the gradient's global norm; 0: none. */
  readonly clip: number;
  readonly weightDecay: number;
  /** Of the dropout masks; 32 bits. */
  readonly seed: number;
  readonly standardisation: Standardisation;
  /** Rows of a batch on the GPU; a step of more runs in several. */
  readonly rows: number;
  /** Lists of a step, at most. */
  readonly stepLists: number;
  /** Bytes of features that may stay on the GPU. */
  readonly residentLimit: number;
  /** The lists that will be drawn or evaluated; default all. */
  readonly lists?: readonly number[] | undefined;
}

/** AdamW's state, flat as the network's weights. */
export interface OptimizerState {
  readonly weights: Float32Array<ArrayBuffer>;
  readonly first: Float32Array<ArrayBuffer>;
  readonly second: Float32Array<ArrayBuffer>;
}

/** What a step told: the loss and the gradient's norm before its update. */
export interface StepRecord {
  readonly step: number;
  readonly loss: number;
  readonly gradNorm: number;
  /** Neither holds NaN or infinity. Once false, the weights stay as they are. */
  readonly sound: boolean;
}

/** Betas and eps of torch.optim.AdamW. */
const [BETA1, BETA2, EPS] = [0.9, 0.999, 1e-8];

/** Batches that may wait for the GPU; fewer where each brings its features. */
const [MOST_QUEUED, MOST_QUEUED_STREAMED] = [64, 8];

/** Rows of a batch on the GPU, unless a list is longer. */
export const BATCH_ROWS = 1024;

/** Steps between two read-backs, at most. */
export const LOG_SLOTS = 32;

export interface Trainer extends Disposable {
  readonly network: Network;
  readonly feeder: Feeder;
  /** Bytes on the GPU. */
  readonly bytes: number;
  /** Steps that wait in the log; {@link readLog} empties it. */
  readonly pending: number;
  setState(state: OptimizerState): void;
  state(): Promise<OptimizerState>;
  /** Records one step over the drawn lists; the log must have room. @param lr the step's learning rate */
  step(step: number, lists: readonly DrawnList[], lr: number): Promise<void>;
  /** The steps since the last call, in order. @throws {StratumError} what the device latched */
  readLog(): Promise<StepRecord[]>;
  /** Scores of whole lists, (m) each, and their losses, without dropout. */
  evaluate(lists: readonly number[]): Promise<{ scores: Float32Array[]; losses: Float32Array }>;
  /** Gradients of one batch of lists without an update, flat: for checks. */
  gradients(lists: readonly DrawnList[]): Promise<{ loss: number; grads: Float32Array<ArrayBuffer> }>;
}

/** The plan of everything that training holds: network, features and the trainer's own buffers. */
export function planTrainer(
  source: FeatureSource,
  limits: DeviceLimits,
  options: Pick<TrainerOptions, "spec" | "rows" | "stepLists" | "residentLimit" | "lists">,
): PlannedBuffer[] {
  return [
    ...planNetwork(options.spec, options.rows, true).values(),
    ...planFeeder(source, limits, options).values(),
    ...planState(options).values(),
  ];
}

function planState({
  spec,
  rows,
  stepLists,
}: Pick<TrainerOptions, "spec" | "rows" | "stepLists">): Map<string, PlannedBuffer> {
  const { count } = parameterLayout(spec);
  const floats: Readonly<Record<string, number>> = {
    ...{ first: count, second: count, labels: rows, lists: 2 * rows, batchLosses: rows },
    ...{ aux: (LIST_LOSS_AUX_BYTES / 4) * rows, losses: stepLists, lossHyper: 2, hyper: ADAMW_HYPER.length, clip: 1 },
    ...{ partials: SQUARE_SUM_PARTS, status: 2, log: 4 * LOG_SLOTS, counter: 3 },
  };
  const plan = new Map<string, PlannedBuffer>();
  for (const [name, size] of Object.entries(floats))
    plan.set(name, { label: `train.${name}`, bytes: 4 * size, use: "storage" });
  for (const name of ["listParams", "stepParams"])
    plan.set(name, { label: `train.${name}`, bytes: PARAMS_BYTES, use: "uniform" });
  const most = Math.max(count, 2 * rows, stepLists, 4 * LOG_SLOTS);
  plan.set("readback", { label: "train.readback", bytes: 4 * most, use: "readback" });
  return plan;
}

/** Allocates everything for training. @throws {StratumError} `memory/...`, `kernel/compile` */
export async function createTrainer(engine: Engine, source: FeatureSource, options: TrainerOptions): Promise<Trainer> {
  const { device, pipelines, target } = engine;
  const { spec, rows, seed, clip } = options;
  const stack: Disposable[] = [];
  const release = () => {
    for (const each of stack.splice(0).reverse()) each[Symbol.dispose]();
  };
  try {
    const network = await createNetwork(engine, spec, { rows, training: options });
    stack.push(network);
    const feeder = await createFeeder(engine, source, options);
    stack.push(feeder);
    const { buffers, release: releaseState } = allocate(device, planState(options));
    stack.push({ [Symbol.dispose]: releaseState });
    const { first, second, labels, lists, batchLosses, aux, losses, lossHyper, hyper, partials } = buffers;
    const { status, log, counter, listParams, stepParams, readback } = buffers;
    const { count } = network.layout;
    device.write(buffers["clip"], Float32Array.of(clip));
    const [lossPipe, squarePipe, statusPipe, adamwPipe] = await Promise.all(
      [
        listLoss({ loss: options.loss, ...listLossDefaults(target) }),
        squareSum({ count, subgroup: target.subgroupSize }),
        stepStatus(),
        adamw({ count }),
      ].map((kernel) => pipelines.get(kernel)),
    );
    const grads = network.grads as DeviceBuffer;
    const logged: number[] = [];

    /** Lists in batches of at most `rows` rows. */
    function batchesOf(drawn: readonly DrawnList[]): DrawnList[][] {
      const batches: DrawnList[][] = [];
      let size = rows + 1;
      for (const each of drawn) {
        const own = drawnRows(source, each);
        if (size + own > rows) {
          batches.push([]);
          size = 0;
        }
        batches[batches.length - 1].push(each);
        size += own;
      }
      return batches;
    }

    /** Uploads a batch's shape and labels and feeds its features. */
    async function begin(recorder: Recorder, batch: readonly DrawnList[], weight: number): Promise<void> {
      const sizes = batch.map((drawn) => drawnRows(source, drawn));
      const total = sizes.reduce((sum, size) => sum + size, 0);
      const [spans, extents, values] = [
        new Uint32Array(2 * total),
        new Uint32Array(2 * batch.length),
        new Float32Array(total),
      ];
      let row = 0;
      for (const [b, { list, candidates }] of batch.entries()) {
        extents.set([row, row + sizes[b]], 2 * b);
        for (let r = 0; r < sizes[b]; r++) {
          spans.set([row, row + sizes[b]], 2 * (row + r));
          if (r > 0) values[row + r] = source.labels[source.offsets[list] + (candidates?.[r - 1] ?? r - 1)];
        }
        row += sizes[b];
      }
      await feeder.feed(recorder, batch, network.buffers["x"]);
      network.begin(spans);
      device.write(lists, extents);
      device.write(labels, values);
      device.write(lossHyper, Float32Array.of(spec.tau, weight));
      device.write(listParams, Uint32Array.of(batch.length, 0, 0, 0));
    }

    function lossPass(recorder: Recorder, batch: readonly DrawnList[]): void {
      const { cosines, scoreGrads } = network.buffers;
      const bound = { cosines, labels, lists, hyper: lossHyper, losses: batchLosses, grads: scoreGrads, aux };
      const sizes = batch.map((drawn) => drawnRows(source, drawn));
      const inputs = sizes.reduce((sum, size) => sum + size, 0);
      const pairs = sizes.reduce((sum, size) => sum + (size - 1) ** 2, 0);
      const extent = { outputs: batch.length, inputs, pairs };
      recorder.dispatch(lossPipe, { ...bound, params: listParams }, batch.length, { extent });
    }

    /** Waits now and then: what is uploaded for batches that are queued takes memory until they are done. */
    let queued = 0;
    async function throttle(): Promise<void> {
      if (++queued < (feeder.resident ? MOST_QUEUED : MOST_QUEUED_STREAMED)) return;
      queued = 0;
      await device.idle();
    }

    /** Accumulates the gradients of a step's lists. */
    async function accumulate(step: number, drawn: readonly DrawnList[]): Promise<void> {
      let done = 0;
      let firstRow = 0;
      for (const batch of batchesOf(drawn)) {
        const recorder = new Recorder(device, "step");
        if (done === 0) recorder.clear(grads);
        await begin(recorder, batch, 1 / drawn.length);
        device.write(counter, Uint32Array.of(step, seed, firstRow));
        network.forward(recorder, counter);
        lossPass(recorder, batch);
        network.backward(recorder, counter);
        recorder.copy(batchLosses, 0, losses, 4 * done, 4 * batch.length);
        await recorder.submit();
        await throttle();
        done += batch.length;
        firstRow += batch.reduce((sum, each) => sum + drawnRows(source, each), 0);
      }
    }

    async function read(buffer: DeviceBuffer, floats: number): Promise<Float32Array<ArrayBuffer>> {
      return new Float32Array(await device.read(buffer, 4 * floats, readback));
    }

    return {
      network,
      feeder,
      bytes: network.bytes + feeder.bytes + Object.values(buffers).reduce((sum, { size }) => sum + size, 0),
      get pending() {
        return logged.length;
      },
      setState(state) {
        device.write(network.weights, state.weights);
        device.write(first, state.first);
        device.write(second, state.second);
        device.write(status, Float32Array.of(1, 0));
      },
      async state() {
        const [weights, m, v] = [
          await read(network.weights, count),
          await read(first, count),
          await read(second, count),
        ];
        return { weights, first: m, second: v };
      },
      async step(step, drawn, lr) {
        if (logged.length === LOG_SLOTS) throw new Error("the log is full");
        await accumulate(step, drawn);
        const t = step + 1;
        const values: Readonly<Record<(typeof ADAMW_HYPER)[number], number>> = {
          keep: 1 - lr * options.weightDecay,
          stepSize: lr / (1 - BETA1 ** t),
          beta1: BETA1,
          beta2: BETA2,
          rootCorrection: Math.sqrt(1 - BETA2 ** t),
          eps: EPS,
          newFirst: 1 - BETA1,
          newSecond: 1 - BETA2,
        };
        device.write(
          hyper,
          Float32Array.from(ADAMW_HYPER, (name) => values[name]),
        );
        device.write(stepParams, Uint32Array.of(drawn.length, logged.length, 0, 0));
        const recorder = new Recorder(device, "step");
        recorder.dispatch(squarePipe, { x: grads, partials }, 1);
        const told = { losses, partials, clip: buffers["clip"], log, status, params: stepParams };
        recorder.dispatch(statusPipe, told, 1);
        const bound = { grads, hyper, status, weights: network.weights, first, second };
        recorder.dispatch(adamwPipe, bound, 1);
        await recorder.submit();
        logged.push(step);
      },
      async readLog() {
        const steps = logged.splice(0);
        if (steps.length === 0) return [];
        const values = await read(log, 4 * steps.length);
        queued = 0;
        return steps.map((step, i) => ({
          step,
          loss: values[4 * i],
          gradNorm: values[4 * i + 1],
          sound: values[4 * i + 2] === 1,
        }));
      },
      async evaluate(chosen) {
        const scores: Float32Array[] = [];
        const found = new Float32Array(chosen.length);
        for (const batch of batchesOf(chosen.map((list) => ({ list })))) {
          const recorder = new Recorder(device, "evaluation");
          await begin(recorder, batch, 1);
          network.forward(recorder);
          lossPass(recorder, batch);
          await recorder.submit();
          const total = batch.reduce((sum, each) => sum + drawnRows(source, each), 0);
          const cosines = await read(network.buffers["cosines"], 2 * total);
          found.set(await read(batchLosses, batch.length), scores.length);
          let row = 0;
          for (const { list } of batch) {
            const m = listLength(source, list);
            const at = row + 1;
            scores.push(Float32Array.from({ length: m }, (_, i) => cosines[2 * (at + i)]));
            row += m + 1;
          }
        }
        return { scores, losses: found };
      },
      async gradients(drawn) {
        await accumulate(0, drawn);
        const values = await read(losses, drawn.length);
        const loss = values.reduce((sum, value) => sum + value, 0) / drawn.length;
        return { loss, grads: await read(grads, count) };
      },
      [Symbol.dispose]: release,
    };
  } catch (cause) {
    release();
    throw cause;
  }
}
