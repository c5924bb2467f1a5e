import { type Kernel, PARAMS_BYTES, type TwinBuffer } from "../kernels/kernel.ts";
import type { Device, DeviceBuffer } from "./device.ts";
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
  try {
    for (const { name } of kernel.bindings) {
      const data = name === "params" ? Uint32Array.of(rows, offset, 0, 0) : buffers[name];
      const bytes = name === "params" ? PARAMS_BYTES : data.byteLength;
      bound[name] = device.createBuffer(name, bytes, name === "params" ? "uniform" : "storage");
      device.write(bound[name], data as TwinBuffer & ArrayBufferView<ArrayBuffer>);
    }
    const submit = () => {
      const recorder = new Recorder(device, "kernel");
      recorder.dispatch(pipeline, bound, rows);
      return recorder.submit();
    };
    return await use(submit, bound);
  } finally {
    for (const buffer of Object.values(bound)) buffer.destroy();
  }
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
