/** Straight lines through measured points. */

export interface LinearFit {
  readonly intercept: number;
  readonly slope: number;
  /** 1 - residual / total sum of squares: 1 is a perfect line. */
  readonly r2: number;
}

/** Least squares of y = intercept + slope x. At least two points of different x. */
export function linearFit(points: readonly (readonly [x: number, y: number])[]): LinearFit {
  const n = points.length;
  const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / n;
  const [mx, my] = [mean(points.map(([x]) => x)), mean(points.map(([, y]) => y))];
  const sum = (term: (x: number, y: number) => number) => points.reduce((all, [x, y]) => all + term(x, y), 0);
  const slope = sum((x, y) => (x - mx) * (y - my)) / sum((x) => (x - mx) ** 2);
  const intercept = my - slope * mx;
  const total = sum((_, y) => (y - my) ** 2);
  const residual = sum((x, y) => (y - intercept - slope * x) ** 2);
  return { intercept, slope, r2: total === 0 ? 1 : 1 - residual / total };
}
