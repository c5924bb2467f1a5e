import { describe, expect, it } from "vitest";
import { packBatches } from "../../engine/batch.ts";
import { batchFlops } from "../../engine/cost.ts";
import type { BlockSpec, DecoderConfig, MatrixSpec, ModelSpec } from "../../engine/decoder.ts";
import { randomGroups } from "../support/states.ts";

const SIZES = { hiddenSize: 24, heads: 4, kvHeads: 2, headDim: 6, ffn: 40 };
const LAYERS = 5;

/** A model of blocks that differ in their windows, with a gate or without. */
function modelOf(windows: readonly (number | null)[], gated: boolean): ModelSpec {
  const gate = gated ? ({} as MatrixSpec) : null;
  const blocks = windows.map((window) => ({ window, gate }) as BlockSpec);
  return { config: SIZES as DecoderConfig, form: "stored", embedding: "", positions: null, blocks, prefix: "" };
}

const CASES = ([[null], [7], [7, null], [null, null, 3]] as const).flatMap((pattern) =>
  [true, false].flatMap((gated) => [true, false].map((sharePrefix) => ({ pattern, gated, sharePrefix }))),
);

describe("operations are those of every matrix and key, the last block's of the rows that are read out", () => {
  it.each(CASES)("windows $pattern, gate $gated, shared prefixes $sharePrefix", ({ pattern, gated, sharePrefix }) => {
    const windows = Array.from({ length: LAYERS }, (_, i) => pattern[i % pattern.length]);
    const groups = randomGroups(3, 8, 30);
    const batches = packBatches(groups, { budget: 1e6, sharePrefix });
    expect(batches).toHaveLength(1);
    /** Multiply-adds of one row past its keys and values, and of making those. */
    const [keyValue, rest] = [24 * 2 * 2 * 6, 24 * 4 * 6 + 4 * 6 * 24 + (gated ? 3 : 2) * 24 * 40];
    const attention = (position: number, window: number | null) => {
      let keys = 0;
      for (let j = 0; j <= position; j++) if (window === null || j > position - window) keys++;
      return keys * 2 * 4 * 6;
    };
    // The distinct rows: the shared prefix once.
    const positions = [...batches[0].spans].filter((_, i) => i % 4 === 3);
    const lasts = groups.flatMap(({ sequences }) => sequences.map(({ length }) => length - 1));
    const past = (rows: readonly number[], window: number | null) =>
      rows.reduce((sum, position) => sum + rest + attention(position, window), positions.length * keyValue);
    const spec = modelOf(windows, gated);
    for (const layer of [0, 1, 2, 5]) {
      const below = windows.slice(0, Math.max(0, layer - 1)).map((window) => past(positions, window));
      const whole = below.reduce((sum, block) => sum + block, 0);
      const last = (rows: readonly number[]) => (layer === 0 ? 0 : past(rows, windows[layer - 1]));
      expect(batchFlops(spec, batches[0], layer)).toBe(2 * (whole + last(lasts)));
      expect(batchFlops(spec, batches[0], layer, "mean")).toBe(2 * (whole + last(positions)));
    }
  });
});
