/**
 * The truncated forward pass: records the blocks below the deepest tapped layer on a packed batch. In the last block
 * only the rows that are read out are computed past the keys and values.
 */
import { attention, attentionDefaults } from "../kernels/attention.ts";
import type { Kernel } from "../kernels/kernel.ts";
import { type MatmulVariant, matmul, matmulTile } from "../kernels/matmul.ts";
import { rmsNorm, rmsNormDefaults } from "../kernels/rms-norm.ts";
import { rope } from "../kernels/rope.ts";
import { rowGather } from "../kernels/row-gather.ts";
import type { DeviceBuffer } from "./device.ts";
import type { BlockWeights, LoadedModel, WeightMatrix } from "./model.ts";
import { type BoundBuffer, dispatch, type Pipeline } from "./pipelines.ts";
import type { MatrixRole, WorkspaceName } from "./plan.ts";

export type Workspace = Readonly<Record<WorkspaceName, DeviceBuffer>>;

/** A uniform that holds (rows, offset). */
export type Params = (rows: number, offset?: number) => BoundBuffer;

/** How a role's matrix is multiplied: what it does to the output buffer, and where. */
const EPILOGUE: Readonly<Record<MatrixRole, MatmulVariant["epilogue"]>> = {
  query: "store",
  key: "store",
  value: "store",
  attentionOut: "add",
  gate: "swiglu",
  up: "swiglu",
  down: "add",
};

/** The kernels of one model on one target. Which variant runs depends on adapter, role, shape and type only. */
export interface ForwardKernels {
  readonly norm: Pipeline;
  readonly ropeQuery: Pipeline;
  readonly ropeKey: Pipeline;
  readonly attention: Pipeline;
  /** Rows of a query tile. */
  readonly tileRows: number;
  readonly gather: Pipeline;
  readonly matmul: (role: MatrixRole, matrix: WeightMatrix, part: number) => Pipeline;
}

function matmulKernel(model: LoadedModel, role: MatrixRole, matrix: WeightMatrix, part: number): Kernel {
  const { kvHeads, headDim, ffn } = model.spec.config;
  const { n0, n } = matrix.parts[part];
  const epilogue = EPILOGUE[role];
  const kvSize = kvHeads * headDim;
  const outStride = role === "key" || role === "value" ? 2 * kvSize : epilogue === "swiglu" ? ffn : matrix.n;
  const outOffset = n0 + (role === "value" ? kvSize : 0);
  return matmul({
    k: matrix.k,
    n,
    weight: matrix.type,
    epilogue,
    bias: matrix.bias !== null,
    outStride,
    outOffset,
    ...matmulTile(model.engine.target, epilogue, n),
  });
}

/** Compiles, in parallel, the kernels that a model needs. */
export async function forwardKernels(model: LoadedModel): Promise<ForwardKernels> {
  const { engine, spec, blocks } = model;
  const { hiddenSize: d, heads, kvHeads, headDim, normEps, slidingWindow } = spec.config;
  const { target, pipelines } = engine;
  const { tileRows, subgroup } = attentionDefaults(target, headDim);
  const matmuls = new Map<string, Promise<Pipeline>>();
  for (const block of blocks) {
    for (const [role, matrix] of Object.entries(block.matrices) as [MatrixRole, WeightMatrix][]) {
      if (role === "up") continue;
      for (const part of matrix.parts.keys()) {
        const kernel = matmulKernel(model, role, matrix, part);
        matmuls.set(kernel.key, pipelines.get(kernel));
      }
    }
  }
  const [norm, ropeQuery, ropeKey, attend, gather, ...made] = await Promise.all([
    pipelines.get(rmsNorm({ d, eps: normEps, ...rmsNormDefaults(target) })),
    pipelines.get(rope({ heads, headDim, stride: heads * headDim })),
    pipelines.get(rope({ heads: kvHeads, headDim, stride: 2 * kvHeads * headDim })),
    pipelines.get(
      attention({
        heads,
        kvHeads,
        headDim,
        scale: 1 / Math.sqrt(headDim),
        window: slidingWindow ?? 0,
        tileRows,
        subgroup,
      }),
    ),
    pipelines.get(rowGather({ d })),
    ...matmuls.values(),
  ]);
  const byKey = new Map(made.map((pipeline) => [pipeline.kernel.key, pipeline]));
  return {
    norm,
    ropeQuery,
    ropeKey,
    attention: attend,
    tileRows,
    gather,
    matmul: (role, matrix, part) => byKey.get(matmulKernel(model, role, matrix, part).key) as Pipeline,
  };
}

