/** The WGSL body of `matmul`: how a step along k is loaded and multiplied, and how sums are grouped. */
import { activatedText } from "./activation.ts";
import { range } from "./kernel.ts";
import type { MatmulVariant } from "./matmul.ts";
import { lineTexel } from "./texture.ts";
import { GROUP, isQuantised, quantWords, unpackText, weightsPerWord } from "./weight-load.ts";

/** The weights' names: one, or gate and up. */
export function weightNames({ epilogue }: Pick<MatmulVariant, "epilogue">): readonly string[] {
  return epilogue === "glu" ? ["gate", "up"] : ["weight"];
}

export function biasName(weight: string): string {
  return weight === "weight" ? "bias" : `${weight}Bias`;
}

/**
 * Values of k that a lane reads together: a divisor of `GROUP`, and with subgroups enough for every lane to load its
 * share. More of them make long texts, and are no faster.
 */
function stepOf({ subgroup, textures, tileRows }: MatmulVariant): number {
  if (!textures) return subgroup > 0 ? Math.max(subgroup, 8) : 4;
  const filling = 2 ** Math.ceil(Math.log2(Math.max(1, (4 * subgroup) / tileRows)));
  return Math.min(GROUP, Math.max(8, filling));
}

/** The texts that load the row values of a step and name them: `b(r, u)` is row r's value u, `load` what goes before. */
interface RowValues {
  readonly prologue: readonly string[];
  readonly load: (count: number) => readonly string[];
  readonly value: (r: number, u: number) => string;
}

/** Rows in a texture; with subgroups every lane loads another texel of the tile. `kx`: the first value of the step. */
function rowsOfTexture({ k, tileRows, subgroup }: MatmulVariant, step: number): RowValues {
  const quads = step / 4;
  const line = (r: string) => `min(row0 + ${r}, last) * ${k / 4}u`;
  if (subgroup === 0) {
    return {
      prologue: range(tileRows).map((r) => `let x${r} = ${line(`${r}u`)};`),
      load: (count) =>
        range(Math.ceil(count / 4)).flatMap((q) =>
          range(tileRows).map((r) => `let a${r}_${q} = textureLoad(x, ${lineTexel(`x${r} + kx / 4u + ${q}u`)}, 0);`),
        ),
      value: (r, u) => `a${r}_${Math.floor(u / 4)}[${u % 4}]`,
    };
  }
  // Texel e of the tile: row e % tileRows, quad e / tileRows of the step.
  const loads = Math.ceil((tileRows * quads) / subgroup);
  return {
    prologue: range(loads).flatMap((l) => [
      `let e${l} = ${l * subgroup}u + lane;`,
      `let x${l} = ${line(`e${l} % ${tileRows}u`)} + min(e${l} / ${tileRows}u, ${quads - 1}u);`,
    ]),
    load: (count) =>
      range(Math.ceil((tileRows * Math.ceil(count / 4)) / subgroup)).map(
        (l) => `let a${l} = textureLoad(x, ${lineTexel(`x${l} + kx / 4u`)}, 0);`,
      ),
    value: (r, u) => {
      const e = Math.floor(u / 4) * tileRows + r;
      return `subgroupBroadcast(a${Math.floor(e / subgroup)}[${u % 4}], ${e % subgroup}u)`;
    },
  };
}

/** Rows in a buffer; with subgroups every lane loads one of the next values of a row. */
function rowsOfBuffer({ k, tileRows, subgroup }: MatmulVariant): RowValues {
  const rows = range(tileRows);
  const prologue = rows.map((r) => `let x${r} = min(row0 + ${r}u, last) * ${k}u;`);
  if (subgroup === 0) return { prologue, load: () => [], value: (r, u) => `x[x${r} + kx + ${u}u]` };
  return {
    prologue,
    load: (count) =>
      range(Math.ceil(count / subgroup)).flatMap((load) => {
        const left = count - load * subgroup;
        const lane = left < subgroup ? `min(lane, ${left - 1}u)` : "lane";
        return rows.map((r) => `let a${r}_${load} = x[x${r} + kx + ${load * subgroup}u + ${lane}];`);
      }),
    value: (r, u) => `subgroupBroadcast(a${r}_${Math.floor(u / subgroup)}, ${u % subgroup}u)`,
  };
}

