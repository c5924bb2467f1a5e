/**
 * The memory plan: every buffer that a run will hold, computed before a byte is uploaded. The model allocates exactly
 * these, so the printed plan and the live bytes agree.
 */
import { StratumError } from "../errors.ts";
import { lineTexture } from "../kernels/texture.ts";
import type { Checkpoint } from "../weights/checkpoint.ts";
import { MIN_SEQUENCE_ROWS } from "./batch.ts";
import type { DecoderConfig, ModelSpec } from "./decoder.ts";
import type { DeviceLimits } from "./device-info.ts";
import { bufferBytes } from "./device-memory.ts";
import { DISPATCH_FLOPS, meansPerDispatch, rowsPerDispatch, tilesPerDispatch } from "./dispatch-size.ts";
import { checkPlan, limitOf, type PlannedMemory, plannedTexture, sumBytes } from "./planned-buffer.ts";
import type { Platform } from "./platform.ts";
import { ropeRegions } from "./rope-table.ts";
import { blockBuffers, planWeights, type TextureWidths, textureWidths, type WeightPlan } from "./weight-plan.ts";

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
  /** What kernels take out of textures; absent: none does. */
  readonly textures?: TextureWidths;
  /** See {@link DISPATCH_FLOPS}, the default. */
  readonly dispatchFlops?: number;
}

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
  "packed",
  "packedKeys",
  "spans",
  "tiles",
  "ropeTable",
  "turns",
  "read",
  "readIndex",
  "readSpans",
  "readTurns",
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
export type WorkspacePlan = ReadonlyMap<WorkspaceName, PlannedMemory>;

/**
 * Plans the working buffers of a batch. With `all`, states are read back layer by layer out of `x`; else the pooled
 * states of all tapped layers stay on the GPU together. Last tokens' rows are compacted in the last block; means need
 * all rows.
 */
export function planWorkspace(spec: ModelSpec, size: WorkspaceSize): WorkspacePlan {
  const { rows, taps, output, pooling = "last", textures } = size;
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
    packed: rows * (textures?.packed ?? 0),
    packedKeys: rows * (textures?.packedKeys ?? 0),
    spans: rows * 4,
    tiles: rows * 2,
    ropeTable: ropeRegions(spec.config, rows).reduce((sum, { bytes }) => sum + bytes, 0) / 4,
    turns: spec.config.ropes.length > 0 ? rows : 0,
    read: read * d,
    readIndex: read,
    readSpans: read * 4,
    readTurns: spec.config.ropes.length > 0 ? read : 0,
    readTiles: read * 2,
    poolSpans: means * 4,
    states,
    pairs: pairs * 2,
    scores: pairs * 2,
    params: (paramSlots(spec.config, size) * PARAM_SLOT_BYTES) / 4,
    staging,
  };
  const plan = (name: WorkspaceName): PlannedMemory => {
    if (name === "packed" || name === "packedKeys")
      return plannedTexture(name, ...lineTexture(words[name]), "rgba32float");
    const use = name === "params" ? "uniform" : name === "staging" ? "readback" : "storage";
    return { label: name, bytes: bufferBytes(4 * words[name]), use };
  };
  return new Map(WORKSPACE_NAMES.filter((name) => words[name] > 0).map((name) => [name, plan(name)]));
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
  { batchTokens, ...size }: Omit<WorkspaceSize, "rows"> & Pick<RunRequest, "batchTokens">,
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
  platform: Platform,
): Promise<RunPlan> {
  const { limits } = platform;
  const weights = await planWeights(checkpoint, spec, Math.max(...layers), platform);
  const size = { taps: layers.length, output, pooling, textures: textureWidths(weights) };
  const { budget } = batchBudget(spec, limits, { ...size, batchTokens });
  const workspace = planWorkspace(spec, { ...size, rows: budget });
  checkPlan([...weights.blocks.flatMap(blockBuffers), ...workspace.values()], limits);
  return { weights, workspace, rows: budget, bytes: weights.bytes + sumBytes([...workspace.values()]) };
}
