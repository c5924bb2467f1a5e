import { afterEach, describe, expect, it } from "vitest";
import { Device } from "../../engine/device.ts";
import type { DeviceBuffer } from "../../engine/device-memory.ts";
import { createEngine, type Engine } from "../../engine/model.ts";
import { openDevice } from "../../engine/open-device.ts";
import { type BoundBuffer, Pipelines } from "../../engine/pipelines.ts";
import { Recorder } from "../../engine/recorder.ts";
import { runKernel } from "../../engine/run-kernel.ts";
import { checkCases, selfCheck } from "../../engine/self-check.ts";
import { attention } from "../../kernels/attention.ts";
import { kernelCases } from "../../kernels/cases.ts";
import type { Kernel } from "../../kernels/kernel.ts";
import { norm } from "../../kernels/norm.ts";
import { rowGather } from "../../kernels/row-gather.ts";
import { failing } from "../support/failing.ts";

const opened: Disposable[] = [];
afterEach(() => {
  for (const each of opened.splice(0)) each[Symbol.dispose]();
});

/** A device of its own: these tests break it. */
async function open(): Promise<Engine> {
  const engine = await createEngine();
  opened.push(engine);
  return engine;
}

describe("memory that is destroyed", () => {
  it("is given back, though nothing is submitted any more", async () => {
    const { device } = await open();
    const data = new Uint8Array(16 * 2 ** 20).fill(1);
    const once = async () => {
      const buffer = device.createBuffer("large", data.byteLength, "storage");
      device.write(buffer, data);
      buffer.destroy();
      await device.freed();
    };
    for (let i = 0; i < 4; i++) await once();
    const before = process.memoryUsage().rss;
    for (let i = 0; i < 16; i++) await once();
    // Without, every one lies beside the others, on the host where the adapter is software.
    expect(process.memoryUsage().rss - before).toBeLessThan(6 * data.byteLength);
    expect(device.liveBytes).toBe(0);
  });
});

describe("an error in the background becomes the error of the next call", () => {
  const faults: readonly (readonly [string, (device: Device, buffer: DeviceBuffer) => void, string])[] = [
    ["a write out of range", (device, buffer) => device.write(buffer, new Uint32Array(8)), "range"],
    [
      "a copy out of range",
      (device, buffer) => {
        const staging = device.createBuffer("staging", 16, "readback");
        const encoder = device.gpu.createCommandEncoder();
        encoder.copyBufferToBuffer(buffer.gpu, 0, staging.gpu, 0, 64);
        device.gpu.queue.submit([encoder.finish()]);
      },
      "range",
    ],
    [
      "the use of a destroyed buffer",
      (device, buffer) => {
        buffer.gpu.destroy();
        device.write(buffer, new Uint32Array(4));
      },
      "destroyed",
    ],
  ];

  it.each(faults)("%s", async (_, provoke, text) => {
    const { device } = await open();
    const buffer = device.createBuffer("some buffer", 16, "storage");
    provoke(device, buffer);
    const validation = failing("device/validation", text, "some buffer");
    await expect(device.idle()).rejects.toThrow(validation);
    // It stays: a broken device gives no more results, by any door.
    expect(() => device.check()).toThrow(validation);
    expect(() => device.createBuffer("another", 4, "storage")).toThrow(validation);
    expect(() => device.submit(device.gpu.createCommandEncoder())).toThrow(validation);
  });

  it("work that fails never returns numbers: the read-back behind it throws", async () => {
    const { device } = await open();
    const buffer = device.createBuffer("some buffer", 16, "storage");
    const staging = device.createBuffer("staging", 64, "readback");
    await expect(device.read(buffer, 64, staging)).rejects.toThrow(failing("device/validation", "range"));
  });

  it("a kernel that is bound to too small a buffer", async () => {
    const { device, pipelines } = await open();
    const kernel = norm({
      kind: "rms",
      d: 8,
      eps: 1e-5,
      weightOffset: 0,
      bias: false,
      groups: 1,
      stride: 8,
      output: "store",
      subgroup: 0,
    });
    const buffers = { x: new Float32Array(8), weight: new Float32Array(8), out: new Float32Array(8) };
    const pipeline = await pipelines.get(kernel);
    const bound = Object.fromEntries(
      Object.entries(buffers).map(([name, data]) => [name, device.createBuffer(name, data.byteLength, "storage")]),
    );
    const params = device.createBuffer("params", 4, "uniform");
    const recorder = new Recorder(device, "test");
    recorder.dispatch(pipeline, { ...bound, params }, 1);
    // The binding's error is reported at once or with the submission.
    const running = async () => {
      await recorder.submit();
      await device.idle();
    };
    await expect(running()).rejects.toThrow(failing("device/validation", "size"));
    await expect(runKernel(device, pipelines, kernel, buffers, 1)).rejects.toThrow(failing("device/validation"));
  });

  it("out of memory has a code of its own", () => {
    class GPUOutOfMemoryError extends Error {}
    const gpu = Object.assign(new EventTarget(), { lost: new Promise(() => undefined) }) as unknown as GPUDevice;
    const info = { limits: {}, name: "none" } as unknown as Device["info"];
    const device = new Device(gpu, {} as GPU, info);
    device.check();
    const error = new GPUOutOfMemoryError("vkAllocateMemory failed\n  with a stack");
    gpu.dispatchEvent(Object.assign(new Event("uncapturederror"), { error }));
    expect(() => device.check()).toThrow(failing("memory/out-of-memory", "vkAllocateMemory failed$"));
  });
});