/** Loads `count` weights of column c of weight j: the texts that do, and the values. */
function weightValues(variant: MatmulVariant, step: number, j: number, c: number, count: number) {
  const { n, weight, textures, transposed } = variant;
  const name = weightNames(variant)[j];
  const perWord = weightsPerWord(weight);
  const words = Math.ceil(count / perWord);
  const value = (word: string, u: number) => (weight === "f32" ? word : unpackText(weight, word, u % perWord));
  if (textures) {
    const loaded = `p${j}_${c}`;
    const texel = (t: number) => `textureLoad(${name}, vec2<u32>(kw / 4u + ${t}u, w${c}), 0)`;
    const ofStep = step / perWord;
    const float = (word: string) => (weight === "f32" ? `bitcast<f32>(${word})` : word);
    if (ofStep >= 4) {
      return {
        load: range(Math.ceil(words / 4)).map((t) => `let ${loaded}_${t} = ${texel(t)};`),
        value: (u: number) => {
          const word = Math.floor(u / perWord);
          return value(float(`${loaded}_${word >> 2}[${word & 3}]`), u);
        },
      };
    }
    // A step of less than a texel begins within it.
    return {
      load: [
        `let ${loaded} = ${texel(0)};`,
        ...range(words).map((word) => `let ${loaded}_${word} = ${loaded}[kw % 4u + ${word}u];`),
      ],
      value: (u: number) => value(`${loaded}_${Math.floor(u / perWord)}`, u),
    };
  }
  if (transposed) return { load: [], value: (u: number) => `${name}[w${c} + (kx + ${u}u) * ${n}u]` };
  if (weight === "f32") return { load: [], value: (u: number) => `${name}[w${c} + kw + ${u}u]` };
  // A step of less than a word begins within it.
  const part = step < perWord ? ` >> (kx % ${perWord}u * ${32 / perWord}u)` : "";
  return {
    load: range(words).map((word) => `let p${j}_${c}_${word} = ${name}[w${c} + kw + ${word}u]${part};`),
    value: (u: number) => value(`p${j}_${c}_${Math.floor(u / perWord)}`, u),
  };
}

/**
 * One step along k: `count` values from column `kx` of x and word `kw` of the weights, written out, column by column:
 * then the sums of one column and the values of one row are what a core's registers have to hold at a time (llvmpipe
 * has 16, and took half as long again with the rows of all columns in turn).
 *
 * A step is summed on its own before it joins the total: the rounding error of a sum grows with the root of the number of
 * terms that are added one after another.
 */
function stepText(variant: MatmulVariant, rows: RowValues, step: number, count: number): string {
  const { tileRows, tileCols, weight, textures } = variant;
  const sum = isQuantised(weight) ? "q" : "s";
  const lines: string[] = [...rows.load(count)];
  const named = new Set<string>();
  for (const j of range(weightNames(variant).length)) {
    for (const c of range(tileCols)) {
      const { load, value } = weightValues(variant, step, j, c, count);
      lines.push(...load);
      for (const u of range(count)) lines.push(`let w${j}_${c}_${u} = ${value(u)};`);
      const add = (r: number, u: number) => {
        const b = `b${r}_${u}`;
        if (!named.has(b)) lines.push(`let ${b} = ${rows.value(r, u)};`);
        named.add(b);
        const [at, w] = [`${j}_${r}_${c}`, `w${j}_${c}_${u}`];
        lines.push(`let t${at}_${u} = ${u === 0 ? `${b} * ${w}` : `fma(${b}, ${w}, t${at}_${u - 1})`};`);
        if (u === count - 1) lines.push(`${sum}${at} += t${at}_${u};`);
      };
      if (textures) for (const r of range(tileRows)) for (const u of range(count)) add(r, u);
      else for (const u of range(count)) for (const r of range(tileRows)) add(r, u);
    }
  }
  return lines.join("\n    ");
}

/**
 * Writes one element of the output.
 * @param row its row, an expression
 * @param sum the sum of weight j there, an expression
 */
export function storeText(variant: MatmulVariant, row: string, c: number, sum: (j: number) => string): string {
  const { epilogue, activation = "none", bias, outStride, outOffset } = variant;
  const column = `n${c}`;
  const at = `out[(${row}) * ${outStride}u + ${outOffset}u + ${column}]`;
  const [first, second] = weightNames(variant).map((name, j) =>
    bias ? `(${sum(j)} + ${biasName(name)}[${column}])` : sum(j),
  );
  const result = activatedText(activation, first);
  if (epilogue === "glu") return `${at} = ${result} * ${second};`;
  return epilogue === "add" ? `${at} = ${at} + ${result};` : `${at} = ${result};`;
}

/**
 * Writes the tile, row by row in a loop that stops at the last row there is: of a store for every element written out,
 * drivers compile longer than of the sums. The array serves this loop alone; sums in an array would lie in memory.
 */
