/**
 * The one list of kernel cases: it drives the comparison with the CPU twins, and whatever else walks over all kernels.
 * A case is data: a kernel, its seeded buffers, its twin. Every op appears with awkward sizes, with every weight type,
 * and in its variants with and without subgroups.
 */
import { type AttentionVariant, attention, attentionFitsTextures, attentionTiles, attentionTwin } from "./attention.ts";
import { floats, type KernelCase } from "./case.ts";
import { lossCases } from "./cases-loss.ts";
import { matmulCases } from "./cases-matmul.ts";
import { scorerCases } from "./cases-scorer.ts";
import { type CosineVariant, cosine, cosineTwin } from "./cosine.ts";
import type { Target } from "./kernel.ts";
import { type NormVariant, norm, normTwin } from "./norm.ts";
import { seededRandom } from "./random.ts";
import { type RopeVariant, rope, ropeTwin } from "./rope.ts";
import { type RowGatherVariant, rowGather, rowGatherTwin } from "./row-gather.ts";
import { type SpanMeanVariant, spanMean, spanMeanTwin } from "./span-mean.ts";

function normCases(target: Target): KernelCase[] {
  const cases: KernelCase[] = [];
  const plain = { kind: "rms", eps: 1e-5, weightOffset: 0, bias: false, groups: 1, output: "store" } as const;
  const gemma = { kind: "rms", weightOffset: 1 } as const;
  const layer = { kind: "layer", bias: true } as const;
  for (const subgroup of new Set([target.subgroupSize, 0])) {
    for (const [rows, d, more] of [
      [3, 57, {}],
      [64, 64, gemma],
      [2, 1001, { bias: true }],
      [65, 192, { output: "add" }],
      [5, 57, { ...gemma, output: "add" }],
      [7, 64, { ...gemma, groups: 3, stride: 200, output: "inPlace" }],
      [33, 80, { groups: 2, output: "inPlace" }],
      [4, 3, { groups: 5, stride: 16 }],
      [1, 1, { ...layer, groups: 2 }],
      [65, 64, layer],
      [2, 1001, layer],
      [3, 65, { ...layer, groups: 2, stride: 131, output: "add" }],
      [9, 57, { kind: "layer", groups: 2, stride: 120, output: "inPlace" }],
      [33000, 3, {}],
      [33000, 3, { output: "add" }],
      [11000, 3, { groups: 3, stride: 10, output: "inPlace" }],
      [1, 1, {}],
    ] as const satisfies readonly (readonly [number, number, Partial<NormVariant>])[]) {
      const variant: NormVariant = { ...plain, d, stride: d * ("groups" in more ? more.groups : 1), ...more, subgroup };
      const { kind, weightOffset, groups, stride, output } = variant;
      // The tree is slow on software adapters; the many rows are there for the grid, which both variants share.
      if (rows > 10000 && subgroup !== target.subgroupSize) continue;
      cases.push({
        title: `${kind} ${rows} x ${groups} x ${d} of ${stride}, ${output}${weightOffset ? ", weight + 1" : ""}${variant.bias ? ", bias" : ""}, subgroup ${subgroup}`,
        kernel: norm(variant),
        rows,
        offset: 0,
        buffers: () => {
          const random = seededRandom(rows + d);
          return {
            x: floats(random, rows * stride, 30),
            weight: floats(random, d),
            ...(variant.bias ? { bias: floats(random, d) } : {}),
            ...(output === "inPlace" ? {} : { out: floats(random, rows * groups * d) }),
          };
        },
        twin: (buffers) => normTwin(variant, buffers, rows),
      });
    }
  }
  return cases;
}

