/**
 * What a kernel is: a pure function from a typed variant to plain data. Everything else is built on that: the pipeline
 * cache (keyed by `key`), tests, benchmarks, the tuner. Kernels know shapes and types, no model and no device.
 *
 * Dimension letters, the same everywhere: T tokens (rows of the packed batch), D hidden, H heads, G kv heads, E head
 * dim, F ffn, K inner and N outer size of a matmul.
 */

/**
 * How weights are stored. `bf16` and `f16` stay packed, two along k in a u32, the first in the low half. `int8` and
 * `int4` are quants with a scale for each group along k, as quantise.ts makes them; weight-load.ts has their layout.
 */
export type WeightType = "f32" | "bf16" | "f16" | "int8" | "int4";

export interface Binding {
  readonly name: string;
  readonly access: "read" | "read_write" | "uniform" | "texture";
  /** The WGSL type of the variable, e.g. `array<f32>`; of a texture `texture_2d<f32>` or `texture_2d<u32>`. */
  readonly type: string;
  /** Dimensions in the project's letters, outermost first. */
  readonly shape: readonly string[];
  /** Of a texture: the texels of four words in a row of it (see texture.ts). */
  readonly texels?: number;
}

export interface Kernel {
  /** The field's name of the operation; the CPU twin carries it too. */
  readonly name: string;
  /** Identifies the WGSL text: name and variant. */
  readonly key: string;
  readonly wgsl: string;
  /** In the order of `@binding`. */
  readonly bindings: readonly Binding[];
  /** Needs the WGSL extension `subgroups`. */
  readonly subgroups: boolean;
  /** Workgroups for `rows` rows of output. */
  readonly grid: (rows: number) => readonly [x: number, y: number, z: number];
  /**
   * The work of a dispatch over `rows` rows, as the problem asks for it, not as a variant does it.
   * @param extent what the number of rows does not tell; a kernel that needs it takes the least possible without it
   */
  readonly cost?: (rows: number, extent?: Extent) => Cost;
}

/**
 * Useful work of a dispatch.
 * - `flops`: floating-point operations, a multiply-add counts two. Only what the formula needs: no work on padding or
 *   masked keys, nothing that a variant does twice. Of an element's own arithmetic (activation, norm, rotation) the
 *   file of the kernel says what an element counts; exp, tanh and the like count one.
 * - `bytes`: every element of input once and every element of output once (read and written where it is updated in
 *   place), in the size that it is stored in. What a real dispatch loads again is not in it: caches may serve it.
 */
export interface Cost {
  readonly flops: number;
  readonly bytes: number;
}

/** What of a dispatch's work depends on data. */
export interface Extent {
  /** Rows of output. */
  readonly outputs: number;
  /** Distinct rows of input that are read. */
  readonly inputs: number;
  /** Pairs of a row of output and a row of input that are combined. */
  readonly pairs: number;
}

/** What an adapter allows, as far as a kernel's default variant depends on it. */
export interface Target {
  /** Lanes a subgroup; 0: no subgroups, or of no fixed size. */
  readonly subgroupSize: number;
  /** A load of a texel costs less than that of its four words from a buffer, as on the software adapters measured. */
  readonly textures: boolean;
  /** Workgroup memory costs less than loads, as on GPUs (not measured on one). */
  readonly staged?: true;
}

/** The buffers of a CPU twin, by binding name. Float64 where a twin is differentiated numerically. */
export type TwinBuffer = Float32Array | Float64Array | Uint32Array;

/** `@group(0)` declarations for a list of bindings. */
export function declareBindings(bindings: readonly Binding[]): string {
  return bindings
    .map(({ name, access, type, shape }, index) => {
      if (access === "texture") return `@group(0) @binding(${index}) var ${name}: ${type}; // (${shape.join(", ")})`;
      const space = access === "uniform" ? "var<uniform>" : `var<storage, ${access}>`;
      return `@group(0) @binding(${index}) ${space} ${name}: ${type}; // (${shape.join(", ")})`;
    })
    .join("\n");
}

/**
 * Sizes that a dispatch sets: 16 bytes in a uniform. `rows`: the end of the rows that are computed; `offset`: where they
 * begin (matmul, attention), or where the output does (rowGather).
 */
export const PARAMS: Binding = { name: "params", access: "uniform", type: "Params", shape: ["2"] };
export const PARAMS_STRUCT = "struct Params { rows: u32, offset: u32, pad0: u32, pad1: u32 }";
export const PARAMS_BYTES = 16;

/** A key that spells the variant: equal variants, equal keys, whatever the order of their fields. */
export function kernelKey(name: string, variant: object): string {
  const fields = Object.entries(variant).sort(([a], [b]) => (a < b ? -1 : 1));
  return `${name}{${fields.map(([field, value]) => `${field}:${value}`).join(",")}}`;
}

/** 0 .. n-1, for texts that are written out. */
export function range(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i);
}

/** Spreads `count` workgroups over x and y: WebGPU allows 65,535 in a dimension. Pairs with `flatWorkgroup`. */
export function flatGrid(count: number): readonly [number, number, number] {
  const y = Math.ceil(count / 32768);
  return count === 0 ? [0, 0, 1] : [Math.ceil(count / y), y, 1];
}

/** The WGSL expression of the flat workgroup index behind `flatGrid`, for builtins named `group` and `groups`. */
export const FLAT_WORKGROUP = "group.x + group.y * groups.x";
export const FLAT_BUILTINS = "@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>";
