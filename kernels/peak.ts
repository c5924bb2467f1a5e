/**
 * Kernels that measure an adapter and compute nothing else: its multiply-adds, its memory, its loads.
 *
 * - peakFma: s_j = fma(s_j, m, c), `accumulators` of them a lane, written out 16 times inside a loop.
 * - peakRead: sums a buffer; peakCopy: out = x. Every element once, `STREAM_UNROLL` of them a lane and round.
 * - peakLoad: sums loads from a table that stays in the nearest cache, `LOAD_UNROLL` of them a lane and round.
 *
 * No compiler can leave the work out: what is loaded and summed is written, factors come from buffers, and a chain of
 * roundings has no shorter form. `params.offset` is the number of rounds, so that one text serves runs of any length.
 */
import {
  type Binding,
  declareBindings,
  FLAT_BUILTINS,
  FLAT_WORKGROUP,
  flatGrid,
  type Kernel,
  kernelKey,
  PARAMS,
  PARAMS_STRUCT,
  range,
  type TwinBuffer,
} from "./kernel.ts";

/** Times that the multiply-adds of all accumulators stand in the text: a loop's own cost is a third without. */
export const FMA_UNROLL = 16;
export const STREAM_UNROLL = 8;
export const LOAD_UNROLL = 16;
/** Elements of the table that peakLoad reads, and of a row of its texture. */
export const LOAD_TABLE = 512;
/** Rows of the texture. */
export const LOAD_ROWS = 2;
/** Between two loads of a lane: no compiler merges them into wider ones. */
const LOAD_STRIDE = 17;

export interface PeakFmaVariant {
  readonly type: "f32" | "f16";
  /** Elements of a vector. */
  readonly vec: 1 | 2 | 4;
  /** Vectors a lane. */
  readonly accumulators: number;
  readonly lanes: number;
}

/** Multiply-adds of one lane and round. */
export function fmasPerRound({ vec, accumulators }: PeakFmaVariant): number {
  return FMA_UNROLL * vec * accumulators;
}

const FMA_BINDINGS: readonly Binding[] = [
  { name: "x", access: "read", type: "array<f32>", shape: ["2*lanes"] },
  { name: "out", access: "read_write", type: "array<f32>", shape: ["R", "lanes"] },
  PARAMS,
];

/** The kernel of a variant. Rows: workgroups; `params.offset`: rounds. x: a factor, then a summand, a lane. */
export function peakFma(variant: PeakFmaVariant): Kernel {
  const { type, vec, accumulators, lanes } = variant;
  const element = vec === 1 ? type : `vec${vec}<${type}>`;
  const all = range(accumulators);
  const round = range(FMA_UNROLL).map(() => all.map((j) => `s${j} = fma(s${j}, m, c);`).join(" "));
  const total = all.map((j) => `s${j}`).join(" + ");
  const sum =
    vec === 1
      ? "f32(total)"
      : range(vec)
          .map((e) => `f32(total[${e}])`)
          .join(" + ");
  const wgsl = `${type === "f16" ? "enable f16;\n" : ""}${PARAMS_STRUCT}
${declareBindings(FMA_BINDINGS)}
@compute @workgroup_size(${lanes})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let group_index = ${FLAT_WORKGROUP};
  if (group_index >= params.rows) { return; }
  let m = ${element}(${type}(x[lane]));
  let c = ${element}(${type}(x[lane + ${lanes}u]));
  ${all.map((j) => `var s${j} = c * ${type}(${j});`).join("\n  ")}
  for (var i = 0u; i < params.offset; i++) {
    ${round.join("\n    ")}
  }
  let total = ${total};
  out[group_index * ${lanes}u + lane] = ${sum};
}
`;
  return {
    name: "peakFma",
    key: kernelKey("peakFma", variant),
    wgsl,
    bindings: FMA_BINDINGS,
    subgroups: false,
    grid: flatGrid,
  };
}

