/**
 * What a report folder holds: the contract between the sweep that measures and whatever shows it. `report.json` is one
 * object of {@link reportSchema}, `cells.jsonl` a line of {@link cellSchema} a method, place and seed, `report.csv` the
 * rows. Measures are shares in [0, 1], times milliseconds, sizes bytes; what could not be measured is null, never 0.
 */
import { z } from "zod";
import { nonEmpty } from "../weights/schema.ts";
import { statesSchema } from "./states-data.ts";

/** Another shape of the files is another version. */
export const REPORT_VERSION = 1;

/** Names in a report's folder. */
export const REPORT_FILES = {
  report: "report.json",
  rows: "report.csv",
  cells: "cells.jsonl",
  html: "report.html",
  markdown: "report.md",
} as const;

/** Mean with its 95% interval by the bootstrap over instructions; `lists`: values that count. */
export const estimateSchema = z.object({ mean: z.number(), low: z.number(), high: z.number(), lists: z.number() });

const maybeEstimate = estimateSchema.nullable();
const count = z.number().int().min(0);
const layer = z.number().int().min(0);
/** `last`, `end`, `mean`, or `last-K`: the mean over the last K tokens of the response. */
const pooling = z.string();

/**
 * Which states a method reads: those of one layer, or of several, one after the other, under one pooling. Both null: the
 * method reads texts alone.
 */
const place = { layers: nonEmpty(z.array(layer)).nullable(), pooling: pooling.nullable() };
const statePlace = { layers: nonEmpty(z.array(layer)), pooling };

const measures = {
  top1: maybeEstimate,
  pairwise: maybeEstimate,
  mrr: maybeEstimate,
  /** NDCG at the depth `run.options.ndcg_depth`. */
  ndcg: maybeEstimate,
};

/** A file of lists. */
const dataSchema = z.object({
  /** The file's name without its folder. */
  name: z.string(),
  /** Of its bytes, in hex. */
  sha256: z.string(),
  /** Lines that hold a list, and those that could not be used. */
  lists: count,
  failed: count,
  unlabelled: count,
  no_contrast: count,
  instructions: count,
  candidates: count,
});

const runSchema = z.object({
  /** As typed, quoted for a shell. */
  command: z.string(),
  /** ISO 8601, when the report was finished. */
  date: z.string(),
  /** Of all its parts, where it was stopped and went on. */
  seconds: z.number(),
  model: z.object({
    name: z.string(),
    /** Commit of the hub, where it comes from there. */
    revision: z.string().nullable(),
    /** Of configuration and weights down to the deepest layer. */
    fingerprint: z.string(),
    type: z.string(),
    layers: count,
    hidden_size: count,
    /** How the matrices were held. */
    weights: z.string(),
  }),
  data: dataSchema,
  /** Of `--test`, in order. */
  tests: z.array(dataSchema),
  adapter: z.object({ name: z.string(), source: z.string(), software: z.boolean() }),
  /** Of the kernels' variants. */
  kernels: z.string(),
  versions: z.object({ stratum: z.string(), node: z.string(), webgpu: z.string(), platform: z.string() }),
  seeds: z.array(z.number().int()),
  /** In the asked-for order. */
  layers: z.array(layer),
  poolings: z.array(pooling),
  /** Layers that are read together, a method's input being their states one after the other. */
  concat: z.array(nonEmpty(z.array(layer), 2)),
  options: z.object({
    /** Share of the lists that is measured, by instruction. */
    test_share: z.number(),
    ndcg_depth: z.number().int(),
    safe_from: z.number().nullable(),
    bootstrap: z.number().int(),
    system: z.string().nullable(),
    date: z.string().nullable(),
    truncate: z.boolean(),
    control: z.boolean(),
    /** Recipes of the trained scorers, by method. */
    scorers: z.record(z.string(), z.unknown()),
  }),
});

const methodSchema = z.object({
  name: z.string(),
  /**
   * `scorer`: trained on the GPU. `baseline`: on the same states, or nothing trained. `control`: on states of random
   * weights. `text`: reads no states. `chance`: random ranking.
   */
  kind: z.enum(["scorer", "baseline", "control", "text", "chance"]),
  /** Its scores compare across lists. */
  pointwise: z.boolean(),
});

/** A method at a place over all seeds. */
const rowSchema = z.object({
  method: z.string(),
  ...place,
  /** Over lists and seeds; the interval by instruction. */
  ...measures,
  /** Standard deviation of the seeds' top-1; 0 for one seed. */
  deviation: z.number(),
  /** Each seed by itself, as `stratum train --seed S --hold-out SHARE` and `stratum eval --seed S` give it. */
  seeds: z.array(z.object({ seed: z.number().int(), ...measures })),
});

/** What a pass to a layer and no deeper costs, one list at a time. */
export const costSchema = z.object({
  layer,
  pooling,
  /** Lists that were timed. */
  lists: count,
  /** A list alone, from token ids to its states on the host: median and quartiles over these lists. */
  ms: z.object({ median: z.number(), low: z.number(), high: z.number() }),
  /** Tokens of these lists, each candidate with its prompt, over their time. */
  tokens_per_s: z.number(),
  /** Weights and working buffers of that run, as planned: what the device holds. */
  gpu_bytes: count,
  /** Of those, the weights. */
  weight_bytes: count,
  /** Read from the checkpoint. */
  disk_bytes: count,
});

