/**
 * The memory plan: every buffer that a run will hold, computed before a byte is uploaded. The model allocates exactly
 * these, so the printed plan and the live bytes agree.
 */
import { StratumError } from "../errors.ts";
import type { WeightType } from "../kernels/kernel.ts";
import { weightRowWords } from "../kernels/weight-load.ts";
import type { Checkpoint } from "../weights/checkpoint.ts";
import type { DecoderConfig } from "../weights/config.ts";
import { type BufferUse, bufferBytes, type DeviceLimits } from "./device.ts";
import { DISPATCH_FLOPS, meansPerDispatch, rowsPerDispatch, tilesPerDispatch } from "./dispatch-size.ts";
import type { BlockSpec, MatrixSpec, ModelSpec } from "./family.ts";

export interface PlannedBuffer {
  readonly label: string;
  readonly bytes: number;
  readonly use: BufferUse;
}

/** A part of a weight matrix that fits one binding: rows n0 .. n0 + n - 1 of its file's tensor. */
export interface PlannedPart {
  readonly n0: number;
  readonly n: number;
  readonly buffer: PlannedBuffer;
}

export interface PlannedMatrix {
  readonly spec: MatrixSpec;
  readonly type: WeightType;
  readonly parts: readonly PlannedPart[];
  readonly bias: PlannedBuffer | null;
}

export interface PlannedBlock {
  readonly attentionNorm: PlannedBuffer;
  readonly ffnNorm: PlannedBuffer;
  readonly matrices: Readonly<Record<MatrixRole, PlannedMatrix>>;
}

export const MATRIX_ROLES = ["query", "key", "value", "attentionOut", "gate", "up", "down"] as const;
export type MatrixRole = (typeof MATRIX_ROLES)[number];

