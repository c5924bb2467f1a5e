/** Cases of the scorer's kernels: ragged lists in one batch, every backward kernel with a gradient case. */
import { adamw, adamwTwin } from "./adamw.ts";
import { canonicalOrder, canonicalOrderTwin } from "./canonical-order.ts";
import { floats, type KernelCase } from "./case.ts";
import { columnSum, columnSumTwin } from "./column-sum.ts";
import { type DropoutVariant, NO_DROPOUT } from "./dropout.ts";
import { dropoutRows, dropoutRowsTwin } from "./dropout-rows.ts";
import { gelu, geluGrad, geluGradTwin, geluTwin } from "./gelu.ts";
import type { Kernel, Target, TwinBuffer } from "./kernel.ts";
import { type LayerNormVariant, layerNorm, layerNormGrad, layerNormGradTwin, layerNormTwin } from "./layer-norm.ts";
import { type ListAttentionVariant, listAttention, listAttentionTwin } from "./list-attention.ts";
import { listAttentionGrad, listAttentionGradTwin } from "./list-attention-grad.ts";
import { listCosine, listCosineGrad, listCosineGradTwin, listCosineTwin } from "./list-cosine.ts";
import { bufferTile, matmul, matmulTile, matmulTwin } from "./matmul.ts";
import { matmulWeightGrad, matmulWeightGradTile, matmulWeightGradTwin } from "./matmul-weight-grad.ts";
import { seededRandom } from "./random.ts";
import { standardise, standardiseTwin } from "./standardise.ts";
import { SQUARE_SUM_PARTS, squareSum, squareSumTwin, stepStatus, stepStatusTwin } from "./step-status.ts";

type Buffers = Readonly<Record<string, TwinBuffer>>;

const DROPOUT: DropoutVariant = { rate: 0.2, site: 2 };
const COUNTER = Uint32Array.of(7, 12345, 40);

/** (R) spans of lists of m candidates each. */
export function listSpans(lengths: readonly number[]): { spans: Uint32Array; rows: number } {
  const spans: number[] = [];
  let first = 0;
  for (const m of lengths) {
    for (let r = 0; r <= m; r++) spans.push(first, first + m + 1);
    first += m + 1;
  }
  return { spans: Uint32Array.from(spans), rows: first };
}

const LISTS = [1, 3, 57, 2, 63, 10];

function make(
  title: string,
  kernel: Kernel,
  rows: number,
  buffers: (random: () => number) => Record<string, TwinBuffer>,
  twin: (buffers: Buffers) => void,
  offset = 0,
): KernelCase {
  return { title, kernel, rows, offset, buffers: () => buffers(seededRandom(rows * 31 + title.length)), twin };
}

function weightGradCases(target: Target): KernelCase[] {
  const cases: KernelCase[] = [];
  for (const subgroup of new Set([matmulWeightGradTile(target, 1).subgroup, 0])) {
    for (const [rows, n, k] of [
      [1, 1, 1],
      [3, 8, 57],
      [57, 65, 64],
      [64, 63, 1001],
      [1001, 16, 130],
    ] as const) {
      const variant = { n, k, ...matmulWeightGradTile(target, k), subgroup };
      cases.push(
        make(
          `${n} x ${k} over ${rows} rows, tile ${variant.tileRows}x${variant.tileCols}, subgroup ${subgroup}`,
          matmulWeightGrad(variant),
          rows,
          (random) => ({
            dy: floats(random, rows * n),
            x: floats(random, rows * k),
            grad: floats(random, n * k),
          }),
          (buffers) => matmulWeightGradTwin(variant, buffers, rows),
        ),
      );
    }
    const variant = { n: 20, k: 40, tileRows: 4, tileCols: 2, subgroup };
    cases.push(
      make(
        `20 x 40 over 19 rows, tile 4x2, subgroup ${subgroup}`,
        matmulWeightGrad(variant),
        19,
        (random) => ({ dy: floats(random, 19 * 20), x: floats(random, 19 * 40), grad: new Float32Array(800) }),
        (buffers) => matmulWeightGradTwin(variant, buffers, 19),
      ),
    );
  }
  return cases;
}

