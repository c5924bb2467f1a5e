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
  /** Bound of the scores: softcap * tanh(score / softcap), after the scale (Gemma 2, arXiv 2408.00118); 0: none. */
  readonly softcap: number;
  /** Keys that a row sees, itself included; 0: all. */
  readonly window: number;
  readonly tileRows: number;
  readonly subgroup: number;
  /** Queries, keys and values lie in textures (see texture.ts), not in buffers; with subgroups only. */
  readonly textures: boolean;
}

/** Lanes, and keys a block, of the variant without subgroups. */
const PLAIN_LANES = 32;
/**
 * Value columns a lane by subgroup size, where that needs a bound: llvmpipe (8) compiles 40 of them in 4 s, 64 in 6 s.
 */
const MOST_COLUMNS: Readonly<Record<number, number>> = { 8: 32 };
/**
 * Loads of values that are written out, one for each element of a head; a wider head's keys go in a loop. llvmpipe (8)
 * takes 1 s for 64 of them and 10 s for 256, and runs the loop as fast; SwiftShader loses a fifth by it.
 */
const MOST_WRITTEN_OUT: Readonly<Record<number, number>> = { 8: 32 };
/** Stands for minus infinity, which WGSL does not have: exp(LOWEST - x) is 0 for every score x. */
export const LOWEST = "-1e30";

/** Everything below the declarations, of buffers: helper, entry point, body. */
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
  // 1, which a compiler cannot know: Mesa writes out loops of up to 32 turns, and compiles their loads for 10 s and more.
  let one = min(tile.y, 1u);
  let begin = ${window > 0 ? `(max(span.w + 1u, ${window}u) - ${window}u) / ${block}u * ${block}u` : "0u"};`;
}

/** Row r sees the key at position `t`, a WGSL expression; `&&` would branch, and SwiftShader compile it for a minute. */
export function sees({ window }: AttentionVariant, r: number, t = "t"): string {
  return window > 0 ? `((${t} <= at${r}) & (${t} + ${window}u > at${r}))` : `(${t} <= at${r})`;
}

/** The row in which position t of a sequence lies. */
export function keyRowFunction(): string {
  return `fn keyRow(t: u32, span: vec4<u32>) -> u32 {
  return select(span.z + t - span.y, span.x + t, t < span.y);
}`;
}

/** Where the keys and values of a row begin. */
function kvStart({ kvHeads, headDim }: AttentionVariant, t: string): string {
  return `keyRow(min(${t}, end - 1u), span) * ${2 * kvHeads * headDim}u`;
}

/** The score of a row's product with a key, a WGSL expression. */
export function scoreOf({ scale, softcap }: AttentionVariant, product: string): string {
  return softcap > 0
    ? `${wgslFloat(softcap)} * bounded(${product} * ${wgslFloat(scale / softcap)})`
    : `${product} * ${wgslFloat(scale)}`;
}

/**
 * tanh of our own: WGSL's may overflow or cancel. Near 0 the polynomial of Cephes' tanhf, within 2 ULP; else 1 and e^-2|u|,
 * which only underflows. NaN stays NaN.
 */
export function boundedFunction({ softcap }: AttentionVariant): string {
  if (softcap === 0) return "";
  return `fn bounded(u: f32) -> f32 {
  let e = exp(-2.0 * abs(u));
  let far = (1.0 - e) / (1.0 + e);
  let z = min(u * u, 1.0);
  let series = fma(fma(fma(fma(-5.70498872745e-3, z, 2.06390887954e-2), z, -5.37397155531e-2), z, 1.33314422036e-1), z, -3.33332819422e-1);
  return select(select(-far, far, u >= 0.0), fma(series * z, u, u), abs(u) < 0.625);
}
`;
}

/**
 * Value columns: a lane's are `lanes` apart, and a wide head is cut into parts along the grid's z, which compute the
 * scores each for itself.
 */
export function attentionColumns({ headDim, subgroup }: Pick<AttentionVariant, "headDim" | "subgroup">): {
  readonly lanes: number;
  readonly parts: number;
  /** Of a lane in a part. */
  readonly columns: number;
} {
  const lanes = subgroup > 0 ? subgroup : PLAIN_LANES;
  const all = Math.ceil(headDim / lanes);
  const parts = Math.ceil(all / (MOST_COLUMNS[subgroup] ?? all));
  return { lanes, parts, columns: Math.ceil(all / parts) };
}

/** The texts that load and store a lane's value columns. */
function valueColumns(variant: AttentionVariant) {
  const { headDim } = variant;
  const { lanes, parts, columns: count } = attentionColumns(variant);
  const columns = range(count);
  const at = (c: number) => `${parts > 1 ? `group.z * ${count * lanes}u + ` : ""}${c * lanes}u + lane`;
  const whole = (c: number) => ((parts - 1) * count + c + 1) * lanes <= headDim;
  return {
    columns,
    /** The place of a lane's column; past the head it is the last element's, and not stored. */
    load: (c: number) => (whole(c) ? at(c) : `min(${at(c)}, ${headDim - 1}u)`),
    store: (c: number, r: number, sum: string) => {
      const text = `out[q${r} + ${at(c)}] = o${r}_${c} / ${sum};`;
      return whole(c) ? text : `if (${at(c)} < ${headDim}u) { ${text} }`;
    },
  };
}

function subgroupText(variant: AttentionVariant): string {
  const { headDim, tileRows, subgroup } = variant;
  const rows = range(tileRows);
  const { columns, load, store } = valueColumns(variant);
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
  /** Sums += the lane's columns of the value of key u of the block, a WGSL expression. */
  const addValues = (u: string, take: string) => `let value = ${kvStart(variant, `t0 + ${u}`)} + vHead;
      ${rows.map((r) => `let b${r} = ${take}(p${r}, ${u});`).join(" ")}
      ${columns.map((c) => `let v${c} = kv[value + ${load(c)}]; ${rows.map((r) => `o${r}_${c} = fma(b${r}, v${c}, o${r}_${c});`).join(" ")}`).join("\n      ")}`;
  return `${keyRowFunction()}
