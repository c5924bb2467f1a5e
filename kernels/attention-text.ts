/** The WGSL bodies of `attention`: with subgroups, and with workgroup memory. */
import { range } from "./kernel.ts";
import { wgslFloat } from "./wgsl.ts";

export interface AttentionVariant {
  readonly heads: number;
  readonly kvHeads: number;
  /** Head size E. */
  readonly headDim: number;
  /** Factor of the scores, usually 1 / sqrt(E). */
  readonly scale: number;
  /** Keys that a row sees, itself included; 0: all. */
  readonly window: number;
  readonly tileRows: number;
  readonly subgroup: number;
}

/** Lanes, and keys a block, of the variant without subgroups. */
const PLAIN_LANES = 32;
/** Stands for minus infinity, which WGSL does not have: exp(LOWEST - x) is 0 for every score x. */
const LOWEST = "-1e30";

/** Everything below the declarations: helper, entry point, body. */
export function attentionText(variant: AttentionVariant): string {
  return variant.subgroup > 0 ? subgroupText(variant) : plainText(variant);
}

/** Tile, sequence and block bounds, the same in both bodies. `block`: keys a block. */
function prologue(variant: AttentionVariant, block: number): string {
  const { heads, kvHeads, headDim, window, tileRows } = variant;
  const rows = range(tileRows);
  return `let tile = tiles[params.offset + group.x];
  let head = group.y;
  let span = spans[tile.x];
  let kHead = (head * ${kvHeads}u / ${heads}u) * ${headDim}u;
  let vHead = kHead + ${kvHeads * headDim}u;
  ${rows.map((r) => `let row${r} = tile.x + min(${r}u, tile.y - 1u);\n  let q${r} = row${r} * ${heads * headDim}u + head * ${headDim}u;\n  let at${r} = span.w + min(${r}u, tile.y - 1u);`).join("\n  ")}
  let end = span.w + tile.y;
  let begin = ${window > 0 ? `(max(span.w + 1u, ${window}u) - ${window}u) / ${block}u * ${block}u` : "0u"};`;
}

/** Row r sees the key at position t, a WGSL expression. */
function sees(variant: AttentionVariant, r: number, t = "t"): string {
  return variant.window > 0 ? `(${t} <= at${r} && ${t} + ${variant.window}u > at${r})` : `(${t} <= at${r})`;
}

function keyRowFunction(variant: AttentionVariant): string {
  return `fn keyRow(t: u32, span: vec4<u32>) -> u32 {
  return select(span.z + t - span.y, span.x + t, t < span.y) * ${2 * variant.kvHeads * variant.headDim}u;
}`;
}

function subgroupText(variant: AttentionVariant): string {
  const { headDim, scale, tileRows, subgroup } = variant;
  const rows = range(tileRows);
  const columns = range(Math.ceil(headDim / subgroup));
  const full = Math.floor(headDim / subgroup);
  const tail = headDim - full * subgroup;
  /** scores += q . k over `count` elements from e0. */
  const dot = (count: number) => {
    const lane = count < subgroup ? `min(lane, ${count - 1}u)` : "lane";
    return [
      ...rows.map((r) => `let a${r} = q[q${r} + e0 + ${lane}];`),
      ...range(count).flatMap((u) => [
        `let k${u} = kv[key + e0 + ${u}u];`,
        ...rows.map((r) => `s${r} = fma(subgroupBroadcast(a${r}, ${u}u), k${u}, s${r});`),
      ]),
    ].join("\n      ");
  };
  // The lane's columns are lane, lane + subgroup, ...; past the head they repeat its last element and are not stored.
  const column = (c: number) =>
    c < full ? `${c * subgroup}u + lane` : `min(${c * subgroup}u + lane, ${headDim - 1}u)`;
  return `${keyRowFunction(variant)}
@compute @workgroup_size(${subgroup})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  ${prologue(variant, subgroup)}
  ${rows.map((r) => `var m${r} = ${LOWEST}; var l${r} = 0.0; ${columns.map((c) => `var o${r}_${c} = 0.0;`).join(" ")}`).join("\n  ")}
  for (var t0 = begin; t0 < end; t0 += ${subgroup}u) {
    let t = t0 + lane;
    let key = keyRow(min(t, end - 1u), span) + kHead;
    ${rows.map((r) => `var s${r} = 0.0;`).join(" ")}
    for (var e0 = 0u; e0 < ${full * subgroup}u; e0 += ${subgroup}u) {
      ${dot(subgroup)}
    }
    ${tail > 0 ? `{\n      let e0 = ${full * subgroup}u;\n      ${dot(tail)}\n    }` : ""}
    ${rows
      .map(
        (r) => `let seen${r} = ${sees(variant, r)};
    let z${r} = select(${LOWEST}, s${r} * ${wgslFloat(scale)}, seen${r});
    let n${r} = max(m${r}, subgroupMax(z${r}));
    let p${r} = select(0.0, exp(z${r} - n${r}), seen${r});
    let f${r} = exp(m${r} - n${r});
    m${r} = n${r};
    l${r} = l${r} * f${r} + p${r};
    ${columns.map((c) => `o${r}_${c} = o${r}_${c} * f${r};`).join(" ")}`,
      )
      .join("\n    ")}
    ${range(subgroup)
      .map(
        (u) => `{
      let value = keyRow(min(t0 + ${u}u, end - 1u), span) + vHead;
      ${rows.map((r) => `let b${r} = subgroupBroadcast(p${r}, ${u}u);`).join(" ")}
      ${columns.map((c) => `let v${c} = kv[value + ${column(c)}]; ${rows.map((r) => `o${r}_${c} = fma(b${r}, v${c}, o${r}_${c});`).join(" ")}`).join("\n      ")}
    }`,
      )
      .join("\n    ")}
  }
  ${rows
    .map(
      (r) => `let sum${r} = subgroupAdd(l${r});
  if (${r}u < tile.y) {
    ${columns.map((c) => (c < full ? `out[q${r} + ${c * subgroup}u + lane] = o${r}_${c} / sum${r};` : `if (${c * subgroup}u + lane < ${headDim}u) { out[q${r} + ${c * subgroup}u + lane] = o${r}_${c} / sum${r}; }`)).join("\n    ")}
  }`,
    )
    .join("\n  ")}
}
`;
}

