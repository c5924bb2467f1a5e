/** Slices: the lists, by index, on which a measure is worth a look of its own. */

import { type LabelledLists, SAFE, type SafeOptions, safeClasses } from "./measures.ts";
import { hasRefusal, type TextList } from "./text-baselines.ts";

/** Some lists. */
export interface Slice {
  readonly name: string;
  /** Indices of lists. */
  readonly lists: Uint32Array;
}

/** The shortest list of each bucket. */
const BUCKETS = [1, 2, 3, 5, 9, 17];

/** Lists with exactly one safe candidate: there top-1 is hardest. @throws StratumError as `safeClasses` */
export function oneSafe(data: LabelledLists, options: SafeOptions = {}): Uint32Array {
  const classes = safeClasses(data, options);
  return select(data.offsets.length - 1, (b) => {
    const list = classes.subarray(data.offsets[b], data.offsets[b + 1]);
    return list.indexOf(SAFE) !== -1 && list.indexOf(SAFE) === list.lastIndexOf(SAFE);
  });
}

/** Lists in which no candidate refuses in so many words: the keyword rule is at chance there. */
export function withoutRefusal(lists: readonly TextList[]): Uint32Array {
  return select(lists.length, (b) => !lists[b].candidates.some((candidate) => hasRefusal(candidate.text)));
}

/** All non-empty lists by their number of candidates; empty buckets are left out. */
export function byLength({ offsets }: Pick<LabelledLists, "offsets">): Slice[] {
  return BUCKETS.map((from, at): Slice => {
    const to = (BUCKETS[at + 1] ?? Number.POSITIVE_INFINITY) - 1;
    const name = to === Number.POSITIVE_INFINITY ? `${from}+` : from === to ? `${from}` : `${from}-${to}`;
    const within = (b: number) => offsets[b + 1] - offsets[b] >= from && offsets[b + 1] - offsets[b] <= to;
    return { name, lists: select(offsets.length - 1, within) };
  }).filter((bucket) => bucket.lists.length > 0);
}

/**
 * All slices of a file, by name.
 * @param texts (B) the lists' texts, where there are any: the slice without refusals needs them
 * @throws StratumError as `safeClasses`
 */
export function slicesOf(data: LabelledLists, texts?: readonly TextList[], options: SafeOptions = {}): Slice[] {
  return [
    { name: "exactly one safe", lists: oneSafe(data, options) },
    ...(texts === undefined ? [] : [{ name: "no refusal phrase", lists: withoutRefusal(texts) }]),
    ...byLength(data).map(({ name, lists }) => ({ name: `${name} candidate${name === "1" ? "" : "s"}`, lists })),
  ];
}

/** The values of a slice's lists. */
export function slice(values: Float64Array, lists: ArrayLike<number>): Float64Array {
  return Float64Array.from(lists, (b) => values[b]);
}

function select(count: number, holds: (b: number) => boolean): Uint32Array {
  return Uint32Array.from({ length: count }, (_, b) => b).filter((b) => holds(b));
}
