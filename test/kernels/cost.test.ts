import { describe, expect, it } from "vitest";
import { packBatches } from "../../engine/batch.ts";
import { attentionExtent, attentionTiles } from "../../kernels/attention.ts";
import { kernelCases } from "../../kernels/cases.ts";
import type { Cost, Extent } from "../../kernels/kernel.ts";
import { matmul } from "../../kernels/matmul.ts";

const cases = [4, 0].flatMap((subgroupSize) => kernelCases({ subgroupSize, textures: false }));

/** A kernel's own words for how far its data reach, where a case's buffers hold them. */
function extentOf(kernel: string, rows: number, buffers: Record<string, ArrayLike<number>>): Extent | undefined {
  const { spans, tiles } = buffers;
  if (kernel === "attention") return attentionExtent(Uint32Array.from(spans!), Uint32Array.from(tiles!), 0, 0, rows);
  return undefined;
}

describe("the cost of a dispatch", () => {
  it.each([...new Set(cases.map(({ kernel }) => kernel.name))])("%s: at most what its buffers hold", (op) => {
    for (const { kernel, rows, buffers, title } of cases.filter(({ kernel }) => kernel.name === op)) {
      const held = buffers();
      const most = kernel.bindings
        .filter(({ name }) => name !== "params")
        .reduce((sum, { name, access }) => sum + held[name]!.byteLength * (access === "read_write" ? 2 : 1), 0);
      const { flops, bytes } = kernel.cost!(rows, extentOf(op, rows, held));
      expect([title, Number.isSafeInteger(flops), Number.isSafeInteger(bytes)]).toEqual([title, true, true]);
      expect([title, bytes]).toEqual([title, expect.toSatisfy((value: number) => value > 0 && value <= most)]);
      if (!["rowGather", "canonicalOrder"].includes(op)) expect([title, flops > 0]).toEqual([title, true]);
    }
  });

  it("of a product: its multiply-adds, every matrix once, packed weights in their own size", () => {
    const shape = { k: 64, n: 48, bias: false, outStride: 48, outOffset: 0, tileRows: 4, tileCols: 2, lanes: 32 };
    const cost = (more: object): Cost =>
      matmul({ ...shape, weight: "f32", epilogue: "store", subgroup: 0, textures: false, ...more }).cost!(10);
    expect(cost({})).toEqual({ flops: 2 * 10 * 64 * 48, bytes: 4 * (10 * 64 + 64 * 48 + 10 * 48) });
    expect(cost({ weight: "bf16" }).bytes).toBe(4 * 10 * 64 + 2 * 64 * 48 + 4 * 10 * 48);
    expect(cost({ epilogue: "add" })).toEqual({
      flops: 2 * 10 * 64 * 48 + 10 * 48,
      bytes: 4 * (10 * 64 + 64 * 48 + 2 * 10 * 48),
    });
    expect(cost({ epilogue: "glu", activation: "silu" }).flops).toBe(4 * 10 * 64 * 48 + 10 * 48);
  });
});

describe("what attention reaches", () => {
  const ids = (first: number, count: number) => Int32Array.from({ length: count }, (_, i) => first + i);
  const [head, other] = [ids(1, 11), ids(50, 9)];
  const [batch] = packBatches(
    [
      { sequences: [head, Int32Array.from([...head, 1, 2, 3]), Int32Array.from([...head, 7, 8])] },
      { sequences: [other] },
    ],
    { budget: 128 },
  );
  const { spans } = batch!;
  const rows = batch!.ids.length;

  it.each([
    ["all", 0, 8],
    ["all, a row a tile", 0, 1],
    ["a window of 4", 4, 4],
  ])("%s: pairs and distinct rows, as counted one by one", (_, window, tileRows) => {
    const tiles = attentionTiles(spans, rows, tileRows);
    let pairs = 0;
    const seen = new Set<number>();
    for (let row = 0; row < rows; row++) {
      const [prefix, length, own, position] = spans.subarray(4 * row, 4 * row + 4) as unknown as number[];
      for (let j = window > 0 ? Math.max(0, position! + 1 - window) : 0; j <= position!; j++) {
        pairs++;
        seen.add(j < length! ? prefix! + j : own! + j - length!);
      }
    }
    const whole = attentionExtent(spans, tiles, window);
    expect(whole).toEqual({ outputs: rows, inputs: seen.size, pairs });
    const half = tiles.length >> 2;
    const parts = [attentionExtent(spans, tiles, window, 0, half), attentionExtent(spans, tiles, window, half)];
    expect(parts.reduce((sum, part) => sum + part.pairs, 0)).toBe(pairs);
  });
});
