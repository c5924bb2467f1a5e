/**
 * The measured ceilings of an adapter: multiply-adds in registers, memory, loads. Several forms of each are tried and
 * the fastest counts, as what an adapter can do is what its best kernel does.
 */
import {
  fmasPerRound,
  LOAD_ROWS,
  LOAD_TABLE,
  LOAD_UNROLL,
  type PeakFmaVariant,
  type PeakLoadVariant,
  type PeakStreamVariant,
  peakCopy,
  peakFma,
  peakLoad,
  peakRead,
  peakTextureLoad,
  streamWords,
} from "../kernels/peak.ts";
import { seededRandom } from "../kernels/random.ts";
import type { BenchRow, Ceilings } from "./bench-row.ts";
import {
  interleaveTimed,
  ownedBuffers,
  type PreparedKernel,
  prepareKernel,
  spreadOf,
  type Timed,
  timeSubmission,
} from "./bench-timer.ts";
import type { Engine } from "./model.ts";

/** What `measurePeak` found. */
export interface Peak extends Ceilings {
  /** 10^9 operations a second of f16 multiply-adds; null where the adapter has no f16, or not asked for. */
  readonly f16Gflops: number | null;
  readonly readGbps: number;
  /** Read and written bytes together. */
  readonly copyGbps: number;
  /** 10^9 loads of a lane a second: out of a storage buffer, of f32 and of vec4, and out of a texture; null: not asked for. */
  readonly storageGloads: number | null;
  readonly vec4Gloads: number | null;
  readonly textureGloads: number | null;
  /** A row a ceiling. */
  readonly rows: readonly BenchRow[];
}

export interface PeakOptions {
  /** `roofline`: f32 multiply-adds and memory alone; default all. */
  readonly only?: "roofline";
  /** Counted runs of the best forms; default 5. */
  readonly runs?: number;
  /** A run takes at least so long; default 50 ms. */
  readonly minMs?: number;
  /** Bound of the whole, in seconds; the rows that are left then come from fewer forms and runs. Default 60. */
  readonly maxSeconds?: number;
  readonly signal?: AbortSignal | undefined;
  /** Called before a ceiling is measured. */
  readonly onStep?: (what: string, done: number, total: number) => void;
}

/** A form that is ready to run, and what one run of it does. */
interface OpenForm extends Timed {
  readonly amount: number;
}

/** One way to do some work. */
interface Form {
  readonly variant: string;
  readonly open: () => Promise<OpenForm>;
}

/** A ceiling: what is measured, in which unit, in which ways. */
interface Task {
  readonly name: string;
  readonly dtype: string;
  readonly shape: string;
  readonly unit: "flops" | "bytes" | "loads";
  readonly forms: readonly Form[];
}

/** Lanes of a dispatch: some for every lane of a large GPU. */
const LANES = 2 ** 16;
/** A dispatch runs at least so long, so that its own cost is small. */
const DISPATCH_MS = 5;
const MOST_ROUNDS = 2 ** 16;

/** Sets the rounds so that one dispatch takes a while. @returns the form; `perRound`: what a dispatch does in one */
async function withRounds(prepared: PreparedKernel, perRound: number): Promise<OpenForm> {
  try {
    let rounds = 2;
    for (;;) {
      prepared.setOffset(rounds);
      await prepared.run(1);
      const spent = await prepared.run(1);
      if (spent >= DISPATCH_MS || rounds >= MOST_ROUNDS) break;
      rounds = Math.min(MOST_ROUNDS, Math.ceil(rounds * Math.min(8, Math.max(2, (1.2 * DISPATCH_MS) / spent))));
    }
    return { ...prepared, amount: perRound * rounds };
  } catch (cause) {
    prepared[Symbol.dispose]();
    throw cause;
  }
}

