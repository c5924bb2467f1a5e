import { afterAll, describe, expect, it } from "vitest";
import { createEngine } from "../../engine/model.ts";
import { LOSSES, type LossName } from "../../kernels/list-loss.ts";
import { identity } from "../../scorer/feeder.ts";
import { flatten, unflatten } from "../../scorer/parameter-layout.ts";
import { createTrainer, LOG_SLOTS, type Trainer, type TrainerOptions } from "../../scorer/trainer.ts";
import { GOLDEN_SPEC, readScorerGolden } from "../support/scorer-golden.ts";

const golden = await readScorerGolden();
const ALL = Array.from({ length: golden.source.lists }, (_, list) => ({ list }));
const [LR, DECAY, STEPS] = [1e-3, 1e-4, 30];

const OPTIONS: TrainerOptions = {
  spec: GOLDEN_SPEC,
  loss: "kl",
  dropout: 0,
  inputDropout: 0,
  clip: 0,
  weightDecay: DECAY,
  seed: 0,
  standardisation: identity(golden.source.dim),
  rows: 64,
  stepLists: ALL.length,
  residentLimit: 1e9,
};

// Both software adapters where both are there; the embedded one always is on Linux x64.
for (const adapter of ["auto", "embedded"]) {
  const engine = await createEngine({ adapter });
  afterAll(() => engine[Symbol.dispose]());

  it(`trains with the kernels of a GPU's target (${adapter})`, async () => {
    const gpu = { ...engine, target: { ...engine.target, textures: false, staged: true } as const };
    using trainer = await createTrainer(gpu, golden.source, OPTIONS);
    expect(trainer.network.layout.count).toBeGreaterThan(0);
  });

  const trainerOf = async (options: Partial<TrainerOptions>): Promise<Trainer> => {
    const trainer = await createTrainer(engine, golden.source, { ...OPTIONS, ...options });
    const zero = new Float32Array(trainer.network.layout.count);
    trainer.setState({
      weights: flatten(trainer.network.layout, golden.below("init.")),
      first: zero,
      second: zero,
    });
    await trainer.feeder.load(trainer.network.buffers["x"]);
    return trainer;
  };

  describe(`${adapter}: ${engine.device.info.name}`, () => {
    describe.each(LOSSES)("%s against PyTorch", (loss: LossName) => {
      it("gives the scores, the loss and every gradient", async () => {
        using trainer = await trainerOf({ loss });
        const { scores, losses } = await trainer.evaluate(ALL.map(({ list }) => list));
        for (const [b, expected] of golden.scores.entries()) expectNear(scores[b], expected, `scores of list ${b}`);
        const mean = losses.reduce((sum, value) => sum + value, 0) / ALL.length;
        expectNear([mean], golden.tensor(`loss.${loss}`), "loss of the evaluation");
        const result = await trainer.gradients(ALL);
        expectNear([result.loss], golden.tensor(`loss.${loss}`), "loss");
        const grads = unflatten(trainer.network.layout, result.grads);
        const expected = golden.below(`grad.${loss}.`);
        expect([...grads.keys()].sort()).toEqual([...expected.keys()].sort());
        for (const [name, values] of grads) expectNear(values, expected.get(name)!, `gradient of ${name}`);
      });

      it("follows the curve of 30 steps", async () => {
        using trainer = await trainerOf({ loss });
        const curve: number[] = [];
        for (let step = 0; step < STEPS; step++) {
          await trainer.step(step, ALL, LR);
          if (trainer.pending === LOG_SLOTS || step === STEPS - 1)
            curve.push(...(await trainer.readLog()).map((record) => record.loss));
        }
        const reference = golden.tensor(`curve.${loss}`);
        expect(curve.length).toBe(STEPS);
        for (const [step, value] of curve.entries())
          expect([
            step,
            Math.abs(value - reference[step]) <= 1e-4 ? "near" : `${value} for ${reference[step]}`,
          ]).toEqual([step, "near"]);
        const { weights } = await trainer.state();
        const final = golden.below(`final.${loss}.`);
        for (const [name, values] of unflatten(trainer.network.layout, weights)) {
          const expected = final.get(name)!;
          const third = values.length / 3;
          for (let i = 0; i < values.length; i++) {
            // The key's bias has a gradient of zero: what Adam makes of rounding noise may be anything up to lr a step.
            const noise = name.endsWith("in_proj_bias") && i >= third && i < 2 * third;
            const room = noise ? LR * STEPS : 1e-4;
            expect([name, i, Math.abs(values[i] - expected[i]) <= room ? "near" : values[i] - expected[i]]).toEqual([
              name,
              i,
              "near",
            ]);
          }
        }
      });
    });
  });
}

function expectNear(actual: ArrayLike<number>, expected: ArrayLike<number>, what: string): void {
  expect([what, actual.length]).toEqual([what, expected.length]);
  for (let i = 0; i < expected.length; i++) {
    const error = Math.abs(actual[i] - expected[i]);
    const near = error <= 1e-5 + 1e-4 * Math.abs(expected[i]);
    expect([what, i, near ? "near" : `${actual[i]} for ${expected[i]}`]).toEqual([what, i, "near"]);
  }
}
