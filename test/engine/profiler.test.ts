import { describe, expect, it } from "vitest";
import { packBatches } from "../../engine/batch.ts";
import type { Device } from "../../engine/device.ts";
import { loadModel } from "../../engine/hidden-states.ts";
import { createEngine } from "../../engine/model.ts";
import { profileReport, profileTrace, shortVariant } from "../../engine/profile-report.ts";
import { type Call, Profiler } from "../../engine/profiler.ts";
import { Recorder } from "../../engine/recorder.ts";
import { createRunner } from "../../engine/runner.ts";
import { SET_CALLS, soundTimestamps } from "../../engine/timestamps.ts";
import { rowGather } from "../../kernels/row-gather.ts";
import { goldenModel } from "../support/golden.ts";

const ADAPTERS = [process.env["STRATUM_ADAPTER"] ?? "auto", "embedded"];
const ids = (...tokens: number[]) => Int32Array.from(tokens);
const [batch] = packBatches([{ sequences: [ids(1, 2, 3), ids(1, 2, 3, 4, 5), ids(1, 2, 3, 6)] }], { budget: 64 });
const LAYERS = [0, 1, 2];

/** States and what the device did for them, with the dispatches and copies counted where they are encoded. */
async function run(adapter: string, profile: "off" | "gpu" | "host") {
  using engine = await createEngine({ adapter, profile });
  const { device } = engine;
  let encoded = 0;
  const { createCommandEncoder } = device.gpu;
  device.gpu.createCommandEncoder = () => {
    const encoder = createCommandEncoder.call(device.gpu);
    const begin = encoder.beginComputePass;
    encoder.beginComputePass = (descriptor) => {
      const pass = begin.call(encoder, descriptor);
      const dispatch = pass.dispatchWorkgroups;
      pass.dispatchWorkgroups = (...grid) => {
        encoded++;
        dispatch.apply(pass, grid);
      };
      return pass;
    };
    // What the recorder copies; a read-back's copy and those of the timestamps are none of the model's.
    for (const name of ["copyBufferToBuffer", "copyBufferToTexture"] as const) {
      const copy = encoder[name] as (...given: unknown[]) => undefined;
      encoder[name] = (...given: unknown[]) => {
        if (!(given[2] as { label?: string }).label?.includes("staging")) encoded++;
        return copy.apply(encoder, given);
      };
    }
    return encoder;
  };
  await using model = await loadModel(engine, goldenModel("llama").directory, { layer: 2 });
  using runner = await createRunner(model.loaded, { layers: LAYERS, output: "pooled", batchTokens: 64 });
  const begin = performance.now();
  const states = await runner.pooledStates(batch!);
  const took = performance.now() - begin;
  return { states, encoded, took, report: await profileReport(device), trace: profileTrace(device) };
}

