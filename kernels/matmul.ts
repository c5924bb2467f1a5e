/**
 * matmul: out[t, n] = epilogue(sum_k x[t, k] * w[n, k] + bias[n]), weights in the row-major (N, K) layout of the files.
 *
 * A workgroup of `lanes` lanes computes a tile of `tileRows` rows by `lanes * tileCols` columns; lane i owns the columns
 * i, i + lanes, ... of the tile and keeps tileRows x tileCols sums in registers, all written out in the text. Loads are
 * what costs on every adapter measured, so each load feeds many FMAs:
 * - `subgroup` > 0: every lane loads another of the tile's next values of x and `subgroupBroadcast` hands it to the
 *   others. Pays wherever subgroups exist.
 * - `subgroup` = 0: every lane loads the row values itself.
 * - `textures`: x and the weights come out of textures, four words a load. Pays on software adapters: two to three times
 *   as fast as out of buffers.
 * - `staged`: out of workgroup memory, into which the lanes load together. For GPUs; barriers are dear on software adapters.
 * Of int8 and int4 weights a group is summed in units of its quants, and the scale multiplies that sum: one load and one
 * FMA a group, and to rounding the result of the widened weights.
 * The sum runs over k in ascending order whatever the number of rows: a row's result does not depend on its company.
 *
 * `transposed`: out[t, n] = sum_k x[t, k] w[k, n]; neighbouring lanes then load neighbouring weights.
 *
 * Epilogues: `store` (out = activation(result)); `add` (out += result, the residual connection, in place); `glu` (two
 * weights, gate and up: out = activation(gate) * up; Shazeer 2020, arXiv 2002.05202).
 */
import { type Activation, activate, activationFunction } from "./activation.ts";
import {
  type Binding,
  type Cost,
  declareBindings,
  type Kernel,
  kernelKey,
  PARAMS,
  PARAMS_STRUCT,
  range,
  type Target,
  type TwinBuffer,
  type WeightType,
} from "./kernel.ts";
import { STAGED_LANES, STAGED_SIDE, stagedElement, stagedText } from "./matmul-staged-text.ts";
import { biasName, matmulText, weightNames } from "./matmul-text.ts";
import { LINE_TEXELS } from "./texture.ts";
import { unpackFunctions, weightAt, weightElement, weightRowShape, weightRowWords } from "./weight-load.ts";

export interface MatmulVariant {
  /** Inner size K. */
  readonly k: number;
  /** Columns N of this weight (of this part, where a tensor is split). */
  readonly n: number;
  readonly weight: WeightType;
  readonly epilogue: "store" | "add" | "glu";
  /** Absent: `none`, which is the only one with `add`. */
  readonly activation?: Activation;
  readonly bias: boolean;
  /** Columns of the output matrix, and the first that this weight fills. */
  readonly outStride: number;
  readonly outOffset: number;
  readonly tileRows: number;
  readonly tileCols: number;
  readonly lanes: number;
  /** Subgroup size to broadcast in, 0 for none. A multiple of it must divide `lanes`. */
  readonly subgroup: number;
  /** x and the weights lie in textures (see texture.ts), not in buffers. */
  readonly textures: boolean;
  /** Tiles go through workgroup memory (matmul-staged-text.ts): of buffers, rows of whole vec4, 256 lanes, no subgroups. */
  readonly staged?: true;
  /** The weight is stored (K, N), f32: the product with a transpose, as the gradient of a layer's input needs it. */
  readonly transposed?: true;
}

function bindingsOf(variant: MatmulVariant): Binding[] {
  const { weight, bias, textures, staged, transposed } = variant;
  const names = weightNames(variant);
  const x: Binding = textures
    ? { name: "x", access: "texture", type: "texture_2d<f32>", shape: ["T", "K"], texels: LINE_TEXELS }
    : { name: "x", access: "read", type: staged ? "array<vec4<f32>>" : "array<f32>", shape: ["T", "K"] };
  const element = staged ? stagedElement(weight) : weightElement(weight);
  const shape = transposed ? ["K", "N"] : ["N", weightRowShape(weight)];
  const weightBinding = (name: string): Binding =>
    textures
      ? { name, access: "texture", type: "texture_2d<u32>", shape, texels: matmulRowWords(variant) / 4 }
      : { name, access: "read", type: `array<${element}>`, shape };
  return [
    x,
    ...names.map(weightBinding),
    ...(bias
      ? names.map((name): Binding => ({ name: biasName(name), access: "read", type: "array<f32>", shape: ["N"] }))
      : []),
    { name: "out", access: "read_write", type: "array<f32>", shape: ["T", "N"] },
    PARAMS,
  ];
}

