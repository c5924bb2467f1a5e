/** What quantised weights cost in accuracy: the states of the same sequences from stored and from quantised matrices. */
import type { WeightForm } from "./decoder.ts";
import { hiddenStates } from "./hidden-states.ts";
import { type Engine, loadBlocks } from "./model.ts";
import type { ModelFiles } from "./model-files.ts";

export interface QuantiseRow {
  readonly form: WeightForm;
  /** Of the blocks down to the layer, on the GPU. */
  readonly weight_bytes: number;
  /** Of last-token states to those of the stored weights: the mean over the sequences, and the lowest. */
  readonly cosine_mean: number;
  readonly cosine_min: number;
  /** |q - s|^2 / |s|^2 over the states of all sequences. */
  readonly nmse: number;
}

/**
 * Compares the last-token states of a layer between forms, one model on the GPU at a time.
 * @param sequences (T) token ids each
 * @throws {StratumError} as `loadBlocks` and `hiddenStates`
 */
export async function quantiseReport(
  engine: Engine,
  files: ModelFiles,
  layer: number,
  sequences: readonly Int32Array[],
  forms: readonly WeightForm[] = ["stored", "int8", "int4"],
): Promise<QuantiseRow[]> {
  const statesOf = async (form: WeightForm) => {
    const spec = { ...files.spec, form };
    using loaded = await loadBlocks(engine, files.checkpoint, spec, { depth: layer });
    const model = {
      ...{ engine, files: { ...files, spec }, loaded, depth: layer },
      onDevice: async () => loaded,
      [Symbol.asyncDispose]: async () => {},
    };
    return { bytes: loaded.plan.bytes, states: await hiddenStates(model, sequences) };
  };
  const { states: stored } = await statesOf("stored");
  const rows: QuantiseRow[] = [];
  for (const form of forms) {
    const { bytes, states } = await statesOf(form);
    const cosines = states.map((state, i) => cosineOf(state, stored[i]));
    const [error, size] = states.reduce(
      ([e, s], state, i) => [e + squares(state, stored[i]), s + squares(stored[i])],
      [0, 0],
    );
    rows.push({
      form,
      weight_bytes: bytes,
      cosine_mean: cosines.reduce((sum, cosine) => sum + cosine, 0) / cosines.length,
      cosine_min: Math.min(...cosines),
      nmse: size === 0 ? 0 : error / size,
    });
  }
  return rows;
}

/** Sum of squares of a vector, or of the difference of two. */
function squares(a: Float32Array, b?: Float32Array): number {
  return a.reduce((sum, value, i) => sum + (value - (b?.[i] ?? 0)) ** 2, 0);
}

function cosineOf(a: Float32Array, b: Float32Array): number {
  return a.reduce((sum, value, i) => sum + value * b[i], 0) / Math.sqrt(squares(a) * squares(b));
}
