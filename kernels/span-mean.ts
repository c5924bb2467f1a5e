/**
 * spanMean: out[offset + s, :] = mean over the tokens of sequence s that it pools
 *
 * Those lie in two ranges of rows, spans[s] = (a0, an, b0, bn): rows a0 .. a0 + an - 1 of a prefix that others may share,
 * then rows b0 .. b0 + bn - 1 of its own. Token t of them is row a0 + t below an, else b0 + t - an, and everything is
 * counted in tokens: where the prefix is shared, the ranges change and the sum does not, bit for bit. A single token's
 * row is copied.
 *
 * One lane an element: neighbouring lanes read neighbouring elements of a row, and a lane sums its tokens in order.
 */
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
  type TwinBuffer,
} from "./kernel.ts";

export interface SpanMeanVariant {
  /** Row length D. */
  readonly d: number;
}

const LANES = 64;
/** Tokens are summed in blocks of so many before they join the total, as in matmul: a long sum loses less. */
const BLOCK = 256;

const BINDINGS: readonly Binding[] = [
  { name: "x", access: "read", type: "array<f32>", shape: ["T", "D"] },
  { name: "spans", access: "read", type: "array<vec4<u32>>", shape: ["S"] },
  { name: "out", access: "read_write", type: "array<f32>", shape: ["S", "D"] },
  PARAMS,
];

/** The kernel of a variant. Rows: S, the sequences; `params.offset`: the first row of `out`. Every span holds a row. */
export function spanMean(variant: SpanMeanVariant): Kernel {
  const { d } = variant;
  const wgsl = `${PARAMS_STRUCT}
${declareBindings(BINDINGS)}
@compute @workgroup_size(${LANES})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let at = (${FLAT_WORKGROUP}) * ${LANES}u + lane;
  if (at >= params.rows * ${d}u) { return; }
  let span = spans[at / ${d}u];
  let i = at % ${d}u;
  let count = span.y + span.w;
  let place = params.offset * ${d}u + at;
  // Not a sum of one: that would turn -0 into 0.
  if (count == 1u) {
    out[place] = x[select(span.z, span.x, span.y == 1u) * ${d}u + i];
    return;
  }
  var total = 0.0;
  for (var first = 0u; first < count; first += ${BLOCK}u) {
    let end = min(first + ${BLOCK}u, count);
    var sum = 0.0;
    for (var t = first; t < end; t++) {
      sum += x[select(span.z + t - span.y, span.x + t, t < span.y) * ${d}u + i];
    }
    total += sum;
  }
  out[place] = total / f32(count);
}
`;
  return {
    name: "spanMean",
    key: kernelKey("spanMean", variant),
    wgsl,
    bindings: BINDINGS,
    subgroups: false,
    grid: (rows) => flatGrid(Math.ceil((rows * d) / LANES)),
    // An addition an element of every token; without the extent: of one token each.
    cost: (rows, extent) => ({
      flops: (extent?.pairs ?? rows) * d,
      bytes: 4 * ((extent?.inputs ?? rows) * d + rows * (d + 4)),
    }),
  };
}

/** CPU twin of `spanMean`, sums in float64. */
export function spanMeanTwin(
  variant: SpanMeanVariant,
  buffers: Readonly<Record<string, TwinBuffer>>,
  rows: number,
  offset = 0,
): void {
  const { d } = variant;
  const { x, spans, out } = buffers;
  for (let s = 0; s < rows; s++) {
    const [a0, an, b0, bn] = spans.subarray(4 * s, 4 * s + 4);
    for (let i = 0; i < d; i++) {
      let total = 0;
      for (let t = 0; t < an + bn; t++) total += x[(t < an ? a0 + t : b0 + t - an) * d + i];
      out[(offset + s) * d + i] = total / (an + bn);
    }
  }
}
