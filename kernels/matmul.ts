/**
 * matmul: out[t, n] = epilogue(sum_k x[t, k] * w[n, k] + bias[n]), weights in the row-major (N, K) layout of the files.
 *
 * A workgroup of `lanes` lanes computes a tile of `tileRows` rows by `lanes * tileCols` columns; lane i owns the columns
 * i, i + lanes, ... of the tile and keeps tileRows x tileCols sums in registers, all written out in the text. Loads are
 * what costs on every adapter measured, so each load feeds many FMAs:
 * - `subgroup` > 0: every lane loads one of the next k-values of a row and `subgroupBroadcast` hands it to the others.
 *   Pays wherever subgroups exist.
 * - `subgroup` = 0: every lane loads the row values itself.
 * Of int8 and int4 weights a group is summed in units of its quants, and the scale multiplies that sum: one load and one
 * FMA a group, and to rounding the result of the widened weights.
 * The sum runs over k in ascending order whatever the number of rows: a row's result does not depend on its company.
 *
 * `transposed`: out[t, n] = sum_k x[t, k] w[k, n]; neighbouring lanes then load neighbouring weights.
 *
 * Epilogues: `store` (out = activation(result)); `add` (out += result, the residual connection, in place); `glu` (two
 * weights, gate and up: out = activation(gate) * up; Shazeer 2020, arXiv 2002.05202).
 */
import { type Activation, activate, activatedText, activationFunction } from "./activation.ts";
import {
  type Binding,
  type Cost,
  declareBindings,
  type Kernel,
  kernelKey,
  PARAMS,
  PARAMS_STRUCT,
  range,
  type Target,
  type TwinBuffer,
  type WeightType,
} from "./kernel.ts";
import {
  GROUP,
  isQuantised,
  quantWords,
  unpackFunctions,
  unpackText,
  weightAt,
  weightElement,
  weightRowShape,
  weightRowWords,
  weightsPerWord,
} from "./weight-load.ts";

export interface MatmulVariant {
  /** Inner size K. */
  readonly k: number;
  /** Columns N of this weight (of this part, where a tensor is split). */
  readonly n: number;
  readonly weight: WeightType;
  readonly epilogue: "store" | "add" | "glu";
  /** Absent: `none`, which is the only one with `add`. */
  readonly activation?: Activation;
  readonly bias: boolean;
  /** Columns of the output matrix, and the first that this weight fills. */
  readonly outStride: number;
  readonly outOffset: number;
  readonly tileRows: number;
  readonly tileCols: number;
  readonly lanes: number;
  /** Subgroup size to broadcast in, 0 for none. A multiple of it must divide `lanes`. */
  readonly subgroup: number;
  /** The weight is stored (K, N), f32: the product with a transpose, as the gradient of a layer's input needs it. */
  readonly transposed?: true;
}

/** The weights' names: one, or gate and up. */
function weightNames(variant: MatmulVariant): readonly string[] {
  return variant.epilogue === "glu" ? ["gate", "up"] : ["weight"];
}

function biasName(weight: string): string {
  return weight === "weight" ? "bias" : `${weight}Bias`;
}

function bindingsOf(variant: MatmulVariant): Binding[] {
  const names = weightNames(variant);
  const element = weightElement(variant.weight);
  return [
    { name: "x", access: "read", type: "array<f32>", shape: ["T", "K"] },
    ...names.map(
      (name): Binding => ({
        name,
        access: "read",
        type: `array<${element}>`,
        shape: variant.transposed ? ["K", "N"] : ["N", weightRowShape(variant.weight)],
      }),
    ),
    ...(variant.bias
      ? names.map((name): Binding => ({ name: biasName(name), access: "read", type: "array<f32>", shape: ["N"] }))
      : []),
    { name: "out", access: "read_write", type: "array<f32>", shape: ["T", "N"] },
    PARAMS,
  ];
}

/** Values of k that a lane reads together: a divisor of `GROUP`. More of them make long texts, and are no faster. */
function stepOf({ subgroup }: MatmulVariant): number {
  return subgroup > 0 ? Math.max(subgroup, 8) : 4;
}

