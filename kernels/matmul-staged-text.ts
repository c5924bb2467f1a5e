/**
 * The WGSL body of `matmul` with tiles in workgroup memory, for GPUs: 16 x 16 lanes load a slice of 32 values along k of
 * the tile's rows and columns, four words a load, and each lane computes tileRows x tileCols results out of it. A weight is
 * widened once when it is stored, and a quantised one multiplied by its scale.
 */
import { range } from "./kernel.ts";
import type { MatmulVariant } from "./matmul.ts";
import { storeText, weightNames } from "./matmul-text.ts";
import { GROUP, isQuantised, quantWords, unpackText, weightElement, weightsPerWord } from "./weight-load.ts";

/** Lanes of a side of the workgroup. */
export const STAGED_SIDE = 16;
export const STAGED_LANES = STAGED_SIDE * STAGED_SIDE;
/** Values of k in a slice: what shares a scale. */
const SLICE = GROUP;

/** The element type of a weight's binding. */
export function stagedElement(weight: MatmulVariant["weight"]): string {
  return `vec4<${weightElement(weight)}>`;
}

/** The values of the loaded weights `p` (vec4) with k from `first` on, `scale` the group's, stored to the slice. */
function unpackTexts(variant: MatmulVariant, j: number): string {
  const { weight } = variant;
  const perWord = weightsPerWord(weight);
  return range(4 * perWord)
    .map((i) => {
      const word = `p[${Math.floor(i / perWord)}]`;
      const value = weight === "f32" ? word : unpackText(weight, word, i % perWord);
      const scaled = isQuantised(weight) ? `${value} * scale` : value;
      return `w${j}s[(k + ${i}u) * ${STAGED_SIDE * variant.tileCols}u + column] = ${scaled};`;
    })
    .join(" ");
}

/** Loads of the tile's columns: `vectors` vec4 a column and slice, spread over the lanes. */
function loadWeights(variant: MatmulVariant, rowWords: number): string {
  const { k, n, weight, tileCols } = variant;
  const perVector = 4 * weightsPerWord(weight);
  const vectors = SLICE / perVector;
  const columns = STAGED_SIDE * tileCols;
  const inRow = isQuantised(weight) ? quantWords(weight, k) : rowWords;
  return weightNames(variant)
    .map((name, j) => {
      const row = `min(column0 + column, ${n - 1}u) * ${rowWords / 4}u`;
      const group = "slice";
      const scale = isQuantised(weight)
        ? `let scaleWord = ${inRow}u + (${group} >> 1u);
        let scale = scaleOf(${name}[row + scaleWord / 4u][scaleWord % 4u], ${group});`
        : "";
      return `for (var i = local; i < ${columns * vectors}u; i += ${STAGED_LANES}u) {
        let column = i / ${vectors}u;
        let k = (i % ${vectors}u) * ${perVector}u;
        let row = ${row};
        let at = slice * ${vectors}u + i % ${vectors}u;
        var p = vec4<${weightElement(weight)}>();
        if (at < ${inRow / 4}u) { p = ${name}[row + at]; }
        ${scale}
        ${unpackTexts(variant, j)}
      }`;
    })
    .join("\n      ");
}

/** Everything below the declarations. @param rowWords words of a row of a weight buffer, whole vec4 */
export function stagedText(variant: MatmulVariant, rowWords: number): string {
  const { k, n, tileRows, tileCols } = variant;
  const names = weightNames(variant);
  const [rows, cols] = [range(tileRows), range(tileCols)];
  const [height, width] = [STAGED_SIDE * tileRows, STAGED_SIDE * tileCols];
  const quads = SLICE / 4;
  const each = (text: (place: string, j: number, r: number, c: number) => string) =>
    names
      .flatMap((_, j) => rows.map((r) => cols.map((c) => text(`${j}_${r}_${c}`, j, r, c)).join(" ")))
      .join("\n      ");
  return `var<workgroup> xs: array<f32, ${SLICE * height}>; // (k, rows)
${names.map((_, j) => `var<workgroup> w${j}s: array<f32, ${SLICE * width}>; // (k, columns)`).join("\n")}
@compute @workgroup_size(${STAGED_LANES})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let first = params.offset + group.y * ${height}u;
  let last = params.rows - 1u;
  let column0 = group.x * ${width}u;
  let row0 = first + local / ${STAGED_SIDE}u * ${tileRows}u;
  ${cols.map((c) => `let n${c} = column0 + local % ${STAGED_SIDE}u * ${tileCols}u + ${c}u;`).join("\n  ")}
  ${each((at) => `var s${at} = 0.0;`)}
  for (var slice = 0u; slice < ${Math.ceil(k / SLICE)}u; slice++) {
    workgroupBarrier();
    for (var i = local; i < ${height * quads}u; i += ${STAGED_LANES}u) {
      let row = i / ${quads}u;
      let at = slice * ${quads}u + i % ${quads}u;
      var v = vec4<f32>();
      if (at < ${k / 4}u) { v = x[min(first + row, last) * ${k / 4}u + at]; }
      ${range(4)
        .map((i) => `xs[(i % ${quads}u * 4u + ${i}u) * ${height}u + row] = v[${i}];`)
        .join(" ")}
    }
    {
      ${loadWeights(variant, rowWords)}
    }
    workgroupBarrier();
    ${each((at) => `var t${at} = 0.0;`)}
    for (var u = 0u; u < ${SLICE}u; u++) {
      ${rows.map((r) => `let b${r} = xs[u * ${height}u + local / ${STAGED_SIDE}u * ${tileRows}u + ${r}u];`).join(" ")}
      ${names.flatMap((_, j) => cols.map((c) => `let w${j}_${c} = w${j}s[u * ${width}u + local % ${STAGED_SIDE}u * ${tileCols}u + ${c}u];`)).join(" ")}
      ${each((at, j, r, c) => `t${at} = fma(b${r}, w${j}_${c}, t${at});`)}
    }
    ${each((at) => `s${at} += t${at};`)}
  }
  ${rows.map((r) => `if (row0 + ${r}u < params.rows) {\n    ${cols.map((c) => `if (n${c} < ${n}u) { ${storeText(variant, `row0 + ${r}u`, c, (j) => `s${j}_${r}_${c}`)} }`).join("\n    ")}\n  }`).join("\n  ")}
}
`;
}
