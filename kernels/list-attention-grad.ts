/**
 * listAttentionGrad: the gradient of listAttention by q (side `query`) and by k and v (side `keyValue`), from dout, with
 * p[i, j] = exp(q_i . k_j / sqrt(E) - lse_i), m[i, j] the dropout factor, dp[i, j] = m[i, j] (dout_i . v_j),
 * delta_i = dout_i . out_i = sum_j p[i, j] dp[i, j], ds = p (dp - delta_i) / sqrt(E):
 * dq_i = sum_j ds k_j;  dk_j = sum_i ds q_i;  dv_j = sum_i p m dout_i   (Dao et al. 2022, arXiv 2205.14135, appendix B).
 *
 * One lane a row and head. The side `query` runs first: it leaves delta for the other.
 */
import { dropoutBindings, dropoutFactor, dropoutFunction, droppedText } from "./dropout.ts";
import {
  type Binding,
  declareBindings,
  FLAT_BUILTINS,
  FLAT_WORKGROUP,
  flatGrid,
  type Kernel,
  PARAMS,
  PARAMS_STRUCT,
  range,
  type TwinBuffer,
} from "./kernel.ts";
import {
  attentionWeights,
  headDot,
  headVector,
  LIST_ATTENTION_LANES as LANES,
  LIST_SPANS,
  type ListAttentionVariant,
  listAttentionKey,
} from "./list-attention.ts";
import { wgslFloat } from "./wgsl.ts";

export interface ListAttentionGradVariant extends ListAttentionVariant {
  readonly side: "query" | "keyValue";
}

/** The kernel of a variant. Rows: R. */
export function listAttentionGrad(variant: ListAttentionGradVariant): Kernel {
  const { width, heads, side, dropout } = variant;
  const vector = headVector(variant);
  const { type, size, count } = vector;
  const read = (name: string, element: string, shape: readonly string[]): Binding => ({
    name,
    access: "read",
    type: `array<${element}>`,
    shape,
  });
  const bindings: readonly Binding[] = [
    read("qkv", type, ["R", "3", "P"]),
    LIST_SPANS,
    ...(side === "query" ? [read("out", type, ["R", "P"])] : []),
    read("dout", type, ["R", "P"]),
    read("lse", "f32", ["R", "H"]),
    ...dropoutBindings(dropout),
    { name: "delta", access: side === "query" ? "read_write" : "read", type: "array<f32>", shape: ["R", "H"] },
    { name: "dqkv", access: "read_write", type: `array<${type}>`, shape: ["R", "3", "P"] },
    PARAMS,
  ];
  const wgsl = `${PARAMS_STRUCT}
${declareBindings(bindings)}
${dropoutFunction(dropout)}
@compute @workgroup_size(${LANES})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let at = (${FLAT_WORKGROUP}) * ${LANES}u + lane;
  if (at >= params.rows * ${heads}u) { return; }
  let row = at / ${heads}u;
  let head = at % ${heads}u;
  let span = spans[row];
  let qAt = row * ${(3 * width) / size}u + head * ${count}u;
  let oAt = row * ${width / size}u + head * ${count}u;
  ${side === "query" ? queryText(variant) : keyValueText(variant)}
}
`;
  return {
    name: "listAttentionGrad",
    key: listAttentionKey("listAttentionGrad", variant),
    wgsl,
    bindings,
    subgroups: false,
    grid: (rows) => flatGrid(Math.ceil((rows * heads) / LANES)),
    // Of a pair, P multiply-adds each: q . k and dout . v, then dq, or dk and dv.
    cost: (rows, extent) => ({
      flops: (side === "query" ? 6 : 8) * width * (extent?.pairs ?? rows),
      bytes: 4 * rows * (6 * width + 2 * heads + 2),
    }),
  };

  function queryText({ width, heads }: ListAttentionVariant): string {
    const scale = wgslFloat(1 / Math.sqrt(width / heads));
    const stride = width / size;
    const parts = range(count);
    return `${parts.map((i) => `let q${i} = qkv[qAt + ${i}u]; let g${i} = dout[oAt + ${i}u]; var d${i} = ${type}();`).join("\n  ")}
  let own = ${headDot(
    vector,
    (i) => `g${i}`,
    (i) => `out[oAt + ${i}u]`,
  )};
  delta[at] = own;
  let total = lse[at];
  for (var j = span.x; j < span.y; j++) {
    let kAt = j * ${3 * stride}u + ${stride}u + head * ${count}u;
    let vAt = kAt + ${stride}u;
    ${parts.map((i) => `let k${i} = qkv[kAt + ${i}u];`).join(" ")}
    let p = exp((${headDot(
      vector,
      (i) => `q${i}`,
      (i) => `k${i}`,
    )}) * ${scale} - total);
    let dot = ${headDot(
      vector,
      (i) => `g${i}`,
      (i) => `qkv[vAt + ${i}u]`,
    )};
    let ds = p * (${droppedText(dropout, "dot", "row", `(j - span.x) * ${heads}u + head`)} - own) * ${scale};
    ${parts.map((i) => `d${i} += ds * k${i};`).join(" ")}
  }
  ${parts.map((i) => `dqkv[qAt + ${i}u] = d${i};`).join(" ")}`;
  }

  function keyValueText({ width, heads }: ListAttentionVariant): string {
    const scale = wgslFloat(1 / Math.sqrt(width / heads));
    const stride = width / size;
    const parts = range(count);
    return `let kAt = qAt + ${stride}u;
  let vAt = kAt + ${stride}u;
  ${parts.map((i) => `let k${i} = qkv[kAt + ${i}u]; let v${i} = qkv[vAt + ${i}u]; var dk${i} = ${type}(); var dv${i} = ${type}();`).join("\n  ")}
  for (var i = span.x; i < span.y; i++) {
    let qi = i * ${3 * stride}u + head * ${count}u;
    let gi = i * ${stride}u + head * ${count}u;
    let hi = i * ${heads}u + head;
    ${parts.map((i) => `let q${i} = qkv[qi + ${i}u]; let g${i} = dout[gi + ${i}u];`).join(" ")}
    let p = exp((${headDot(
      vector,
      (i) => `q${i}`,
      (i) => `k${i}`,
    )}) * ${scale} - lse[hi]);
    let dot = ${headDot(
      vector,
      (i) => `g${i}`,
      (i) => `v${i}`,
    )};
    let kept = ${droppedText(dropout, "1.0", "i", `(row - span.x) * ${heads}u + head`)};
    let ds = p * (dot * kept - delta[hi]) * ${scale};
    let pm = p * kept;
    ${parts.map((i) => `dk${i} += ds * q${i}; dv${i} += pm * g${i};`).join(" ")}
  }
  ${parts.map((i) => `dqkv[kAt + ${i}u] = dk${i}; dqkv[vAt + ${i}u] = dv${i};`).join(" ")}`;
  }
}