describe("a lost device", () => {
  it("is the error of the next call, whatever the call", async () => {
    const { device, pipelines } = await open();
    const buffer = device.createBuffer("some buffer", 16, "storage");
    const staging = device.createBuffer("staging", 16, "readback");
    device.gpu.destroy();
    await device.gpu.lost;
    const lost = failing("device/lost", "destroyed");
    expect(() => device.check()).toThrow(lost);
    await expect(device.idle()).rejects.toThrow(lost);
    await expect(device.read(buffer, 16, staging)).rejects.toThrow(lost);
    await expect(pipelines.get(rowGather({ d: 3 }))).rejects.toThrow(lost);
  });

  it("ends a read-back that is under way", async () => {
    const { device } = await open();
    const buffer = device.createBuffer("some buffer", 16, "storage");
    const staging = device.createBuffer("staging", 16, "readback");
    const reading = device.read(buffer, 16, staging);
    device.gpu.destroy();
    await expect(reading).rejects.toThrow(failing("device/lost"));
  });
});

describe("buffers", () => {
  it("beyond the adapter's limit are refused by name, size and limit, and nothing breaks", async () => {
    const { device } = await open();
    const { maxBufferSize, maxStorageBufferBindingSize } = device.info.limits;
    const limit = Math.min(maxBufferSize, maxStorageBufferBindingSize);
    const refused = failing("memory/buffer-limit", "'weights'", String(limit), device.info.name.slice(0, 8));
    expect(() => device.createBuffer("weights", limit + 4, "storage")).toThrow(refused);
    expect(() => device.createBuffer("staging", maxBufferSize + 1, "readback")).toThrow(failing("memory/buffer-limit"));
    await device.idle();
    expect(device.liveBytes).toBe(0);
  });

  it("are counted in whole words until they are destroyed, once", async () => {
    const { device } = await open();
    const buffers = [0, 1, 4, 5, 1000].map((size, i) => device.createBuffer(`b${i}`, size, "storage"));
    expect(buffers.map(({ size }) => size)).toEqual([4, 4, 4, 8, 1000]);
    expect(buffers.map(({ gpu }) => gpu.size)).toEqual([4, 4, 4, 8, 1000]);
    expect(device.liveBytes).toBe(1020);
    expect(device.liveBuffers.map(({ label }) => label)).toEqual(["b0", "b1", "b2", "b3", "b4"]);
    buffers[4].destroy();
    buffers[4].destroy();
    expect(device.liveBytes).toBe(20);
  });

  it("carry bytes to the device and back, from any offset", async () => {
    const { device } = await open();
    const [buffer, staging] = [device.createBuffer("b", 32, "storage"), device.createBuffer("s", 32, "readback")];
    const data = Uint32Array.from({ length: 8 }, (_, i) => i + 1);
    device.write(buffer, data.subarray(2, 6), 8);
    expect([...new Uint32Array(await device.read(buffer, 32, staging))]).toEqual([0, 0, 3, 4, 5, 6, 0, 0]);
    expect([...new Uint32Array(await device.read(buffer, 12, staging))]).toEqual([0, 0, 3]);
    expect((await device.read(buffer, 0, staging)).byteLength).toBe(0);
  });
});

it("after disposal every call says so, and disposing again is no error", async () => {
  const { device, pipelines } = await open();
  const buffer = device.createBuffer("b", 16, "storage");
  device[Symbol.dispose]();
  device[Symbol.dispose]();
  // The end of a device that was disposed of is no loss.
  await device.gpu.lost;
  const disposed = failing("device/disposed");
  expect(device.liveBytes).toBe(0);
  for (const call of [
    () => device.check(),
    () => device.createBuffer("c", 4, "storage"),
    () => device.write(buffer, new Uint32Array(4)),
  ])
    expect(call).toThrow(disposed);
  await expect(device.read(buffer, 16, buffer)).rejects.toThrow(disposed);
  await expect(pipelines.get(rowGather({ d: 5 }))).rejects.toThrow(disposed);
});

