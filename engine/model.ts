/** A model on the GPU: the weights of the blocks below the deepest asked-for layer, and nothing else. */
import { StratumError } from "../errors.ts";
import type { Target, WeightType } from "../kernels/kernel.ts";
import { type MatmulTile, matmulRowWords } from "../kernels/matmul.ts";
import { quantiseRows } from "../kernels/quantise.ts";
import type { Checkpoint } from "../weights/checkpoint.ts";
import { decodeFloats } from "../weights/floats.ts";
import type { AdapterChoice } from "./adapter.ts";
import {
  MATRIX_ROLES,
  type MatrixRole,
  type MatrixSpec,
  type ModelSpec,
  NORM_ROLES,
  type NormRole,
  tensorsTo,
} from "./decoder.ts";
import type { Device } from "./device.ts";
import type { DeviceBuffer, DeviceTexture } from "./device-memory.ts";
import { type Embedding, openEmbedding } from "./embedding.ts";
import { type OpenOptions, openDevice } from "./open-device.ts";
import { Pipelines } from "./pipelines.ts";
import { checkPlan, createPlanned, type PlannedMemory } from "./planned-buffer.ts";
import { platformOf } from "./platform.ts";
import { checkTiles, type TileTable } from "./tiles.ts";
import {
  blockBuffers,
  type PlannedMatrix,
  type PlannedVector,
  planWeights,
  WEIGHT_TYPE,
  type WeightPlan,
} from "./weight-plan.ts";

/** A device and its compiled kernels. */
export interface Engine extends Disposable {
  readonly device: Device;
  readonly pipelines: Pipelines;
  /** What the kernels' default variants depend on. */
  readonly target: Target;
  /** The matmul variants of some shapes, in place of the defaults. */
  readonly tiles?: TileTable;
  /** Operations of one dispatch, at most; default `DISPATCH_FLOPS`. */
  readonly dispatchFlops?: number;
  /** Operations of one command buffer, at most; default `SUBMIT_FLOPS`. */
  readonly submitFlops?: number;
}

/**
 * Opens the GPU.
 * @param options.adapter `auto` (default), `system`, `embedded`, or a part of an adapter's name
 * @param options.profile measures everything: see `profileReport`; default `off`
 * @param options.onNote told of what was overcome: a lost device, memory that was not there
 * @param options.faults what is to go wrong, for tests: see `parseFaults`; default STRATUM_FAULTS
 * @param options.tiles matmul variants that take the place of the defaults, as `tune` finds them
 * @throws {StratumError} `adapter/none`, `device/request-failed`, `kernel/tiles` for a variant that this adapter does not run
 */
export async function createEngine(
  options: OpenOptions & { readonly adapter?: AdapterChoice; readonly tiles?: TileTable } = {},
): Promise<Engine> {
  const device = await openDevice(options.adapter ?? process.env["STRATUM_ADAPTER"] ?? "auto", options);
  const { subgroupSize, software } = device.info;
  const target: Target = { subgroupSize, textures: software, ...(software ? {} : { staged: true }) };
  const { tiles } = options;
  try {
    if (tiles !== undefined) checkTiles(target, tiles);
  } catch (cause) {
    device[Symbol.dispose]();
    throw cause;
  }
  return {
    device,
    pipelines: new Pipelines(device),
    target,
    ...(tiles === undefined ? {} : { tiles }),
    [Symbol.dispose]: () => device[Symbol.dispose](),
  };
}

export interface WeightPart {
  readonly n0: number;
  readonly n: number;
  readonly buffer: DeviceBuffer | DeviceTexture;
}

export interface WeightMatrix {
  readonly n: number;
  readonly k: number;
  readonly type: WeightType;
  readonly tile: MatmulTile;
  readonly parts: readonly WeightPart[];
  readonly bias: DeviceBuffer | null;
}

export interface NormWeights {
  readonly weight: DeviceBuffer;
  readonly bias: DeviceBuffer | null;
}

/** A block's weights by role; null where its family has none. */
export interface BlockWeights {
  readonly norms: Readonly<Record<NormRole, NormWeights | null>>;
  readonly matrices: Readonly<Record<MatrixRole, WeightMatrix | null>>;
}

/** Weights on the GPU. Disposing it frees them. */
export interface LoadedModel extends Disposable {
  readonly engine: Engine;
  readonly spec: ModelSpec;
  readonly plan: WeightPlan;
  readonly blocks: readonly BlockWeights[];
  readonly embedding: Embedding;
}

