/** Embedding rows, gathered on the host out of the file: the vocabulary table never occupies GPU memory. */
import { StratumError } from "../errors.ts";
import type { Checkpoint } from "../weights/checkpoint.ts";
import { decodeFloats } from "../weights/floats.ts";

const CACHE_BYTES = 32 * 1024 * 1024;

export interface Embedding {
  /**
   * The embeddings of token ids, (T, D) f32.
   * @throws {StratumError} `tokenizer/mismatch` for an id outside the vocabulary
   */
  rows(ids: Int32Array): Promise<Float32Array<ArrayBuffer>>;
}

/** Opens the embedding table `name` (V, D). Frequent rows stay on the host, at most 32 MiB of them. */
export async function openEmbedding(checkpoint: Checkpoint, name: string): Promise<Embedding> {
  const { dtype, shape } = await checkpoint.info(name);
  const [vocab, d] = shape;
  const held = new Map<number, Float32Array>();
  const capacity = Math.max(1, Math.floor(CACHE_BYTES / (4 * d)));
  return {
    async rows(ids) {
      const missing = [...new Set(ids)].filter((id) => !held.has(id)).sort((a, b) => a - b);
      const outside = missing.find((id) => id < 0 || id >= vocab);
      if (outside !== undefined) {
        throw new StratumError(
          "tokenizer/mismatch",
          `token id ${outside} lies outside the model's ${vocab} embeddings`,
          "use the tokenizer that was published with this checkpoint",
        );
      }
      const fresh = new Map<number, Float32Array>();
      if (missing.length > 0) {
        const values = decodeFloats(await checkpoint.readRows(name, missing), dtype);
        for (const [i, id] of missing.entries()) fresh.set(id, values.subarray(i * d, (i + 1) * d));
      }
      const out = new Float32Array(ids.length * d);
      for (let t = 0; t < ids.length; t++) out.set(fresh.get(ids[t]) ?? held.get(ids[t]) ?? [], t * d);
      for (const [id, row] of fresh) if (held.size < capacity) held.set(id, row.slice());
      return out;
    },
  };
}
