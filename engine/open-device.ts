/// <reference types="@webgpu/types" />
/** Opens a device: the one place that asks for limits and features. */
import { StratumError } from "../errors.ts";
import { type AdapterChoice, adapterName, openAdapter } from "./adapter.ts";
import { Device } from "./device.ts";
import { type DeviceInfo, type DeviceLimits, FEATURES, LIMITS } from "./device-info.ts";
import { parseFaults } from "./faults.ts";
import type { ProfileClock } from "./profiler.ts";
import { patienceOf } from "./watchdog.ts";

/** Whether a device is profiled, and by which clock: `auto` takes the GPU's where the adapter has timestamps. */
export type ProfileChoice = "off" | "auto" | ProfileClock;

export interface OpenOptions {
  /** Default `off`. */
  readonly profile?: ProfileChoice | undefined;
  /** What is to go wrong, as {@link parseFaults} reads it; default STRATUM_FAULTS, which nobody sets but for tests. */
  readonly faults?: string | undefined;
  /** Told of what was overcome, in a line for people. */
  readonly onNote?: ((text: string) => void) | undefined;
}

/**
 * Opens the device of the adapter that `choice` names.
 * @throws {StratumError} `adapter/none`, `device/request-failed`, `usage/...`
 */
export async function openDevice(choice: AdapterChoice = "auto", options: OpenOptions = {}): Promise<Device> {
  const { profile = "off", faults = process.env["STRATUM_FAULTS"], onNote } = options;
  const planned = faults === undefined || faults === "" ? undefined : parseFaults(faults);
  const patience = patienceOf(process.env["STRATUM_GPU_TIMEOUT"]);
  const { adapter, again, instance, source, trials } = await openAdapter(choice, profile !== "off");
  const features = FEATURES.filter((feature) => adapter.features.has(feature));
  const limits = Object.fromEntries(LIMITS.map((limit) => [limit, adapter.limits[limit]])) as DeviceLimits;
  const { info } = adapter;
  // Kernels that broadcast within a subgroup are written for one size; an adapter that may choose another gets the others.
  const fixed = features.includes("subgroups") && info.subgroupMinSize === info.subgroupMaxSize;
  const timed = features.includes("timestamp-query");
  if (profile === "gpu" && !timed) {
    throw new StratumError(
      "usage/profile-clock",
      `${adapterName(info)} has no timestamps`,
      "profile by the clock 'host', or 'auto'",
    );
  }
  const clock = profile === "auto" ? (timed ? "gpu" : "host") : profile;
  const request = (from: GPUAdapter) =>
    from.requestDevice({
      requiredFeatures: features.filter(
        (feature) =>
          feature === "subgroups" || feature === "shader-f16" || (feature === "timestamp-query" && clock === "gpu"),
      ),
      requiredLimits: limits,
    });
  let gpu: GPUDevice;
  try {
    gpu = await request(adapter);
  } catch (cause) {
    throw new StratumError(
      "device/request-failed",
      `${adapterName(info)} gave no device`,
      "see `stratum doctor`; try --adapter embedded",
      cause,
    );
  }
  const told: DeviceInfo = {
    name: adapterName(info),
    identity: identityOf(info),
    vendor: info.vendor,
    architecture: info.architecture,
    source,
    software: source === "embedded" || info.isFallbackAdapter,
    trials,
    features,
    limits,
    subgroupSize: fixed ? (info.subgroupMinSize ?? 0) : 0,
  };
  return new Device(gpu, instance, told, {
    clock: clock === "off" ? undefined : clock,
    async again() {
      const found = await again();
      // Another adapter's states are others in their last bits.
      if (identityOf(found.info) !== told.identity) throw new Error(`there is ${adapterName(found.info)} in its place`);
      return await request(found);
    },
    ...{ faults: planned, patience, onNote },
  });
}

function identityOf({ vendor, architecture, device, description }: GPUAdapterInfo): string {
  return [vendor, architecture, device, description].join(", ");
}
