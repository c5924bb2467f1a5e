/** What `stratum eval` does once the states are at hand: fits the baselines, scores, measures, prints. */
import { resolve } from "node:path";
import type { Engine } from "../engine/model.ts";
import { StratumError } from "../errors.ts";
import { absoluteSafeFrom, abstainRecordOf, checkPointwise, chooseThreshold, firstPlaces } from "../scorer/abstain.ts";
import { oneAnInstruction } from "../scorer/calibrate.ts";
import type { Pooling } from "../scorer/encode.ts";
import { type EvaluateOptions, evaluate, evaluateSlices, type Method } from "../scorer/evaluate.ts";
import type { List } from "../scorer/lists.ts";
import {
  type Chosen,
  type FitOptions,
  type ListStates,
  type ListTexts,
  probeMethod,
  randomMethod,
  spread,
  stateMethods,
  textMethods,
} from "../scorer/methods.ts";
import { scoreFeatures } from "../scorer/scorer.ts";
import type { SavedScorer } from "../scorer/scorer-file.ts";
import { canFit, type DividedLists, divideLists } from "../scorer/seen.ts";
import { type CoverageReport, coverageTable, jsonCoverage, storedThreshold } from "./abstain-output.ts";
import { demoModel, type RunFlags } from "./common.ts";
import { evaluationTable, jsonEvaluation, sizeOf } from "./eval-output.ts";
import { counted, plainText } from "./format.ts";
import { EXIT, note, styled, writeStdout } from "./terminal.ts";

export interface EvalFlags extends Omit<RunFlags, "pooling"> {
  readonly scorer: string;
  readonly layer?: string;
  readonly pooling?: Pooling;
  readonly features?: string;
  readonly fit?: string;
  readonly control?: boolean;
  readonly includeSeen?: boolean;
  readonly safeFrom?: number;
  readonly k: number;
  readonly slices?: boolean;
  readonly seed: number;
  readonly bootstrap: number;
  readonly cache: boolean;
  readonly abstainError?: number;
  readonly abstainConfidence: number;
}

/** Lists with their states, and with their texts where they come from lists. */
export interface Loaded extends ListStates {
  readonly lists: readonly List[] | null;
  /** Lines that gave no list. */
  readonly failed: number;
  /** `KernelsRecord.id` of what the states come from; null where features do not say. */
  readonly kernels: string | null;
}

/** Lends the states of the same lists under random weights. */
export type Control = <T>(use: (on: Loaded, fit: Loaded | null) => Promise<T>) => Promise<T>;

export interface Measuring {
  readonly engine: Engine;
  readonly scorer: SavedScorer;
  readonly on: Loaded;
  /** Another file to fit baselines on. */
  readonly fit: Loaded | null;
  readonly seen: ReadonlySet<string> | null;
  readonly control: Control | null;
  readonly model: string | null;
  readonly flags: EvalFlags;
}

