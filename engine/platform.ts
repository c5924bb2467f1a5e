/** What a plan depends on of the machine: the adapter's limits, and which kernels it runs. */

import { type AttentionTile, attentionTile } from "../kernels/attention.ts";
import type { Target } from "../kernels/kernel.ts";
import { type MatmulShape, type MatmulTile, matmulTile } from "../kernels/matmul.ts";
import type { DeviceLimits } from "./device-info.ts";
import type { Engine } from "./model.ts";
import { tileKey } from "./tiles.ts";

export interface Platform {
  readonly limits: DeviceLimits;
  /** The matmul of a weight: it decides how the weight is held. */
  readonly tile: (shape: MatmulShape) => MatmulTile;
  /** The attention of heads of a size: it decides where keys and values lie. */
  readonly attention: (headDim: number) => AttentionTile;
}

/** The platform of adapters with these limits, and the variants that such a target gets without tuning. */
export function defaultPlatform(limits: DeviceLimits, target: Target): Platform {
  return {
    limits,
    tile: (shape) => matmulTile(target, shape),
    attention: (headDim) => attentionTile(target, headDim),
  };
}

/** The platform of an engine: of shapes that its table has, the variants that stand there. */
export function platformOf({ device, target, tiles }: Pick<Engine, "device" | "target" | "tiles">): Platform {
  const platform = defaultPlatform(device.info.limits, target);
  return { ...platform, tile: (shape) => tiles?.get(tileKey(shape)) ?? platform.tile(shape) };
}