/** Bytes of a tensor that are on the host at a time while it is uploaded. */
const UPLOAD_BYTES = 16 * 1024 * 1024;

/** Bytes that wait on the host for the device to take them, at most, before more are read. */
const QUEUED_BYTES = 32 * 1024 * 1024;

interface Uploader {
  /** Makes memory that the model owns. */
  readonly create: (planned: PlannedMemory) => DeviceBuffer | DeviceTexture;
  /** Writes to the start of a buffer, or from a row on: of a texture, or of rows of `rowBytes` in a buffer. */
  readonly write: (
    to: DeviceBuffer | DeviceTexture,
    data: ArrayBufferView<ArrayBuffer>,
    place?: { readonly row: number; readonly rowBytes: number },
  ) => Promise<void>;
}

function uploader(device: Device, owned: (DeviceBuffer | DeviceTexture)[]): Uploader {
  let queued = 0;
  return {
    create(planned) {
      const made = createPlanned(device, planned);
      owned.push(made);
      return made;
    },
    async write(to, data, { row, rowBytes } = { row: 0, rowBytes: 0 }) {
      if ("view" in to) device.writeTexture(to, data, row);
      else device.write(to, data, row * rowBytes);
      queued += data.byteLength;
      if (queued <= QUEUED_BYTES) return;
      await device.idle();
      queued = 0;
    },
  };
}

/** Rows n0 .. n0 + count - 1 of a matrix, as rows of its tensor in the file. */
function fileRows({ rows: { offset, run, stride } }: MatrixSpec, n0: number, count: number) {
  const at = (n: number) => offset + Math.floor(n / run) * stride + (n % run);
  const [first, last] = [at(n0), at(n0 + count - 1)];
  if (last - first === count - 1) return { start: first, count };
  return Array.from({ length: count }, (_, i) => at(n0 + i));
}

async function uploadVector(
  { create, write }: Uploader,
  checkpoint: Checkpoint,
  { name, picked, buffer: planned }: PlannedVector,
): Promise<DeviceBuffer> {
  const { dtype } = await checkpoint.info(name);
  const stored = await (picked === null
    ? checkpoint.read(name)
    : checkpoint.readRows(name, fileRows(picked, 0, picked.n)));
  const buffer = create(planned) as DeviceBuffer;
  await write(buffer, decodeFloats(stored, dtype));
  return buffer;
}

/** (rows, columns) of elements of `size` bytes, transposed. */
function transpose(bytes: Uint8Array<ArrayBuffer>, columns: number, size: number): Uint8Array<ArrayBuffer> {
  const Elements = size === 4 ? Uint32Array : Uint16Array;
  const from = new Elements(bytes.buffer, bytes.byteOffset, bytes.byteLength / size);
  const to = new Elements(from.length);
  const rows = from.length / columns;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) to[column * rows + row] = from[row * columns + column];
  }
  return new Uint8Array(to.buffer);
}

/** Rows n0 .. n0 + count - 1 of a matrix, (count, K), in the file's type. */
async function readMatrixRows(
  checkpoint: Checkpoint,
  spec: MatrixSpec,
  n0: number,
  count: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const rows = fileRows(spec, n0, count);
  if (!spec.transposed) return await checkpoint.readRows(spec.weight, rows);
  const { start } = rows as { start: number; count: number };
  const bytes = await checkpoint.readColumns(spec.weight, { start, count });
  return transpose(bytes, count, bytes.byteLength / (count * spec.k));
}

/** Rows (count, K) in a type: packed; widened; or quantised. */
function toType(
  bytes: Uint8Array<ArrayBuffer>,
  rows: number,
  dtype: string,
  type: WeightType,
  k: number,
): Uint8Array<ArrayBuffer> {
  if (WEIGHT_TYPE[dtype] === type) return bytes;
  const floats = decodeFloats(bytes, dtype);
  const { buffer, byteOffset, byteLength } =
    type === "int8" || type === "int4" ? quantiseRows(floats, rows, k, type) : floats;
  return new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength);
}

/** Rows with what pads each to `padded` bytes: halves of an odd length to words, words to texels. */
function padRows(bytes: Uint8Array<ArrayBuffer>, rows: number, padded: number): Uint8Array<ArrayBuffer> {
  const rowBytes = bytes.byteLength / rows;
  if (rowBytes === padded) return bytes;
  const out = new Uint8Array(rows * padded);
  for (let row = 0; row < rows; row++) out.set(bytes.subarray(row * rowBytes, (row + 1) * rowBytes), row * padded);
  return out;
}

