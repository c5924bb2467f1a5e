/** What ranking and training read: scorers, weights, features, checkpoints of a training, tuned kernels, benchmarks. */
import { createHash } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { openReport } from "../../../cli/bench-report.ts";
import type { Engine } from "../../../engine/model.ts";
import { tileKey } from "../../../engine/tiles.ts";
import { readTuning, tuningKey } from "../../../engine/tuner-cache.ts";
import { matmulChoices } from "../../../kernels/matmul.ts";
import { readCheckpoint } from "../../../scorer/checkpoint.ts";
import { openFeatures } from "../../../scorer/features-file.ts";
import { readReport } from "../../../scorer/report-file.ts";
import { loadScorer } from "../../../scorer/scorer-file.ts";
import { initialWeights, parameterCount, parameterShapes, type ScorerSpec } from "../../../scorer/scorer-spec.ts";
import { inspectWeights, loadWeights } from "../../../scorer/scorer-weights.ts";
import { seenInstructions } from "../../../scorer/seen.ts";
import { encodeFloats } from "../../../weights/floats.ts";
import { DTYPE_BITS, type Dtype, tensorBytes } from "../../../weights/safetensors-header.ts";
import { fuzzFolder } from "./folder.ts";
import { type FuzzTarget, fuzzTarget, outcomeOf } from "./harness.ts";
import { changedJson, changedJsonText, damaged } from "./mutations.ts";

const encoder = new TextEncoder();
const folder = fuzzFolder("scorer");
const at = (name: string) => join(folder, name);
const sha256 = (...parts: readonly (string | Uint8Array)[]) =>
  parts.reduce((hash, part) => hash.update(part), createHash("sha256")).digest("hex");

