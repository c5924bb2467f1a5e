/**
 * Dropout from a counter: whether an element is kept is a function of (seed, step, site, row, element) alone, so a mask
 * is the same on every adapter, is made again in the backward pass instead of being stored, and a resumed run repeats it.
 *
 * The hash is pcg4d (Jarzynski and Olano, "Hash Functions for GPU Rendering", JCGT 9(3), 2020).
 */
import type { Binding } from "./kernel.ts";
import { wgslFloat } from "./wgsl.ts";

/** What every kernel with dropout knows of it. */
export interface DropoutVariant {
  /** The share that is dropped, in [0, 1); what is kept is scaled by 1 / (1 - rate). 0: the kernel has no dropout at all. */
  readonly rate: number;
  /** Tells the places of one network apart, 0 .. 7. */
  readonly site: number;
}

/** No dropout: what inference and a rate of 0 use. */
export const NO_DROPOUT: DropoutVariant = { rate: 0, site: 0 };

/** The step, the seed, and the step's row that row 0 of this dispatch is. */
export const COUNTER: Binding = { name: "counter", access: "read", type: "array<u32>", shape: ["3"] };

/** The bindings that dropout needs: none at rate 0. */
export function dropoutBindings({ rate }: DropoutVariant): readonly Binding[] {
  return rate > 0 ? [COUNTER] : [];
}

/** The fields of a kernel's key. */
export function dropoutKey({ rate, site }: DropoutVariant): object {
  return rate > 0 ? { dropout: rate, site } : {};
}

const WORDS = 2 ** 32;

/** WGSL: `dropped(value, row, element)`, the value after dropout. */
export function dropoutFunction({ rate, site }: DropoutVariant): string {
  if (rate === 0) return "";
  return `fn dropped(value: f32, row: u32, element: u32) -> f32 {
  var v = vec4<u32>(counter[2] + row, element, counter[0], counter[1] * 8u + ${site}u) * 1664525u + 1013904223u;
  v.x += v.y * v.w; v.y += v.z * v.x; v.z += v.x * v.y; v.w += v.y * v.z;
  v ^= v >> vec4<u32>(16u);
  v.x += v.y * v.w;
  return select(0.0, value * ${wgslFloat(1 / (1 - rate))}, v.x >= ${Math.round(rate * WORDS)}u);
}`;
}

/** The expression of a value after dropout. */
export function droppedText({ rate }: DropoutVariant, value: string, row: string, element: string): string {
  return rate > 0 ? `dropped(${value}, ${row}, ${element})` : value;
}

/** CPU twin of `dropped`: the factor of an element, 0 or 1 / (1 - rate). */
export function dropoutFactor(
  { rate, site }: DropoutVariant,
  counter: ArrayLike<number>,
  row: number,
  element: number,
): number {
  if (rate === 0) return 1;
  const mix = (word: number) => (Math.imul(word, 1664525) + 1013904223) >>> 0;
  let [x, y, z, w] = [counter[2] + row, element, counter[0], counter[1] * 8 + site].map(mix);
  const add = (a: number, b: number, c: number) => (a + Math.imul(b, c)) >>> 0;
  x = add(x, y, w);
  y = add(y, z, x);
  z = add(z, x, y);
  w = add(w, y, z);
  [x, y, w] = [x, y, w].map((word) => (word ^ (word >>> 16)) >>> 0);
  return add(x, y, w) >= Math.round(rate * WORDS) ? 1 / (1 - rate) : 0;
}