function columnSumCases(): KernelCase[] {
  return [
    [1, 1],
    [57, 33],
    [1001, 64],
  ].flatMap(([rows, n]) =>
    [false, true].map((product) =>
      make(
        `${rows} x ${n}${product ? " of a product" : ""}`,
        columnSum({ n, product }),
        rows,
        (random) => ({
          x: floats(random, rows * n),
          ...(product ? { y: floats(random, rows * n) } : {}),
          grad: floats(random, n),
        }),
        (buffers) => columnSumTwin({ n, product }, buffers, rows),
      ),
    ),
  );
}

function layerNormCases(target: Target): KernelCase[] {
  const cases: KernelCase[] = [];
  for (const subgroup of new Set([target.subgroupSize, 0])) {
    for (const [rows, width, dropout] of [
      [1, 3, NO_DROPOUT],
      [57, 16, NO_DROPOUT],
      [32769, 3, NO_DROPOUT],
      [65, 64, DROPOUT],
      [3, 1001, DROPOUT],
    ] as const) {
      // The tree is slow on software adapters; the many rows are there for the grid, which both variants share.
      if (rows > 32768 && subgroup !== target.subgroupSize) continue;
      const variant: LayerNormVariant = { width, eps: 1e-5, dropout, subgroup };
      const title = `${rows} x ${width} dropout ${dropout.rate} subgroup ${subgroup}`;
      const shared = (random: () => number) => ({
        weight: floats(random, width),
        ...(dropout.rate > 0 ? { counter: COUNTER } : {}),
      });
      cases.push(
        make(
          title,
          layerNorm(variant),
          rows,
          (random) => ({
            residual: floats(random, rows * width).map((v) => v + (width > 3 ? 10 : 1)),
            branch: floats(random, rows * width),
            bias: floats(random, width),
            ...shared(random),
            out: new Float32Array(rows * width),
            xhat: new Float32Array(rows * width),
            rstd: new Float32Array(rows),
          }),
          (buffers) => layerNormTwin(variant, buffers, rows),
        ),
        make(
          title,
          layerNormGrad(variant),
          rows,
          (random) => ({
            dout: floats(random, rows * width),
            xhat: floats(random, rows * width, 1.7),
            rstd: floats(random, rows).map((v) => v + 1.5),
            ...shared(random),
            dresidual: new Float32Array(rows * width),
            ...(dropout.rate > 0 ? { dbranch: new Float32Array(rows * width) } : {}),
          }),
          (buffers) => layerNormGradTwin(variant, buffers, rows),
        ),
      );
    }
  }
  return cases;
}

function geluCases(): KernelCase[] {
  return [NO_DROPOUT, DROPOUT].flatMap((dropout) => {
    const variant = { width: 65, dropout };
    const counter = dropout.rate > 0 ? { counter: COUNTER } : {};
    const title = `57 x 65 dropout ${dropout.rate}`;
    return [
      make(
        title,
        gelu(variant),
        57,
        (random) => ({ x: floats(random, 57 * 65, 6), ...counter, out: new Float32Array(57 * 65) }),
        (buffers) => geluTwin(variant, buffers, 57),
      ),
      make(
        title,
        geluGrad(variant),
        57,
        (random) => ({ x: floats(random, 57 * 65, 6), ...counter, dout: floats(random, 57 * 65) }),
        (buffers) => geluGradTwin(variant, buffers, 57),
      ),
    ];
  });
}

