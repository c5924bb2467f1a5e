/**
 * attention: grouped-query causal attention over a packed batch with shared prefixes,
 *   out[t, h] = sum_j softmax_j(scale * q[t, h] . k[j, g]) v[j, g],   g = h / (H / G),
 * with an online softmax (Milakov & Gimelshein 2018, arXiv 1805.02867; tiled as in Dao et al. 2022, arXiv 2205.14135):
 * no T x T matrix exists.
 *
 * The keys of a row are the positions 0 .. position of its own sequence: first the shared prefix, then its own rows,
 * cut to the last `window` positions where a window is set. A row's span says where they lie:
 *   (first row of the prefix, its length, first own row, position of this row).
 * A workgroup serves a tile of `tileRows` consecutive query rows with equal prefix and own start, and one head. Keys go
 * in blocks that begin at multiples of the block size *in the sequence*, wherever their rows lie, and a masked key
 * leaves every sum as it is: so a row's result does not depend on its company.
 *
 * - `subgroup` > 0: the workgroup is one subgroup, a block is one key a lane. Queries and probabilities go from lane to
 *   lane; every load of k and v feeds `tileRows` FMAs.
 * - `textures`: the same out of textures, two keys a lane (attention-texture-text.ts). Pays on software adapters.
 * - `subgroup` = 0: 32 lanes, queries and probabilities in workgroup memory.
 * Where a head is too wide for a driver's compiler, workgroups share its value columns (attentionColumns).
 */
import { type AttentionVariant, attentionColumns, attentionText } from "./attention-text.ts";
import { textureColumns, textureText } from "./attention-texture-text.ts";
import {
  type Binding,
  type Cost,
  declareBindings,
  type Extent,
  type Kernel,
  kernelKey,
  PARAMS,
  PARAMS_STRUCT,
  type Target,
  type TwinBuffer,
} from "./kernel.ts";
import { LINE_TEXELS } from "./texture.ts";

export type { AttentionVariant } from "./attention-text.ts";

const REST: readonly Binding[] = [
  { name: "spans", access: "read", type: "array<vec4<u32>>", shape: ["R"] },
  { name: "tiles", access: "read", type: "array<vec2<u32>>", shape: ["tiles"] },
  { name: "out", access: "read_write", type: "array<f32>", shape: ["R", "H*E"] },
  PARAMS,
];

function bindingsOf({ textures }: AttentionVariant): readonly Binding[] {
  const place = textures
    ? ({ access: "texture", type: "texture_2d<f32>", texels: LINE_TEXELS } as const)
    : ({ access: "read", type: "array<f32>" } as const);
  return [{ name: "q", shape: ["R", "H*E"], ...place }, { name: "kv", shape: ["T", "2*G*E"], ...place }, ...REST];
}

/**
 * The kernel of a variant. Rows: tiles, each (first query row, number of rows <= tileRows); `params.offset`: the first
 * tile of this dispatch.
 */
export function attention(variant: AttentionVariant): Kernel {
  const { heads, headDim, subgroup, textures } = variant;
  if (textures && !attentionFitsTextures(variant)) throw new Error(`heads of ${headDim} in textures have no kernel`);
  const { parts } = textures ? textureColumns(variant) : attentionColumns(variant);
  const bindings = bindingsOf(variant);
  const wgsl = `${subgroup > 0 ? "enable subgroups;\n" : ""}${PARAMS_STRUCT}
${declareBindings(bindings)}
${textures ? textureText(variant) : attentionText(variant)}`;
  return {
    name: "attention",
    key: kernelKey("attention", variant),
    wgsl,
    bindings,
    subgroups: subgroup > 0,
    grid: (tiles) => [tiles, heads, parts],
    cost: (tiles, extent) => attentionCost(variant, extent ?? leastExtent(tiles)),
  };
}

/** A row a tile, each with the one key that every row has: its own. */
function leastExtent(tiles: number): Extent {
  return { outputs: tiles, inputs: tiles, pairs: tiles };
}

/** Of every pair of a query and a key within reach: E multiply-adds for the score, E for the value, the softmax not counted. */
function attentionCost({ heads, kvHeads, headDim }: AttentionVariant, { outputs, inputs, pairs }: Extent): Cost {
  return {
    flops: 4 * pairs * heads * headDim,
    bytes: 4 * headDim * (2 * outputs * heads + 2 * inputs * kvHeads),
  };
}

/**
 * What attention over tiles first .. end - 1 reads: pairs of a query and a key within the window (0: all before it), and
 * the keys' distinct rows, where tiles of one sequence, and sequences of one prefix, follow each other.
 */
export function attentionExtent(
  spans: Uint32Array,
  tiles: Uint32Array,
  window: number,
  first = 0,
  end = tiles.length / 2,
): Extent {
  let [outputs, inputs, pairs] = [0, 0, 0];
  // Where the sequence before lies, and how many of its first keys are counted.
  let [prefix, own, counted] = [-1, -1, 0];
  for (let tile = first; tile < end; tile++) {
    const [row, rows] = [tiles[2 * tile], tiles[2 * tile + 1]];
    const [prefixStart, prefixLength, ownStart, position] = spans.subarray(row * 4, row * 4 + 4);
    outputs += rows;
    for (let p = position; p < position + rows; p++) pairs += window > 0 ? Math.min(p + 1, window) : p + 1;
    if (prefixStart !== prefix) counted = 0;
    else if (ownStart !== own) counted = Math.min(counted, prefixLength);
    [prefix, own] = [prefixStart, ownStart];
    const begin = Math.max(counted, window > 0 ? position + 1 - window : 0);
    inputs += Math.max(0, position + rows - begin);
    counted = Math.max(counted, position + rows);
  }
  return { outputs, inputs, pairs };
}