/** CPU twin of `listAttentionGrad`, sums in float64. */
export function listAttentionGradTwin(
  variant: ListAttentionGradVariant,
  buffers: Readonly<Record<string, TwinBuffer>>,
  rows: number,
): void {
  const { width, heads, side, dropout } = variant;
  const { qkv, out, dout, counter, delta, dqkv } = buffers;
  const size = width / heads;
  const scale = 1 / Math.sqrt(size);
  const part = (row: number, which: 0 | 1 | 2, head: number) => (row * 3 + which) * width + head * size;
  if (side === "keyValue") {
    for (let r = 0; r < rows; r++) dqkv.fill(0, part(r, 1, 0), part(r, 1, 0) + 2 * width);
  }
  for (let i = 0; i < rows; i++) {
    for (let h = 0; h < heads; h++) {
      const { weights, first } = attentionWeights(variant, buffers, i, h);
      const go = i * width + h * size;
      if (side === "query") {
        let own = 0;
        for (let e = 0; e < size; e++) own += dout[go + e] * out[go + e];
        delta[i * heads + h] = own;
        dqkv.fill(0, part(i, 0, h), part(i, 0, h) + size);
      }
      for (const [step, p] of weights.entries()) {
        const j = first + step;
        const kept = dropoutFactor(dropout, counter, i, step * heads + h);
        let dot = 0;
        for (let e = 0; e < size; e++) dot += dout[go + e] * qkv[part(j, 2, h) + e];
        const ds = p * (dot * kept - delta[i * heads + h]) * scale;
        for (let e = 0; e < size; e++) {
          if (side === "query") dqkv[part(i, 0, h) + e] += ds * qkv[part(j, 1, h) + e];
          else {
            dqkv[part(j, 1, h) + e] += ds * qkv[part(i, 0, h) + e];
            dqkv[part(j, 2, h) + e] += p * kept * dout[go + e];
          }
        }
      }
    }
  }
}