describe("pipelines", () => {
  it("a kernel that does not compile: the key, the adapter, and the line with its text", async () => {
    const { pipelines } = await open();
    const good = rowGather({ d: 7 });
    const bad: Kernel = { ...good, key: "rowGather{broken}", wgsl: good.wgsl.replace("index[row", "indices[row") };
    const line = bad.wgsl.split("\n").findIndex((text) => text.includes("indices[row")) + 1;
    expect(line).toBeGreaterThan(1);
    await expect(pipelines.get(bad)).rejects.toThrow(
      failing(
        "kernel/compile",
        "rowGather\\{broken\\}",
        `line ${line}:`,
        "out\\[params.offset.*indices\\[row",
        "indices",
      ),
    );
  });

  it("a kernel that does not compile leaves the device to the others", async () => {
    const { device, pipelines } = await open();
    const good = rowGather({ d: 7 });
    const bad: Kernel = { ...good, key: "rowGather{broken}", wgsl: good.wgsl.replace("index[row", "indices[row") };
    await expect(pipelines.get(bad)).rejects.toThrow(failing("kernel/compile"));
    const buffers = { x: new Float32Array(7).fill(3), index: Uint32Array.of(0), out: new Float32Array(7) };
    const { out } = await runKernel(device, pipelines, good, buffers, 1);
    expect([...out]).toEqual(new Array(7).fill(3));
  });

  it("are made once a key, even when asked for at the same time", async () => {
    const { device } = await open();
    const pipelines = new Pipelines(device);
    const [a, b] = await Promise.all([pipelines.get(rowGather({ d: 7 })), pipelines.get(rowGather({ d: 7 }))]);
    expect(a).toBe(b);
    expect(await pipelines.get(rowGather({ d: 8 }))).not.toBe(a);
    expect(pipelines.size).toBe(2);
  });

  it("a dispatch without a binding, or over the grid's limit, names the kernel", async () => {
    const { device, pipelines } = await open();
    const kernel = attention({
      heads: 1,
      kvHeads: 1,
      headDim: 2,
      scale: 1,
      softcap: 0,
      window: 0,
      tileRows: 1,
      subgroup: 0,
      textures: false,
    });
    const pipeline = await pipelines.get(kernel);
    const buffer = device.createBuffer("any", 64, "storage");
    const recorder = new Recorder(device, "test");
    const some: Record<string, BoundBuffer> = { q: buffer, kv: buffer, spans: buffer, tiles: buffer };
    expect(() => recorder.dispatch(pipeline, some, 1)).toThrow(failing("kernel/binding", "attention", "'out'"));
    const all = { ...some, out: buffer, params: device.createBuffer("p", 16, "uniform") };
    const limit = device.info.limits.maxComputeWorkgroupsPerDimension;
    expect(() => recorder.dispatch(pipeline, all, limit + 1)).toThrow(
      failing("kernel/grid", "attention", `${limit + 1} x 1 x 1`, String(limit)),
    );
  });
});

describe("the self-check", () => {
  it("passes every kernel, and each weight type and activation of matmul, on a device that works", async () => {
    const engine = await open();
    const results = await selfCheck(engine);
    expect(results.filter(({ ok }) => !ok)).toEqual([]);
    const names = results.map(({ kernel }) => kernel);
    const variants = checkCases(engine).flatMap(({ kernel }) => (kernel.name === "matmul" ? [kernel.key] : []));
    for (const weight of ["f32", "bf16", "f16", "int8", "int4"])
      expect(variants).toContainEqual(expect.stringContaining(`weight:${weight}`));
    for (const activation of ["silu", "gelu", "geluTanh", "relu"])
      expect(variants).toContainEqual(expect.stringMatching(new RegExp(`activation:${activation}\\b`)));
    expect(names.filter((name) => name === "matmul")).toHaveLength(variants.length);
    expect(new Set(names)).toEqual(new Set(kernelCases(engine.target).map(({ kernel }) => kernel.name)));
    for (const { error } of results) expect(error).toBeLessThan(1e-5);
  });

  it("counts a kernel that does not compile as failed, and still checks the others", async () => {
    const engine = await open();
    const get = (kernel: Kernel) =>
      engine.pipelines.get(kernel.name === "rope" ? { ...kernel, key: "rope{broken}", wgsl: "fn main() {" } : kernel);
    const results = await selfCheck({ ...engine, pipelines: { get } as unknown as Pipelines });
    expect(results.filter(({ ok }) => !ok).map(({ kernel }) => kernel)).toEqual(["rope"]);
    expect(results).toHaveLength(checkCases(engine).length);
  });
});

it("openDevice takes every limit at the adapter's own value", async () => {
  const device = await openDevice(process.env["STRATUM_ADAPTER"] ?? "auto");
  opened.push(device);
  for (const [name, value] of Object.entries(device.info.limits))
    expect([name, device.gpu.limits[name as keyof GPUSupportedLimits]]).toEqual([name, value]);
  // WebGPU's defaults: at least that much is there everywhere.
  expect(device.info.limits.maxStorageBufferBindingSize).toBeGreaterThanOrEqual(128 * 2 ** 20);
  expect(device.info.limits.maxComputeWorkgroupsPerDimension).toBeGreaterThanOrEqual(65_535);
});