/** What a run reads and holds. */
export interface WeightPlan {
  readonly spec: ModelSpec;
  /** Blocks that are loaded: the deepest asked-for layer. */
  readonly depth: number;
  readonly blocks: readonly PlannedBlock[];
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

async function planMatrix(
  checkpoint: Checkpoint,
  spec: MatrixSpec,
  type: WeightType,
  limits: DeviceLimits,
): Promise<{ matrix: PlannedMatrix; diskBytes: number }> {
  const { shape, byteLength } = await checkpoint.info(spec.weight);
  checkShape(spec.weight, shape, [spec.n, spec.k]);
  const rowBytes = 4 * weightRowWords(type, spec.k);
  const fitting = Math.floor(Math.min(limits.maxBufferSize, limits.maxStorageBufferBindingSize) / rowBytes);
  // Parts begin at multiples of 64 rows, so that the bias of a part can be bound at its offset of 256 bytes.
  const perPart = fitting >= 64 ? fitting - (fitting % 64) : Math.max(1, fitting);
  const parts: PlannedPart[] = [];
  for (let n0 = 0; n0 < spec.n; n0 += perPart) {
    const n = Math.min(perPart, spec.n - n0);
    parts.push({
      n0,
      n,
      buffer: {
        label: parts.length === 0 && n === spec.n ? spec.weight : `${spec.weight}[${n0}:${n0 + n}]`,
        bytes: bufferBytes(n * rowBytes),
        use: "storage",
      },
    });
  }
  let diskBytes = byteLength;
  let bias: PlannedBuffer | null = null;
  if (spec.bias !== null) {
    diskBytes += await vectorBytes(checkpoint, spec.bias, spec.n);
    bias = { label: spec.bias, bytes: 4 * spec.n, use: "storage" };
  }
  return { matrix: { spec, type, parts, bias }, diskBytes };
}

async function vectorBytes(checkpoint: Checkpoint, name: string, size: number): Promise<number> {
  await storedType(checkpoint, name);
  const { shape, byteLength } = await checkpoint.info(name);
  checkShape(name, shape, [size]);
  return byteLength;
}

/**
 * Plans the weights of the first `depth` blocks. Looks at headers only, reads no tensor.
 * @throws {StratumError} `model/missing-tensor`, `model/shape`, `model/unsupported-dtype`
 */
export async function planWeights(
  checkpoint: Checkpoint,
  spec: ModelSpec,
  depth: number,
  limits: DeviceLimits,
): Promise<WeightPlan> {
  const d = spec.config.hiddenSize;
  await storedType(checkpoint, spec.embedding);
  checkShape(spec.embedding, (await checkpoint.info(spec.embedding)).shape, [spec.config.vocab, d]);
  const blocks: PlannedBlock[] = [];
  let diskBytes = 0;
  for (const block of spec.blocks.slice(0, depth)) {
    // One kernel multiplies gate and up: where a checkpoint mixes their types, both are held as f32.
    const [gate, up] = [await storedType(checkpoint, block.gate.weight), await storedType(checkpoint, block.up.weight)];
    const matrices = {} as Record<MatrixRole, PlannedMatrix>;
    for (const role of MATRIX_ROLES) {
      const stored = await storedType(checkpoint, block[role].weight);
      const type = (role === "gate" || role === "up") && gate !== up ? "f32" : stored;
      const planned = await planMatrix(checkpoint, block[role], type, limits);
      matrices[role] = planned.matrix;
      diskBytes += planned.diskBytes;
    }
    diskBytes +=
      (await vectorBytes(checkpoint, block.attentionNorm, d)) + (await vectorBytes(checkpoint, block.ffnNorm, d));
    const norm = (name: keyof BlockSpec & ("attentionNorm" | "ffnNorm")): PlannedBuffer => ({
      label: block[name],
      bytes: 4 * d,
      use: "storage",
    });
    blocks.push({ attentionNorm: norm("attentionNorm"), ffnNorm: norm("ffnNorm"), matrices });
  }
  return { spec, depth, blocks, diskBytes, bytes: sumBytes(blocks.flatMap(blockBuffers)) };
}

/** All buffers of a planned block. */
export function blockBuffers(block: PlannedBlock): PlannedBuffer[] {
  const matrices = MATRIX_ROLES.flatMap((role) => {
    const { parts, bias } = block.matrices[role];
    return [...parts.map((part) => part.buffer), ...(bias === null ? [] : [bias])];
  });
  return [block.attentionNorm, block.ffnNorm, ...matrices];
}

export function sumBytes(buffers: readonly PlannedBuffer[]): number {
  return buffers.reduce((sum, { bytes }) => sum + bytes, 0);
}

/** What a run gives: scores made on the GPU, one state a sequence, or the states of all tokens. */
export type RunOutput = "scores" | "pooled" | "all";

/** How a sequence gets its one state: that of its last token, or with `mean` the mean over the tokens that its group names. */
export type RunPooling = "last" | "mean";

/** Sizes of the working buffers. */
export interface WorkspaceSize {
  /** Rows of the packed batch, T. */
  readonly rows: number;
  /** Layers that are tapped, K. */
  readonly taps: number;
  readonly output: RunOutput;
  /** Default `last`. Means nothing for the output `all`. */
  readonly pooling?: RunPooling | undefined;
  /** See {@link DISPATCH_FLOPS}, the default. */
  readonly dispatchFlops?: number;
}

/**
 * A sequence counts as at least this many rows of a batch's budget, so that the rows which are read out (one a
 * sequence) are at most an eighth of the rows.
 */
export const MIN_SEQUENCE_ROWS = 8;

/** Distinct (rows, offset) pairs that one batch may dispatch, at most; a slot each in the params buffer. */
export function paramSlots(
  config: DecoderConfig,
  { rows, taps, pooling = "last", dispatchFlops = DISPATCH_FLOPS }: Omit<WorkspaceSize, "output">,
): number {
  const matmuls = 2 * Math.ceil(rows / rowsPerDispatch(config, dispatchFlops));
  const attentions = 2 * Math.ceil(rows / tilesPerDispatch(config, rows, dispatchFlops));
  const readOuts = pooling === "last" ? 1 : Math.ceil(readRows(rows) / meansPerDispatch(config, rows, dispatchFlops));
  return 8 + taps * readOuts + matmuls + attentions;
}

/** Sequences that fit a batch: each counts as `MIN_SEQUENCE_ROWS` rows at least. */
function readRows(rows: number): number {
  return Math.ceil(rows / MIN_SEQUENCE_ROWS);
}

/** WebGPU lets a binding begin at multiples of this at the least. */
export const PARAM_SLOT_BYTES = 256;

const WORKSPACE_NAMES = [
  "x",
  "normed",
  "query",
  "kv",
  "attended",
  "ffn",
  "spans",
  "tiles",
  "ropeTable",
  "read",
  "readIndex",
  "readSpans",
  "readTiles",
  "poolSpans",
  "states",
  "pairs",
  "scores",
  "params",
  "staging",
] as const;
export type WorkspaceName = (typeof WORKSPACE_NAMES)[number];

/** The working buffers that a run needs; those it does not need are absent. */
export type WorkspacePlan = ReadonlyMap<WorkspaceName, PlannedBuffer>;

/**
 * Plans the working buffers of a batch. With `all`, states are read back layer by layer out of `x`; else the pooled
 * states of all tapped layers stay on the GPU together. Last tokens' rows are compacted in the last block; means need
 * all rows.
 */
export function planWorkspace(spec: ModelSpec, size: WorkspaceSize): WorkspacePlan {
  const { rows, taps, output, pooling = "last" } = size;
  const { hiddenSize: d, heads, kvHeads, headDim, ffn } = spec.config;
  const pooled = output === "all" ? 0 : readRows(rows);
  const [read, means] = pooling === "mean" ? [0, pooled] : [pooled, 0];
  const pairs = output === "scores" ? pooled : 0;
  const states = pooled * d * taps;
  const staging = { scores: pairs * 2, pooled: states, all: rows * d }[output];
  const words: Record<WorkspaceName, number> = {
    x: rows * d,
    normed: rows * d,
    query: rows * heads * headDim,
    kv: rows * 2 * kvHeads * headDim,
    attended: rows * heads * headDim,
    ffn: rows * ffn,
    spans: rows * 4,
    tiles: rows * 2,
    ropeTable: rows * headDim,
    read: read * d,
    readIndex: read,
    readSpans: read * 4,
    readTiles: read * 2,
    poolSpans: means * 4,
    states,
    pairs: pairs * 2,
    scores: pairs * 2,
    params: (paramSlots(spec.config, size) * PARAM_SLOT_BYTES) / 4,
    staging,
  };
  const use = (name: WorkspaceName): BufferUse =>
    name === "params" ? "uniform" : name === "staging" ? "readback" : "storage";
  return new Map(
    WORKSPACE_NAMES.filter((name) => words[name] > 0).map((name) => [
      name,
      { label: name, bytes: bufferBytes(4 * words[name]), use: use(name) },
    ]),
  );
}

/** Rows of a batch where nothing else is asked for. */
export const DEFAULT_BATCH_TOKENS = 1024;
/** A default budget grows for a single long sequence or list up to this many rows, and this many bytes. */
const MAX_GROWN_ROWS = 32768;
const MAX_GROWN_BYTES = 2 * 1024 ** 3;
const SAMPLE_ROWS = 8192;

/** The budget of a batch, and how far it may grow. */
export interface BatchBudget {
  readonly budget: number;
  readonly maxBudget: number;
}

/**
 * The rows of a batch: `batchTokens`, a hard bound, or the default, which grows for longer sequences and lists as far
 * as the adapter allows.
 * @throws {StratumError} `usage/batch-tokens`
 */
export function batchBudget(
  spec: ModelSpec,
  limits: DeviceLimits,
  { batchTokens, ...size }: Omit<WorkspaceSize, "rows"> & { readonly batchTokens?: number | undefined },
): BatchBudget {
  // Every buffer grows with the rows: what a thousand of them take tells how many fit.
  const sample = [...planWorkspace(spec, { ...size, rows: SAMPLE_ROWS }).values()].filter(
    ({ use }) => use !== "uniform",
  );
  const limit = Math.min(...sample.map((buffer) => Math.floor((limitOf(buffer, limits) * SAMPLE_ROWS) / buffer.bytes)));
  if (batchTokens === undefined) {
    const budget = Math.min(DEFAULT_BATCH_TOKENS, limit);
    const affordable = Math.floor((MAX_GROWN_BYTES * SAMPLE_ROWS) / sumBytes(sample));
    return { budget, maxBudget: Math.max(budget, Math.min(MAX_GROWN_ROWS, limit, affordable)) };
  }
  if (Number.isInteger(batchTokens) && batchTokens >= MIN_SEQUENCE_ROWS && batchTokens <= limit) {
    return { budget: batchTokens, maxBudget: batchTokens };
  }
  throw new StratumError(
    "usage/batch-tokens",
    `a batch of ${batchTokens} tokens is not possible here`,
    `give --batch-tokens a whole number from ${MIN_SEQUENCE_ROWS} to ${limit}`,
  );
}

/** What a run is asked for. */
export interface RunRequest {
  /** Layers to tap, in the order of the output. */
  readonly layers: readonly number[];
  readonly output: RunOutput;
  /** How sequences are pooled to one state each; default `last`. Means nothing for the output `all`. */
  readonly pooling?: RunPooling | undefined;
  /** Rows of a batch, a hard bound. Absent: `DEFAULT_BATCH_TOKENS`, grown for longer sequences and lists as far as the adapter allows. */
  readonly batchTokens?: number | undefined;
}

/** What a whole run reads and holds. */
export interface RunPlan {
  readonly weights: WeightPlan;
  readonly workspace: WorkspacePlan;
  /** Rows of a batch. */
  readonly rows: number;
  /** Bytes of all buffers on the GPU. */
  readonly bytes: number;
}

/**
 * Plans a run and checks it against the adapter's limits. Nothing is read but headers, nothing uploaded.
 * @throws {StratumError} `memory/buffer-limit`, `usage/batch-tokens`, and as `planWeights`
 */
export async function planRun(
  checkpoint: Checkpoint,
  spec: ModelSpec,
  { layers, output, pooling, batchTokens }: RunRequest,
  limits: DeviceLimits,
): Promise<RunPlan> {
  const size = { taps: layers.length, output, pooling };
  const { budget } = batchBudget(spec, limits, { ...size, batchTokens });
  const weights = await planWeights(checkpoint, spec, Math.max(...layers), limits);
  const workspace = planWorkspace(spec, { ...size, rows: budget });
  checkPlan([...weights.blocks.flatMap(blockBuffers), ...workspace.values()], limits);
  return { weights, workspace, rows: budget, bytes: weights.bytes + sumBytes([...workspace.values()]) };
}

/**
 * Checks every buffer against the adapter's limits.
 * @throws {StratumError} `memory/buffer-limit` with the buffer, its size and the limit
 */
export function checkPlan(buffers: readonly PlannedBuffer[], limits: DeviceLimits): void {
  for (const buffer of buffers) {
    if (buffer.bytes <= limitOf(buffer, limits)) continue;
    throw new StratumError(
      "memory/buffer-limit",
      `the plan needs ${buffer.bytes} bytes for '${buffer.label}'; the adapter binds at most ${limitOf(buffer, limits)}`,
      "lower --batch-tokens (for a scorer: shorter lists or a smaller --width), or use an adapter with a larger maxStorageBufferBindingSize (stratum doctor shows it)",
    );
  }
}

/** The most bytes that the adapter allows a buffer of this use. */
function limitOf({ use }: PlannedBuffer, { maxBufferSize, maxStorageBufferBindingSize }: DeviceLimits): number {
  return use === "storage" ? Math.min(maxBufferSize, maxStorageBufferBindingSize) : maxBufferSize;
}
