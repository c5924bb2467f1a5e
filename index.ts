/**
 * The library: everything that a command does can be called.
 *
 * `createEngine` opens the GPU, `loadModel` loads a Hugging Face directory down to a layer, `hiddenStates` and `rank`
 * use it. What is disposable frees GPU memory when it is disposed.
 */
export { type AdapterChoice, type AdapterTrial, openAdapter } from "./engine/adapter.ts";
export { type Batch, type PackedSequence, packBatches, type SequenceGroup } from "./engine/batch.ts";
export { type BenchRow, benchDepth, benchRank } from "./engine/bench.ts";
export type { Device, DeviceInfo, DeviceLimits } from "./engine/device.ts";
export {
  type HiddenStatesOptions,
  hiddenStates,
  type LoadModelOptions,
  loadModel,
  type Model,
} from "./engine/hidden-states.ts";
export { resolveLayer, resolveLayers } from "./engine/layers.ts";
export type { LoadedModel } from "./engine/model.ts";
export { createEngine, type Engine } from "./engine/model.ts";
export { type ModelFiles, openModelFiles } from "./engine/model-files.ts";
export { planRun, type RunOutput, type RunPlan } from "./engine/plan.ts";
export { createRunner, type Runner, type RunnerOptions } from "./engine/runner.ts";
export { type CheckResult, selfCheck } from "./engine/self-check.ts";
export { type ErrorCode, type ErrorKind, StratumError } from "./errors.ts";
export type { EncodeOptions, Pooling } from "./scorer/encode.ts";
export {
  createExtractor,
  type ExtractedSequence,
  type ExtractOptions,
  type ExtractOutcome,
  type Extractor,
} from "./scorer/extract.ts";
export {
  type Candidate,
  type Fields,
  type Id,
  type List,
  type ListLine,
  parseList,
  readLists,
  readSequences,
  type SequenceLine,
} from "./scorer/lists.ts";
export { createRanker, type Ranker, type RankOptions, type RankOutcome, rank } from "./scorer/rank.ts";
export {
  type ErrorRecord,
  type RankedResult,
  type RankingNotes,
  type RankingRecord,
  rankingRecord,
  toJsonLine,
} from "./scorer/rankings.ts";
export { createStatesWriter, type StatesWriter } from "./scorer/states-writer.ts";
export { type Checkpoint, openCheckpoint } from "./weights/checkpoint.ts";
export { type DecoderConfig, readModelConfig } from "./weights/config.ts";
export { decodeFloats, encodeFloats } from "./weights/floats.ts";
export { openSafetensors, type SafetensorsFile } from "./weights/safetensors.ts";
export {
  createSafetensorsWriter,
  type SafetensorsWriter,
  type TensorData,
  writeSafetensors,
} from "./weights/safetensors-writer.ts";
export { loadTokenizer, type Tokenizer } from "./weights/tokenizer.ts";
