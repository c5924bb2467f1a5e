import { expect, it } from "vitest";
import { packBatches } from "../../engine/batch.ts";
import { batchFlops } from "../../engine/cost.ts";
import type { DecoderConfig } from "../../weights/config.ts";
import { randomGroups } from "../support/states.ts";

const SIZES = { hiddenSize: 24, heads: 4, kvHeads: 2, headDim: 6, ffn: 40 };

it("operations are those of every matrix and key, the last block's of the rows that are read out", () => {
  for (const window of [null, 7]) {
    const config = { ...SIZES, slidingWindow: window } as DecoderConfig;
    for (const sharePrefix of [true, false]) {
      const groups = randomGroups(3, 8, 30);
      const batches = packBatches(groups, { budget: 1e6, sharePrefix });
      expect(batches).toHaveLength(1);
      /** Multiply-adds of one row past its keys and values, and of making those. */
      const [keyValue, rest] = [24 * 2 * 2 * 6, 24 * 4 * 6 + 4 * 6 * 24 + 3 * 24 * 40];
      const attention = (position: number) => {
        let keys = 0;
        for (let j = 0; j <= position; j++) if (window === null || j > position - window) keys++;
        return keys * 2 * 4 * 6;
      };
      // The distinct rows: the shared prefix once.
      const positions = [...batches[0].spans].filter((_, i) => i % 4 === 3);
      const whole = positions.reduce((sum, position) => sum + keyValue + rest + attention(position), 0);
      const lasts = groups.flatMap(({ sequences }) => sequences.map(({ length }) => length - 1));
      const pruned = positions.length * keyValue + lasts.reduce((sum, last) => sum + rest + attention(last), 0);
      for (const layer of [0, 1, 2, 5]) {
        const blocks = layer === 0 ? 0 : (layer - 1) * whole + pruned;
        expect(batchFlops(config, batches[0], layer)).toBe(2 * blocks);
      }
    }
  }
});