const pointSchema = z.object({
  method: z.string(),
  ...statePlace,
  top1: estimateSchema,
  /** Of the deepest layer; null without costs. */
  ms: z.number().nullable(),
});

/** Top-1 of `a` minus that of `b`, on the same lists and seeds. */
const differenceSchema = z.object({
  a: z.object({ method: z.string(), ...place }),
  b: z.object({ method: z.string(), ...place }),
  difference: estimateSchema,
  /** Of the interval, such as 0.95; closer to 1 where many are compared at once. */
  level: z.number(),
  verdict: z.enum(["above", "below", "no significant difference"]),
});

const recommendationSchema = z.object({
  /** The recommended method and place: the cheapest that is not significantly below the best. */
  recommended: pointSchema,
  /** The highest top-1. */
  best: pointSchema,
  /** The bend of accuracy against time, among what nothing beats in both; null where there is none. */
  knee: pointSchema.nullable(),
  /** What nothing beats in both accuracy and time, the cheapest first. */
  frontier: z.array(pointSchema),
  /** Whether any cheaper place of the method is significantly below the best: else depth buys nothing that shows. */
  significant: z.boolean(),
  /** The best against the method's other places, then against chance, texts alone and the control. */
  differences: z.array(differenceSchema),
  /** Sentences. */
  reason: nonEmpty(z.array(z.string())),
});

/** Trained on one file, measured on another. */
const transferSchema = z.object({
  /** Names of `run.data` and `run.tests`: what was trained on, and what was measured. */
  trained: z.array(z.string()),
  measured: z.array(z.string()),
  rows: z.array(
    z.object({
      trained: z.string(),
      measured: z.string(),
      method: z.string(),
      ...place,
      top1: maybeEstimate,
      pairwise: maybeEstimate,
      deviation: z.number(),
    }),
  ),
});

const sliceSchema = z.object({
  name: z.string(),
  /** Different lists of the file in it. */
  lists: count,
  rows: z.array(z.object({ method: z.string(), ...place, top1: maybeEstimate, pairwise: maybeEstimate })),
});

/**
 * Answers withheld below a score, against the error among those given: a scorer's under one seed, over the measured lists.
 * All of these hold a safe candidate; what a list without one comes to, `stratum eval` shows.
 */
const coverageSchema = z.object({
  method: z.string(),
  ...statePlace,
  seed: z.number().int(),
  /** From the strictest threshold on. Coverage: answered lists as a share of all; error: wrong ones as a share of these. */
  curve: z.array(z.object({ threshold: z.number(), coverage: z.number(), error: z.number() })),
});

export const reportSchema = z.object({
  format: z.literal("stratum-report"),
  version: z.literal(REPORT_VERSION),
  run: runSchema,
  /** In the order of their rows. */
  methods: z.array(methodSchema),
  /** A row a method and place. */
  rows: z.array(rowSchema),
  costs: z.array(costSchema),
  /** How costs were measured, in words; null where they were not. */
  costs_note: z.string().nullable(),
  /** Null where no method on states was measured on any list. */
  recommendation: recommendationSchema.nullable(),
  /** Null without `--test`. */
  transfer: transferSchema.nullable(),
  slices: z.array(sliceSchema),
  states: statesSchema.nullable(),
  /** Of every pointwise scorer at its best place; null without one. */
  coverage: z.array(coverageSchema).nullable(),
});

/** A method at a place under one seed, list by list: enough for paired differences of any two. */
export const cellSchema = z.object({
  method: z.string(),
  pointwise: z.boolean(),
  ...place,
  seed: z.number().int(),
  /** Names of the files: trained on, and measured. */
  trained: z.string(),
  measured: z.string(),
  /** Indices of the measured lists among the file's lists that gave states. */
  lists: z.array(count),
  /** A value each, null where a list says nothing. */
  top1: z.array(z.number().nullable()),
  pairwise: z.array(z.number().nullable()),
  mrr: z.array(z.number().nullable()),
  ndcg: z.array(z.number().nullable()),
  /** The highest score of each list, by which an answer may be withheld; null where scores compare inside a list only. */
  highest: z.array(z.number()).nullable(),
  /** Wall time of training, scoring and measuring it. */
  ms: count,
});

export type Report = z.infer<typeof reportSchema>;
export type ReportRun = Report["run"];
export type ReportData = z.infer<typeof dataSchema>;
export type ReportMethod = z.infer<typeof methodSchema>;
export type ReportRow = z.infer<typeof rowSchema>;
export type ReportCost = z.infer<typeof costSchema>;
export type ReportPoint = z.infer<typeof pointSchema>;
export type ReportDifference = z.infer<typeof differenceSchema>;
export type ReportRecommendation = z.infer<typeof recommendationSchema>;
export type ReportTransfer = z.infer<typeof transferSchema>;
export type ReportSlice = z.infer<typeof sliceSchema>;
export type ReportCoverage = z.infer<typeof coverageSchema>;
export type ReportCell = z.infer<typeof cellSchema>;
