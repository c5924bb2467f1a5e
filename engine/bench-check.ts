/**
 * Whether a kernel computes what its twin does, on a sample of a large shape: twins are plain loops, and a whole matmul
 * of a large model would take them minutes.
 */
import { type AttentionVariant, attentionTwin } from "../kernels/attention.ts";
import type { TwinBuffer } from "../kernels/kernel.ts";
import { type MatmulVariant, matmulRowWords, matmulTwin } from "../kernels/matmul.ts";
import { seededRandom } from "../kernels/random.ts";

export type TwinBuffers = Readonly<Record<string, TwinBuffer>>;

/** What a twin says: the values at places of an output; `places` null: of all of it. */
export interface Sample {
  readonly places: Uint32Array | null;
  readonly values: ArrayLike<number>;
}

/**
 * Of an element, relative to the larger of itself and the root mean square of the sample: far above the rounding of
 * sums of any length that models have, far below what a wrong index, lane or tile does. The tests hold the kernels to
 * the rounding itself.
 */
const TOLERANCE = 1e-4;

/** @returns what is wrong, in words, or null */
export function sampleFault(actual: ArrayLike<number>, { places, values }: Sample): string | null {
  let [squares, finite] = [0, 0];
  for (let i = 0; i < values.length; i++) {
    if (!Number.isFinite(values[i])) continue;
    squares += values[i] ** 2;
    finite++;
  }
  const rms = Math.sqrt(squares / Math.max(1, finite));
  let wrong = 0;
  let first = "";
  for (let i = 0; i < values.length; i++) {
    const place = places === null ? i : places[i];
    const bound = TOLERANCE * Math.max(Math.abs(values[i]), rms);
    // NaN and infinities must stand where the twin has them, and nowhere else.
    if (Number.isFinite(values[i]) ? Math.abs(actual[place] - values[i]) <= bound : Object.is(actual[place], values[i]))
      continue;
    if (wrong === 0) first = `[${place}] is ${actual[place]} instead of ${values[i]}`;
    wrong++;
  }
  return wrong === 0 ? null : `${wrong} of ${values.length} sampled values differ: ${first} (rms ${rms})`;
}

/** Up to `count` of 0 .. n - 1, ascending: the first, the last, and seeded ones between. */
export function sampled(n: number, count: number, seed: number): number[] {
  if (n <= count) return Array.from({ length: n }, (_, i) => i);
  const random = seededRandom(seed);
  const picked = new Set([0, n - 1]);
  while (picked.size < count) picked.add(Math.floor(random() * n));
  return [...picked].sort((a, b) => a - b);
}

/** Rows of `width` elements, gathered. */
function gather<T extends TwinBuffer>(from: T, rows: readonly number[], width: number): T {
  const to = from.slice(0, rows.length * width) as T;
  for (const [i, row] of rows.entries()) to.set(from.subarray(row * width, (row + 1) * width), i * width);
  return to;
}

const MATMUL_ROWS = 9;
const MATMUL_COLUMNS = 41;

/** The twin of some rows and columns of a product: a product itself, of gathered rows of x and of the weights. */
export function sampleMatmul(variant: MatmulVariant, buffers: TwinBuffers, rows: number, seed: number): Sample {
  const { k, n, outStride, outOffset } = variant;
  const someRows = sampled(rows, MATMUL_ROWS, seed);
  const columns = sampled(n, MATMUL_COLUMNS, seed + 1);
  const places = Uint32Array.from(
    someRows.flatMap((row) => columns.map((column) => row * outStride + outOffset + column)),
  );
  const small: Record<string, TwinBuffer> = { out: Float32Array.from(places, (place) => buffers["out"][place]) };
  for (const [name, data] of Object.entries(buffers)) {
    if (name === "out") continue;
    else if (name === "x") small[name] = gather(data, someRows, k);
    else if (name.toLowerCase().endsWith("bias")) small[name] = gather(data, columns, 1);
    else small[name] = gather(data, columns, matmulRowWords(variant));
  }
  matmulTwin({ ...variant, n: columns.length, outStride: columns.length, outOffset: 0 }, small, someRows.length);
  return { places, values: small["out"] };
}

const ATTENTION_TILES = 4;

/** The twin of some tiles. */
export function sampleAttention(variant: AttentionVariant, buffers: TwinBuffers, seed: number): Sample {
  const { tiles, out } = buffers;
  const width = variant.heads * variant.headDim;
  const some = sampled(tiles.length / 2, ATTENTION_TILES, seed);
  const small = { ...buffers, tiles: gather(tiles, some, 2), out: out.slice() };
  attentionTwin(variant, small, some.length);
  const places = Uint32Array.from(
    some.flatMap((tile) => {
      const [first, count] = [tiles[2 * tile], tiles[2 * tile + 1]];
      return Array.from({ length: count * width }, (_, i) => first * width + i);
    }),
  );
  return { places, values: Float32Array.from(places, (place) => small.out[place]) };
}

/** The whole of a twin's output. */
export function sampleAll(twin: (buffers: TwinBuffers) => void, buffers: TwinBuffers, output: string): Sample {
  const own = { ...buffers, [output]: buffers[output].slice() };
  twin(own);
  return { places: null, values: own[output] };
}
