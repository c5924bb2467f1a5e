/**
 * Methods by layer: trained on one part of the lists, measured on the rest, over several seeds that split them anew. Each
 * method sees the same splits, so that differences are paired. A unit of work is one seed at one place (or the texts): it
 * depends on nothing that another one did.
 *
 * What a seed gives at a layer is what `stratum train --seed S --hold-out SHARE` and a `stratum eval` of its scorer give:
 * the same split, recipe and fits.
 */
import type { Engine } from "../engine/model.ts";
import { StratumError } from "../errors.ts";
import type { Pooling } from "./encode.ts";
import { besideOneAnother, type FeatureSource } from "./feature-source.ts";
import { type LabelledLists, measureLists, type SafeOptions } from "./measures.ts";
import {
  type Chosen,
  type FittedMethod,
  fitProbe,
  fitStateMethods,
  fitTextMethods,
  type ListStates,
  scoreBy,
  spread,
} from "./methods.ts";
import type { ReportCell, ReportMethod } from "./report-data.ts";
import { splitByInstruction } from "./sampling.ts";
import { scoreFeatures } from "./scorer.ts";
import { divideLists } from "./seen.ts";
import { scoreTexts, type TextList } from "./text-baselines.ts";
import { type AnchoredOptions, trainAnchored } from "./train-anchors.ts";

/** Which states are read: those of a layer, or of several side by side, under a pooling. */
export interface Place {
  readonly layers: readonly number[];
  readonly pooling: Pooling;
}

/** A file's states at a place. */
export interface PlaceStates extends Place {
  readonly source: FeatureSource;
  /** The same lists' states from the same architecture with random weights: a probe of them is the control. */
  readonly control?: FeatureSource | undefined;
}

/** A file of lists with its states. */
export interface SweepFile {
  readonly name: string;
  /** (B) */
  readonly texts: readonly TextList[];
  /** (B) equal for lists of one instruction */
  readonly keys: readonly string[];
  readonly labels: LabelledLists;
  /** The same places in every file. */
  readonly places: readonly PlaceStates[];
}

export interface SweepOptions extends SafeOptions {
  readonly seeds: readonly number[];
  /** Share of the trained file's lists that is measured, by instruction. */
  readonly test: number;
  /** Scorers to train, by name. The seed is the split's; the width of the states the place's. */
  readonly scorers: Readonly<Record<string, Omit<AnchoredOptions, "seed">>>;
  /** k of NDCG@k. */
  readonly depth: number;
  readonly signal?: AbortSignal | undefined;
}

/** One seed at one place of one trained file; without a place the methods that read texts. */
export interface SweepUnit {
  readonly trained: string;
  readonly seed: number;
  readonly place: Place | null;
}

/** The seed of what `stratum eval` draws by default: the division that chooses a regression's strength. */
const FIT_SEED = 0;

const CONTROL = "linear probe, random weights";

/** The methods of a sweep, in the order of a unit's cells. */
export function sweepMethods(
  scorers: Readonly<Record<string, Pick<AnchoredOptions, "spec">>>,
  control: boolean,
): { readonly texts: readonly ReportMethod[]; readonly states: readonly ReportMethod[] } {
  const method = (name: string, kind: ReportMethod["kind"], pointwise = true) => ({ name, kind, pointwise });
  return {
    texts: [
      method("random", "chance"),
      ...["bag of words", "refusal keywords", "shortest"].map((name) => method(name, "text")),
    ],
    states: [
      ...["raw cosine", "difference of means", "linear probe"].map((name) => method(name, "baseline")),
      ...(control ? [method(CONTROL, "control")] : []),
      ...Object.entries(scorers).map(([name, { spec }]) => method(name, "scorer", spec.head === "pointwise")),
    ],
  };
}

/** The units of a sweep in the order in which they are computed. */
export function sweepUnits(
  trained: readonly string[],
  seeds: readonly number[],
  places: readonly Place[],
): readonly SweepUnit[] {
  return trained.flatMap((name) =>
    seeds.flatMap((seed) =>
      [null, ...places].map((place) => ({
        ...{ trained: name, seed },
        place: place && { layers: place.layers, pooling: place.pooling },
      })),
    ),
  );
}

/** The instruction's lists on the two sides of a seed's split. */
interface Division {
  /** What a scorer is given: all of the training part. */
  readonly train: readonly number[];
  /** Of those, the labelled ones with two grades: what is fitted on. */
  readonly fit: readonly number[];
  /** Of the other part, those that can be measured. */
  readonly measured: readonly number[];
}

/** Instructions that a split needs on either side: one trains and one validates; one is measured. */
const LEAST_TRAINED = 2;

/**
 * A seed's split of a file.
 * @throws {StratumError} `list/no-contrast` without a list whose labels differ, `list/too-few` where a side is left
 *   with too little, `list/bad-labels`
 */
