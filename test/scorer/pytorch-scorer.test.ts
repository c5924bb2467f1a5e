/** Scorers cross between Stratum and PyTorch by the names of their parameters, and score the same; see make-pytorch-scorer.py. */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import { createEngine } from "../../engine/model.ts";
import { seededRandom } from "../../kernels/random.ts";
import { arraySource, type FeatureArrays, type FeatureSource, listLength } from "../../scorer/feature-source.ts";
import { openFeatures } from "../../scorer/features-file.ts";
import { measureStandardisation } from "../../scorer/feeder.ts";
import { createScorer, type Scorer } from "../../scorer/scorer.ts";
import { loadScorer, type SavedScorer, saveScorer } from "../../scorer/scorer-file.ts";
import { initialWeights, SCORER_HEADS, type ScorerHead, type ScorerSpec } from "../../scorer/scorer-spec.ts";
import { loadWeights } from "../../scorer/scorer-weights.ts";
import { decodeFloats } from "../../weights/floats.ts";
import { temporaryFolder } from "../support/cli.ts";
import { firstBitDifference } from "../support/compare.ts";

const at = (name: string) => fileURLToPath(new URL(`../golden/pytorch-scorer/${name}`, import.meta.url));
/** Of scores between -1 and 1: float32 here, float64 in PyTorch. */
const NEAR = 1e-5;
const LONG = 1500;

const specOf = (head: ScorerHead): ScorerSpec => ({ head, dim: 24, width: 16, heads: 4, ffn: 32, tau: 0.2 });
const features = await readFeatures();
const source = arraySource(features);
const sizes = Array.from({ length: source.lists }, (_, b) => listLength(source, b));

/** The scorer in the folder of a head: no parameter with a value that would hide it, such as a bias of 0. */
async function stratumScorer(head: ScorerHead): Promise<SavedScorer> {
  const spec = specOf(head);
  const random = seededRandom(8);
  const weights = initialWeights(spec, 8);
  for (const values of weights.values()) for (const i of values.keys()) values[i] += 0.5 * random() - 0.25;
  const lists = sizes.map((_, b) => b);
  const standardise = head === "listwise" ? await measureStandardisation(source, lists) : null;
  return { spec, base: null, layer: null, pooling: null, system: null, standardise, training: {}, weights };
}

/** Scorers with PyTorch's scores of them, by the name of the file beside them. */
const SCORERS = [
  ...SCORER_HEADS.map((head) => ({ name: `stratum-${head}`, load: () => loadScorer(at(`stratum-${head}`)) })),
  ...SCORER_HEADS.map((head) => {
    const spec = specOf(head);
    const load = async () => ({
      spec,
      weights: await loadWeights(at(`pytorch-${head}.safetensors`), spec),
      standardise: null,
    });
    return { name: `pytorch-${head}`, load };
  }),
];

describe.each(SCORER_HEADS)("the files of a %s scorer", (head) => {
  const folder = at(`stratum-${head}`);

  it("are what saveScorer writes, then and again", async () => {
    await using place = await temporaryFolder();
    for (const [i, saved] of [await stratumScorer(head), await loadScorer(folder)].entries()) {
      const copy = join(place.path, String(i), basename(folder));
      await saveScorer(copy, saved);
      for (const name of ["scorer.safetensors", "scorer.json"])
        expect(readFileSync(join(copy, name)).equals(readFileSync(join(folder, name))), name).toBe(true);
    }
  });

  it("open in the npm package safetensors, without metadata", async () => {
    const bytes = Uint8Array.from(readFileSync(join(folder, "scorer.safetensors")));
    expect(Buffer.from(bytes).toString("latin1")).not.toContain("__metadata__");
    const { SafeTensor } = createRequire(import.meta.url)("safetensors") as {
      SafeTensor: new (bytes: Uint8Array) => { getTensor(name: string): Uint8Array };
    };
    const file = new SafeTensor(bytes);
    for (const [name, values] of (await loadScorer(folder)).weights)
      expect(decodeFloats(Uint8Array.from(file.getTensor(name)), "F32"), name).toEqual(values);
  });
});