interface Part {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** A safetensors file, whatever its parts say of themselves. */
function fileOf(parts: readonly Part[], metadata?: unknown): Uint8Array {
  let offset = 0;
  const header: [string, unknown][] = metadata === undefined ? [] : [["__metadata__", metadata]];
  for (const { name, dtype, shape, bytes } of parts) {
    header.push([name, { dtype, shape, data_offsets: [offset, offset + bytes.length] }]);
    offset += bytes.length;
  }
  const text = encoder.encode(JSON.stringify(Object.fromEntries(header)));
  const length = new Uint8Array(8);
  new DataView(length.buffer).setBigUint64(0, BigInt(text.length), true);
  return Buffer.concat([length, text, ...parts.map(({ bytes }) => bytes)]);
}

const float = fc.oneof(fc.constantFrom(0, 1, -1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 1e38, -0), fc.float());

/** Parts, some of them left out, renamed, of another type, with other sizes or values, and as many bytes as that takes. */
function changedParts(parts: readonly Part[]): fc.Arbitrary<readonly Part[]> {
  const edit = fc.record({
    at: fc.nat(parts.length - 1),
    how: fc.constantFrom("leave out", "name", "dtype", "shape", "value", "bytes"),
    name: fc.constantFrom("mask", "offsets", "labels", "x", ...parts.map(({ name }) => name)),
    dtype: fc.constantFrom(...(Object.keys(DTYPE_BITS) as Dtype[])),
    size: fc.constantFrom(0, 1, 2, 3, 5),
    place: fc.nat(30),
    value: float,
  });
  return fc.array(edit, { maxLength: 3 }).map((edits) => edits.reduce<readonly Part[]>(changed, parts));

  function changed(before: readonly Part[], by: Parameters<Parameters<typeof edit.map>[0]>[0]): readonly Part[] {
    return before.flatMap((part, i) => {
      if (i !== by.at) return [part];
      if (by.how === "leave out") return [];
      if (by.how === "name") return before.some(({ name }) => name === by.name) ? [part] : [{ ...part, name: by.name }];
      if (by.how === "dtype") return [refilled({ ...part, dtype: by.dtype })];
      if (by.how === "shape") {
        const place = by.place % (part.shape.length + 1);
        return [refilled({ ...part, shape: [...part.shape.slice(0, place), by.size, ...part.shape.slice(place + 1)] })];
      }
      const bytes = Uint8Array.from(part.bytes);
      if (bytes.length === 0) return [part];
      if (by.how === "bytes") bytes[by.place % bytes.length] = by.size * 51;
      else
        bytes.set(
          encodeFloats(Float32Array.of(by.value), "F32").subarray(0, bytes.length),
          (by.place % Math.max(1, bytes.length >> 2)) * (bytes.length > 4 ? 4 : 0),
        );
      return [{ ...part, bytes }];
    });
  }
}

function refilled(part: Part): Part {
  const length = tensorBytes(part.dtype as Dtype, part.shape) ?? part.bytes.length;
  const bytes = new Uint8Array(length);
  bytes.set(part.bytes.subarray(0, length));
  return { ...part, bytes };
}

const f32 = (name: string, shape: readonly number[], values: readonly number[]): Part => ({
  name,
  dtype: "F32",
  shape,
  bytes: encodeFloats(Float32Array.from(values), "F32"),
});
const RAGGED: readonly Part[] = [
  f32("inst", [2, 2], [1, 2, 3, 4]),
  f32("resp", [3, 2], [1, 2, 3, 4, 5, 6]),
  f32("labels", [3], [1, 0, Number.NaN]),
  { name: "offsets", dtype: "I32", shape: [3], bytes: new Uint8Array(Int32Array.of(0, 2, 3).buffer) },
];
const PADDED: readonly Part[] = [
  f32("inst", [2, 2], [1, 2, 3, 4]),
  f32("resp", [2, 2, 2], [1, 2, 3, 4, 5, 6, 7, 8]),
  f32("labels", [2, 2], [1, 0, 1, 0]),
  { name: "mask", dtype: "BOOL", shape: [2, 2], bytes: Uint8Array.of(1, 1, 0, 1) },
];

async function readFeatures(bytes: Uint8Array): Promise<void> {
  writeFileSync(at("f.safetensors"), bytes);
  await using features = await openFeatures(at("f.safetensors"));
  for (let b = 0; b < features.lists; b++) {
    const rows = 1 + features.offsets[b + 1]! - features.offsets[b]!;
    await features.readList(b, new Float32Array(rows * features.dim));
  }
}

const SPECS: readonly ScorerSpec[] = [
  { head: "pointwise", dim: 2, width: 2, heads: 1, ffn: 3, tau: 0.2 },
  { head: "listwise", dim: 2, width: 4, heads: 2, ffn: 3, tau: 1 },
];
const partsOf = (spec: ScorerSpec): readonly Part[] => {
  const weights = initialWeights(spec, 1);
  return parameterShapes(spec).map(({ name, shape }) => f32(name, shape, [...weights.get(name)!]));
};
const STANDARDISE = ["inst.mean", "inst.scale", "resp.mean", "resp.scale"].map((name) =>
  f32(`standardise.${name}`, [2], [1, 2]),
);
const CONFIGS = SPECS.map(({ head, tau, ...sizes }, i) => ({
  format: "stratum-scorer",
  version: 1,
  base_model: i === 0 ? { name: "m", fingerprint: "f" } : null,
  layer: 2,
  pooling: "last",
  system: null,
  head,
  sizes,
  tau,
  standardise: true,
  training: { seed: 1, instructions: { train: ["a"], validation: [] } },
  sha256: "0".repeat(64),
}));
const CONFIG_KEYS = [
  "format",
  "version",
  "sizes",
  "dim",
  "width",
  "heads",
  "ffn",
  "tau",
  "training",
  "instructions",
  "head",
];

/** A pair whose scorer.json names the weights' hash, as an attacker's would. */
const scorers = fc.nat(SPECS.length - 1).chain((i) =>
  fc.tuple(
    changedJson([CONFIGS[i]], CONFIG_KEYS, ["listwise", "pointwise", 65, 128, 2 ** 40]),
    fc.oneof(
      changedParts([...partsOf(SPECS[i]!), ...STANDARDISE]).map((parts) => fileOf(parts)),
      damaged([fileOf([...partsOf(SPECS[i]!), ...STANDARDISE])]),
    ),
    // A pair that does not match is looked at three times, with pauses between.
    fc.nat(100).map((n) => n > 0),
  ),
);

const PROGRESS = {
  version: 1,
  run: { lr: 1 },
  step: 3,
  epochs: [{ epoch: 1, step: 3, loss: 1, validation: { loss: 1, top1: 0.5 } }],
  partial: { steps: 0, loss: 0 },
  recent: [1],
  best: 0,
  stopped: false,
};
const TRAINED = parameterCount(SPECS[0]!);
const CHECKPOINT = [
  ...["weights", "first", "second", "best"].map((name) =>
    f32(
      name,
      [TRAINED],
      Array.from({ length: TRAINED }, (_, i) => i),
    ),
  ),
  ...["mean", "scale"].map((name) => f32(name, [4], [1, 2, 3, 4])),
];

const TARGET = { subgroupSize: 8, textures: true };
const ENGINE = { target: TARGET, device: { info: { identity: "here" } } } as unknown as Engine;
const SHAPE = { k: 64, n: 96, weight: "bf16", epilogue: "store" } as const;
const TUNING = {
  format: "stratum-tuning",
  version: 1,
  entries: [{ ...tuningKey(ENGINE), tiles: { [tileKey(SHAPE)]: matmulChoices(ENGINE.target, SHAPE)[3] } }],
};
const BENCH = {
  adapter: "a",
  rows: [{ name: "matmul", shape: "1", dtype: "f32", variant: "v", median_ms: 1, iqr_ms: 0.1, gflops: 1 }],
};

const ESTIMATE = { mean: 0.5, low: 0.4, high: 0.6, lists: 9 };
const MEASURES = { top1: ESTIMATE, pairwise: ESTIMATE, mrr: null, ndcg: null };
const DATA = {
  name: "a.jsonl",
  sha256: "0",
  lists: 1,
  failed: 0,
  unlabelled: 0,
  no_contrast: 0,
  instructions: 1,
  candidates: 2,
};
const REPORT = {
  format: "stratum-report",
  version: 1,
  run: {
    command: "stratum sweep",
    date: "2026-01-01T00:00:00Z",
    seconds: 1,
    model: { name: "m", revision: null, fingerprint: "f", type: "llama", layers: 2, hidden_size: 8, weights: "stored" },
    data: DATA,
    tests: [],
    adapter: { name: "a", source: "embedded", software: true },
    kernels: "k",
    versions: { stratum: "0", node: "20", webgpu: "0", platform: "linux" },
    seeds: [0],
    layers: [1],
    poolings: ["last"],
    concat: [],
    options: {
      test_share: 0.5,
      ndcg_depth: 5,
      safe_from: null,
      bootstrap: 100,
      system: null,
      date: null,
      truncate: false,
      control: true,
      scorers: {},
    },
  },
  methods: [{ name: "srr", kind: "scorer", pointwise: false }],
  rows: [{ method: "srr", layers: [1], pooling: "last", ...MEASURES, deviation: 0, seeds: [{ seed: 0, ...MEASURES }] }],
  costs: [],
  costs_note: null,
  recommendation: null,
  transfer: null,
  slices: [],
  states: null,
  coverage: null,
};

export const SCORER_TARGETS: readonly FuzzTarget[] = [
  fuzzTarget(
    "features: other parts, types, sizes and values",
    2000,
    [
      "ok",
      "features/bad-shape",
      "features/bad-dtype",
      "features/bad-offsets",
      "features/bad-mask",
      "features/missing-tensor",
      "features/empty-list",
      "state/not-finite",
    ],
    fc.oneof(changedParts(RAGGED), changedParts(PADDED)).map((parts) => fileOf(parts)),
    (bytes) => outcomeOf(() => readFeatures(bytes)),
  ),
  fuzzTarget(
    "features: damaged files",
    600,
    ["ok", "safetensors/truncated"],
    damaged([fileOf(RAGGED), fileOf(PADDED)]),
    (bytes) => outcomeOf(() => readFeatures(bytes)),
  ),
  fuzzTarget(
    "scorers: changed folders",
    600,
    [
      "ok",
      "scorer/bad-config",
      "scorer/bad-size",
      "scorer/mixed-files",
      "scorer/missing-tensor",
      "scorer/tensor-shape",
      "scorer/not-finite",
    ],
    scorers,
    ([config, weights, matching]) => {
      writeFileSync(at("scorer.safetensors"), weights);
      const named =
        matching && typeof config === "object" && config !== null && "sha256" in config
          ? { ...config, sha256: sha256(weights) }
          : config;
      writeFileSync(at("scorer.json"), JSON.stringify(named));
      return outcomeOf(async () => seenInstructions((await loadScorer(folder)).training));
    },
  ),
  fuzzTarget(
    "weights: other parts, types, sizes and values",
    700,
    ["ok", "scorer/missing-tensor", "scorer/tensor-shape", "scorer/tensor-dtype", "scorer/not-finite"],
    fc.oneof(...SPECS.map((spec) => fc.tuple(fc.constant(spec), changedParts(partsOf(spec))))),
    ([spec, parts]) => {
      writeFileSync(at("w.safetensors"), fileOf(parts));
      return outcomeOf(async () => {
        await inspectWeights(at("w.safetensors"));
        await loadWeights(at("w.safetensors"), spec);
      });
    },
  ),
  fuzzTarget(
    "checkpoints of a training: changed",
    500,
    ["ok", "train/bad-checkpoint"],
    fc.tuple(changedJson([PROGRESS], ["run", "epochs"]), changedParts(CHECKPOINT), fc.boolean()),
    ([progress, parts, matching]) => {
      const text = JSON.stringify(progress);
      const hash = matching ? sha256(text, ...parts.map(({ bytes }) => bytes)) : "0";
      writeFileSync(at("c.safetensors"), fileOf(parts, { progress: text, sha256: hash }));
      return outcomeOf(() => readCheckpoint(at("c.safetensors"), TRAINED, 2));
    },
  ),
  fuzzTarget(
    "tuned kernels: changed files, which are never an error",
    150,
    ["ok"],
    changedJsonText([TUNING], ["tiles", "tileRows", "entries"]),
    async (bytes) => {
      writeFileSync(at("tuning.json"), bytes);
      await readTuning(ENGINE, at("tuning.json"));
      return "ok";
    },
  ),
  fuzzTarget(
    "reports: changed files",
    500,
    ["ok", "report/damaged", "report/other-version"],
    changedJsonText([REPORT], ["rows", "seeds", "recommendation", "states"]),
    (bytes) => {
      writeFileSync(at("report.json"), bytes);
      return outcomeOf(() => readReport(folder));
    },
  ),
  fuzzTarget(
    "an earlier benchmark: changed files",
    300,
    ["ok", "usage/compare"],
    changedJsonText([BENCH], ["rows", "median_ms"]),
    (bytes) => {
      writeFileSync(at("bench.json"), bytes);
      return outcomeOf(() => openReport({ compare: at("bench.json") } as Parameters<typeof openReport>[0]));
    },
  ),
];
