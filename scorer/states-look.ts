/**
 * Looks at the states of lists, layer by layer: how long they are, how much each block changes them, how far safe and
 * unsafe responses lie apart, and where they lie in a plane. Nothing is trained; whole lists are drawn where there are
 * many, and of a layer's states no more than those are held.
 */
import { StratumError } from "../errors.ts";
import { type FeatureSource, listLength } from "./feature-source.ts";
import {
  distances,
  fisherRatio,
  type InnerProducts,
  innerProducts,
  shuffledFisherRatio,
  silhouette,
  someOf,
  withinGroups,
} from "./inner-products.ts";
import type { Id } from "./lists.ts";
import { SAFE, type SafeOptions, safeClasses, UNKNOWN, UNSAFE } from "./measures.ts";
import { epochOrder, streamRandom } from "./sampling.ts";
import { neighbourMap, principalMap } from "./state-map.ts";
import type { ReportStates, StateMap, StateSeparation } from "./states-data.ts";

/** A layer's states of all lists. */
export interface StatePlace {
  readonly layer: number;
  readonly pooling: string;
  /** Of the same lists at every place. */
  readonly source: FeatureSource;
}

export interface LookOptions extends SafeOptions {
  /** (B) of the lists, in their order. */
  readonly ids: readonly Id[];
  /** Of the sample, the shuffles and the maps; default 0. */
  readonly seed?: number | undefined;
  /** Responses to look at, at most (at least one list); default 1000. */
  readonly sample?: number | undefined;
  /** Responses in a map, at most; default 300. */
  readonly points?: number | undefined;
  /** Layers to draw maps of, under the first pooling; default {@link mapLayers}. */
  readonly maps?: readonly number[] | undefined;
  readonly methods?: readonly StateMap["method"][] | undefined;
  /** Ends the work between layers with its reason. */
  readonly signal?: AbortSignal | undefined;
  /** After each place. */
  readonly onPlace?: (() => void) | undefined;
}

const SAMPLE = 1000;
const POINTS = 300;
/** So that one of twenty, the true labels or a shuffle of them, is the highest by chance. */
const SHUFFLES = 19;

/** Layers that are drawn where none are asked for: the first, those at a third and two thirds, and the last. */
export function mapLayers(layers: readonly number[]): number[] {
  const last = layers.length - 1;
  return [...new Set([0, 1 / 3, 2 / 3, 1].map((share) => layers[Math.round(share * last)]))];
}

/**
 * Looks at states. Norms and cosines are over all responses drawn; separation over those of lists with a safe and an
 * unsafe one.
 * @param places at least one, in the order of the output
 * @throws {StratumError} `list/empty-file` without a list, `list/bad-labels`, `state/not-finite`; the signal's reason
 */
export async function lookAtStates(places: readonly StatePlace[], options: LookOptions): Promise<ReportStates> {
  const { seed = 0, sample = SAMPLE, points = POINTS, methods = ["pca", "umap"] } = options;
  const [{ source: first, pooling: mapped }] = places;
  if (first.lists === 0)
    throw new StratumError(
      "list/empty-file",
      "no list has states to look at",
      "give at least one list that can be read",
    );
  const classes = safeClasses(first, options);
  const lists = drawLists(first, sample, seed);
  const shown = rowsOf(first, lists.slice(0, wholeLists(first, lists, points)));
  const layers = places.filter(({ pooling }) => pooling === mapped).map(({ layer }) => layer);
  const maps = options.maps ?? mapLayers(layers);

  const walks: Walk[] = [];
  const separation: StateSeparation[] = [];
  const drawn: StateMap[] = [];
  for (const pooling of new Set(places.map((place) => place.pooling))) {
    const own = places.filter((place) => place.pooling === pooling);
    walks.push(await walk(own, lists, options.signal));
  }
  for (const { layer, pooling, source } of places) {
    options.signal?.throwIfAborted();
    const { rows, values } = await responses(source, lists);
    const products = innerProducts(values, source.dim);
    const apart = separate(products, rows, classes, seed);
    if (apart !== null) separation.push({ layer, pooling, ...apart });
    if (pooling === mapped && maps.includes(layer)) {
      const some = someOf(
        products,
        shown.map((_, i) => i),
      );
      for (const method of methods) {
        const map = method === "pca" ? principalMap(some) : neighbourMap(some, seed);
        if (map === null) continue;
        const explained = map.explained === null ? null : [...map.explained];
        drawn.push({ layer, pooling, method, explained, x: [...map.x], y: [...map.y] });
      }
    }
    options.onPlace?.();
  }
  return {
    lists: lists.length,
    responses: lists.reduce((sum, b) => sum + listLength(first, b), 0),
    seed,
    norms: walks.flatMap(({ norms }) => norms),
    cosines: walks.flatMap(({ cosines }) => cosines),
    changes: walks.flatMap(({ changes }) => changes),
    separation,
    maps: drawn,
    points: {
      class: shown.map(({ row }) => (classes[row] === UNKNOWN ? null : classes[row] === SAFE ? 1 : 0)),
      list: shown.map(({ list }) => options.ids[list]),
      candidate: shown.map(({ candidate }) => candidate),
    },
  };
}

/** What a layer does to lengths and directions. */
type Walk = Pick<ReportStates, "norms" | "cosines" | "changes">;

/** A response: its row among all N, its list and its place there. */
interface Response {
  readonly row: number;
  readonly list: number;
  readonly candidate: number;
}

/** Lists at random, as many as hold `limit` responses at most, at least one; in the order in which they were drawn. */
function drawLists(source: FeatureSource, limit: number, seed: number): number[] {
  const order = [...epochOrder(source.lists, seed, 0)];
  return order.slice(0, wholeLists(source, order, limit));
}

