/// <reference types="@webgpu/types" />
/**
 * The GPU device: the one place that asks for limits and features, counts live bytes, and latches what goes wrong in
 * the background (validation errors, out-of-memory, device loss) into an error of the next call.
 */
import { StratumError } from "../errors.ts";
import { TEXEL_BYTES } from "../kernels/texture.ts";
import { type AdapterChoice, type AdapterTrial, adapterName, openAdapter } from "./adapter.ts";
import { type ProfileClock, Profiler } from "./profiler.ts";

/** The limits that the kernels and the planner look at; each is asked for at the adapter's own value. */
const LIMITS = [
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
const FEATURES = ["subgroups", "shader-f16", "timestamp-query"] as const;
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

/** Memory that its device counts. */
interface DeviceMemory {
  readonly label: string;
  /** Bytes, a multiple of 4. */
  readonly size: number;
  destroy(): void;
}

export interface DeviceBuffer extends DeviceMemory {
  readonly gpu: GPUBuffer;
}

/** A texture of four words a texel, of floats or of words of any meaning. */
export interface DeviceTexture extends DeviceMemory {
  readonly texture: GPUTexture;
  readonly view: GPUTextureView;
  readonly width: number;
  readonly height: number;
}

export type BufferUse = "storage" | "uniform" | "readback";
export type TextureFormat = "rgba32float" | "rgba32uint";

const STORAGE = 0x80 | 0x04 | 0x08; // STORAGE | COPY_SRC | COPY_DST
const UNIFORM = 0x40 | 0x08; // UNIFORM | COPY_DST
const READBACK = 0x01 | 0x08; // MAP_READ | COPY_DST
const TEXTURE = 0x04 | 0x02; // TEXTURE_BINDING | COPY_DST
const USAGE: Readonly<Record<BufferUse, number>> = { storage: STORAGE, uniform: UNIFORM, readback: READBACK };

/** Owns a GPU device and every buffer and texture made from it. */
export class Device {
  readonly gpu: GPUDevice;
  readonly info: DeviceInfo;
  /** What measures it, from its opening on; null: nothing does. */
  readonly profiler: Profiler | null;
  readonly #instance: GPU;
  readonly #live = new Set<DeviceMemory>();
  #failure: StratumError | undefined;
  #disposed = false;

  constructor(gpu: GPUDevice, instance: GPU, info: DeviceInfo, clock?: ProfileClock) {
    this.gpu = gpu;
    this.#instance = instance;
    this.info = info;
    this.profiler = clock === undefined ? null : new Profiler(gpu, clock);
    gpu.addEventListener("uncapturederror", (event) => {
      // Dawn prints what nobody claims.
      event.preventDefault();
      this.#latch(fromGpuError((event as GPUUncapturedErrorEvent).error));
    });
    gpu.lost.then((lost) => {
      if (this.#disposed) return;
      this.#latch(
        new StratumError(
          "device/lost",
          `the GPU device was lost (${lost.reason || "unknown"}): ${lost.message}`,
          "run the command again; if it recurs, lower --batch-tokens, or use --adapter embedded",
        ),
      );
    });
  }

  #latch(failure: StratumError): void {
    this.#failure ??= failure;
  }

  /** Throws what went wrong since the last call, if anything did. The failure stays: a broken device gives no more results. */
  check(): void {
    if (this.#disposed) throw new StratumError("device/disposed", "the device was disposed", "create a new engine");
    if (this.#failure) throw this.#failure;
  }

  /** Bytes of all live buffers and textures. */
  get liveBytes(): number {
    let sum = 0;
    for (const { size } of this.#live) sum += size;
    return sum;
  }

  /** The live buffers and textures, in the order of their making. */
  get liveBuffers(): readonly Pick<DeviceMemory, "label" | "size">[] {
    return [...this.#live];
  }

  /**
   * Makes a buffer of `size` bytes (rounded up to 4, at least 4).
   * @throws {StratumError} `memory/buffer-limit` beyond the adapter's limit
   */
  createBuffer(label: string, size: number, use: BufferUse): DeviceBuffer {
    this.check();
    const bytes = bufferBytes(size);
    const { maxBufferSize, maxStorageBufferBindingSize } = this.info.limits;
    const limit = use === "storage" ? Math.min(maxBufferSize, maxStorageBufferBindingSize) : maxBufferSize;
    if (bytes > limit) {
      throw new StratumError(
        "memory/buffer-limit",
        `buffer '${label}' needs ${bytes} bytes; the adapter ${this.info.name} binds at most ${limit}`,
        "lower --batch-tokens, or use an adapter with a larger maxStorageBufferBindingSize (stratum doctor shows it)",
      );
    }
    const gpu = this.gpu.createBuffer({ label, size: bytes, usage: USAGE[use] });
    const buffer: DeviceBuffer = {
      label,
      size: bytes,
      gpu,
      destroy: () => {
        if (this.#live.delete(buffer)) gpu.destroy();
      },
    };
    this.#live.add(buffer);
    return buffer;
  }

  /**
   * Makes a texture of `width` x `height` texels of four words.
   * @throws {StratumError} `memory/texture-limit` beyond the adapter's limit
   */
  createTexture(label: string, width: number, height: number, format: TextureFormat): DeviceTexture {
    this.check();
    const limit = this.info.limits.maxTextureDimension2D;
    if (width > limit || height > limit) {
      throw new StratumError(
        "memory/texture-limit",
        `texture '${label}' needs ${width} x ${height} texels; the adapter ${this.info.name} has at most ${limit} in a dimension`,
        "lower --batch-tokens, or use another adapter (stratum doctor shows their limits)",
      );
    }
    const texture = this.gpu.createTexture({ label, size: [width, height], format, usage: TEXTURE });
    const made: DeviceTexture = {
      label,
      size: width * height * TEXEL_BYTES,
      texture,
      view: texture.createView(),
      width,
      height,
      destroy: () => {
        if (this.#live.delete(made)) texture.destroy();
      },
    };
    this.#live.add(made);
    return made;
  }

  /** Runs a step of the host; where the device is profiled, as a span of that name. */
  span<T>(name: string, step: () => T): T {
    return this.profiler === null ? step() : this.profiler.span(name, step);
  }

  /** Writes bytes at an offset (both multiples of 4). */
  write(buffer: DeviceBuffer, data: ArrayBufferView<ArrayBuffer>, offset = 0): void {
    this.check();
    this.span("upload", () =>
      this.gpu.queue.writeBuffer(buffer.gpu, offset, data.buffer, data.byteOffset, data.byteLength),
    );
  }

  /** Writes whole rows of texels from row `row` on. */
  writeTexture({ texture, width }: DeviceTexture, data: ArrayBufferView<ArrayBuffer>, row = 0): void {
    this.check();
    const bytesPerRow = width * TEXEL_BYTES;
    const layout = { offset: data.byteOffset, bytesPerRow };
    const size = [width, data.byteLength / bytesPerRow];
    this.span("upload", () => this.gpu.queue.writeTexture({ texture, origin: [0, row] }, data.buffer, layout, size));
  }

  submit(encoder: GPUCommandEncoder): void {
    this.check();
    this.gpu.queue.submit([encoder.finish()]);
  }

  /** Waits until everything submitted is done. */
  async idle(): Promise<void> {
    await this.span("wait", () => this.gpu.queue.onSubmittedWorkDone());
    this.check();
  }

  /**
   * Copies the first `size` bytes of a storage buffer to the host through `staging` (a `readback` buffer of at least that size).
   * @throws {StratumError} what the device latched meanwhile
   */
  async read(source: DeviceBuffer, size: number, staging: DeviceBuffer): Promise<ArrayBuffer> {
    this.check();
    if (size === 0) return new ArrayBuffer(0);
    const encoder = this.gpu.createCommandEncoder();
    encoder.copyBufferToBuffer(source.gpu, 0, staging.gpu, 0, size);
    this.submit(encoder);
    try {
      await this.span("read back", () => staging.gpu.mapAsync(0x01, 0, size));
    } catch (cause) {
      await this.gpu.queue.onSubmittedWorkDone().catch(() => undefined);
      this.check();
      throw new StratumError(
        "device/read-failed",
        `reading '${source.label}' back failed`,
        "run the command again; see `stratum doctor`",
        cause,
      );
    }
    // A copy: a mapped range dies with unmap(). Errors of the work that fed the copy have arrived by now.
    const copy = staging.gpu.getMappedRange(0, size).slice(0);
    staging.gpu.unmap();
    this.check();
    return copy;
  }

  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.profiler?.[Symbol.dispose]();
    for (const memory of this.#live) memory.destroy();
    this.gpu.destroy();
    void this.#instance;
  }
}

/** The size that a buffer of `size` bytes takes. */
export function bufferBytes(size: number): number {
  return Math.max(4, Math.ceil(size / 4) * 4);
}

function fromGpuError(error: GPUError): StratumError {
  const first = error.message.split("\n")[0] ?? "";
  if (error.constructor.name === "GPUOutOfMemoryError") {
    return new StratumError(
      "memory/out-of-memory",
      `the GPU is out of memory: ${first}`,
      "lower --batch-tokens, or choose a smaller --layer or model",
    );
  }
  return new StratumError(
    "device/validation",
    `the GPU refused a command: ${first}`,
    "this is a defect of Stratum: please report it with the output of `stratum doctor --json`",
  );
}

/** Whether a device is profiled, and by which clock: `auto` takes the GPU's where the adapter has timestamps. */
export type ProfileChoice = "off" | "auto" | ProfileClock;

/**
 * Opens the device of the adapter that `choice` names.
 * @param profile default `off`
 * @throws {StratumError} `adapter/none`, `device/request-failed`
 */
export async function openDevice(choice: AdapterChoice = "auto", profile: ProfileChoice = "off"): Promise<Device> {
  const { adapter, instance, source, trials } = await openAdapter(choice, profile !== "off");
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
  let gpu: GPUDevice;
  try {
    gpu = await adapter.requestDevice({
      requiredFeatures: features.filter(
        (feature) =>
          feature === "subgroups" || feature === "shader-f16" || (feature === "timestamp-query" && clock === "gpu"),
      ),
      requiredLimits: limits,
    });
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
    identity: [info.vendor, info.architecture, info.device, info.description].join(", "),
    vendor: info.vendor,
    architecture: info.architecture,
    source,
    software: source === "embedded" || info.isFallbackAdapter,
    trials,
    features,
    limits,
    subgroupSize: fixed ? (info.subgroupMinSize ?? 0) : 0,
  };
  return new Device(gpu, instance, told, clock === "off" ? undefined : clock);
}
