/** Buffers before they are made: their sizes, and whether an adapter holds them. */
import { StratumError } from "../errors.ts";
import type { BufferUse, DeviceLimits } from "./device.ts";

export interface PlannedBuffer {
  readonly label: string;
  readonly bytes: number;
  readonly use: BufferUse;
}

export function sumBytes(buffers: readonly PlannedBuffer[]): number {
  return buffers.reduce((sum, { bytes }) => sum + bytes, 0);
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
export function limitOf({ use }: PlannedBuffer, { maxBufferSize, maxStorageBufferBindingSize }: DeviceLimits): number {
  return use === "storage" ? Math.min(maxBufferSize, maxStorageBufferBindingSize) : maxBufferSize;
}
