/** Features of lists: their states at one or several layers, computed in one pass through the truncated model. */
import type { Model } from "../engine/hidden-states.ts";
import { StratumError } from "../errors.ts";
import type { EncodeOptions, Pooling } from "./encode.ts";
import { createExtractor } from "./extract.ts";
import { createFeaturesWriter, type FeaturesWriter } from "./features-writer.ts";
import type { Id, ListLine } from "./lists.ts";

export interface FeatureOptions extends EncodeOptions {
  /** Layers, in the order of the output; each at most the model's depth. */
  readonly layers: readonly number[];
  /** Several at once, instead of `pooling`: all come out of one pass. */
  readonly poolings?: readonly Pooling[] | undefined;
  readonly batchTokens?: number | undefined;
  /** Compute a list's common prefix once; default true. The states are the same either way. */
  readonly sharePrefix?: boolean | undefined;
  /** Called with every list that has no features. */
  readonly onLeftOut?: ((left: LeftOut) => void) | undefined;
  /** Ends the pass between batches with its reason. */
  readonly signal?: AbortSignal | undefined;
}

/** The poolings that are asked for. */
export function poolingsOf({ pooling = "last", poolings = [pooling] }: FeatureOptions): readonly Pooling[] {
  return poolings;
}

/** A list without features: a line that is none, one that cannot be encoded, or whose states are not finite. */
export interface LeftOut {
  readonly id: Id;
  readonly line: number;
  readonly error: StratumError;
}

/** One list's features. */
export interface ListFeatures {
  readonly id: Id;
  readonly line: number;
  /** (m), NaN where a candidate has none. */
  readonly labels: Float32Array;
  /** A layer and pooling each, a layer's side by side: (1 + m, D), the instruction's state first. */
  readonly states: readonly Float32Array[];
  /** Tokens of its sequences, each counted whole. */
  readonly tokens: number;
}

/**
 * Computes the states of lists, in their order. A list whose state is not finite at one of the layers is left out of all.
 * @throws {StratumError} `usage/layer`, `memory/...`, `device/...`; what is wrong with a list goes to `onLeftOut`
 */
export async function* computeFeatures(
  model: Model,
  lines: AsyncIterable<ListLine>,
  options: FeatureOptions,
): AsyncGenerator<ListFeatures> {
  const { layers, onLeftOut, signal } = options;
  const poolings = poolingsOf(options);
  const d = model.files.spec.config.hiddenSize;
  // The extractor answers line by line in their order: the labels wait here for their states.
  const labels: Float32Array[] = [];
  async function* noted(): AsyncGenerator<ListLine> {
    for await (const line of lines) {
      const candidates = line.kind === "list" ? line.list.candidates : [];
      labels.push(Float32Array.from(candidates, ({ label }) => label ?? Number.NaN));
      yield line;
    }
  }
  using extractor = await createExtractor(model, { ...options, poolings, tokens: "last" });
  for await (const outcome of extractor.extract(noted(), signal === undefined ? {} : { signal })) {
    const { id, line } = outcome;
    const own = labels.shift() ?? new Float32Array();
    if (outcome.kind === "failed") {
      onLeftOut?.({ id, line, error: outcome.error });
      continue;
    }
    const bad = own.findIndex((label) => !Number.isFinite(label) && !Number.isNaN(label));
    if (bad >= 0) {
      const what = `line ${line}: the label of candidate ${bad} is beyond the range of a float`;
      onLeftOut?.({ id, line, error: new StratumError("list/bad-label", what, "use smaller grades") });
      continue;
    }
    const [prompt, ...responses] = outcome.sequences;
    const under = poolings.map((_, p) => [prompt, ...responses.filter((_, i) => i % poolings.length === p)]);
    // (1 + m P, K, D) to K P times (1 + m, D).
    const states = layers.flatMap((_, k) =>
      under.map((sequences) => {
        const rows = new Float32Array(sequences.length * d);
        for (const [s, sequence] of sequences.entries()) rows.set(sequence.states.subarray(k * d, (k + 1) * d), s * d);
        return rows;
      }),
    );
    const tokens = under[0].reduce((sum, { ids }) => sum + ids.length, 0);
    yield { id, line, labels: own, states, tokens };
  }
  signal?.throwIfAborted();
}

/**
 * Writes features as files, one a layer, each whole or not at all.
 * @param paths a file a layer and pooling, in the order of `ListFeatures.states`
 * @param dim D
 * @returns the ids of the lists, in the order of the files
 * @throws {StratumError} `file/write-failed`, `features/too-large`, and what computing throws
 */
export async function writeFeatures(
  features: AsyncIterable<ListFeatures>,
  paths: readonly string[],
  dim: number,
): Promise<readonly Id[]> {
  const writers: FeaturesWriter[] = [];
  const ids: Id[] = [];
  try {
    for (const path of paths) writers.push(await createFeaturesWriter(path, { dim }));
    for await (const { id, labels, states } of features) {
      for (const [k, writer] of writers.entries()) {
        await writer.append(states[k].subarray(0, dim), states[k].subarray(dim), labels);
      }
      ids.push(id);
    }
    for (const writer of writers) await writer.finish();
    return ids;
  } finally {
    for (const writer of writers) await writer.abort();
  }
}
