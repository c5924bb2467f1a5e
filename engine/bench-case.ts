/** What a case of a benchmark is: a piece of work, its variants, and what its twin says. */
import type { Extent, Kernel, TwinBuffer } from "../kernels/kernel.ts";
import type { Sample, TwinBuffers } from "./bench-check.ts";

/** One way to do a case's work. */
export interface CaseVariant {
  readonly variant: string;
  readonly kernel: Kernel;
  /** Rows of the dispatch, as the kernel counts them. */
  readonly rows: number;
  /** `params.offset` */
  readonly offset?: number;
  /** Bindings that are this variant's own, made of the shared ones. */
  readonly own: (shared: TwinBuffers) => TwinBuffers;
  /** What the twin says of some of the output. */
  readonly sample: (buffers: TwinBuffers) => Sample;
}

/** A piece of work that is checked and timed. */
export interface BenchCase {
  /** The kernel's name; what `--op` picks. */
  readonly op: string;
  readonly name: string;
  readonly shape: string;
  readonly dtype: string;
  /** What the kernel's rows do not tell of its work. */
  readonly extent?: Extent;
  /** Bindings that all variants share; the same at every call. */
  readonly buffers: () => Record<string, TwinBuffer>;
  /** The binding that is compared. */
  readonly output: string;
  /** The adapter's default first. */
  readonly variants: readonly CaseVariant[];
}

/** Which variants are timed: what runs without tuning, or all that the adapter allows. */
export type VariantChoice = "default" | "all";

/** Sequences of equal length, packed one after another. */
export interface BatchShape {
  readonly batch: number;
  readonly tokens: number;
}

/** Of the numbers that cases are made of. */
export const CASE_SEED = 20;
