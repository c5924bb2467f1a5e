/**
 * The truncated forward pass: records the blocks below the deepest tapped layer on a packed batch, as their description
 * says. In the last block only the rows that are read out are computed past the keys and values.
 */
import { attention } from "../kernels/attention.ts";
import type { Extent } from "../kernels/kernel.ts";
import { type MatmulVariant, matmul } from "../kernels/matmul.ts";
import { type NormVariant, norm, normDefaults } from "../kernels/norm.ts";
import { rope } from "../kernels/rope.ts";
import { rowGather } from "../kernels/row-gather.ts";
import { rotaryDims } from "../weights/rope.ts";
import { type BlockSpec, MATRIX_ROLES, type MatrixRole, NORM_ROLES, type NormRole } from "./decoder.ts";
import type { DeviceBuffer, DeviceTexture } from "./device-memory.ts";
import type { BlockWeights, LoadedModel, NormWeights, WeightMatrix } from "./model.ts";
import type { BoundBuffer, Pipeline } from "./pipelines.ts";
import type { WorkspaceName } from "./plan.ts";
import type { DispatchNote, Recorder } from "./recorder.ts";

export type Workspace = Readonly<Record<Exclude<WorkspaceName, "packed" | "packedKeys">, DeviceBuffer>> &
  Readonly<Record<"packed" | "packedKeys", DeviceTexture>>;

/** A uniform that holds (rows, offset). */
export type Params = (rows: number, offset?: number) => BoundBuffer;

/** The kernels of one block; null where its family has none. */
interface BlockKernels {
  readonly norms: Readonly<Record<NormRole, Pipeline | null>>;
  readonly ropeQuery: Pipeline | null;
  readonly ropeKey: Pipeline | null;
  readonly attention: Pipeline;
  /** By part of the matrix. `up` of a gated block is multiplied with `gate`. */
  readonly matmuls: Readonly<Record<MatrixRole, readonly Pipeline[]>>;
}

/** The kernels of one model on one target. Which variant runs depends on adapter, role, shape and type only. */
export interface ForwardKernels {
  readonly blocks: readonly BlockKernels[];
  /** Rows of a query tile. */
  readonly tileRows: number;
  readonly gather: Pipeline;
}

/** What a role's product does: to which buffer, in which columns of its rows. */
function matmulKernel(model: LoadedModel, spec: BlockSpec, role: MatrixRole, matrix: WeightMatrix, part: number) {
  const { kvHeads, headDim, activation } = model.spec.config;
  const { n0, n } = matrix.parts[part];
  const kvSize = kvHeads * headDim;
  const output: Readonly<Record<MatrixRole, Pick<MatmulVariant, "epilogue" | "activation">>> = {
    query: { epilogue: "store" },
    key: { epilogue: "store" },
    value: { epilogue: "store" },
    attentionOut: { epilogue: spec.attentionOutNorm === null ? "add" : "store" },
    gate: { epilogue: "glu", activation },
    up: { epilogue: "store", activation },
    down: { epilogue: spec.ffnOutNorm === null ? "add" : "store" },
  };
  return matmul({
    k: matrix.k,
    n,
    weight: matrix.type,
    ...output[role],
    bias: matrix.bias !== null,
    outStride: role === "key" || role === "value" ? 2 * kvSize : matrix.n,
    outOffset: n0 + (role === "value" ? kvSize : 0),
    ...matrix.tile,
  });
}

function normKernel(model: LoadedModel, spec: BlockSpec, role: NormRole, weights: NormWeights) {
  const { hiddenSize, heads, kvHeads, headDim, norm: settings } = model.spec.config;
  const size = spec[role]?.size ?? hiddenSize;
  const perHead = (count: number, stride: number): Pick<NormVariant, "groups" | "stride" | "output"> => ({
    groups: size === headDim ? count : 1,
    stride,
    output: "inPlace",
  });
  const place: Readonly<Record<NormRole, Pick<NormVariant, "groups" | "stride" | "output">>> = {
    attentionNorm: { groups: 1, stride: hiddenSize, output: "store" },
    queryNorm: perHead(heads, heads * headDim),
    keyNorm: perHead(kvHeads, 2 * kvHeads * headDim),
    attentionOutNorm: { groups: 1, stride: hiddenSize, output: "add" },
    ffnNorm: { groups: 1, stride: hiddenSize, output: "store" },
    ffnOutNorm: { groups: 1, stride: hiddenSize, output: "add" },
  };
  return norm({
    ...settings,
    d: size,
    bias: weights.bias !== null,
    ...place[role],
    ...normDefaults(model.engine.target),
  });
}

