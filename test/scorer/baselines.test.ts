import { describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import { rawCosine, scoreStates, trainDifferenceOfMeans, trainLinearProbe } from "../../scorer/baselines.ts";
import { arraySource, type FeatureSource } from "../../scorer/feature-source.ts";
import { measureLists, summarise } from "../../scorer/measures.ts";

const DIM = 12;

/** Lists of 2 to 5; column 0 (offset 500, deviation 20) tells safe from not, the others are noise; 11 is constant. */
function features(lists: number, seed: number, gap = 40): FeatureSource {
  const random = seededRandom(seed);
  const offsets = new Uint32Array(lists + 1);
  for (let b = 0; b < lists; b++) offsets[b + 1] = offsets[b] + 2 + Math.floor(random() * 4);
  const labels = new Float32Array(offsets[lists]);
  for (let b = 0; b < lists; b++) {
    for (let i = offsets[b]; i < offsets[b + 1]; i++) {
      labels[i] = i === offsets[b] ? 1 : i === offsets[b] + 1 ? 0 : Math.floor(random() * 2);
    }
  }
  const noise = () => random() + random() + random() - 1.5;
  const resp = Float32Array.from({ length: labels.length * DIM }, (_, at) => {
    const column = at % DIM;
    if (column === 0) return 500 + 20 * noise() + gap * labels[Math.floor(at / DIM)];
    return column === 11 ? 3 : noise() * 10 ** (column % 3);
  });
  const inst = Float32Array.from({ length: lists * DIM }, noise);
  return arraySource({ dim: DIM, inst, resp, labels, offsets });
}

const all = (source: FeatureSource) => Array.from({ length: source.lists }, (_, b) => b);

async function topOne(source: FeatureSource, scores: Promise<Float64Array>) {
  return summarise(measureLists(await scores, source).top1).mean;
}

describe("trained on states", () => {
  const train = features(120, 1);
  const test = features(80, 2);

  it("the linear probe finds the column that tells", async () => {
    const { score, model } = await trainLinearProbe(train, all(train));
    expect(model.converged).toBe(true);
    expect(await topOne(test, scoreStates(test, all(test), score))).toBeGreaterThan(0.95);
  });

  it("so does the difference of means, and its scores are centred", async () => {
    const score = await trainDifferenceOfMeans(train, all(train));
    expect(await topOne(test, scoreStates(test, all(test), score))).toBeGreaterThan(0.9);
    const own = await scoreStates(train, all(train), score);
    expect(own.reduce((sum, value) => sum + value, 0) / own.length).toBeCloseTo(0, 6);
  });

  it("the difference of means by hand", async () => {
    // Columns have mean (1, 4) and deviation (1, 4); standardised, safe - unsafe is (2, 2) for the only list.
    const source = arraySource({
      dim: 2,
      inst: Float32Array.of(0, 0),
      resp: Float32Array.of(2, 8, 0, 0),
      labels: Float32Array.of(1, 0),
      offsets: Uint32Array.of(0, 2),
    });
    const score = await trainDifferenceOfMeans(source, [0]);
    expect([...score(Float32Array.of(9, 9, 2, 8, 0, 0, 1, 8))]).toEqual([4, -4, 2]);
  });

  it("reads only the training lists", async () => {
    const read: number[] = [];
    const spy: FeatureSource = {
      ...train,
      readList: (b, target, at) => {
        read.push(b);
        return train.readList(b, target, at);
      },
    };
    await trainLinearProbe(spy, [3, 5, 8]);
    await trainDifferenceOfMeans(spy, [3, 5, 8]);
    expect(read).toEqual([3, 5, 8, 3, 5, 8]);
  });

  it("pure noise: the probe is strongly regularised", async () => {
    const noise = features(60, 3, 0);
    expect((await trainLinearProbe(noise, all(noise))).model.l2).toBeGreaterThanOrEqual(1);
  });

  it("safeFrom decides the classes; clusters are held out together", async () => {
    const lower = { ...train, labels: train.labels.map((label) => label + 1) };
    const plain = await trainLinearProbe(train, all(train));
    expect((await trainLinearProbe(lower, all(train), { safeFrom: 2 })).model).toEqual(plain.model);
    const clusters = all(train).map((b) => `q${b % 40}`);
    expect((await trainLinearProbe(train, all(train), { clusters })).model.heldOutLoss).not.toBe(
      plain.model.heldOutLoss,
    );
  });

  it("one class, missing labels, no lists, constant states: finite and tied where nothing was learnt", async () => {
    const one = { ...train, labels: new Float32Array(train.labels.length).fill(1) };
    const none = { ...train, labels: new Float32Array(train.labels.length).fill(Number.NaN) };
    const states = new Float32Array(4 * DIM).map((_, at) => Math.sin(at));
    for (const [source, lists] of [
      [one, all(one)],
      [none, all(none)],
      [train, []],
    ] as const) {
      for (const safeFrom of [undefined, 1]) {
        for (const score of [
          (await trainLinearProbe(source, lists, { safeFrom })).score,
          await trainDifferenceOfMeans(source, lists, { safeFrom }),
        ]) {
          const scores = score(states);
          expect(scores.length).toBe(3);
          expect([...scores].every(Number.isFinite)).toBe(true);
          expect(new Set(scores).size).toBe(1);
        }
      }
    }
  });
});

it("raw cosine, by hand; 0 for a zero state", () => {
  const score = rawCosine(2);
  const scores = score(Float32Array.of(3, 4, 6, 8, -4, 3, 3, 0, 0, 0, -3, -4));
  for (const [i, value] of [1, 0, 0.6, 0, -1].entries()) expect(scores[i]).toBeCloseTo(value, 14);
  expect([...score(Float32Array.of(0, 0, 1, 1))]).toEqual([0]);
  expect(score(Float32Array.of(3e38, 3e38, 3e38, 3e38))[0]).toBeCloseTo(1, 14);
});
