/**
 * Model families as data: which tensors a block of a checkpoint consists of. The forward pass reads this, and knows no
 * family by name.
 */
import { StratumError } from "../errors.ts";
import type { Checkpoint } from "../weights/checkpoint.ts";
import type { DecoderConfig } from "../weights/config.ts";

/** A weight matrix of a block, (N, K) in the file, and its bias (N) where the family has one. */
export interface MatrixSpec {
  readonly weight: string;
  readonly bias: string | null;
  readonly n: number;
  readonly k: number;
}

/** The tensors of one pre-norm block. */
export interface BlockSpec {
  readonly attentionNorm: string;
  readonly query: MatrixSpec;
  readonly key: MatrixSpec;
  readonly value: MatrixSpec;
  readonly attentionOut: MatrixSpec;
  readonly ffnNorm: string;
  readonly gate: MatrixSpec;
  readonly up: MatrixSpec;
  readonly down: MatrixSpec;
}

export interface ModelSpec {
  readonly config: DecoderConfig;
  /** (V, D); `lm_head.weight` where a tied checkpoint stores only that. */
  readonly embedding: string;
  readonly blocks: readonly BlockSpec[];
}

/** Llama and what shares its layout: Mistral, Vicuna, TinyLlama, SmolLM, Yi. */
function llamaBlock(prefix: string, config: DecoderConfig, index: number): BlockSpec {
  const { hiddenSize: d, heads, kvHeads, headDim, ffn, attentionBias, mlpBias } = config;
  const at = `${prefix}layers.${index}.`;
  const matrix = (name: string, n: number, k: number, bias: boolean): MatrixSpec => ({
    weight: `${at}${name}.weight`,
    bias: bias ? `${at}${name}.bias` : null,
    n,
    k,
  });
  return {
    attentionNorm: `${at}input_layernorm.weight`,
    query: matrix("self_attn.q_proj", heads * headDim, d, attentionBias),
    key: matrix("self_attn.k_proj", kvHeads * headDim, d, attentionBias),
    value: matrix("self_attn.v_proj", kvHeads * headDim, d, attentionBias),
    attentionOut: matrix("self_attn.o_proj", d, heads * headDim, attentionBias),
    ffnNorm: `${at}post_attention_layernorm.weight`,
    gate: matrix("mlp.gate_proj", ffn, d, mlpBias),
    up: matrix("mlp.up_proj", ffn, d, mlpBias),
    down: matrix("mlp.down_proj", d, ffn, mlpBias),
  };
}

/**
 * The tensors that a model of this configuration consists of, under the names that this checkpoint uses.
 * @throws {StratumError} `model/missing-tensor` where no embedding is stored
 */
export function modelSpec(config: DecoderConfig, checkpoint: Checkpoint): ModelSpec {
  const prefix =
    ["model.", "", "language_model.model."].find((p) => checkpoint.has(`${p}layers.0.input_layernorm.weight`)) ??
    "model.";
  const candidates = [`${prefix}embed_tokens.weight`, ...(config.tiedEmbeddings ? ["lm_head.weight"] : [])];
  const embedding = candidates.find((name) => checkpoint.has(name));
  if (embedding === undefined) {
    throw new StratumError(
      "model/missing-tensor",
      `${checkpoint.directory} has no embedding: looked for ${candidates.join(", ")}`,
      "download the checkpoint again; a tied one may store lm_head.weight alone, with tie_word_embeddings true in config.json",
    );
  }
  return { config, embedding, blocks: Array.from({ length: config.layers }, (_, i) => llamaBlock(prefix, config, i)) };
}

/** Names of a block's tensors. */
export function blockTensors(block: BlockSpec): string[] {
  const matrices = [block.query, block.key, block.value, block.attentionOut, block.gate, block.up, block.down];
  return [
    block.attentionNorm,
    block.ffnNorm,
    ...matrices.flatMap(({ weight, bias }) => (bias === null ? [weight] : [weight, bias])),
  ];
}