function plainText(variant: AttentionVariant): string {
  const { headDim, scale, tileRows } = variant;
  const rows = range(tileRows);
  const columns = range(Math.ceil(headDim / PLAIN_LANES));
  const column = (c: number) =>
    (c + 1) * PLAIN_LANES <= headDim
      ? `${c * PLAIN_LANES}u + lane`
      : `min(${c * PLAIN_LANES}u + lane, ${headDim - 1}u)`;
  return `var<workgroup> queries: array<f32, ${tileRows * headDim}>; // (tileRows, E)
var<workgroup> scores: array<f32, ${tileRows * PLAIN_LANES}>; // (tileRows, keys of a block)
${keyRowFunction(variant)}
@compute @workgroup_size(${PLAIN_LANES})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  ${prologue(variant, PLAIN_LANES)}
  for (var e = lane; e < ${headDim}u; e += ${PLAIN_LANES}u) {
    ${rows.map((r) => `queries[${r * headDim}u + e] = q[q${r} + e];`).join(" ")}
  }
  ${rows.map((r) => `var m${r} = ${LOWEST}; var l${r} = 0.0; ${columns.map((c) => `var o${r}_${c} = 0.0;`).join(" ")}`).join("\n  ")}
  for (var t0 = begin; t0 < end; t0 += ${PLAIN_LANES}u) {
    let t = t0 + lane;
    let key = keyRow(min(t, end - 1u), span) + kHead;
    ${rows.map((r) => `var s${r} = 0.0;`).join(" ")}
    workgroupBarrier();
    for (var e = 0u; e < ${headDim}u; e++) {
      let k = kv[key + e];
      ${rows.map((r) => `s${r} = fma(queries[${r * headDim}u + e], k, s${r});`).join(" ")}
    }
    ${rows.map((r) => `scores[${r * PLAIN_LANES}u + lane] = select(${LOWEST}, s${r} * ${wgslFloat(scale)}, ${sees(variant, r)});`).join("\n    ")}
    workgroupBarrier();
    ${rows.map((r) => `var n${r} = m${r};`).join(" ")}
    for (var j = 0u; j < ${PLAIN_LANES}u; j++) {
      ${rows.map((r) => `n${r} = max(n${r}, scores[${r * PLAIN_LANES}u + j]);`).join(" ")}
    }
    ${rows.map((r) => `let f${r} = exp(m${r} - n${r}); m${r} = n${r}; l${r} *= f${r}; ${columns.map((c) => `o${r}_${c} *= f${r};`).join(" ")}`).join("\n    ")}
    for (var j = 0u; j < ${PLAIN_LANES}u; j++) {
      let value = keyRow(min(t0 + j, end - 1u), span) + vHead;
      ${rows.map((r) => `let z${r} = scores[${r * PLAIN_LANES}u + j]; let p${r} = select(0.0, exp(z${r} - n${r}), ${sees(variant, r, "t0 + j")}); l${r} += p${r};`).join("\n      ")}
      ${columns.map((c) => `let v${c} = kv[value + ${column(c)}]; ${rows.map((r) => `o${r}_${c} = fma(p${r}, v${c}, o${r}_${c});`).join(" ")}`).join("\n      ")}
    }
  }
  ${rows
    .map(
      (r) => `if (${r}u < tile.y) {
    ${columns.map((c) => `if (${c * PLAIN_LANES}u + lane < ${headDim}u) { out[q${r} + ${c * PLAIN_LANES}u + lane] = o${r}_${c} / l${r}; }`).join("\n    ")}
  }`,
    )
    .join("\n  ")}
}
`;
}