${boundedFunction(variant)}@compute @workgroup_size(${subgroup})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  ${prologue(variant, subgroup)}
  ${rows.map((r) => `var m${r} = ${LOWEST}; var l${r} = 0.0; ${columns.map((c) => `var o${r}_${c} = 0.0;`).join(" ")}`).join("\n  ")}
  for (var t0 = begin; t0 < end; t0 += ${subgroup}u) {
    let t = t0 + lane;
    let key = ${kvStart(variant, "t")} + kHead;
    ${rows.map((r) => `var s${r} = 0.0;`).join(" ")}
    ${full > 0 ? `for (var e0 = 0u; e0 < one * ${full * subgroup}u; e0 += ${subgroup}u) {\n      ${dot(subgroup)}\n    }` : ""}
    ${tail > 0 ? `{\n      let e0 = ${full * subgroup}u;\n      ${dot(tail)}\n    }` : ""}
    ${rows
      .map(
        (r) => `let seen${r} = ${sees(variant, r)};
    let z${r} = select(${LOWEST}, ${scoreOf(variant, `s${r}`)}, seen${r});
    let n${r} = max(m${r}, subgroupMax(z${r}));
    let p${r} = select(0.0, exp(z${r} - n${r}), seen${r});
    let f${r} = exp(m${r} - n${r});
    m${r} = n${r};
    l${r} = l${r} * f${r} + p${r};
    ${columns.map((c) => `o${r}_${c} = o${r}_${c} * f${r};`).join(" ")}`,
      )
      .join("\n    ")}
    ${
      headDim <= (MOST_WRITTEN_OUT[subgroup] ?? 128)
        ? range(subgroup)
            .map((u) => `{ ${addValues(`${u}u`, "subgroupBroadcast")} }`)
            .join("\n    ")
        : `for (var u = 0u; u < one * ${subgroup}u; u++) { ${addValues("u", "subgroupShuffle")} }`
    }
  }
  ${rows
    .map(
      (r) => `let sum${r} = subgroupAdd(l${r});
  if (${r}u < tile.y) {
    ${columns.map((c) => store(c, r, `sum${r}`)).join("\n    ")}
  }`,
    )
    .join("\n  ")}
}
`;
}

function plainText(variant: AttentionVariant): string {
  const { headDim, tileRows } = variant;
  const rows = range(tileRows);
  const { columns, load, store } = valueColumns(variant);
  const own = (r: number) => `scores[${r * PLAIN_LANES}u + lane]`;
  const other = (r: number) => `scores[${r * PLAIN_LANES}u + j]`;
  return `var<workgroup> queries: array<f32, ${tileRows * headDim}>; // (tileRows, E)
