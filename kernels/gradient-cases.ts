/** Gradient cases of the scorer's kernels: backward twins against finite differences of the forward ones. */
import { floats, type GradientCase } from "./case.ts";
import { listSpans } from "./cases-scorer.ts";
import { columnSumTwin } from "./column-sum.ts";
import { type DropoutVariant, NO_DROPOUT } from "./dropout.ts";
import { geluGradTwin, geluTwin } from "./gelu.ts";
import { type LayerNormVariant, layerNormGradTwin, layerNormTwin } from "./layer-norm.ts";
import { type ListAttentionVariant, listAttentionTwin } from "./list-attention.ts";
import { listAttentionGradTwin } from "./list-attention-grad.ts";
import { listCosineGradTwin, listCosineTwin } from "./list-cosine.ts";
import { matmulTwin } from "./matmul.ts";
import { matmulWeightGradTwin } from "./matmul-weight-grad.ts";
import { seededRandom } from "./random.ts";

const DROPOUT: DropoutVariant = { rate: 0.2, site: 2 };
const COUNTER = Uint32Array.of(7, 12345, 40);

/** Numbers for a gradient case: float64, so that finite differences judge the formula and nothing else. */
function doubles(seed: number, count: number, scale = 1): Float64Array {
  return Float64Array.from(floats(seededRandom(seed), count, scale));
}

/** A weighted sum of outputs, and the weights as its gradient. */
function weighted(values: ArrayLike<number>, weights: ArrayLike<number>): number {
  return Array.from(values).reduce((sum, value, i) => sum + value * weights[i], 0);
}

/** Gradient cases of the scorer's kernels, without the losses. */
export function scorerGradientCases(): GradientCase[] {
  const { spans, rows } = listSpans([1, 3, 2]);
  return [NO_DROPOUT, DROPOUT].flatMap((dropout) => [
    matmulGradient(),
    layerNormGradient({ width: 6, eps: 1e-5, dropout, subgroup: 0 }),
    geluGradient({ width: 7, dropout }),
    attentionGradient({ width: 6, heads: 2, dropout }, spans, rows),
    cosineGradient(5, spans, rows),
  ]);
}

function matmulGradient(): GradientCase {
  const [t, k, n] = [5, 4, 3];
  const cotangent = doubles(3, t * n);
  const tile = { tileRows: 1, tileCols: 1, lanes: 32, subgroup: 0, textures: false };
  const base = { weight: "f32", epilogue: "store", bias: true, outOffset: 0, ...tile } as const;
  return {
    title: "matmul by x, weight and bias",
    inputs: () => ({ x: doubles(1, t * k), weight: doubles(2, n * k), bias: doubles(4, n) }),
    scalar: ({ x, weight, bias }) => {
      const out = new Float64Array(t * n);
      matmulTwin({ ...base, k, n, outStride: n }, { x, weight, bias, out }, t);
      return weighted(out, cotangent);
    },
    gradient: ({ x, weight }) => {
      const [dx, dw, db] = [t * k, n * k, n].map((size) => new Float64Array(size));
      const transposed = { ...base, bias: false, k: n, n: k, outStride: k, transposed: true } as const;
      matmulTwin(transposed, { x: cotangent, weight, out: dx }, t);
      matmulWeightGradTwin({ n, k }, { dy: cotangent, x, grad: dw }, t);
      columnSumTwin({ n, product: false }, { x: cotangent, grad: db }, t);
      return { x: dx, weight: dw, bias: db };
    },
  };
}