function storeTile(variant: MatmulVariant): string {
  const { n, tileRows, tileCols, lanes } = variant;
  const weights = weightNames(variant).length;
  const places = range(weights).flatMap((j) => range(tileRows).flatMap((r) => range(tileCols).map((c) => [j, r, c])));
  const stores = range(tileCols).map((c) => {
    const store = storeText(variant, "row0 + r", c, (j) => `sums[(${j * tileRows}u + r) * ${tileCols}u + ${c}u]`);
    return n % (lanes * tileCols) === 0 ? store : `if (n${c} < ${n}u) { ${store} }`;
  });
  return `var sums: array<f32, ${places.length}>;
  ${places.map(([j, r, c], i) => `sums[${i}] = s${j}_${r}_${c};`).join(" ")}
  let count = min(${tileRows}u, params.rows - min(params.rows, row0));
  for (var r = 0u; r < count; r++) {
    ${stores.join("\n    ")}
  }`;
}

/** Everything below the declarations. @param rowWords words of a row of a weight buffer */
export function matmulText(variant: MatmulVariant, rowWords: number): string {
  const { k, n, weight, tileRows, tileCols, lanes, subgroup, textures, transposed } = variant;
  const names = weightNames(variant);
  const step = stepOf(variant);
  const quantised = isQuantised(weight);
  const scaleWord = isQuantised(weight) ? quantWords(weight, k) : 0;
  const full = Math.floor(k / step);
  const tail = k - full * step;
  const rows = range(tileRows);
  const cols = range(tileCols);
  const values = textures ? rowsOfTexture(variant, step) : rowsOfBuffer(variant);
  const each = (text: (place: string, j: number, c: number) => string) =>
    names
      .map((_, j) => rows.map((r) => cols.map((c) => text(`${j}_${r}_${c}`, j, c)).join(" ")).join("\n  "))
      .join("\n  ");
  const stepAt = (index: string, count: number) => `let kx = ${index} * ${step}u;
    let kw = kx / ${weightsPerWord(weight)}u;
    ${stepText(variant, values, step, count)}`;
  const scaleOf = (name: string, c: number, g: string) =>
    textures
      ? `textureLoad(${name}, vec2<u32>(${scaleWord / 4}u + (${g} >> 3u), w${c}), 0)[(${g} >> 1u) & 3u]`
      : `${name}[w${c} + ${scaleWord}u + (${g} >> 1u)]`;
  const scales = (g: string) =>
    names.flatMap((name, j) => cols.map((c) => `let z${j}_${c} = scaleOf(${scaleOf(name, c, g)}, ${g});`));
  // The sums of a group in units of its quants, which its scale takes to the row's sums.
  const inGroup = (g: string, body: string) => `${scales(g).join("\n    ")}
    ${each((at) => `var q${at} = 0.0;`)}
    ${body}
    ${each((at, j, c) => `s${at} = fma(q${at}, z${j}_${c}, s${at});`)}`;
  const perGroup = GROUP / step;
  const steps = (from: string, end: string) => `for (var i = ${from}; i < ${end}; i++) {
    ${stepAt("i", step)}
  }`;
  const body = quantised
    ? `for (var i1 = 0u; i1 < steps; i1 += ${perGroup}u) {
    let g = i1 / ${perGroup}u;
    ${inGroup("g", steps("i1", `min(i1 + ${perGroup}u, steps)`))}
  }`
    : steps("0u", "steps");
  const rest = stepAt(`${full}u`, tail);
  const weightRow = (c: number) =>
    textures ? `min(n${c}, ${n - 1}u)` : `min(n${c}, ${n - 1}u) * ${transposed ? 1 : rowWords}u`;
  return `@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32${subgroup > 0 ? ", @builtin(subgroup_invocation_id) lane: u32" : ""}) {
  let row0 = params.offset + group.y * ${tileRows}u;
  let last = params.rows - 1u;
  ${values.prologue.join("\n  ")}
  ${cols.map((c) => `let n${c} = group.x * ${lanes * tileCols}u + ${c * lanes}u + local;\n  let w${c} = ${weightRow(c)};`).join("\n  ")}
  // Not a constant: drivers unroll loops of few steps, and hundreds of loads in a row take them seconds to compile.
  let steps = select(0u, ${full}u, params.rows > 0u);
  ${each((at) => `var s${at} = 0.0;`)}
  ${body}
  ${tail > 0 ? `{\n    ${quantised ? inGroup(`${Math.floor(k / GROUP)}u`, rest) : rest}\n  }` : ""}
  ${storeTile(variant)}
}
`;
}
