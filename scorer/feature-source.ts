/**
 * Features: the states that a scorer is trained on and scores, list by list. Read by lists, so that a file larger than
 * the memory serves as well as arrays at hand.
 */
import { StratumError } from "../errors.ts";

/** Lists of states with their labels. Ragged: candidate rows of list b are offsets[b] .. offsets[b + 1] - 1 of N. */
export interface FeatureSource {
  /** D, the width of a state. */
  readonly dim: number;
  /** B. */
  readonly lists: number;
  /** (B + 1) */
  readonly offsets: Uint32Array;
  /** (N), NaN where a candidate has none. */
  readonly labels: Float32Array;
  /**
   * Writes list b's states (1 + m, D), the instruction's first, then the candidates' in order, to `target` from `at` on.
   * @throws {StratumError} `state/not-finite` for NaN or infinity, `file/unreadable`, `safetensors/...`
   */
  readList(b: number, target: Float32Array, at?: number): Promise<void>;
}

/** Features at hand. */
export interface FeatureArrays {
  readonly dim: number;
  /** (B, D) */
  readonly inst: Float32Array;
  /** (N, D) */
  readonly resp: Float32Array;
  /** (N) */
  readonly labels: Float32Array;
  /** (B + 1) */
  readonly offsets: Uint32Array;
}

/** Arrays as a source. */
export function arraySource({ dim, inst, resp, labels, offsets }: FeatureArrays): FeatureSource {
  return {
    dim,
    lists: offsets.length - 1,
    offsets,
    labels,
    async readList(b, target, at = 0) {
      for (const [from, to] of [
        [inst.subarray(b * dim, (b + 1) * dim), at],
        [resp.subarray(offsets[b] * dim, offsets[b + 1] * dim), at + dim],
      ] as const) {
        const bad = from.findIndex((value) => !Number.isFinite(value));
        if (bad >= 0) {
          throw new StratumError(
            "state/not-finite",
            `list ${b + 1}: a state holds ${from[bad]}`,
            "leave the list out, or compute its states again",
          );
        }
        target.set(from, to);
      }
    },
  };
}

/** Candidates m of list b. */
export function listLength({ offsets }: Pick<FeatureSource, "offsets">, b: number): number {
  return offsets[b + 1] - offsets[b];
}

/**
 * Several layers' states of the same lists as one, side by side: (D1 + D2 + ...).
 * @param sources of the same lists in the same order, at least one
 */
export function besideOneAnother(sources: readonly FeatureSource[]): FeatureSource {
  const [{ lists, offsets, labels }] = sources;
  const dim = sources.reduce((sum, source) => sum + source.dim, 0);
  return {
    ...{ dim, lists, offsets, labels },
    async readList(b, target, at = 0) {
      const rows = 1 + listLength({ offsets }, b);
      let column = 0;
      for (const source of sources) {
        const own = new Float32Array(rows * source.dim);
        await source.readList(b, own);
        for (let row = 0; row < rows; row++)
          target.set(own.subarray(row * source.dim, (row + 1) * source.dim), at + row * dim + column);
        column += source.dim;
      }
    },
  };
}
