/** Timed training steps on features of random numbers, with the matmul that the same adapter reaches in the same run. */
import type { Engine } from "../engine/model.ts";
import { sumBytes } from "../engine/planned-buffer.ts";
import { timeKernel } from "../engine/run-kernel.ts";
import { bufferTile, matmul } from "../kernels/matmul.ts";
import { seededRandom } from "../kernels/random.ts";
import type { FeatureSource } from "./feature-source.ts";
import { identity } from "./feeder.ts";
import { flatten } from "./parameter-layout.ts";
import { epochOrder } from "./sampling.ts";
import { initialWeights, type ScorerSpec } from "./scorer-spec.ts";
import { BATCH_ROWS, createTrainer, LOG_SLOTS, planTrainer } from "./trainer.ts";

export interface TrainBenchOptions {
  readonly spec: ScorerSpec;
  readonly lists: number;
  /** Candidates of every list. */
  readonly candidates: number;
  readonly batchLists: number;
  readonly dropout: number;
  /** Steps of a counted run, and runs. */
  readonly steps: number;
  readonly runs: number;
  readonly residentLimit: number;
  readonly onPlan?: (bytes: number, resident: boolean) => void;
  readonly onRun?: () => void;
}

export interface TrainBench {
  /** Milliseconds a step, of every run. */
  readonly stepMs: readonly number[];
  /** Operations of a step, forward and backward. */
  readonly stepFlops: number;
  readonly stepsPerEpoch: number;
  /** Milliseconds of the projection's matmul over a step's rows, a run each, and its operations. */
  readonly matmulMs: readonly number[];
  readonly matmulFlops: number;
  readonly plannedBytes: number;
  readonly liveBytes: number;
}

/** Lists of uniform numbers, the same at every reading; a third of the candidates is safe. */
export function randomFeatures(dim: number, lists: number, candidates: number): FeatureSource {
  // One block of numbers serves all lists, each from another place: making a gigabyte of them would take longer than the training.
  const random = seededRandom(1);
  const block = Float32Array.from({ length: 1 << 20 }, () => 2 * random() - 1);
  const size = (1 + candidates) * dim;
  return {
    dim,
    lists,
    offsets: Uint32Array.from({ length: lists + 1 }, (_, b) => b * candidates),
    labels: Float32Array.from({ length: lists * candidates }, (_, i) => (i % 3 === 0 ? 1 : 0)),
    async readList(b, target, at = 0) {
      for (let done = 0, from = (b * 7919) % block.length; done < size; from = 0) {
        const part = block.subarray(from, from + size - done);
        target.set(part, at + done);
        done += part.length;
      }
    },
  };
}

/** Operations of one step: the projection forward and by its weight, every other layer forward and by both, attention. */
export function stepFlops({ head, dim, width, ffn }: ScorerSpec, lists: number, candidates: number): number {
  const rows = lists * (1 + candidates);
  const inner = 2 * width * ffn + (head === "listwise" ? 4 * width * width : 0);
  const pairs = head === "listwise" ? lists * (1 + candidates) ** 2 : 0;
  // Scores and values forward; their two gradients each, and the scores once more for either side, backward.
  const attention = 2 * pairs * width * (2 + 7);
  return 2 * rows * (2 * dim * width + 3 * inner) + attention;
}

/** @throws {StratumError} `memory/...`, `kernel/compile` */
export async function benchTrain(engine: Engine, options: TrainBenchOptions): Promise<TrainBench> {
  const { device, pipelines, target } = engine;
  const { spec, lists, candidates, batchLists, steps, runs } = options;
  const source = randomFeatures(spec.dim, lists, candidates);
  const stepRows = batchLists * (1 + candidates);
  const sizes = {
    spec,
    rows: Math.max(1 + candidates, BATCH_ROWS),
    stepLists: batchLists,
    residentLimit: options.residentLimit,
  };
  const planned = planTrainer(source, device.info.limits, sizes);
  const plannedBytes = sumBytes(planned);
  options.onPlan?.(
    plannedBytes,
    planned.some(({ label }) => label.startsWith("features.store")),
  );
  using trainer = await createTrainer(engine, source, {
    ...sizes,
    ...{
      loss: "kl",
      dropout: options.dropout,
      inputDropout: 0,
      clip: 1,
      weightDecay: 1e-4,
      seed: 1,
      standardisation: identity(spec.dim),
    },
  });
  const { layout, buffers } = trainer.network;
  const zero = new Float32Array(layout.count);
  trainer.setState({ weights: flatten(layout, initialWeights(spec, 1)), first: zero, second: zero });
  await trainer.feeder.load(buffers["x"]);
  const liveBytes = device.liveBytes;
  const { dim, width } = spec;
  const kernel = matmul({
    ...{ k: dim, n: width, weight: "f32", epilogue: "store", bias: false, outStride: width, outOffset: 0 },
    ...bufferTile(target, { k: dim, n: width, epilogue: "store" }),
  });
  const values = (count: number) => new Float32Array(count).fill(0.5);
  const operands = { x: values(stepRows * dim), weight: values(width * dim), out: values(stepRows * width) };
  const order = epochOrder(lists, 1, 0);
  const [stepMs, matmulMs]: [number[], number[]] = [[], []];
  let step = 0;
  for (let run = 0; run <= runs; run++) {
    const begin = performance.now();
    for (let i = 0; i < steps; i++, step++) {
      const drawn = Array.from({ length: batchLists }, (_, at) => ({ list: order[(step * batchLists + at) % lists] }));
      await trainer.step(step, drawn, 1e-3);
      if (trainer.pending === LOG_SLOTS || i === steps - 1) await trainer.readLog();
    }
    const mean = (performance.now() - begin) / steps;
    const times = await timeKernel(device, pipelines, kernel, operands, stepRows, 3);
    // The first run pays for compilation.
    if (run > 0) {
      stepMs.push(mean);
      matmulMs.push(...times);
    }
    options.onRun?.();
  }
  return {
    stepMs,
    stepFlops: stepFlops(spec, batchLists, candidates),
    stepsPerEpoch: Math.ceil(lists / batchLists),
    matmulMs,
    matmulFlops: 2 * stepRows * dim * width,
    plannedBytes,
    liveBytes,
  };
}
