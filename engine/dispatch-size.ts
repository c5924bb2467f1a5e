/** How much of a batch one dispatch takes: a row's sums are its own, so that the cut changes no bit. */
import type { DecoderConfig } from "./decoder.ts";

/**
 * Operations that one dispatch costs at most: a driver's watchdog ends what takes seconds, and an integrated GPU does
 * some 10^12 a second.
 */
export const DISPATCH_FLOPS = 5e10;

/**
 * Operations of one command buffer, at most, where a dispatch is not more by itself. Enough that the cost of a submission
 * (some 50 us) is nothing on a GPU of 10^13 a second; little enough that one of 10^11 ends it within a second, as some
 * drivers' watchdogs look at command buffers. Nothing is waited for between two of them.
 */
export const SUBMIT_FLOPS = 1e11;

/** Rows of one dispatch of the widest matmul, a multiple of every row tile. */
export function rowsPerDispatch({ hiddenSize, heads, headDim, ffn }: DecoderConfig, dispatchFlops: number): number {
  const rows = Math.floor(dispatchFlops / (2 * hiddenSize * Math.max(2 * ffn, heads * headDim)));
  return Math.max(ROW_STEP, rows - (rows % ROW_STEP));
}
const ROW_STEP = 64;

/** Attention tiles of one dispatch, where the longest sequence has `keys` positions. */
export function tilesPerDispatch({ heads, headDim }: DecoderConfig, keys: number, dispatchFlops: number): number {
  return Math.max(MIN_TILES, Math.floor(dispatchFlops / (4 * MAX_TILE_ROWS * keys * heads * headDim)));
}
const MIN_TILES = 16;
const MAX_TILE_ROWS = 8;

/** Sequences of one dispatch of the mean, where the longest pools `tokens`; a multiple of what bindings of spans begin at. */
export function meansPerDispatch({ hiddenSize }: DecoderConfig, tokens: number, dispatchFlops: number): number {
  const means = Math.floor(dispatchFlops / (hiddenSize * tokens));
  return Math.max(MEAN_STEP, means - (means % MEAN_STEP));
}
/** Spans of 16 bytes that a binding's offset of 256 bytes skips. */
const MEAN_STEP = 16;
