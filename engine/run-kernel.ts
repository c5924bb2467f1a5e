import { type Binding, type Kernel, PARAMS_BYTES, type TwinBuffer } from "../kernels/kernel.ts";
import type { Device } from "./device.ts";
import type { DeviceBuffer, DeviceTexture } from "./device-memory.ts";
import type { Pipelines } from "./pipelines.ts";
import { Recorder } from "./recorder.ts";

/** Binds host buffers to a kernel, lets `use` dispatch it, and frees what was bound. */
async function withBound<T>(
  device: Device,
  pipelines: Pipelines,
  kernel: Kernel,
  buffers: Readonly<Record<string, TwinBuffer>>,
  { rows, offset }: { rows: number; offset: number },
  use: (submit: () => Promise<void>, bound: Readonly<Record<string, DeviceBuffer>>) => Promise<T>,
): Promise<T> {
  const pipeline = await pipelines.get(kernel);
  const bound: Record<string, DeviceBuffer> = {};
  const textures: Record<string, DeviceTexture> = {};
  try {
    for (const binding of kernel.bindings) {
      const { name, access } = binding;
      const data = name === "params" ? Uint32Array.of(rows, offset, 0, 0) : buffers[name];
      if (access === "texture") {
        textures[name] = textureOf(device, binding, data);
        continue;
      }
      const bytes = name === "params" ? PARAMS_BYTES : data.byteLength;
      bound[name] = device.createBuffer(name, bytes, name === "params" ? "uniform" : "storage");
      device.write(bound[name], data as TwinBuffer & ArrayBufferView<ArrayBuffer>);
    }
    const submit = () => {
      const recorder = new Recorder(device, "kernel");
      recorder.dispatch(pipeline, { ...bound, ...textures }, rows);
      return recorder.submit();
    };
    return await use(submit, bound);
  } finally {
    for (const memory of [...Object.values(bound), ...Object.values(textures)]) memory.destroy();
  }
}

/** A texture of a binding's form that holds words one after another. */
export function textureOf(device: Device, { name, type, texels = 1 }: Binding, data: TwinBuffer): DeviceTexture {
  const rowWords = 4 * texels;
  const height = Math.max(1, Math.ceil(data.length / rowWords));
  const Words = data instanceof Uint32Array ? Uint32Array : Float32Array;
  const padded = new Words(height * rowWords);
  padded.set(data);
  const texture = device.createTexture(name, texels, height, type === "texture_2d<f32>" ? "rgba32float" : "rgba32uint");
  device.writeTexture(texture, padded);
  return texture;
}

/**
 * Runs one kernel on host buffers and reads its writable ones back: the door for tests, benchmarks and the doctor.
 * @param buffers by binding name, without `params`
 * @returns fresh contents of every `read_write` binding
 * @throws {StratumError} what the device latched, `kernel/compile`, `kernel/grid`
 */
export async function runKernel(
  device: Device,
  pipelines: Pipelines,
  kernel: Kernel,
  buffers: Readonly<Record<string, TwinBuffer>>,
  rows: number,
  offset = 0,
): Promise<Record<string, TwinBuffer>> {
  return withBound(device, pipelines, kernel, buffers, { rows, offset }, async (submit, bound) => {
    await submit();
    const results: Record<string, TwinBuffer> = {};
    for (const { name, access } of kernel.bindings) {
      if (access !== "read_write") continue;
      const staging = device.createBuffer(`${name} readback`, bound[name].size, "readback");
      try {
        const bytes = await device.read(bound[name], bound[name].size, staging);
        results[name] = buffers[name] instanceof Uint32Array ? new Uint32Array(bytes) : new Float32Array(bytes);
      } finally {
        staging.destroy();
      }
    }
    return results;
  });
}

/**
 * Times one kernel: a dispatch and the wait for its end, after one that is not counted (it pays for compilation).
 * @returns milliseconds a run
 */
export async function timeKernel(
  device: Device,
  pipelines: Pipelines,
  kernel: Kernel,
  buffers: Readonly<Record<string, TwinBuffer>>,
  rows: number,
  runs: number,
): Promise<number[]> {
  return withBound(device, pipelines, kernel, buffers, { rows, offset: 0 }, async (submit) => {
    const times: number[] = [];
    for (let run = 0; run <= runs; run++) {
      const begin = performance.now();
      await submit();
      await device.idle();
      if (run > 0) times.push(performance.now() - begin);
    }
    return times;
  });
}
