/**
 * Every random choice about lists, as a function of the seed and of what it is for (epoch, list), never of what was drawn
 * before: a resumed run repeats the choices of one that was not interrupted.
 */
import { StratumError } from "../errors.ts";
import { seededRandom } from "../kernels/random.ts";

/**
 * A 32-bit seed for a stream of its own for every tuple: MurmurHash3 (x86, 32 bits) over the parts, types included.
 * Source: https://github.com/aappleby/smhasher/blob/master/src/MurmurHash3.cpp
 */
export function streamSeed(...parts: readonly (number | string)[]): number {
  let hash = 0;
  let words = 0;
  const add = (word: number) => {
    let k = Math.imul(word, 0xcc9e2d51);
    k = Math.imul((k << 15) | (k >>> 17), 0x1b873593);
    hash ^= k;
    hash = (Math.imul((hash << 13) | (hash >>> 19), 5) + 0xe6546b64) | 0;
    words++;
  };
  for (const part of parts) {
    if (typeof part === "string") {
      add(part.length);
      for (let i = 0; i < part.length; i++) add(part.charCodeAt(i));
    } else {
      // All 64 bits count: seeds past 2^32 and fractions are seeds too. Adding 0 makes -0 a 0.
      for (const word of new Uint32Array(Float64Array.of(part + 0).buffer)) add(word);
      add(0xffffffff);
    }
  }
  hash ^= 4 * words;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

/** Uniform numbers in [0, 1) from the stream of a tuple. */
export function streamRandom(...parts: readonly (number | string)[]): () => number {
  return seededRandom(streamSeed(...parts));
}

/** The order of `count` lists in an epoch. */
export function epochOrder(count: number, seed: number, epoch: number): Uint32Array {
  const random = streamRandom("order", seed, epoch);
  return shuffled(
    Uint32Array.from({ length: count }, (_, i) => i),
    random,
  );
}

/** Shuffles in place (Fisher-Yates). @returns the same values */
export function shuffled<T extends number[] | Uint32Array>(values: T, random: () => number): T {
  for (let i = values.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    const held = values[i];
    values[i] = values[j];
    values[j] = held;
  }
  return values;
}

/**
 * A random sub-list of 2 to m candidates, every size equally likely, with at least one of the highest label and one of a
 * lower one. A list whose labelled candidates are all of one grade has no such part, and comes whole.
 * @param labels (m), NaN for none
 * @returns indices into the list, ascending
 */
export function subList(labels: ArrayLike<number>, random: () => number): Uint32Array {
  const m = labels.length;
  const all = Array.from({ length: m }, (_, i) => i);
  let highest = Number.NEGATIVE_INFINITY;
  for (const i of all) if (labels[i] > highest) highest = labels[i];
  const best = all.filter((i) => labels[i] === highest);
  const lower = all.filter((i) => labels[i] < highest);
  if (best.length === 0 || lower.length === 0) return Uint32Array.from(all);
  const pick = (from: readonly number[]) => from[Math.floor(random() * from.length)];
  const chosen = new Set([pick(best), pick(lower)]);
  const others = all.filter((i) => !chosen.has(i));
  const more = Math.floor(random() * (m - 1));
  for (let k = 0; k < more; k++) {
    const at = k + Math.floor(random() * (others.length - k));
    [others[k], others[at]] = [others[at], others[k]];
    chosen.add(others[k]);
  }
  return Uint32Array.from(chosen).sort();
}

/** {@link subList} with the stream of one list in one epoch. */
export function epochSubList(labels: ArrayLike<number>, seed: number, epoch: number, list: number): Uint32Array {
  return subList(labels, streamRandom("sub-list", seed, epoch, list));
}

/** Orders of the instructions that are tried. */
const SPLIT_ATTEMPTS = 16;

/** Lists of one instruction: they stay together. */
interface InstructionGroup {
  readonly key: string;
  readonly lists: number[];
}

/**
 * Splits lists so that no instruction has lists in two parts. Which instruction goes where depends on the instructions
 * and the seed, not on the order of the lists; sizes are as near to the fractions as moves and swaps of whole
 * instructions bring them, in the best of a few tries.
 * @param instructionKeys a text a list; equal texts are one instruction
 * @param fractions a number >= 0 a part, in any unit; a part of fraction 0 stays empty, every other one gets a list
 * @returns indices of lists a part, ascending
 * @throws {StratumError} `usage/fractions`, `list/too-few` with fewer instructions than parts
 */
export function splitByInstruction(
  instructionKeys: readonly string[],
  fractions: readonly number[],
  seed: number,
): number[][] {
  const whole = fractions.reduce((sum, fraction) => sum + fraction, 0);
  if (fractions.some((fraction) => !(fraction >= 0)) || !(whole > 0 && whole < Number.POSITIVE_INFINITY)) {
    throw new StratumError(
      "usage/fractions",
      `lists cannot be split by [${fractions.join(", ")}]`,
      "give numbers from 0, not all of them 0, such as 0.8,0.1,0.1",
    );
  }
  const groups = new Map<string, InstructionGroup>();
  for (const [list, key] of instructionKeys.entries()) {
    const group = groups.get(key);
    if (group) group.lists.push(list);
    else groups.set(key, { key, lists: [list] });
  }
  const wanted = fractions.flatMap((fraction, part) => (fraction > 0 ? [part] : []));
  if (groups.size < wanted.length) {
    throw new StratumError(
      "list/too-few",
      `${instructionKeys.length} lists of ${groups.size} different instructions; ${wanted.length} parts need at least ${wanted.length} different ones`,
      `give lists of at least ${wanted.length} different instructions, or fewer parts: --no-validation, no --hold-out`,
    );
  }
  const targets = wanted.map((part) => (fractions[part] / whole) * instructionKeys.length);
  let parts: InstructionGroup[][] = [];
  let least = Number.POSITIVE_INFINITY;
  // Large instructions can block each other; another order frees them. Within half a list of every target is near enough.
  for (let attempt = 0; attempt < SPLIT_ATTEMPTS && least > targets.length / 4; attempt++) {
    const order = [...groups.values()]
      .map((group) => ({ ...group, place: streamSeed("split", seed, attempt, group.key) }))
      .sort((a, b) => a.place - b.place || (a.key < b.key ? -1 : 1));
    const { parts: found, miss } = deal(order, targets);
    if (miss < least) [parts, least] = [found, miss];
  }
  const split: number[][] = fractions.map(() => []);
  for (const [p, part] of wanted.entries()) {
    split[part] = parts[p].flatMap(({ lists }) => lists).sort((a, b) => a - b);
  }
  return split;
}

/** Deals instructions in their order, then balances. @returns the parts, and the squared distance from the targets */
function deal(
  order: readonly InstructionGroup[],
  targets: readonly number[],
): { readonly parts: InstructionGroup[][]; readonly miss: number } {
  const parts: InstructionGroup[][] = targets.map(() => []);
  const sizes = targets.map(() => 0);
  for (const group of order) {
    // The part that lacks the largest share of its own, so that an instruction's size does not decide its part.
    let neediest = 0;
    for (let p = 1; p < parts.length; p++) {
      if (sizes[p] * targets[neediest] < sizes[neediest] * targets[p]) neediest = p;
    }
    parts[neediest].push(group);
    sizes[neediest] += group.lists.length;
  }
  balance(parts, sizes, targets);
  return { parts, miss: sizes.reduce((sum, size, p) => sum + (size - targets[p]) ** 2, 0) };
}

/** Moves an instruction, or swaps two, as long as that lessens the squared distance of the sizes from their targets. */
function balance(parts: InstructionGroup[][], sizes: number[], targets: readonly number[]): void {
  for (;;) {
    let best = { gain: 1e-9, from: -1, to: -1, out: 0, back: 0 };
    const distinct = parts.map((part) => [...new Set(part.map(({ lists }) => lists.length))]);
    for (let from = 0; from < parts.length; from++) {
      for (let to = 0; to < parts.length; to++) {
        if (from === to) continue;
        const excess = sizes[from] - targets[from] - (sizes[to] - targets[to]);
        for (const out of distinct[from]) {
          for (const back of parts[from].length > 1 ? [0, ...distinct[to]] : distinct[to]) {
            // (a - x)^2 + (b + x)^2 against a^2 + b^2, x lists changing sides.
            const x = out - back;
            const gain = 2 * x * (excess - x);
            if (gain > best.gain) best = { gain, from, to, out, back };
          }
        }
      }
    }
    if (best.from < 0) return;
    const { from, to, out, back } = best;
    const leaving = takeLast(parts[from], out);
    if (back > 0) parts[from].push(takeLast(parts[to], back));
    parts[to].push(leaving);
    sizes[from] -= out - back;
    sizes[to] += out - back;
  }
}

/** Takes out the last instruction with so many lists. */
function takeLast(part: InstructionGroup[], size: number): InstructionGroup {
  const at = part.findLastIndex(({ lists }) => lists.length === size);
  return part.splice(at, 1)[0];
}