/** One step along k: `count` values from column `kx` of x and word `kw` of the weights, written out. */
function stepText(variant: MatmulVariant, count: number): string {
  const { n, tileRows, tileCols, subgroup, weight, transposed } = variant;
  const names = weightNames(variant);
  const perWord = weightsPerWord(weight);
  const sum = isQuantised(weight) ? "q" : "s";
  // A step of less than a word begins within it.
  const part = stepOf(variant) < perWord ? ` >> (kx % ${perWord}u * ${32 / perWord}u)` : "";
  const lines: string[] = [];
  const rows = range(tileRows);
  if (subgroup > 0) {
    for (const load of range(Math.ceil(count / subgroup))) {
      const left = count - load * subgroup;
      const lane = left < subgroup ? `min(lane, ${left - 1}u)` : "lane";
      for (const r of rows) lines.push(`let a${r}_${load} = x[x${r} + kx + ${load * subgroup}u + ${lane}];`);
    }
  }
  for (const u of range(count)) {
    if (subgroup > 0)
      for (const r of rows)
        lines.push(`let b${r}_${u} = subgroupBroadcast(a${r}_${Math.floor(u / subgroup)}, ${u % subgroup}u);`);
    else for (const r of rows) lines.push(`let b${r}_${u} = x[x${r} + kx + ${u}u];`);
    for (const [j, name] of names.entries()) {
      for (const c of range(tileCols)) {
        if (transposed) lines.push(`let w${j}_${c}_${u} = ${name}[w${c} + (kx + ${u}u) * ${n}u];`);
        else if (weight === "f32") lines.push(`let w${j}_${c}_${u} = ${name}[w${c} + kw + ${u}u];`);
        else {
          const [word, place] = [Math.floor(u / perWord), u % perWord];
          if (place === 0) lines.push(`let p${j}_${c}_${word} = ${name}[w${c} + kw + ${word}u]${part};`);
          lines.push(`let w${j}_${c}_${u} = ${unpackText(weight, `p${j}_${c}_${word}`, place)};`);
        }
        for (const r of rows)
          lines.push(`${sum}${j}_${r}_${c} = fma(b${r}_${u}, w${j}_${c}_${u}, ${sum}${j}_${r}_${c});`);
      }
    }
  }
  return lines.join("\n    ");
}

function storeText(variant: MatmulVariant, r: number, c: number): string {
  const { epilogue, activation = "none", bias, outStride, outOffset } = variant;
  const column = `n${c}`;
  const at = `out[(row0 + ${r}u) * ${outStride}u + ${outOffset}u + ${column}]`;
  const sum = (j: number, name: string) =>
    bias ? `(s${j}_${r}_${c} + ${biasName(name)}[${column}])` : `s${j}_${r}_${c}`;
  if (epilogue === "glu") {
    return `${at} = ${activatedText(activation, sum(0, "gate"))} * ${sum(1, "up")};`;
  }
  const result = activatedText(activation, sum(0, "weight"));
  return epilogue === "add" ? `${at} = ${at} + ${result};` : `${at} = ${result};`;
}

/**
 * Values of k that are summed on their own before they join the total: the rounding error of a sum grows with the root
 * of the number of terms that are added one after another.
 */
const BLOCK = 256;

/** `none` leaves no trace: absent or spelled out, it is one text. */
function keyOf({ activation = "none", ...variant }: MatmulVariant): string {
  return kernelKey("matmul", activation === "none" ? variant : { ...variant, activation });
}

/** The kernel of a variant. Rows: T; `params.offset`: the first row of this dispatch, `params.rows`: the end of its rows. */
export function matmul(variant: MatmulVariant): Kernel {
  const { k, n, weight, epilogue, activation = "none", tileRows, tileCols, lanes, subgroup, transposed } = variant;
  if (epilogue === "add" && activation !== "none")
    throw new Error(`${activation} of a sum that is added has no kernel`);
  if (transposed && weight !== "f32") throw new Error(`a transposed ${weight} weight has no kernel`);
  const names = weightNames(variant);
  const bindings = bindingsOf(variant);
  const step = stepOf(variant);
  const rowWords = weightRowWords(weight, k);
  const quantised = isQuantised(weight);
  const scaleWord = quantised ? quantWords(weight, k) : 0;
  const full = Math.floor(k / step);
  const tail = k - full * step;
  const rows = range(tileRows);
  const cols = range(tileCols);
  const perBlock = Math.max(1, Math.floor(BLOCK / step));
  const blocked = full > perBlock;
  const each = (text: (place: string, j: number, c: number) => string) =>
    names
      .map((_, j) => rows.map((r) => cols.map((c) => text(`${j}_${r}_${c}`, j, c)).join(" ")).join("\n  "))
      .join("\n  ");
  const stepAt = (index: string, count: number) => `let kx = ${index} * ${step}u;
    let kw = kx / ${weightsPerWord(weight)}u;
    ${stepText(variant, count)}`;
  const scales = (g: string) =>
    names.flatMap((name, j) =>
      cols.map((c) => `let z${j}_${c} = scaleOf(${name}[w${c} + ${scaleWord}u + (${g} >> 1u)], ${g});`),
    );
  // The sums of a group in units of its quants, which its scale takes to the row's sums.
  const inGroup = (g: string, body: string) => `${scales(g).join("\n    ")}
    ${each((at) => `var q${at} = 0.0;`)}
    ${body}
    ${each((at, j, c) => `s${at} = fma(q${at}, z${j}_${c}, s${at});`)}`;
  const perGroup = GROUP / step;
  const steps = (from: string, count: number) => `for (var i = ${from}; i < min(${from} + ${count}u, steps); i++) {
    ${stepAt("i", step)}
    }`;
  const block = quantised
    ? `for (var i1 = i0; i1 < min(i0 + ${perBlock}u, steps); i1 += ${perGroup}u) {
    let g = i1 / ${perGroup}u;
    ${inGroup("g", steps("i1", perGroup))}
    }`
    : steps("i0", perBlock);
  const rest = stepAt(`${full}u`, tail);
  const wgsl = `${subgroup > 0 ? "enable subgroups;\n" : ""}${PARAMS_STRUCT}
${declareBindings(bindings)}
${unpackFunctions(weight)}
${activationFunction(activation)}
@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32${subgroup > 0 ? ", @builtin(subgroup_invocation_id) lane: u32" : ""}) {
  let row0 = params.offset + group.y * ${tileRows}u;
  let last = params.rows - 1u;
  ${rows.map((r) => `let x${r} = min(row0 + ${r}u, last) * ${k}u;`).join("\n  ")}
  ${cols.map((c) => `let n${c} = group.x * ${lanes * tileCols}u + ${c * lanes}u + local;\n  let w${c} = min(n${c}, ${n - 1}u) * ${transposed ? 1 : rowWords}u;`).join("\n  ")}
  // Not a constant: drivers unroll loops of few steps, and hundreds of loads in a row take them seconds to compile.
  let steps = select(0u, ${full}u, params.rows > 0u);
  ${each((at) => `var s${at} = 0.0;`)}
  ${blocked ? each((at) => `var total${at} = 0.0;`) : ""}
  for (var i0 = 0u; i0 < steps; i0 += ${perBlock}u) {
    ${block}
    ${blocked ? each((at) => `total${at} += s${at}; s${at} = 0.0;`) : ""}
  }
  ${tail > 0 ? `{\n    ${quantised ? inGroup(`${Math.floor(k / GROUP)}u`, rest) : rest}\n  }` : ""}
  ${blocked ? each((at) => `s${at} += total${at};`) : ""}
  ${rows.map((r) => `if (row0 + ${r}u < params.rows) {\n    ${cols.map((c) => `if (n${c} < ${n}u) { ${storeText(variant, r, c)} }`).join("\n    ")}\n  }`).join("\n  ")}
}
`;
  return {
    name: "matmul",
    key: keyOf(variant),
    wgsl,
    bindings,
    subgroups: subgroup > 0,
    grid: (count) => [Math.ceil(n / (lanes * tileCols)), Math.ceil(count / tileRows), 1],
    cost: (count) => matmulCost(variant, count),
  };
}

