/** A model on the GPU: the weights of the blocks below the deepest asked-for layer, and nothing else. */
import { StratumError } from "../errors.ts";
import type { Target, WeightType } from "../kernels/kernel.ts";
import { weightRowWords } from "../kernels/weight-load.ts";
import type { Checkpoint } from "../weights/checkpoint.ts";
import { decodeFloats } from "../weights/floats.ts";
import type { AdapterChoice } from "./adapter.ts";
import { type Device, type DeviceBuffer, openDevice } from "./device.ts";
import { type Embedding, openEmbedding } from "./embedding.ts";
import type { ModelSpec } from "./family.ts";
import { Pipelines } from "./pipelines.ts";
import {
  blockBuffers,
  checkPlan,
  MATRIX_ROLES,
  type MatrixRole,
  type PlannedBuffer,
  type PlannedMatrix,
  planWeights,
  WEIGHT_TYPE,
  type WeightPlan,
} from "./plan.ts";

/** A device and its compiled kernels. */
export interface Engine extends Disposable {
  readonly device: Device;
  readonly pipelines: Pipelines;
  /** What the kernels' default variants depend on. */
  readonly target: Target;
  /** Operations of one dispatch, at most; default `DISPATCH_FLOPS`. */
  readonly dispatchFlops?: number;
}

/**
 * Opens the GPU.
 * @param options.adapter `auto` (default), `system`, `embedded`, or a part of an adapter's name
 * @throws {StratumError} `adapter/none`, `device/request-failed`
 */
export async function createEngine(options: { readonly adapter?: AdapterChoice } = {}): Promise<Engine> {
  const device = await openDevice(options.adapter ?? process.env["STRATUM_ADAPTER"] ?? "auto");
  return {
    device,
    pipelines: new Pipelines(device),
    target: { subgroupSize: device.info.subgroupSize },
    [Symbol.dispose]: () => device[Symbol.dispose](),
  };
}

export interface WeightPart {
  readonly n0: number;
  readonly n: number;
  readonly buffer: DeviceBuffer;
}

export interface WeightMatrix {
  readonly n: number;
  readonly k: number;
  readonly type: WeightType;
  readonly parts: readonly WeightPart[];
  readonly bias: DeviceBuffer | null;
}

export interface BlockWeights {
  readonly attentionNorm: DeviceBuffer;
  readonly ffnNorm: DeviceBuffer;
  readonly matrices: Readonly<Record<MatrixRole, WeightMatrix>>;
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

/** Makes a buffer that the model owns. */
type Create = (planned: PlannedBuffer) => DeviceBuffer;

async function uploadVector(
  device: Device,
  create: Create,
  checkpoint: Checkpoint,
  planned: PlannedBuffer,
): Promise<DeviceBuffer> {
  const { dtype } = await checkpoint.info(planned.label);
  const values = decodeFloats(await checkpoint.read(planned.label), dtype);
  const buffer = create(planned);
  device.write(buffer, values);
  return buffer;
}

/** Rows of packed halves with an odd length are padded to whole words; other rows go as they are, or widened to f32. */
function toWords(
  bytes: Uint8Array<ArrayBuffer>,
  rows: number,
  dtype: string,
  type: WeightType,
  k: number,
): ArrayBufferView<ArrayBuffer> {
  if (WEIGHT_TYPE[dtype] !== type) return decodeFloats(bytes, dtype);
  const rowBytes = bytes.byteLength / rows;
  const padded = 4 * weightRowWords(type, k);
  if (rowBytes === padded) return bytes;
  const out = new Uint8Array(rows * padded);
  for (let row = 0; row < rows; row++) out.set(bytes.subarray(row * rowBytes, (row + 1) * rowBytes), row * padded);
  return out;
}

async function uploadMatrix(
  device: Device,
  create: Create,
  checkpoint: Checkpoint,
  planned: PlannedMatrix,
): Promise<WeightMatrix> {
  const { spec, type } = planned;
  const { dtype } = await checkpoint.info(spec.weight);
  const rowBytes = 4 * weightRowWords(type, spec.k);
  const step = Math.max(1, Math.floor(UPLOAD_BYTES / rowBytes));
  const parts: WeightPart[] = [];
  for (const part of planned.parts) {
    const buffer = create(part.buffer);
    for (let row = 0; row < part.n; row += step) {
      const count = Math.min(step, part.n - row);
      const bytes = await checkpoint.readRows(spec.weight, { start: part.n0 + row, count });
      device.write(buffer, toWords(bytes, count, dtype, type, spec.k), row * rowBytes);
    }
    parts.push({ n0: part.n0, n: part.n, buffer });
  }
  return {
    n: spec.n,
    k: spec.k,
    type,
    parts,
    bias: planned.bias === null ? null : await uploadVector(device, create, checkpoint, planned.bias),
  };
}

export interface LoadOptions {
  /** Blocks to load: the deepest layer that will be asked for. */
  readonly depth: number;
  /** Called after each block. */
  readonly onBlock?: (done: number, depth: number) => void;
}

/**
 * Loads the first `depth` blocks of a checkpoint. The plan is made and checked before a tensor is read.
 * @throws {StratumError} `model/missing-tensor`, `model/shape`, `model/unsupported-dtype`, `memory/buffer-limit`
 */
export async function loadBlocks(
  engine: Engine,
  checkpoint: Checkpoint,
  spec: ModelSpec,
  { depth, onBlock }: LoadOptions,
): Promise<LoadedModel> {
  const { device } = engine;
  if (!Number.isInteger(depth) || depth < 0 || depth > spec.blocks.length) {
    throw new StratumError(
      "usage/layer",
      `depth ${depth} is out of range: the model has ${spec.blocks.length} blocks`,
      `give 0 to ${spec.blocks.length}`,
    );
  }
  const plan = await planWeights(checkpoint, spec, depth, device.info.limits);
  checkPlan(plan.blocks.flatMap(blockBuffers), device.info.limits);
  const owned: DeviceBuffer[] = [];
  const create: Create = ({ label, bytes, use }) => {
    const buffer = device.createBuffer(label, bytes, use);
    owned.push(buffer);
    return buffer;
  };
  const dispose = () => {
    for (const buffer of owned) buffer.destroy();
  };
  const blocks: BlockWeights[] = [];
  try {
    for (const planned of plan.blocks) {
      const matrices = {} as Record<MatrixRole, WeightMatrix>;
      for (const role of MATRIX_ROLES)
        matrices[role] = await uploadMatrix(device, create, checkpoint, planned.matrices[role]);
      blocks.push({
        attentionNorm: await uploadVector(device, create, checkpoint, planned.attentionNorm),
        ffnNorm: await uploadVector(device, create, checkpoint, planned.ffnNorm),
        matrices,
      });
      // What is queued lies in host memory until the device has taken it.
      await device.idle();
      onBlock?.(blocks.length, depth);
    }
    return {
      engine,
      spec,
      plan,
      blocks,
      embedding: await openEmbedding(checkpoint, spec.embedding),
      [Symbol.dispose]: dispose,
    };
  } catch (cause) {
    dispose();
    throw cause;
  }
}
