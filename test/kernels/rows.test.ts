/** A row's result does not depend on the rows beside it, bit for bit: the ground of the engine's third promise. */
import { afterAll, describe, expect, it } from "vitest";
import { createEngine } from "../../engine/model.ts";
import { runKernel } from "../../engine/run-kernel.ts";
import { type AttentionVariant, attention, attentionTiles } from "../../kernels/attention.ts";
import { cosine } from "../../kernels/cosine.ts";
import type { Kernel, TwinBuffer } from "../../kernels/kernel.ts";
import { bufferTile, matmul } from "../../kernels/matmul.ts";
import { type NormVariant, norm } from "../../kernels/norm.ts";
import { seededRandom } from "../../kernels/random.ts";
import { rope } from "../../kernels/rope.ts";
import { firstBitDifference } from "../support/compare.ts";

const engine = await createEngine();
afterAll(() => engine[Symbol.dispose]());

const SUBGROUPS = [...new Set([engine.target.subgroupSize, 0])];

const NORM: NormVariant = {
  ...{ kind: "rms", d: 8, eps: 1e-5, weightOffset: 0, bias: false },
  ...{ groups: 1, stride: 8, output: "store", subgroup: 0 },
};

function floats(seed: number, count: number): Float32Array {
  const random = seededRandom(seed);
  return Float32Array.from({ length: count }, () => random() * 6 - 3);
}

async function run(kernel: Kernel, buffers: Record<string, TwinBuffer>, rows: number, name = "out") {
  return (await runKernel(engine.device, engine.pipelines, kernel, buffers, rows))[name] as Float32Array;
}

/** Bit differences between rows of a run over all rows and the same rows run as others of their number. */
async function compareRows(
  total: number,
  width: number,
  over: (first: number, count: number) => Promise<Float32Array>,
): Promise<string[]> {
  const whole = await over(0, total);
  expect(new Set(whole).size).toBeGreaterThan(total);
  const differences: string[] = [];
  for (const [first, count] of [
    [0, 1],
    [total - 1, 1],
    [3, 7],
    [5, 8],
    [1, 9],
    [2, total - 3],
  ] as const) {
    const some = await over(first, count);
    const difference = firstBitDifference(some, whole.subarray(first * width, (first + count) * width));
    if (difference !== undefined) differences.push(`rows ${first} to ${first + count - 1}: ${difference}`);
  }
  return differences;
}

describe.each(SUBGROUPS)("subgroup %i", (subgroup) => {
  it.each([
    ["f32", "store"],
    ["bf16", "add"],
    ["f16", "glu"],
  ] as const)("matmul %s %s", async (weight, epilogue) => {
    const [k, n, total] = [57, 70, 29];
    const kernel = matmul({
      k,
      n,
      weight,
      epilogue,
      bias: false,
      outStride: n,
      outOffset: 0,
      ...bufferTile(engine.target, { k, n, epilogue }),
      subgroup,
    });
    const random = seededRandom(9);
    const halves = () => 0x3000 + Math.floor(random() * 0x0800);
    const packed = () => Uint32Array.from({ length: n * 29 }, () => (halves() | (halves() << 16)) >>> 0);
    const weights = (): TwinBuffer => (weight === "f32" ? floats(8, n * k) : packed());
    const named = epilogue === "glu" ? { gate: weights(), up: weights() } : { weight: weights() };
    const [x, out] = [floats(1, total * k), floats(2, total * n)];
    const differences = await compareRows(total, n, (first, count) => {
      const cut = (values: Float32Array, width: number) => values.slice(first * width, (first + count) * width);
      return run(kernel, { x: cut(x, k), ...named, out: cut(out, n) }, count);
    });
    expect(differences).toEqual([]);
  });

  it.each([
    ["rms", "store"],
    ["rms", "inPlace"],
    ["layer", "add"],
  ] as const)("norm %s %s", async (kind, output) => {
    const [groups, d, stride, total] = [2, 57, 120, 29];
    const kernel = norm({ ...NORM, kind, d, groups, stride, output, subgroup });
    const [x, weight, out] = [floats(3, total * stride), floats(4, d), floats(2, total * groups * d)];
    const written = output === "inPlace" ? "x" : "out";
    const width = output === "inPlace" ? stride : groups * d;
    const differences = await compareRows(total, width, (first, count) => {
      const cut = (values: Float32Array, size: number) => values.slice(first * size, (first + count) * size);
      const own = { x: cut(x, stride), weight, ...(output === "inPlace" ? {} : { out: cut(out, width) }) };
      return run(kernel, own, count, written);
    });
    expect(differences).toEqual([]);
  });

  it("cosine", async () => {
    const [d, total] = [57, 40];
    const kernel = cosine({ d, subgroup });
    const x = floats(5, 2 * total * d);
    const pairs = Uint32Array.from({ length: 2 * total }, (_, i) => i);
    const differences = await compareRows(total, 2, (first, count) =>
      run(kernel, { x, pairs: pairs.slice(2 * first, 2 * (first + count)), out: new Float32Array(2 * count) }, count),
    );
    expect(differences).toEqual([]);
  });
});

