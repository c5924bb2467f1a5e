/** A planted linear signal: where lists suffice, the preset comes as near to the best ranking as the noise allows. */
import { afterAll, expect, it } from "vitest";
import { createEngine } from "../../engine/model.ts";
import { arraySource } from "../../scorer/feature-source.ts";
import { PRESETS, trainOptionsOf } from "../../scorer/presets.ts";
import { createScorer } from "../../scorer/scorer.ts";
import { trainAnchored } from "../../scorer/train-anchors.ts";
import { bayesTop1, plantedLists, top1Of } from "../support/planted.ts";

const engine = await createEngine({});
afterAll(() => engine[Symbol.dispose]());

const DIM = 16;
const train = plantedLists({ lists: 1500, dim: DIM, labels: "sign" });
const test = plantedLists({ lists: 2000, dim: DIM, labels: "sign", seed: 2 });
const bayes = bayesTop1(test);

it.each(["srr", "pointwise"] as const)("%s reaches 0.98 of the Bayes rate", async (preset) => {
  // Five epochs of the preset's forty suffice here.
  const options = { ...trainOptionsOf({ ...PRESETS[preset], epochs: 5 }, DIM), seed: 0 };
  const trained = await trainAnchored(engine, arraySource(train), options, () => ({}));
  const { weights, standardisation, epochs, best } = trained;
  using scorer = await createScorer(engine, { spec: options.spec, weights, standardisation });
  const scores = await scorer.scoreFeatures(arraySource(test));
  expect(bayes).toBeGreaterThan(0.9);
  expect(top1Of(test, (b) => scores[b]!) / bayes).toBeGreaterThan(0.98);
  expect(epochs[best!]!.validation!.top1 / bayes).toBeGreaterThan(0.95);
});
