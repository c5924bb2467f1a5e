/** The rows of every benchmark, and the measured ceilings that they are held against. */
import type { Cost } from "../kernels/kernel.ts";
import type { Spread } from "./bench-timer.ts";

/** The measured ceilings of an adapter: the two lines of a roofline. */
export interface Ceilings {
  /** 10^9 operations a second of f32 multiply-adds in registers. */
  readonly gflops: number;
  /** 10^9 bytes a second of reading or copying memory, whichever is faster. */
  readonly gbps: number;
}

export interface BenchRow extends Spread {
  readonly name: string;
  /** What was run, in words of sizes. */
  readonly shape: string;
  /** Of the weights, or of the numbers where there are none. */
  readonly dtype: string;
  /** Which of several ways. */
  readonly variant: string;
  readonly runs: number;
  /** 10^9 operations a second; null where none are counted. */
  readonly gflops: number | null;
  /** 10^9 bytes a second, each operand moved once; null where none are counted. */
  readonly gbps: number | null;
  /**
   * The least time that the ceilings allow (Williams et al. 2009, the roofline: max(flops / peak, bytes / bandwidth))
   * over the measured one; null where no ceilings were measured. Above 1 where operands stay in caches.
   */
  readonly ceiling_share: number | null;
  /** Rows that were computed, where the work is a batch. */
  readonly rows?: number;
  readonly tokens_per_s?: number;
  /** 10^9 loads of a lane a second. */
  readonly gloads?: number;
}

const rounded = (value: number, digits = 4) => Number(value.toPrecision(digits));

/** What a row says beside its names. */
export function rates(
  spread: Spread,
  cost: Cost | null,
  ceilings: Ceilings | null,
): Pick<BenchRow, "median_ms" | "iqr_ms" | "gflops" | "gbps" | "ceiling_share"> {
  const { median_ms, iqr_ms } = spread;
  if (cost === null) return { median_ms, iqr_ms, gflops: null, gbps: null, ceiling_share: null };
  const gflops = cost.flops / median_ms / 1e6;
  const gbps = cost.bytes / median_ms / 1e6;
  const share = ceilings === null ? null : shareOf(gflops, gbps, ceilings);
  return {
    median_ms,
    iqr_ms,
    gflops: cost.flops > 0 ? rounded(gflops) : null,
    gbps: cost.bytes > 0 ? rounded(gbps) : null,
    ceiling_share: share === null ? null : rounded(share, 3),
  };
}

function shareOf(gflops: number, gbps: number, ceilings: Ceilings): number {
  return Math.max(gflops / ceilings.gflops, gbps / ceilings.gbps);
}

/** Rows with the shares that ceilings give them, which were measured later; a row that has one keeps it. */
export function withCeilings(rows: readonly BenchRow[], ceilings: Ceilings): BenchRow[] {
  return rows.map((row) => {
    const { gflops, gbps } = row;
    if (row.ceiling_share !== null || (gflops === null && gbps === null)) return row;
    return { ...row, ceiling_share: rounded(shareOf(gflops ?? 0, gbps ?? 0, ceilings), 3) };
  });
}
