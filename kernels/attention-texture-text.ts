/**
 * The WGSL body of `attention` out of textures (see texture.ts): four elements of a head a load. A block is `KEYS` keys a
 * lane. Scores: every lane loads its own keys and its share of the queries, which go from lane to lane. Values: every
 * lane loads its own columns, and the probabilities go from lane to lane.
 */
import type { AttentionVariant } from "./attention-text.ts";
import { boundedFunction, keyRowFunction, LOWEST, scoreOf, sees } from "./attention-text.ts";
import { range } from "./kernel.ts";
import { lineTexel } from "./texture.ts";

/** Keys of a lane in a block: a query that is handed to the lanes feeds so many products. */
const KEYS = 2;
/** Keys whose values are summed before they join a column's total, which then is loaded and stored once for them. */
const TOGETHER = 4;
/** Lanes whose maximum is taken value by value: software adapters go through the lanes one by one for `subgroupMax`. */
const FEW_LANES = 8;
/** Value columns a lane; a wider head is cut into parts. */
const MOST_COLUMNS = 32;

/** A lane's texels of values, `subgroup` apart, in each of the parts that a wide head is cut into along the grid's z. */
export function textureColumns({ headDim, subgroup }: Pick<AttentionVariant, "headDim" | "subgroup">): {
  readonly parts: number;
  readonly texels: number;
} {
  const all = Math.ceil(headDim / 4 / subgroup);
  const parts = Math.ceil((4 * all) / MOST_COLUMNS);
  return { parts, texels: Math.ceil(all / parts) };
}

