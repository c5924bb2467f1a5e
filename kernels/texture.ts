/**
 * Matrices in textures of four words a texel. A texel costs software adapters about half of its four words loaded from a
 * buffer.
 *
 * - Weights: a row of the matrix is a row of the texture, padded to whole texels; as u32 of any stored type.
 * - Activations: the matrix (T, K), K a multiple of 4, lies in one line of texels, cut into rows of `LINE_TEXELS`: so any
 *   number of rows fits, and a buffer of the same contents is copied as it is.
 */

import type { TwinBuffer } from "./kernel.ts";

/** Texels of a row of an activations' texture: a whole one is a multiple of the 256 bytes that a copy wants. */
export const LINE_TEXELS = 4096;
export const TEXEL_BYTES = 16;

/** Width and height in texels of the texture that holds `words` words of activations. */
export function lineTexture(words: number): readonly [width: number, height: number] {
  const texels = Math.max(1, Math.ceil(words / 4));
  return [LINE_TEXELS, Math.ceil(texels / LINE_TEXELS)];
}

/** Rows of words, each padded with zeros to `rowWords` words: what a texture of them holds. */
export function padRows(words: TwinBuffer, rows: number, rowWords: number): TwinBuffer {
  const width = words.length / rows;
  if (width === rowWords) return words;
  const padded = words instanceof Uint32Array ? new Uint32Array(rows * rowWords) : new Float32Array(rows * rowWords);
  for (let row = 0; row < rows; row++) padded.set(words.subarray(row * width, (row + 1) * width), row * rowWords);
  return padded;
}

/** The WGSL coordinates of an activation's texel, an expression of type u32. */
export function lineTexel(texel: string): string {
  return `vec2<u32>((${texel}) % ${LINE_TEXELS}u, (${texel}) / ${LINE_TEXELS}u)`;
}
