import { describe, expect, it } from "vitest";
import { type AttentionVariant, attention, attentionTile } from "../../kernels/attention.ts";
import { kernelCases } from "../../kernels/cases.ts";
import { type CosineVariant, cosine } from "../../kernels/cosine.ts";
import { flatGrid, type Kernel, kernelKey } from "../../kernels/kernel.ts";
import { type MatmulVariant, matmul, matmulTile } from "../../kernels/matmul.ts";
import { type NormVariant, norm } from "../../kernels/norm.ts";
import { type RopeVariant, rope } from "../../kernels/rope.ts";
import { type RowGatherVariant, rowGather } from "../../kernels/row-gather.ts";
import { wgslFloat } from "../../kernels/wgsl.ts";

/** What WebGPU allows in a dimension of the grid, everywhere. */
const MOST_WORKGROUPS = 65_535;

const cases = [4, 8, 32, 0].flatMap((subgroupSize) => kernelCases({ subgroupSize, textures: false }));

const MATMUL: MatmulVariant = {
  k: 64,
  n: 130,
  weight: "bf16",
  epilogue: "store",
  bias: false,
  outStride: 200,
  outOffset: 0,
  tileRows: 8,
  tileCols: 2,
  lanes: 32,
  subgroup: 0,
  textures: false,
};
const ATTENTION: AttentionVariant = {
  heads: 4,
  kvHeads: 2,
  headDim: 16,
  scale: 0.25,
  softcap: 0,
  window: 0,
  tileRows: 4,
  subgroup: 0,
  textures: false,
};
const NORM: NormVariant = {
  kind: "rms",
  d: 64,
  eps: 1e-5,
  weightOffset: 0,
  bias: false,
  groups: 1,
  stride: 64,
  output: "store",
  subgroup: 0,
};
const COSINE: CosineVariant = { d: 64, subgroup: 0 };
const ROPE: RopeVariant = { heads: 2, headDim: 16, rotary: 16, stride: 64 };
const GATHER: RowGatherVariant = { d: 64 };

describe("keys", () => {
  it.each([
    ["matmul", matmul, MATMUL, { k: 65, n: 131, weight: "f16", epilogue: "add", bias: true, outStride: 201 }],
    [
      "matmul",
      matmul,
      MATMUL,
      { activation: "gelu", outOffset: 1, tileRows: 4, tileCols: 3, lanes: 64, subgroup: 4, textures: true },
    ],
    ["attention", attention, ATTENTION, { heads: 8, kvHeads: 4, headDim: 32, scale: 0.5 }],
    ["attention", attention, ATTENTION, { softcap: 50, window: 8, tileRows: 8, subgroup: 4 }],
    ["attention", attention, { ...ATTENTION, subgroup: 4 }, { textures: true }],
    ["norm", norm, NORM, { kind: "layer", d: 65, eps: 1e-6, weightOffset: 1, bias: true }],
    ["norm", norm, NORM, { groups: 2, stride: 65, output: "add", subgroup: 4 }],
    ["cosine", cosine, COSINE, { d: 65, subgroup: 4 }],
    ["rope", rope, ROPE, { heads: 3, headDim: 32, rotary: 8, stride: 65 }],
    ["rowGather", rowGather, GATHER, { d: 65 }],
  ])("of %s differ when any field of the variant does", (_, make, variant, changes) => {
    const build = make as (variant: object) => Kernel;
    const keys = [variant, ...Object.entries(changes).map(([field, value]) => ({ ...variant, [field]: value }))].map(
      (changed) => build(changed).key,
    );
    expect(new Set(keys).size).toBe(1 + Object.keys(changes).length);
  });

  it("of matmul are the same without an activation and with none", () => {
    expect(matmul({ ...MATMUL, activation: "none" }).key).toBe(matmul(MATMUL).key);
    const keys = (["store", "glu"] as const).flatMap((epilogue) =>
      (["none", "silu", "gelu", "geluTanh", "relu"] as const).flatMap((activation) =>
        (["f32", "bf16", "f16", "int8", "int4"] as const).map(
          (weight) => matmul({ ...MATMUL, epilogue, activation, weight }).key,
        ),
      ),
    );
    expect(new Set(keys).size).toBe(50);
  });

  it("do not depend on the order of the fields", () => {
    const reversed = Object.fromEntries(Object.entries(MATMUL).reverse()) as unknown as MatmulVariant;
    expect(Object.keys(reversed)[0]).toBe("textures");
    expect(matmul(reversed).key).toBe(matmul(MATMUL).key);
    expect(kernelKey("a", { x: 1 })).not.toBe(kernelKey("b", { x: 1 }));
  });

  it("stand for one text each: equal keys have equal WGSL", () => {
    const texts = new Map<string, string>();
    for (const { kernel } of cases) {
      expect(texts.get(kernel.key) ?? kernel.wgsl).toBe(kernel.wgsl);
      texts.set(kernel.key, kernel.wgsl);
    }
    expect(texts.size).toBeGreaterThan(100);
  });
});

/** The resource declarations of a WGSL text, in the order of their bindings. */
function declarations(wgsl: string) {
  const pattern =
    /@group\(0\) @binding\((\d+)\) var(?:<(uniform|storage, read|storage, read_write)>)? (\w+): ([^;]+);/g;
  return [...wgsl.matchAll(pattern)].map(([, binding, space, name, type]) => ({ binding, space, name, type }));
}

