/** The device's own word is not enough: one case of every kernel, dispatched, read back and compared with its CPU twin. */

import { messageOf } from "../errors.ts";
import type { KernelCase } from "../kernels/case.ts";
import { kernelCases } from "../kernels/cases.ts";
import type { TwinBuffer } from "../kernels/kernel.ts";
import { matmulTile } from "../kernels/matmul.ts";
import type { Engine } from "./model.ts";
import { runKernel } from "./run-kernel.ts";

export interface CheckResult {
  readonly kernel: string;
  readonly title: string;
  readonly ok: boolean;
  /** Largest |got - want| / (1 + |want|); infinity where the kernel gave nothing. */
  readonly error: number;
  /** Why it gave nothing. */
  readonly failure: string | null;
  readonly milliseconds: number;
}

/** Far above what float32 sums of these sizes lose, far below what a wrong kernel gives. */
const TOLERANCE = 1e-4;

/** Largest |got - want| / (1 + |want|); infinity where one is NaN or infinite and the other is not the same. */
export function largestError(got: TwinBuffer, want: TwinBuffer): number {
  let worst = 0;
  for (let i = 0; i < want.length; i++) {
    const error =
      Object.is(got[i], want[i]) || got[i] === want[i] ? 0 : Math.abs(got[i] - want[i]) / (1 + Math.abs(want[i]));
    if (!(error <= worst)) worst = Number.isNaN(error) ? Number.POSITIVE_INFINITY : error;
  }
  return worst;
}

/** The kernels in use on this target, one case each; of matmul one for each weight type and one for each activation. */
export function checkCases({ target }: Engine): KernelCase[] {
  const wanted = new Map<string, KernelCase>();
  for (const each of kernelCases(target)) {
    const subgroup =
      each.kernel.name === "matmul"
        ? matmulTile(target, { k: 4, n: 1, epilogue: "store" }).subgroup
        : target.subgroupSize;
    if (each.kernel.key.includes("subgroup:") && each.kernel.subgroups !== subgroup > 0) continue;
    const field = (name: string) => new RegExp(`[{,]${name}:(\\w+)`).exec(each.kernel.key)?.[1];
    const activation = field("activation") ?? "none";
    wanted.set(`${each.kernel.name} ${activation === "none" ? (field("weight") ?? "") : activation}`, each);
  }
  return [...wanted.values()];
}

/** Runs the checks; a kernel that does not compile or run counts as failed. */
export async function selfCheck(engine: Engine): Promise<CheckResult[]> {
  const results: CheckResult[] = [];
  for (const { kernel, title, rows, offset, buffers, twin } of checkCases(engine)) {
    const want = buffers();
    const begin = performance.now();
    let error = Number.POSITIVE_INFINITY;
    let failure: string | null = null;
    const got = await runKernel(engine.device, engine.pipelines, kernel, want, rows, offset).catch((cause) => {
      failure = messageOf(cause);
      return null;
    });
    const milliseconds = performance.now() - begin;
    twin(want);
    if (got !== null)
      error = Math.max(...Object.entries(got).map(([name, values]) => largestError(values, want[name])));
    results.push({ kernel: kernel.name, title, ok: error <= TOLERANCE, error, failure, milliseconds });
  }
  return results;
}
