/** A small scorer whose every part follows from a seed. */
import { seededRandom } from "../../kernels/random.ts";
import type { SavedScorer } from "../../scorer/scorer-file.ts";
import { initialWeights, type ScorerHead, type ScorerSpec } from "../../scorer/scorer-spec.ts";

/** D of the scorer. */
export const DIM = 6;

/** The scorer of a seed. */
export function scorer(seed: number, head: ScorerHead = "listwise", change: Partial<SavedScorer> = {}): SavedScorer {
  const spec: ScorerSpec = { head, dim: DIM, width: 4, heads: 2, ffn: 5, tau: 0.2 };
  const random = seededRandom(seed);
  const row = () => Float32Array.from({ length: 2 * DIM }, () => random() + 0.1);
  return {
    spec,
    base: { name: "demo", fingerprint: "abc" },
    layer: 3,
    pooling: "last",
    system: null,
    standardise: { mean: row(), scale: row() },
    training: { seed, curve: [1, 0.5], note: "ä" },
    weights: initialWeights(spec, seed),
    ...change,
  };
}
