/** The work of a model's blocks as cases to check and time: every role's kernel at its shape, in its variants. */
import {
  type AttentionVariant,
  attention,
  attentionChoices,
  attentionExtent,
  attentionTile,
  attentionTiles,
} from "../kernels/attention.ts";
import { floats } from "../kernels/case.ts";
import { kernelCases } from "../kernels/cases.ts";
import type { Target } from "../kernels/kernel.ts";
import { type NormVariant, norm, normDefaults, normTwin } from "../kernels/norm.ts";
import { seededRandom } from "../kernels/random.ts";
import { type RopeVariant, rope, ropeTwin } from "../kernels/rope.ts";
import { rowGather, rowGatherTwin } from "../kernels/row-gather.ts";
import { rotaryDims } from "../weights/rope.ts";
import { packBatches } from "./batch.ts";
import { type BatchShape, type BenchCase, CASE_SEED, type VariantChoice } from "./bench-case.ts";
import { matmulBenchCases } from "./bench-cases-matmul.ts";
import { sampleAll, sampleAttention, type TwinBuffers } from "./bench-check.ts";
import { NORM_ROLES } from "./decoder.ts";
import { DISPATCH_FLOPS, rowsPerDispatch } from "./dispatch-size.ts";
import type { ModelFiles } from "./model-files.ts";
import type { Platform } from "./platform.ts";

function normBenchCases({ spec }: ModelFiles, target: Target, rows: number, choice: VariantChoice): BenchCase[] {
  const { hiddenSize, heads, kvHeads, headDim, norm: settings } = spec.config;
  const [block] = spec.blocks;
  return NORM_ROLES.flatMap((role): BenchCase[] => {
    const found = block[role];
    if (found === null) return [];
    const own = role === "queryNorm" || role === "keyNorm";
    const count = role === "queryNorm" ? heads : kvHeads;
    const stride = role === "queryNorm" ? heads * headDim : 2 * kvHeads * headDim;
    const shape = {
      ...settings,
      d: found.size,
      bias: found.bias !== null,
      groups: own && found.size === headDim ? count : 1,
      stride: own ? stride : hiddenSize,
      output: own ? "inPlace" : role.endsWith("OutNorm") ? "add" : "store",
    } as const;
    const standard = normDefaults(target);
    const sizes = choice === "all" ? [...new Set([standard.subgroup, 0])] : [standard.subgroup];
    return [
      {
        op: "norm",
        name: `norm ${role}`,
        shape: `${rows} x ${shape.groups > 1 ? `${shape.groups} x ` : ""}${shape.d}, ${shape.output}`,
        dtype: "f32",
        output: shape.output === "inPlace" ? "x" : "out",
        buffers() {
          const random = seededRandom(CASE_SEED + shape.d);
          return {
            x: floats(random, rows * shape.stride),
            weight: floats(random, shape.d),
            ...(shape.bias ? { bias: floats(random, shape.d) } : {}),
            ...(shape.output === "inPlace" ? {} : { out: floats(random, rows * shape.groups * shape.d) }),
          };
        },
        variants: sizes.map((subgroup) => {
          const variant: NormVariant = { ...shape, subgroup };
          return {
            variant: subgroup > 0 ? `subgroup ${subgroup}` : "plain",
            kernel: norm(variant),
            rows,
            own: () => ({}),
            sample: (buffers) =>
              sampleAll((all) => normTwin(variant, all, rows), buffers, variant.output === "inPlace" ? "x" : "out"),
          };
        }),
      },
    ];
  });
}

function ropeBenchCases({ spec }: ModelFiles, { batch, tokens }: BatchShape): BenchCase[] {
  const { heads, kvHeads, headDim, ropes } = spec.config;
  const turning = spec.blocks.find(({ rope: index }) => index !== null);
  if (turning?.rope == null) return [];
  const rotary = rotaryDims(ropes[turning.rope]);
  const rows = batch * tokens;
  return [
    { name: "rope query", heads, stride: heads * headDim },
    { name: "rope key", heads: kvHeads, stride: 2 * kvHeads * headDim },
  ].map(({ name, heads: count, stride }) => {
    const variant: RopeVariant = { heads: count, headDim, rotary, stride };
    return {
      op: "rope",
      name,
      shape: `${rows} x ${count} x ${rotary}`,
      dtype: "f32",
      output: "x",
      buffers: () => ({
        x: floats(seededRandom(CASE_SEED), rows * stride),
        turns: Uint32Array.from({ length: rows }, (_, row) => row % tokens),
        table: Float32Array.from({ length: tokens * rotary }, (_, i) => (i % 2 === 0 ? Math.cos(i) : Math.sin(i - 1))),
      }),
      variants: [
        {
          variant: "one lane a pair",
          kernel: rope(variant),
          rows,
          own: () => ({}),
          sample: (buffers) => sampleAll((all) => ropeTwin(variant, all, rows), buffers, "x"),
        },
      ],
    };
  });
}