/** Cost of an FMA relative to a load of a lane, as measured on the software adapters. */
const FMA_COST = 0.045;

/**
 * The tile that a target gets without tuning: 8 rows, and the columns that make the fewest loads for `n` of them.
 * Depends on the adapter, the epilogue and the shape, never on the number of rows.
 */
export function matmulTile(
  target: Target,
  epilogue: MatmulVariant["epilogue"],
  n: number,
): Pick<MatmulVariant, "tileRows" | "tileCols" | "lanes" | "subgroup"> {
  const subgroup = target.subgroupSize <= 32 ? target.subgroupSize : 0;
  const [tileRows, lanes, weights] = [8, 32, epilogue === "glu" ? 2 : 1];
  const cost = (cols: number) =>
    Math.ceil(n / (lanes * cols)) * (tileRows + 4 * cols * weights + 8 * FMA_COST * tileRows * cols * weights);
  const tileCols = range(4 / weights)
    .map((c) => c + 1)
    .reduce((best, cols) => (cost(cols) < cost(best) ? cols : best));
  return { tileRows, tileCols, lanes, subgroup };
}

/** K multiply-adds an element of each product, and one more operation for each of bias, residual and gating. */
function matmulCost({ k, n, weight, epilogue, bias }: MatmulVariant, rows: number): Cost {
  const products = epilogue === "glu" ? 2 : 1;
  const extra = (bias ? products : 0) + (epilogue === "store" ? 0 : 1);
  return {
    flops: rows * n * (2 * k * products + extra),
    bytes:
      4 * (rows * k + products * n * weightRowWords(weight, k) + (bias ? products * n : 0)) +
      4 * rows * n * (epilogue === "add" ? 2 : 1),
  };
}

/** CPU twin of `matmul`: same bindings, same order of summation, sums in float64. */
export function matmulTwin(
  variant: MatmulVariant,
  buffers: Readonly<Record<string, TwinBuffer>>,
  rows: number,
  offset = 0,
): void {
  const { k, n, weight, epilogue, activation = "none", bias, outStride, outOffset, transposed } = variant;
  const words = weightRowWords(weight, k);
  const { x, out } = buffers;
  const at = (name: string, col: number, i: number) =>
    transposed ? buffers[name][i * n + col] : weightAt(weight, buffers[name], col * words, i, k);
  for (let t = offset; t < rows; t++) {
    for (let col = 0; col < n; col++) {
      const sums = weightNames(variant).map((name) => {
        let sum = 0;
        for (let i = 0; i < k; i++) sum += x[t * k + i] * at(name, col, i);
        return bias ? sum + buffers[biasName(name)][col] : sum;
      });
      const place = t * outStride + outOffset + col;
      const first = activate(activation, sums[0]);
      if (epilogue === "glu") out[place] = first * sums[1];
      else out[place] = epilogue === "add" ? out[place] + first : first;
    }
  }
}
