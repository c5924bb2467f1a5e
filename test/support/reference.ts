/**
 * A decoder in float64 and plain loops, for checkpoints that the test wrote itself: whatever a model's description can
 * say. No cache, no batch, no kernel of the project; checked against the golden files like the engine.
 */
import type { DecoderConfig, MatrixSpec, NormSpec } from "../../engine/decoder.ts";
import type { ModelFiles } from "../../engine/model-files.ts";
import { decodeFloats } from "../../weights/floats.ts";
import { type RopeConfig, ropeFrequencies, ropeScale } from "../../weights/rope.ts";

type Rows = Float64Array[];

/** Error function, by its series and its continued fraction: independent of the kernels' approximation. */
function erf(x: number): number {
  const z = Math.abs(x);
  if (z > 6) return Math.sign(x);
  if (z < 3) {
    let [term, sum] = [x, x];
    for (let n = 1; n < 120; n++) {
      term *= (-x * x) / n;
      sum += term / (2 * n + 1);
    }
    return (2 / Math.sqrt(Math.PI)) * sum;
  }
  let fraction = z;
  for (let n = 120; n > 0; n--) fraction = z + n / 2 / fraction;
  return Math.sign(x) * (1 - Math.exp(-z * z) / (Math.sqrt(Math.PI) * fraction));
}

const ACTIVATIONS: Readonly<Record<DecoderConfig["activation"], (x: number) => number>> = {
  silu: (x) => x / (1 + Math.exp(-x)),
  gelu: (x) => (x / 2) * (1 + erf(x / Math.SQRT2)),
  geluTanh: (x) => (x / 2) * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  relu: (x) => Math.max(x, 0),
};

/** The hidden states of a sequence, (T, D) after 0 .. L blocks, from the stored weights. */
export async function referenceStates({ checkpoint, spec }: ModelFiles, ids: Int32Array): Promise<Float32Array[]> {
  const { config } = spec;
  const { hiddenSize: d, heads, kvHeads, headDim, softcap, ropes } = config;
  const load = async (name: string) => decodeFloats(await checkpoint.read(name), (await checkpoint.info(name)).dtype);

  /** Of groups of `size` elements of every row. */
  const norm = async (x: Rows, { weight, bias, size }: NormSpec): Promise<Rows> => {
    const { kind, eps, weightOffset } = config.norm;
    const weights = await load(weight);
    const biases = bias === null ? undefined : await load(bias);
    return x.map((row) => {
      const out = new Float64Array(row.length);
      for (let from = 0; from < row.length; from += size) {
        const group = row.subarray(from, from + size);
        const mean = kind === "layer" ? group.reduce((sum, value) => sum + value, 0) / size : 0;
        const square = group.reduce((sum, value) => sum + (value - mean) ** 2, 0) / size;
        for (const [i, value] of group.entries())
          out[from + i] = ((value - mean) / Math.sqrt(square + eps)) * (weights[i] + weightOffset) + (biases?.[i] ?? 0);
      }
      return out;
    });
  };
  const multiply = async (x: Rows, { weight, bias, shape, transposed, rows, n, k }: MatrixSpec): Promise<Rows> => {
    const weights = await load(weight);
    const biases = bias === null ? undefined : await load(bias);
    return x.map((row) =>
      Float64Array.from({ length: n }, (_, at) => {
        const from = rows.offset + Math.floor(at / rows.run) * rows.stride + (at % rows.run);
        let sum = biases?.[from] ?? 0;
        for (let i = 0; i < k; i++) sum += row[i] * weights[transposed ? i * shape[1] + from : from * shape[1] + i];
        return sum;
      }),
    );
  };
  const rotate = (x: Rows, rope: RopeConfig): Rows => {
    const long = rope.type === "longrope" && ids.length > rope.originalMaxPositions;
    const [frequencies, scale] = [ropeFrequencies(rope, long), ropeScale(rope)];
    const half = frequencies.length;
    return x.map((row, position) =>
      row.map((value, at) => {
        const i = at % headDim;
        if (i >= 2 * half) return value;
        const angle = position * frequencies[i % half];
        const other = i < half ? -row[at + half] : row[at - half];
        return scale * (value * Math.cos(angle) + other * Math.sin(angle));
      }),
    );
  };
  const attend = (query: Rows, key: Rows, value: Rows, scale: number, window: number): Rows =>
    query.map((row, t) => {
      const out = new Float64Array(heads * headDim);
      for (let head = 0; head < heads; head++) {
        const group = Math.floor(head / (heads / kvHeads)) * headDim;
        const seen = key.map((_, j) => j).filter((j) => j <= t && j > t - window);
        const scores = seen.map((j) => {
          let dot = 0;
          for (let e = 0; e < headDim; e++) dot += row[head * headDim + e] * key[j][group + e];
          return softcap === null ? dot * scale : softcap * Math.tanh((dot * scale) / softcap);
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
  const normed = (x: Rows, by: NormSpec | null) => (by === null ? x : norm(x, by));

  const table = await load(spec.embedding);
  const places = spec.positions === null ? undefined : await load(spec.positions.weight);
  let x: Rows = Array.from(ids, (id, t) =>
    Float64Array.from({ length: d }, (_, i) => table[id * d + i] * config.embeddingScale + (places?.[t * d + i] ?? 0)),
  );
  const states = [x];
  for (const block of spec.blocks) {
    const rope = block.rope === null ? null : ropes[block.rope];
    const turned = (rows: Rows) => (rope === null ? rows : rotate(rows, rope));
    const read = await normed(x, block.attentionNorm);
    const query = turned(await normed(await multiply(read, block.query), block.queryNorm));
    const key = turned(await normed(await multiply(read, block.key), block.keyNorm));
    const value = await multiply(read, block.value);
    const attended = attend(query, key, value, block.attentionScale, block.window ?? Number.POSITIVE_INFINITY);
    const after = add(x, await normed(await multiply(attended, block.attentionOut), block.attentionOutNorm));

    const wide = await normed(block.parallel ? x : after, block.ffnNorm);
    const up = await multiply(wide, block.up);
    const gate = block.gate === null ? null : await multiply(wide, block.gate);
    const activation = ACTIVATIONS[config.activation];
    const inner = (gate ?? up).map((row, t) => row.map((first, i) => activation(first) * (gate ? up[t][i] : 1)));
    x = add(after, await normed(await multiply(inner, block.down), block.ffnOutNorm));
    states.push(x);
  }
  return states.map((rows) => Float32Array.from(rows.flatMap((row) => [...row])));
}
