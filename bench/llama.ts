/** The weights of a Llama of any shape, drawn from a seed, and what its blocks need beside them. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { encodeFloats } from "../weights/floats.ts";
import { createSafetensorsWriter } from "../weights/safetensors-writer.ts";
import type { LlamaJob, LlamaShape } from "./jobs.ts";
import { wholeSequences } from "./jobs.ts";
import { type Draw, drawBf16, transpose } from "./values.ts";

const EMBEDDING = "model.embed_tokens.weight";
const EMBEDDING_DEVIATION = 0.1;

export type MatrixName = "q" | "k" | "v" | "o" | "gate" | "up" | "down";
export type NormName = "inputNorm" | "postNorm";

interface TensorPlan {
  /** As Hugging Face calls it. */
  readonly name: string;
  /** (N, K), or (D) of a norm. */
  readonly shape: readonly number[];
  readonly mean: number;
  readonly deviation: number;
}

/**
 * The tensors of a block. A matrix keeps the scale of what it multiplies, 1 / sqrt(K); the two that write into the
 * residual stream are smaller by sqrt(2 L), as GPT-2's are, so that its growth does not depend on the depth.
 */
function blockTensors(shape: LlamaShape, block: number): Readonly<Record<MatrixName | NormName, TensorPlan>> {
  const { hidden, heads, kvHeads, headDim, ffn, layers } = shape;
  const at = `model.layers.${block}.`;
  const matrix = (name: string, n: number, k: number, share = 1): TensorPlan => ({
    name: `${at}${name}.weight`,
    shape: [n, k],
    mean: 0,
    deviation: share / Math.sqrt(k),
  });
  const norm = (name: string): TensorPlan => ({
    name: `${at}${name}.weight`,
    shape: [hidden],
    mean: 1,
    deviation: 0.1,
  });
  const residual = 1 / Math.sqrt(2 * layers);
  return {
    inputNorm: norm("input_layernorm"),
    q: matrix("self_attn.q_proj", heads * headDim, hidden),
    k: matrix("self_attn.k_proj", kvHeads * headDim, hidden),
    v: matrix("self_attn.v_proj", kvHeads * headDim, hidden),
    o: matrix("self_attn.o_proj", hidden, heads * headDim, residual),
    postNorm: norm("post_attention_layernorm"),
    gate: matrix("mlp.gate_proj", ffn, hidden),
    up: matrix("mlp.up_proj", ffn, hidden),
    down: matrix("mlp.down_proj", hidden, ffn, residual),
  };
}

function draw({ name, shape, mean, deviation }: TensorPlan, seed: number): Float32Array<ArrayBuffer> {
  return drawBf16({ seed, name, count: shape.reduce((a, b) => a * b), mean, deviation });
}

export interface Weight {
  /** (K, N) of a matrix, (D) of a norm. */
  readonly dims: readonly number[];
  readonly values: Float32Array<ArrayBuffer>;
}

/** A block's weights as the peers want them: matrices (K, N), so that a state is multiplied from the left. */
export function blockWeights(
  shape: LlamaShape,
  seed: number,
  block: number,
): Readonly<Record<MatrixName | NormName, Weight>> {
  const tensors = Object.entries(blockTensors(shape, block)).map(([role, plan]): [string, Weight] => {
    const values = draw(plan, seed);
    const [n, k] = plan.shape;
    return [role, k === undefined ? { dims: [n], values } : { dims: [k, n], values: transpose(values, n, k) }];
  });
  return Object.fromEntries(tensors) as Record<MatrixName | NormName, Weight>;
}

/** The state 0 of the job's whole sequences: their rows of the embedding, (B, T, D). */
export function embeddedSequences(job: LlamaJob): Weight {
  const { shape, seed } = job;
  const sequences = wholeSequences(job);
  const tokens = sequences[0].length;
  const d = shape.hidden;
  const values = new Float32Array(sequences.length * tokens * d);
  for (const [s, ids] of sequences.entries()) {
    for (const [t, id] of ids.entries()) {
      const row: Draw = { seed, name: EMBEDDING, count: d, deviation: EMBEDDING_DEVIATION, first: id * d };
      values.set(drawBf16(row), (s * tokens + t) * d);
    }
  }
  return { dims: [sequences.length, tokens, d], values };
}

/** Cosines and sines of the rotary angles, (T, E) each, both halves alike. */
export function ropeTables({ headDim, ropeTheta }: LlamaShape, tokens: number): { cos: Weight; sin: Weight } {
  const table = (of: (angle: number) => number): Weight => ({
    dims: [tokens, headDim],
    values: Float32Array.from({ length: tokens * headDim }, (_, i) => {
      const pair = i % (headDim / 2);
      return of(Math.floor(i / headDim) * ropeTheta ** ((-2 * pair) / headDim));
    }),
  });
  return { cos: table(Math.cos), sin: table(Math.sin) };
}

/** Scores are masked by adding: WGSL has no infinity, and exp of this is 0 in any float32. */
const MASKED = -1e9;

/** The causal mask for H / G heads that share keys, one below the other: (H / G * T, T). */
export function causalMask({ heads, kvHeads }: LlamaShape, tokens: number): Weight {
  const rows = (heads / kvHeads) * tokens;
  const values = Float32Array.from({ length: rows * tokens }, (_, i) =>
    i % tokens > Math.floor(i / tokens) % tokens ? MASKED : 0,
  );
  return { dims: [rows, tokens], values };
}

/**
 * Writes the model as a Hugging Face folder, bfloat16: its embedding and the blocks below `depth`, which its configuration
 * gives as all there are.
 */
export async function writeModel(directory: string, shape: LlamaShape, seed: number, depth: number): Promise<void> {
  await mkdir(directory, { recursive: true });
  await using writer = await createSafetensorsWriter(join(directory, "model.safetensors"));
  const add = (plan: TensorPlan) => writer.add(plan.name, "BF16", plan.shape, encodeFloats(draw(plan, seed), "BF16"));
  await add({ name: EMBEDDING, shape: [shape.vocab, shape.hidden], mean: 0, deviation: EMBEDDING_DEVIATION });
  for (let block = 0; block < depth; block++) {
    for (const plan of Object.values(blockTensors(shape, block))) await add(plan);
  }
  await writer.finish();
  const config = {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_size: shape.hidden,
    intermediate_size: shape.ffn,
    num_hidden_layers: depth,
    num_attention_heads: shape.heads,
    num_key_value_heads: shape.kvHeads,
    head_dim: shape.headDim,
    vocab_size: shape.vocab,
    max_position_embeddings: 8192,
    rms_norm_eps: shape.eps,
    rope_theta: shape.ropeTheta,
    hidden_act: "silu",
    torch_dtype: "bfloat16",
    tie_word_embeddings: true,
  };
  // Last: a folder with a configuration is whole.
  await writeFile(join(directory, "config.json"), JSON.stringify(config));
}
