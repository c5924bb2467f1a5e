/** Costs of kernels whose work is the same for every row. */
import type { Cost } from "./kernel.ts";

/** What a row, and the dispatch as a whole, takes. */
export interface RowWork {
  /** Operations a row. */
  readonly flops: number;
  /** Words of 4 bytes that a row reads and writes. */
  readonly words: number;
  /** Words that are read or written once, however many rows there are: a weight, a sum. */
  readonly fixedWords?: number;
}

/** The `cost` of a kernel (see {@link Cost}) with the same work for every row. */
export function rowCost({ flops, words, fixedWords = 0 }: RowWork): (rows: number) => Cost {
  return (rows) => ({ flops: rows * flops, bytes: 4 * (rows * words + fixedWords) });
}