function layerNormGradient(variant: LayerNormVariant): GradientCase {
  const [rows, { width }] = [4, variant];
  const cotangent = doubles(5, rows * width);
  const run = (inputs: Readonly<Record<string, Float64Array>>) => {
    const saved = {
      out: new Float64Array(rows * width),
      xhat: new Float64Array(rows * width),
      rstd: new Float64Array(rows),
    };
    layerNormTwin(variant, { ...inputs, ...saved, counter: COUNTER }, rows);
    return saved;
  };
  return {
    title: `layerNorm by all its inputs, dropout ${variant.dropout.rate}`,
    inputs: () => ({
      residual: doubles(1, rows * width, 3),
      branch: doubles(2, rows * width),
      weight: doubles(3, width),
      bias: doubles(4, width),
    }),
    scalar: (inputs) => weighted(run(inputs).out, cotangent),
    gradient: (inputs) => {
      const { xhat, rstd } = run(inputs);
      const [residual, branch] = [0, 0].map(() => new Float64Array(rows * width));
      const [weight, bias] = [0, 0].map(() => new Float64Array(width));
      const { weight: gamma } = inputs;
      const buffers = { dout: cotangent, xhat, rstd, weight: gamma, dresidual: residual, dbranch: branch };
      layerNormGradTwin(variant, { ...buffers, counter: COUNTER }, rows);
      columnSumTwin({ n: width, product: true }, { x: cotangent, y: xhat, grad: weight }, rows);
      columnSumTwin({ n: width, product: false }, { x: cotangent, grad: bias }, rows);
      return { residual, branch: variant.dropout.rate > 0 ? branch : residual, weight, bias };
    },
  };
}

function geluGradient(variant: { width: number; dropout: DropoutVariant }): GradientCase {
  const [rows, { width }] = [3, variant];
  const cotangent = doubles(6, rows * width);
  return {
    title: `gelu, dropout ${variant.dropout.rate}`,
    inputs: () => ({ x: doubles(1, rows * width, 4) }),
    scalar: ({ x }) => {
      const out = new Float64Array(rows * width);
      geluTwin(variant, { x, out, counter: COUNTER }, rows);
      return weighted(out, cotangent);
    },
    gradient: ({ x }) => {
      const dout = cotangent.slice();
      geluGradTwin(variant, { x, dout, counter: COUNTER }, rows);
      return { x: dout };
    },
  };
}

function attentionGradient(variant: ListAttentionVariant, spans: Uint32Array, rows: number): GradientCase {
  const { width, heads } = variant;
  const cotangent = doubles(7, rows * width);
  const run = (qkv: Float64Array) => {
    const saved = { out: new Float64Array(rows * width), lse: new Float64Array(rows * heads) };
    listAttentionTwin(variant, { qkv, spans, ...saved, counter: COUNTER }, rows);
    return saved;
  };
  return {
    title: `listAttention by q, k and v, dropout ${variant.dropout.rate}`,
    inputs: () => ({ qkv: doubles(1, rows * 3 * width, 2) }),
    scalar: ({ qkv }) => weighted(run(qkv).out, cotangent),
    gradient: ({ qkv }) => {
      const dqkv = new Float64Array(rows * 3 * width);
      const delta = new Float64Array(rows * heads);
      const buffers = { qkv, spans, ...run(qkv), dout: cotangent, delta, dqkv, counter: COUNTER };
      listAttentionGradTwin({ ...variant, side: "query" }, buffers, rows);
      listAttentionGradTwin({ ...variant, side: "keyValue" }, buffers, rows);
      return { qkv: dqkv };
    },
  };
}

function cosineGradient(width: number, spans: Uint32Array, rows: number): GradientCase {
  // The instruction has no score.
  const cotangent = doubles(8, rows).map((value, r) => (spans[2 * r] === r ? 0 : value));
  const run = (y: Float64Array) => {
    const cosines = new Float64Array(2 * rows);
    listCosineTwin({ width }, { y, spans, cosines }, rows);
    return cosines;
  };
  return {
    title: "listCosine",
    inputs: () => ({ y: doubles(1, rows * width) }),
    scalar: ({ y }) =>
      weighted(
        run(y).filter((_, i) => i % 2 === 0),
        cotangent,
      ),
    gradient: ({ y }) => {
      const dy = new Float64Array(rows * width);
      listCosineGradTwin({ width }, { y, spans, cosines: run(y), grads: cotangent, dy }, rows);
      return { y: dy };
    },
  };
}