export function divideBySeed(
  { labels, keys }: Pick<SweepFile, "labels" | "keys">,
  { test, safeFrom }: Pick<SweepOptions, "test" | "safeFrom">,
  seed: number,
): Division {
  const all = divideLists(labels, { safeFrom });
  const usable = new Set(all.evaluated);
  const of = (lists: readonly number[]) => new Set(lists.filter((b) => usable.has(b)).map((b) => keys[b])).size;
  const least = leastInstructions(test);
  const total = of(all.evaluated);
  const tooFew = (what: string) =>
    new StratumError(
      "list/too-few",
      `${all.evaluated.length} lists of ${total} different instructions can be used; ${what}`,
      `give labelled lists of at least ${least} different instructions, some hundreds for narrow intervals, or another --hold-out`,
    );
  if (total < least)
    throw tooFew(`training on ${LEAST_TRAINED} and measuring a share of ${test} needs at least ${least}`);
  const [train, held] = splitByInstruction(keys, [1 - test, test], seed);
  const [trained, measured] = [of(train), of(held)];
  if (trained < LEAST_TRAINED || measured < 1)
    throw tooFew(`the split of seed ${seed} leaves ${trained} to train and ${measured} to measure`);
  return { train, fit: train.filter((b) => usable.has(b)), measured: held.filter((b) => usable.has(b)) };
}

/** Different instructions that a split with a share to measure needs, each with one list. */
export function leastInstructions(test: number): number {
  for (let count = LEAST_TRAINED + 1; ; count++) {
    // A part of any share gets one.
    if (count - Math.max(1, Math.round(count * test)) >= LEAST_TRAINED) return count;
  }
}

/**
 * Who trains and what is measured under a seed.
 * @throws {StratumError} as `divideBySeed`; `list/all-seen` where a measured file holds no instruction of its own
 */
export function prepareUnit(
  files: readonly Pick<SweepFile, "name" | "keys" | "labels">[],
  { trained, seed }: Pick<SweepUnit, "trained" | "seed">,
  options: Pick<SweepOptions, "test" | "safeFrom">,
): { readonly division: Division; readonly lists: readonly (readonly number[])[] } {
  const own = files.find(({ name }) => name === trained);
  if (own === undefined) throw new Error(`no file is called ${trained}`);
  const { safeFrom } = options;
  const division = naming(trained, files.length, () => divideBySeed(own, options, seed));
  const seen = new Set(division.train.map((b) => own.keys[b]));
  const lists = files.map(({ name, keys, labels }) => {
    if (name === trained) return division.measured;
    // Another file may hold instructions that were trained on.
    const { evaluated, seen: known } = naming(name, files.length, () =>
      divideLists(labels, { safeFrom, keys, seen, includeSeen: true }),
    );
    const out = new Set(known);
    const left = evaluated.filter((b) => !out.has(b));
    if (left.length > 0) return left;
    throw new StratumError(
      "list/all-seen",
      `with seed ${seed} the instructions of all ${evaluated.length} lists of ${name} are trained on in ${trained}: what is reached on them says nothing`,
      "give --test lists of other instructions",
    );
  });
  return { division, lists };
}

/** Where there are several files, an error says of which it is. */
function naming<T>(name: string, files: number, step: () => T): T {
  try {
    return step();
  } catch (thrown) {
    if (!(thrown instanceof StratumError) || files === 1) throw thrown;
    throw new StratumError(thrown.code, `${name}: ${thrown.message}`, thrown.fix, thrown);
  }
}

/** Scores of some lists of a file, (N) with 0 elsewhere. */
type ScoreFile = (file: SweepFile, lists: readonly number[]) => Promise<ArrayLike<number>>;
/** Measures a method on all files, a cell each. */
type Measure = (method: ReportMethod, score: ScoreFile) => Promise<void>;

/**
 * Trains and measures a unit.
 * @param files all that is measured; the unit's own is among them
 * @returns a cell a method and measured file; null where the signal came first
 * @throws {StratumError} as `prepareUnit`, `trainAnchored` and the methods
 */
export async function runUnit(
  engine: Engine,
  files: readonly SweepFile[],
  unit: SweepUnit,
  options: SweepOptions,
): Promise<ReportCell[] | null> {
  const { depth, safeFrom } = options;
  const { trained, seed, place } = unit;
  const { division, lists } = prepareUnit(files, unit, options);
  const measured = files.map((file, i) => ({ file, lists: lists[i] }));
  const own = files.find(({ name }) => name === trained) as SweepFile;
  const cells: ReportCell[] = [];
  let begin = performance.now();
  const measure: Measure = async ({ name, pointwise }, score) => {
    for (const { file, lists } of measured) {
      const scores = await score(file, lists);
      const measures = measureLists(scores, file.labels, { safeFrom, depths: [depth] });
      const values = (all: Float64Array) => lists.map((b) => (Number.isNaN(all[b]) ? null : all[b]));
      const now = performance.now();
      cells.push({
        ...{ method: name, pointwise, layers: place && [...place.layers], pooling: place?.pooling ?? null, seed },
        ...{ trained, measured: file.name, lists: [...lists] },
        ...{ top1: values(measures.top1), pairwise: values(measures.pairwise), mrr: values(measures.mrr) },
        ndcg: values(measures[`ndcg@${depth}`]),
        highest: pointwise ? lists.map((b) => highestOf(scores, file.labels, b)) : null,
        ms: Math.round(now - begin),
      });
      begin = now;
    }
  };
  if (place === null) await measureTexts(own, division, options, measure);
  else if (!(await measureStates(engine, own, division, unit.seed, place, options, measure))) return null;
  return cells;
}

