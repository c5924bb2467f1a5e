/// <reference types="@webgpu/types" />
/** Buffers and textures as a device makes them: what they are, how large they may be. */
import { StratumError } from "../errors.ts";
import type { DeviceInfo } from "./device-info.ts";

/** Memory that its device counts. */
export interface DeviceMemory {
  readonly label: string;
  /** Bytes, a multiple of 4. */
  readonly size: number;
  /** The `Device.generation` that it was made in, and is gone with. */
  readonly generation: number;
  destroy(): void;
}

export interface DeviceBuffer extends DeviceMemory {
  readonly gpu: GPUBuffer;
}

/** A texture of four words a texel, of floats or of words of any meaning. */
export interface DeviceTexture extends DeviceMemory {
  readonly texture: GPUTexture;
  readonly view: GPUTextureView;
  readonly width: number;
  readonly height: number;
}

export type BufferUse = "storage" | "uniform" | "readback";
export type TextureFormat = "rgba32float" | "rgba32uint";

const STORAGE = 0x80 | 0x04 | 0x08; // STORAGE | COPY_SRC | COPY_DST
const UNIFORM = 0x40 | 0x08; // UNIFORM | COPY_DST
const READBACK = 0x01 | 0x08; // MAP_READ | COPY_DST
export const TEXTURE_USAGE = 0x04 | 0x02; // TEXTURE_BINDING | COPY_DST
export const USAGE: Readonly<Record<BufferUse, number>> = { storage: STORAGE, uniform: UNIFORM, readback: READBACK };

/** The size that a buffer of `size` bytes takes. */
export function bufferBytes(size: number): number {
  return Math.max(4, Math.ceil(size / 4) * 4);
}

/** @throws {StratumError} `memory/buffer-limit` */
export function checkBufferSize({ name, limits }: DeviceInfo, label: string, bytes: number, use: BufferUse): void {
  const { maxBufferSize, maxStorageBufferBindingSize } = limits;
  const limit = use === "storage" ? Math.min(maxBufferSize, maxStorageBufferBindingSize) : maxBufferSize;
  if (bytes > limit) {
    throw new StratumError(
      "memory/buffer-limit",
      `buffer '${label}' needs ${bytes} bytes; the adapter ${name} binds at most ${limit}`,
      "lower --batch-tokens, or use an adapter with a larger maxStorageBufferBindingSize (stratum doctor shows it)",
    );
  }
}

/** @throws {StratumError} `memory/texture-limit` */
export function checkTextureSize({ name, limits }: DeviceInfo, label: string, width: number, height: number): void {
  const limit = limits.maxTextureDimension2D;
  if (width > limit || height > limit) {
    throw new StratumError(
      "memory/texture-limit",
      `texture '${label}' needs ${width} x ${height} texels; the adapter ${name} has at most ${limit} in a dimension`,
      "lower --batch-tokens, or use another adapter (stratum doctor shows their limits)",
    );
  }
}