/** Fits the baselines, scores and measures everything, prints. @returns the exit code */
export async function measure(measuring: Measuring): Promise<number> {
  const { engine, scorer, on, seen, control, model, flags } = measuring;
  const { seed, safeFrom } = flags;
  const divided = divideLists(on.source, { ...flags, keys: on.clusters ?? undefined, seen });
  tellDivision(divided, flags);
  const fit = fitLists(measuring, divided);
  const { evaluated } = divided;
  const states: Chosen<Loaded> = { of: on, lists: evaluated };
  const options = { seed, safeFrom };
  const methods: Method[] = [await scorerMethod(engine, scorer, on, evaluated)];
  methods.push(...(await stateMethods(states, fit, options)));
  if (control !== null && fit !== null)
    methods.push(await control((...found) => controlMethod(states, fit, found, options)));
  if (on.lists !== null) {
    const fitTexts = fit === null ? null : { of: textsOf(fit.of), lists: fit.lists };
    methods.push(...textMethods(textsOf(on), fitTexts, options));
  }
  methods.push(randomMethod(on.source.labels.length));

  const evaluation: EvaluateOptions = {
    ...options,
    lists: evaluated,
    clusters: on.clusters ?? undefined,
    depth: flags.k,
    samples: flags.bootstrap,
  };
  const whole = evaluate(methods, on.source, evaluation);
  const coverage = await coverageOf(measuring);
  const slices = flags.slices ? evaluateSlices(methods, on.source, evaluation, on.lists ?? undefined) : null;
  if (flags.json) {
    const { head } = scorer.spec;
    const { base, layer, pooling, system } = scorer;
    const { lists: _, ...found } = jsonEvaluation(whole);
    const result = {
      lists: {
        read: on.source.lists + on.failed,
        failed: on.failed,
        unlabelled: divided.unlabelled,
        no_contrast: divided.noContrast,
        seen: divided.seen.length,
        evaluated: evaluated.length,
        fitted: fit?.lists.length ?? 0,
      },
      ...found,
      slices: slices?.map((slice) => ({ name: slice.name, ...jsonEvaluation(slice) })) ?? null,
      coverage: coverage === null ? null : jsonCoverage(coverage),
      scorer: { path: flags.scorer, head, base, layer, pooling, system },
      model,
      adapter: engine.device.info.name,
      kernels: on.kernels,
      options: {
        k: flags.k,
        safe_from: safeFrom ?? null,
        seed,
        bootstrap: flags.bootstrap,
        include_seen: flags.includeSeen ?? false,
        control: flags.control ?? false,
        fit: flags.fit ?? null,
        features: flags.features ?? null,
      },
    };
    await writeStdout(`${JSON.stringify(result)}\n`);
  } else {
    const known = on.clusters !== null;
    const tables = [
      scorerLine(scorer, flags),
      `${styled("bold", sizeOf(whole, known))}; measures in %, intervals over ${known ? "instructions" : "lists"}`,
      evaluationTable(whole),
      ...(slices ?? []).flatMap((slice) => [
        "",
        `${styled("bold", slice.name)}: ${sizeOf(slice, known)}`,
        evaluationTable(slice),
      ]),
      ...(coverage === null ? [] : ["", coverageTable(coverage)]),
      ...(model !== null && resolve(model) === demoModel() ? ["", DEMO_NOTE] : []),
    ];
    await writeStdout(`${tables.join("\n")}\n`);
  }
  return on.failed + (measuring.fit?.failed ?? 0) > 0 ? EXIT.someFailed : EXIT.ok;
}

/** Where the demo model's numbers are shown. */
const DEMO_NOTE = "The demo model is a test object: its states carry little of what the method looks for.";

function scorerLine({ spec, layer, pooling }: SavedScorer, flags: EvalFlags): string {
  const of = [
    spec.head,
    ...(layer === null ? [] : [`layer ${layer}`]),
    ...(pooling === null ? [] : [`pooling ${pooling}`]),
  ];
  return `scorer ${plainText(flags.scorer)}: ${of.join(", ")}`;
}

/** What was left out, on stderr. */
export function tellDivision(
  { seen, unlabelled, noContrast }: DividedLists,
  { safeFrom, includeSeen }: Pick<EvalFlags, "safeFrom" | "includeSeen">,
): void {
  if (unlabelled > 0) note(`note    left out: ${counted(unlabelled, "list")} with a missing label`);
  if (noContrast > 0)
    note(
      `note    ${safeFrom === undefined ? "left out" : "counted for AUC only"}: ${counted(noContrast, "list")} with labels all alike`,
    );
  if (seen.length > 0)
    note(
      includeSeen
        ? `note    evaluated all the same: ${counted(seen.length, "list")} that the scorer has seen; the numbers flatter it`
        : `note    left out: ${counted(seen.length, "list")} that the scorer has seen (--include-seen keeps them)`,
    );
}

/** The lists that baselines are fitted on: those that the scorer saw, or another file's; none about what is evaluated. */
function fitLists({ on, fit, flags }: Measuring, { evaluated, seen }: DividedLists): Chosen<Loaded> | null {
  const chosen = fit === null ? { of: on, lists: seen } : { of: fit, lists: labelledLists(fit) };
  const { clusters } = on;
  const evaluatedKeys = new Set(clusters === null || fit === null ? [] : evaluated.map((b) => clusters[b]));
  const lists = chosen.lists.filter((b) => !evaluatedKeys.has(chosen.of.clusters?.[b] ?? ""));
  const same = chosen.lists.length - lists.length;
  if (same > 0) note(`note    not fitted on: ${counted(same, "list")} of ${flags.fit} about evaluated instructions`);
  if (canFit(chosen.of.source, lists)) return { of: chosen.of, lists };
  const without = [
    ...["linear probe", "difference of means"],
    ...(on.lists === null ? [] : ["bag of words"]),
    ...(flags.control ? ["control"] : []),
  ];
  note(`note    no labelled lists to fit on (see --fit): without ${without.join(", ")}`);
  return null;
}

