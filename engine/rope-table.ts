/** The rotation tables of a model: cosines and sines by position, made in float64. */
import { StratumError } from "../errors.ts";
import { type RopeConfig, ropeFrequencies, ropeScale, rotaryDims } from "../weights/rope.ts";
import { type Batch, rowOf } from "./batch.ts";
import type { DecoderConfig } from "./decoder.ts";

/** Where the table of one rotary embedding lies in the buffer of all. */
export interface RopeRegion {
  readonly rope: RopeConfig;
  /** Beginning at a multiple of 256 bytes, as a binding does. */
  readonly offset: number;
  readonly bytes: number;
  /** (cos, sin) pairs a row. */
  readonly pairs: number;
  /** Rows: the positions, and for `longrope` the positions again, of sequences beyond its original length. */
  readonly rows: number;
}

const ALIGNMENT = 256;

/** Places the tables of `positions` positions one after another. */
export function ropeRegions({ ropes }: Pick<DecoderConfig, "ropes">, positions: number): RopeRegion[] {
  let offset = 0;
  return ropes.map((rope) => {
    const pairs = rotaryDims(rope) / 2;
    const rows = rope.type === "longrope" ? 2 * positions : positions;
    const bytes = Math.ceil((rows * pairs * 8) / ALIGNMENT) * ALIGNMENT;
    const region = { rope, offset, bytes, pairs, rows };
    offset += bytes;
    return region;
  });
}

/** The tables of all regions, (rows, pairs) of (cos, sin) each: position times inverse frequency, in float64. */
export function ropeTables(regions: readonly RopeRegion[], positions: number): Float32Array<ArrayBuffer> {
  const table = new Float32Array(regions.reduce((sum, { bytes }) => sum + bytes, 0) / 4);
  for (const { rope, offset, pairs, rows } of regions) {
    const scale = ropeScale(rope);
    for (let from = 0; from < rows; from += positions) {
      const frequencies = ropeFrequencies(rope, from > 0);
      for (let position = 0; position < positions; position++) {
        for (let i = 0; i < pairs; i++) {
          const at = offset / 4 + 2 * ((from + position) * pairs + i);
          table[at] = scale * Math.cos(position * frequencies[i]);
          table[at + 1] = scale * Math.sin(position * frequencies[i]);
        }
      }
    }
  }
  return table;
}

/**
 * Tokens beyond which a sequence turns by other tables than a shorter one, all its tokens alike; null: none does. Such
 * a sequence shares no prefix with a shorter one.
 */
export function longFrom({ ropes }: Pick<DecoderConfig, "ropes">): number | null {
  const rope = ropes.find(({ type }) => type === "longrope");
  return rope?.type === "longrope" ? rope.originalMaxPositions : null;
}

/**
 * The row of a rotation table for every row of a batch, (T): its position, and past the first `positions` rows those of
 * sequences of more than `from` tokens (see {@link longFrom}).
 * @throws {StratumError} `usage/long-prefix` where such a sequence shares its beginning with a shorter one
 */
export function turnRows({ ids, spans, sequences }: Batch, positions: number, from: number | null) {
  const turns = Uint32Array.from({ length: ids.length }, (_, row) => spans[row * 4 + 3]);
  const bound = from ?? Number.POSITIVE_INFINITY;
  const long = sequences.filter(({ length }) => length > bound);
  for (const sequence of long) {
    for (let t = 0; t < sequence.length; t++) turns[rowOf(sequence, t)] = t + positions;
  }
  const torn = sequences.find((each) => each.length <= bound && turns[rowOf(each, 0)] >= positions);
  if (torn === undefined) return turns;
  throw new StratumError(
    "usage/long-prefix",
    `sequence ${torn.index} of group ${torn.group}, of ${torn.length} tokens, shares its beginning with one of more than ${bound}: this model turns longer sequences differently from their first token on`,
    "pack batches with the runner's own `packing`",
  );
}
