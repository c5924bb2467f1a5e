/** Whether a series of measurements rises: a line through medians of windows, with the interval of its slope. */

/** A slope a unit of x, with its 95% interval. */
export interface Trend {
  readonly slope: number;
  readonly low: number;
  readonly high: number;
}

/** Neighbouring samples resemble each other, medians of so many windows hardly. */
const WINDOWS = 20;
/** Student's t of 18 degrees of freedom, 97.5%. */
const T_18 = 2.101;

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2;
}

/**
 * The least-squares line through the medians of 20 windows of equally many samples.
 * @param samples (x, y) by ascending x, at least 20
 */
export function trendOf(samples: readonly (readonly [x: number, y: number])[]): Trend {
  if (samples.length < WINDOWS) throw new Error(`${samples.length} samples are no trend: ${WINDOWS} at least`);
  const points = Array.from({ length: WINDOWS }, (_, w) => {
    const window = samples.slice(
      Math.floor((w * samples.length) / WINDOWS),
      Math.floor(((w + 1) * samples.length) / WINDOWS),
    );
    return [median(window.map(([x]) => x)), median(window.map(([, y]) => y))] as const;
  });
  const mean = (k: 0 | 1) => points.reduce((sum, point) => sum + point[k], 0) / WINDOWS;
  const [mx, my] = [mean(0), mean(1)];
  const sxx = points.reduce((sum, [x]) => sum + (x - mx) ** 2, 0);
  const slope = points.reduce((sum, [x, y]) => sum + (x - mx) * (y - my), 0) / sxx;
  const residual = points.reduce((sum, [x, y]) => sum + (y - my - slope * (x - mx)) ** 2, 0);
  const half = T_18 * Math.sqrt(residual / (WINDOWS - 2) / sxx);
  return { slope, low: slope - half, high: slope + half };
}
