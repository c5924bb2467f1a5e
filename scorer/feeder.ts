/**
 * Brings lists of features to the GPU, standardised: all of them once, into buffers that stay, or where they exceed a
 * bound of memory batch by batch from the source. Both ways run the same kernel, so both give the same bits.
 */

import type { DeviceLimits } from "../engine/device-info.ts";
import type { DeviceBuffer } from "../engine/device-memory.ts";
import type { Engine } from "../engine/model.ts";
import type { Pipeline } from "../engine/pipelines.ts";
import type { PlannedBuffer } from "../engine/planned-buffer.ts";
import { Recorder } from "../engine/recorder.ts";
import { PARAMS_BYTES } from "../kernels/kernel.ts";
import { standardise } from "../kernels/standardise.ts";
import { type FeatureSource, listLength } from "./feature-source.ts";
import { allocate } from "./network.ts";

/** A list as a step takes it: whole, or some of its candidates, in their order. */
export interface DrawnList {
  readonly list: number;
  readonly candidates?: readonly number[] | undefined;
}

/** Mean and 1 / deviation of instructions' and responses' features, (2, D) each, the instruction's first. */
export interface Standardisation {
  readonly mean: Float32Array<ArrayBuffer>;
  readonly scale: Float32Array<ArrayBuffer>;
}

/** No standardisation: every value stays what it is. */
export function identity(dim: number): Standardisation {
  return { mean: new Float32Array(2 * dim), scale: new Float32Array(2 * dim).fill(1) };
}

/** Lists that are read at a time while statistics are taken. */
const READ_AHEAD = 64;

/**
 * Mean and deviation over the given lists, in float64, by Welford's recurrence over rows. A feature that never varies
 * gets the scale 1.
 */
export async function measureStandardisation(
  source: FeatureSource,
  lists: readonly number[],
): Promise<Standardisation> {
  const { dim } = source;
  const [mean, square] = [new Float64Array(2 * dim), new Float64Array(2 * dim)];
  const counts = [0, 0];
  for (let from = 0; from < lists.length; from += READ_AHEAD) {
    const some = lists.slice(from, from + READ_AHEAD);
    const rows = await Promise.all(
      some.map(async (list) => {
        const values = new Float32Array((1 + listLength(source, list)) * dim);
        await source.readList(list, values);
        return values;
      }),
    );
    for (const values of rows) {
      for (let at = 0; at < values.length; at += dim) {
        const kind = at === 0 ? 0 : 1;
        const count = ++counts[kind];
        for (let i = 0; i < dim; i++) {
          const delta = values[at + i] - mean[kind * dim + i];
          mean[kind * dim + i] += delta / count;
          square[kind * dim + i] += delta * (values[at + i] - mean[kind * dim + i]);
        }
      }
    }
  }
  const scale = square.map((sum, i) => {
    const deviation = Math.sqrt(sum / Math.max(1, counts[Math.floor(i / dim)]));
    // Below f32's resolution of the mean a deviation is rounding noise, and would be blown up to 1.
    return deviation > Math.max(1e-6 * Math.abs(mean[i]), 1e-30) ? 1 / deviation : 1;
  });
  return { mean: Float32Array.from(mean), scale: Float32Array.from(scale) };
}

/** Rows that a drawn list takes. */
export function drawnRows(source: FeatureSource, { list, candidates }: DrawnList): number {
  return 1 + (candidates?.length ?? listLength(source, list));
}

export interface Feeder extends Disposable {
  /** All features stay on the GPU; otherwise they are brought batch by batch. */
  readonly resident: boolean;
  readonly bytes: number;
  /** Brings everything, where it stays, by way of x (R, D). */
  load(x: DeviceBuffer): Promise<void>;
  /** Records or uploads the features of drawn lists, one after another, into the first rows of x (R, D). */
  feed(recorder: Recorder, lists: readonly DrawnList[], x: DeviceBuffer): Promise<void>;
}

export interface FeederOptions {
  /** Rows of a batch, at most. */
  readonly rows: number;
  /** Bytes of features that may stay on the GPU. */
  readonly residentLimit: number;
  /** The lists that will be drawn; default all. */
  readonly lists?: readonly number[] | undefined;
  readonly standardisation: Standardisation;
}

/** Bytes of one of the buffers that hold features. */
const STORE_BYTES = 256 * 2 ** 20;

/** The plan of everything that a feeder holds, by name; the features' own buffers are `store0`, `store1`, ... */
export function planFeeder(
  source: FeatureSource,
  limits: DeviceLimits,
  { rows, residentLimit, lists }: Pick<FeederOptions, "rows" | "residentLimit" | "lists">,
): Map<string, PlannedBuffer> {
  const row = 4 * source.dim;
  const plan = new Map<string, PlannedBuffer>();
  const add = (name: string, bytes: number, use: PlannedBuffer["use"] = "storage") =>
    plan.set(name, { label: `features.${name}`, bytes, use });
  add("raw", rows * row);
  add("index", 4 * rows);
  add("spans", 8 * rows);
  add("mean", 2 * row);
  add("scale", 2 * row);
  add("params", PARAMS_BYTES, "uniform");
  for (const [i, { bytes }] of stores(source, limits, residentLimit, lists).entries()) add(`store${i}`, bytes);
  return plan;
}

