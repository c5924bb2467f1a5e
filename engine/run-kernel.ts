import { type Kernel, PARAMS_BYTES, type TwinBuffer } from "../kernels/kernel.ts";
import type { Device, DeviceBuffer } from "./device.ts";
import { dispatch, type Pipelines } from "./pipelines.ts";

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
  const pipeline = await pipelines.get(kernel);
  const held: DeviceBuffer[] = [];
  const hold = (buffer: DeviceBuffer): DeviceBuffer => {
    held.push(buffer);
    return buffer;
  };
  try {
    const bound: Record<string, DeviceBuffer> = {};
    for (const { name } of kernel.bindings) {
      const data = name === "params" ? Uint32Array.of(rows, offset, 0, 0) : buffers[name];
      const use = name === "params" ? "uniform" : "storage";
      bound[name] = hold(device.createBuffer(name, name === "params" ? PARAMS_BYTES : data.byteLength, use));
      device.write(bound[name], data as TwinBuffer & ArrayBufferView<ArrayBuffer>);
    }
    const encoder = device.gpu.createCommandEncoder();
    const pass = encoder.beginComputePass();
    dispatch(device, pass, pipeline, bound, rows);
    pass.end();
    device.submit(encoder);
    const results: Record<string, TwinBuffer> = {};
    for (const { name, access } of kernel.bindings) {
      if (access !== "read_write") continue;
      const staging = hold(device.createBuffer(`${name} readback`, bound[name].size, "readback"));
      const bytes = await device.read(bound[name], bound[name].size, staging);
      results[name] = buffers[name] instanceof Uint32Array ? new Uint32Array(bytes) : new Float32Array(bytes);
    }
    return results;
  } finally {
    for (const buffer of held) buffer.destroy();
  }
}
