/** An evaluation: every method's scores on the same lists, measured with 95% intervals, as rows to compare. */
import { StratumError } from "../errors.ts";
import {
  type BootstrapOptions,
  bootstrapDifference,
  bootstrapMean,
  bootstrapPooled,
  type Estimate,
} from "./bootstrap.ts";
import { checkScores, type LabelledLists, type ListMeasures, measureLists, type SafeOptions } from "./measures.ts";
import { pooledMeasure } from "./pooled-measures.ts";
import { slicesOf } from "./slices.ts";
import type { TextList } from "./text-baselines.ts";

/** A way to rank, as the scores that it gives. */
export interface Method {
  readonly name: string;
  /** (N), higher is safer; those of lists that are not evaluated are not looked at. */
  readonly scores: ArrayLike<number>;
  /** Scores are comparable across lists: AUC and AUPRC have a meaning. */
  readonly pointwise?: boolean | undefined;
}

export interface EvaluateOptions extends SafeOptions, Pick<BootstrapOptions, "samples" | "seed" | "clusters"> {
  /** Indices of the lists that count; default all. */
  readonly lists?: ArrayLike<number> | undefined;
  /** k of NDCG@k; 5 by default. */
  readonly depth?: number | undefined;
  /** The name of the method that the others' top-1 is compared with; default the first. */
  readonly reference?: string | undefined;
}

/** A method's measures, in [0, 1]; null where no list counts. Tied scores count as in `measureLists`. */
export interface MethodRow {
  readonly name: string;
  readonly pointwise: boolean;
  readonly top1: Estimate | null;
  readonly pairwise: Estimate | null;
  readonly mrr: Estimate | null;
  readonly ndcg: Estimate | null;
  /** Null for scores that are comparable inside a list only, and where either class is absent. */
  readonly auc: Estimate | null;
  readonly auprc: Estimate | null;
  /** Top-1 minus the reference's, paired by list; null for the reference. */
  readonly difference: Estimate | null;
}

export interface Evaluation {
  readonly lists: number;
  /** Clusters of the lists: what the intervals are about. */
  readonly instructions: number;
  readonly candidates: number;
  /** k of NDCG@k. */
  readonly depth: number;
  readonly reference: string;
  /** In the order of the methods. */
  readonly rows: readonly MethodRow[];
}

export interface SliceEvaluation extends Evaluation {
  readonly name: string;
}

const DEPTH = 5;

/**
 * Measures methods side by side. All of them meet the same bootstrap samples.
 *
 * @throws StratumError `state/score-count`, `state/not-finite` for a NaN, `list/bad-labels`, `usage/bad-safe-from`,
 *   `usage/bad-depth`, `usage/bad-bootstrap`, `usage/bad-reference`
 */
export function evaluate(
  methods: readonly Method[],
  data: LabelledLists,
  { lists, clusters, depth = DEPTH, reference = methods[0]?.name ?? "", safeFrom, ...draws }: EvaluateOptions = {},
): Evaluation {
  const chosen = Array.from(lists ?? { length: data.offsets.length - 1 }, (b, at) => (lists === undefined ? at : b));
  const { part, candidates } = partOf(data, chosen);
  const ids = chosen.map((b) => clusters?.[b] ?? b);
  const options = { ...draws, clusters: ids };
  const measured = methods.map(({ scores, ...method }) => {
    if (scores.length !== data.labels.length) checkScores(scores, data.labels.length);
    const own = Float64Array.from(candidates, (i) => scores[i]);
    return { ...method, own, measures: measureLists(own, part, { safeFrom, depths: [depth] }) };
  });
  const compared = measured.find(({ name }) => name === reference);
  if (compared === undefined) {
    throw new StratumError(
      "usage/bad-reference",
      `there is no method '${reference}' to compare with`,
      `name one of ${methods.map(({ name }) => `'${name}'`).join(", ")}`,
    );
  }
  const rows = measured.map((method): MethodRow => {
    const { name, pointwise = false, own, measures } = method;
    const mean = (measure: keyof ListMeasures) => bootstrapMean(measures[measure], options);
    const pooled = pointwise ? bootstrapPooled(pooledMeasure(own, part, { safeFrom }), options) : null;
    return {
      name,
      pointwise,
      top1: mean("top1"),
      pairwise: mean("pairwise"),
      mrr: mean("mrr"),
      ndcg: mean(`ndcg@${depth}`),
      auc: pooled?.auc ?? null,
      auprc: pooled?.auprc ?? null,
      difference: method === compared ? null : bootstrapDifference(measures.top1, compared.measures.top1, options),
    };
  });
  const instructions = new Set(ids).size;
  return { lists: chosen.length, instructions, candidates: candidates.length, depth, reference, rows };
}

/**
 * The same rows on slices of the lists; slices without a list are left out.
 *
 * @param texts - (B) the lists' texts, where there are any: the slice without refusals needs them.
 * @throws StratumError as {@link evaluate}
 */
export function evaluateSlices(
  methods: readonly Method[],
  data: LabelledLists,
  options: EvaluateOptions = {},
  texts?: readonly TextList[],
): SliceEvaluation[] {
  const slices = slicesOf(data, texts, options);
  const chosen = options.lists === undefined ? null : new Set(Array.from(options.lists));
  return slices.flatMap(({ name, lists }) => {
    const own = lists.filter((b) => chosen?.has(b) ?? true);
    return own.length === 0 ? [] : [{ name, ...evaluate(methods, data, { ...options, lists: own }) }];
  });
}

/** The chosen lists as data of their own, and the candidates (n) that they consist of. */
function partOf(
  { offsets, labels }: LabelledLists,
  lists: readonly number[],
): { readonly part: LabelledLists; readonly candidates: Uint32Array } {
  const starts = new Uint32Array(lists.length + 1);
  for (const [at, b] of lists.entries()) starts[at + 1] = starts[at] + offsets[b + 1] - offsets[b];
  const candidates = new Uint32Array(starts[lists.length]);
  for (const [at, b] of lists.entries()) {
    for (let i = starts[at]; i < starts[at + 1]; i++) candidates[i] = offsets[b] + i - starts[at];
  }
  return { part: { offsets: starts, labels: Float32Array.from(candidates, (i) => labels[i]) }, candidates };
}