/** `none` leaves no trace: absent or spelled out, it is one text. */
function keyOf({ activation = "none", ...variant }: MatmulVariant): string {
  return kernelKey("matmul", activation === "none" ? variant : { ...variant, activation });
}

/** Words of a row of weights as they are held: padded to whole texels or vec4 where those are loaded. */
export function matmulRowWords({
  k,
  weight,
  textures,
  staged,
}: Pick<MatmulVariant, "k" | "weight" | "textures" | "staged">): number {
  const words = weightRowWords(weight, k);
  return textures || staged ? 4 * Math.ceil(words / 4) : words;
}

/** Whether rows of `k` values can be loaded four at a time: a texel or vec4 must not straddle rows. */
export function fitsTextures(k: number): boolean {
  return k % 4 === 0;
}

/** The kernel of a variant. Rows: T; `params.offset`: the first row of this dispatch, `params.rows`: the end of its rows. */
export function matmul(variant: MatmulVariant): Kernel {
  const { k, n, weight, epilogue, activation = "none", tileRows, tileCols, lanes, subgroup } = variant;
  const { textures, staged, transposed } = variant;
  if (epilogue === "add" && activation !== "none")
    throw new Error(`${activation} of a sum that is added has no kernel`);
  if (transposed && weight !== "f32") throw new Error(`a transposed ${weight} weight has no kernel`);
  if (textures && (transposed || !fitsTextures(k))) throw new Error(`k ${k} in textures has no kernel`);
  if (staged && (textures || transposed || subgroup > 0 || lanes !== STAGED_LANES || !fitsTextures(k)))
    throw new Error(`k ${k} in workgroup memory has no kernel of ${lanes} lanes`);
  const bindings = bindingsOf(variant);
  const [width, height] = staged ? [STAGED_SIDE * tileCols, STAGED_SIDE * tileRows] : [lanes * tileCols, tileRows];
  const text = staged ? stagedText(variant, matmulRowWords(variant)) : matmulText(variant, weightRowWords(weight, k));
  const wgsl = `${subgroup > 0 ? "enable subgroups;\n" : ""}${PARAMS_STRUCT}
${declareBindings(bindings)}
${unpackFunctions(weight)}
${activationFunction(activation)}
${text}`;
  return {
    name: "matmul",
    key: keyOf(variant),
    wgsl,
    bindings,
    subgroups: subgroup > 0,
    grid: (count) => [Math.ceil(n / width), Math.ceil(count / height), 1],
    cost: (count) => matmulCost(variant, count),
  };
}

/** What of a variant is a choice: the same product, and but for rounding the same result. */
export type MatmulTile = Pick<MatmulVariant, "tileRows" | "tileCols" | "lanes" | "subgroup" | "textures" | "staged">;

/** What a choice depends on. */
export type MatmulShape = Pick<MatmulVariant, "k" | "n" | "weight" | "epilogue">;

/** Cost of a load relative to an FMA of as many lanes, as measured on the software adapters. */
const LOAD_COST = { texel: 50, word: 22 };
/**
 * Weights of a matrix, by subgroup size, whose product is over before a large tile is compiled: SwiftShader (4) takes half
 * a second for one, a tenth for a small tile, and keeps nothing for the next run.
 */
const SMALL: Readonly<Record<number, number>> = { 4: 100_000 };
const SMALL_ELSEWHERE = 2 ** 15;
/** Columns a lane, by subgroup size: SwiftShader (4) keeps sums in memory anyway. */
const MOST_COLUMNS: Readonly<Record<number, number>> = { 4: 8 };
/** Rows out of textures, by subgroup size: llvmpipe (8) gains by more of them; SwiftShader compiles them for too long. */
const TEXTURE_ROWS: Readonly<Record<number, number>> = { 8: 32 };

/**
 * The tile that a target gets without tuning: as many rows as pay, and the columns that make the least work for `n`.
 * Depends on the adapter and the shape, never on the number of rows.
 */
export function matmulTile(target: Target, { k, n, epilogue }: Pick<MatmulShape, "k" | "n" | "epilogue">): MatmulTile {
  if (target.staged && fitsTextures(k)) return stagedTile(epilogue);
  const subgroup = target.subgroupSize <= 32 ? target.subgroupSize : 0;
  const textures = target.textures && fitsTextures(k);
  const [lanes, weights] = [32, epilogue === "glu" ? 2 : 1];
  const small = k * n <= (SMALL[subgroup] ?? SMALL_ELSEWHERE);
  const tileRows = textures && subgroup > 0 && !small ? (TEXTURE_ROWS[subgroup] ?? 16) : 8;
  const cost = (cols: number) => {
    const sums = 8 * tileRows * cols * weights;
    const loads = textures
      ? LOAD_COST.texel * (Math.ceil((2 * tileRows) / Math.max(1, subgroup)) + cols * weights)
      : LOAD_COST.word * (tileRows + 4 * cols * weights);
    return Math.ceil(n / (lanes * cols)) * (loads + sums);
  };
  const mostCols = small ? 2 : textures ? (MOST_COLUMNS[subgroup] ?? 4) : 4;
  const tileCols = range(mostCols / weights)
    .map((c) => c + 1)
    .reduce((best, cols) => (cost(cols) < cost(best) ? cols : best));
  return { tileRows, tileCols, lanes, subgroup, textures };
}

