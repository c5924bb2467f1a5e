/** The mean's promises that a comparison within tolerances cannot see: they are about bits. */
import { afterAll, expect, it } from "vitest";
import { createEngine } from "../../engine/model.ts";
import { runKernel } from "../../engine/run-kernel.ts";
import { floats } from "../../kernels/case.ts";
import { seededRandom } from "../../kernels/random.ts";
import { spanMean } from "../../kernels/span-mean.ts";
import { firstBitDifference } from "../support/compare.ts";

const engine = await createEngine();
afterAll(() => engine[Symbol.dispose]());

const D = 5;

async function means(x: Float32Array, spans: readonly (readonly number[])[]): Promise<Float32Array[]> {
  const buffers = { x, spans: Uint32Array.from(spans.flat()), out: new Float32Array(spans.length * D) };
  const { out } = await runKernel(engine.device, engine.pipelines, spanMean({ d: D }), buffers, spans.length);
  return spans.map((_, s) => (out as Float32Array).subarray(s * D, (s + 1) * D));
}

it.each([2, 255, 256, 257, 512, 700])("a mean of %i tokens has the same bits wherever they lie", async (count) => {
  // The tokens twice: the second time 13 rows further on, so that either half can come from either place.
  const random = seededRandom(count);
  const tokens = floats(random, count * D, 3);
  const again = count + 13;
  const x = floats(random, (again + count) * D, 100);
  x.set(tokens, 0);
  x.set(tokens, again * D);
  const cuts = [0, 1, 2, 100, 255, 256, 257, count - 1, count].filter((cut) => cut >= 0 && cut <= count);
  const spans = cuts.flatMap((cut) => [
    [0, cut, again + cut, count - cut],
    [again, cut, cut, count - cut],
  ]);
  const [first, ...others] = await means(x, spans);
  for (const [i, other] of others.entries())
    expect([spans[i + 1], firstBitDifference(other, first)]).toEqual([spans[i + 1], undefined]);
  const exact = Array.from({ length: D }, (_, i) => {
    let sum = 0;
    for (let t = 0; t < count; t++) sum += tokens[t * D + i];
    return sum / count;
  });
  for (const [i, value] of exact.entries()) expect(Math.abs(first[i] - value)).toBeLessThan(1e-6);
});

it("a mean of one token is that token's row: signed zeros and the largest numbers too", async () => {
  const x = Float32Array.of(1, 2, 3, 4, 5, -0, 0, 3.4028234663852886e38, -1.1754943508222875e-38, 0.1);
  const row = x.slice(D);
  const found = await means(x, [
    [1, 1, 0, 0],
    [0, 0, 1, 1],
  ]);
  for (const mean of found) expect(firstBitDifference(mean, row)).toBeUndefined();
});

it("a token that is not finite shows in its mean", async () => {
  const x = new Float32Array(3 * D).fill(1);
  x[D] = Number.NaN;
  x[D + 1] = Number.POSITIVE_INFINITY;
  const [mean] = await means(x, [[0, 2, 2, 1]]);
  expect([...mean]).toEqual([Number.NaN, Number.POSITIVE_INFINITY, 1, 1, 1]);
});
