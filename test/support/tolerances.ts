/**
 * How far a kernel may be from its CPU twin, op by op and weight type by weight type. The twins sum in float64, the
 * kernels in float32: what is left is rounding, and every entry above the base says where more of it comes from.
 */
import type { WeightType } from "../../kernels/kernel.ts";

export interface Tolerance {
  /** Of an element: |x - t| <= element * max(|t|, rms of the twin's tensor). */
  readonly element: number;
  /** Of a tensor: sum (x - t)^2 / sum t^2. */
  readonly nmse: number;
}

/** A handful of roundings: 2^-24 each, and WGSL grants 2.5 ULP to a division, 2 to an inverse square root. */
const BASE: Tolerance = { element: 1e-6, nmse: 1e-13 };
/** Copies. */
const EXACT: Tolerance = { element: 0, nmse: 0 };
/** Sums of up to 1001 products: the error of a sum grows with its length, and cancellation keeps the result small. */
const LONG_SUM: Tolerance = { element: 1e-5, nmse: 1e-12 };
/** Long sums below an exponential, to which WGSL grants 3 + 2 |x| ULP; then a product of two such sums. */
const EXPONENTIAL: Tolerance = { element: 2e-5, nmse: 2e-12 };

/** Abramowitz and Stegun 7.1.26 is off by up to 1.5e-7, here times values up to 6. */
const ERF: Tolerance = { element: 5e-6, nmse: 1e-12 };

/** Rows of mean 10 and deviation 0.8: centring cancels most of a value, and the rounding of the mean stays. */
const CENTRED: Tolerance = { element: 2e-5, nmse: 2e-11 };

/** Packed weights widen exactly, so that a type gets no room of its own. */
const sameForAllTypes = (tolerance: Tolerance): Readonly<Record<WeightType, Tolerance>> => ({
  f32: tolerance,
  bf16: tolerance,
  f16: tolerance,
  int8: tolerance,
  int4: tolerance,
});

/** Op by weight type; ops without weights stand under f32. */
export const TOLERANCES: Readonly<Record<string, Readonly<Partial<Record<WeightType, Tolerance>>>>> = {
  "matmul store": sameForAllTypes(LONG_SUM),
  "matmul add": sameForAllTypes(LONG_SUM),
  "matmul glu": sameForAllTypes(EXPONENTIAL),
  "matmul activation": sameForAllTypes(EXPONENTIAL),
  // Of the layer kind: rows far from 0, whose mean is taken off.
  norm: { f32: CENTRED },
  rope: { f32: BASE },
  rowGather: { f32: EXACT },
  // Means of up to 1001 rows: the sum cancels.
  spanMean: { f32: LONG_SUM },
  cosine: { f32: BASE },
  attention: { f32: EXPONENTIAL },
  matmulWeightGrad: { f32: LONG_SUM },
  columnSum: { f32: LONG_SUM },
  layerNorm: { f32: CENTRED },
  layerNormGrad: { f32: LONG_SUM },
  dropoutRows: { f32: BASE },
  gelu: { f32: ERF },
  geluGrad: { f32: ERF },
  listAttention: { f32: EXPONENTIAL },
  listAttentionGrad: { f32: EXPONENTIAL },
  listCosine: { f32: BASE },
  // For the instruction a sum over the list, in which the parts along its state cancel.
  listCosineGrad: { f32: LONG_SUM },
  // Losses of long lists sum many exponentials.
  listLoss: { f32: EXPONENTIAL },
  standardise: { f32: BASE },
  canonicalOrder: { f32: EXACT },
  adamw: { f32: BASE },
  squareSum: { f32: LONG_SUM },
  stepStatus: { f32: BASE },
};

/**
 * What of a golden hidden state may be missed (DESIGN.md, parity): transformers' own float32 stays within half of
 * `relative` and `ofRow`.
 */
export const PARITY = {
  /** |x - r| <= relative |r| + ofRow max(1, rms of r's row). */
  relative: 2e-4,
  ofRow: 2e-5,
  nmse: 1e-9,
} as const;
