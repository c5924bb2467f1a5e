/**
 * canonicalOrder: the place of every row in the canonical order of its list: the first row (the instruction) stays, the
 * others go by their bits, element by element, equal rows by their position. rank[r] is r's place, order[rank[r]] = r.
 *
 * Sums over a list then run in the same order however its candidates were given, so that permuting them permutes the
 * scores bit for bit. One lane a row: most comparisons end at the first element.
 */
import { rowCost } from "./cost.ts";
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
import { LIST_SPANS } from "./list-attention.ts";

export interface CanonicalOrderVariant {
  /** Row length D. */
  readonly d: number;
}

const LANES = 32;

const BINDINGS: readonly Binding[] = [
  { name: "x", access: "read", type: "array<u32>", shape: ["S", "D"] },
  { name: "index", access: "read", type: "array<u32>", shape: ["R"] },
  LIST_SPANS,
  { name: "rank", access: "read_write", type: "array<u32>", shape: ["R"] },
  { name: "order", access: "read_write", type: "array<u32>", shape: ["R"] },
  PARAMS,
];

/** The kernel of a variant. Rows: R; row r of the lists is row index[r] of x, and `order` holds rows of x. */
export function canonicalOrder(variant: CanonicalOrderVariant): Kernel {
  const { d } = variant;
  const wgsl = `${PARAMS_STRUCT}
${declareBindings(BINDINGS)}
@compute @workgroup_size(${LANES})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let row = (${FLAT_WORKGROUP}) * ${LANES}u + lane;
  if (row >= params.rows) { return; }
  let span = spans[row];
  var place = span.x;
  if (row > span.x) {
    let own = index[row] * ${d}u;
    place++;
    for (var other = span.x + 1u; other < span.y; other++) {
      let at = index[other] * ${d}u;
      var i = 0u;
      while (i < ${d}u && x[at + i] == x[own + i]) { i++; }
      var before = other < row;
      if (i < ${d}u) { before = x[at + i] < x[own + i]; }
      place += select(0u, 1u, before);
    }
  }
  rank[row] = place;
  order[place] = index[row];
}
`;
  return {
    name: "canonicalOrder",
    key: kernelKey("canonicalOrder", variant),
    wgsl,
    bindings: BINDINGS,
    subgroups: false,
    grid: (rows) => flatGrid(Math.ceil(rows / LANES)),
    // Comparisons only; most rows differ early, so that the bytes are the most that may be read.
    cost: rowCost({ flops: 0, words: variant.d + 5 }),
  };
}

/** CPU twin of `canonicalOrder`. */
export function canonicalOrderTwin(
  { d }: CanonicalOrderVariant,
  { x, index, spans, rank, order }: Readonly<Record<string, TwinBuffer>>,
  rows: number,
): void {
  const compare = (a: number, b: number) => {
    for (let i = 0; i < d; i++) {
      const difference = x[index[a] * d + i] - x[index[b] * d + i];
      if (difference !== 0) return difference;
    }
    return a - b;
  };
  for (let first = 0; first < rows; first = spans[2 * first + 1]) {
    const end = spans[2 * first + 1];
    const sorted = Array.from({ length: end - first - 1 }, (_, i) => first + 1 + i).sort(compare);
    for (const [i, row] of [first, ...sorted].entries()) {
      rank[row] = first + i;
      order[first + i] = index[row];
    }
  }
}