function ropeCases(): KernelCase[] {
  return (
    [
      [1, { heads: 1, headDim: 2, rotary: 2, stride: 2 }],
      [57, { heads: 3, headDim: 10, rotary: 10, stride: 64 }],
      [9, { heads: 2, headDim: 7, rotary: 2, stride: 15 }],
      [57, { heads: 4, headDim: 80, rotary: 32, stride: 400 }],
      [65, { heads: 2, headDim: 64, rotary: 64, stride: 128 }],
    ] as const satisfies readonly (readonly [number, RopeVariant])[]
  ).map(([rows, variant]) => ({
    title: `${rows} rows, ${variant.rotary} of ${variant.heads} heads of ${variant.headDim}, stride ${variant.stride}`,
    kernel: rope(variant),
    rows,
    offset: 0,
    buffers: () => {
      const random = seededRandom(rows);
      const turns = Uint32Array.from({ length: rows }, () => Math.floor(random() * 100));
      const table = Float32Array.from({ length: 100 * variant.rotary }, (_, i) =>
        i % 2 === 0 ? Math.cos(i) : Math.sin(i - 1),
      );
      return { x: floats(random, rows * variant.stride), turns, table };
    },
    twin: (buffers) => ropeTwin(variant, buffers, rows),
  }));
}

function rowGatherCases(): KernelCase[] {
  return [
    [1, 1, 0],
    [3, 57, 2],
    [65, 64, 1],
    [2100, 1001, 0],
  ].map(([rows, d, offset]) => {
    const variant: RowGatherVariant = { d };
    return {
      title: `${rows} rows of ${d} to ${offset}`,
      kernel: rowGather(variant),
      rows,
      offset,
      buffers: () => {
        const random = seededRandom(rows + d);
        return {
          x: floats(random, 70 * d),
          index: Uint32Array.from({ length: rows }, () => Math.floor(random() * 70)),
          out: new Float32Array((rows + offset) * d),
        };
      },
      twin: (buffers) => rowGatherTwin(variant, buffers, rows, offset),
    };
  });
}

function spanMeanCases(): KernelCase[] {
  // Lengths of the two ranges: one of them empty, single tokens, sums of one block, of several, and across a border.
  const lengths = [
    ...[1, 3, 57, 63, 64, 65, 255, 256, 257, 1001].flatMap((n) => [
      [n, 0],
      [0, n],
    ]),
    ...[
      [1, 1],
      [3, 57],
      [255, 1],
      [256, 1],
      [200, 100],
      [700, 301],
    ],
  ];
  const table = 1100;
  return [
    [1, 1, 0],
    [2100, 1001, 5],
    [65, 3, 0],
    [3, 57, 2],
    [26, 64, 1],
  ].map(([rows, d, offset]) => {
    const variant: SpanMeanVariant = { d };
    return {
      title: `${rows} means of rows of ${d} to ${offset}`,
      kernel: spanMean(variant),
      rows,
      offset,
      buffers: () => {
        const random = seededRandom(rows + d);
        // The long sums are in the small tables: a wide one is there for the grid.
        const some = d > 64 ? lengths.slice(0, 4) : lengths;
        const spans = Array.from({ length: rows }, (_, s) => {
          const [a, b] = some[(s + 3) % some.length];
          return [Math.floor(random() * (table - a)), a, Math.floor(random() * (table - b)), b];
        });
        return {
          x: floats(random, table * d),
          spans: Uint32Array.from(spans.flat()),
          out: new Float32Array((rows + offset) * d),
        };
      },
      twin: (buffers) => spanMeanTwin(variant, buffers, rows, offset),
    };
  });
}

function cosineCases(target: Target): KernelCase[] {
  const cases: KernelCase[] = [];
  for (const subgroup of new Set([target.subgroupSize, 0])) {
    for (const [rows, d] of [
      [1, 1],
      [3, 57],
      [65, 192],
      [7, 1001],
    ] as const) {
      const variant: CosineVariant = { d, subgroup };
      cases.push({
        title: `${rows} pairs of ${d} subgroup ${subgroup}`,
        kernel: cosine(variant),
        rows,
        offset: 0,
        buffers: () => {
          const random = seededRandom(rows + d);
          const x = floats(random, 9 * d, 10);
          x.fill(0, 0, d);
          x[d] = Number.NaN;
          x[2 * d] = Number.POSITIVE_INFINITY;
          const pairs = Uint32Array.from({ length: 2 * rows }, (_, i) =>
            i < 6 ? 3 + (i % 6) : Math.floor(random() * 9),
          );
          return { x, pairs, out: new Float32Array(2 * rows) };
        },
        twin: (buffers) => cosineTwin(variant, buffers, rows),
      });
    }
  }
  return cases;
}