function listAttentionCases(): KernelCase[] {
  const { spans, rows } = listSpans(LISTS);
  return (
    [
      [4, 4, NO_DROPOUT],
      [12, 2, NO_DROPOUT],
      [16, 2, DROPOUT],
      [64, 4, DROPOUT],
      [64, 1, NO_DROPOUT],
    ] as const
  ).flatMap(([width, heads, dropout]) => {
    const variant: ListAttentionVariant = { width, heads, dropout };
    const counter = dropout.rate > 0 ? { counter: COUNTER } : {};
    const title = `lists of ${LISTS}, ${heads} heads of ${width / heads}, dropout ${dropout.rate}`;
    const forward = (random: () => number) => ({ qkv: floats(random, rows * 3 * width, 2), spans, ...counter });
    const saved = () => ({ out: new Float32Array(rows * width), lse: new Float32Array(rows * heads) });
    return [
      make(
        title,
        listAttention(variant),
        rows,
        (random) => ({ ...forward(random), ...saved() }),
        (buffers) => listAttentionTwin(variant, buffers, rows),
      ),
      ...(["query", "keyValue"] as const).map((side) =>
        make(
          `${title}, ${side}`,
          listAttentionGrad({ ...variant, side }),
          rows,
          (random) => {
            const buffers = {
              ...forward(random),
              ...saved(),
              dout: floats(random, rows * width),
              delta: new Float32Array(rows * heads),
              dqkv: floats(random, rows * 3 * width),
            };
            listAttentionTwin(variant, buffers, rows);
            // The other side's share stays as it is; the side `keyValue` finds what `query` left, and needs no `out`.
            if (side === "query") return buffers;
            listAttentionGradTwin({ ...variant, side: "query" }, buffers, rows);
            const { out: _out, ...others } = buffers;
            return others;
          },
          (buffers) => listAttentionGradTwin({ ...variant, side }, buffers, rows),
        ),
      ),
    ];
  });
}

function listCosineCases(target: Target): KernelCase[] {
  const { spans, rows } = listSpans(LISTS);
  const cases: KernelCase[] = [];
  for (const width of [2, 64, 1001]) {
    for (const subgroup of new Set([target.subgroupSize, 0])) {
      cases.push(
        make(
          `lists of ${LISTS}, width ${width}, subgroup ${subgroup}`,
          listCosine({ width, subgroup }),
          rows,
          (random) => ({ y: floats(random, rows * width), spans, cosines: new Float32Array(2 * rows) }),
          (buffers) => listCosineTwin({ width }, buffers, rows),
        ),
      );
    }
    cases.push(
      make(
        `lists of ${LISTS}, width ${width}`,
        listCosineGrad({ width }),
        rows,
        (random) => {
          const buffers = {
            y: floats(random, rows * width),
            spans,
            cosines: new Float32Array(2 * rows),
            grads: floats(random, rows),
            dy: new Float32Array(rows * width),
          };
          listCosineTwin({ width }, buffers, rows);
          return buffers;
        },
        (buffers) => listCosineGradTwin({ width }, buffers, rows),
      ),
    );
  }
  return cases;
}

function rowCases(): KernelCase[] {
  const { spans, rows } = listSpans(LISTS);
  const shuffled = (random: () => number) => Uint32Array.from({ length: rows }, () => Math.floor(random() * rows));
  return [5, 64].flatMap((d) => [
    make(
      `lists of ${LISTS}, rows of ${d}`,
      standardise({ d }),
      rows,
      (random) => ({
        x: floats(random, rows * d, 30),
        index: shuffled(random),
        spans,
        mean: floats(random, 2 * d, 10),
        scale: floats(random, 2 * d),
        out: new Float32Array(rows * d),
      }),
      (buffers) => standardiseTwin({ d }, buffers, rows),
    ),
    make(
      `lists of ${LISTS}, rows of ${d}, many alike`,
      canonicalOrder({ d }),
      rows,
      (random) => ({
        // Few distinct values: ties at the first elements, and some rows wholly equal.
        x: Uint32Array.from({ length: rows * d }, () => 0xbf800000 + Math.floor(random() * 2)),
        index: Uint32Array.from({ length: rows }, (_, r) => rows - 1 - r),
        spans,
        rank: new Uint32Array(rows),
        order: new Uint32Array(rows),
      }),
      (buffers) => canonicalOrderTwin({ d }, buffers, rows),
    ),
  ]);
}

