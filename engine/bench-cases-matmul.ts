/** The products of a model's blocks as cases: every role at its shape, in the tiles that an adapter may run. */
import { floats } from "../kernels/case.ts";
import type { Target, TwinBuffer, WeightType } from "../kernels/kernel.ts";
import {
  type MatmulShape,
  type MatmulTile,
  type MatmulVariant,
  matmul,
  matmulChoices,
  matmulRowWords,
  matmulTile,
} from "../kernels/matmul.ts";
import { quantiseRows } from "../kernels/quantise.ts";
import { seededRandom } from "../kernels/random.ts";
import { padRows } from "../kernels/texture.ts";
import { isQuantised, weightRowWords } from "../kernels/weight-load.ts";
import { type BenchCase, CASE_SEED, type VariantChoice } from "./bench-case.ts";
import { sampleMatmul } from "./bench-check.ts";
import { MATRIX_ROLES, type MatrixRole, type NormRole } from "./decoder.ts";
import type { ModelFiles } from "./model-files.ts";
import type { Platform } from "./platform.ts";
import { tileText } from "./tiles.ts";
import { planWeights } from "./weight-plan.ts";

/** The tiles to time for a product, the default first. */
function matmulTiles(
  target: Target,
  shape: MatmulShape,
  choice: VariantChoice | readonly MatmulTile[],
): readonly MatmulTile[] {
  if (typeof choice !== "string") return choice;
  return choice === "default" ? [matmulTile(target, shape)] : matmulChoices(target, shape);
}

/** Rows of distinct random weights; a large matrix repeats them. A prime, so that a column taken for another shows. */
const DISTINCT_ROWS = 61;

/** `n` rows of `k` random weights as they are held. */
function randomWeightRows(random: () => number, weight: WeightType, n: number, k: number): TwinBuffer {
  const distinct = Math.min(n, DISTINCT_ROWS);
  const values = floats(random, distinct * k, 1 / Math.sqrt(k));
  const width = weightRowWords(weight, k);
  const some = packRows(values, weight, distinct, k);
  const all = weight === "f32" ? new Float32Array(n * width) : new Uint32Array(n * width);
  for (let row = 0; row < n; row += distinct)
    all.set(some.subarray(0, Math.min(distinct, n - row) * width), row * width);
  return all;
}

function packRows(values: Float32Array, weight: WeightType, rows: number, k: number): TwinBuffer {
  if (weight === "f32") return values;
  if (isQuantised(weight)) return quantiseRows(values, rows, k, weight);
  const width = weightRowWords(weight, k);
  const half = weight === "bf16" ? (value: number) => bits(value) >>> 16 : (value: number) => f16Bits(value);
  const words = new Uint32Array(rows * width);
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < k; i++) words[row * width + (i >> 1)] |= half(values[row * k + i]) << (16 * (i & 1));
  }
  return words;
}

const float = new Float32Array(1);
const word = new Uint32Array(float.buffer);

function bits(value: number): number {
  float[0] = value;
  return word[0];
}

/** An f16 near to a value below 1: its exponent moved, its fraction cut; what would be subnormal is 0. */
function f16Bits(value: number): number {
  const from = bits(value);
  const exponent = ((from >>> 23) & 0xff) - 112;
  return exponent <= 0 ? 0 : ((from >>> 16) & 0x8000) | (exponent << 10) | ((from >>> 13) & 0x3ff);
}

/** A product `rows` x K x N in its variants, those of a choice or the given ones. */
export function matmulBenchCase(
  target: Target,
  name: string,
  shape: Omit<MatmulVariant, keyof MatmulTile>,
  rows: number,
  choice: VariantChoice | readonly MatmulTile[],
): BenchCase {
  const { k, n, weight, epilogue, bias, outStride } = shape;
  const names = epilogue === "glu" ? ["gate", "up"] : ["weight"];
  const tiles = matmulTiles(target, { k, n, weight, epilogue }, choice);
  return {
    op: "matmul",
    name,
    shape: `${rows} x ${k} x ${n}${epilogue === "glu" ? " twice" : ""}`,
    dtype: weight,
    output: "out",
    buffers() {
      const random = seededRandom(CASE_SEED + k + n);
      return {
        x: floats(random, rows * k),
        ...Object.fromEntries(names.map((each) => [each, randomWeightRows(random, weight, n, k)])),
        ...(bias
          ? Object.fromEntries(
              names.map((each) => [each === "weight" ? "bias" : `${each}Bias`, floats(random, n)] as const),
            )
          : {}),
        out: floats(random, rows * outStride),
      };
    },
    variants: tiles.map((tile) => {
      const variant: MatmulVariant = { ...shape, ...tile };
      return {
        variant: tileText(tile),
        kernel: matmul(variant),
        rows,
        own: (shared) => {
          if (!tile.textures && !tile.staged) return {};
          const padded = names.map((each) => [each, padRows(shared[each], n, matmulRowWords(variant))] as const);
          return { ...(tile.textures ? { x: shared["x"] } : {}), ...Object.fromEntries(padded) };
        },
        sample: (buffers) => sampleMatmul(variant, buffers, rows, CASE_SEED),
      };
    }),
  };
}

/** What is written where by a role's product, as the forward pass has it. */
function roleOutput(files: ModelFiles, role: MatrixRole): Pick<MatmulVariant, "epilogue" | "activation"> {
  const { config, blocks } = files.spec;
  const [block] = blocks;
  const { activation } = config;
  if (role === "gate") return { epilogue: "glu", activation };
  if (role === "up") return { epilogue: "store", activation };
  const norms: Partial<Record<MatrixRole, NormRole>> = { attentionOut: "attentionOutNorm", down: "ffnOutNorm" };
  const behind = norms[role];
  return { epilogue: behind !== undefined && block[behind] === null ? "add" : "store" };
}

/** The products of a block. */
export async function matmulBenchCases(
  files: ModelFiles,
  target: Target,
  platform: Platform,
  rows: number,
  choice: VariantChoice,
): Promise<BenchCase[]> {
  const { kvHeads, headDim } = files.spec.config;
  const plan = await planWeights(files.checkpoint, files.spec, 1, platform);
  const { matrices } = plan.blocks[0];
  return MATRIX_ROLES.flatMap((role) => {
    const matrix = matrices[role];
    if (matrix === null || (role === "up" && matrices.gate !== null)) return [];
    const { spec, type, parts, bias } = matrix;
    // Of a matrix that is split over several bindings its first, largest part.
    const { n } = parts[0];
    const keyValue = role === "key" || role === "value";
    const shape = {
      k: spec.k,
      n,
      weight: type,
      ...roleOutput(files, role),
      bias: bias !== null,
      outStride: keyValue ? 2 * kvHeads * headDim : n,
      outOffset: role === "value" ? kvHeads * headDim : 0,
    };
    return [matmulBenchCase(target, `matmul ${role}`, shape, rows, choice)];
  });
}
