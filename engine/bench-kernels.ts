/** Kernels, one by one: checked against their twins, then timed, the variants of one shape in turn. */
import { StratumError } from "../errors.ts";
import type { Cost, Extent, WeightType } from "../kernels/kernel.ts";
import type { BatchShape, BenchCase, CaseVariant, VariantChoice } from "./bench-case.ts";
import { BLOCK_OPS, modelBenchCases, otherBenchCase, otherOps } from "./bench-cases.ts";
import { matmulBenchCase } from "./bench-cases-matmul.ts";
import { sampleFault, type TwinBuffers } from "./bench-check.ts";
import { type BenchRow, type Ceilings, rates } from "./bench-row.ts";
import {
  interleaveTimed,
  type OwnedBuffers,
  ownedBuffers,
  type PreparedKernel,
  prepareKernel,
  spreadOf,
} from "./bench-timer.ts";
import type { DeviceBuffer } from "./device-memory.ts";
import type { Engine } from "./model.ts";
import type { ModelFiles } from "./model-files.ts";
import { platformOf } from "./platform.ts";

/** A kernel that does not compute what its twin does, or does not compile; it is not timed. */
export interface WrongKernel {
  readonly name: string;
  readonly shape: string;
  readonly variant: string;
  readonly fault: string;
}

export interface KernelBench {
  readonly rows: readonly BenchRow[];
  readonly wrong: readonly WrongKernel[];
  /** Cases and variants that the time did not suffice for. */
  readonly left: readonly string[];
}

export interface KernelBenchOptions {
  /** What shares are told of; absent: none are. */
  readonly ceilings?: Ceilings;
  /** Counted runs; default 7. */
  readonly runs?: number;
  /** A run takes at least so long, the kernel as often as that needs; default 20 ms. */
  readonly minMs?: number;
  /** Bound of the whole, in seconds; no case begins after it. Default 120. */
  readonly maxSeconds?: number;
  readonly signal?: AbortSignal | undefined;
  /** Called before a case. */
  readonly onCase?: (bench: BenchCase, done: number, total: number) => void;
  /** Called after a case. */
  readonly onDone?: () => void;
}

/** Checks and times cases. @throws {StratumError} what the device latched, `memory/buffer-limit`; the reason of `signal` */
export async function benchCases(
  engine: Engine,
  cases: readonly BenchCase[],
  options: KernelBenchOptions = {},
): Promise<KernelBench> {
  const { runs = 7, minMs = 20, maxSeconds = 120, signal, onCase, onDone } = options;
  const end = performance.now() + 1000 * maxSeconds;
  const rows: BenchRow[] = [];
  const wrong: WrongKernel[] = [];
  const left: string[] = [];
  for (const [i, bench] of cases.entries()) {
    signal?.throwIfAborted();
    const now = performance.now();
    if (i > 0 && now > end) {
      left.push(bench.name);
      continue;
    }
    onCase?.(bench, i, cases.length);
    using shared = ownedBuffers(engine);
    const deadline = now + (end - now) / (cases.length - i);
    using prepared = await prepareCase(engine, bench, shared, { deadline, signal });
    wrong.push(...prepared.wrong);
    left.push(...prepared.left);
    const times = await interleaveTimed(
      prepared.sound.map(({ kernel }) => kernel),
      { runs, minMs, deadline, signal },
    );
    for (const [v, { each }] of prepared.sound.entries()) {
      const { name, shape, dtype, extent } = bench;
      const measured = rates(spreadOf(times[v]), costOf(each, extent), options.ceilings ?? null);
      rows.push({ name, shape, dtype, variant: each.variant, runs: times[v].length, ...measured });
    }
    onDone?.();
  }
  return { rows, wrong, left };
}

/** The work of a variant; null for a kernel that counts none. */
export function costOf({ kernel, rows }: CaseVariant, extent: Extent | undefined): Cost | null {
  return kernel.cost?.(rows, extent) ?? null;
}

/** A case on the GPU: the variants that compute what their twin does, ready to run, and the others. */
export interface PreparedCase extends Disposable {
  readonly sound: readonly { readonly each: CaseVariant; readonly kernel: PreparedKernel }[];
  readonly wrong: readonly WrongKernel[];
  /** Variants that were not looked at for want of time, in words. */
  readonly left: readonly string[];
}

/**
 * Uploads a case, runs every variant once and compares it with its twin.
 * @param shared owns what the variants share
 * @param limits no variant but the first is compiled after `deadline`: a driver may take seconds for each
 */
