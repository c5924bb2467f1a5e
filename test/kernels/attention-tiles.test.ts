import { expect, it } from "vitest";
import { attentionTiles } from "../../kernels/attention.ts";
import { seededRandom } from "../../kernels/random.ts";

/** Rows of random runs: runs of consecutive positions of one sequence, some of which begin alike. */
function randomSpans(seed: number) {
  const random = seededRandom(seed);
  const below = (n: number) => Math.floor(random() * n);
  const spans: number[] = [];
  for (let run = 0; run < 12; run++) {
    const [prefixStart, prefixLength, ownStart, position] = [below(2), below(2), below(2), below(3)];
    const length = 1 + below(20);
    for (let i = 0; i < length; i++) spans.push(prefixStart, prefixLength, ownStart, position + i);
  }
  return Uint32Array.from(spans);
}

it("tiles hold every row once, in order; a tile is consecutive positions of one sequence and as long as it can be", () => {
  for (let seed = 0; seed < 50; seed++) {
    const spans = randomSpans(seed);
    const rows = spans.length / 4;
    const row = (r: number) => [...spans.subarray(4 * r, 4 * r + 4)];
    const follows = (r: number) => {
      const [before, now] = [row(r - 1), row(r)];
      return [0, 1, 2].every((i) => before[i] === now[i]) && now[3] === before[3] + 1;
    };
    const tileRows = 1 + (seed % 8);
    const tiles = attentionTiles(spans, rows, tileRows);
    let next = 0;
    for (let i = 0; i < tiles.length; i += 2) {
      const [first, count] = [tiles[i], tiles[i + 1]];
      expect(first).toBe(next);
      expect(count).toBeGreaterThanOrEqual(1);
      expect(count).toBeLessThanOrEqual(tileRows);
      for (let r = first + 1; r < first + count; r++) expect(follows(r)).toBe(true);
      next = first + count;
      if (count < tileRows && next < rows) expect(follows(next)).toBe(false);
    }
    expect(next).toBe(rows);
  }
  expect(attentionTiles(new Uint32Array(0), 0, 4)).toEqual(new Uint32Array(0));
});