function highestOf(scores: ArrayLike<number>, { offsets }: LabelledLists, b: number): number {
  let most = Number.NEGATIVE_INFINITY;
  for (let i = offsets[b]; i < offsets[b + 1]; i++) most = Math.max(most, scores[i]);
  return most;
}

async function measureTexts(
  { texts, keys }: SweepFile,
  { fit }: Division,
  { safeFrom }: SweepOptions,
  measure: Measure,
): Promise<void> {
  const fitted = fitTextMethods({ of: { texts, clusters: keys }, lists: fit }, { seed: FIT_SEED, safeFrom });
  const methods = new Map(sweepMethods({}, false).texts.map((method) => [method.name, method]));
  const measureNamed = async (name: string, score: ScoreFile) => {
    const method = methods.get(name);
    if (method === undefined) throw new Error(`no method is called ${name}`);
    await measure(method, score);
  };
  await measureNamed("random", async ({ labels }) => new Float64Array(labels.labels.length));
  for (const { name, score } of fitted) await measureNamed(name, async (file) => scoreTexts(file.texts, score));
}

/** @returns whether it came to its end before the signal */
async function measureStates(
  engine: Engine,
  own: SweepFile,
  { train, fit }: Division,
  seed: number,
  place: Place,
  { scorers, safeFrom, signal }: SweepOptions,
  measure: Measure,
): Promise<boolean> {
  const fits = { seed: FIT_SEED, safeFrom };
  const { source, control } = statesAt(own, place);
  const sourceOf = (file: SweepFile, of: "source" | "control") => {
    const found = statesAt(file, place)[of];
    if (found === undefined) throw new Error(`${file.name} has no ${of} at ${placeName(place)}`);
    return found;
  };
  const side = (file: SweepFile, of: "source" | "control", lists: readonly number[]): Chosen<ListStates> => ({
    of: { source: sourceOf(file, of), clusters: file.keys },
    lists,
  });
  const scored = (fitted: FittedMethod, of: "source" | "control"): ScoreFile => {
    return async (file, lists) => (await scoreBy(fitted, side(file, of, lists))).scores;
  };
  const baselines = await fitStateMethods(source.dim, side(own, "source", fit), fits);
  for (const method of sweepMethods(scorers, control !== undefined).states) {
    if (signal?.aborted) return false;
    if (method.kind === "scorer") {
      const recipe = scorers[method.name];
      const spec = { ...recipe.spec, dim: source.dim };
      const run = { instructions: own.keys, lists: train, signal };
      const trained = await trainAnchored(engine, source, { ...recipe, spec, seed }, () => run);
      if (trained.interrupted) return false;
      const { weights, standardisation } = trained;
      const made = { spec, weights, standardisation };
      await measure(method, async (file, lists) => {
        const states = sourceOf(file, "source");
        return spread(states, lists, await scoreFeatures(engine, made, states, lists));
      });
      continue;
    }
    const found = baselines.find(({ name }) => name === method.name);
    if (found !== undefined) await measure(method, scored(found, "source"));
    else await measure(method, scored(await fitProbe(method.name, side(own, "control", fit), fits), "control"));
  }
  return true;
}

/**
 * Places of a file out of its layers: each by itself and those that are read together, pooling by pooling.
 * @param taps states of the file at every layer and pooling that is asked for
 */
export function placesOf<T extends FeatureSource>(
  layers: readonly number[],
  concat: readonly (readonly number[])[],
  poolings: readonly Pooling[],
  taps: readonly { readonly layer: number; readonly pooling: Pooling; readonly source: T }[],
): (Place & { readonly source: FeatureSource })[] {
  return placeList(layers, concat, poolings).map((place) => {
    const sources = place.layers.map((layer) => {
      const tap = taps.find((each) => each.layer === layer && each.pooling === place.pooling);
      if (tap === undefined) throw new Error(`there are no states of layer ${layer}, ${place.pooling}`);
      return tap.source;
    });
    return { ...place, source: sources.length === 1 ? sources[0] : besideOneAnother(sources) };
  });
}

/** The places of a sweep in order. */
export function placeList(
  layers: readonly number[],
  concat: readonly (readonly number[])[],
  poolings: readonly Pooling[],
): Place[] {
  const groups = [...layers.map((layer) => [layer]), ...concat];
  return poolings.flatMap((pooling) => groups.map((of) => ({ layers: of, pooling })));
}

function statesAt({ name, places }: SweepFile, place: Place): PlaceStates {
  const found = places.find((each) => placeName(each) === placeName(place));
  if (found === undefined) throw new Error(`${name} has no states at ${placeName(place)}`);
  return found;
}

/** `layer 2, mean`, `layers 2+4, last` */
export function placeName({ layers, pooling }: Pick<ReportCell, "layers" | "pooling"> | Place): string {
  return layers === null ? "texts" : `layer${layers.length > 1 ? "s" : ""} ${layers.join("+")}, ${pooling}`;
}