// Both software adapters where both are there; the embedded one always is on Linux x64.
for (const adapter of ["auto", "embedded"]) {
  const engine = await createEngine({ adapter });
  afterAll(() => engine[Symbol.dispose]());

  describe.each(SCORERS)(`$name on ${adapter}: ${engine.device.info.name}`, ({ name, load }) => {
    const reference = JSON.parse(readFileSync(at(`${name}.scores.json`), "utf8")) as {
      readonly scores: readonly (readonly number[])[];
      readonly long: readonly number[];
    };
    const open = async (rows?: number): Promise<Scorer> => {
      const { spec, weights, standardise } = await load();
      return createScorer(engine, { spec, weights, standardisation: standardise, rows });
    };

    it("gives PyTorch's scores", async () => {
      using scorer = await open();
      const scores = await scorer.scoreFeatures(source);
      expect(scores.map(({ length }) => length)).toEqual(sizes);
      expect(sizes).toEqual(expect.arrayContaining([1, 100]));
      for (const [b, expected] of reference.scores.entries()) expectNear(scores[b], expected, `list ${b}`);
    });

    it("gives PyTorch's scores of more candidates than it has rows", async () => {
      using scorer = await open();
      const count = source.labels.length;
      const order = Array.from({ length: LONG }, (_, i) => i % count);
      expect(scorer.rows).toBeLessThan(LONG);
      const [scores] = await scorer.scoreFeatures(arraySource(pick([{ list: 0, candidates: order }])));
      expectNear(
        scores,
        order.map((i) => reference.long[i]),
        "the long list",
      );
      // Equal candidates score alike, to the bit.
      const first = scores.subarray(0, count);
      expect(
        firstBitDifference(
          scores,
          Float32Array.from(order, (i) => first[i]),
        ),
      ).toBeUndefined();
      using wide = await open(LONG + 1);
      const [again] = await wide.scoreFeatures(arraySource(pick([{ list: 0, candidates: order }])));
      expect(firstBitDifference(again, scores)).toBeUndefined();
    });

    it("permutes the scores with the candidates, to the bit", async () => {
      using scorer = await open();
      const scores = await scorer.scoreFeatures(source);
      const random = seededRandom(3);
      for (let round = 0; round < 3; round++) {
        const orders = sizes.map((m) => shuffled(m, random));
        const candidates = orders.map((order, b) => order.map((i) => source.offsets[b] + i));
        const permuted = await scorer.scoreFeatures(
          arraySource(pick(candidates.map((rows, list) => ({ list, candidates: rows })))),
        );
        for (const [b, order] of orders.entries()) {
          const expected = Float32Array.from(order, (i) => scores[b][i]);
          expect(firstBitDifference(permuted[b], expected), `list ${b}`).toBeUndefined();
        }
      }
    });

    it("scores a list the same bits alone and among others", async () => {
      using scorer = await open();
      // Fewer rows cut the lists into other batches.
      using narrow = await open(110);
      const scores = await scorer.scoreFeatures(source);
      const forward = sizes.map((_, b) => b);
      for (const [what, which, lists] of [
        ["backwards", scorer, forward.toReversed()],
        ["others before", scorer, [3, 8, 0, ...forward]],
        ["others after", scorer, [...forward, 6, 3, 3]],
        ["in other batches", narrow, forward],
      ] as const) {
        const found = await which.scoreFeatures(source, lists);
        for (const [i, b] of lists.entries())
          expect(firstBitDifference(found[i], scores[b]), `${what}, list ${b}`).toBeUndefined();
      }
      for (const b of forward) {
        const [alone] = await scorer.scoreFeatures(source, [b]);
        expect(firstBitDifference(alone, scores[b]), `alone, list ${b}`).toBeUndefined();
      }
    });

    it("gives equal candidates equal scores", async () => {
      using scorer = await open();
      const candidates = [5, 40, 5, 17, 40, 5, 90];
      const [scores] = await scorer.scoreFeatures(arraySource(pick([{ list: 2, candidates }])));
      const first = Float32Array.from(candidates, (row) => scores[candidates.indexOf(row)]);
      expect(firstBitDifference(scores, first)).toBeUndefined();
      expect(new Set(scores).size).toBe(new Set(candidates).size);
    });

    it("scores states on the GPU as features, to the bit", async () => {
      using scorer = await open();
      const scores = await scorer.scoreFeatures(source);
      // Responses first: a list's rows lie apart.
      const states = engine.device.createBuffer("states", 4 * (features.resp.length + features.inst.length), "storage");
      try {
        engine.device.write(states, Float32Array.of(...features.resp, ...features.inst));
        const lists = sizes.map((m, b) => ({
          instruction: source.labels.length + b,
          candidates: Array.from({ length: m }, (_, i) => source.offsets[b] + i),
        }));
        const found = await scorer.scoreStates(states, lists);
        for (const [b, expected] of scores.entries())
          expect(firstBitDifference(found[b], expected), `list ${b}`).toBeUndefined();
      } finally {
        states.destroy();
      }
    });
  });
}

/** Everything that the file of features holds. */
async function readFeatures(): Promise<FeatureArrays> {
  await using file: FeatureSource & AsyncDisposable = await openFeatures(at("features.safetensors"));
  const { dim, lists, offsets, labels } = file;
  const [inst, resp] = [new Float32Array(lists * dim), new Float32Array(labels.length * dim)];
  for (let b = 0; b < lists; b++) {
    const rows = new Float32Array((1 + listLength(file, b)) * dim);
    await file.readList(b, rows);
    inst.set(rows.subarray(0, dim), b * dim);
    resp.set(rows.subarray(dim), offsets[b] * dim);
  }
  return { dim, inst, resp, labels, offsets };
}

/** Features of other lists: a list's instruction with any of the candidates, by their rows in `resp`. */
function pick(lists: readonly { readonly list: number; readonly candidates: readonly number[] }[]): FeatureArrays {
  const { dim, inst, resp, labels } = features;
  const row = (values: Float32Array, i: number) => [...values.subarray(i * dim, (i + 1) * dim)];
  const rows = lists.flatMap(({ candidates }) => candidates);
  const offsets = [0];
  for (const { candidates } of lists) offsets.push(offsets.at(-1)! + candidates.length);
  return {
    dim,
    inst: Float32Array.from(lists.flatMap(({ list }) => row(inst, list))),
    resp: Float32Array.from(rows.flatMap((i) => row(resp, i))),
    labels: Float32Array.from(rows, (i) => labels[i]),
    offsets: Uint32Array.from(offsets),
  };
}

function shuffled(count: number, random: () => number): number[] {
  return Array.from({ length: count }, (_, i) => ({ i, key: random() }))
    .sort((a, b) => a.key - b.key)
    .map(({ i }) => i);
}

function expectNear(actual: ArrayLike<number>, expected: ArrayLike<number>, what: string): void {
  expect([what, actual.length]).toEqual([what, expected.length]);
  for (let i = 0; i < expected.length; i++) {
    const near = Math.abs(actual[i] - expected[i]) <= NEAR;
    expect([what, i, near ? "near" : `${actual[i]} for ${expected[i]}`]).toEqual([what, i, "near"]);
  }
}
