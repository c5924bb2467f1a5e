import { describe, expect, it } from "vitest";
import {
  type Batch,
  groupCost,
  MIN_SEQUENCE_ROWS,
  type PackedSequence,
  packBatches,
  rowOf,
  type SequenceGroup,
} from "../../engine/batch.ts";
import { randomGroups } from "../support/states.ts";

const group = (...sequences: number[][]): SequenceGroup => ({
  sequences: sequences.map((ids) => Int32Array.from(ids)),
});

/** The tokens of a packed sequence, read back out of the batch's rows. */
function tokensOf(batch: Batch, sequence: PackedSequence): number[] {
  return Array.from({ length: sequence.length }, (_, t) => batch.ids[rowOf(sequence, t)]);
}

/** What a batch takes of its budget, from the layout alone. */
function costOf(batch: Batch): number {
  const prefixes = new Map(batch.sequences.map((s) => [s.prefixStart, s.prefixLength]));
  const own = batch.sequences.reduce((sum, s) => sum + Math.max(s.length - s.prefixLength, MIN_SEQUENCE_ROWS), 0);
  return own + [...prefixes.values()].reduce((sum, length) => sum + length, 0);
}

describe("one batch", () => {
  it("lays a list's prefix once, then what each sequence adds", () => {
    const [batch, ...more] = packBatches([group([7, 8, 9], [7, 8, 9, 1, 2], [7, 8, 9, 3])], { budget: 100 });
    expect(more).toEqual([]);
    expect([...batch.ids]).toEqual([7, 8, 9, 1, 2, 3]);
    expect(batch.sequences).toEqual([
      { group: 0, index: 0, prefixStart: 0, prefixLength: 3, ownStart: 3, length: 3, poolFrom: 2 },
      { group: 0, index: 1, prefixStart: 0, prefixLength: 3, ownStart: 3, length: 5, poolFrom: 4 },
      { group: 0, index: 2, prefixStart: 0, prefixLength: 3, ownStart: 5, length: 4, poolFrom: 3 },
    ]);
    const spans = [
      [0, 3, 3, 0],
      [0, 3, 3, 1],
      [0, 3, 3, 2],
      [0, 3, 3, 3],
      [0, 3, 3, 4],
      [0, 3, 5, 3],
    ];
    expect([...batch.spans]).toEqual(spans.flat());
  });

  it("identical sequences are one run of rows; without sharing they are two", () => {
    const twins = [group([4, 5], [4, 5])];
    expect([...packBatches(twins, { budget: 50 })[0].ids]).toEqual([4, 5]);
    expect([...packBatches(twins, { budget: 50, sharePrefix: false })[0].ids]).toEqual([4, 5, 4, 5]);
  });

  it("neighbours that begin alike are one run of rows, the longest's, and each is read where it ends", () => {
    const longest = [7, 8, 1, 2, 3, 4, 5, 6, 9, 9, 9];
    const twins = [group([7, 8], longest.slice(0, 4), longest, longest.slice(0, 5), [7, 8, 1, 5])];
    const [batch] = packBatches(twins, { budget: 60 });
    expect([...batch.ids]).toEqual([...longest, 1, 5]);
    expect(batch.sequences.map((sequence) => tokensOf(batch, sequence))).toEqual(
      twins[0].sequences.map((ids) => [...ids]),
    );
    expect(batch.sequences.map(({ ownStart }) => ownStart)).toEqual([2, 2, 2, 2, 11]);
    // Two tokens of prefix, nine of the longest, and for each of the others a place among the read-outs.
    expect(groupCost(twins[0])).toBe(2 + 9 + 4 * MIN_SEQUENCE_ROWS);
    const lengths = (options: { sharePrefix?: boolean; longFrom?: number }) =>
      packBatches(twins, { budget: 60, ...options }).map(({ ids }) => ids.length);
    expect(lengths({ sharePrefix: false })).toEqual([2 + 4 + 11 + 5 + 4]);
    // A model that turns long sequences otherwise computes them apart: the short ones before, and those after.
    expect(lengths({ longFrom: 8 })).toEqual([4 + 11 + 5 + 4]);
  });

  it("lists of one sequence share nothing, and lists share nothing with each other", () => {
    const [batch] = packBatches([group([1, 2]), group([1, 2])], { budget: 50 });
    expect([...batch.ids]).toEqual([1, 2, 1, 2]);
    expect(batch.sequences.map(({ prefixLength }) => prefixLength)).toEqual([0, 0]);
  });

  it("sequences past the length from which a model turns otherwise share with each other alone", () => {
    const [short, long] = [[group([1, 2, 3], [1, 2, 4])], [group([1, 2, 3, 4], [1, 2, 3, 5])]];
    const mixed = [group([1, 2, 3], [1, 2, 3, 4])];
    const rows = (groups: SequenceGroup[], longFrom: number | null) =>
      packBatches(groups, { budget: 50, longFrom }).map(({ ids }) => ids.length);
    expect([rows(short, 3), rows(long, 3), rows(mixed, 3)]).toEqual([[4], [5], [7]]);
    expect([rows(mixed, 2), rows(mixed, 4), rows(mixed, null)]).toEqual([[4], [4], [4]]);
    for (const [groups, longFrom] of [[short, 3] as const, [mixed, 3] as const, [mixed, null] as const])
      expect(groupCost(groups[0], { longFrom })).toBe(costOf(packBatches(groups, { budget: 1e9, longFrom })[0]));
  });

  it("nothing to pack: no batch", () => {
    expect(packBatches([], { budget: 8 })).toEqual([]);
  });
});

