/** Lists with a planted linear signal: what the best ranking of them reaches is known. */
import { seededRandom } from "../../kernels/random.ts";
import type { FeatureArrays } from "../../scorer/feature-source.ts";

export interface PlantedOptions {
  readonly lists: number;
  readonly dim: number;
  readonly seed?: number;
  /** Candidates a list: from 6 to 8 by default. */
  readonly lengths?: readonly [number, number];
  /** Deviation of what is added to the utility before candidates are labelled. */
  readonly noise?: number;
  /** 1 for the best of the list (default), or for every utility above 0, where a list has both. */
  readonly labels?: "best" | "sign";
}

export interface PlantedLists extends FeatureArrays {
  /** (N) w · x, with |w| = 1; w is the same whatever the seed. */
  readonly utility: Float64Array;
}

/** Standard normal states, instructions included: they say nothing of the labels, which follow the utility after noise. */
export function plantedLists(options: PlantedOptions): PlantedLists {
  const { lists, dim, seed = 1, lengths = [6, 8], noise = 0.5, labels: rule = "best" } = options;
  const gauss = (random: () => number) => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const [fixed, random] = [seededRandom(7), seededRandom(seed)];
  const direction = Array.from({ length: dim }, () => gauss(fixed));
  const norm = Math.hypot(...direction);
  const [least, most] = lengths;
  const offsets = new Uint32Array(lists + 1);
  for (let b = 0; b < lists; b++) offsets[b + 1] = offsets[b]! + least + Math.floor(random() * (most - least + 1));
  const count = offsets[lists]!;
  const inst = Float32Array.from({ length: lists * dim }, () => gauss(random));
  const resp = Float32Array.from({ length: count * dim }, () => gauss(random));
  const utility = Float64Array.from({ length: count }, (_, n) =>
    direction.reduce((sum, w, i) => sum + (w / norm) * resp[n * dim + i]!, 0),
  );
  const labels = new Float32Array(count);
  for (let b = 0; b < lists; b++) {
    const noisy = Array.from(utility.subarray(offsets[b], offsets[b + 1]), (u) => u + noise * gauss(random));
    const [lowest, highest] = [Math.min(...noisy), Math.max(...noisy)];
    // With "sign" too one candidate at least is labelled 1, and one at least 0.
    const isOne = (u: number) => u === highest || (rule === "sign" && u > 0 && u !== lowest);
    labels.set(
      noisy.map((u) => Number(isOne(u))),
      offsets[b]!,
    );
  }
  return { dim, inst, resp, labels, offsets, utility };
}

/** Share of lists whose highest score is at a candidate labelled 1. */
export function top1Of({ offsets, labels }: FeatureArrays, scoresOf: (b: number) => ArrayLike<number>): number {
  let hits = 0;
  for (let b = 0; b + 1 < offsets.length; b++) {
    const scores = Array.from(scoresOf(b));
    hits += labels[offsets[b]! + scores.indexOf(Math.max(...scores))]!;
  }
  return hits / (offsets.length - 1);
}

/** What ranking by the noiseless utility reaches. */
export function bayesTop1(lists: PlantedLists): number {
  return top1Of(lists, (b) => lists.utility.subarray(lists.offsets[b], lists.offsets[b + 1]));
}