/** Rows that go through one step, with the spans and attention tiles of those rows. */
export interface RowSet {
  readonly rows: number;
  readonly spans: DeviceBuffer;
  readonly tiles: DeviceBuffer;
  readonly tileCount: number;
}

/** How much of a batch one dispatch takes. */
export interface DispatchSteps {
  /** Rows of a matmul, a multiple of its row tile. */
  readonly rows: number;
  /** Tiles of attention. */
  readonly tiles: number;
}

/** Records blocks of one model into a compute pass. */
export function recordBlock(
  model: LoadedModel,
  kernels: ForwardKernels,
  workspace: Workspace,
  params: Params,
  pass: GPUComputePassEncoder,
  block: BlockWeights,
  all: RowSet,
  readOut: RowSet | null,
  steps: DispatchSteps,
): void {
  const { device } = model.engine;
  const { x, normed, query, kv, attended, ffn, ropeTable } = workspace;
  const run = (pipeline: Pipeline, bound: Readonly<Record<string, BoundBuffer>>, rows: number) =>
    dispatch(device, pass, pipeline, { ...bound, params: params(rows) }, rows);
  /** What may take long goes in several dispatches; a row's sums are its own, so the cut changes no bit. */
  const runInSteps = (
    pipeline: Pipeline,
    bound: Readonly<Record<string, BoundBuffer>>,
    count: number,
    step: number,
  ): void => {
    for (let first = 0; first < count; first += step) {
      const end = Math.min(first + step, count);
      dispatch(device, pass, pipeline, { ...bound, params: params(end, first) }, end - first);
    }
  };
  const multiply = (role: MatrixRole, input: DeviceBuffer, out: DeviceBuffer, rows: number) => {
    const matrix = block.matrices[role];
    for (const [part, { buffer, n0, n }] of matrix.parts.entries()) {
      const slice = (bias: DeviceBuffer | null) => (bias === null ? undefined : biasSlice(bias, n0, n));
      const weights =
        role === "gate"
          ? {
              gate: buffer,
              up: block.matrices.up.parts[part].buffer,
              gateBias: slice(matrix.bias),
              upBias: slice(block.matrices.up.bias),
            }
          : { weight: buffer, bias: slice(matrix.bias) };
      runInSteps(kernels.matmul(role, matrix, part), { x: input, ...definedOnly(weights), out }, rows, steps.rows);
    }
  };

  run(kernels.norm, { x, weight: block.attentionNorm, out: normed }, all.rows);
  multiply("key", normed, kv, all.rows);
  multiply("value", normed, kv, all.rows);
  run(kernels.ropeKey, { x: kv, spans: all.spans, table: ropeTable }, all.rows);

  // Past keys and values only the asked-for rows matter: in the pruned last block those that are read out.
  const some = readOut ?? all;
  const stream = readOut === null ? x : workspace.read;
  if (readOut !== null) {
    run(kernels.gather, { x, index: workspace.readIndex, out: stream }, some.rows);
    run(kernels.norm, { x: stream, weight: block.attentionNorm, out: normed }, some.rows);
  }
  multiply("query", normed, query, some.rows);
  run(kernels.ropeQuery, { x: query, spans: some.spans, table: ropeTable }, some.rows);
  runInSteps(
    kernels.attention,
    { q: query, kv, spans: some.spans, tiles: some.tiles, out: attended },
    some.tileCount,
    steps.tiles,
  );
  multiply("attentionOut", attended, stream, some.rows);
  run(kernels.norm, { x: stream, weight: block.ffnNorm, out: normed }, some.rows);
  multiply("gate", normed, ffn, some.rows);
  multiply("down", ffn, stream, some.rows);
}

function definedOnly(bound: Readonly<Record<string, BoundBuffer | undefined>>): Record<string, BoundBuffer> {
  return Object.fromEntries(Object.entries(bound).filter(([, buffer]) => buffer !== undefined)) as Record<
    string,
    BoundBuffer
  >;
}

/** The bias of a split matrix: its parts begin at multiples of 64 rows (see planWeights), so the offset is aligned. */
function biasSlice(bias: DeviceBuffer, n0: number, n: number): BoundBuffer {
  return n0 === 0 && bias.size === 4 * n ? bias : { buffer: bias, offset: 4 * n0, size: 4 * n };
}
