/** Records what the GPU does: the one place where a dispatch is recorded and a command buffer is submitted. */
import { StratumError } from "../errors.ts";
import type { Extent } from "../kernels/kernel.ts";
import { TEXEL_BYTES } from "../kernels/texture.ts";
import type { Device } from "./device.ts";
import type { DeviceBuffer, DeviceTexture } from "./device-memory.ts";
import { SUBMIT_FLOPS } from "./dispatch-size.ts";
import { type BoundBuffer, bind, type Pipeline } from "./pipelines.ts";
import type { Call, Profiler } from "./profiler.ts";
import { SET_CALLS, type TimestampSet, timestampWrites } from "./timestamps.ts";

/** What a dispatch is there for. */
export interface DispatchNote {
  /** Its part in the scope, such as `query`; default the kernel's name. */
  readonly role?: string;
  readonly extent?: Extent | undefined;
}

/** What is not a kernel's, by the names that a profile gives it. */
const COPY: Call["kernel"] = { name: "copy", key: "copy{}" };
const CLEAR: Call["kernel"] = { name: "clear", key: "clear{}" };

/** A command that waits for {@link Recorder.submit}, where each is timed by the host's clock. */
interface Step {
  readonly call: Call;
  readonly encode: (encoder: GPUCommandEncoder) => void;
}

/**
 * Owns a command encoder and its current compute pass. Commands run in the order of their recording. What is recorded is
 * submitted by {@link submit}, and before that once its operations reach a budget: so a buffer that a recorded command
 * reads must not be written from the host until `submit`.
 */
export class Recorder {
  readonly #device: Device;
  /** Of the device: what was recorded for an earlier one is gone with it. */
  readonly generation: number;
  readonly #submitFlops: number;
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  #flops = 0;
  #timestamps: TimestampSet | undefined;
  readonly #calls: Call[] = [];
  readonly #steps: Step[] = [];
  /** What the next dispatches belong to, such as `layer 3`. */
  scope: string;

  /** @param submitFlops operations of one command buffer, see {@link SUBMIT_FLOPS} */
  constructor(device: Device, scope: string, submitFlops = SUBMIT_FLOPS) {
    this.#device = device;
    this.generation = device.generation;
    this.scope = scope;
    this.#submitFlops = submitFlops * device.pace;
  }

