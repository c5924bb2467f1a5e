/**
 * The plan of a model's weights: what is read of which tensor, in what form and in which buffers it is held. Made from
 * headers alone.
 */
import { StratumError } from "../errors.ts";
import type { AttentionTile } from "../kernels/attention.ts";
import type { WeightType } from "../kernels/kernel.ts";
import { type MatmulTile, matmulRowWords } from "../kernels/matmul.ts";
import type { Checkpoint } from "../weights/checkpoint.ts";
import {
  type BlockSpec,
  MATRIX_ROLES,
  type MatrixRole,
  type MatrixSpec,
  type ModelSpec,
  NORM_ROLES,
  type NormRole,
  tensorsTo,
  type WeightForm,
} from "./decoder.ts";
import { bufferBytes } from "./device-memory.ts";
import { type PlannedBuffer, type PlannedMemory, plannedTexture, sumBytes } from "./planned-buffer.ts";
import type { Platform } from "./platform.ts";

/** A part of a weight matrix that fits one binding: its rows n0 .. n0 + n - 1. */
export interface PlannedPart {
  readonly n0: number;
  readonly n: number;
  readonly buffer: PlannedMemory;
}

/** A vector of `size` elements of a tensor of the file: all of it, or those that a matrix's layout picks. */
export interface PlannedVector {
  readonly name: string;
  readonly picked: MatrixSpec | null;
  readonly buffer: PlannedBuffer;
}

export interface PlannedMatrix {
  readonly spec: MatrixSpec;
  readonly type: WeightType;
  /** The matmul that it is held for. */
  readonly tile: MatmulTile;
  readonly parts: readonly PlannedPart[];
  readonly bias: PlannedVector | null;
}

export interface PlannedNorm {
  readonly weight: PlannedVector;
  readonly bias: PlannedVector | null;
}

/** A block's tensors by role; null where its family has none. */
export interface PlannedBlock {
  readonly norms: Readonly<Record<NormRole, PlannedNorm | null>>;
  readonly matrices: Readonly<Record<MatrixRole, PlannedMatrix | null>>;
}

/** What a run reads and holds. */
export interface WeightPlan {
  readonly spec: ModelSpec;
  /** Blocks that are loaded: the deepest asked-for layer. */
  readonly depth: number;
  readonly blocks: readonly PlannedBlock[];
  readonly attention: AttentionTile;
  /** Bytes on the GPU. */
  readonly bytes: number;
  /** Bytes of the tensors that are read from disk whole; embedding rows come on demand. */
  readonly diskBytes: number;
}

/** The form in which a stored type is held on the GPU. */
export const WEIGHT_TYPE: Readonly<Record<string, WeightType>> = { F32: "f32", BF16: "bf16", F16: "f16" };

function checkShape(name: string, shape: readonly number[], expected: readonly number[]): void {
  if (shape.length === expected.length && shape.every((size, i) => size === expected[i])) return;
  throw new StratumError(
    "model/shape",
    `tensor ${name} has the shape [${shape.join(", ")}]; config.json asks for [${expected.join(", ")}]`,
    "config.json and the weights do not belong together: download both again",
  );
}

function unsupportedType(name: string, dtype: string): StratumError {
  return new StratumError(
    "model/unsupported-dtype",
    `tensor ${name} is stored as ${dtype}`,
    "use a checkpoint in F32, F16 or BF16 (quantised and integer weights are not supported)",
  );
}

async function storedType(checkpoint: Checkpoint, name: string): Promise<WeightType> {
  const { dtype } = await checkpoint.info(name);
  const type = WEIGHT_TYPE[dtype];
  if (type === undefined) throw unsupportedType(name, dtype);
  return type;
}

async function planVector(
  checkpoint: Checkpoint,
  name: string,
  size: number,
  picked: MatrixSpec | null = null,
): Promise<PlannedVector> {
  await storedType(checkpoint, name);
  checkShape(name, (await checkpoint.info(name)).shape, [size]);
  const label = picked === null || picked.n === size ? name : `${name} (${picked.n} of ${size})`;
  return { name, picked, buffer: { label, bytes: bufferBytes(4 * (picked?.n ?? size)), use: "storage" } };
}