function optimizerCases(target: Target): KernelCase[] {
  const cases: KernelCase[] = [];
  for (const count of [4, 68, 33000]) {
    cases.push(
      make(
        `${count} weights`,
        adamw({ count }),
        1,
        (random) => ({
          grads: floats(random, count),
          hyper: Float32Array.of(1 - 1e-5, 1e-3 / 0.271, 0.9, 0.999, Math.sqrt(0.002997), 1e-8, 0.1, 0.001),
          status: Float32Array.of(0.5, 0),
          weights: floats(random, count),
          first: floats(random, count, 0.1),
          second: floats(random, count, 0.1).map(Math.abs),
        }),
        (buffers) => adamwTwin({ count }, buffers),
      ),
    );
    for (const subgroup of new Set([target.subgroupSize, 0])) {
      cases.push(
        make(
          `${count} values, subgroup ${subgroup}`,
          squareSum({ count, subgroup }),
          1,
          // A part that no value falls to is written too, with 0.
          (random) => ({ x: floats(random, count), partials: new Float32Array(SQUARE_SUM_PARTS) }),
          (buffers) => squareSumTwin({ count, subgroup }, buffers),
        ),
      );
    }
  }
  for (const clip of [0, 1]) {
    cases.push(
      make(
        `65 losses to slot 2, clip ${clip}`,
        stepStatus(),
        65,
        (random) => ({
          losses: floats(random, 65).map(Math.abs),
          partials: floats(random, SQUARE_SUM_PARTS).map(Math.abs),
          clip: Float32Array.of(clip),
          log: new Float32Array(16),
          status: new Float32Array(2),
        }),
        (buffers) => stepStatusTwin(buffers, 65, 2),
        2,
      ),
    );
  }
  return cases;
}

function dropoutCases(): KernelCase[] {
  const variant = { width: 65, dropout: DROPOUT };
  return [
    make(
      "57 x 65",
      dropoutRows(variant),
      57,
      (random) => ({ counter: COUNTER, x: floats(random, 57 * 65) }),
      (buffers) => dropoutRowsTwin(variant, buffers, 57),
    ),
  ];
}

/** A transposed product, as the gradient of a layer's input has it. */
function transposedCases(target: Target): KernelCase[] {
  return [...new Set([matmulTile(target, { k: 1, n: 1, epilogue: "store" }).subgroup, 0])].flatMap((subgroup) =>
    (["store", "add"] as const).map((epilogue) => {
      const base = { k: 57, n: 65, weight: "f32", epilogue, bias: false, outStride: 65, outOffset: 0 } as const;
      const variant = {
        ...base,
        ...bufferTile(target, { k: 57, n: 65, epilogue }),
        subgroup,
        transposed: true,
      } as const;
      return make(
        `9 x 57 x 65 transposed ${epilogue} subgroup ${subgroup}`,
        matmul(variant),
        9,
        (random) => ({
          x: floats(random, 9 * 57),
          weight: floats(random, 57 * 65),
          out: floats(random, 9 * 65),
        }),
        (buffers) => matmulTwin(variant, buffers, 9),
      );
    }),
  );
}

/** All cases of the scorer's kernels, without the losses. */
export function scorerCases(target: Target): KernelCase[] {
  return [
    ...transposedCases(target),
    ...weightGradCases(target),
    ...columnSumCases(),
    ...layerNormCases(target),
    ...geluCases(),
    ...dropoutCases(),
    ...listAttentionCases(),
    ...listCosineCases(target),
    ...rowCases(),
    ...optimizerCases(target),
  ];
}
