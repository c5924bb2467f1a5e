/** The jobs that the peers are given: plain data, and what it costs. */
import type { SequenceGroup } from "../engine/batch.ts";
import { drawIds } from "./values.ts";

/** A Llama. */
export interface LlamaShape {
  /** D */
  readonly hidden: number;
  /** H */
  readonly heads: number;
  /** G */
  readonly kvHeads: number;
  /** E */
  readonly headDim: number;
  /** F */
  readonly ffn: number;
  /** V: rows of the embedding, which are looked up on the host by everyone. */
  readonly vocab: number;
  /** L */
  readonly layers: number;
  readonly ropeTheta: number;
  readonly eps: number;
}

/** The sizes of SmolLM2-135M. The base of the rotary angles is 1e4: it changes values and no cost. */
export const SMOLLM2_135M: LlamaShape = {
  hidden: 576,
  heads: 9,
  kvHeads: 3,
  headDim: 64,
  ffn: 1536,
  vocab: 49152,
  layers: 30,
  ropeTheta: 1e4,
  eps: 1e-5,
};

/** x (T, K) float32 times weights (N, K) with bfloat16 values. */
export interface MatmulJob {
  readonly kind: "matmul";
  readonly rows: number;
  readonly k: number;
  readonly n: number;
  readonly seed: number;
}

/** Independent sequences through the blocks below a layer; the result is the state of each one's last token, (B, D). */
export interface StackJob {
  readonly kind: "stack";
  readonly shape: LlamaShape;
  readonly batch: number;
  readonly tokens: number;
  readonly layer: number;
  readonly seed: number;
}

/** A prompt and candidates behind it; the result is the state of each candidate's last token, (M, D). */
export interface RankJob {
  readonly kind: "rank";
  readonly shape: LlamaShape;
  readonly prompt: number;
  readonly candidates: number;
  readonly tokens: number;
  readonly layer: number;
  readonly seed: number;
}

export type LlamaJob = StackJob | RankJob;
export type Job = MatmulJob | LlamaJob;

/** In words of sizes. */
export function describeJob(job: Job): string {
  if (job.kind === "matmul") return `matmul ${job.rows} x ${job.k} x ${job.n}`;
  if (job.kind === "stack") return `stack ${job.batch} x ${job.tokens} tokens to layer ${job.layer}`;
  return `rank ${job.prompt} + ${job.candidates} x ${job.tokens} tokens to layer ${job.layer}`;
}

/** The whole sequences, one each row of the result: a runtime without shared prefixes runs these. */
export function wholeSequences(job: LlamaJob): readonly Int32Array[] {
  const { shape, seed } = job;
  if (job.kind === "stack") {
    return Array.from({ length: job.batch }, (_, i) => drawIds(seed, `ids ${i}`, job.tokens, shape.vocab));
  }
  const prompt = drawIds(seed, "prompt", job.prompt, shape.vocab);
  return Array.from({ length: job.candidates }, (_, i) =>
    Int32Array.from([...prompt, ...drawIds(seed, `ids ${i}`, job.tokens, shape.vocab)]),
  );
}

/** The same sequences as the lists that a ranker has: of `rank` the prompt in front, whose state it needs too. */
export function listsOf(job: LlamaJob): readonly SequenceGroup[] {
  const sequences = wholeSequences(job);
  if (job.kind === "stack") return sequences.map((ids) => ({ sequences: [ids] }));
  return [{ sequences: [sequences[0].subarray(0, job.prompt), ...sequences], anchored: true }];
}

/** Parameters of a block's matrices. */
function blockParameters({ hidden, heads, kvHeads, headDim, ffn }: LlamaShape): number {
  return hidden * headDim * (2 * heads + 2 * kvHeads) + 3 * hidden * ffn;
}

/**
 * Operations of a job as its whole sequences cost them, every row to the last block, attention not halved for its mask.
 * What a runtime saves by sharing or pruning is not taken off: time and this number give a nominal rate.
 */
export function flopsOf(job: Job): number {
  if (job.kind === "matmul") return 2 * job.rows * job.k * job.n;
  const { shape, layer } = job;
  const [count, length] = job.kind === "stack" ? [job.batch, job.tokens] : [job.candidates, job.prompt + job.tokens];
  const attention = 4 * length * length * shape.heads * shape.headDim;
  return layer * count * (2 * length * blockParameters(shape) + attention);
}

/** Width of a row of a job's result. */
export function widthOf(job: Job): number {
  return job.kind === "matmul" ? job.n : job.shape.hidden;
}
