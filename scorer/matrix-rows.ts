/** Matrices as rows, wherever they lie: what a linear model needs of them, without a copy. Sums are in float64. */

/** A matrix (n, D), row by row. */
export interface Rows {
  /** n. */
  readonly count: number;
  /** D. */
  readonly columns: number;
  /** row i . w */
  dot(i: number, w: Float64Array): number;
  /** target += factor x row i */
  addTo(i: number, factor: number, target: Float64Array): void;
}

export interface Standardisation {
  /** (D) */
  readonly mean: Float64Array;
  /** (D), > 0 */
  readonly deviation: Float64Array;
}

/** Rows that lie in memory; `row` returns a view of (D). Sums are in float64. */
export function denseRows(count: number, columns: number, row: (i: number) => Float32Array): Rows {
  return {
    count,
    columns,
    dot(i, w) {
      const x = row(i);
      let [a, b, c, d] = [0, 0, 0, 0];
      let j = 0;
      // Four sums: one would wait for each addition before the next.
      for (; j + 3 < columns; j += 4) {
        a += x[j] * w[j];
        b += x[j + 1] * w[j + 1];
        c += x[j + 2] * w[j + 2];
        d += x[j + 3] * w[j + 3];
      }
      for (; j < columns; j++) a += x[j] * w[j];
      return a + b + (c + d);
    },
    addTo(i, factor, target) {
      const x = row(i);
      for (let j = 0; j < columns; j++) target[j] += factor * x[j];
    },
  };
}

/** Rows as their non-zero elements: row i holds `values[k]` in column `indices[k]` for k from starts[i] to starts[i + 1] - 1. */
export function sparseRows(columns: number, starts: Uint32Array, indices: Uint32Array, values: Float32Array): Rows {
  return {
    count: starts.length - 1,
    columns,
    dot(i, w) {
      let sum = 0;
      for (let k = starts[i]; k < starts[i + 1]; k++) sum += values[k] * w[indices[k]];
      return sum;
    },
    addTo(i, factor, target) {
      for (let k = starts[i]; k < starts[i + 1]; k++) target[indices[k]] += factor * values[k];
    },
  };
}

/** Some of the rows, in the order of `indices`. */
export function selectRows(rows: Rows, indices: ArrayLike<number>): Rows {
  return {
    count: indices.length,
    columns: rows.columns,
    dot: (i, w) => rows.dot(indices[i], w),
    addTo: (i, factor, target) => rows.addTo(indices[i], factor, target),
  };
}

/** Mean and deviation (over n) of each column; 1 for the deviation of a constant one. */
export function standardisation(rows: Rows): Standardisation {
  const { count, columns } = rows;
  const mean = new Float64Array(columns);
  for (let i = 0; i < count; i++) rows.addTo(i, 1 / count, mean);
  const centred = new Float64Array(columns);
  const deviation = new Float64Array(columns);
  for (let i = 0; i < count; i++) {
    for (let j = 0; j < columns; j++) centred[j] = -mean[j];
    rows.addTo(i, 1, centred);
    for (let j = 0; j < columns; j++) deviation[j] += centred[j] ** 2 / count;
  }
  for (let j = 0; j < columns; j++) {
    const value = Math.sqrt(deviation[j]);
    // What rounding leaves of a constant column is no deviation.
    deviation[j] = value > 1e-10 * Math.abs(mean[j]) ? value : 1;
  }
  return { mean, deviation };
}
