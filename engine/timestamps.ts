/// <reference types="@webgpu/types" />
/** Timestamps of dispatches: query sets that a command buffer fills, resolves and gives back for the next. */
import { napping } from "./nap.ts";

/** Dispatches of one set; WebGPU allows 4,096 queries, of which a dispatch takes two. */
export const SET_CALLS = 1024;

const RESOLVE = 0x0200 | 0x0004; // QUERY_RESOLVE | COPY_SRC
const READBACK = 0x0001 | 0x0008; // MAP_READ | COPY_DST

/** A query set with its way back to the host. */
export interface TimestampSet {
  readonly queries: GPUQuerySet;
  readonly resolved: GPUBuffer;
  readonly staging: GPUBuffer;
}

/** Begin and end of a dispatch in ns of the GPU's clock; null where it gave none that make sense. */
export type Timestamps = readonly [begin: bigint, end: bigint] | null;

export function createTimestampSet(gpu: GPUDevice): TimestampSet {
  const size = 16 * SET_CALLS;
  return {
    queries: gpu.createQuerySet({ label: "profile", type: "timestamp", count: 2 * SET_CALLS }),
    resolved: gpu.createBuffer({ label: "profile.resolved", size, usage: RESOLVE }),
    staging: gpu.createBuffer({ label: "profile.staging", size, usage: READBACK }),
  };
}

/** Where the pass of the call `index` writes its timestamps. */
export function timestampWrites({ queries }: TimestampSet, index: number): Required<GPUComputePassTimestampWrites> {
  return { querySet: queries, beginningOfPassWriteIndex: 2 * index, endOfPassWriteIndex: 2 * index + 1 };
}

/** Records, behind the passes, that the timestamps of `count` calls come back. */
export function resolveTimestamps(
  encoder: GPUCommandEncoder,
  { queries, resolved, staging }: TimestampSet,
  count: number,
): void {
  encoder.resolveQuerySet(queries, 0, 2 * count, resolved, 0);
  encoder.copyBufferToBuffer(resolved, 0, staging, 0, 16 * count);
}

/** The timestamps of `count` calls, once the command buffer is done. */
export async function readTimestamps({ staging }: TimestampSet, count: number): Promise<Timestamps[]> {
  await napping(staging.mapAsync(0x01, 0, 16 * count));
  const values = new BigUint64Array(staging.getMappedRange(0, 16 * count).slice(0));
  staging.unmap();
  return Array.from({ length: count }, (_, i) => soundTimestamps(values[2 * i], values[2 * i + 1]));
}

/** A clock that stands at 0, or that has wrapped between the two, tells no time. */
export function soundTimestamps(begin: bigint, end: bigint): Timestamps {
  return begin === 0n || end < begin ? null : [begin, end];
}

export function destroyTimestampSet({ queries, resolved, staging }: TimestampSet): void {
  queries.destroy();
  resolved.destroy();
  staging.destroy();
}
