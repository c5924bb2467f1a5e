/** Buffers before they are made: their sizes, and whether an adapter holds them. */
import { StratumError } from "../errors.ts";
import { TEXEL_BYTES } from "../kernels/texture.ts";
import type { Device } from "./device.ts";
import type { DeviceLimits } from "./device-info.ts";
import type { BufferUse, DeviceBuffer, DeviceTexture, TextureFormat } from "./device-memory.ts";

export interface PlannedBuffer {
  readonly label: string;
  readonly bytes: number;
  readonly use: BufferUse;
}

/** A texture of four words a texel. */
export interface PlannedTexture {
  readonly label: string;
  readonly bytes: number;
  readonly use: "texture";
  readonly width: number;
  readonly height: number;
  readonly format: TextureFormat;
}

export type PlannedMemory = PlannedBuffer | PlannedTexture;

/** The plan of a texture. */
export function plannedTexture(label: string, width: number, height: number, format: TextureFormat): PlannedTexture {
  return { label, bytes: width * height * TEXEL_BYTES, use: "texture", width, height, format };
}

/** Makes what is planned. @throws {StratumError} `memory/buffer-limit`, `memory/texture-limit` */
export function createPlanned(device: Device, planned: PlannedMemory): DeviceBuffer | DeviceTexture {
  return planned.use === "texture"
    ? device.createTexture(planned.label, planned.width, planned.height, planned.format)
    : device.createBuffer(planned.label, planned.bytes, planned.use);
}

export function sumBytes(buffers: readonly PlannedMemory[]): number {
  return buffers.reduce((sum, { bytes }) => sum + bytes, 0);
}

/**
 * Checks every buffer against the adapter's limits.
 * @throws {StratumError} `memory/buffer-limit` with the buffer, its size and the limit
 */
export function checkPlan(buffers: readonly PlannedMemory[], limits: DeviceLimits): void {
  for (const buffer of buffers) {
    if (buffer.bytes <= limitOf(buffer, limits)) continue;
    throw new StratumError(
      "memory/buffer-limit",
      `the plan needs ${buffer.bytes} bytes for '${buffer.label}'; the adapter binds at most ${limitOf(buffer, limits)}`,
      "lower --batch-tokens (for a scorer: shorter lists or a smaller --width), or use an adapter with a larger maxStorageBufferBindingSize (stratum doctor shows it)",
    );
  }
}

/** The most bytes that the adapter allows a buffer of this use, or a texture of this width. */
export function limitOf(planned: PlannedMemory, limits: DeviceLimits): number {
  const { maxBufferSize, maxStorageBufferBindingSize, maxTextureDimension2D } = limits;
  if (planned.use === "texture") {
    return planned.width > maxTextureDimension2D ? 0 : planned.width * TEXEL_BYTES * maxTextureDimension2D;
  }
  return planned.use === "storage" ? Math.min(maxBufferSize, maxStorageBufferBindingSize) : maxBufferSize;
}
