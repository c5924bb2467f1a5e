/// <reference types="@webgpu/types" />
/**
 * The GPU device: counts live bytes, latches what goes wrong in the background (validation errors, out-of-memory, device
 * loss) into an error of the next call, and takes another GPU device in the place of one that is lost.
 */
import { messageOf, StratumError } from "../errors.ts";
import { TEXEL_BYTES } from "../kernels/texture.ts";
import { fromGpuError, lostError, outOfMemory } from "./device-errors.ts";
import type { DeviceInfo } from "./device-info.ts";
import {
  type BufferUse,
  bufferBytes,
  checkBufferSize,
  checkTextureSize,
  type DeviceBuffer,
  type DeviceMemory,
  type DeviceTexture,
  TEXTURE_USAGE,
  type TextureFormat,
  USAGE,
} from "./device-memory.ts";
import type { FaultKind, Faults } from "./faults.ts";
import { napping } from "./nap.ts";
import { type ProfileClock, Profiler } from "./profiler.ts";
import { Watchdog } from "./watchdog.ts";

/** How a device is kept. */
export interface DeviceOptions {
  readonly clock?: ProfileClock | undefined;
  /** Asks the same adapter for another GPU device like the first; without, a lost one stays lost. */
  readonly again?: (() => Promise<GPUDevice>) | undefined;
  readonly faults?: Faults | undefined;
  /** Seconds that anything may take on the GPU; default `PATIENCE_SECONDS`. */
  readonly patience?: number | undefined;
  /** Told of what was overcome, in a line for people. */
  readonly onNote?: ((text: string) => void) | undefined;
}

/** Pauses before the tries to open a lost device again: a driver that starts anew takes a while. */
const RENEWAL_PAUSES_MS = [0, 1000, 5000];

/** Owns a GPU device and every buffer and texture made from it. */
export class Device {
  readonly info: DeviceInfo;
  /** What measures it, from its opening on; null: nothing does. */
  readonly profiler: Profiler | null;
  readonly #instance: GPU;
  readonly #options: DeviceOptions;
  readonly #live = new Set<DeviceMemory>();
  #gpu: GPUDevice;
  #watchdog: Watchdog;
  #generation = 1;
  #losses = 0;
  #renewing: Promise<void> | undefined;
  /** Destroyed by ourselves, so that another takes its place. */
  #givenUp: GPUDevice | undefined;
  #failure: StratumError | undefined;
  /** Buffers that a fault has found no memory for since {@link allocating} began; null outside of it. */
  #refused: string[] | null = null;
  #disposed = false;
  #freeing: Promise<void> | undefined;

  constructor(gpu: GPUDevice, instance: GPU, info: DeviceInfo, options: DeviceOptions = {}) {
    this.#gpu = gpu;
    this.#instance = instance;
    this.info = info;
    this.#options = options;
    this.#watchdog = this.#newWatchdog();
    this.profiler = options.clock === undefined ? null : new Profiler(gpu, options.clock);
    this.#listen(gpu);
  }