var<workgroup> scores: array<f32, ${tileRows * PLAIN_LANES}>; // (tileRows, keys of a block): scores, then probabilities
${keyRowFunction()}
${boundedFunction(variant)}@compute @workgroup_size(${PLAIN_LANES})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  ${prologue(variant, PLAIN_LANES)}
  for (var e = lane; e < one * ${headDim}u; e += ${PLAIN_LANES}u) {
    ${rows.map((r) => `queries[${r * headDim}u + e] = q[q${r} + e];`).join(" ")}
  }
  ${rows.map((r) => `var m${r} = ${LOWEST}; var l${r} = 0.0; ${columns.map((c) => `var o${r}_${c} = 0.0;`).join(" ")}`).join("\n  ")}
  for (var t0 = begin; t0 < end; t0 += ${PLAIN_LANES}u) {
    let t = t0 + lane;
    let key = ${kvStart(variant, "t")} + kHead;
    ${rows.map((r) => `var s${r} = 0.0;`).join(" ")}
    workgroupBarrier();
    for (var e = 0u; e < one * ${headDim}u; e++) {
      let k = kv[key + e];
      ${rows.map((r) => `s${r} = fma(queries[${r * headDim}u + e], k, s${r});`).join(" ")}
    }
    ${rows.map((r) => `let z${r} = select(${LOWEST}, ${scoreOf(variant, `s${r}`)}, ${sees(variant, r)}); ${own(r)} = z${r};`).join("\n    ")}
    workgroupBarrier();
    ${rows.map((r) => `var n${r} = m${r};`).join(" ")}
    for (var j = 0u; j < one * ${PLAIN_LANES}u; j++) {
      ${rows.map((r) => `n${r} = max(n${r}, ${other(r)});`).join(" ")}
    }
    workgroupBarrier();
    ${rows.map((r) => `${own(r)} = select(0.0, exp(z${r} - n${r}), ${sees(variant, r)});`).join("\n    ")}
    ${rows.map((r) => `let f${r} = exp(m${r} - n${r}); m${r} = n${r}; l${r} *= f${r}; ${columns.map((c) => `o${r}_${c} *= f${r};`).join(" ")}`).join("\n    ")}
    workgroupBarrier();
    for (var j = 0u; j < one * ${PLAIN_LANES}u; j++) {
      let value = ${kvStart(variant, "t0 + j")} + vHead;
      ${rows.map((r) => `let p${r} = ${other(r)}; l${r} += p${r};`).join(" ")}
      ${columns.map((c) => `let v${c} = kv[value + ${load(c)}]; ${rows.map((r) => `o${r}_${c} = fma(p${r}, v${c}, o${r}_${c});`).join(" ")}`).join("\n      ")}
    }
  }
  ${rows
    .map(
      (r) => `if (${r}u < tile.y) {
    ${columns.map((c) => store(c, r, `l${r}`)).join("\n    ")}
  }`,
    )
    .join("\n  ")}
}
`;
}