/** Spans of sequences (prefix length, own lengths...) laid out one after another, all rows as queries. */
function packedSpans(layouts: readonly (readonly [number, ...number[]])[]): { spans: Uint32Array; rows: number } {
  const spans: number[] = [];
  let row = 0;
  for (const [prefix, ...own] of layouts) {
    const prefixStart = row;
    for (let i = 0; i < prefix; i++, row++) spans.push(prefixStart, prefix, prefixStart + prefix, i);
    for (const length of own) {
      const ownStart = row;
      for (let i = 0; i < length; i++, row++) spans.push(prefixStart, prefix, ownStart, prefix + i);
    }
  }
  return { spans: Uint32Array.from(spans), rows: row };
}

function attentionCases(target: Target): KernelCase[] {
  const cases: KernelCase[] = [];
  const layouts = [[0, 1], [3, 57, 1, 2], [0, 65], [33, 5, 31, 1], [64]] as const;
  const { spans, rows } = packedSpans(layouts);
  const places = [
    { subgroup: 0, textures: false },
    ...(target.subgroupSize > 0 ? [false, true].map((textures) => ({ subgroup: target.subgroupSize, textures })) : []),
  ];
  for (const { subgroup, textures } of places) {
    // Heads, of keys, head size, window, rows a tile; bound of the scores, size of the numbers.
    const shapes: readonly (readonly number[])[] = [
      [1, 1, 2, 0, 1],
      [4, 2, 16, 0, 4],
      [4, 4, 10, 8, 3],
      [6, 2, 32, 0, 8],
      [2, 1, 32, 0, 4, 5, 0.3],
      [2, 1, 32, 1000, 4, 50, 10],
      [3, 1, 66, 8, 8, 5, 20],
      [1, 1, 256, 0, 4, 50],
      // The text without subgroups is the same for all wider heads, and slow to compile.
      ...(subgroup > 0
        ? [
            [3, 3, 6, 0, 2],
            [3, 3, 72, 0, 4],
            [3, 3, 80, 0, 4],
            [2, 1, 128, 40, 2],
          ]
        : []),
      ...(subgroup > 0 ? [96, 112, 160, 192, 320, 330, 512].map((headDim) => [2, 1, headDim, headDim % 50, 1]) : []),
      ...(textures
        ? [
            [9, 3, 64, 0, 16],
            [2, 2, 20, 11, 5],
          ]
        : []),
      [2, 1, 64, 1, 4],
    ];
    for (const [heads, kvHeads, headDim, window, tileRows, softcap = 0, size = 3] of shapes) {
      const scale = 1 / Math.sqrt(headDim);
      if (textures && !attentionFitsTextures({ headDim, subgroup })) continue;
      const variant: AttentionVariant = {
        heads,
        kvHeads,
        headDim,
        scale,
        softcap,
        window,
        tileRows,
        subgroup,
        textures,
      };
      const tiles = attentionTiles(spans, rows, tileRows);
      cases.push({
        title: `${rows} packed rows, ${heads}/${kvHeads} heads of ${headDim}, window ${window}${softcap > 0 ? `, bound ${softcap} of numbers to ${size}` : ""}, tile ${tileRows}, subgroup ${subgroup}${textures ? ", textures" : ""}`,
        kernel: attention(variant),
        rows: tiles.length / 2,
        offset: 0,
        buffers: () => {
          const random = seededRandom(headDim);
          return {
            q: floats(random, rows * heads * headDim, size),
            kv: floats(random, rows * 2 * kvHeads * headDim, size),
            spans,
            tiles,
            out: new Float32Array(rows * heads * headDim),
          };
        },
        twin: (buffers) => attentionTwin(variant, buffers, tiles.length / 2),
      });
    }
  }
  return cases;
}

/** All cases for a target. */
export function kernelCases(target: Target): KernelCase[] {
  return [
    ...matmulCases(target),
    ...normCases(target),
    ...ropeCases(),
    ...rowGatherCases(),
    ...spanMeanCases(),
    ...cosineCases(target),
    ...attentionCases(target),
    ...scorerCases(target),
    ...lossCases(target),
  ];
}
