/** The operands of the matmul job. */
import type { MatmulJob } from "./jobs.ts";
import { drawBf16, drawFloats } from "./values.ts";

/** x (T, K) and the weights (N, K), which bfloat16 holds exactly. */
export function matmulOperands({ rows, k, n, seed }: MatmulJob): {
  x: Float32Array<ArrayBuffer>;
  weight: Float32Array<ArrayBuffer>;
} {
  return {
    x: drawFloats({ seed, name: "x", count: rows * k, deviation: 1 }),
    weight: drawBf16({ seed, name: "weight", count: n * k, deviation: 1 / Math.sqrt(k) }),
  };
}
