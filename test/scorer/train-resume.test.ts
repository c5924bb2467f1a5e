/** A training that is stopped and goes on: the same bytes, or the reason why not. */
import { cp, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createEngine } from "../../engine/model.ts";
import { arraySource, type FeatureSource } from "../../scorer/feature-source.ts";
import { initialWeights } from "../../scorer/scorer-spec.ts";
import { trainScorer } from "../../scorer/train.ts";
import type { TrainOptions, TrainRun } from "../../scorer/train-options.ts";
import { type Folder, temporaryFolder } from "../support/cli.ts";
import { failure, features, lasting, OPTIONS, outcomeOf, STEPS_AN_EPOCH, source } from "../support/training.ts";

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

describe("a run that is stopped", () => {
  /** Runs until `steps` are done, then stops by the signal. */
  async function stopAfter(steps: number, path: string, resume: boolean, change: Partial<TrainOptions> = {}) {
    const stop = new AbortController();
    const checkpoint = { path, everySteps: 4, resume };
    const options = { ...OPTIONS, ...change };
    return await trainScorer(engine, source, options, {
      checkpoint,
      signal: stop.signal,
      onStep: ({ step }) => {
        if (step + 1 >= steps) stop.abort();
      },
    });
  }

  it.each([
    { name: "in mini-batches with dropout, parts and patience", change: {} },
    {
      name: "in full batches without clip, by top-1",
      change: { batchLists: "all", clip: 0, select: "top1", epochs: 20 },
    },
    { name: "without validation or standardisation", change: { validation: 0, standardise: false, steps: 17 } },
    { name: "with a learned anchor and input dropout", change: { anchor: "learned", inputDropout: 0.3 } },
  ] as const)("goes on to the same bytes, stopped twice: $name", async ({ name, change }) => {
    const path = join(folder.path, `${name}.safetensors`);
    const whole = join(folder.path, `${name}-whole.safetensors`);
    const straight = await outcome(change, { checkpoint: { path: whole, everySteps: 4, resume: false } });
    const first = await stopAfter(3, path, false, change);
    const second = await stopAfter(11, path, true, change);
    expect([first.interrupted, second.interrupted]).toEqual([true, true]);
    expect(second.plan.from).toBe(first.steps);
    const { losses, ...resumed } = await outcome(change, { checkpoint: { path, everySteps: 4, resume: true } });
    expect(losses).toEqual(straight.losses.slice(second.steps));
    expect(lasting({ losses, ...resumed })).toEqual(lasting(straight));
    expect((await readFile(path)).equals(await readFile(whole))).toBe(true);
    // A finished run has nothing left to do, and says the same.
    const again = await outcome(change, { checkpoint: { path, everySteps: 4, resume: true } });
    expect([again.losses, lasting(again)]).toEqual([[], lasting(straight)]);
  });

  it("goes on from a checkpoint of any age: right after the start, within and at the end of an epoch", async () => {
    const straight = lasting(await outcome());
    const path = join(folder.path, "any.safetensors");
    const kept: string[] = [];
    await outcome(
      {},
      {
        checkpoint: { path, everySteps: 1, resume: false },
        onCheckpoint: async (step) => {
          // Called before the file is written: what lies there is the one before.
          const copy = join(folder.path, `any-${step}.safetensors`);
          if (step > 0) await cp(path, copy);
          if ([1, 2, STEPS_AN_EPOCH, STEPS_AN_EPOCH + 1].includes(step)) kept.push(copy);
        },
      },
    );
    expect(kept.length).toBe(4);
    for (const [i, copy] of kept.entries()) {
      const resumed = await outcome({}, { checkpoint: { path: copy, everySteps: 100, resume: true } });
      expect(resumed.result.plan.from).toBe([0, 1, STEPS_AN_EPOCH - 1, STEPS_AN_EPOCH][i]);
      expect(lasting(resumed)).toEqual(straight);
    }
  });

  describe("is refused", () => {
    const at = (name: string) => join(folder.path, name);
    const resume = (name: string) => ({ checkpoint: { path: at(name), everySteps: 4, resume: true } });
    beforeAll(() => stopAfter(3, at("stopped.safetensors"), false));

    it.each([
      [{ lr: 2e-3 }, "lr was 0.001, is 0.002"],
      [{ seed: 6 }, "seed was 5, is 6"],
      [{ loss: "listmle" }, 'loss was "kl", is "listmle"'],
      [{ dropout: 0 }, "dropout was 0.1, is 0"],
      [{ steps: 7 }, "steps was absent, is 7"],
      // Its tensors have other sizes: the reason is the option all the same.
      [{ spec: { ...spec, width: 16 } }, "spec was"],
    ] as const)("with %j", async (change, message) => {
      const found = await failure(outcome(change as Partial<TrainOptions>, resume("stopped.safetensors")));
      expect(found.code).toBe("train/other-run");
      expect(found.message).toContain(message);
    });

    it("with other data: one number of one state, one label, one list less, other instructions, other first weights, other kernels", async () => {
      const resp = features.resp.slice();
      resp[resp.length - 1]! += 1e-6;
      const labels = features.labels.slice();
      labels.copyWithin(features.offsets[3]!, features.offsets[3]! + 1, features.offsets[4]!).reverse();
      const lists = Array.from({ length: 59 }, (_, b) => b);
      // Each begun when it is waited for: a promise that fails before that is an error of its own.
      const cases: [string, () => Promise<unknown>][] = [
        ["states", () => outcome({}, resume("stopped.safetensors"), arraySource({ ...features, resp }))],
        ["labels", () => outcome({}, resume("stopped.safetensors"), arraySource({ ...features, labels }))],
        ["lists", () => outcome({}, { ...resume("stopped.safetensors"), lists })],
        [
          "instructions",
          () =>
            outcome({}, { ...resume("stopped.safetensors"), instructions: lists.concat(59).map((b) => `${b >> 1}`) }),
        ],
        ["init", () => outcome({}, { ...resume("stopped.safetensors"), init: initialWeights(spec, 9) })],
        ["kernels", () => outcome({}, { ...resume("stopped.safetensors"), kernels: "0123456789abcdef" })],
      ];
      for (const [name, begin] of cases) {
        const { code, message } = await failure(begin());
        expect([name, code]).toEqual([name, "train/other-run"]);
        expect(message).toContain(`: ${name} was `);
        expect(message).not.toContain(";");
      }
    });

    it("where the checkpoint is missing, cut, changed in a bit, or something else", async () => {
      expect((await failure(outcome({}, resume("missing.safetensors")))).code).toBe("train/no-checkpoint");
      const good = await readFile(at("stopped.safetensors"));
      await writeFile(at("cut.safetensors"), good);
      await truncate(at("cut.safetensors"), good.length - 5);
      const flipped = Buffer.from(good);
      flipped[good.length - 1000]! ^= 1;
      await writeFile(at("flipped.safetensors"), flipped);
      await writeFile(at("empty.safetensors"), "");
      await writeFile(at("text.safetensors"), "no checkpoint at all, but long enough");
      for (const name of ["cut", "flipped", "empty", "text"])
        expect([name, (await failure(outcome({}, resume(`${name}.safetensors`)))).code]).toEqual([
          name,
          "train/bad-checkpoint",
        ]);
    });
  });
});