/** CPU twin of `peakFma`, in float64. */
export function peakFmaTwin(
  variant: PeakFmaVariant,
  { x, out }: Readonly<Record<string, TwinBuffer>>,
  rows: number,
  rounds: number,
): void {
  const { vec, accumulators, lanes } = variant;
  for (let lane = 0; lane < lanes; lane++) {
    const [m, c] = [x[lane], x[lane + lanes]];
    let total = 0;
    for (let j = 0; j < accumulators; j++) {
      let s = c * j;
      for (let i = 0; i < rounds * FMA_UNROLL; i++) s = s * m + c;
      total += s;
    }
    for (let row = 0; row < rows; row++) out[row * lanes + lane] = vec * total;
  }
}

/** How a buffer is walked through: a workgroup takes neighbouring rounds, neighbouring lanes neighbouring vec4s. */
export interface PeakStreamVariant {
  readonly lanes: number;
}

/** Words of one round of a workgroup. */
export function streamWords({ lanes }: PeakStreamVariant): number {
  return 4 * STREAM_UNROLL * lanes;
}

function streamText({ lanes }: PeakStreamVariant, bindings: readonly Binding[], each: string, end: string): string {
  return `${PARAMS_STRUCT}
${declareBindings(bindings)}
@compute @workgroup_size(${lanes})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let index = ${FLAT_WORKGROUP};
  if (index >= params.rows) { return; }
  var sum = vec4<u32>();
  for (var i = 0u; i < params.offset; i++) {
    let base = (index * params.offset + i) * ${STREAM_UNROLL * lanes}u + lane;
    ${range(STREAM_UNROLL)
      .map((u) => each.replaceAll("AT", `base + ${u * lanes}u`))
      .join("\n    ")}
  }
  ${end}
}
`;
}

const READ_BINDINGS: readonly Binding[] = [
  { name: "x", access: "read", type: "array<vec4<u32>>", shape: ["words/4"] },
  { name: "out", access: "read_write", type: "array<vec4<u32>>", shape: ["R", "lanes"] },
  PARAMS,
];

/** The kernel of a variant. Rows: workgroups; `params.offset`: rounds of each, of `streamWords`. */
export function peakRead(variant: PeakStreamVariant): Kernel {
  return {
    name: "peakRead",
    key: kernelKey("peakRead", variant),
    wgsl: streamText(variant, READ_BINDINGS, "sum += x[AT];", `out[index * ${variant.lanes}u + lane] = sum;`),
    bindings: READ_BINDINGS,
    subgroups: false,
    grid: flatGrid,
  };
}

/** CPU twin of `peakRead`: sums modulo 2^32. */
export function peakReadTwin(
  { lanes }: PeakStreamVariant,
  { x, out }: Readonly<Record<string, TwinBuffer>>,
  rows: number,
  rounds: number,
): void {
  const words = 4 * lanes;
  out.fill(0);
  for (let row = 0; row < rows; row++) {
    const first = row * rounds * STREAM_UNROLL * words;
    for (let i = 0; i < rounds * STREAM_UNROLL * words; i++) {
      const at = row * words + (i % words);
      out[at] = (out[at] + x[first + i]) >>> 0;
    }
  }
}

const COPY_BINDINGS: readonly Binding[] = [
  { name: "x", access: "read", type: "array<vec4<u32>>", shape: ["words/4"] },
  { name: "out", access: "read_write", type: "array<vec4<u32>>", shape: ["words/4"] },
  PARAMS,
];

/** The kernel of a variant. Rows: workgroups; `params.offset`: rounds of each, of `streamWords`. Its twin: out = x. */
export function peakCopy(variant: PeakStreamVariant): Kernel {
  return {
    name: "peakCopy",
    key: kernelKey("peakCopy", variant),
    wgsl: streamText(variant, COPY_BINDINGS, "out[AT] = x[AT];", ""),
    bindings: COPY_BINDINGS,
    subgroups: false,
    grid: flatGrid,
  };
}