export async function prepareCase(
  engine: Engine,
  bench: BenchCase,
  shared: OwnedBuffers,
  limits: { readonly deadline?: number; readonly signal?: AbortSignal | undefined } = {},
): Promise<PreparedCase> {
  const { deadline = Number.POSITIVE_INFINITY, signal } = limits;
  const { name, shape, output } = bench;
  const host = bench.buffers();
  const bound = Object.fromEntries(Object.entries(host).map(([key, data]) => [key, shared.add(key, data)]));
  const sound: { each: CaseVariant; kernel: PreparedKernel }[] = [];
  const wrong: WrongKernel[] = [];
  const left: string[] = [];
  const dispose = () => {
    for (const { kernel } of sound) kernel[Symbol.dispose]();
  };
  try {
    for (const [v, each] of bench.variants.entries()) {
      signal?.throwIfAborted();
      if (v > 0 && performance.now() > deadline) {
        left.push(`${name} ${each.variant}`);
        continue;
      }
      const prepared = await prepareVariant(engine, each, { host, bound, output });
      if (typeof prepared === "string") wrong.push({ name, shape, variant: each.variant, fault: prepared });
      else sound.push({ each, kernel: prepared });
    }
    return { sound, wrong, left, [Symbol.dispose]: dispose };
  } catch (cause) {
    dispose();
    throw cause;
  }
}

/** A case's buffers, on the host and uploaded. */
export interface CaseBuffers {
  readonly host: TwinBuffers;
  readonly bound: Readonly<Record<string, DeviceBuffer>>;
  readonly output: string;
}

/**
 * Compiles a variant, runs it once and compares it with its twin.
 * @returns the variant, ready to run, or what is wrong with it: its results, or that it does not compile
 * @throws {StratumError} what the device latched, `memory/...`
 */
export async function prepareVariant(
  engine: Engine,
  each: CaseVariant,
  { host, bound, output }: CaseBuffers,
): Promise<PreparedKernel | string> {
  const own = each.own(host);
  let kernel: PreparedKernel;
  try {
    kernel = await prepareKernel(engine, each.kernel, { ...bound, ...own }, each.rows, each.offset);
  } catch (cause) {
    if (cause instanceof StratumError && cause.code === "kernel/compile") return cause.message;
    throw cause;
  }
  try {
    // What is written in place begins as the twin's does.
    for (const { name, access } of each.kernel.bindings) {
      if (access === "read_write") engine.device.write(bound[name], host[name] as ArrayBufferView<ArrayBuffer>);
    }
    const sample = each.sample({ ...host, ...own });
    await kernel.run(1);
    const bytes = await kernel.read(output);
    const values = host[output] instanceof Uint32Array ? new Uint32Array(bytes) : new Float32Array(bytes);
    const fault = sampleFault(values, sample);
    if (fault === null) return kernel;
    kernel[Symbol.dispose]();
    return fault;
  } catch (cause) {
    kernel[Symbol.dispose]();
    throw cause;
  }
}

/** What `casesFor` makes cases of. */
export interface CaseRequest extends BatchShape {
  /** One op, or all of a block. */
  readonly op?: string;
  readonly variants: VariantChoice;
}

/**
 * The cases of a model's blocks, or of another op.
 * @throws {StratumError} `usage/op` for an op that does not exist or that the model does not have
 */
export async function casesFor(engine: Engine, files: ModelFiles, request: CaseRequest): Promise<BenchCase[]> {
  const { op, variants } = request;
  const { target } = engine;
  if (op !== undefined && !BLOCK_OPS.includes(op)) {
    const others = otherOps(target);
    if (others.includes(op)) return [otherBenchCase(target, op)];
    throw new StratumError("usage/op", `there is no op '${op}'`, `give one of ${[...BLOCK_OPS, ...others].join(", ")}`);
  }
  const all = await modelBenchCases(files, target, platformOf(engine), request, variants);
  const cases = op === undefined ? all : all.filter((each) => each.op === op);
  if (cases.length > 0) return cases;
  throw new StratumError("usage/op", `${files.name} has no ${op}`, "choose another --op, or other --shapes");
}

/** The case of one product R x K x N, which stores its result. */
export function productCase(
  engine: Engine,
  [rows, k, n]: readonly [number, number, number],
  weight: WeightType,
  variants: VariantChoice,
): BenchCase {
  const shape = { k, n, weight, epilogue: "store", bias: false, outStride: n, outOffset: 0 } as const;
  return matmulBenchCase(engine.target, "matmul", shape, rows, variants);
}
