/// <reference types="@webgpu/types" />
/**
 * Where the time goes: every dispatch and copy with its time on the GPU, and what the host does meanwhile. A device has a profiler
 * from its opening on, or none; then nothing is measured, and nothing costs anything.
 *
 * Two clocks: `gpu`, timestamps around every dispatch in a pass of its own, or of empty passes around a copy; `host`, where the adapter has none, the time
 * from the submission of a dispatch alone to its end. The second includes the way there and back (see `floorMs`), and
 * nothing overlaps any more. Neither changes a bit of a result: the same kernels run in the same order.
 */
import type { Cost, Kernel } from "../kernels/kernel.ts";
import {
  createTimestampSet,
  destroyTimestampSet,
  readTimestamps,
  resolveTimestamps,
  type TimestampSet,
  type Timestamps,
} from "./timestamps.ts";

export type ProfileClock = "gpu" | "host";

/** A dispatch or a copy before it is timed. */
export interface Call {
  /** For a copy, what is called so in its place. */
  readonly kernel: Pick<Kernel, "name" | "key">;
  /** Its part in the scope, such as `query`. */
  readonly role: string;
  /** What it belongs to, such as `layer 3`. */
  readonly scope: string;
  readonly rows: number;
  readonly cost: Cost | null;
}

/** A dispatch with its time: ms of the clock, on the host's time line after {@link Profiler.shiftMs} is added. */
export interface TimedCall extends Call {
  readonly begin: number;
  readonly end: number;
}

/** Something the host did or waited for, in ms of `performance.now()`. */
export interface Span {
  readonly name: string;
  readonly begin: number;
  readonly end: number;
}

/** Sums of the calls with equal kernel, role and scope. */
export interface CallSum {
  readonly kernel: Call["kernel"];
  readonly role: string;
  readonly scope: string;
  calls: number;
  /** Calls without a time. */
  untimed: number;
  ms: number;
  /** Of the calls with a time. */
  flops: number;
  bytes: number;
}

/** Calls and spans that are kept one by one, for the trace; the sums go on. */
const MOST_KEPT = 200_000;

/** A GPU's time longer than the host waited for it is none. */
const SLACK_MS = 10;

/** Collects what a device does. */
export class Profiler {
  readonly clock: ProfileClock;
  readonly start = performance.now();
  readonly calls: TimedCall[] = [];
  readonly spans: Span[] = [];
  readonly sums = new Map<string, CallSum>();
  readonly spanSums = new Map<string, { count: number; ms: number }>();
  /** With the clock `host`: ms of a submission that holds nothing, the least that a time can be. */
  floorMs: number | null = null;
  #gpu: GPUDevice;
  readonly #free: TimestampSet[] = [];
  readonly #pending = new Set<Promise<void>>();
  #origin: bigint | undefined;
  #shift = Number.NEGATIVE_INFINITY;

  constructor(gpu: GPUDevice, clock: ProfileClock) {
    this.#gpu = gpu;
    this.clock = clock;
  }

  /** What brings a call's times to the host's time line: as early as no submission allows them to be earlier. */
  get shiftMs(): number {
    return Number.isFinite(this.#shift) ? this.#shift : 0;
  }

  /** Goes on with another GPU device; the sets of the one before are gone with it. */
  moveTo(gpu: GPUDevice): void {
    this.#gpu = gpu;
    this.#free.length = 0;
  }

  /** A set of timestamps for one command buffer. */
  take(): TimestampSet {
    return this.#free.pop() ?? createTimestampSet(this.#gpu);
  }

  /** Ends the encoding of a command buffer: its timestamps come back. */
  resolve(encoder: GPUCommandEncoder, set: TimestampSet, calls: readonly Call[]): void {
    resolveTimestamps(encoder, set, calls.length);
  }

  /** The command buffer is submitted: its times arrive with {@link settle}. */
  collect(set: TimestampSet, calls: readonly Call[]): void {
    const submitted = performance.now();
    const gpu = this.#gpu;
    const collecting = readTimestamps(set, calls.length).then(
      (times) => {
        if (gpu === this.#gpu) this.#free.push(set);
        this.#place(calls, times, submitted, performance.now());
      },
      // The device is gone; whoever uses it is told.
      () => this.#place(calls, [], submitted, submitted),
    );
    this.#pending.add(collecting);
    void collecting.finally(() => this.#pending.delete(collecting));
  }

  #place(calls: readonly Call[], times: readonly Timestamps[], submitted: number, arrived: number): void {
    let first: number | undefined;
    for (const [i, call] of calls.entries()) {
      const time = times[i] ?? null;
      if (time === null) {
        this.add(call, null, null);
        continue;
      }
      this.#origin ??= time[0];
      const [begin, end] = time.map((ns) => Number(ns - (this.#origin as bigint)) / 1e6);
      const sound = end - begin <= arrived - submitted + SLACK_MS;
      if (sound) first ??= begin;
      this.add(call, sound ? begin : null, sound ? end : null);
    }
    if (first !== undefined) this.#shift = Math.max(this.#shift, submitted - first);
  }

  /** Counts a call. @param begin in ms of the clock; null where there is no time */
  add(call: Call, begin: number | null, end: number | null): void {
    const { kernel, role, scope, cost } = call;
    const key = `${scope}\n${role}\n${kernel.key}`;
    let sum = this.sums.get(key);
    if (sum === undefined) {
      sum = { kernel, role, scope, calls: 0, untimed: 0, ms: 0, flops: 0, bytes: 0 };
      this.sums.set(key, sum);
    }
    sum.calls++;
    if (begin === null || end === null) {
      sum.untimed++;
      return;
    }
    sum.ms += end - begin;
    sum.flops += cost?.flops ?? 0;
    sum.bytes += cost?.bytes ?? 0;
    if (this.calls.length < MOST_KEPT) this.calls.push({ ...call, begin, end });
  }

  /** Runs a step of the host as a span; one that fails is a span too. */
  span<T>(name: string, step: () => T): T {
    const begin = performance.now();
    let pending = false;
    const done = () => this.#addSpan({ name, begin, end: performance.now() });
    try {
      const result = step();
      if (result instanceof Promise) {
        pending = true;
        return result.finally(done) as T;
      }
      return result;
    } finally {
      if (!pending) done();
    }
  }

  #addSpan(span: Span): void {
    const sum = this.spanSums.get(span.name) ?? { count: 0, ms: 0 };
    this.spanSums.set(span.name, { count: sum.count + 1, ms: sum.ms + span.end - span.begin });
    if (this.spans.length < MOST_KEPT) this.spans.push(span);
  }

  /** Waits for the times of everything that was submitted. */
  async settle(): Promise<void> {
    while (this.#pending.size > 0) await Promise.all(this.#pending);
  }

  [Symbol.dispose](): void {
    for (const set of this.#free.splice(0)) destroyTimestampSet(set);
  }
}
