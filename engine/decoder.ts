/**
 * A decoder-only transformer as data: what the forward pass reads. It knows no family by name; a family's file in
 * `families/` fills this in from config.json and says where the tensors lie.
 */
import type { Activation } from "../kernels/activation.ts";
import type { RopeConfig } from "../weights/rope.ts";

/** How every norm of a model is computed. */
export interface NormConfig {
  /** `rms`: x / rms(x) * weight; `layer`: (x - mean) / deviation * weight + bias. */
  readonly kind: "rms" | "layer";
  readonly eps: number;
  /** Added to the stored weight: 1 where a checkpoint stores weight - 1. */
  readonly weightOffset: 0 | 1;
}

/** Sizes and settings of all blocks. Sizes count elements, not bytes. */
export interface DecoderConfig {
  readonly modelType: string;
  /** D */
  readonly hiddenSize: number;
  /** L */
  readonly layers: number;
  /** H */
  readonly heads: number;
  /** G; divides `heads`. */
  readonly kvHeads: number;
  /** E; even. `heads` x `headDim` need not be `hiddenSize`. */
  readonly headDim: number;
  /** F */
  readonly ffn: number;
  /** V */
  readonly vocab: number;
  /** Tokens that a sequence may have. */
  readonly maxPositions: number;
  readonly norm: NormConfig;
  readonly activation: Exclude<Activation, "none">;
  /** Cap of the attention scores: cap * tanh(score / cap); null: none. */
  readonly softcap: number | null;
  /** Factor of the embeddings. */
  readonly embeddingScale: number;
  /** The rotary embeddings of the model; a block names one by its index. */
  readonly ropes: readonly RopeConfig[];
  readonly tiedEmbeddings: boolean;
  /** As in the file, e.g. `bfloat16`; what the tensors really are stands in their own headers. */
  readonly dtype: string | null;
  /** As in the file; null where it has none. */
  readonly bosId: number | null;
  readonly eosId: number | readonly number[] | null;
}

/** A vector of the file, or a part of one, picked as a matrix's rows are. */
export interface VectorSpec {
  readonly name: string;
  /** Elements in the file. */
  readonly size: number;
}

/** Row n of a matrix is row `offset + floor(n / run) * stride + n % run` of its tensor. */
export interface RowLayout {
  readonly offset: number;
  readonly run: number;
  readonly stride: number;
}

/** A weight matrix (N, K) of a block, and its bias (N) where the family has one. */
export interface MatrixSpec {
  readonly weight: string;
  /** Of the tensor in the file: (rows, K), or (K, rows) where `transposed`. */
  readonly shape: readonly [number, number];
  /** Stored as x @ W wants it, as GPT-2's Conv1D is. */
  readonly transposed: boolean;
  readonly rows: RowLayout;
  /** As many elements as the tensor has rows, picked like them. */
  readonly bias: string | null;
  readonly n: number;
  readonly k: number;
}

/** A norm's tensors, of `size` elements each. */
export interface NormSpec {
  readonly weight: string;
  readonly bias: string | null;
  readonly size: number;
}

/** One block: x += attention(norm(x)); x += ffn(norm(x)), and what families change of that. */
export interface BlockSpec {
  /** A token attends to itself and the `window - 1` before it; null: to all before it. */
  readonly window: number | null;
  /** Index into `ropes`; null: queries and keys stay as they are. */
  readonly rope: number | null;
  /** Factor of the attention scores. */
  readonly attentionScale: number;
  /** Of what queries, keys and values are made of; null: of the stream itself. */
  readonly attentionNorm: NormSpec | null;
  readonly query: MatrixSpec;
  readonly key: MatrixSpec;
  readonly value: MatrixSpec;
  /** Ahead of the rotation; of `headDim` elements over every head alone, or of all heads together. */
  readonly queryNorm: NormSpec | null;
  readonly keyNorm: NormSpec | null;
  readonly attentionOut: MatrixSpec;
  /** Of what attention adds to the stream. */
  readonly attentionOutNorm: NormSpec | null;
  /** The feed-forward part reads what attention read, not what it left: both are added to the same stream. */
  readonly parallel: boolean;
  readonly ffnNorm: NormSpec | null;
  /** down(activation(gate) * up); null: down(activation(up)). */
  readonly gate: MatrixSpec | null;
  readonly up: MatrixSpec;
  readonly down: MatrixSpec;
  readonly ffnOutNorm: NormSpec | null;
}

/**
 * In what form matrices are held on the GPU: as the file stores them, or quantised while they are loaded, symmetrically in
 * groups of 32 along k (see kernels/quantise.ts).
 */
export const WEIGHT_FORMS = ["stored", "int8", "int4"] as const;
export type WeightForm = (typeof WEIGHT_FORMS)[number];

/** The tensors and structure of a model under the names of one checkpoint. */
export interface ModelSpec {
  readonly config: DecoderConfig;
  readonly form: WeightForm;
  /** (V, D) */
  readonly embedding: string;
  /** Learned positions (maxPositions, D) that are added to the embeddings. */
  readonly positions: { readonly weight: string; readonly rows: number } | null;
  readonly blocks: readonly BlockSpec[];
  /** What the names of its tensors begin with. */
  readonly prefix: string;
}

export const MATRIX_ROLES = ["query", "key", "value", "attentionOut", "gate", "up", "down"] as const;
export type MatrixRole = (typeof MATRIX_ROLES)[number];

export const NORM_ROLES = [
  "attentionNorm",
  "queryNorm",
  "keyNorm",
  "attentionOutNorm",
  "ffnNorm",
  "ffnOutNorm",
] as const;
export type NormRole = (typeof NORM_ROLES)[number];

/** Names of a block's tensors in the file, each once. */
export function blockTensors(block: BlockSpec): string[] {
  const norms = NORM_ROLES.map((role) => block[role]);
  const matrices = MATRIX_ROLES.map((role) => block[role]);
  const names = [...norms, ...matrices].flatMap((spec) => [spec?.weight ?? null, spec?.bias ?? null]);
  return [...new Set(names.filter((name) => name !== null))];
}

/** Names of the tensors that a run to a layer reads. */
export function tensorsTo(spec: ModelSpec, depth: number): string[] {
  const positions = spec.positions === null ? [] : [spec.positions.weight];
  return [...new Set([spec.embedding, ...positions, ...spec.blocks.slice(0, depth).flatMap(blockTensors)])];
}

/** How long a sequence may be, in words. */
export function lengthLimit({ maxPositions, ropes }: DecoderConfig): string {
  const dynamic = ropes.some(({ type }) => type === "dynamic");
  return dynamic
    ? `the model has ${maxPositions} positions (its dynamic rope goes beyond them by frequencies that depend on the whole length, which is not supported)`
    : `the model has ${maxPositions} positions`;
}