const SEEDS = Array.from({ length: 40 }, (_, seed) => seed);
const OPTIONS = SEEDS.flatMap((seed) =>
  [8, 30, 64, 1000].flatMap((budget) =>
    [true, false].flatMap((sharePrefix) => [true, false].map((anchored) => ({ seed, budget, sharePrefix, anchored }))),
  ),
);

describe("random lists", () => {
  const packed = OPTIONS.map((options) => {
    const groups = randomGroups(options.seed, 12, 30).map((each) => ({ ...each, anchored: options.anchored }));
    return { groups, ...options, batches: packBatches(groups, options) };
  });

  it("the generator gives lists, identical sequences and sequences of one token", () => {
    const all = packed.flatMap(({ groups }) => groups);
    const texts = all.map(({ sequences }) => sequences.map((ids) => ids.join()));
    expect(all.some(({ sequences }) => sequences.some(({ length }) => length === 1))).toBe(true);
    expect(texts.some((sequences) => new Set(sequences).size < sequences.length)).toBe(true);
  });

  it("every sequence is there, in order, once; a first one that is anchored, once a chunk", () => {
    for (const { groups, batches, anchored } of packed) {
      const places = batches.flatMap(({ sequences }) => sequences.map((s) => `${s.group}/${s.index}`));
      const wanted = groups.flatMap(({ sequences }, g) => sequences.map((_, index) => `${g}/${index}`));
      const first = places.filter((place, i) => places.indexOf(place) === i);
      expect(first).toEqual(wanted);
      const repeated = places.filter((place, i) => places.indexOf(place) !== i);
      expect(repeated.every((place) => anchored && place.endsWith("/0"))).toBe(true);
    }
  });

  it("an anchored list has its first sequence in every batch that holds another of it", () => {
    for (const { batches } of packed.filter(({ anchored }) => anchored)) {
      for (const { sequences } of batches) {
        const anchors = new Set(sequences.filter(({ index }) => index === 0).map((s) => s.group));
        expect(sequences.every((s) => anchors.has(s.group))).toBe(true);
      }
    }
  });

  it("the rows hold each sequence's tokens, and the spans say so to the attention kernel", () => {
    // Collected, not asserted one by one: there are a million of them.
    const wrong: string[] = [];
    for (const { groups, batches } of packed) {
      for (const batch of batches) {
        const seen = new Set<number>();
        for (const sequence of batch.sequences) {
          const { prefixStart, prefixLength, ownStart, length } = sequence;
          const where = `${sequence.group}/${sequence.index}`;
          const wanted = groups[sequence.group].sequences[sequence.index].join();
          if (tokensOf(batch, sequence).join() !== wanted) wrong.push(`tokens of ${where}`);
          for (let t = 0; t < length; t++) {
            const row = rowOf(sequence, t);
            seen.add(row);
            const span = [...batch.spans.subarray(4 * row, 4 * row + 4)];
            // The rows of a prefix belong to all that share it: their own start is past the prefix.
            const own = t < prefixLength ? prefixStart + prefixLength : ownStart;
            if (span.join() !== [prefixStart, prefixLength, own, t].join()) wrong.push(`span of ${where}, token ${t}`);
          }
        }
        if (seen.size !== batch.ids.length || batch.spans.length !== 4 * batch.ids.length) wrong.push("padding");
      }
    }
    expect(wrong.slice(0, 5)).toEqual([]);
  });

  it("no batch costs more than the budget, unless one sequence (with its anchor) does alone", () => {
    for (const { batches, budget, anchored } of packed) {
      for (const batch of batches) {
        const alone = batch.sequences.length === 1 || (anchored && batch.sequences.length === 2);
        if (!alone) expect(costOf(batch)).toBeLessThanOrEqual(budget);
        // What the pruned last block has room for.
        if (costOf(batch) <= budget)
          expect(batch.sequences.length).toBeLessThanOrEqual(Math.floor(budget / MIN_SEQUENCE_ROWS));
      }
    }
  });

  it("a batch is closed only where the next list, or the next piece of a cut one, does not fit", () => {
    for (const { batches, budget } of packed.filter(({ anchored }) => !anchored)) {
      for (const [i, batch] of batches.slice(0, -1).entries()) {
        const { sequences } = batches[i + 1];
        const piece = sequences.filter(({ prefixStart }) => prefixStart === sequences[0].prefixStart);
        expect(costOf(batch) + costOf({ ...batches[i + 1], sequences: piece })).toBeGreaterThan(budget);
      }
    }
  });

  it("the pieces of a cut list are as large as the budget allows, so that as little as can be is computed twice", () => {
    let cuts = 0;
    for (const { groups, batches, budget, sharePrefix, anchored } of packed) {
      for (const [g, { sequences }] of groups.entries()) {
        const pieces = batches.flatMap((batch) => {
          const own = batch.sequences.filter((sequence) => sequence.group === g);
          const starts = [...new Set(own.map(({ prefixStart }) => prefixStart))];
          return starts.map((start) =>
            own.filter(({ prefixStart }) => prefixStart === start).map(({ index }) => index),
          );
        });
        for (const [i, piece] of pieces.slice(0, -1).entries()) {
          // An anchored list's pieces begin with its first sequence again.
          const longer = [...piece, pieces[i + 1][anchored ? 1 : 0]].map((index) => sequences[index]);
          expect(groupCost({ sequences: longer }, { sharePrefix })).toBeGreaterThan(budget);
          cuts++;
        }
      }
    }
    expect(cuts).toBeGreaterThan(1000);
  });

  it("a list's cost is the cost of the batch that it makes alone", () => {
    for (const { groups, sharePrefix } of packed.slice(0, 40)) {
      for (const each of groups)
        expect(groupCost(each, { sharePrefix })).toBe(costOf(packBatches([each], { budget: 1e9, sharePrefix })[0]));
    }
  });
});
