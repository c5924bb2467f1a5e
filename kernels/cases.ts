/**
 * The one list of kernel cases: it drives the comparison with the CPU twins, and whatever else walks over all kernels.
 * A case is data: a kernel, its seeded buffers, its twin. Every op appears with awkward sizes, with every weight type,
 * and in its variants with and without subgroups.
 */
import { type AttentionVariant, attention, attentionTiles, attentionTwin } from "./attention.ts";
import { floats, type KernelCase } from "./case.ts";
import { lossCases } from "./cases-loss.ts";
import { scorerCases } from "./cases-scorer.ts";
import { type CosineVariant, cosine, cosineTwin } from "./cosine.ts";
import type { Target, TwinBuffer, WeightType } from "./kernel.ts";
import { type MatmulVariant, matmul, matmulTile, matmulTwin } from "./matmul.ts";
import { seededRandom } from "./random.ts";
import { type RmsNormVariant, rmsNorm, rmsNormTwin } from "./rms-norm.ts";
import { type RopeVariant, rope, ropeTwin } from "./rope.ts";
import { type RowGatherVariant, rowGather, rowGatherTwin } from "./row-gather.ts";
import { type SpanMeanVariant, spanMean, spanMeanTwin } from "./span-mean.ts";
import { weightRowWords } from "./weight-load.ts";

/** `n` rows of `k` weights in storage form; f16 rows hold subnormals too. */
function weights(random: () => number, weight: WeightType, n: number, k: number): TwinBuffer {
  const words = n * weightRowWords(weight, k);
  if (weight === "f32") return floats(random, words);
  const half = () => {
    const sign = random() < 0.5 ? 0x8000 : 0;
    if (weight === "bf16") return sign | (0x3c00 + Math.floor(random() * 0x0380));
    return sign | (random() < 0.2 ? Math.floor(random() * 0x400) : 0x2000 + Math.floor(random() * 0x1c00));
  };
  return Uint32Array.from({ length: words }, () => (half() | (half() << 16)) >>> 0);
}

function matmulCase(variant: MatmulVariant, rows: number, offset = 0): KernelCase {
  const { k, n, weight, epilogue, bias, outStride } = variant;
  return {
    title: `${offset > 0 ? `${offset} to ` : ""}${rows} x ${k} x ${n} ${weight} ${epilogue}${bias ? " bias" : ""} tile ${variant.tileRows}x${variant.tileCols} subgroup ${variant.subgroup}`,
    kernel: matmul(variant),
    rows,
    offset,
    buffers: () => {
      const random = seededRandom(rows * 7919 + k * 31 + n);
      const names = epilogue === "swiglu" ? ["gate", "up"] : ["weight"];
      return {
        x: floats(random, rows * k),
        ...Object.fromEntries(names.map((name) => [name, weights(random, weight, n, k)])),
        ...(bias
          ? Object.fromEntries(names.map((name) => [name === "weight" ? "bias" : `${name}Bias`, floats(random, n)]))
          : {}),
        out: floats(random, rows * outStride),
      };
    },
    twin: (buffers) => matmulTwin(variant, buffers, rows, offset),
  };
}

function matmulCases(target: Target): KernelCase[] {
  const cases: KernelCase[] = [];
  // The tile's own size: it is 0 where the adapter's is wider than the tile.
  for (const subgroup of new Set([matmulTile(target, "store", 1).subgroup, 0])) {
    const add = (rows: number, k: number, n: number, weight: WeightType, more: Partial<MatmulVariant> = {}) => {
      const epilogue = more.epilogue ?? "store";
      const variant = {
        k,
        n,
        weight,
        epilogue,
        bias: false,
        outStride: n,
        outOffset: 0,
        ...matmulTile(target, epilogue, n),
        ...more,
        subgroup,
      };
      cases.push(matmulCase(variant, rows));
    };
    for (const rows of [1, 3, 57, 63, 64, 65, 1001]) add(rows, 64, 65, "bf16");
    for (const k of [1, 3, 57, 63, 64, 65, 1001]) add(5, k, 33, "bf16");
    for (const k of [2, 9, 172]) for (const weight of ["f32", "f16"] as const) add(5, k, 33, weight);
    for (const n of [1, 3, 57, 63, 64, 129, 1001]) add(9, 40, n, "f32");
    for (const epilogue of ["store", "add", "swiglu"] as const) {
      for (const weight of ["f32", "bf16", "f16"] as const)
        add(11, 96, 130, weight, { epilogue, bias: weight !== "f32" });
    }
    add(10, 64, 70, "bf16", { outStride: 200, outOffset: 101, epilogue: "swiglu" });
    // The rows of a split dispatch: the others are left as they are.
    const whole = {
      k: 40,
      n: 65,
      weight: "bf16",
      epilogue: "store",
      bias: false,
      outStride: 65,
      outOffset: 0,
    } as const;
    cases.push(matmulCase({ ...whole, ...matmulTile(target, "store", 65), subgroup }, 61, 24));
    for (const [tileRows, tileCols] of [
      [1, 1],
      [4, 4],
      [16, 2],
    ] as const) {
      add(21, 48, 77, "bf16", { tileRows, tileCols });
    }
  }
  return cases;
}

