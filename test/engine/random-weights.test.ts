/** The control model: the real one's form, loaded and run as any other, without a learned weight. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { fingerprint } from "../../engine/fingerprint.ts";
import { hiddenStates, loadModel } from "../../engine/hidden-states.ts";
import { createEngine, type Engine } from "../../engine/model.ts";
import { openModelFiles } from "../../engine/model-files.ts";
import { randomWeights } from "../../engine/random-weights.ts";
import { goldenModel } from "../support/golden.ts";

const DEMO = goldenModel("demo").directory;
const IDS = [Int32Array.of(1, 500, 600, 700)];
const LAYER = 2;

let engine: Engine;
beforeAll(async () => {
  engine = await createEngine();
});
afterAll(() => engine[Symbol.dispose]());

/** The states, and what was read of the file for them. */
async function run(seed: number | null) {
  const files = await openModelFiles(DEMO);
  await using model = await loadModel(engine, seed === null ? files : randomWeights(files, seed), { layer: LAYER });
  const [states] = await hiddenStates(model, IDS);
  return { states: states!, log: files.checkpoint.log };
}

describe("randomWeights", () => {
  it("gives a model that runs without a byte of the learned weights, the same for a seed", async () => {
    const [first, again, other, real] = [await run(1), await run(1), await run(2), await run(null)];
    expect(first.log).toMatchObject({ bytes: 0, tensors: new Map() });
    expect(real.log.bytes).toBeGreaterThan(0);
    expect(first.states.every(Number.isFinite)).toBe(true);
    expect(again.states).toEqual(first.states);
    expect(other.states).not.toEqual(first.states);
    expect(real.states).not.toEqual(first.states);
  });

  it("has a fingerprint of its own for every seed, and the real tokenizer and template", async () => {
    await using files = await openModelFiles(DEMO);
    const prints = await Promise.all(
      [files, randomWeights(files, 1), randomWeights(files, 2)].map((of) => fingerprint(of, LAYER)),
    );
    expect(new Set(prints).size).toBe(3);
    expect(await randomWeights(files, 1).tokenizer()).toBe(await files.tokenizer());
  });
});
