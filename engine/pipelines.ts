/** Compiled kernels: one pipeline a kernel key, made asynchronously, in parallel, and only once. */
import { StratumError } from "../errors.ts";
import type { Kernel } from "../kernels/kernel.ts";
import type { Device } from "./device.ts";
import type { DeviceBuffer, DeviceTexture } from "./device-memory.ts";
import { napping } from "./nap.ts";

export interface Pipeline {
  readonly kernel: Kernel;
  /** The `Device.generation` that it is gone with. */
  readonly generation: number;
  readonly gpu: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
}

const COMPUTE = 0x4; // GPUShaderStage.COMPUTE
const BUFFER_TYPE = { read: "read-only-storage", read_write: "storage", uniform: "uniform" } as const;

/** The compiled kernels of a device; of a renewed one they are compiled again. */
export class Pipelines {
  readonly #device: Device;
  readonly #made = new Map<string, Promise<Pipeline>>();
  #generation = 0;

  constructor(device: Device) {
    this.#device = device;
  }

  /**
   * The pipeline of a kernel, compiled on first use.
   * @throws {StratumError} `kernel/compile` with the offending line
   */
  get(kernel: Kernel): Promise<Pipeline> {
    if (this.#generation !== this.#device.generation) {
      this.#made.clear();
      this.#generation = this.#device.generation;
    }
    const made = this.#made.get(kernel.key);
    if (made) return made;
    const making = this.#device.span(`compile ${kernel.name}`, () => compile(this.#device, kernel));
    this.#made.set(kernel.key, making);
    return making;
  }

  /** Number of pipelines made so far. */
  get size(): number {
    return this.#made.size;
  }
}

async function compile(device: Device, kernel: Kernel): Promise<Pipeline> {
  device.check();
  const { generation } = device;
  // A kernel that does not compile is this kernel's failure: without the scope it would count as the device's.
  device.gpu.pushErrorScope("validation");
  const module = device.gpu.createShaderModule({ label: kernel.name, code: kernel.wgsl });
  device.gpu.popErrorScope().catch(() => undefined);
  // Stated, not derived from the text: a kernel may leave a binding of its description unused.
  const layout = device.gpu.createBindGroupLayout({
    entries: kernel.bindings.map(({ access, type }, binding) => ({
      binding,
      visibility: COMPUTE,
      ...(access === "texture"
        ? { texture: { sampleType: type === "texture_2d<f32>" ? "unfilterable-float" : "uint" } as const }
        : { buffer: { type: BUFFER_TYPE[access] } }),
    })),
  });
  try {
    const compiled = device.gpu.createComputePipelineAsync({
      label: kernel.key,
      layout: device.gpu.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module, entryPoint: "main" },
    });
    const gpu = await napping(compiled);
    return { kernel, generation, gpu, layout };
  } catch (cause) {
    // On a lost device nothing compiles.
    device.checkOwn({ generation });
    const { messages } = await module.getCompilationInfo();
    const lines = kernel.wgsl.split("\n");
    const detail = messages
      .filter((message) => message.type === "error")
      .slice(0, 3)
      .map((message) => `line ${message.lineNum}: ${message.message}\n    ${(lines[message.lineNum - 1] ?? "").trim()}`)
      .join("\n  ");
    throw new StratumError(
      "kernel/compile",
      `kernel ${kernel.key} does not compile on ${device.info.name}${detail ? `:\n  ${detail}` : `: ${String(cause)}`}`,
      "try --adapter embedded, and report this with the output of `stratum doctor --json`",
      cause,
    );
  }
}

/** A texture, or a buffer, whole or a part of it in bytes, bound to a kernel's binding. */
export type BoundBuffer =
  | DeviceBuffer
  | DeviceTexture
  | { readonly buffer: DeviceBuffer; readonly offset: number; readonly size: number };

/**
 * Bind groups, by the buffer that they write: making one costs several times what recording its dispatch does. They live
 * as long as that buffer's object. Another buffer of theirs may be destroyed before it; its group is then never asked for.
 */
const groups = new WeakMap<DeviceBuffer, Map<string, GPUBindGroup>>();

const numbers = new WeakMap<object, number>();
let lastNumber = 0;
/** Tells an object from every other. */
function numberOf(object: object): number {
  const known = numbers.get(object);
  if (known !== undefined) return known;
  numbers.set(object, ++lastNumber);
  return lastNumber;
}

/**
 * The bind group of a pipeline; the same for the same buffers.
 * @param bound by binding name; every binding of the kernel must be there
 * @throws {StratumError} `kernel/binding`
 */
export function bind(device: Device, pipeline: Pipeline, bound: Readonly<Record<string, BoundBuffer>>): GPUBindGroup {
  const { kernel, layout } = pipeline;
  device.checkOwn(pipeline);
  let key = String(numberOf(pipeline));
  let written: DeviceBuffer | undefined;
  for (const { name, access } of kernel.bindings) {
    const part = bound[name];
    if (part === undefined) {
      throw new StratumError(
        "kernel/binding",
        `kernel ${kernel.key}: nothing bound to '${name}'`,
        "this is a defect of Stratum: please report it",
      );
    }
    device.checkOwn("buffer" in part ? part.buffer : part);
    key += "buffer" in part ? ` ${numberOf(part.buffer)},${part.offset},${part.size}` : ` ${numberOf(part)}`;
    if (access === "read_write" && !("view" in part)) written = "buffer" in part ? part.buffer : part;
  }
  const known = written && groups.get(written);
  const made = known?.get(key);
  if (made !== undefined) return made;
  const entries = kernel.bindings.map(
    ({ name }, binding): GPUBindGroupEntry => ({
      binding,
      resource: resourceOf(bound[name]),
    }),
  );
  const group = device.gpu.createBindGroup({ layout, entries });
  if (known !== undefined) known.set(key, group);
  else if (written !== undefined) groups.set(written, new Map([[key, group]]));
  return group;
}

function resourceOf(bound: BoundBuffer): GPUBindingResource {
  if ("view" in bound) return bound.view;
  if ("gpu" in bound) return { buffer: bound.gpu };
  return { buffer: bound.buffer.gpu, offset: bound.offset, size: bound.size };
}
