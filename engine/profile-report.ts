/** What a profile says: sums by kernel and by layer, and the trace of single calls that Perfetto opens. */
import type { Device } from "./device.ts";
import type { CallSum, ProfileClock, Profiler } from "./profiler.ts";

/** Time, work and rates of some calls. Rates are of the calls with a time; null where there is none. */
export interface ProfileRates {
  readonly calls: number;
  readonly ms: number;
  /** Of the time of all calls. */
  readonly share: number;
  /** Useful operations and bytes a second (see `Cost`), in 10^9. */
  readonly gflops: number | null;
  readonly gbps: number | null;
}

export interface KernelProfile extends ProfileRates {
  readonly kernel: string;
  /** What the kernel's key says, without what is off. */
  readonly variant: string;
  readonly role: string;
}

export interface ScopeProfile extends ProfileRates {
  /** Such as `layer 3`. */
  readonly scope: string;
}

/** What the host did or waited for; spans may lie within each other. */
export interface SpanProfile {
  readonly span: string;
  readonly count: number;
  readonly ms: number;
}

export interface ProfileReport {
  readonly adapter: string;
  readonly clock: ProfileClock;
  /** From the opening of the device on. */
  readonly wall_ms: number;
  /** Of all calls together. */
  readonly gpu_ms: number;
  readonly calls: number;
  /** Calls whose time the clock did not tell. */
  readonly untimed: number;
  /** With the clock `host`: what a submission takes that holds nothing; every call's time holds as much. */
  readonly floor_ms: number | null;
  /** Longest first. */
  readonly kernels: readonly KernelProfile[];
  /** In the order of their first call. */
  readonly scopes: readonly ScopeProfile[];
  /** Longest first. */
  readonly host: readonly SpanProfile[];
}

/** The fields that tell kernels of one name apart, ahead of the others. */
const FIRST_FIELDS = ["k", "n", "d", "width", "weight", "epilogue"];

/** A kernel key for people: without the name, and without what is off. */
export function shortVariant(key: string): string {
  const fields = key
    .slice(key.indexOf("{") + 1, -1)
    .split(",")
    .filter((field) => field !== "" && !/:(false|0|none|undefined)?$/.test(field));
  const place = (field: string) => {
    const at = FIRST_FIELDS.indexOf(field.slice(0, field.indexOf(":")));
    return at < 0 ? FIRST_FIELDS.length : at;
  };
  return fields.sort((a, b) => place(a) - place(b)).join(" ");
}

function groupSums(profiler: Profiler, by: (sum: CallSum) => string): CallSum[][] {
  const groups = new Map<string, CallSum[]>();
  for (const sum of profiler.sums.values()) {
    const key = by(sum);
    groups.set(key, [...(groups.get(key) ?? []), sum]);
  }
  return [...groups.values()];
}

function rates(sums: readonly CallSum[], all: number): ProfileRates {
  const of = (value: (sum: CallSum) => number) => sums.reduce((total, sum) => total + value(sum), 0);
  const ms = of((sum) => sum.ms);
  const rate = (work: number) => (ms > 0 && work > 0 ? round(work / ms / 1e6) : null);
  return {
    calls: of((sum) => sum.calls),
    ms: round(ms),
    share: all > 0 ? round(ms / all) : 0,
    gflops: rate(of((sum) => sum.flops)),
    gbps: rate(of((sum) => sum.bytes)),
  };
}

function round(value: number): number {
  return Number(value.toPrecision(6));
}

/**
 * Waits until every time has arrived and sums up what the device did since it was opened.
 * @returns null for a device that is not profiled
 */
export async function profileReport({ profiler, info }: Device): Promise<ProfileReport | null> {
  if (profiler === null) return null;
  const wall = performance.now() - profiler.start;
  await profiler.settle();
  const sums = [...profiler.sums.values()];
  const gpu = sums.reduce((total, { ms }) => total + ms, 0);
  return {
    adapter: info.name,
    clock: profiler.clock,
    wall_ms: round(wall),
    gpu_ms: round(gpu),
    calls: sums.reduce((total, { calls }) => total + calls, 0),
    untimed: sums.reduce((total, { untimed }) => total + untimed, 0),
    floor_ms: profiler.floorMs === null ? null : round(profiler.floorMs),
    kernels: groupSums(profiler, ({ kernel, role }) => `${role}\n${kernel.key}`)
      .map((group) => {
        const [{ kernel, role }] = group;
        return { kernel: kernel.name, variant: shortVariant(kernel.key), role, ...rates(group, gpu) };
      })
      .sort((a, b) => b.ms - a.ms),
    scopes: groupSums(profiler, ({ scope }) => scope).map((group) => ({
      scope: group[0].scope,
      ...rates(group, gpu),
    })),
    host: [...profiler.spanSums]
      .map(([span, { count, ms }]) => ({ span, count, ms: round(ms) }))
      .sort((a, b) => b.ms - a.ms),
  };
}