export interface PeakLoadVariant {
  /** What one load gives. */
  readonly element: "f32" | "vec4<f32>";
  readonly lanes: number;
}

/** WGSL of one dispatch's sums; `load` gives the element at `AT` of row `ROW`. */
function loadText({ element, lanes }: PeakLoadVariant, declarations: string, load: string): string {
  const sums = range(4);
  return `${PARAMS_STRUCT}
${declarations}
@compute @workgroup_size(${lanes})
fn main(${FLAT_BUILTINS}, @builtin(local_invocation_index) lane: u32) {
  let at = (${FLAT_WORKGROUP}) * ${lanes}u + lane;
  if (at >= params.rows * ${lanes}u) { return; }
  ${sums.map((j) => `var s${j} = ${element}();`).join(" ")}
  for (var i = 0u; i < params.offset; i++) {
    let base = (at + i * ${LOAD_UNROLL}u) & ${LOAD_TABLE / 2 - 1}u;
    ${range(LOAD_UNROLL)
      .map(
        (u) =>
          `s${u % 4} += ${load.replaceAll("AT", `base + ${u * LOAD_STRIDE}u`).replaceAll("ROW", `i & ${LOAD_ROWS - 1}u`)};`,
      )
      .join("\n    ")}
  }
  let s = s0 + s1 + s2 + s3;
  out[at] = ${element === "f32" ? "s" : "s.x + s.y + s.z + s.w"};
}
`;
}

/** The kernel of a variant. Rows: workgroups; `params.offset`: rounds. */
export function peakLoad(variant: PeakLoadVariant): Kernel {
  const bindings: readonly Binding[] = [
    { name: "x", access: "read", type: `array<${variant.element}>`, shape: ["table"] },
    { name: "out", access: "read_write", type: "array<f32>", shape: ["R", "lanes"] },
    PARAMS,
  ];
  return {
    name: "peakLoad",
    key: kernelKey("peakLoad", variant),
    wgsl: loadText(variant, declareBindings(bindings), "x[AT]"),
    bindings,
    subgroups: false,
    grid: flatGrid,
  };
}

/**
 * The same loads out of a texture of `LOAD_ROWS` rows, whose texels hold the bits of a vec4<f32> each. Rows: workgroups;
 * `params.offset`: rounds.
 */
export function peakTextureLoad(lanes: number): Kernel {
  const bindings: readonly Binding[] = [
    { name: "x", access: "texture", type: "texture_2d<u32>", shape: ["rows", "table"], texels: LOAD_TABLE },
    { name: "out", access: "read_write", type: "array<f32>", shape: ["R", "lanes"] },
    PARAMS,
  ];
  const texel = "bitcast<vec4<f32>>(textureLoad(x, vec2<u32>(AT, ROW), 0))";
  return {
    name: "peakTextureLoad",
    key: kernelKey("peakTextureLoad", { lanes }),
    wgsl: loadText({ element: "vec4<f32>", lanes }, declareBindings(bindings), texel),
    bindings,
    subgroups: false,
    grid: flatGrid,
  };
}

/** CPU twin of `peakLoad` and of its texture form, whose table has `rows` rows. */
export function peakLoadTwin(
  { element, lanes }: PeakLoadVariant,
  { x, out }: Readonly<Record<string, TwinBuffer>>,
  workgroups: number,
  rounds: number,
  rows = 1,
): void {
  const width = element === "f32" ? 1 : 4;
  for (let at = 0; at < workgroups * lanes; at++) {
    let sum = 0;
    for (let i = 0; i < rounds; i++) {
      const base = (at + i * LOAD_UNROLL) & (LOAD_TABLE / 2 - 1);
      for (let u = 0; u < LOAD_UNROLL; u++) {
        const place = (base + u * LOAD_STRIDE + (i % rows) * LOAD_TABLE) * width;
        for (let e = 0; e < width; e++) sum += x[place + e];
      }
    }
    out[at] = sum;
  }
}