/** Sums a lane by subgroup size: SwiftShader (4) and llvmpipe (8) keep them in the cache as well as in registers. */
const MOST_SUMS: Readonly<Record<number, number>> = { 4: 256, 8: 128 };

/** What of a variant is a choice. */
export type AttentionTile = Pick<AttentionVariant, "tileRows" | "subgroup" | "textures">;

/** Whether heads can lie in textures: a head is whole texels, and lanes hand values to each other. */
export function attentionFitsTextures({ headDim, subgroup }: Pick<AttentionVariant, "headDim" | "subgroup">): boolean {
  return headDim % 4 === 0 && subgroup > 0;
}

/** The variant that a target gets without tuning: as many rows a tile as its lanes hold sums, 4 to 8 or, in textures, 16. */
export function attentionTile(target: Target, headDim: number): AttentionTile {
  const subgroup = target.subgroupSize;
  const textures = target.textures && attentionFitsTextures({ headDim, subgroup });
  const columns = textures
    ? 4 * textureColumns({ headDim, subgroup }).texels
    : attentionColumns({ headDim, subgroup }).columns;
  const sums = textures ? 128 : (MOST_SUMS[subgroup] ?? 32);
  // Heads of small models: 16 rows take longer to compile than they save.
  const most = textures && headDim > 32 ? 16 : 8;
  return { tileRows: Math.max(4, Math.min(most, Math.floor(sums / columns))), subgroup, textures };
}

/** The variants that a target can run for a head size, the default first. */
export function attentionChoices(target: Target, headDim: number): readonly AttentionTile[] {
  const standard = attentionTile(target, headDim);
  const { subgroupSize } = target;
  const places = [
    { subgroup: 0, textures: false },
    ...(subgroupSize > 0 ? [{ subgroup: subgroupSize, textures: false }] : []),
    ...(attentionFitsTextures({ headDim, subgroup: subgroupSize }) ? [{ subgroup: subgroupSize, textures: true }] : []),
  ];
  const others = places.flatMap((place) =>
    (place.textures ? [4, 8, 16] : [2, 4, 8]).map((tileRows) => ({ tileRows, ...place })),
  );
  const text = (tile: AttentionTile) => kernelKey("", tile);
  return [standard, ...others.filter((tile) => text(tile) !== text(standard))];
}

/** Cuts spans (R, 4) into tiles of consecutive rows of one sequence: (first row, rows). */
export function attentionTiles(spans: Uint32Array, rows: number, tileRows: number): Uint32Array {
  const tiles: number[] = [];
  let first = 0;
  for (let row = 1; row <= rows; row++) {
    const joins =
      row < rows &&
      row - first < tileRows &&
      [0, 1, 2].every((i) => spans[row * 4 + i] === spans[first * 4 + i]) &&
      spans[row * 4 + 3] === spans[first * 4 + 3] + row - first;
    if (!joins) {
      tiles.push(first, row - first);
      first = row;
    }
  }
  return Uint32Array.from(tiles);
}

/** CPU twin of `attention`: per row a two-pass softmax in float64. */
export function attentionTwin(
  variant: AttentionVariant,
  buffers: Readonly<Record<string, TwinBuffer>>,
  tiles: number,
): void {
  const { heads, kvHeads, headDim, scale, softcap, window } = variant;
  const { q, kv, spans, tiles: tileList, out } = buffers;
  const kvStride = 2 * kvHeads * headDim;
  for (let tile = 0; tile < tiles; tile++) {
    for (let row = tileList[2 * tile]; row < tileList[2 * tile] + tileList[2 * tile + 1]; row++) {
      const [prefixStart, prefixLength, ownStart, position] = spans.subarray(row * 4, row * 4 + 4);
      const begin = window > 0 ? Math.max(0, position + 1 - window) : 0;
      for (let h = 0; h < heads; h++) {
        const query = row * heads * headDim + h * headDim;
        const keys: { at: number; score: number }[] = [];
        for (let j = begin; j <= position; j++) {
          const at =
            (j < prefixLength ? prefixStart + j : ownStart + j - prefixLength) * kvStride +
            Math.floor((h * kvHeads) / heads) * headDim;
          let score = 0;
          for (let e = 0; e < headDim; e++) score += q[query + e] * kv[at + e];
          score *= scale;
          keys.push({ at, score: softcap > 0 ? softcap * Math.tanh(score / softcap) : score });
        }
        const most = keys.reduce((max, key) => Math.max(max, key.score), Number.NEGATIVE_INFINITY);
        const total = keys.reduce((sum, key) => sum + Math.exp(key.score - most), 0);
        for (let e = 0; e < headDim; e++) {
          let sum = 0;
          for (const { at, score } of keys) sum += Math.exp(score - most) * kv[at + kvHeads * headDim + e];
          out[query + e] = sum / total;
        }
      }
    }
  }
}
