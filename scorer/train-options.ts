/** What a training is asked for, told of, and gives. */
import type { LossName } from "../kernels/list-loss.ts";
import type { EpochRecord } from "./checkpoint.ts";
import type { Standardisation } from "./feeder.ts";
import type { ScheduleName } from "./schedule.ts";
import type { ScorerSpec } from "./scorer-spec.ts";
import type { StepRecord } from "./trainer.ts";

export const ANCHORS = ["instruction", "learned"] as const;
export type Anchor = (typeof ANCHORS)[number];

export interface TrainOptions {
  readonly spec: ScorerSpec;
  readonly loss: LossName;
  /** The rate of all dropouts, in [0, 1). */
  readonly dropout: number;
  /** Rate of the dropout at the features, in [0, 1). */
  readonly inputDropout: number;
  /**
   * What the responses are compared with: the instruction's state, or a learned vector in its place (the projection's
   * bias: the instruction enters as zeros). The second forgets the instruction; where lists are few, its state is mostly a way to learn them by heart.
   */
  readonly anchor: Anchor;
  /**
   * Added to every feature of an instruction once it is standardised. Standardising instructions and responses apart takes
   * away what tells the one from the other, and a shared projection followed by a cosine then scores likeness alone.
   */
  readonly instructionOffset: number;
  readonly lr: number;
  readonly weightDecay: number;
  /** Bound of the gradient's global norm; 0: none. */
  readonly clip: number;
  readonly schedule: ScheduleName;
  /** Steps of linear warm-up, or their share of all. */
  readonly warmup: number | { readonly share: number };
  /** Lists a step; "all": every training list in every step, in their order. */
  readonly batchLists: number | "all";
  /** Passes over the training lists. */
  readonly epochs: number;
  /** Steps in all; overrides `epochs`. */
  readonly steps?: number | undefined;
  /** How often a drawn list is a random part of itself, in [0, 1]. */
  readonly subLists: number;
  /** Share of the lists that validate, by instruction; 0: none, and the last weights count. */
  readonly validation: number;
  /** Which epoch's weights are the best: of the lowest validation loss, or of the highest top-1, ties by the loss. */
  readonly select: "loss" | "top1";
  /** Epochs without a better one that end the run; 0: never. */
  readonly patience: number;
  readonly standardise: boolean;
  readonly seed: number;
}

export interface TrainRun {
  /** An instruction's text a list, so that its lists stay on one side; by default every list is an instruction. */
  readonly instructions?: readonly string[] | undefined;
  /** First weights by PyTorch's names; by default drawn from the seed. */
  readonly init?: ReadonlyMap<string, Float32Array> | undefined;
  /** Lists to train on (validation included); default all. */
  readonly lists?: readonly number[] | undefined;
  /** What the features come from, as `KernelsRecord.id`; a run that is resumed must have the same. */
  readonly kernels?: string | undefined;
  /** Where checkpoints go; none are written without. */
  readonly checkpoint?: { readonly path: string; readonly everySteps: number; readonly resume: boolean } | undefined;
  /** Bytes of features that may stay on the GPU; beyond, they are brought batch by batch. Default 2 GiB. */
  readonly residentLimit?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Before anything is allocated: what the run will hold on the GPU. */
  readonly onPlan?: ((plan: TrainPlan) => void | Promise<void>) | undefined;
  readonly onStep?: ((record: StepRecord) => void) | undefined;
  readonly onEpoch?: ((record: EpochRecord, best: boolean) => void) | undefined;
  /** The GPU device was lost: the steps after so many are taken again, bit for bit, and reported again. */
  readonly onRepeat?: ((step: number) => void | Promise<void>) | undefined;
  /** A checkpoint is about to be written, for so many steps: what belongs to them must be on disk before it. */
  readonly onCheckpoint?: ((step: number) => Promise<void>) | undefined;
}

export interface TrainPlan {
  readonly bytes: number;
  /** All features stay on the GPU. */
  readonly resident: boolean;
  readonly trainLists: number;
  readonly validationLists: number;
  /** Lists that teach nothing: a missing label, or all labels alike. */
  readonly leftOut: number;
  readonly parameters: number;
  readonly steps: number;
  readonly stepsPerEpoch: number;
  /** The step that the run begins at: above 0 when it is resumed. */
  readonly from: number;
}

export interface TrainResult {
  /** By PyTorch's names: those of the best epoch, or the last without validation. */
  readonly weights: Map<string, Float32Array<ArrayBuffer>>;
  readonly last: Map<string, Float32Array<ArrayBuffer>>;
  readonly standardisation: Standardisation | null;
  readonly epochs: readonly EpochRecord[];
  /** Index into `epochs`. */
  readonly best: number | null;
  /** Mean loss of training lists whose scores are all equal. */
  readonly chance: number;
  readonly steps: number;
  /** Ended by early stopping. */
  readonly stoppedEarly: boolean;
  /** Ended by the signal, after a checkpoint. */
  readonly interrupted: boolean;
  /** Indices into the source. */
  readonly trainLists: readonly number[];
  readonly validationLists: readonly number[];
  readonly plan: TrainPlan;
}
