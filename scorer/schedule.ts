/** The learning rate of a step. */

export const SCHEDULES = ["cosine", "constant"] as const;
export type ScheduleName = (typeof SCHEDULES)[number];

export interface Schedule {
  readonly name: ScheduleName;
  /** The rate after the warm-up. */
  readonly lr: number;
  /** Steps over which the rate rises in equal parts to `lr`. */
  readonly warmup: number;
  /** Steps of the whole run: where `cosine` reaches 0. */
  readonly steps: number;
}

/** The rate of step t, from 0: a linear warm-up, then `lr`, or half a cosine from `lr` to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983). */
export function learningRate({ name, lr, warmup, steps }: Schedule, t: number): number {
  if (t < warmup) return (lr * (t + 1)) / warmup;
  if (name === "constant") return lr;
  return (lr / 2) * (1 + Math.cos((Math.PI * (t - warmup)) / Math.max(1, steps - warmup)));
}
