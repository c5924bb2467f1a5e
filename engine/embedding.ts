/** Embedding rows, gathered on the host out of the file: the vocabulary table never occupies GPU memory. */
import { StratumError } from "../errors.ts";
import type { Checkpoint } from "../weights/checkpoint.ts";
import { decodeFloats } from "../weights/floats.ts";
import type { ModelSpec } from "./decoder.ts";

const CACHE_BYTES = 32 * 1024 * 1024;

export interface Embedding {
  /**
   * What enters block 0, (T, D) f32: the embeddings of token ids, scaled, and with learned positions where the family
   * has either.
   * @param positions (T) of the tokens in their sequences
   * @throws {StratumError} `tokenizer/mismatch` for an id outside the vocabulary
   */
  rows(ids: Int32Array, positions: Uint32Array): Promise<Float32Array<ArrayBuffer>>;
}

/** Opens the embeddings of a model. Frequent rows stay on the host, at most 32 MiB of them, and so do learned positions. */
export async function openEmbedding(checkpoint: Checkpoint, spec: ModelSpec): Promise<Embedding> {
  const { embedding: name, config, positions: learned } = spec;
  const { hiddenSize: d, vocab, embeddingScale: scale } = config;
  const { dtype } = await checkpoint.info(name);
  const places =
    learned === null
      ? null
      : decodeFloats(await checkpoint.read(learned.weight), (await checkpoint.info(learned.weight)).dtype);
  const held = new Map<number, Float32Array>();
  const capacity = Math.max(1, Math.floor(CACHE_BYTES / (4 * d)));
  return {
    async rows(ids, positions) {
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
        if (scale !== 1) for (let i = 0; i < values.length; i++) values[i] *= scale;
        for (const [i, id] of missing.entries()) fresh.set(id, values.subarray(i * d, (i + 1) * d));
      }
      const out = new Float32Array(ids.length * d);
      for (let t = 0; t < ids.length; t++) out.set(fresh.get(ids[t]) ?? held.get(ids[t]) ?? [], t * d);
      for (const [id, row] of fresh) if (held.size < capacity) held.set(id, row.slice());
      if (places !== null) {
        for (let t = 0; t < ids.length; t++) {
          for (let i = 0; i < d; i++) out[t * d + i] += places[positions[t] * d + i];
        }
      }
      return out;
    },
  };
}