function rmsNormCases(target: Target): KernelCase[] {
  const cases: KernelCase[] = [];
  for (const subgroup of new Set([target.subgroupSize, 0])) {
    for (const [rows, d] of [
      [1, 1],
      [3, 57],
      [64, 64],
      [65, 192],
      [2, 1001],
      [33000, 3],
    ] as const) {
      // The tree is slow on software adapters; the many rows are there for the grid, which both variants share.
      if (rows > 32768 && subgroup !== target.subgroupSize) continue;
      const variant: RmsNormVariant = { d, eps: 1e-5, subgroup };
      cases.push({
        title: `${rows} x ${d} subgroup ${subgroup}`,
        kernel: rmsNorm(variant),
        rows,
        offset: 0,
        buffers: () => {
          const random = seededRandom(rows + d);
          return { x: floats(random, rows * d, 30), weight: floats(random, d), out: new Float32Array(rows * d) };
        },
        twin: (buffers) => rmsNormTwin(variant, buffers, rows),
      });
    }
  }
  return cases;
}

function ropeCases(): KernelCase[] {
  return (
    [
      [1, { heads: 1, headDim: 2, stride: 2 }],
      [57, { heads: 3, headDim: 10, stride: 64 }],
      [65, { heads: 2, headDim: 64, stride: 128 }],
    ] as const satisfies readonly (readonly [number, RopeVariant])[]
  ).map(([rows, variant]) => ({
    title: `${rows} rows, ${variant.heads} heads of ${variant.headDim}, stride ${variant.stride}`,
    kernel: rope(variant),
    rows,
    offset: 0,
    buffers: () => {
      const random = seededRandom(rows);
      const spans = Uint32Array.from({ length: rows * 4 }, (_, i) => (i % 4 === 3 ? Math.floor(random() * 100) : 0));
      const table = Float32Array.from({ length: 100 * variant.headDim }, (_, i) =>
        i % 2 === 0 ? Math.cos(i) : Math.sin(i - 1),
      );
      return { x: floats(random, rows * variant.stride), spans, table };
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
  for (const subgroup of new Set([target.subgroupSize, 0])) {
    for (const [heads, kvHeads, headDim, window, tileRows] of [
      [1, 1, 2, 0, 1],
      [4, 2, 16, 0, 4],
      [4, 4, 10, 8, 3],
      [6, 2, 32, 0, 8],
      [2, 1, 64, 1, 4],
      [3, 3, 80, 0, 4],
      [2, 1, 128, 40, 2],
    ] as const) {
      const variant: AttentionVariant = {
        heads,
        kvHeads,
        headDim,
        scale: 1 / Math.sqrt(headDim),
        window,
        tileRows,
        subgroup,
      };
      const tiles = attentionTiles(spans, rows, tileRows);
      cases.push({
        title: `${rows} packed rows, ${heads}/${kvHeads} heads of ${headDim}, window ${window}, tile ${tileRows}, subgroup ${subgroup}`,
        kernel: attention(variant),
        rows: tiles.length / 2,
        offset: 0,
        buffers: () => {
          const random = seededRandom(headDim);
          return {
            q: floats(random, rows * heads * headDim, 3),
            kv: floats(random, rows * 2 * kvHeads * headDim, 3),
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
    ...rmsNormCases(target),
    ...ropeCases(),
    ...rowGatherCases(),
    ...spanMeanCases(),
    ...cosineCases(target),
    ...attentionCases(target),
    ...scorerCases(target),
    ...lossCases(target),
  ];
}