/** Which lists lie in which buffer, as many as an adapter allows in one; none where all of them exceed the bound. */
function stores(
  source: FeatureSource,
  limits: DeviceLimits,
  residentLimit: number,
  lists: readonly number[] = Array.from({ length: source.lists }, (_, b) => b),
): { readonly lists: readonly number[]; readonly bytes: number }[] {
  const size = (b: number) => (1 + listLength(source, b)) * 4 * source.dim;
  if (lists.reduce((sum, b) => sum + size(b), 0) > residentLimit) return [];
  const limit = Math.min(STORE_BYTES, limits.maxBufferSize, limits.maxStorageBufferBindingSize);
  const found: { lists: number[]; bytes: number }[] = [];
  for (const b of lists) {
    const last = found.at(-1);
    if (last && last.bytes + size(b) <= limit) {
      last.bytes += size(b);
      last.lists.push(b);
    } else found.push({ lists: [b], bytes: size(b) });
  }
  return found;
}

/** Allocates what a feeder needs. @throws {StratumError} `memory/...` */
export async function createFeeder(engine: Engine, source: FeatureSource, options: FeederOptions): Promise<Feeder> {
  const { device } = engine;
  const { dim } = source;
  const { rows, residentLimit, standardisation } = options;
  const row = 4 * dim;
  const pipeline: Pipeline = await engine.pipelines.get(standardise({ d: dim }));
  const { buffers, release } = allocate(device, planFeeder(source, device.info.limits, options));
  const { raw, index, spans, mean, scale, params } = buffers;
  device.write(
    index,
    Uint32Array.from({ length: rows }, (_, i) => i),
  );
  device.write(mean, standardisation.mean);
  device.write(scale, standardisation.scale);
  /** The buffer that holds a list, and the byte where the list begins. */
  const places = new Map<number, { readonly store: DeviceBuffer; readonly offset: number }>();
  for (const [i, { lists }] of stores(source, device.info.limits, residentLimit, options.lists).entries()) {
    let offset = 0;
    for (const b of lists) {
      places.set(b, { store: buffers[`store${i}`], offset });
      offset += (1 + listLength(source, b)) * row;
    }
  }
  const resident = places.size > 0;

  const staging = new Float32Array(rows * dim);

  /** Reads drawn lists, uploads them, and records their standardisation into the first rows of x. */
  async function bring(recorder: Recorder, lists: readonly DrawnList[], x: DeviceBuffer): Promise<number> {
    const first: number[] = [];
    let count = 0;
    for (const drawn of lists) {
      first.push(count);
      count += drawnRows(source, drawn);
    }
    const read = () =>
      Promise.all(
        lists.map(async ({ list, candidates }, i) => {
          if (candidates === undefined) return source.readList(list, staging, first[i] * dim);
          const whole = new Float32Array((1 + listLength(source, list)) * dim);
          await source.readList(list, whole);
          staging.set(whole.subarray(0, dim), first[i] * dim);
          for (const [place, candidate] of candidates.entries())
            staging.set(whole.subarray((1 + candidate) * dim, (2 + candidate) * dim), (first[i] + 1 + place) * dim);
        }),
      );
    await device.span("read features", read);
    const rowSpans = new Uint32Array(2 * count);
    for (const [i, start] of first.entries()) {
      for (let r = start; r < (first[i + 1] ?? count); r++) rowSpans.set([start, first[i + 1] ?? count], 2 * r);
    }
    device.write(raw, staging.subarray(0, count * dim));
    device.write(spans, rowSpans);
    device.write(params, Uint32Array.of(count, 0, 0, 0));
    recorder.dispatch(pipeline, { x: raw, index, spans, mean, scale, out: x, params }, count);
    return count;
  }

  return {
    resident,
    bytes: Object.values(buffers).reduce((sum, { size }) => sum + size, 0),
    async load(x) {
      const waiting = [...places.keys()].map((list) => ({ list }));
      for (let at = 0; at < waiting.length; ) {
        const lists: DrawnList[] = [];
        let count = 0;
        // A batch holds every list that is drawn.
        while (at < waiting.length && (lists.length === 0 || count + drawnRows(source, waiting[at]) <= rows)) {
          count += drawnRows(source, waiting[at]);
          lists.push(waiting[at++]);
        }
        const recorder = new Recorder(device, "features");
        await bring(recorder, lists, x);
        for (const { at: from, place, bytes } of runs(lists)) recorder.copy(x, from, place.store, place.offset, bytes);
        await recorder.submit();
        await device.idle();
      }
    },
    async feed(recorder, lists, x) {
      if (!resident) {
        await bring(recorder, lists, x);
        return;
      }
      for (const { at, place, bytes } of runs(lists)) recorder.copy(place.store, place.offset, x, at, bytes);
    },
    [Symbol.dispose]: release,
  };

  /** Copies that bring drawn lists together, neighbours as one: `at` bytes from the start of the batch. */
  function runs(
    lists: readonly DrawnList[],
  ): { at: number; place: { store: DeviceBuffer; offset: number }; bytes: number }[] {
    const found: { at: number; place: { store: DeviceBuffer; offset: number }; bytes: number }[] = [];
    let at = 0;
    const add = (store: DeviceBuffer, offset: number, bytes: number) => {
      const last = found.at(-1);
      if (last && last.place.store === store && last.place.offset + last.bytes === offset) last.bytes += bytes;
      else found.push({ at, place: { store, offset }, bytes });
      at += bytes;
    };
    for (const { list, candidates } of lists) {
      const place = places.get(list);
      if (place === undefined) throw new Error(`list ${list} is not among those that were brought`);
      const { store, offset } = place;
      if (candidates === undefined) add(store, offset, (1 + listLength(source, list)) * row);
      else for (const r of [0, ...candidates.map((c) => c + 1)]) add(store, offset + r * row, row);
    }
    return found;
  }
}