function fmaForms(engine: Engine, type: PeakFmaVariant["type"]): Form[] {
  const { maxComputeInvocationsPerWorkgroup: most } = engine.device.info.limits;
  const scalars = [
    [1, 4],
    [1, 8],
    [1, 16],
  ] as const;
  const vectors = [
    [2, 8],
    [4, 2],
    [4, 4],
    [4, 8],
  ] as const;
  // Half-size numbers pay in pairs; and drivers that lack them take seconds to compile each form.
  const shapes = type === "f16" ? vectors.slice(0, 3) : [...scalars, ...vectors];
  return (type === "f16" ? [64] : [32, 64, 256])
    .filter((lanes) => lanes <= most)
    .flatMap((lanes) =>
      shapes.map(([vec, accumulators]): Form => {
        const variant: PeakFmaVariant = { type, vec, accumulators, lanes };
        const groups = LANES / lanes;
        return {
          variant: `${accumulators} x ${vec === 1 ? type : `vec${vec}<${type}>`} a lane, ${lanes} lanes`,
          async open() {
            // The chain converges on c / (1 - m): no overflow, nothing subnormal, however long it runs.
            const x = Float32Array.from({ length: 2 * lanes }, (_, i) => (i < lanes ? 0.5 : 1) + (i % lanes) / 1024);
            const prepared = await prepareKernel(engine, peakFma(variant), { x, out: 4 * LANES }, groups);
            return await withRounds(prepared, 2 * fmasPerRound(variant) * LANES);
          },
        };
      }),
    );
}

/** Bytes of the buffers that memory is measured on: beyond caches, as far as the adapter binds so much. */
const STREAM_BYTES = 2 ** 27;

function streamForms(engine: Engine, kind: "read" | "copy"): Form[] {
  const { maxBufferSize, maxStorageBufferBindingSize: binding } = engine.device.info.limits;
  const bytes = Math.min(STREAM_BYTES, maxBufferSize, binding);
  const kernelOf = { read: peakRead, copy: peakCopy }[kind];
  const forms = [32, 64, 256].map((lanes): Form => {
    const variant: PeakStreamVariant = { lanes };
    const rounds = 4;
    const workgroups = Math.floor(bytes / (4 * streamWords(variant) * rounds));
    const used = 4 * streamWords(variant) * rounds * workgroups;
    return {
      variant: `vec4 a load, ${lanes} lanes`,
      async open() {
        const out = kind === "read" ? 16 * lanes * workgroups : used;
        const prepared = await prepareKernel(engine, kernelOf(variant), { x: used, out }, workgroups, rounds);
        return { ...prepared, amount: kind === "read" ? used : 2 * used };
      },
    };
  });
  return kind === "read" ? forms : [...forms, copyCommand(engine, bytes)];
}

/** The copy that no kernel does. */
function copyCommand(engine: Engine, bytes: number): Form {
  return {
    variant: "copyBufferToBuffer",
    async open() {
      const owned = ownedBuffers(engine);
      try {
        const [from, to] = [owned.add("from", bytes), owned.add("to", bytes)];
        return {
          amount: 2 * bytes,
          run: (times) =>
            timeSubmission(engine, (recorder) => {
              for (let i = 0; i < times; i++) recorder.copy(from, 0, to, 0, bytes);
            }),
          [Symbol.dispose]: () => owned[Symbol.dispose](),
        };
      } catch (cause) {
        owned[Symbol.dispose]();
        throw cause;
      }
    },
  };
}

function loadForms(engine: Engine, element: PeakLoadVariant["element"]): Form[] {
  return [32, 64, 256].map((lanes) => ({
    variant: `${element}, ${lanes} lanes`,
    async open() {
      const x = loadTable(element === "f32" ? 1 : 4);
      const kernel = peakLoad({ element, lanes });
      return await withRounds(
        await prepareKernel(engine, kernel, { x, out: 4 * LANES }, LANES / lanes),
        LOAD_UNROLL * LANES,
      );
    },
  }));
}

/** A row of the table that loads read. */
function loadTable(width: number): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: LOAD_TABLE * width }, seededRandom(1));
}

/** Rows of it as words, each the same. */
function textureTable(): Uint32Array<ArrayBuffer> {
  const row = new Uint32Array(loadTable(4).buffer);
  const table = new Uint32Array(LOAD_ROWS * row.length);
  for (let y = 0; y < LOAD_ROWS; y++) table.set(row, y * row.length);
  return table;
}

function textureForms(engine: Engine): Form[] {
  return [32, 64, 256].map((lanes) => ({
    variant: `rgba32uint, ${lanes} lanes`,
    async open() {
      const buffers = { x: textureTable(), out: 4 * LANES };
      const prepared = await prepareKernel(engine, peakTextureLoad(lanes), buffers, LANES / lanes);
      return await withRounds(prepared, LOAD_UNROLL * LANES);
    },
  }));
}

/** Forms whose first rate is within this of the best are timed again, beside it. */
const CLOSE = 0.9;
const MOST_FINALISTS = 3;