/** Everything below the declarations. */
export function textureText(variant: AttentionVariant): string {
  const { heads, kvHeads, headDim, window, tileRows, subgroup } = variant;
  const { parts, texels } = textureColumns(variant);
  const quads = headDim / 4;
  const [rows, keys, columns] = [range(tileRows), range(KEYS), range(4 * texels)];
  const block = subgroup * KEYS;
  const load = (name: string, texel: string) => `textureLoad(${name}, ${lineTexel(texel)}, 0)`;
  const kvRow = (t: string) => `keyRow(min(${t}, end - 1u), span) * ${2 * kvHeads * quads}u`;

  const queryLoads = (count: number) => range(Math.ceil((tileRows * count) / subgroup));
  /** scores += q . k over `count` texels from texel e0 of the head. */
  const dot = (count: number) => {
    const lines = queryLoads(count).map((l) => `let a${l} = ${load("q", `q${l} + e0`)};`);
    for (const c of keys) {
      for (const t of range(count)) lines.push(`let k${c}_${t} = ${load("kv", `key${c} + e0 + ${t}u`)};`);
      for (const r of rows) {
        for (const u of range(4 * count)) {
          const [t, place] = [u >> 2, u & 3];
          const e = t * tileRows + r;
          if (c === 0)
            lines.push(`let b${r}_${u} = subgroupBroadcast(a${Math.floor(e / subgroup)}[${place}], ${e % subgroup}u);`);
          const product = `b${r}_${u}, k${c}_${t}[${place}]`;
          const sum = u === 0 ? `b${r}_0 * k${c}_0[0]` : `fma(${product}, d${r}_${c}_${u - 1})`;
          lines.push(`let d${r}_${c}_${u} = ${sum};`);
        }
        lines.push(`s${r}_${c} += d${r}_${c}_${4 * count - 1};`);
      }
    }
    return lines.join("\n      ");
  };
  const highest = (r: number) =>
    subgroup > FEW_LANES
      ? `max(m${r}, subgroupMax(y${r}))`
      : range(subgroup).reduce((text, from) => `max(${text}, subgroupBroadcast(y${r}, ${from}u))`, `m${r}`);
  const softmax = rows
    .map((r) => {
      const scores = keys.map(
        (c) => `let seen${r}_${c} = ${sees(variant, r, `place${c}`)};
    let z${r}_${c} = select(${LOWEST}, ${scoreOf(variant, `s${r}_${c}`)}, seen${r}_${c});`,
      );
      const most = keys.map((c) => `z${r}_${c}`).reduce((a, b) => `max(${a}, ${b})`);
      return `${scores.join("\n    ")}
    let y${r} = ${most};
    let n${r} = ${highest(r)};
    ${keys.map((c) => `let p${r}_${c} = select(0.0, exp(z${r}_${c} - n${r}), seen${r}_${c});`).join("\n    ")}
    let f${r} = exp(m${r} - n${r});
    m${r} = n${r};
    l${r} = l${r} * f${r} + (${keys.map((c) => `p${r}_${c}`).join(" + ")});
    ${columns.map((j) => `o${r}_${j} *= f${r};`).join(" ")}`;
    })
    .join("\n    ");
  /** Adds the lane's columns of the values of keys u .. u + together - 1 of the block. */
  const addValues = (first: number, together: number) => {
    const us = range(together).map((i) => first + i);
    const lines: string[] = [];
    for (const u of us) {
      lines.push(`let value${u} = ${kvRow(`t0 + ${u}u`)} + vHead;`);
      for (const t of range(texels)) lines.push(`let v${u}_${t} = ${load("kv", `value${u} + column${t}`)};`);
    }
    for (const r of rows) {
      for (const u of us)
        lines.push(`let g${r}_${u} = subgroupBroadcast(p${r}_${Math.floor(u / subgroup)}, ${u % subgroup}u);`);
      for (const j of columns) {
        const product = (u: number) => `g${r}_${u}, v${u}_${j >> 2}[${j & 3}]`;
        const sum = us.slice(1).reduce((text, u) => `fma(${product(u)}, ${text})`, product(first).replace(", ", " * "));
        lines.push(`o${r}_${j} += ${sum};`);
      }
    }
    return `{ ${lines.join("\n      ")} }`;
  };
  const groups = range(Math.ceil(block / TOGETHER)).map((i) => i * TOGETHER);
  const part = parts > 1 ? `group.z * ${texels * subgroup}u + ` : "";
  const column = (t: number) => `${part}${t * subgroup}u + lane`;
  const store = range(texels)
    .map((t) => {
      const stores = range(4).map((i) => `out[at + ${i}u] = sums[r * ${columns.length}u + ${4 * t + i}u] / totals[r];`);
      return `if (${column(t)} < ${quads}u) { let at = o + (${column(t)}) * 4u; ${stores.join(" ")} }`;
    })
    .join("\n    ");
  return `${keyRowFunction()}
${boundedFunction(variant)}@compute @workgroup_size(${subgroup})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let tile = tiles[params.offset + group.x];
  let head = group.y;
  let span = spans[tile.x];
  let kHead = (head * ${kvHeads}u / ${heads}u) * ${quads}u;
  let vHead = kHead + ${kvHeads * quads}u;
  ${queryLoads(2)
    .map(
      (l) => `let e${l} = ${l * subgroup}u + lane;
  let q${l} = (tile.x + min(e${l} % ${tileRows}u, tile.y - 1u)) * ${heads * quads}u + head * ${quads}u + min(e${l} / ${tileRows}u, 1u);`,
    )
    .join("\n  ")}
  ${rows.map((r) => `let at${r} = span.w + min(${r}u, tile.y - 1u);`).join("\n  ")}
  ${range(texels)
    .map((t) => `let column${t} = min(${column(t)}, ${quads - 1}u);`)
    .join("\n  ")}
  let end = span.w + tile.y;
  // 1, which a compiler cannot know: Mesa writes out loops of up to 32 turns, and compiles their loads for 10 s and more.
  let one = min(tile.y, 1u);
  let begin = ${window > 0 ? `(max(span.w + 1u, ${window}u) - ${window}u) / ${block}u * ${block}u` : "0u"};
  ${rows.map((r) => `var m${r} = ${LOWEST}; var l${r} = 0.0; ${columns.map((j) => `var o${r}_${j} = 0.0;`).join(" ")}`).join("\n  ")}
  for (var t0 = begin; t0 < end; t0 += ${block}u) {
    ${keys.map((c) => `let place${c} = t0 + ${c * subgroup}u + lane;\n    let key${c} = ${kvRow(`place${c}`)} + kHead;`).join("\n    ")}
    ${rows.map((r) => keys.map((c) => `var s${r}_${c} = 0.0;`).join(" ")).join("\n    ")}
    ${quads > 1 ? `for (var e0 = 0u; e0 < one * ${quads - (quads % 2)}u; e0 += 2u) {\n      ${dot(2)}\n    }` : ""}
    ${quads % 2 === 1 ? `{\n      let e0 = ${quads - 1}u;\n      ${dot(1)}\n    }` : ""}
    ${softmax}
    ${groups.map((u) => addValues(u, Math.min(TOGETHER, block - u))).join("\n    ")}
  }
  // In a loop: of a store for every element written out, drivers compile longer than of the sums.
  var sums: array<f32, ${tileRows * columns.length}>;
  var totals: array<f32, ${tileRows}>;
  ${rows.map((r) => `totals[${r}] = subgroupAdd(l${r}); ${columns.map((j) => `sums[${r * columns.length + j}] = o${r}_${j};`).join(" ")}`).join("\n  ")}
  for (var r = 0u; r < tile.y; r++) {
    let o = (tile.x + r) * ${heads * headDim}u + head * ${headDim}u;
    ${store}
  }
}
`;
}