  #newWatchdog(): Watchdog {
    return new Watchdog({ software: this.info.software, seconds: this.#options.patience });
  }

  /** Latches what goes wrong with a GPU device, for as long as it is this one's. */
  #listen(gpu: GPUDevice): void {
    gpu.addEventListener("uncapturederror", (event) => {
      // Dawn prints what nobody claims.
      event.preventDefault();
      if (gpu === this.#gpu) this.#latch(fromGpuError((event as GPUUncapturedErrorEvent).error));
    });
    gpu.lost.then((lost) => {
      if (this.#disposed || gpu !== this.#gpu || gpu === this.#givenUp) return;
      this.#losses++;
      this.#latch(lostError(`the GPU device was lost (${lost.reason || "unknown"}): ${lost.message}`));
    });
  }

  #latch(failure: StratumError): void {
    this.#failure ??= failure;
  }

  /** The GPU device that serves now. */
  get gpu(): GPUDevice {
    return this.#gpu;
  }

  /** Counts the GPU devices that have served: what was made from an earlier one is gone. */
  get generation(): number {
    return this.#generation;
  }

  /** Times that the GPU device was lost. */
  get losses(): number {
    return this.#losses;
  }

  /**
   * What a dispatch and a command buffer may hold, as a share of the default: a loss may be a driver's watchdog that ended
   * work which took too long, so that each loss quarters it.
   */
  get pace(): number {
    return Math.max(MIN_PACE, 4 ** -this.#losses);
  }

  /** What went wrong that only {@link renew} mends, if anything did. */
  get failure(): StratumError | undefined {
    return this.#failure;
  }

  /** Throws what went wrong since the last call, if anything did. The failure stays: a broken device gives no more results. */
  check(): void {
    if (this.#disposed) throw new StratumError("device/disposed", "the device was disposed", "create a new engine");
    if (this.#failure) throw this.#failure;
  }

  /** Throws what went wrong, and `device/lost` for what was made in another generation. */
  checkOwn({ generation }: { readonly generation: number }): void {
    this.check();
    if (generation !== this.#generation) throw lostError("what was made on a GPU device is gone with it");
  }

  /** Says a line to whoever opened the device. */
  note(text: string): void {
    this.#options.onNote?.(text);
  }

  /**
   * Gives up a broken GPU device and takes another of the same adapter: all memory and all pipelines are gone. It does
   * nothing where the device of that generation has been renewed already; calls at the same time share one renewal.
   * @param generation of the device that broke
   * @throws {StratumError} `device/lost` where the adapter gives none; `device/stalled` for one that hangs, which cannot
   *   be given up
   */
  async renew(generation: number): Promise<void> {
    if (generation !== this.#generation) return;
    this.#renewing ??= this.#renew().finally(() => {
      this.#renewing = undefined;
    });
    await this.#renewing;
  }

  async #renew(): Promise<void> {
    const { again } = this.#options;
    if (this.#disposed || this.#watchdog.stalled !== undefined || again === undefined) this.check();
    if (again === undefined) return;
    this.#live.clear();
    this.#givenUp = this.#gpu;
    this.#gpu.destroy();
    let why: unknown;
    for (const pause of RENEWAL_PAUSES_MS) {
      if (pause > 0) await new Promise((resolve) => setTimeout(resolve, pause));
      try {
        const gpu = await again();
        if (this.#disposed) {
          gpu.destroy();
          this.check();
        }
        this.#gpu = gpu;
        this.#generation++;
        this.#failure = undefined;
        this.#watchdog = this.#newWatchdog();
        this.profiler?.moveTo(gpu);
        this.#listen(gpu);
        return;
      } catch (cause) {
        if (this.#disposed) throw cause;
        why = cause;
      }
    }
    const { message } = this.#failure ?? lostError("the GPU device was given up");
    throw lostError(`${message}; ${this.info.name} gives no other: ${messageOf(why)}`, why);
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
    checkBufferSize(this.info, label, bytes, use);
    const gpu = this.#gpu.createBuffer({ label, size: bytes, usage: USAGE[use] });
    const buffer: DeviceBuffer = {
      label,
      size: bytes,
      generation: this.#generation,
      gpu,
      destroy: () => this.#destroy(buffer, gpu),
    };
    this.#own(buffer);
    return buffer;
  }

  /**
   * Makes a texture of `width` x `height` texels of four words.
   * @throws {StratumError} `memory/texture-limit` beyond the adapter's limit
   */
  createTexture(label: string, width: number, height: number, format: TextureFormat): DeviceTexture {
    this.check();
    checkTextureSize(this.info, label, width, height);
    const texture = this.#gpu.createTexture({ label, size: [width, height], format, usage: TEXTURE_USAGE });
    const made: DeviceTexture = {
      label,
      size: width * height * TEXEL_BYTES,
      generation: this.#generation,
      texture,
      view: texture.createView(),
      width,
      height,
      destroy: () => this.#destroy(made, texture),
    };
    this.#own(made);
    return made;
  }

  #own(memory: DeviceMemory): void {
    this.#live.add(memory);
    if (this.#options.faults?.allocation() !== false) return;
    if (this.#refused === null) this.#latch(outOfMemory(`'${memory.label}': a fault on purpose`));
    else this.#refused.push(memory.label);
  }

  /**
   * Makes memory; where the GPU has not so much, the device goes on as before. What was made then is the caller's to destroy.
   * @throws {StratumError} `memory/out-of-memory`, and what `make` throws
   */
  async allocating(make: () => void): Promise<void> {
    this.check();
    const gpu = this.#gpu;
    gpu.pushErrorScope("out-of-memory");
    this.#refused = [];
    let refused: readonly string[] = [];
    let scope: Promise<GPUError | null>;
    try {
      make();
    } finally {
      refused = this.#refused;
      this.#refused = null;
      scope = gpu.popErrorScope();
      // Where `make` has thrown, nobody asks any more; a lost device answers by its loss.
      scope.catch(() => undefined);
    }
    const error = await scope.catch(() => null);
    this.check();
    if (error !== null) throw fromGpuError(error);
    if (refused.length > 0) throw outOfMemory(`'${refused[0]}': a fault on purpose`);
  }

  #destroy(memory: DeviceMemory, gpu: GPUBuffer | GPUTexture): void {
    if (!this.#live.delete(memory)) return;
    gpu.destroy();
    void this.freed();
  }

  /**
   * Ends when what was destroyed in this turn of the event loop is given back. Dawn keeps the memory until a submission
   * has ended that came after its destruction: without one, another buffer would lie beside it.
   */
  freed(): Promise<void> {
    this.#freeing ??= this.#free(this.#gpu);
    return this.#freeing;
  }

  async #free(gpu: GPUDevice): Promise<void> {
    // What else is destroyed in this turn goes with it.
    await undefined;
    this.#freeing = undefined;
    if (this.#disposed || gpu !== this.#gpu || this.#failure !== undefined) return;
    gpu.queue.submit([]);
    // A device that is lost meanwhile has given everything back; one that hangs is for those who wait for results to tell.
    await napping(gpu.queue.onSubmittedWorkDone()).catch(() => undefined);
  }

  /** Runs a step of the host; where the device is profiled, as a span of that name. */
  span<T>(name: string, step: () => T): T {
    return this.profiler === null ? step() : this.profiler.span(name, step);
  }

  /** Writes bytes at an offset (both multiples of 4). */
  write(buffer: DeviceBuffer, data: ArrayBufferView<ArrayBuffer>, offset = 0): void {
    this.checkOwn(buffer);
    this.span("upload", () =>
      this.#gpu.queue.writeBuffer(buffer.gpu, offset, data.buffer, data.byteOffset, data.byteLength),
    );
  }

  /** Writes whole rows of texels from row `row` on. */
  writeTexture(to: DeviceTexture, data: ArrayBufferView<ArrayBuffer>, row = 0): void {
    this.checkOwn(to);
    const { texture, width } = to;
    const bytesPerRow = width * TEXEL_BYTES;
    const layout = { offset: data.byteOffset, bytesPerRow };
    const size = [width, data.byteLength / bytesPerRow];
    this.span("upload", () => this.#gpu.queue.writeTexture({ texture, origin: [0, row] }, data.buffer, layout, size));
  }

  /** @param flops operations that it holds, where they are known: what it may take depends on them */
  submit(encoder: GPUCommandEncoder, flops = 0): void {
    this.check();
    const fault = this.#options.faults?.submission() ?? null;
    const { queue } = this.#gpu;
    const commands = encoder.finish();
    if (fault !== null) this.#suffer(fault);
    if (fault !== "submit-out-of-memory") queue.submit([commands]);
    this.#watchdog.submitted(flops, () => queue.onSubmittedWorkDone());
  }

  #suffer(fault: FaultKind): void {
    if (fault === "device-lost") this.#gpu.destroy();
    else if (fault === "hang") this.#watchdog.hang();
    else this.#latch(outOfMemory("a submission: a fault on purpose"));
  }

  /** Waits for the GPU. @throws {StratumError} `device/stalled`, which stays */
  async #wait<T>(ending: Promise<T>): Promise<T> {
    try {
      return await napping(this.#watchdog.wait(ending));
    } catch (cause) {
      if (this.#watchdog.stalled !== undefined) this.#latch(this.#watchdog.stalled);
      throw cause;
    }
  }

  /**
   * Waits until everything submitted is done.
   * @throws {StratumError} `device/stalled`, what the device latched meanwhile
   */
  async idle(): Promise<void> {
    await this.span("wait", () => this.done());
    this.check();
  }

  /** Waits as {@link idle}, and nothing else: for whoever takes the time of it. @throws {StratumError} `device/stalled` */
  async done(): Promise<void> {
    await this.#wait(this.#gpu.queue.onSubmittedWorkDone());
  }

  /**
   * Copies the first `size` bytes of a storage buffer to the host through `staging` (a `readback` buffer of at least that size).
   * @throws {StratumError} what the device latched meanwhile
   */
  async read(source: DeviceBuffer, size: number, staging: DeviceBuffer): Promise<ArrayBuffer> {
    this.checkOwn(source);
    this.checkOwn(staging);
    if (size === 0) return new ArrayBuffer(0);
    const gpu = this.#gpu;
    const encoder = gpu.createCommandEncoder();
    encoder.copyBufferToBuffer(source.gpu, 0, staging.gpu, 0, size);
    this.submit(encoder);
    try {
      await this.span("read back", () => this.#wait(staging.gpu.mapAsync(0x01, 0, size)));
    } catch (cause) {
      if (this.#watchdog.stalled === undefined) await gpu.queue.onSubmittedWorkDone().catch(() => undefined);
      this.checkOwn(source);
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
    // A device that hangs would be waited for, by whatever destroys it.
    if (this.#watchdog.stalled === undefined) {
      for (const memory of this.#live) memory.destroy();
      this.#gpu.destroy();
    }
    void this.#instance;
  }
}

/** Of {@link Device.pace}: what such a dispatch holds takes no adapter a second. */
const MIN_PACE = 4 ** -4;