const PLACES = SUBGROUPS.flatMap((subgroup) =>
  (subgroup > 0 ? [false, true] : [false]).map((textures) => ({ subgroup, textures })),
);

describe.each(PLACES)("subgroup $subgroup, textures $textures", ({ subgroup, textures }) => {
  it.each([
    [0, 20, 0],
    [5, 20, 5],
    [40, 20, 0],
    [0, 264, 0],
  ])(
    "attention, window %i, heads of %i, bound %i: alone, with a prefix elsewhere, and in tiles cut elsewhere",
    async (window, headDim, softcap) => {
      const [heads, kvHeads, length] = [4, 2, 83];
      const [queryWidth, keyWidth] = [heads * headDim, 2 * kvHeads * headDim];
      const variant: AttentionVariant = {
        ...{ heads, kvHeads, headDim, window, softcap },
        ...{ scale: 0.2, tileRows: 4, subgroup, textures },
      };
      const kernel = attention(variant);
      const [q, kv] = [floats(6, length * queryWidth), floats(7, length * keyWidth)];
      const attend = (queries: Float32Array, keys: Float32Array, spans: Uint32Array, tiles: Uint32Array) =>
        run(kernel, { q: queries, kv: keys, spans, tiles, out: new Float32Array(queries.length) }, tiles.length / 2);
      const spansFrom = (first: number, prefix: number, own: number, from: number, to: number) =>
        Uint32Array.from({ length: 4 * (to - from) }, (_, i) => [first, prefix, own, from + (i >> 2)][i % 4]);

      const plain = spansFrom(0, 0, 0, 0, length);
      const alone = await attend(q, kv, plain, attentionTiles(plain, length, 4));

      const oneByOne = Uint32Array.from({ length: 2 * length }, (_, i) => (i % 2 === 0 ? i / 2 : 1));
      expect(firstBitDifference(await attend(q, kv, plain, oneByOne), alone)).toBeUndefined();

      // The first 37 keys lie behind a stranger's 11 rows, the others behind another's 5; queries from position 30 on only.
      const [prefix, from] = [37, 30];
      const stranger = floats(99, 16 * keyWidth);
      const keys = new Float32Array((length + 16) * keyWidth);
      keys.set(stranger.subarray(0, 11 * keyWidth));
      keys.set(kv.subarray(0, prefix * keyWidth), 11 * keyWidth);
      keys.set(stranger.subarray(11 * keyWidth), (11 + prefix) * keyWidth);
      keys.set(kv.subarray(prefix * keyWidth), (16 + prefix) * keyWidth);
      const apart = spansFrom(11, prefix, 16 + prefix, from, length);
      const rows = length - from;
      const some = await attend(q.slice(from * queryWidth), keys, apart, attentionTiles(apart, rows, 4));
      expect(firstBitDifference(some, alone.subarray(from * queryWidth))).toBeUndefined();
    },
  );
});

it("rope", async () => {
  const total = 29;
  const kernel = rope({ heads: 2, headDim: 14, rotary: 10, stride: 33 });
  const [x, table] = [floats(10, total * 33), floats(11, total * 10)];
  const turns = Uint32Array.from({ length: total }, (_, row) => (row * 7) % total);
  const differences = await compareRows(total, 33, (first, count) => {
    const own = { x: x.slice(first * 33, (first + count) * 33), turns: turns.slice(first, first + count) };
    return run(kernel, { ...own, table }, count, "x");
  });
  expect(differences).toEqual([]);
});

it("no rows: no dispatch, and the output stays as it was", async () => {
  const out = floats(12, 8);
  const kernel = norm(NORM);
  const after = await run(kernel, { x: floats(13, 8), weight: floats(14, 8), out }, 0);
  expect(after).toEqual(out);
});
