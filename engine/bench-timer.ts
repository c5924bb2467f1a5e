/** Timing of dispatches: long enough to mean something, interleaved, with median and spread. */
import { type Kernel, PARAMS_BYTES, type TwinBuffer } from "../kernels/kernel.ts";
import type { DeviceBuffer, DeviceTexture } from "./device-memory.ts";
import type { Engine } from "./model.ts";
import { Recorder } from "./recorder.ts";
import { textureOf } from "./run-kernel.ts";

/** Work on the GPU that can be run again and again. Disposing it frees its buffers. */
export interface Timed extends Disposable {
  /** Runs the work so many times in one submission and waits for its end. @returns milliseconds */
  run(times: number): Promise<number>;
}

/** A kernel with its buffers. */
export interface PreparedKernel extends Timed {
  /** Sets `params.offset`. */
  setOffset(offset: number): void;
  /** The contents of a binding now. @throws {StratumError} what the device latched */
  read(name: string): Promise<ArrayBuffer>;
}

/** Submits what `record` records, and waits. @returns milliseconds */
export async function timeSubmission({ device }: Engine, record: (recorder: Recorder) => void): Promise<number> {
  const begin = performance.now();
  const recorder = new Recorder(device, "bench");
  record(recorder);
  await recorder.submit();
  await device.idle();
  return performance.now() - begin;
}

/** Buffers that are freed together. */
export interface OwnedBuffers extends Disposable {
  add(name: string, data: TwinBuffer | number, use?: "storage" | "uniform"): DeviceBuffer;
}

/** Makes buffers on the device: of host data, or of so many bytes. */
export function ownedBuffers({ device }: Engine): OwnedBuffers {
  const owned: DeviceBuffer[] = [];
  return {
    add(name, data, use = "storage") {
      const buffer = device.createBuffer(name, typeof data === "number" ? data : data.byteLength, use);
      owned.push(buffer);
      if (typeof data !== "number") device.write(buffer, data as TwinBuffer & ArrayBufferView<ArrayBuffer>);
      return buffer;
    },
    [Symbol.dispose]() {
      for (const buffer of owned) buffer.destroy();
    },
  };
}

/**
 * Compiles a kernel and uploads its buffers.
 * @param buffers by binding name, without `params`: host data, and but for textures a size in bytes, or a buffer that
 *   stays the caller's
 * @throws {StratumError} `kernel/compile`, `memory/buffer-limit`
 */
export async function prepareKernel(
  engine: Engine,
  kernel: Kernel,
  buffers: Readonly<Record<string, TwinBuffer | number | DeviceBuffer>>,
  rows: number,
  offset = 0,
): Promise<PreparedKernel> {
  const { device, pipelines } = engine;
  const pipeline = await pipelines.get(kernel);
  const owned = ownedBuffers(engine);
  const bound: Record<string, DeviceBuffer> = {};
  const textures: Record<string, DeviceTexture> = {};
  const dispose = () => {
    owned[Symbol.dispose]();
    for (const texture of Object.values(textures)) texture.destroy();
  };
  const setOffset = (value: number) => device.write(bound["params"], Uint32Array.of(rows, value, 0, 0));
  try {
    for (const binding of kernel.bindings) {
      const { name, access } = binding;
      if (name === "params") continue;
      const given = buffers[name];
      if (access === "texture") {
        textures[name] = textureOf(device, binding, given as TwinBuffer);
        continue;
      }
      bound[name] = typeof given === "object" && "gpu" in given ? given : owned.add(name, given);
    }
    bound["params"] = owned.add("params", PARAMS_BYTES, "uniform");
    setOffset(offset);
  } catch (cause) {
    dispose();
    throw cause;
  }
  return {
    setOffset,
    async read(name) {
      const staging = device.createBuffer(`${name} readback`, bound[name].size, "readback");
      try {
        return await device.read(bound[name], bound[name].size, staging);
      } finally {
        staging.destroy();
      }
    },
    run: (times) =>
      timeSubmission(engine, (recorder) => {
        for (let i = 0; i < times; i++) recorder.dispatch(pipeline, { ...bound, ...textures }, rows);
      }),
    [Symbol.dispose]: dispose,
  };
}

const MOST_TIMES = 4096;

/** A first run of so many times what is asked for is no matter of compilation: a second would tell nothing. */
const CLEARLY = 20;

/** How many runs in a row take at least `minMs`; the first, which pays for compilation, is not counted. */
export async function timesFor(timed: Timed, minMs: number): Promise<number> {
  if ((await timed.run(1)) >= CLEARLY * minMs) return 1;
  let times = 1;
  let spent = await timed.run(times);
  while (spent < minMs && times < MOST_TIMES) {
    times = Math.min(MOST_TIMES, Math.max(times + 1, Math.ceil((1.1 * times * minMs) / Math.max(spent, 1e-3))));
    spent = await timed.run(times);
  }
  return times;
}

export interface InterleaveOptions {
  /** Counted rounds, at most. */
  readonly runs: number;
  /** A measurement takes at least so long. */
  readonly minMs: number;
  /** No round begins after this time of `performance.now()`, but for the first. */
  readonly deadline: number;
  /** Stops between two measurements. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Times several pieces of work in turn, so that a noisy machine disturbs all alike.
 * @returns for each the milliseconds of one run, a number a round: as many for all
 */
export async function interleaveTimed(
  works: readonly Timed[],
  { runs, minMs, deadline, signal }: InterleaveOptions,
): Promise<number[][]> {
  const counts: number[] = [];
  for (const work of works) {
    signal?.throwIfAborted();
    counts.push(await timesFor(work, minMs));
  }
  const times = works.map((): number[] => []);
  for (let round = 0; round < runs && (round === 0 || performance.now() < deadline); round++) {
    for (const [i, work] of works.entries()) {
      signal?.throwIfAborted();
      times[i].push((await work.run(counts[i])) / counts[i]);
    }
  }
  return times;
}

/** Median and distance of the quartiles of times. */
export interface Spread {
  readonly median_ms: number;
  readonly iqr_ms: number;
}

/** Interpolated quartiles, in milliseconds, to a nanosecond. */
export function spreadOf(times: readonly number[]): Spread {
  const sorted = [...times].sort((a, b) => a - b);
  const at = (share: number) => {
    const place = share * (sorted.length - 1);
    const low = Math.floor(place);
    return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
  };
  const round = (value: number) => Number(value.toFixed(6));
  return { median_ms: round(at(0.5)), iqr_ms: round(at(0.75) - at(0.25)) };
}