describe.each(ADAPTERS)("a profile on the adapter '%s'", (adapter) => {
  const plain = run(adapter, "off");

  it("is none unless it was asked for", async () => {
    const { report, trace, encoded } = await plain;
    expect([report, trace]).toEqual([null, null]);
    expect(encoded).toBeGreaterThan(20);
  });

  it.each(["gpu", "host"] as const)(
    "by the clock '%s': all dispatches and copies, the same bits, times that fit",
    async (clock) => {
      const [expected, { states, encoded, took, report, trace }] = [await plain, await run(adapter, clock)];
      expect(Buffer.from(states.buffer)).toEqual(Buffer.from(expected.states.buffer));
      expect(encoded).toBe(expected.encoded);
      expect(report).toMatchObject({ clock, calls: encoded, untimed: 0 });
      const { kernels, scopes, host, gpu_ms, wall_ms, floor_ms } = report!;
      expect(gpu_ms).toBeGreaterThan(0);
      expect(gpu_ms).toBeLessThanOrEqual(took);
      expect(gpu_ms).toBeGreaterThan(took / 50);
      expect(took).toBeLessThan(wall_ms);
      expect(floor_ms === null).toBe(clock === "gpu");
      for (const rows of [kernels, scopes]) {
        const sum = (of: "calls" | "ms" | "share") => rows.reduce((total, row) => total + row[of], 0);
        expect(sum("calls")).toBe(encoded);
        expect(sum("ms")).toBeCloseTo(gpu_ms, 2);
        expect(sum("share")).toBeCloseTo(1, 3);
      }
      expect(scopes.map(({ scope }) => scope)).toEqual(["layer 0", "layer 1", "layer 2"]);
      expect(kernels.filter(({ kernel }) => kernel === "copy").length).toBeGreaterThan(0);
      for (const { role, gflops } of kernels.filter(({ kernel }) => kernel === "copy"))
        expect([role, gflops]).toEqual([expect.stringMatching(/^\w+ to \w+$/), null]);
      const gate = kernels.find(({ role }) => role === "gate");
      expect(gate).toMatchObject({ kernel: "matmul", calls: 2, variant: expect.stringContaining("epilogue:glu") });
      expect(gate!.gflops).toBeGreaterThan(0);
      expect(gate!.gbps).toBeGreaterThan(0);
      expect(host.map(({ span }) => span)).toEqual(
        expect.arrayContaining(["load weights", "embed", "upload", "read back", "compile matmul"]),
      );

      const { traceEvents } = JSON.parse(JSON.stringify(trace)) as NonNullable<typeof trace>;
      const slices = traceEvents.filter(({ ph }) => ph === "X");
      expect(slices.filter(({ tid, cat }) => tid === 1 && cat !== "scope")).toHaveLength(encoded);
      const tracks = [...new Set(slices.map(({ tid }) => tid))];
      expect(tracks.length).toBeGreaterThanOrEqual(2);
      for (const track of tracks) {
        const open: number[] = [];
        const on = slices.filter(({ tid }) => tid === track);
        for (const { ts, dur, name } of on.sort((a, b) => a.ts! - b.ts! || b.dur! - a.dur!)) {
          const [begin, end] = [ts!, ts! + dur!].map((us) => Math.round(us * 1000)) as [number, number];
          while (open.length > 0 && open.at(-1)! <= begin) open.pop();
          // Within the slice that is open, or after it.
          expect([name, end <= (open.at(-1) ?? Number.POSITIVE_INFINITY)]).toEqual([name, true]);
          open.push(end);
        }
      }
      // On the host's time line the GPU works after the uploads, and before the states are back.
      const at = (name: string) => slices.filter((slice) => slice.name === name);
      const lastRead = at("read back").at(-1)!;
      const gpu = slices.filter(({ tid }) => tid === 1);
      expect(Math.min(...gpu.map(({ ts }) => ts!))).toBeGreaterThan(at("embed")[0]!.ts!);
      expect(Math.max(...gpu.map(({ ts, dur }) => ts! + dur!))).toBeLessThan(lastRead.ts! + lastRead.dur! + 1000);
    },
  );

  it("goes on where a set of timestamps is full", async () => {
    using engine = await createEngine({ adapter, profile: "gpu" });
    const { device, pipelines } = engine;
    const pipeline = await pipelines.get(rowGather({ d: 4 }));
    const bound = {
      x: device.createBuffer("x", 16, "storage"),
      index: device.createBuffer("index", 4, "storage"),
      out: device.createBuffer("out", 16, "storage"),
      params: device.createBuffer("params", 16, "uniform"),
    };
    device.write(bound.x, Float32Array.of(1, 2, 3, 4));
    device.write(bound.params, Uint32Array.of(1, 0, 0, 0));
    const recorder = new Recorder(device, "many");
    const calls = 2 * SET_CALLS + 7;
    for (let i = 0; i < calls; i++) recorder.dispatch(pipeline, bound, 1, { role: `part ${i % 2}` });
    await recorder.submit();
    const staging = device.createBuffer("staging", 16, "readback");
    expect([...new Float32Array(await device.read(bound.out, 16, staging))]).toEqual([1, 2, 3, 4]);
    const report = await profileReport(device);
    expect(report).toMatchObject({ calls, untimed: 0, scopes: [{ scope: "many", calls }] });
    expect(report!.kernels.map((row) => row.calls).sort()).toEqual([SET_CALLS + 3, SET_CALLS + 4]);
  });
});

describe("times that cannot be", () => {
  it("a clock at 0 or one that ran backwards gives none", () => {
    expect(soundTimestamps(5n, 9n)).toEqual([5n, 9n]);
    expect(soundTimestamps(5n, 5n)).toEqual([5n, 5n]);
    expect(soundTimestamps(0n, 9n)).toBeNull();
    expect(soundTimestamps(2n ** 64n - 3n, 4n)).toBeNull();
  });

  it("are counted as calls without a time, and stay out of the rates", async () => {
    const profiler = new Profiler({} as GPUDevice, "gpu");
    const kernel = rowGather({ d: 4 });
    const call: Call = { kernel, role: "gather", scope: "layer 1", rows: 1, cost: { flops: 1e9, bytes: 2e9 } };
    profiler.add(call, 10, 12);
    profiler.add(call, null, null);
    const report = await profileReport({ profiler, info: { name: "none" } } as unknown as Device);
    expect(report).toMatchObject({ calls: 2, untimed: 1, gpu_ms: 2, kernels: [{ calls: 2, gflops: 500, gbps: 1000 }] });
  });
});

it("a variant is told without what is off, sizes first", () => {
  expect(shortVariant("matmul{activation:silu,bias:false,epilogue:glu,k:64,n:8,outOffset:0,weight:bf16}")).toBe(
    "k:64 n:8 weight:bf16 epilogue:glu activation:silu",
  );
  expect(shortVariant("stepStatus{}")).toBe("");
});