/** The tile of weights that lie in a plain buffer whatever the target likes: those that change, and transposed ones. */
export function bufferTile({ subgroupSize }: Target, shape: Pick<MatmulShape, "k" | "n" | "epilogue">): MatmulTile {
  return matmulTile({ subgroupSize, textures: false }, shape);
}

/** 64 rows by 64 columns, or by 32 of two weights: 16 KiB of workgroup memory, which every adapter has. */
function stagedTile(epilogue: MatmulVariant["epilogue"]): MatmulTile {
  const tileCols = epilogue === "glu" ? 2 : 4;
  return { tileRows: 4, tileCols, lanes: STAGED_LANES, subgroup: 0, textures: false, staged: true };
}

/** Rows by columns of the tiles that are worth a trial. */
const TRIED_TILES = [
  [4, 2],
  [4, 4],
  [8, 1],
  [8, 2],
  [8, 4],
  [12, 4],
  [16, 2],
  [16, 4],
  [16, 8],
  [32, 2],
  [32, 4],
] as const;
/** Sums of a lane, at most: more of them take drivers seconds to compile. */
const MOST_SUMS = 128;

/** The tiles that a target can run for a shape, the default first: with subgroups and without, of buffers and textures. */
export function matmulChoices(target: Target, shape: MatmulShape): readonly MatmulTile[] {
  const weights = shape.epilogue === "glu" ? 2 : 1;
  const standard = matmulTile(target, shape);
  const tiles = [standard];
  for (const textures of fitsTextures(shape.k) ? [true, false] : [false]) {
    const { lanes, subgroup: widest } = matmulTile({ subgroupSize: target.subgroupSize, textures }, shape);
    for (const subgroup of new Set([widest, 0])) {
      for (const [tileRows, tileCols] of TRIED_TILES) {
        if (tileRows * tileCols * weights > MOST_SUMS || lanes * (tileCols - 1) >= shape.n) continue;
        tiles.push({ tileRows, tileCols, lanes, subgroup, textures });
      }
    }
  }
  if (fitsTextures(shape.k)) tiles.push(stagedTile(shape.epilogue));
  const seen = new Set<string>();
  return tiles.filter((tile) => {
    const text = kernelKey("", tile);
    return !seen.has(text) && seen.add(text);
  });
}

/** K multiply-adds an element of each product, and one more operation for each of bias, residual and gating. */
function matmulCost({ k, n, weight, epilogue, bias }: MatmulVariant, rows: number): Cost {
  const products = epilogue === "glu" ? 2 : 1;
  const extra = (bias ? products : 0) + (epilogue === "store" ? 0 : 1);
  return {
    flops: rows * n * (2 * k * products + extra),
    bytes:
      4 * (rows * k + products * n * weightRowWords(weight, k) + (bias ? products * n : 0)) +
      4 * rows * n * (epilogue === "add" ? 2 : 1),
  };
}

/** CPU twin of `matmul`: same bindings, same order of summation, sums in float64. */
export function matmulTwin(
  variant: MatmulVariant,
  buffers: Readonly<Record<string, TwinBuffer>>,
  rows: number,
  offset = 0,
): void {
  const { k, n, weight, epilogue, activation = "none", bias, outStride, outOffset, transposed } = variant;
  const words = matmulRowWords(variant);
  const { x, out } = buffers;
  const at = (name: string, col: number, i: number) =>
    transposed ? buffers[name][i * n + col] : weightAt(weight, buffers[name], col * words, i, k);
  for (let t = offset; t < rows; t++) {
    for (let col = 0; col < n; col++) {
      const sums = weightNames(variant).map((name) => {
        let sum = 0;
        for (let i = 0; i < k; i++) sum += x[t * k + i] * at(name, col, i);
        return bias ? sum + buffers[biasName(name)][col] : sum;
      });
      const place = t * outStride + outOffset + col;
      const first = activate(activation, sums[0]);
      if (epilogue === "glu") out[place] = first * sums[1];
      else out[place] = epilogue === "add" ? out[place] + first : first;
    }
  }
}