function gatherBenchCase({ spec }: ModelFiles, { batch, tokens }: BatchShape): BenchCase {
  const d = spec.config.hiddenSize;
  return {
    op: "rowGather",
    name: "rowGather",
    shape: `${batch} of ${batch * tokens} x ${d}`,
    dtype: "f32",
    output: "out",
    buffers: () => ({
      x: floats(seededRandom(CASE_SEED), batch * tokens * d),
      index: Uint32Array.from({ length: batch }, (_, i) => (i + 1) * tokens - 1),
      out: new Float32Array(batch * d),
    }),
    variants: [
      {
        variant: "one lane an element",
        kernel: rowGather({ d }),
        rows: batch,
        own: () => ({}),
        sample: (buffers) => sampleAll((all) => rowGatherTwin({ d }, all, batch), buffers, "out"),
      },
    ],
  };
}

/** Attention over sequences of equal length, in each of the model's windows. */
export function attentionBenchCases(
  { spec }: ModelFiles,
  target: Target,
  shape: BatchShape,
  choice: VariantChoice,
): BenchCase[] {
  const { heads, kvHeads, headDim, softcap } = spec.config;
  const { batch, tokens } = shape;
  const rows = batch * tokens;
  const windows = [...new Set(spec.blocks.map(({ window }) => window ?? 0))];
  const standard = attentionTile(target, headDim);
  const tilings = choice === "all" ? attentionChoices(target, headDim) : [standard];
  return windows.map((window) => {
    const common = { heads, kvHeads, headDim, scale: spec.blocks[0].attentionScale, softcap: softcap ?? 0, window };
    const sequences = Array.from({ length: batch }, () => ({ sequences: [new Int32Array(tokens)] }));
    const [{ spans }] = packBatches(sequences, { budget: batch * Math.max(8, tokens) });
    return {
      op: "attention",
      name: window > 0 ? `attention, window ${window}` : "attention",
      shape: `${batch} x ${tokens}, ${heads}/${kvHeads} heads of ${headDim}`,
      dtype: "f32",
      extent: attentionExtent(spans, attentionTiles(spans, rows, standard.tileRows), window),
      output: "out",
      buffers() {
        const random = seededRandom(CASE_SEED + headDim);
        return {
          q: floats(random, rows * heads * headDim),
          kv: floats(random, rows * 2 * kvHeads * headDim),
          spans,
          out: new Float32Array(rows * heads * headDim),
        };
      },
      variants: tilings.map((tiling) => {
        const variant: AttentionVariant = { ...common, ...tiling };
        const tiles = attentionTiles(spans, rows, tiling.tileRows);
        return {
          variant: `${tiling.tileRows} rows ${tiling.subgroup > 0 ? `subgroup ${tiling.subgroup}` : "plain"}${tiling.textures ? " textures" : ""}`,
          kernel: attention(variant),
          rows: tiles.length / 2,
          own: (shared) => ({ tiles, ...(tiling.textures ? { q: shared["q"], kv: shared["kv"] } : {}) }),
          sample: (buffers) => sampleAttention(variant, buffers, CASE_SEED),
        };
      }),
    };
  });
}

/** The kernels of a model's blocks on a batch of equal sequences. */
export async function modelBenchCases(
  files: ModelFiles,
  target: Target,
  platform: Platform,
  shape: BatchShape,
  choice: VariantChoice,
): Promise<BenchCase[]> {
  const rows = shape.batch * shape.tokens;
  // As the forward pass cuts them: what takes long goes in several dispatches.
  const products = Math.min(rows, rowsPerDispatch(files.spec.config, DISPATCH_FLOPS));
  return [
    ...(await matmulBenchCases(files, target, platform, products, choice)),
    ...attentionBenchCases(files, target, shape, choice),
    ...normBenchCases(files, target, rows, choice),
    ...ropeBenchCases(files, shape),
    gatherBenchCase(files, shape),
  ];
}

/** Ops that no block has: the list of test cases holds them. */
export function otherOps(target: Target): string[] {
  return [...new Set(kernelCases(target).map(({ kernel }) => kernel.name))].filter((op) => !BLOCK_OPS.includes(op));
}

/** Ops of a model's blocks. */
export const BLOCK_OPS: readonly string[] = ["matmul", "attention", "norm", "rope", "rowGather"];

/** The largest test case of an op, in its own shape. */
export function otherBenchCase(target: Target, op: string): BenchCase {
  const size = (buffers: TwinBuffers) => Object.values(buffers).reduce((sum, { byteLength }) => sum + byteLength, 0);
  const cases = kernelCases(target).filter(({ kernel }) => kernel.name === op);
  const [first, ...others] = cases.map((each) => ({ each, bytes: size(each.buffers()) }));
  const { each } = others.reduce((best, next) => (next.bytes > best.bytes ? next : best), first);
  const output = each.kernel.bindings.find(({ access }) => access === "read_write")?.name ?? "out";
  return {
    op,
    name: op,
    shape: each.title,
    dtype: "f32",
    output,
    buffers: each.buffers,
    variants: [
      {
        variant: "default",
        kernel: each.kernel,
        rows: each.rows,
        offset: each.offset,
        own: () => ({}),
        sample: (buffers) => sampleAll(each.twin, buffers, output),
      },
    ],
  };
}