/** An event of the trace-event format; times in us. */
interface TraceEvent {
  readonly name: string;
  readonly ph: "X" | "M";
  readonly pid: number;
  readonly tid: number;
  readonly ts?: number;
  readonly dur?: number;
  readonly cat?: string;
  readonly args?: Readonly<Record<string, unknown>>;
}

/** A piece of a track, in ms. */
interface Slice {
  readonly name: string;
  readonly cat: string;
  readonly begin: number;
  readonly end: number;
  readonly args?: Readonly<Record<string, unknown>>;
}

const PID = 1;
const GPU_TRACK = 1;

/**
 * The single calls and spans in the trace-event format of Chrome, which Perfetto (ui.perfetto.dev) opens: a track of the
 * GPU, layers with their dispatches within, and tracks of the host, on which spans lie within each other or apart. Ask
 * for the report first: it waits for the times.
 * @returns null for a device that is not profiled
 */
export function profileTrace({ profiler, info }: Device): { readonly traceEvents: readonly TraceEvent[] } | null {
  if (profiler === null) return null;
  const tracks = [gpuSlices(profiler), ...hostTracks(profiler)];
  const names = tracks.map((_, i) => (i === 0 ? `GPU: ${info.name}` : i === 1 ? "host" : `host, beside (${i})`));
  const named = (name: string, tid: number, value: string): TraceEvent => ({
    ...{ name, ph: "M", pid: PID, tid, args: { name: value } },
  });
  return {
    traceEvents: [
      named("process_name", 0, "stratum"),
      ...names.map((name, i) => named("thread_name", GPU_TRACK + i, name)),
      ...tracks.flatMap((slices, i) => slices.map((slice) => traceEvent(slice, GPU_TRACK + i, profiler.start))),
    ],
  };
}

/** Whole nanoseconds, so that a slice ends where its neighbour begins. */
function traceEvent({ name, cat, begin, end, args }: Slice, tid: number, start: number): TraceEvent {
  const ns = (ms: number) => Math.round((ms - start) * 1e6);
  const [from, to] = [ns(begin), ns(end)];
  const event = { name, cat, ph: "X", pid: PID, tid, ts: from / 1000, dur: (to - from) / 1000 } as const;
  return args === undefined ? event : { ...event, args };
}

/** Dispatches within the scopes that they run in, one after another. */
function gpuSlices({ calls, shiftMs }: Profiler): Slice[] {
  const scopes: Slice[] = [];
  const slices: Slice[] = [];
  // A GPU may begin a dispatch before the one ahead has ended; on a track they follow each other.
  let last = Number.NEGATIVE_INFINITY;
  for (const { kernel, role, scope, rows, cost, ...times } of [...calls].sort((a, b) => a.begin - b.begin)) {
    const begin = Math.max(times.begin, last);
    const end = Math.max(times.end, begin);
    last = end;
    const slice = { begin: begin + shiftMs, end: end + shiftMs };
    const ms = times.end - times.begin;
    const rate = (work = 0) => (ms > 0 && work > 0 ? round(work / ms / 1e6) : null);
    const args = { kernel: kernel.key, rows, gflops: rate(cost?.flops), gbps: rate(cost?.bytes) };
    slices.push({ name: role, cat: kernel.name, ...slice, args });
    const open = scopes.at(-1);
    if (open !== undefined && open.name === scope) scopes[scopes.length - 1] = { ...open, end: slice.end };
    else scopes.push({ name: scope, cat: "scope", ...slice });
  }
  return [...scopes, ...slices];
}

/** Spans on as few tracks as hold them without crossing: what waits for something may cross what runs meanwhile. */
function hostTracks({ spans }: Profiler): Slice[][] {
  const tracks: { readonly slices: Slice[]; readonly open: number[] }[] = [];
  for (const span of [...spans].sort((a, b) => a.begin - b.begin || b.end - a.end)) {
    const holds = ({ open }: { readonly open: number[] }) => {
      while (open.length > 0 && open[open.length - 1] <= span.begin) open.pop();
      return open.length === 0 || span.end <= open[open.length - 1];
    };
    let track = tracks.find(holds);
    if (track === undefined) {
      track = { slices: [], open: [] };
      tracks.push(track);
    }
    track.open.push(span.end);
    track.slices.push({ ...span, cat: "host" });
  }
  return tracks.map(({ slices }) => slices);
}