/** How many of the lists, from the first on, hold `limit` responses at most; at least one. */
function wholeLists(source: FeatureSource, lists: readonly number[], limit: number): number {
  let responses = 0;
  const over = lists.findIndex((b) => {
    responses += listLength(source, b);
    return responses > limit;
  });
  return over < 0 ? lists.length : Math.max(1, over);
}

function rowsOf(source: FeatureSource, lists: readonly number[]): Response[] {
  return lists.flatMap((list) =>
    Array.from({ length: listLength(source, list) }, (_, candidate) => ({
      row: source.offsets[list] + candidate,
      list,
      candidate,
    })),
  );
}

/** The responses' states of some lists (S, D). */
async function responses(
  source: FeatureSource,
  lists: readonly number[],
): Promise<{ rows: Response[]; values: Float32Array }> {
  const { dim } = source;
  const rows = rowsOf(source, lists);
  const values = new Float32Array(rows.length * dim);
  let at = 0;
  for (const b of lists) {
    const m = listLength(source, b);
    const states = new Float32Array((1 + m) * dim);
    await source.readList(b, states);
    values.set(states.subarray(dim), at * dim);
    at += m;
  }
  return { rows, values };
}

/** Norms at every layer, and what becomes of a response's state from one layer to another. */
async function walk(
  places: readonly StatePlace[],
  lists: readonly number[],
  signal: AbortSignal | undefined,
): Promise<Walk> {
  const [{ source, pooling }] = places;
  const { dim } = source;
  const pairs = places.flatMap((_, j) => places.slice(0, j).map((_, i) => [i, j] as const));
  const norms = places.map(() => ({ instruction: [] as number[], response: [] as number[] }));
  const cosines = pairs.map(() => [] as number[]);
  const changes = places.slice(1).map(() => [] as number[]);
  for (const b of lists) {
    signal?.throwIfAborted();
    const m = listLength(source, b);
    const states: Float32Array[] = [];
    for (const place of places) {
      const own = new Float32Array((1 + m) * dim);
      await place.source.readList(b, own);
      states.push(own);
    }
    for (let s = 0; s <= m; s++) {
      const rows = states.map((own) => own.subarray(s * dim, (s + 1) * dim));
      const lengths = rows.map((row) => Math.sqrt(dot(row, row)));
      for (const [k, length] of lengths.entries()) norms[k][s === 0 ? "instruction" : "response"].push(length);
      if (s === 0) continue;
      for (const [p, [i, j]] of pairs.entries()) {
        const product = dot(rows[i], rows[j]);
        const scale = lengths[i] * lengths[j];
        // A state of nothing but zeros points nowhere.
        if (scale > 0) cosines[p].push(Math.min(1, Math.max(-1, product / scale)));
        if (j === i + 1 && lengths[i] > 0) {
          const squared = lengths[i] ** 2 + lengths[j] ** 2 - 2 * product;
          changes[i].push(Math.sqrt(Math.max(0, squared)) / lengths[i]);
        }
      }
    }
  }
  return {
    norms: places.flatMap(({ layer }, k) =>
      (["instruction", "response"] as const).map((of) => ({ layer, pooling, of, ...quartiles(norms[k][of]) })),
    ),
    cosines: pairs.flatMap(([i, j], p) => {
      const between = { from: places[i].layer, to: places[j].layer, pooling };
      return cosines[p].length > 0 ? [{ ...between, ...quartiles(cosines[p]) }] : [];
    }),
    changes: changes.flatMap((own, i) => {
      const between = { from: places[i].layer, to: places[i + 1].layer, pooling };
      return own.length > 0 ? [{ ...between, ...quartiles(own) }] : [];
    }),
  };
}

function dot(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let d = 0; d < a.length; d++) sum += a[d] * b[d];
  return sum;
}

/** Quartiles of at least one number, interpolated between neighbours. */
export function quartiles(values: readonly number[]): { low: number; median: number; high: number } {
  const sorted = Float64Array.from(values).sort();
  const at = (share: number) => {
    const place = share * (sorted.length - 1);
    const below = Math.floor(place);
    const above = Math.min(below + 1, sorted.length - 1);
    return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
  };
  return { low: at(0.25), median: at(0.5), high: at(0.75) };
}

/** How far the classes lie apart; null where no list has both. */
function separate(
  products: InnerProducts,
  rows: readonly Response[],
  classes: Int8Array,
  seed: number,
): Omit<StateSeparation, "layer" | "pooling"> | null {
  const lists = new Map<number, Set<number>>();
  for (const { row, list } of rows) lists.set(list, (lists.get(list) ?? new Set()).add(classes[row]));
  const counted = rows
    .map((_, i) => i)
    .filter((i) => {
      const own = lists.get(rows[i].list);
      return classes[rows[i].row] !== UNKNOWN && own?.has(SAFE) && own.has(UNSAFE);
    });
  if (counted.length === 0) return null;
  const own = counted.map((i) => classes[rows[i].row]);
  const groups = counted.map((i) => rows[i].list);
  const apart = someOf(products, counted);
  const within = withinGroups(apart, groups);
  return {
    fisher: fisherRatio(apart, own),
    silhouette: silhouette(distances(apart), own),
    fisher_within: fisherRatio(within, own),
    silhouette_within: silhouette(distances(within), own),
    shuffled_within: shuffledFisherRatio(within, own, groups, {
      shuffles: SHUFFLES,
      random: streamRandom("shuffle", seed),
    }),
    responses: counted.length,
  };
}