  /**
   * Records a kernel over `rows` rows of output; none for no rows.
   * @param bound by binding name; every binding of the kernel must be there
   * @throws {StratumError} `kernel/binding`, `kernel/grid`, what the device latched
   */
  dispatch(
    pipeline: Pipeline,
    bound: Readonly<Record<string, BoundBuffer>>,
    rows: number,
    { role, extent }: DispatchNote = {},
  ): void {
    if (rows === 0) return;
    const { kernel } = pipeline;
    const { profiler, info } = this.#device;
    const group = bind(this.#device, pipeline, bound);
    const grid = kernel.grid(rows);
    const { maxComputeWorkgroupsPerDimension: limit } = info.limits;
    if (grid.some((size) => size > limit)) {
      throw new StratumError(
        "kernel/grid",
        `kernel ${kernel.key}: grid ${grid.join(" x ")} for ${rows} rows exceeds ${limit}`,
        "lower --batch-tokens",
      );
    }
    const cost = kernel.cost?.(rows, extent) ?? null;
    const encode = (pass: GPUComputePassEncoder) => {
      pass.setPipeline(pipeline.gpu);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(...grid);
    };
    const call = profiler && { kernel, role: role ?? kernel.name, scope: this.scope, rows, cost };
    if (call !== null && profiler?.clock === "host") {
      this.#steps.push({ call, encode: (encoder) => inPass(encoder, undefined, encode) });
      return;
    }
    const flops = cost?.flops ?? 0;
    if (this.#flops > 0 && this.#flops + flops > this.#submitFlops) this.#flush();
    this.#flops += flops;
    if (call !== null && profiler !== null) this.#timed(profiler, call, encode);
    else {
      this.#pass ??= this.#commands().beginComputePass();
      encode(this.#pass);
    }
  }

  /** A pass of its own, between two timestamps. */
  #timed(profiler: Profiler, call: Call, encode: (pass: GPUComputePassEncoder) => void): void {
    // First: it may end the command buffer.
    const writes = this.#timestampsFor(profiler);
    inPass(this.#commands(), writes, encode);
    this.#calls.push(call);
  }

  /** Where the next call's timestamps go. */
  #timestampsFor(profiler: Profiler): Required<GPUComputePassTimestampWrites> {
    if (this.#calls.length === SET_CALLS) this.#flush();
    this.#timestamps ??= profiler.take();
    return timestampWrites(this.#timestamps, this.#calls.length);
  }

  /** Copies `bytes` bytes from an offset to an offset, multiples of 4. */
  copy(from: DeviceBuffer, fromOffset: number, to: DeviceBuffer, toOffset: number, bytes: number): void {
    const copy = (encoder: GPUCommandEncoder) =>
      encoder.copyBufferToBuffer(from.gpu, fromOffset, to.gpu, toOffset, bytes);
    this.#command(COPY, `${from.label} to ${to.label}`, 2 * bytes, copy);
  }

  /**
   * Copies the first `bytes` bytes of a buffer to a texture whose rows follow each other as they do in the buffer.
   * @param bytes a multiple of a texel's; the texture's rows of multiples of 256
   */
  copyToTexture(from: DeviceBuffer, to: DeviceTexture, bytes: number): void {
    const bytesPerRow = to.width * TEXEL_BYTES;
    const full = Math.floor(bytes / bytesPerRow);
    const rest = (bytes - full * bytesPerRow) / TEXEL_BYTES;
    const copy = (row: number, width: number, height: number) => {
      if (width === 0 || height === 0) return;
      const source = { buffer: from.gpu, offset: row * bytesPerRow, bytesPerRow };
      const target = { texture: to.texture, origin: [0, row] };
      const command = (encoder: GPUCommandEncoder) => encoder.copyBufferToTexture(source, target, [width, height]);
      this.#command(COPY, `${from.label} to ${to.label}`, 2 * TEXEL_BYTES * width * height, command);
    };
    copy(0, to.width, full);
    copy(full, rest, 1);
  }

  /** Fills a buffer with zeros. */
  clear(buffer: DeviceBuffer): void {
    this.#command(CLEAR, buffer.label, buffer.size, (encoder) => encoder.clearBuffer(buffer.gpu));
  }

  /** @param bytes read and written together */
  #command(kernel: Call["kernel"], role: string, bytes: number, encode: (encoder: GPUCommandEncoder) => void): void {
    const { profiler } = this.#device;
    if (profiler === null) {
      this.#endPass();
      encode(this.#commands());
      return;
    }
    const call: Call = { kernel, role, scope: this.scope, rows: 0, cost: { flops: 0, bytes } };
    if (profiler.clock === "host") {
      this.#steps.push({ call, encode });
      return;
    }
    // Timestamps belong to passes: one ends before the copy, another begins behind it.
    const { querySet, beginningOfPassWriteIndex, endOfPassWriteIndex } = this.#timestampsFor(profiler);
    const nothing = () => undefined;
    inPass(this.#commands(), { querySet, endOfPassWriteIndex: beginningOfPassWriteIndex }, nothing);
    encode(this.#commands());
    inPass(this.#commands(), { querySet, beginningOfPassWriteIndex: endOfPassWriteIndex }, nothing);
    this.#calls.push(call);
  }

  /**
   * Hands what is recorded to the GPU; it does not wait for its end, except where each dispatch is timed by the host's
   * clock. The recorder can be used again.
   * @throws {StratumError} what the device latched
   */
  async submit(): Promise<void> {
    this.#flush();
    const { profiler } = this.#device;
    if (profiler !== null && this.#steps.length > 0) {
      this.#device.checkOwn(this);
      await runSteps(this.#device, profiler, this.#steps.splice(0));
    }
  }

  #flush(): void {
    this.#endPass();
    const [encoder, set, calls, flops] = [this.#encoder, this.#timestamps, this.#calls.splice(0), this.#flops];
    this.#encoder = undefined;
    this.#timestamps = undefined;
    this.#flops = 0;
    if (encoder === undefined) return;
    const { profiler } = this.#device;
    this.#device.checkOwn(this);
    if (profiler !== null && set !== undefined) profiler.resolve(encoder, set, calls);
    this.#device.submit(encoder, flops);
    if (profiler !== null && set !== undefined) profiler.collect(set, calls);
  }

  #commands(): GPUCommandEncoder {
    this.#encoder ??= this.#device.gpu.createCommandEncoder();
    return this.#encoder;
  }

  #endPass(): void {
    this.#pass?.end();
    this.#pass = undefined;
  }
}

function inPass(
  encoder: GPUCommandEncoder,
  writes: GPUComputePassTimestampWrites | undefined,
  encode: (pass: GPUComputePassEncoder) => void,
): void {
  const pass = encoder.beginComputePass(writes === undefined ? {} : { timestampWrites: writes });
  encode(pass);
  pass.end();
}

/** Empty submissions whose fastest tells what a submission costs by itself. */
const FLOOR_RUNS = 5;

/** Submits steps one by one and waits for each: the host's clock around a dispatch that is alone. */
async function runSteps(device: Device, profiler: Profiler, steps: readonly Step[]): Promise<void> {
  const timed = async (encode: (encoder: GPUCommandEncoder) => void): Promise<[begin: number, end: number]> => {
    const encoder = device.gpu.createCommandEncoder();
    encode(encoder);
    const begin = performance.now();
    device.submit(encoder);
    await device.done();
    const end = performance.now();
    device.check();
    return [begin, end];
  };
  // What was uploaded before is none of the first dispatch's time.
  await device.idle();
  if (profiler.floorMs === null) {
    const empty: number[] = [];
    for (let run = 0; run < FLOOR_RUNS; run++) {
      const [begin, end] = await timed(() => undefined);
      empty.push(end - begin);
    }
    profiler.floorMs = Math.min(...empty);
  }
  for (const { call, encode } of steps) {
    const [begin, end] = await timed(encode);
    profiler.add(call, begin, end);
  }
}
