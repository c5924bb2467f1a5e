import { describe, expect, it } from "vitest";
import { lossGradientCases } from "../../kernels/cases-loss.ts";
import { scorerGradientCases } from "../../kernels/gradient-cases.ts";

/** Central differences in float64: the error of the quotient is about STEP^2, that of the arithmetic 1e-16 / STEP. */
const STEP = 1e-5;
const TOLERANCE = 1e-8;

describe("backward twins against finite differences", () => {
  it.each([...scorerGradientCases(), ...lossGradientCases()])("$title", ({ inputs, scalar, gradient }) => {
    const given = inputs();
    const claimed = gradient(given);
    expect(Object.keys(claimed)).toEqual(Object.keys(given));
    for (const [name, values] of Object.entries(claimed)) {
      expect([name, values.length]).toEqual([name, given[name].length]);
      expect([name, values.some((value) => Math.abs(value) > 1e-3)]).toEqual([name, true]);
      for (let i = 0; i < values.length; i++) {
        const moved = (step: number) => {
          const inputsMoved = inputs();
          inputsMoved[name][i] += step;
          return scalar(inputsMoved);
        };
        const slope = (moved(STEP) - moved(-STEP)) / (2 * STEP);
        const error = Math.abs(slope - values[i]) / Math.max(1, Math.abs(slope));
        expect([name, i, error < TOLERANCE ? "within" : `${values[i]} instead of ${slope}`]).toEqual([
          name,
          i,
          "within",
        ]);
      }
    }
  });
});