function labelledLists({ source: { lists, labels, offsets } }: Loaded): number[] {
  const all = Array.from({ length: lists }, (_, b) => b);
  return all.filter((b) => !labels.subarray(offsets[b], offsets[b + 1]).some(Number.isNaN));
}

function textsOf({ lists, clusters }: Loaded): ListTexts {
  return { texts: lists ?? [], clusters: clusters ?? [] };
}

/**
 * Coverage against error of a pointwise scorer, on every labelled list that it has not seen: those without a safe candidate
 * are what abstaining is for. Null for a listwise scorer.
 * @throws {StratumError} `scorer/not-pointwise` for `--abstain-error` with a listwise scorer
 */
async function coverageOf({ engine, scorer, on, seen, flags }: Measuring): Promise<CoverageReport | null> {
  const { abstainError, abstainConfidence: confidence, includeSeen } = flags;
  if (abstainError !== undefined) checkPointwise(scorer.spec.head);
  if (scorer.spec.head !== "pointwise") return null;
  const keys = on.clusters;
  const unseen = labelledLists(on).filter((b) => includeSeen || keys === null || !seen?.has(keys[b]));
  const lists = oneAnInstruction(unseen, keys);
  const repeated = unseen.length - lists.length;
  if (repeated > 0)
    note(`note    not counted for coverage: ${counted(repeated, "list")} whose instruction another list has`);
  const record = abstainRecordOf(scorer.training);
  let safeFrom: number;
  try {
    safeFrom = absoluteSafeFrom(on.source, lists, flags.safeFrom ?? record?.safe_from);
  } catch (thrown) {
    if (!(thrown instanceof StratumError) || abstainError !== undefined) throw thrown;
    note(`note    no coverage against error: ${thrown.message}; ${thrown.fix}`);
    return null;
  }
  const { scores } = await scorerMethod(engine, scorer, on, lists);
  const places = firstPlaces(scores, on.source, lists, safeFrom);
  const stored = storedThreshold(places, record);
  const chosen = abstainError === undefined ? null : chooseThreshold(places, { error: abstainError, confidence });
  return { places, safeFrom, repeated, stored, chosen, confidence };
}

/** A scorer's scores of some lists. */
export async function scorerMethod(
  engine: Engine,
  scorer: SavedScorer,
  on: Loaded,
  lists: readonly number[],
): Promise<Method> {
  const { spec, weights, standardise } = scorer;
  const scores = await scoreFeatures(engine, { spec, weights, standardisation: standardise }, on.source, lists);
  return { name: "scorer", pointwise: spec.head === "pointwise", scores: spread(on.source, lists, scores) };
}

/** The linear probe on states of random weights, its scores in the place of the lists that they belong to. */
async function controlMethod(
  states: Chosen<Loaded>,
  fit: Chosen<Loaded>,
  [on, other]: readonly [Loaded, Loaded | null],
  options: FitOptions,
): Promise<Method> {
  const own = sameLists(on, states);
  const { scores, ...method } = await probeMethod(
    "linear probe, random weights",
    own,
    sameLists(other ?? on, fit),
    options,
  );
  const { offsets } = on.source;
  const all = Float64Array.from(scores);
  const byList = own.lists.map((b) => all.subarray(offsets[b], offsets[b + 1]));
  return { ...method, scores: spread(states.of.source, states.lists, byList) };
}

/** The chosen lists in another pass over their file. Both leave out the same lines: those that cannot be encoded. */
function sameLists(found: Loaded, { of, lists }: Chosen<Loaded>): Chosen<Loaded> {
  const places = new Map(found.lists?.map(({ id }, b) => [String(id), b]));
  return { of: found, lists: lists.flatMap((b) => places.get(String(of.lists?.[b].id)) ?? []) };
}