describe("descriptions", () => {
  it("list the bindings that the WGSL declares, in their order, and every one is used", () => {
    for (const { kernel, title } of cases) {
      const described = kernel.bindings.map(({ name, access, type }, index) => ({
        binding: String(index),
        space: access === "uniform" ? "uniform" : access === "texture" ? undefined : `storage, ${access}`,
        name,
        type,
      }));
      expect(declarations(kernel.wgsl)).toEqual(described);
      const body = kernel.wgsl.replaceAll(/^@group.*$/gm, "");
      const unused = described.filter(({ name }) => !new RegExp(`\\b${name}\\b`).test(body)).map(({ name }) => name);
      expect([title, unused]).toEqual([title, []]);
    }
  });

  it("say whether the text needs subgroups", () => {
    for (const { kernel } of cases) {
      expect(kernel.subgroups).toBe(kernel.wgsl.startsWith("enable subgroups;"));
      expect(kernel.subgroups).toBe(/subgroup(Broadcast|Add|Max)/.test(kernel.wgsl));
    }
  });

  it("name the buffers that a case brings, and only those", () => {
    for (const { kernel, buffers } of cases) {
      const names = kernel.bindings.map(({ name }) => name).filter((name) => name !== "params");
      expect(Object.keys(buffers()).sort()).toEqual(names.sort());
    }
  });
});

describe("grids", () => {
  const rowCounts = [1, 2, 32_767, 32_768, 32_769, 65_535, 65_536, 65_537, 1_000_003, 2 ** 22];

  it("spread any number of rows over dimensions that WebGPU allows, and reach every row", () => {
    const perWorkgroup: readonly (readonly [Kernel, number])[] = [
      [norm(NORM), 1],
      [cosine(COSINE), 1],
      [rope(ROPE), 64 / (ROPE.heads * (ROPE.rotary / 2))],
      [rowGather(GATHER), 64 / GATHER.d],
    ];
    for (const [kernel, rowsOfOne] of perWorkgroup) {
      for (const rows of rowCounts) {
        const [x, y, z] = kernel.grid(rows);
        expect(Math.max(x, y, z)).toBeLessThanOrEqual(MOST_WORKGROUPS);
        expect(x * y * z * rowsOfOne).toBeGreaterThanOrEqual(rows);
        // Not more than a second layer of idle workgroups.
        expect((x * (y - 1) * z + 1) * rowsOfOne).toBeLessThanOrEqual(rows + rowsOfOne);
      }
    }
    expect(flatGrid(0)).toEqual([0, 0, 1]);
  });

  it("of matmul cover all rows and columns, up to half a million rows", () => {
    for (const rows of rowCounts.filter((count) => count <= 8 * MOST_WORKGROUPS)) {
      const [x, y, z] = matmul(MATMUL).grid(rows);
      expect([x, z]).toEqual([3, 1]);
      expect(y).toBe(Math.ceil(rows / 8));
      expect(y).toBeLessThanOrEqual(MOST_WORKGROUPS);
    }
  });
});

it("matmul has no kernel for what it cannot add", () => {
  expect(() => matmul({ ...MATMUL, epilogue: "add", activation: "relu" })).toThrow("relu");
  expect(matmul({ ...MATMUL, epilogue: "add", activation: "none" }).name).toBe("matmul");
});

describe("default variants", () => {
  const targets = [0, 4, 8, 16, 32, 64, 128].flatMap((subgroupSize) =>
    [false, true].map((textures) => ({ subgroupSize, textures })),
  );

  it("of matmul are tiles that the kernel can run: the lanes are whole subgroups, and columns are not wasted", () => {
    for (const target of targets) {
      for (const epilogue of ["store", "add", "glu"] as const) {
        for (const n of [1, 31, 32, 33, 64, 65, 512, 5632]) {
          const tile = matmulTile(target, { k: 64, n, epilogue });
          if (tile.subgroup > 0) expect(tile.lanes % tile.subgroup).toBe(0);
          expect([target.subgroupSize, 0]).toContain(tile.subgroup);
          // The last tile holds at least one column that exists, whatever the tile: a workgroup of none is waste.
          expect(tile.lanes * (tile.tileCols - 1)).toBeLessThan(n);
          expect(tile.tileCols).toBeGreaterThanOrEqual(1);
        }
      }
    }
  });

  it("of attention fit a lane's registers and an adapter's workgroup memory", () => {
    for (const target of targets) {
      for (const headDim of [2, 10, 64, 80, 128, 256]) {
        const { tileRows, subgroup, textures } = attentionTile(target, headDim);
        expect(subgroup).toBe(target.subgroupSize);
        expect(tileRows).toBeGreaterThanOrEqual(4);
        expect(tileRows).toBeLessThanOrEqual(textures ? 16 : 8);
        if (textures) expect([headDim % 4, subgroup > 0]).toEqual([0, true]);
        // 16,384 bytes is the least that WebGPU promises: queries and scores of 32 keys.
        if (subgroup === 0) expect(4 * tileRows * (headDim + 32)).toBeLessThanOrEqual(16_384);
      }
    }
  });
});

it("float literals are read by WGSL as f32 of the same value", () => {
  for (const value of [1, 0, -2, 0.1, 1e-5, 1e-7, 1 / Math.sqrt(80), 1e21]) {
    expect(wgslFloat(value)).toMatch(/^-?\d+(\.\d+)?(e[+-]?\d+)?$/);
    expect(wgslFloat(value)).toMatch(/[.e]/);
    expect(Number(wgslFloat(value))).toBe(value);
  }
});

it("has no literal that an adapter without denormals would read as 0", () => {
  for (const { kernel } of cases) {
    const literals = kernel.wgsl.match(/\b\d+(?:\.\d*)?e-?\d+\b/g) ?? [];
    const tiny = literals.filter((literal) => Number(literal) !== 0 && Math.abs(Number(literal)) < 2 ** -126);
    expect([kernel.key, tiny]).toEqual([kernel.key, []]);
  }
});
