/** The training loop: the same bytes however it is run, stopped and cut; what it holds; what it refuses. */
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createEngine } from "../../engine/model.ts";
import { StratumError } from "../../errors.ts";
import { readCheckpoint } from "../../scorer/checkpoint.ts";
import { arraySource, type FeatureSource } from "../../scorer/feature-source.ts";
import { identity } from "../../scorer/feeder.ts";
import { flatten, parameterLayout } from "../../scorer/parameter-layout.ts";
import { initialWeights } from "../../scorer/scorer-spec.ts";
import { trainScorer } from "../../scorer/train.ts";
import type { TrainOptions, TrainPlan, TrainRun } from "../../scorer/train-options.ts";
import { createTrainer } from "../../scorer/trainer.ts";
import { type Folder, temporaryFolder } from "../support/cli.ts";
import { bytesOf } from "../support/features.ts";
import { plantedLists } from "../support/planted.ts";
import { DIM, failure, features, lasting, OPTIONS, outcomeOf, STEPS_AN_EPOCH, source } from "../support/training.ts";

const engine = await createEngine({});
afterAll(() => engine[Symbol.dispose]());

let folder: Folder;
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());

const { spec } = OPTIONS;
const outcome = (change?: Partial<TrainOptions>, run?: TrainRun, from?: FeatureSource) =>
  outcomeOf(engine, change, run, from);

describe("one seed", () => {
  it("gives the same bytes twice, another seed other ones", async () => {
    const [first, second, other] = [await outcome(), await outcome(), await outcome({ seed: 6 })];
    expect(lasting(second)).toEqual(lasting(first));
    expect(second.losses).toEqual(first.losses);
    expect(other.last).not.toBe(first.last);
    expect(other.losses[0]).not.toBe(first.losses[0]);
    expect(first.best).not.toBeNull();
  });

  it.each(["features stay on the GPU", "features are streamed"])(
    "%s: the plan's bytes are the live bytes at every step, and the result is the same",
    async (how) => {
      const live = new Set<number>();
      let plan: TrainPlan | undefined;
      const before = engine.device.liveBytes;
      const streamed = how.endsWith("streamed");
      const result = await trainScorer(engine, source, OPTIONS, {
        residentLimit: streamed ? 1 : undefined,
        onPlan: (found) => {
          plan = found;
        },
        onStep: () => live.add(engine.device.liveBytes - before),
      });
      expect(plan?.resident).toBe(!streamed);
      expect([...live]).toEqual([plan?.bytes]);
      expect(engine.device.liveBytes).toBe(before);
      const stayed = await outcome();
      expect(
        bytesOf(flatten(parameterLayout(spec), result.last)).every(
          (byte, i) => byte === Buffer.from(stayed.last, "base64")[i],
        ),
      ).toBe(true);
      expect(result.epochs).toEqual(stayed.epochs);
    },
  );

  it("draws other lists in other epochs, and all lists in order in full batches", async () => {
    const { losses, result } = await outcome({ batchLists: "all", subLists: 0, dropout: 0, lr: 0, epochs: 3 });
    expect(result.plan.stepsPerEpoch).toBe(1);
    // Nothing is random and nothing moves: the same loss to the bit.
    expect(new Set(losses).size).toBe(1);
    const mini = await outcome({ subLists: 0, dropout: 0, lr: 0, epochs: 2 });
    expect(mini.losses.slice(0, STEPS_AN_EPOCH)).not.toEqual(mini.losses.slice(STEPS_AN_EPOCH));
    expect(mini.epochs[0]?.loss).toBeCloseTo(losses[0]!, 1);
  });
});

it("gives one batch's gradients, within f32's noise, when a step is cut into several", async () => {
  const lists = Array.from({ length: source.lists }, (_, list) => ({ list }));
  const longest = 1 + 8;
  const found = [];
  for (const rows of [1024, 40, longest]) {
    const shape = { rows, stepLists: lists.length, residentLimit: 1e9 };
    const options = { ...OPTIONS, ...shape, standardisation: identity(DIM), seed: 3, dropout: 0.1 };
    using trainer = await createTrainer(engine, source, options);
    const weights = flatten(trainer.network.layout, initialWeights(spec, 1));
    trainer.setState({ weights, first: new Float32Array(weights.length), second: new Float32Array(weights.length) });
    await trainer.feeder.load(trainer.network.buffers["x"]!);
    found.push(await trainer.gradients(lists));
  }
  const [whole, ...cut] = found;
  const norm = Math.hypot(...whole!.grads);
  for (const { loss, grads } of cut) {
    expect(Math.abs(loss - whole!.loss)).toBeLessThan(1e-6 * whole!.loss);
    const off = Math.hypot(...grads.map((g, i) => g - whole!.grads[i]!));
    // 60 lists' sums in another order: a few ulp of the norm.
    expect(off / norm).toBeLessThan(1e-6);
    expect(norm).toBeGreaterThan(1e-3);
  }
});

