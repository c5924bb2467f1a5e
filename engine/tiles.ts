/** Which matmul variant serves which shape: the table that a tuner makes, and the record of what a model runs on. */
import { createHash } from "node:crypto";
import { StratumError } from "../errors.ts";
import { kernelKey, type Target, type WeightType } from "../kernels/kernel.ts";
import { type MatmulShape, type MatmulTile, matmul, matmulChoices } from "../kernels/matmul.ts";
import { normDefaults } from "../kernels/norm.ts";
import { MATRIX_ROLES } from "./decoder.ts";
import type { PlannedBlock, WeightPlan } from "./weight-plan.ts";

/** Variants by {@link tileKey}; a shape that is not in it has the default. */
export type TileTable = ReadonlyMap<string, MatmulTile>;

/** A shape in words, `KxN type`, and `glu` where gate and up are multiplied at once. How rows are stored does not enter. */
export function tileKey({ k, n, weight, epilogue }: MatmulShape): string {
  return `${k}x${n} ${weight}${epilogue === "glu" ? " glu" : ""}`;
}

const WEIGHTS: readonly WeightType[] = ["f32", "bf16", "f16", "int8", "int4"];

/** The shape of a {@link tileKey}, or null for another text. */
export function shapeOfKey(key: string): MatmulShape | null {
  const match = /^([1-9]\d*)x([1-9]\d*) (\w+)( glu)?$/.exec(key);
  const weight = WEIGHTS.find((each) => each === match?.[3]);
  if (match === null || weight === undefined) return null;
  return { k: Number(match[1]), n: Number(match[2]), weight, epilogue: match[4] === undefined ? "store" : "glu" };
}

/** A variant in words. */
export function tileText({ tileRows, tileCols, lanes, subgroup, textures, staged }: MatmulTile): string {
  const lanesText = `${lanes} lanes ${subgroup > 0 ? `subgroup ${subgroup}` : "plain"}`;
  return `${tileRows}x${tileCols} ${lanesText}${textures ? " textures" : ""}${staged ? " staged" : ""}`;
}

/** Whether a target runs a variant for a shape. */
export function allowsTile(target: Target, shape: MatmulShape, tile: MatmulTile): boolean {
  const text = tileText(tile);
  return matmulChoices(target, shape).some((choice) => tileText(choice) === text);
}

/** @throws {StratumError} `kernel/tiles` for a variant that the target does not run, or a key that is no shape's */
export function checkTiles(target: Target, tiles: TileTable): void {
  for (const [key, tile] of tiles) {
    const shape = shapeOfKey(key);
    if (shape !== null && allowsTile(target, shape, tile)) continue;
    throw new StratumError(
      "kernel/tiles",
      shape === null
        ? `'${key}' in the table of matmul variants is no shape`
        : `the adapter does not run the matmul variant ${tileText(tile)} for ${key}`,
      "leave the table out, or tune on this adapter",
    );
  }
}

/** A shape that a model multiplies, and the share of its work that goes there. */
export interface PlannedShape {
  readonly shape: MatmulShape;
  /** Multiply-adds of a row, in all blocks. */
  readonly work: number;
  /** Columns of its largest part: what a dispatch computes. */
  readonly columns: number;
}

/** The products of blocks: each role's matrix with its shape. `up` of a gated block is a part of `gate`'s product. */
function productsOf({ matrices }: PlannedBlock) {
  return MATRIX_ROLES.flatMap((role) => {
    const matrix = matrices[role];
    if (matrix === null || (role === "up" && matrices.gate !== null)) return [];
    const { spec, type, tile, parts } = matrix;
    const shape: MatmulShape = { k: spec.k, n: spec.n, weight: type, epilogue: role === "gate" ? "glu" : "store" };
    return [{ shape, tile, columns: parts[0].n }];
  });
}

/** The distinct shapes of a plan, those with the most work first. */
export function plannedShapes({ blocks }: Pick<WeightPlan, "blocks">): PlannedShape[] {
  const found = new Map<string, PlannedShape>();
  for (const { shape, columns } of blocks.flatMap(productsOf)) {
    const work = shape.k * shape.n * (shape.epilogue === "glu" ? 2 : 1);
    const key = tileKey(shape);
    found.set(key, { shape, columns, work: work + (found.get(key)?.work ?? 0) });
  }
  return [...found.values()].sort((a, b) => b.work - a.work || (tileKey(a.shape) < tileKey(b.shape) ? -1 : 1));
}

/** The variants that a model's states come from. States of other variants agree within rounding, not in every bit. */
export interface KernelsRecord {
  /** 16 hexadecimal digits; equal only for equal variants of equal text. */
  readonly id: string;
  /** Of the matmul's text: {@link matmulVersion}. */
  readonly text: string;
  /** In words, by kernel and shape, sorted. */
  readonly variants: Readonly<Record<string, string>>;
}

/** The record of a plan on a target. */
export function kernelsRecord(
  target: Target,
  { blocks, attention }: Pick<WeightPlan, "blocks" | "attention">,
): KernelsRecord {
  const variants = new Map([
    ["attention", kernelKey("", attention)],
    ["norm", kernelKey("", normDefaults(target))],
  ]);
  for (const { shape, tile } of blocks.flatMap(productsOf)) variants.set(`matmul ${tileKey(shape)}`, tileText(tile));
  const sorted = [...variants].sort(([a], [b]) => (a < b ? -1 : 1));
  const text = matmulVersion();
  return { id: shortHash(JSON.stringify([text, sorted])), text, variants: Object.fromEntries(sorted) };
}

/** A hash of the WGSL text of some fixed variants: another text, and what was measured of the old one means nothing. */
export function matmulVersion(): string {
  knownVersion ??= shortHash(fixedTexts().join("\n"));
  return knownVersion;
}

let knownVersion: string | undefined;

const SHAPE = { k: 96, n: 160, weight: "f32", epilogue: "store" } as const satisfies MatmulShape;
const SAMPLE = { ...SHAPE, bias: true, outStride: 160, outOffset: 0 } as const;

function fixedTexts(): string[] {
  const tile = { tileRows: 4, tileCols: 2, lanes: 32 };
  const tiles: readonly MatmulTile[] = [
    ...[true, false].flatMap((textures) => [8, 0].map((subgroup) => ({ ...tile, subgroup, textures }))),
    ...matmulChoices({ subgroupSize: 0, textures: false, staged: true }, SHAPE).slice(0, 1),
  ];
  return WEIGHTS.flatMap((weight) =>
    (["store", "glu"] as const).flatMap((epilogue) =>
      tiles.map((each) => matmul({ ...SAMPLE, weight, epilogue, ...each }).wgsl),
    ),
  );
}

function shortHash(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, 16);
}
