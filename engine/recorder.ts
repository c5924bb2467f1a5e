/** Records what the GPU does: the one place where a dispatch is recorded and a command buffer is submitted. */
import { StratumError } from "../errors.ts";
import type { Extent } from "../kernels/kernel.ts";
import { TEXEL_BYTES } from "../kernels/texture.ts";
import type { Device, DeviceBuffer, DeviceTexture } from "./device.ts";
import { SUBMIT_FLOPS } from "./dispatch-size.ts";
import { type BoundBuffer, bind, type Pipeline } from "./pipelines.ts";

/** What a dispatch is there for. */
export interface DispatchNote {
  /** Its part in the scope, such as `query`; default the kernel's name. */
  readonly role?: string;
  readonly extent?: Extent | undefined;
}

/**
 * Owns a command encoder and its current compute pass. Commands run in the order of their recording. What is recorded is
 * submitted by {@link submit}, and before that once its operations reach a budget: so a buffer that a recorded command
 * reads must not be written from the host until `submit`.
 */
export class Recorder {
  readonly #device: Device;
  readonly #submitFlops: number;
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  #flops = 0;
  /** What the next dispatches belong to, such as `layer 3`. */
  scope: string;

  /** @param submitFlops operations of one command buffer, see {@link SUBMIT_FLOPS} */
  constructor(device: Device, scope: string, submitFlops = SUBMIT_FLOPS) {
    this.#device = device;
    this.scope = scope;
    this.#submitFlops = submitFlops;
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
    { extent }: DispatchNote = {},
  ): void {
    if (rows === 0) return;
    const { kernel } = pipeline;
    const group = bind(this.#device, pipeline, bound);
    const grid = kernel.grid(rows);
    const { maxComputeWorkgroupsPerDimension: limit } = this.#device.info.limits;
    if (grid.some((size) => size > limit)) {
      throw new StratumError(
        "kernel/grid",
        `kernel ${kernel.key}: grid ${grid.join(" x ")} for ${rows} rows exceeds ${limit}`,
        "lower --batch-tokens",
      );
    }
    const flops = kernel.cost?.(rows, extent).flops ?? 0;
    if (this.#flops > 0 && this.#flops + flops > this.#submitFlops) this.#flush();
    this.#flops += flops;
    this.#pass ??= this.#commands().beginComputePass();
    this.#pass.setPipeline(pipeline.gpu);
    this.#pass.setBindGroup(0, group);
    this.#pass.dispatchWorkgroups(...grid);
  }

  /** Copies `bytes` bytes from an offset to an offset, multiples of 4. */
  copy(from: DeviceBuffer, fromOffset: number, to: DeviceBuffer, toOffset: number, bytes: number): void {
    this.#endPass();
    this.#commands().copyBufferToBuffer(from.gpu, fromOffset, to.gpu, toOffset, bytes);
  }

  /**
   * Copies the first `bytes` bytes of a buffer to a texture whose rows follow each other as they do in the buffer.
   * @param bytes a multiple of a texel's; the texture's rows of multiples of 256
   */
  copyToTexture(from: DeviceBuffer, to: DeviceTexture, bytes: number): void {
    this.#endPass();
    const bytesPerRow = to.width * TEXEL_BYTES;
    const full = Math.floor(bytes / bytesPerRow);
    const rest = (bytes - full * bytesPerRow) / TEXEL_BYTES;
    const copy = (row: number, width: number, height: number) => {
      if (width === 0 || height === 0) return;
      const source = { buffer: from.gpu, offset: row * bytesPerRow, bytesPerRow };
      this.#commands().copyBufferToTexture(source, { texture: to.texture, origin: [0, row] }, [width, height]);
    };
    copy(0, to.width, full);
    copy(full, rest, 1);
  }

  /** Fills a buffer with zeros. */
  clear(buffer: DeviceBuffer): void {
    this.#endPass();
    this.#commands().clearBuffer(buffer.gpu);
  }

  /**
   * Hands what is recorded to the GPU; it does not wait for its end. The recorder can be used again.
   * @throws {StratumError} what the device latched
   */
  async submit(): Promise<void> {
    this.#flush();
  }

  #flush(): void {
    this.#endPass();
    const encoder = this.#encoder;
    this.#encoder = undefined;
    this.#flops = 0;
    if (encoder !== undefined) this.#device.submit(encoder);
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