async function planMatrix(
  checkpoint: Checkpoint,
  spec: MatrixSpec,
  type: WeightType,
  gated: boolean,
  { limits, tile: tileOf }: Platform,
): Promise<PlannedMatrix> {
  const { weight, shape, transposed, n, k } = spec;
  checkShape(weight, (await checkpoint.info(weight)).shape, shape);
  const tile = tileOf({ k, n, weight: type, epilogue: gated ? "glu" : "store" });
  const rowWords = matmulRowWords({ k, weight: type, ...tile });
  const fitting = tile.textures
    ? limits.maxTextureDimension2D
    : Math.floor(Math.min(limits.maxBufferSize, limits.maxStorageBufferBindingSize) / (4 * rowWords));
  // Parts begin at multiples of 64 rows, so that the bias of a part can be bound at its offset of 256 bytes.
  const perPart = fitting >= 64 ? fitting - (fitting % 64) : Math.max(1, fitting);
  const outputs = shape[transposed ? 1 : 0];
  const parts: PlannedPart[] = [];
  for (let n0 = 0; n0 < n; n0 += perPart) {
    const count = Math.min(perPart, n - n0);
    const part = count === n ? "" : `[${n0}:${n0 + count}]`;
    const label = `${weight}${n === outputs ? "" : ` (${n} of ${outputs})`}${part}`;
    const buffer: PlannedMemory = tile.textures
      ? plannedTexture(label, rowWords / 4, count, "rgba32uint")
      : { label, bytes: bufferBytes(4 * count * rowWords), use: "storage" };
    parts.push({ n0, n: count, buffer });
  }
  const bias = spec.bias === null ? null : await planVector(checkpoint, spec.bias, outputs, spec);
  return { spec, type, tile, parts, bias };
}

async function planBlock(
  checkpoint: Checkpoint,
  block: BlockSpec,
  form: WeightForm,
  platform: Platform,
): Promise<PlannedBlock> {
  const norms = {} as Record<NormRole, PlannedNorm | null>;
  for (const role of NORM_ROLES) {
    const spec = block[role];
    norms[role] = spec && {
      weight: await planVector(checkpoint, spec.weight, spec.size),
      bias: spec.bias === null ? null : await planVector(checkpoint, spec.bias, spec.size),
    };
  }
  // One kernel multiplies gate and up: where a checkpoint mixes their types, both are held as f32.
  const up = await storedType(checkpoint, block.up.weight);
  const mixed = block.gate !== null && (await storedType(checkpoint, block.gate.weight)) !== up;
  const matrices = {} as Record<MatrixRole, PlannedMatrix | null>;
  for (const role of MATRIX_ROLES) {
    const spec = block[role];
    if (spec === null) {
      matrices[role] = null;
      continue;
    }
    const stored = await storedType(checkpoint, spec.weight);
    const held = mixed && (role === "gate" || role === "up") ? "f32" : stored;
    const gated = block.gate !== null && (role === "gate" || role === "up");
    matrices[role] = await planMatrix(checkpoint, spec, form === "stored" ? held : form, gated, platform);
  }
  return { norms, matrices };
}

/**
 * Plans the weights of the first `depth` blocks. Looks at headers only, reads no tensor.
 * @throws {StratumError} `model/missing-tensor`, `model/shape`, `model/unsupported-dtype`
 */
export async function planWeights(
  checkpoint: Checkpoint,
  spec: ModelSpec,
  depth: number,
  platform: Platform,
): Promise<WeightPlan> {
  const d = spec.config.hiddenSize;
  await storedType(checkpoint, spec.embedding);
  checkShape(spec.embedding, (await checkpoint.info(spec.embedding)).shape, [spec.config.vocab, d]);
  if (spec.positions !== null) {
    await storedType(checkpoint, spec.positions.weight);
    checkShape(spec.positions.weight, (await checkpoint.info(spec.positions.weight)).shape, [spec.positions.rows, d]);
  }
  const blocks: PlannedBlock[] = [];
  for (const block of spec.blocks.slice(0, depth)) blocks.push(await planBlock(checkpoint, block, spec.form, platform));
  let diskBytes = 0;
  for (const name of tensorsTo(spec, depth)) {
    if (name !== spec.embedding) diskBytes += (await checkpoint.info(name)).byteLength;
  }
  const attention = platform.attention(spec.config.headDim);
  return { spec, depth, blocks, attention, diskBytes, bytes: sumBytes(blocks.flatMap(blockBuffers)) };
}

/** Values of the rows that kernels take out of textures; 0: none does. */
export interface TextureWidths {
  /** The widest input of a matrix, or the queries. */
  readonly packed: number;
  /** Keys and values. */
  readonly packedKeys: number;
}

export function textureWidths({ blocks, spec, attention }: WeightPlan): TextureWidths {
  const { heads, kvHeads, headDim } = spec.config;
  const planned = blocks.flatMap(({ matrices }) => MATRIX_ROLES.flatMap((role) => matrices[role] ?? []));
  const inputs = planned.map((matrix) => (matrix.tile.textures ? matrix.spec.k : 0));
  const attends = attention.textures && blocks.length > 0;
  return {
    packed: Math.max(0, ...inputs, attends ? heads * headDim : 0),
    packedKeys: attends ? 2 * kvHeads * headDim : 0,
  };
}

/** All buffers of a planned block. */
export function blockBuffers({ norms, matrices }: PlannedBlock): PlannedMemory[] {
  const vectors = [
    ...NORM_ROLES.flatMap((role) => [norms[role]?.weight, norms[role]?.bias]),
    ...MATRIX_ROLES.map((role) => matrices[role]?.bias),
  ];
  const parts = MATRIX_ROLES.flatMap((role) => matrices[role]?.parts ?? []);
  return [...vectors.flatMap((vector) => (vector ? [vector.buffer] : [])), ...parts.map(({ buffer }) => buffer)];
}
