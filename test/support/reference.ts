/**
 * A Llama decoder in float64 and plain loops, for checkpoints that the test wrote itself: biases, odd sizes, windows. No
 * cache, no batch, no kernel of the project; checked against the golden files like the engine.
 */
import type { ModelFiles } from "../../engine/model-files.ts";
import { decodeFloats } from "../../weights/floats.ts";
import { ropeFrequencies } from "../../weights/rope-frequencies.ts";

type Rows = Float64Array[];

/** The hidden states of a sequence, (T, D) after 0 .. L blocks, from the stored weights. */
export async function referenceStates({ checkpoint, spec }: ModelFiles, ids: Int32Array): Promise<Float32Array[]> {
  const { config } = spec;
  const { hiddenSize: d, heads, kvHeads, headDim, normEps } = config;
  const window = config.slidingWindow ?? Number.POSITIVE_INFINITY;
  const frequencies = ropeFrequencies(config.rope, headDim);
  const load = async (name: string) => decodeFloats(await checkpoint.read(name), (await checkpoint.info(name)).dtype);

  const norm = (x: Rows, weight: Float32Array): Rows =>
    x.map((row) => {
      const scale = 1 / Math.sqrt(row.reduce((sum, value) => sum + value * value, 0) / d + normEps);
      return row.map((value, i) => value * scale * weight[i]);
    });
  const multiply = async (x: Rows, matrix: { weight: string; bias: string | null; n: number; k: number }) => {
    const weight = await load(matrix.weight);
    const bias = matrix.bias === null ? undefined : await load(matrix.bias);
    return x.map((row) =>
      Float64Array.from({ length: matrix.n }, (_, n) => {
        let sum = 0;
        for (let k = 0; k < matrix.k; k++) sum += row[k] * weight[n * matrix.k + k];
        return sum + (bias?.[n] ?? 0);
      }),
    );
  };
  const rotate = (x: Rows): Rows =>
    x.map((row, position) =>
      row.map((value, at) => {
        const [i, half] = [at % headDim, headDim / 2];
        const angle = position * frequencies[i % half];
        const other = i < half ? -row[at + half] : row[at - half];
        return value * Math.cos(angle) + other * Math.sin(angle);
      }),
    );
  const attend = (query: Rows, key: Rows, value: Rows): Rows =>
    query.map((row, t) => {
      const out = new Float64Array(heads * headDim);
      for (let head = 0; head < heads; head++) {
        const group = Math.floor(head / (heads / kvHeads)) * headDim;
        const seen = key.map((_, j) => j).filter((j) => j <= t && j > t - window);
        const scores = seen.map((j) => {
          let dot = 0;
          for (let e = 0; e < headDim; e++) dot += row[head * headDim + e] * key[j][group + e];
          return dot / Math.sqrt(headDim);
        });
        const most = Math.max(...scores);
        const weights = scores.map((score) => Math.exp(score - most));
        const total = weights.reduce((sum, weight) => sum + weight, 0);
        for (const [i, j] of seen.entries())
          for (let e = 0; e < headDim; e++) out[head * headDim + e] += (weights[i] / total) * value[j][group + e];
      }
      return out;
    });
  const add = (a: Rows, b: Rows): Rows => a.map((row, t) => row.map((value, i) => value + b[t][i]));

  const table = await load(spec.embedding);
  let x: Rows = Array.from(ids, (id) => Float64Array.from(table.subarray(id * d, (id + 1) * d)));
  const states = [x];
  for (const block of spec.blocks) {
    const normed = norm(x, await load(block.attentionNorm));
    const [query, key] = [rotate(await multiply(normed, block.query)), rotate(await multiply(normed, block.key))];
    const attended = attend(query, key, await multiply(normed, block.value));
    x = add(x, await multiply(attended, block.attentionOut));
    const wide = norm(x, await load(block.ffnNorm));
    const up = await multiply(wide, block.up);
    const gated = (await multiply(wide, block.gate)).map((row, t) =>
      row.map((gate, i) => (gate / (1 + Math.exp(-gate))) * up[t][i]),
    );
    x = add(x, await multiply(gated, block.down));
    states.push(x);
  }
  return states.map((rows) => Float32Array.from(rows.flatMap((row) => [...row])));
}
