/** What a device says of itself: its adapter, and what the kernels and the planner may ask of it. */
import type { AdapterTrial } from "./adapter.ts";

/** The limits that the kernels and the planner look at; each is asked for at the adapter's own value. */
export const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupsPerDimension",
  "maxTextureDimension2D",
] as const;

export type DeviceLimits = Readonly<Record<(typeof LIMITS)[number], number>>;

/** Features that are told of; the kernels use the first, and `bench peak` the second. */
export const FEATURES = ["subgroups", "shader-f16", "timestamp-query"] as const;
export type DeviceFeature = (typeof FEATURES)[number];

export interface DeviceInfo {
  /** The adapter's own name, e.g. `SwiftShader driver 5.0.0`. */
  readonly name: string;
  /** Everything that the driver says of itself and of what it drives: another driver or its next version says something else. */
  readonly identity: string;
  readonly vendor: string;
  readonly architecture: string;
  readonly source: "system" | "embedded";
  /** True for a software adapter. */
  readonly software: boolean;
  readonly trials: readonly AdapterTrial[];
  readonly features: readonly DeviceFeature[];
  readonly limits: DeviceLimits;
  /** Lanes a subgroup, 0 where the adapter has no subgroups or does not fix their size. */
  readonly subgroupSize: number;
}