describe("a learning rate that is too high", () => {
  it.each(
    [10, 1e3, 1e10, 1e30, 1e39].flatMap((lr) =>
      [0, 1].flatMap((clip) => [
        { lr, clip, steps: 1 },
        { lr, clip, steps: 24 },
      ]),
    ),
  )(
    "$lr with clip $clip for $steps steps ends as diverged, or with finite weights and a sane loss",
    async ({ lr, clip, steps }) => {
      for (const validation of [0, 0.2]) {
        const path = join(folder.path, `lr-${lr}-${clip}-${steps}-${validation}.safetensors`);
        const change = { lr, clip, steps, validation, warmup: 0 };
        const ended = await outcome(change, { checkpoint: { path, everySteps: 5, resume: false } }).catch(
          (thrown: unknown) => thrown,
        );
        // The last good checkpoint loads, whatever became of the run; reading it refuses NaN.
        const { progress } = await readCheckpoint(path, parameterLayout(spec).count, DIM);
        if (ended instanceof StratumError) {
          expect(ended.code).toBe("train/diverged");
          expect(ended.message).toContain(`after ${progress.step} steps, is ${path}`);
          expect(ended.message).toMatch(/at step \d+: the loss/);
          expect(ended.message).toContain(`(learning rate ${lr})`);
          continue;
        }
        const { result } = ended as Awaited<ReturnType<typeof outcome>>;
        for (const values of [...result.weights.values(), ...result.last.values()])
          expect(values.every(Number.isFinite)).toBe(true);
        // Cosines are bounded, and so is the loss: at most 2 / tau above the best.
        for (const { loss, validation: held } of result.epochs)
          for (const value of [loss, held?.loss ?? 0]) expect(value).toBeLessThan(2 / spec.tau + Math.log(8));
      }
    },
  );

  it("of 1e10 is always diverged", async () => {
    const { code } = await failure(outcome({ lr: 1e10, warmup: 0 }));
    expect(code).toBe("train/diverged");
  });
});

describe("lists", () => {
  it("that teach nothing play no part, however long they are", async () => {
    const extra = plantedLists({ lists: 1, dim: DIM, lengths: [1100, 1100], seed: 4 });
    const join2 = <T extends Float32Array>(a: T, b: T) => Float32Array.from([...a, ...b]);
    const longer = {
      dim: DIM,
      inst: join2(features.inst, extra.inst),
      resp: join2(features.resp, extra.resp),
      labels: join2(features.labels, extra.labels.fill(1)),
      offsets: Uint32Array.from([...features.offsets, features.labels.length + 1100]),
    };
    const [alone, beside] = [await outcome(), await outcome({}, {}, arraySource(longer))];
    expect(lasting(beside)).toEqual(lasting(alone));
    expect(beside.result.plan.leftOut).toBe(1);
  });

  it("of one instruction are all trained on, or all validate", async () => {
    const instructions = Array.from({ length: source.lists }, (_, b) => `about ${b % 13}`);
    const { result } = await outcome({ validation: 0.3, epochs: 1 }, { instructions });
    const [train, held] = [result.trainLists, result.validationLists].map(
      (lists) => new Set(lists.map((b) => instructions[b])),
    );
    expect([...train!].filter((text) => held!.has(text))).toEqual([]);
    expect([...result.trainLists, ...result.validationLists].sort((a, b) => a - b)).toEqual(
      Array.from({ length: source.lists }, (_, b) => b),
    );
    expect(result.validationLists.length).toBeGreaterThanOrEqual(16);
    expect(result.validationLists.length).toBeLessThanOrEqual(20);
  });

  it("that cannot be trained on are named", async () => {
    const one = (labels: number[]) =>
      arraySource({
        ...{ dim: DIM, inst: features.inst.slice(0, DIM), resp: features.resp.slice(0, 3 * DIM) },
        ...{ labels: Float32Array.from(labels), offsets: Uint32Array.of(0, 3) },
      });
    const fails = async (labels: number[], change: Partial<TrainOptions> = {}) =>
      (await failure(outcome(change, {}, one(labels)))).code;
    expect(await fails([1, 1, 1])).toBe("list/no-contrast");
    expect(await fails([1, Number.NaN, 0])).toBe("list/no-contrast");
    expect(await fails([1, 2, 0], { loss: "any_positive" })).toBe("list/bad-labels");
    expect(await fails([-1, 0, 0])).toBe("list/bad-labels");
    const { code, message } = await failure(outcome({}, {}, one([1, 0, 0])));
    expect(code).toBe("list/too-few");
    expect(message).toContain("at least 2");
    const { result } = await outcome({ validation: 0, epochs: 1 }, {}, one([1, 0, 0]));
    expect([result.trainLists, result.best]).toEqual([[0], null]);
  });
});