/** Runs `step`; what is wrong with values is said of this tensor. */
function named<T>(tensor: string, step: () => T): T {
  try {
    return step();
  } catch (cause) {
    if (!(cause instanceof StratumError)) throw cause;
    throw new StratumError(cause.code, `tensor ${tensor}: ${cause.message}`, cause.fix, cause);
  }
}

async function uploadMatrix(upload: Uploader, checkpoint: Checkpoint, planned: PlannedMatrix): Promise<WeightMatrix> {
  const { spec, type, tile } = planned;
  const { n, k } = spec;
  const { dtype } = await checkpoint.info(spec.weight);
  const rowBytes = 4 * matmulRowWords({ k, weight: type, ...tile });
  // As f32 they are widest, and so they are on their way to being quantised.
  const step = Math.max(1, Math.floor(UPLOAD_BYTES / (4 * k)));
  const parts: WeightPart[] = [];
  for (const part of planned.parts) {
    const buffer = upload.create(part.buffer);
    for (let row = 0; row < part.n; row += step) {
      const count = Math.min(step, part.n - row);
      const bytes = await readMatrixRows(checkpoint, spec, part.n0 + row, count);
      const typed = named(spec.weight, () => toType(bytes, count, dtype, type, k));
      await upload.write(buffer, padRows(typed, count, rowBytes), { row, rowBytes });
    }
    parts.push({ n0: part.n0, n: part.n, buffer });
  }
  const bias = planned.bias === null ? null : await uploadVector(upload, checkpoint, planned.bias);
  return { n, k, type, tile, parts, bias };
}

async function uploadBlock(
  upload: Uploader,
  checkpoint: Checkpoint,
  planned: WeightPlan["blocks"][number],
): Promise<BlockWeights> {
  const matrices = {} as Record<MatrixRole, WeightMatrix | null>;
  for (const role of MATRIX_ROLES) {
    const matrix = planned.matrices[role];
    matrices[role] = matrix && (await uploadMatrix(upload, checkpoint, matrix));
  }
  const norms = {} as Record<NormRole, NormWeights | null>;
  for (const role of NORM_ROLES) {
    const norm = planned.norms[role];
    norms[role] = norm && {
      weight: await uploadVector(upload, checkpoint, norm.weight),
      bias: norm.bias && (await uploadVector(upload, checkpoint, norm.bias)),
    };
  }
  return { norms, matrices };
}

export interface LoadOptions {
  /** Blocks to load: the deepest layer that will be asked for. */
  readonly depth: number;
  /** Called after each block. */
  readonly onBlock?: (done: number, depth: number) => void;
  /** Ends the loading between blocks, with its reason. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Loads the first `depth` blocks of a checkpoint. The plan is made and checked before a tensor is read.
 * @throws {StratumError} `model/missing-tensor`, `model/shape`, `model/unsupported-dtype`, `memory/buffer-limit`; the
 *   signal's reason
 */
export async function loadBlocks(
  engine: Engine,
  checkpoint: Checkpoint,
  spec: ModelSpec,
  { depth, onBlock, signal }: LoadOptions,
): Promise<LoadedModel> {
  const { device } = engine;
  if (!Number.isInteger(depth) || depth < 0 || depth > spec.blocks.length) {
    throw new StratumError(
      "usage/layer",
      `depth ${depth} is out of range: the model has ${spec.blocks.length} blocks`,
      `give 0 to ${spec.blocks.length}`,
    );
  }
  const plan = await planWeights(checkpoint, spec, depth, platformOf(engine));
  checkPlan(plan.blocks.flatMap(blockBuffers), device.info.limits);
  await checkpoint.require(tensorsTo(spec, depth));
  const owned: (DeviceBuffer | DeviceTexture)[] = [];
  const upload = uploader(device, owned);
  const dispose = () => {
    for (const buffer of owned) buffer.destroy();
  };
  const blocks: BlockWeights[] = [];
  try {
    for (const planned of plan.blocks) {
      signal?.throwIfAborted();
      blocks.push(await uploadBlock(upload, checkpoint, planned));
      await device.idle();
      onBlock?.(blocks.length, depth);
    }
    return {
      engine,
      spec,
      plan,
      blocks,
      embedding: await openEmbedding(checkpoint, spec),
      [Symbol.dispose]: dispose,
    };
  } catch (cause) {
    dispose();
    throw cause;
  }
}
