/**
 * The library: everything that a command does can be called.
 *
 * `createEngine` opens the GPU, `loadModel` loads a Hugging Face directory down to a layer, `hiddenStates` and `rank`
 * use it. `computeFeatures` or `openFeatures` give what `trainAnchored` and `trainScorer` train on; `saveScorer` and `loadScorer` keep a
 * scorer, `createScorer` scores with it, `rank` takes it as an option. What is disposable frees GPU memory when it is disposed.
 */

export { type AdapterChoice, type AdapterTrial, openAdapter } from "./engine/adapter.ts";
export { type Batch, type PackedSequence, packBatches, type SequenceGroup } from "./engine/batch.ts";
export { benchDepth, benchRank } from "./engine/bench.ts";
export { compareRows, type RowComparison } from "./engine/bench-compare.ts";
export { benchForward, benchForwardFits, type ForwardFits } from "./engine/bench-forward.ts";
export { benchCases, casesFor, type KernelBench } from "./engine/bench-kernels.ts";
export { measurePeak, type Peak, type PeakOptions } from "./engine/bench-peak.ts";
export type { BenchRow, Ceilings } from "./engine/bench-row.ts";
export { CONFIGURATIONS, readConfiguration } from "./engine/configurations.ts";
export {
  type BlockSpec,
  type DecoderConfig,
  type ModelSpec,
  WEIGHT_FORMS,
  type WeightForm,
} from "./engine/decoder.ts";
export type { Device } from "./engine/device.ts";
export type { DeviceInfo, DeviceLimits } from "./engine/device-info.ts";
export { SUPPORTED_MODEL_TYPES } from "./engine/family.ts";
export { fingerprint } from "./engine/fingerprint.ts";
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
export type { RunRequest } from "./engine/plan.ts";
export { planRun, type RunOutput, type RunPlan, type RunPooling } from "./engine/plan.ts";
export { type ProfileReport, profileReport, profileTrace } from "./engine/profile-report.ts";
export { type QuantiseRow, quantiseReport } from "./engine/quantise-report.ts";
export { randomModel, randomWeights } from "./engine/random-weights.ts";
export { type Cosines, createRunner, type Runner, type SequencePair } from "./engine/runner.ts";
export { type CheckResult, selfCheck } from "./engine/self-check.ts";
export { type KernelsRecord, kernelsRecord, type TileTable, tileKey } from "./engine/tiles.ts";
export { TUNE_MODES, type Tuned, type TunedOptions, type TuneMode, tuned } from "./engine/tuned.ts";
export { type TuneOptions, type Tuning, tune } from "./engine/tuner.ts";
export { readTuning, tuningFile, writeTuning } from "./engine/tuner-cache.ts";
export { type ErrorCode, type ErrorKind, StratumError } from "./errors.ts";
export { LOSSES, type LossName } from "./kernels/list-loss.ts";
export {
  type AbstainOptions,
  type AbstainRecord,
  abstainRecordOf,
  areaUnderCoverage,
  type CoveragePoint,
  chooseThreshold,
  coverageAt,
  coverageCurve,
  type FirstPlaces,
  firstPlaces,
} from "./scorer/abstain.ts";
export {
  rawCosine,
  type StateScorer,
  scoreStates,
  trainDifferenceOfMeans,
  trainLinearProbe,
} from "./scorer/baselines.ts";
export { binomialUpper } from "./scorer/binomial.ts";
export { type BootstrapOptions, bootstrapDifference, bootstrapMean, type Estimate } from "./scorer/bootstrap.ts";
export { type CompareOptions, type Comparison, compareScores } from "./scorer/compare.ts";
export type { EncodeOptions, Pooling } from "./scorer/encode.ts";
export { type Evaluation, evaluate, evaluateSlices, type Method, type MethodRow } from "./scorer/evaluate.ts";
export {
  createExtractor,
  type ExtractedSequence,
  type ExtractOptions,
  type ExtractOutcome,
  type Extractor,
} from "./scorer/extract.ts";
export { arraySource, type FeatureArrays, type FeatureSource } from "./scorer/feature-source.ts";
export { computeFeatures, type FeatureOptions, type ListFeatures, writeFeatures } from "./scorer/features.ts";
export { type CachedFeatures, type CacheRequest, cachedFeatures } from "./scorer/features-cache.ts";
export { openFeatures } from "./scorer/features-file.ts";
export { createFeaturesWriter, type FeaturesWriter } from "./scorer/features-writer.ts";
export type { Standardisation } from "./scorer/feeder.ts";
export {
  type ImportCounts,
  type ImportOptions,
  importCounts,
  importLists,
} from "./scorer/import-lists.ts";
export { type ImportFields, type ImportPlan, importRow, planImport } from "./scorer/import-shape.ts";
export { instructionKey } from "./scorer/instructions.ts";
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
export { type ListMeasures, type MeasureName, measureLists, randomMeasures } from "./scorer/measures.ts";
export { type FoundShard, openShards } from "./scorer/merge.ts";
export { mergedLines } from "./scorer/merge-rankings.ts";
export { type MergedStates, openMergedStates } from "./scorer/merge-states.ts";
export { type PairedRankings, pairRankings } from "./scorer/paired-rankings.ts";
export { PRESETS, type PresetName, type Recipe, trainOptionsOf } from "./scorer/presets.ts";
export { createRanker, type Ranker, type RankOptions, type RankOutcome, rank } from "./scorer/rank.ts";
export { type JudgedRanking, judge, type RankingLine, readRankings } from "./scorer/ranking-lines.ts";
export {
  type ErrorRecord,
  type RankedResult,
  type RankingNotes,
  type RankingRecord,
  rankingRecord,
  toJsonLine,
} from "./scorer/rankings.ts";
export { openRankingsFile, type RankingsFile, type RankingsFileRequest } from "./scorer/rankings-file.ts";
export { type Report, type ReportCell, reportSchema } from "./scorer/report-data.ts";
export { readReport } from "./scorer/report-file.ts";
export { openStatesFile, type StatesFile, type StatesFileRequest } from "./scorer/resumable-states.ts";
export { openRows, type RowItem, type RowSource } from "./scorer/rows.ts";
export { splitByInstruction } from "./scorer/sampling.ts";
export { createScorer, type Scorer, type ScorerOptions, type StateRows } from "./scorer/scorer.ts";
export { loadScorer, type SavedScorer, saveScorer } from "./scorer/scorer-file.ts";
export { checkScorerFits } from "./scorer/scorer-fits.ts";
export { initialWeights, parameterShapes, type ScorerSpec } from "./scorer/scorer-spec.ts";
export { loadWeights } from "./scorer/scorer-weights.ts";
export { planShard, type Shard, shardOfEnvironment, shardPath } from "./scorer/shards.ts";
export type { ReportStates, StateCosine, StateMap, StateNorm, StateSeparation } from "./scorer/states-data.ts";
export { type LookOptions, lookAtStates, type StatePlace } from "./scorer/states-look.ts";
export { createStatesWriter, type StatesWriter } from "./scorer/states-writer.ts";
export {
  type Place,
  placeList,
  placesOf,
  runUnit,
  type SweepFile,
  type SweepOptions,
  type SweepUnit,
  sweepUnits,
} from "./scorer/sweep.ts";
export { type CostOptions, measureCosts } from "./scorer/sweep-costs.ts";
export { makeReport, type SweepFindings, writeReport } from "./scorer/sweep-report.ts";
export { type TextList, trainBagOfWords } from "./scorer/text-baselines.ts";
export { trainScorer } from "./scorer/train.ts";
export { type AnchoredOptions, type AnchoredResult, trainAnchored } from "./scorer/train-anchors.ts";
export type { TrainOptions, TrainPlan, TrainResult, TrainRun } from "./scorer/train-options.ts";
export { type Checkpoint, openCheckpoint, type RemoteFiles } from "./weights/checkpoint.ts";
export { decodeFloats, encodeFloats } from "./weights/floats.ts";
export { type HubModel, type HubOptions, type HubProgress, openHubModel } from "./weights/hub.ts";
export { type HubName, parseHubName } from "./weights/hub-name.ts";
export { type HubSettings, hubSettings } from "./weights/hub-settings.ts";
export { openSafetensors, type SafetensorsFile } from "./weights/safetensors.ts";
export {
  createSafetensorsWriter,
  type SafetensorsWriter,
  type TensorData,
  writeSafetensors,
} from "./weights/safetensors-writer.ts";
export { loadTokenizer, type Tokenizer } from "./weights/tokenizer.ts";