async function blockKernels(model: LoadedModel, index: number): Promise<BlockKernels> {
  const { engine, blocks } = model;
  const { pipelines } = engine;
  const { heads, kvHeads, headDim, softcap, ropes } = model.spec.config;
  const spec = model.spec.blocks[index];
  const { norms, matrices } = blocks[index];
  const turned = spec.rope === null ? null : rotaryDims(ropes[spec.rope]);
  const ropeFor = async (count: number, stride: number) =>
    turned === null ? null : pipelines.get(rope({ heads: count, headDim, rotary: turned, stride }));
  const normFor = async (role: NormRole) => {
    const weights = norms[role];
    return weights && pipelines.get(normKernel(model, spec, role, weights));
  };
  const matmulsFor = async (role: MatrixRole) => {
    const matrix = matrices[role];
    if (matrix === null || (role === "up" && matrices.gate !== null)) return [];
    return Promise.all(matrix.parts.map((_, part) => pipelines.get(matmulKernel(model, spec, role, matrix, part))));
  };
  const attend = attention({
    heads,
    kvHeads,
    headDim,
    scale: spec.attentionScale,
    softcap: softcap ?? 0,
    window: spec.window ?? 0,
    ...model.plan.attention,
  });
  const [attended, ropeQuery, ropeKey, madeNorms, madeMatmuls] = await Promise.all([
    pipelines.get(attend),
    ropeFor(heads, heads * headDim),
    ropeFor(kvHeads, 2 * kvHeads * headDim),
    Promise.all(NORM_ROLES.map(normFor)),
    Promise.all(MATRIX_ROLES.map(matmulsFor)),
  ]);
  return {
    attention: attended,
    ropeQuery,
    ropeKey,
    norms: Object.fromEntries(NORM_ROLES.map((role, i) => [role, madeNorms[i]])) as BlockKernels["norms"],
    matmuls: Object.fromEntries(MATRIX_ROLES.map((role, i) => [role, madeMatmuls[i]])) as Readonly<
      Record<string, readonly Pipeline[]>
    > as BlockKernels["matmuls"],
  };
}

/** Compiles, in parallel, the kernels that a model needs. */
export async function forwardKernels(model: LoadedModel): Promise<ForwardKernels> {
  const { engine, spec, blocks } = model;
  const { hiddenSize: d } = spec.config;
  const [gather, made] = await Promise.all([
    engine.pipelines.get(rowGather({ d })),
    Promise.all(blocks.map((_, index) => blockKernels(model, index))),
  ]);
  return { gather, blocks: made, tileRows: model.plan.attention.tileRows };
}

/** Rows that go through one step, with the spans, rows of the rotation table and attention tiles of those rows. */
export interface RowSet {
  readonly rows: number;
  readonly spans: DeviceBuffer;
  readonly turns: DeviceBuffer;
  readonly tiles: DeviceBuffer;
  readonly tileCount: number;
  /** What attention of tiles first .. end - 1 reads, by its window. */
  readonly reach: (window: number | null, first: number, end: number) => Extent;
}

/** How much of a batch one dispatch takes. */
export interface DispatchSteps {
  /** Rows of a matmul, a multiple of its row tile. */
  readonly rows: number;
  /** Tiles of attention. */
  readonly tiles: number;
}

/** What blocks are recorded with: the same for all blocks of a batch. */
export interface Recording {
  readonly model: LoadedModel;
  readonly kernels: ForwardKernels;
  readonly workspace: Workspace;
  /** The rotation table of each of the model's rotary embeddings. */
  readonly ropeTables: readonly BoundBuffer[];
  readonly params: Params;
  readonly steps: DispatchSteps;
  readonly all: RowSet;
}

/**
 * Records one block.
 * @param readOut the rows that are read out, where nothing else is needed of the block; null: all
 */
