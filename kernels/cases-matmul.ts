/** The cases of matmul: its sizes, weight types, epilogues and activations, with and without subgroups. */
import type { Activation } from "./activation.ts";
import { floats, type KernelCase } from "./case.ts";
import type { Target, TwinBuffer, WeightType } from "./kernel.ts";
import { fitsTextures, type MatmulVariant, matmul, matmulRowWords, matmulTile, matmulTwin } from "./matmul.ts";
import { quantiseRows } from "./quantise.ts";
import { seededRandom } from "./random.ts";
import { padRows } from "./texture.ts";
import { isQuantised, weightRowWords } from "./weight-load.ts";

const WEIGHT_TYPES = ["f32", "bf16", "f16", "int8", "int4"] as const satisfies readonly WeightType[];
/** k and n: every form of a last group, several blocks of k, one column and several tiles of them. */
const QUANTISED_SIZES = [
  [1, 3],
  [3, 1],
  [31, 33],
  [32, 64],
  [33, 65],
  [57, 33],
  [64, 31],
  [65, 129],
  [1001, 35],
  [172, 33],
  [36, 33],
  [4, 3],
  [1004, 35],
] as const;
const ACTIVATIONS = ["silu", "gelu", "geluTanh", "relu"] as const satisfies readonly Activation[];

/** `n` rows of `k` weights in storage form; f16 rows hold subnormals too, and so do the scales of quantised ones. */
function weights(random: () => number, weight: WeightType, n: number, k: number): TwinBuffer {
  const words = n * weightRowWords(weight, k);
  if (weight === "f32") return floats(random, words);
  if (isQuantised(weight)) {
    const size = () => (random() < 0.1 ? 1e-3 : 1);
    const values = floats(random, n * k);
    for (let i = 0; i < values.length; i += 57) {
      const factor = size();
      for (let j = i; j < Math.min(i + 57, values.length); j++) values[j] *= factor;
    }
    return quantiseRows(values, n, k, weight);
  }
  const half = () => {
    const sign = random() < 0.5 ? 0x8000 : 0;
    if (weight === "bf16") return sign | (0x3c00 + Math.floor(random() * 0x0380));
    return sign | (random() < 0.2 ? Math.floor(random() * 0x400) : 0x2000 + Math.floor(random() * 0x1c00));
  };
  return Uint32Array.from({ length: words }, () => (half() | (half() << 16)) >>> 0);
}

function matmulCase(variant: MatmulVariant, rows: number, offset = 0): KernelCase {
  const { k, n, weight, epilogue, activation = "none", bias, outStride } = variant;
  return {
    title: `${offset > 0 ? `${offset} to ` : ""}${rows} x ${k} x ${n} ${weight} ${epilogue}${activation === "none" ? "" : ` ${activation}`}${bias ? " bias" : ""} tile ${variant.tileRows}x${variant.tileCols} subgroup ${variant.subgroup}${variant.textures ? " textures" : ""}${variant.staged ? " staged" : ""}`,
    kernel: matmul(variant),
    rows,
    offset,
    buffers: () => {
      const random = seededRandom(rows * 7919 + k * 31 + n);
      const names = epilogue === "glu" ? ["gate", "up"] : ["weight"];
      // Most sums positive where negative ones would all become 0.
      const centre = activation === "relu" ? 4 : 0;
      return {
        x: floats(random, rows * k),
        ...Object.fromEntries(
          names.map((name) => [name, padRows(weights(random, weight, n, k), n, matmulRowWords(variant))]),
        ),
        ...(bias
          ? Object.fromEntries(
              names.map((name) => [
                name === "weight" ? "bias" : `${name}Bias`,
                floats(random, n).map((b) => b + centre),
              ]),
            )
          : {}),
        out: floats(random, rows * outStride),
      };
    },
    twin: (buffers) => matmulTwin(variant, buffers, rows, offset),
  };
}

/** The cases of matmul for a target: of buffers and textures, with subgroups and without; and out of workgroup memory. */
export function matmulCases(target: Target): KernelCase[] {
  const staged = variantCases({ subgroupSize: 0, textures: false, staged: true }, 0);
  const plain = [false, true].flatMap((textures) => {
    // The tile's own size: it is 0 where the adapter's is wider than the tile.
    const { subgroup } = matmulTile({ ...target, textures }, { k: 4, n: 1, epilogue: "store" });
    // Without subgroups a texture's texts are the longest, and differ in how x is read only: models on them are tested whole.
    const sizes = textures ? [subgroup] : [subgroup, 0];
    return [...new Set(sizes)].flatMap((size) => variantCases({ ...target, textures }, size));
  });
  return [...plain, ...staged];
}

function variantCases(target: Target, subgroup: number): KernelCase[] {
  const cases: KernelCase[] = [];
  const add = (
    rows: number,
    k: number,
    n: number,
    weight: WeightType,
    more: Partial<MatmulVariant> = {},
    offset = 0,
  ) => {
    if ((target.textures || target.staged) && !fitsTextures(k)) return;
    const epilogue = more.epilogue ?? "store";
    const variant = {
      k,
      n,
      weight,
      epilogue,
      bias: false,
      outStride: n,
      outOffset: 0,
      ...matmulTile(target, { k, n, epilogue }),
      ...more,
      subgroup,
    };
    cases.push(matmulCase(variant, rows, offset));
  };
  for (const rows of [1, 3, 57, 63, 64, 65, 1001]) add(rows, 64, 65, "bf16");
  for (const k of [1, 3, 57, 63, 64, 65, 1001]) add(5, k, 33, "bf16");
  for (const k of [4, 12, 20, 36, 340, 1004]) if (target.textures || target.staged) add(5, k, 33, "bf16");
  for (const k of [2, 9, 172]) for (const weight of ["f32", "f16"] as const) add(5, k, 33, weight);
  for (const weight of ["int8", "int4"] as const) {
    for (const [k, n] of QUANTISED_SIZES) add(5, k, n, weight, { tileRows: 4 });
  }
  for (const n of [1, 3, 57, 63, 64, 129, 1001]) add(9, 40, n, "f32");
  for (const weight of WEIGHT_TYPES) {
    const bias = weight !== "f32";
    for (const epilogue of ["store", "add", "glu"] as const) add(11, 96, 130, weight, { epilogue, bias });
  }
  // An activation comes after the sums, whatever the weights were.
  for (const activation of ACTIVATIONS) {
    for (const epilogue of ["store", "glu"] as const)
      add(11, 41, 33, "bf16", { epilogue, activation, bias: true, tileRows: 4, tileCols: 1 });
  }
  add(10, 64, 70, "bf16", { outStride: 200, outOffset: 101, epilogue: "glu", activation: "silu" });
  // The rows of a split dispatch: the others are left as they are.
  for (const weight of ["bf16", "int8", "int4"] as const) add(61, 40, 65, weight, {}, 24);
  for (const [tileRows, tileCols] of [
    [1, 1],
    [4, 4],
    [16, 2],
  ] as const) {
    if (target.staged && tileRows > 8) continue;
    add(21, 48, 77, "bf16", { tileRows, tileCols });
  }
  return cases;
}
