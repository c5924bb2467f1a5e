/** What a scorer does while its GPU device is lost: it is trained, scores and ranks to the bytes of an undisturbed run. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { loadModel } from "../../engine/hidden-states.ts";
import { createEngine } from "../../engine/model.ts";
import { readCheckpoint } from "../../scorer/checkpoint.ts";
import type { Fields } from "../../scorer/lists.ts";
import { parameterLayout } from "../../scorer/parameter-layout.ts";
import { rank } from "../../scorer/rank.ts";
import { scoreFeatures } from "../../scorer/scorer.ts";
import type { SavedScorer } from "../../scorer/scorer-file.ts";
import { initialWeights } from "../../scorer/scorer-spec.ts";
import type { TrainRun } from "../../scorer/train-options.ts";
import { type Folder, temporaryFolder, writeTinyTextModel } from "../support/cli.ts";
import { DIM, failure, lasting, OPTIONS, outcomeOf, source } from "../support/training.ts";

/** Every device compiles its kernels anew: those without attention are the fewest. */
const SPEC = { ...OPTIONS.spec, head: "pointwise" } as const;

let folder: Folder;
/** What a training without a fault comes to. */
let undisturbed: Awaited<ReturnType<typeof outcomeOf>>;
beforeAll(async () => {
  folder = await temporaryFolder();
  undisturbed = await outcomeUnder("");
});
afterAll(() => folder[Symbol.asyncDispose]());

async function outcomeUnder(faults: string, run: TrainRun = {}) {
  using engine = await createEngine({ faults });
  const found = await outcomeOf(engine, { spec: SPEC }, run);
  expect(engine.device.liveBytes).toBe(0);
  return { ...found, lost: engine.device.losses };
}

describe("a device that is lost in a training", () => {
  it.each([
    ["before a checkpoint", 20],
    ["right after one", 60],
    ["between two, an epoch's end behind it", 70],
  ])("%s: it goes on from the last one, and says from which step", async (_, submission) => {
    const path = join(folder.path, `${submission}.safetensors`);
    const from: number[] = [];
    const steps: number[] = [];
    const found = await outcomeUnder(`device-lost@${submission}`, {
      checkpoint: { path, everySteps: 4, resume: false },
      onRepeat: (step) => {
        from.push(step);
      },
      onCheckpoint: async (step) => void steps.push(step),
    });
    expect(found.lost).toBe(1);
    expect(lasting(found)).toEqual({ ...lasting(undisturbed), lost: 1 });
    // The steps after the checkpoint are reported twice, with the same losses.
    const repeated = found.losses.length - undisturbed.losses.length;
    const at = found.losses.findIndex((loss, i) => loss !== undisturbed.losses[i]);
    expect(from).toHaveLength(1);
    expect(from[0]! % 4).toBe(0);
    if (repeated > 0) expect(found.losses.slice(at - repeated, at)).toEqual(found.losses.slice(at, at + repeated));
    expect([...found.losses.slice(0, from[0]), ...found.losses.slice(from[0]! + repeated)]).toEqual(undisturbed.losses);
    expect(steps.at(-1)).toBe(found.steps);
    const { progress } = await readCheckpoint(path, parameterLayout(SPEC).count, DIM);
    expect(progress.step).toBe(found.steps);
  });

  it("without checkpoints: from where its state was last read, or from its beginning", async () => {
    const from: number[] = [];
    const found = await outcomeUnder("device-lost@45", { onRepeat: (step) => void from.push(step) });
    expect([found.lost, from]).toEqual([1, [0]]);
    expect(lasting(found)).toEqual({ ...lasting(undisturbed), lost: 1 });
  });

  it("again and again: an error, and the checkpoint resumes on another day", async () => {
    const path = join(folder.path, "hopeless.safetensors");
    const checkpoint = { path, everySteps: 4, resume: false };
    expect(await failure(outcomeUnder("device-lost@60+", { checkpoint }))).toEqual({
      code: "device/lost",
      message: expect.stringContaining("3 times in a row"),
    });
    expect(existsSync(path)).toBe(true);
    const resumed = await outcomeUnder("", { checkpoint: { ...checkpoint, resume: true } });
    expect(lasting(resumed)).toEqual(lasting(undisturbed));
    expect(resumed.losses.length).toBeLessThan(undisturbed.losses.length);
  });

  it("has no memory: an error that names what to lower", async () => {
    const { code, message } = await failure(outcomeUnder("out-of-memory@5"));
    expect([code, message]).toEqual(["memory/out-of-memory", expect.stringContaining("a fault on purpose")]);
  });
});

it("a scorer whose device is lost scores again, with the same bits", async () => {
  const { weights, standardisation } = undisturbed.result;
  const scoresUnder = async (faults: string) => {
    using engine = await createEngine({ faults });
    const scores = await scoreFeatures(engine, { spec: SPEC, weights, standardisation }, source);
    expect(engine.device.losses).toBe(faults === "" ? 0 : 1);
    return scores;
  };
  expect(await scoresUnder("device-lost@2")).toEqual(await scoresUnder(""));
});

describe("a list that is cut over several batches, ranked by a scorer", () => {
  const words = (n: number, seed: number) => Array.from({ length: n }, (_, i) => `word${(i * seed) % 7}`).join(" ");
  const lists: readonly Fields[] = [
    { instruction: words(3, 1), candidates: ["One.", "Two."] },
    { instruction: words(5, 2), candidates: Array.from({ length: 12 }, (_, i) => words(2 + i, i + 1)) },
    { instruction: words(4, 3), candidates: ["Three.", "Four."] },
  ];

  it("has its states once, wherever the device is lost or memory is short", async () => {
    await using tiny = await writeTinyTextModel({ layers: 1 });
    const spec = { ...SPEC, dim: 64 };
    const scorer: SavedScorer = {
      ...{ spec, weights: initialWeights(spec, 1), base: null, layer: 0, pooling: null, system: null },
      ...{ standardise: null, training: {} },
    };
    const rankedUnder = async (faults: string) => {
      using engine = await createEngine({ faults });
      await using model = await loadModel(engine, tiny.directory, { layer: 0 });
      const records = await rank(model, lists, { scorer, batchTokens: 128 });
      return { records, generation: engine.device.generation };
    };
    const whole = await rankedUnder("");
    expect(whole.records.map(({ results }) => results.length)).toEqual([2, 12, 2]);
    for (const submission of [2, 5, 7, 9, 11]) {
      for (const kind of ["device-lost", "submit-out-of-memory"]) {
        const { records, generation } = await rankedUnder(`${kind}@${submission}`);
        expect([kind, submission, generation, records]).toEqual([kind, submission, 2, whole.records]);
      }
    }
  });
});