export function recordBlock(
  { model, kernels, workspace, ropeTables, params, steps, all }: Recording,
  recorder: Recorder,
  index: number,
  readOut: RowSet | null,
): void {
  const spec = model.spec.blocks[index];
  const block: BlockWeights = model.blocks[index];
  const made = kernels.blocks[index];
  const { x, normed, query, kv, attended, ffn, packed, packedKeys } = workspace;
  /** The buffer whose contents `packed` holds. */
  let held: DeviceBuffer | null = null;
  const hold = (input: DeviceBuffer, words: number): void => {
    if (held !== input) recorder.copyToTexture(input, packed, 4 * words);
    held = input;
  };

  /** What may take long goes in several dispatches; a row's sums are its own, so the cut changes no bit. */
  const run = (
    role: string,
    pipeline: Pipeline,
    bound: Readonly<Record<string, BoundBuffer>>,
    count: number,
    step = count,
    extent?: (first: number, end: number) => Extent,
  ): void => {
    for (let first = 0; first < count; first += step) {
      const end = Math.min(first + step, count);
      const note: DispatchNote = { role, extent: extent?.(first, end) };
      recorder.dispatch(pipeline, { ...bound, params: params(end, first) }, end - first, note);
    }
    if (bound["out"] === held) held = null;
  };
  const multiply = (role: MatrixRole, input: DeviceBuffer, out: DeviceBuffer, rows: number): void => {
    const matrix = block.matrices[role] as WeightMatrix;
    if (matrix.tile.textures) hold(input, rows * matrix.k);
    for (const [part, { buffer, n0, n }] of matrix.parts.entries()) {
      const slice = (bias: DeviceBuffer | null) => (bias === null ? undefined : biasSlice(bias, n0, n));
      const { up } = block.matrices;
      const weights =
        role === "gate" && up !== null
          ? { gate: buffer, up: up.parts[part].buffer, gateBias: slice(matrix.bias), upBias: slice(up.bias) }
          : { weight: buffer, bias: slice(matrix.bias) };
      const x = matrix.tile.textures ? packed : input;
      run(role, made.matmuls[role][part], { x, ...definedOnly(weights), out }, rows, steps.rows);
    }
  };
  /** The normed rows, or those themselves where there is no such norm. */
  const normedBy = (role: NormRole, from: DeviceBuffer, rows: number): DeviceBuffer => {
    const pipeline = made.norms[role];
    if (pipeline === null) return from;
    run(role, pipeline, { x: from, ...normBuffers(block.norms[role]), out: normed }, rows);
    return normed;
  };
  const normInPlace = (role: NormRole, buffer: DeviceBuffer, rows: number): void => {
    const pipeline = made.norms[role];
    if (pipeline !== null) run(role, pipeline, { x: buffer, ...normBuffers(block.norms[role]) }, rows);
  };
  /** Adds a product to the stream, by way of a norm where the family has one. */
  const join = (
    role: MatrixRole,
    normRole: NormRole,
    input: DeviceBuffer,
    stream: DeviceBuffer,
    rows: number,
  ): void => {
    const pipeline = made.norms[normRole];
    multiply(role, input, pipeline === null ? stream : normed, rows);
    if (pipeline !== null)
      run(normRole, pipeline, { x: normed, ...normBuffers(block.norms[normRole]), out: stream }, rows);
  };
  const turn = (role: string, pipeline: Pipeline | null, buffer: DeviceBuffer, { turns, rows }: RowSet): void => {
    if (pipeline !== null && spec.rope !== null)
      run(role, pipeline, { x: buffer, turns, table: ropeTables[spec.rope] }, rows);
  };

  const source = normedBy("attentionNorm", x, all.rows);
  multiply("key", source, kv, all.rows);
  multiply("value", source, kv, all.rows);
  normInPlace("keyNorm", kv, all.rows);
  turn("ropeKey", made.ropeKey, kv, all);

  // Past keys and values only the asked-for rows matter: in the pruned last block those that are read out.
  const some = readOut ?? all;
  const stream = readOut === null ? x : workspace.read;
  let queried = source;
  if (readOut !== null) {
    run("rowGather", kernels.gather, { x, index: workspace.readIndex, out: stream }, some.rows);
    queried = normedBy("attentionNorm", stream, some.rows);
  }
  multiply("query", queried, query, some.rows);
  normInPlace("queryNorm", query, some.rows);
  turn("ropeQuery", made.ropeQuery, query, some);
  const spans = { spans: some.spans, tiles: some.tiles };
  const reach = (first: number, end: number) => some.reach(spec.window, first, end);
  const { heads, headDim, kvHeads } = model.spec.config;
  let attends: Readonly<Record<"q" | "kv", BoundBuffer>> = { q: query, kv };
  if (model.plan.attention.textures) {
    recorder.copyToTexture(kv, packedKeys, 4 * all.rows * 2 * kvHeads * headDim);
    hold(query, some.rows * heads * headDim);
    attends = { q: packed, kv: packedKeys };
  }
  run("attention", made.attention, { ...attends, ...spans, out: attended }, some.tileCount, steps.tiles, reach);

  const parallel = spec.parallel ? normedBy("ffnNorm", stream, some.rows) : null;
  join("attentionOut", "attentionOutNorm", attended, stream, some.rows);
  multiply(spec.gate === null ? "up" : "gate", parallel ?? normedBy("ffnNorm", stream, some.rows), ffn, some.rows);
  join("down", "ffnOutNorm", ffn, stream, some.rows);
}

function normBuffers(weights: NormWeights | null): Record<string, BoundBuffer> {
  return weights === null ? {} : definedOnly({ weight: weights.weight, bias: weights.bias ?? undefined });
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