/** Times every form once, then the best ones in turn. @returns the row of the fastest */
async function measureTask(
  { name, dtype, shape, unit, forms }: Task,
  {
    runs,
    minMs,
    deadline,
    signal,
  }: { runs: number; minMs: number; deadline: number; signal?: AbortSignal | undefined },
): Promise<{ readonly rate: number; readonly row: BenchRow }> {
  const tried: { readonly form: Form; readonly rate: number }[] = [];
  for (const form of forms) {
    signal?.throwIfAborted();
    if (tried.length > 0 && performance.now() > deadline) break;
    using open = await form.open();
    const [[time]] = await interleaveTimed([open], { runs: 1, minMs: minMs / 2, deadline });
    tried.push({ form, rate: open.amount / time });
  }
  tried.sort((a, b) => b.rate - a.rate);
  const finalists = tried.filter(({ rate }, i) => i < MOST_FINALISTS && rate >= CLOSE * tried[0].rate);
  const open: OpenForm[] = [];
  try {
    for (const { form } of finalists) open.push(await form.open());
    const times = await interleaveTimed(open, { runs, minMs, deadline, signal });
    const results = finalists.map(({ form }, i) => {
      const spread = spreadOf(times[i]);
      return { form, spread, runs: times[i].length, rate: open[i].amount / spread.median_ms / 1e6 };
    });
    const best = results.reduce((a, b) => (b.rate > a.rate ? b : a));
    const rate = Number(best.rate.toPrecision(4));
    const of = (wanted: Task["unit"]) => (unit === wanted ? rate : null);
    const row: BenchRow = {
      name,
      shape,
      dtype,
      variant: best.form.variant,
      ...best.spread,
      runs: best.runs,
      gflops: of("flops"),
      gbps: of("bytes"),
      ceiling_share: 1,
      ...(unit === "loads" ? { gloads: rate } : {}),
    };
    return { rate, row };
  } finally {
    for (const form of open) form[Symbol.dispose]();
  }
}

/**
 * Measures what an adapter can do: f32 and, where it has them, f16 multiply-adds in registers, reading and copying
 * memory, loads of lanes out of storage buffers and textures.
 * @throws {StratumError} what the device latched, `kernel/compile`; the reason of `signal`
 */
export async function measurePeak(engine: Engine, options: PeakOptions = {}): Promise<Peak> {
  const { only, runs = 5, minMs = 50, maxSeconds = 60, signal, onStep } = options;
  const f16 = engine.device.info.features.includes("shader-f16");
  const fma = (dtype: PeakFmaVariant["type"]): Task => ({
    name: "fma",
    dtype,
    shape: "in registers",
    unit: "flops",
    forms: fmaForms(engine, dtype),
  });
  const memory = (kind: "read" | "copy"): Task => {
    return { name: `memory ${kind}`, dtype: "u32", shape: "a buffer", unit: "bytes", forms: streamForms(engine, kind) };
  };
  const load = (name: string, dtype: string, forms: readonly Form[]): Task => {
    return { name, dtype, shape: "a cached table", unit: "loads", forms };
  };
  const tasks: readonly Task[] = [
    fma("f32"),
    memory("read"),
    memory("copy"),
    ...(only === "roofline"
      ? []
      : [
          load("storage load", "f32", loadForms(engine, "f32")),
          load("storage load", "vec4<f32>", loadForms(engine, "vec4<f32>")),
          load("texture load", "vec4<u32>", textureForms(engine)),
        ]),
    ...(f16 && only !== "roofline" ? [fma("f16")] : []),
  ];
  const begin = performance.now();
  const results: { readonly rate: number; readonly row: BenchRow }[] = [];
  for (const [i, task] of tasks.entries()) {
    onStep?.(`${task.name} ${task.dtype}`, i, tasks.length);
    // Every ceiling its share of the time that is left.
    const left = begin + 1000 * maxSeconds - performance.now();
    const deadline = performance.now() + left / (tasks.length - i);
    results.push(await measureTask(task, { runs, minMs, deadline, signal }));
  }
  const rates = results.map(({ rate }) => rate);
  const [gflops, readGbps, copyGbps] = rates;
  const [storageGloads = null, vec4Gloads = null, textureGloads = null, f16Gflops = null] = rates.slice(3);
  return {
    gflops,
    f16Gflops,
    readGbps,
    copyGbps,
    gbps: Math.max(readGbps, copyGbps),
    storageGloads,
    vec4Gloads,
    textureGloads,
    rows: results.map(({ row }) => row),
  };
}
