/**
 * listAttention: softmax attention of every row with all rows of its list, for each head:
 * out[r, h] = sum_j dropout(p[r, j]) v[j, h], p = softmax_j(q[r, h] . k[j, h] / sqrt(E)), j over the rows of r's list.
 *
 * Lists lie one after another, so there is no mask and no padding. One lane a row and head, the softmax kept online
 * (Milakov and Gimelshein 2018, arXiv 1805.02867); head vectors are written out in the text, in the widest loads that
 * divide them. `lse` keeps log sum exp for the backward pass, which makes p again instead of storing it.
 */
import {
  type DropoutVariant,
  dropoutBindings,
  dropoutFactor,
  dropoutFunction,
  dropoutKey,
  droppedText,
} from "./dropout.ts";
import {
  type Binding,
  declareBindings,
  FLAT_BUILTINS,
  FLAT_WORKGROUP,
  flatGrid,
  type Kernel,
  kernelKey,
  PARAMS,
  PARAMS_STRUCT,
  range,
  type TwinBuffer,
} from "./kernel.ts";
import { wgslFloat } from "./wgsl.ts";

export interface ListAttentionVariant {
  /** P = heads * head size E. */
  readonly width: number;
  readonly heads: number;
  /** Of the attention weights. */
  readonly dropout: DropoutVariant;
}

export const LIST_ATTENTION_LANES = 32;

/** The rows of a row's list: first, end. */
export const LIST_SPANS: Binding = { name: "spans", access: "read", type: "array<vec2<u32>>", shape: ["R"] };

/** How a head vector is loaded: `count` values of `type`, each `size` floats. */
export interface HeadVector {
  readonly type: string;
  readonly size: number;
  readonly count: number;
}

/** The widest loads that divide a head. */
export function headVector({ width, heads }: Pick<ListAttentionVariant, "width" | "heads">): HeadVector {
  const head = width / heads;
  const size = [4, 2, 1].find((candidate) => head % candidate === 0) ?? 1;
  return { type: size === 1 ? "f32" : `vec${size}<f32>`, size, count: head / size };
}

/** The WGSL expression of a dot product of two head vectors, by the expressions of their parts. */
export function headDot({ size, count }: HeadVector, a: (i: number) => string, b: (i: number) => string): string {
  return range(count)
    .map((i) => (size === 1 ? `${a(i)} * ${b(i)}` : `dot(${a(i)}, ${b(i)})`))
    .join(" + ");
}

export function listAttentionKey(name: string, { dropout, ...rest }: ListAttentionVariant): string {
  return kernelKey(name, { ...rest, ...dropoutKey(dropout) });
}

/** The kernel of a variant. Rows: R. */
export function listAttention(variant: ListAttentionVariant): Kernel {
  const { width, heads, dropout } = variant;
  const vector = headVector(variant);
  const { type, size, count } = vector;
  const bindings: readonly Binding[] = [
    { name: "qkv", access: "read", type: `array<${type}>`, shape: ["R", "3", "P"] },
    LIST_SPANS,
    ...dropoutBindings(dropout),
    { name: "out", access: "read_write", type: `array<${type}>`, shape: ["R", "P"] },
    { name: "lse", access: "read_write", type: "array<f32>", shape: ["R", "H"] },
    PARAMS,
  ];
  const parts = range(count);
  const stride = width / size;
  const wgsl = `${PARAMS_STRUCT}
${declareBindings(bindings)}
${dropoutFunction(dropout)}
@compute @workgroup_size(${LIST_ATTENTION_LANES})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let at = (${FLAT_WORKGROUP}) * ${LIST_ATTENTION_LANES}u + lane;
  if (at >= params.rows * ${heads}u) { return; }
  let row = at / ${heads}u;
  let head = at % ${heads}u;
  let span = spans[row];
  let qAt = row * ${3 * stride}u + head * ${count}u;
  ${parts.map((i) => `let q${i} = qkv[qAt + ${i}u] * ${wgslFloat(1 / Math.sqrt(width / heads))};`).join("\n  ")}
  ${parts.map((i) => `var o${i} = ${type}();`).join(" ")}
  var top = -3.0e38;
  var sum = 0.0;
  for (var j = span.x; j < span.y; j++) {
    let kAt = j * ${3 * stride}u + ${stride}u + head * ${count}u;
    let score = ${headDot(
      vector,
      (i) => `q${i}`,
      (i) => `qkv[kAt + ${i}u]`,
    )};
    let high = max(top, score);
    let fade = exp(top - high);
    let p = exp(score - high);
    top = high;
    sum = fma(sum, fade, p);
    let kept = ${droppedText(dropout, "p", "row", `(j - span.x) * ${heads}u + head`)};
    let vAt = kAt + ${stride}u;
    ${parts.map((i) => `o${i} = o${i} * fade + kept * qkv[vAt + ${i}u];`).join("\n    ")}
  }
  let oAt = row * ${stride}u + head * ${count}u;
  ${parts.map((i) => `out[oAt + ${i}u] = o${i} / sum;`).join("\n  ")}
  lse[at] = top + log(sum);
}
`;
  return {
    name: "listAttention",
    key: listAttentionKey("listAttention", variant),
    wgsl,
    bindings,
    subgroups: false,
    grid: (rows) => flatGrid(Math.ceil((rows * heads) / LIST_ATTENTION_LANES)),
    // Of a pair: P multiply-adds for the scores, P for the values. Without the extent: every row a list of its own.
    cost: (rows, extent) => ({
      flops: 4 * width * (extent?.pairs ?? rows),
      bytes: 4 * rows * (4 * width + heads + 2),
    }),
  };
}

/** Attention weights of a row and head over its list, and their log sum exp. */
export function attentionWeights(
  { width, heads }: Pick<ListAttentionVariant, "width" | "heads">,
  { qkv, spans }: Readonly<Record<string, TwinBuffer>>,
  row: number,
  head: number,
): { weights: number[]; lse: number; first: number } {
  const size = width / heads;
  const [first, end] = [spans[2 * row], spans[2 * row + 1]];
  const scores = Array.from({ length: end - first }, (_, j) => {
    let dot = 0;
    for (let e = 0; e < size; e++)
      dot += qkv[row * 3 * width + head * size + e] * qkv[((first + j) * 3 + 1) * width + head * size + e];
    return dot / Math.sqrt(size);
  });
  const top = Math.max(...scores);
  const sum = scores.reduce((total, score) => total + Math.exp(score - top), 0);
  return { weights: scores.map((score) => Math.exp(score - top) / sum), lse: top + Math.log(sum), first };
}

/** CPU twin of `listAttention`, sums in float64. */
export function listAttentionTwin(
  variant: ListAttentionVariant,
  buffers: Readonly<Record<string, TwinBuffer>>,
  rows: number,
): void {
  const { width, heads, dropout } = variant;
  const { qkv, counter, out, lse } = buffers;
  const size = width / heads;
  for (let r = 0; r < rows; r++) {
    for (let h = 0; h < heads; h++) {
      const { weights, lse: total, first } = attentionWeights(variant, buffers, r, h);
      for (let e = 0; e < size; e++) {
        out[r * width + h * size + e] = weights.reduce((sum, p, j) => {
          const kept = p * dropoutFactor(dropout, counter, r, j * heads + h);
          return sum + kept * qkv[((first + j) * 3 + 2) * width + h * size + e];
        }, 0);
      }
      lse[r * heads + h] = total;
    }
  }
}
