/** What a case of the list in cases.ts is, and the seeded numbers that cases are made of. */
import type { Kernel, TwinBuffer } from "./kernel.ts";

export interface KernelCase {
  readonly title: string;
  readonly kernel: Kernel;
  /** Rows of the dispatch, and `params.offset`. */
  readonly rows: number;
  readonly offset: number;
  /** Fresh buffers by binding name, the same at every call. */
  readonly buffers: () => Record<string, TwinBuffer>;
  /** Fills the writable buffers as the kernel should. */
  readonly twin: (buffers: Readonly<Record<string, TwinBuffer>>) => void;
}

/** `count` numbers in [-scale, scale). */
export function floats(random: () => number, count: number, scale = 1): Float32Array {
  return Float32Array.from({ length: count }, () => (random() * 2 - 1) * scale);
}

/**
 * A backward kernel's claim, checked by finite differences: everything runs on the CPU twins in float64, so that only
 * the formula is judged. The kernel itself is compared with its twin as any other.
 */
export interface GradientCase {
  readonly title: string;
  /** What the scalar is differentiated by, by name; the same at every call. */
  readonly inputs: () => Record<string, Float64Array>;
  /** The forward twins, then a weighted sum of what they give. */
  readonly scalar: (inputs: Readonly<Record<string, Float64Array>>) => number;
  /** What the backward twins say: the derivative of the scalar by each input. */
  readonly gradient: (inputs: Readonly<Record<string, Float64Array>>) => Record<string, Float64Array>;
}
