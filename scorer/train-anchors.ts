/**
 * Training with the anchor left open: the instruction's state or a learned vector in its place, whichever validates
 * better. What an instruction's state adds depends on the lists: on many and varied ones it tells what was asked, on a
 * few, or where it says nothing of the labels, it is mostly a way to learn the lists by heart.
 */
import type { Engine } from "../engine/model.ts";
import type { FeatureSource } from "./feature-source.ts";
import { isBetter, trainScorer } from "./train.ts";
import { ANCHORS, type Anchor, type TrainOptions, type TrainResult, type TrainRun } from "./train-options.ts";

export const ANCHOR_CHOICES = [...ANCHORS, "auto"] as const;
export type AnchorChoice = (typeof ANCHOR_CHOICES)[number];

export interface AnchoredOptions extends Omit<TrainOptions, "anchor"> {
  /** `auto`: both are trained on the same lists, and the one with the better validation is kept; without validation the instruction. */
  readonly anchor: AnchorChoice;
}

export interface AnchoredResult extends TrainResult {
  readonly anchor: Anchor;
  /** What each anchor that was trained came to: its best epoch's validation, null without one. */
  readonly tried: readonly {
    readonly anchor: Anchor;
    readonly validation: TrainResult["epochs"][number]["validation"];
  }[];
}

/** The anchors that will be trained, in order. */
export function anchorsOf({ anchor, validation }: Pick<AnchoredOptions, "anchor" | "validation">): readonly Anchor[] {
  if (anchor !== "auto") return [anchor];
  return validation > 0 ? ANCHORS : ["instruction"];
}

/**
 * Trains a scorer with each anchor that comes into question.
 * @param runOf what each of the runs is given; their checkpoints need paths of their own
 * @throws {StratumError} as `trainScorer`
 */
export async function trainAnchored(
  engine: Engine,
  source: FeatureSource,
  options: AnchoredOptions,
  runOf: (anchor: Anchor) => TrainRun,
): Promise<AnchoredResult> {
  const results: { anchor: Anchor; result: TrainResult }[] = [];
  for (const anchor of anchorsOf(options)) {
    const result = await trainScorer(engine, source, { ...options, anchor }, runOf(anchor));
    results.push({ anchor, result });
    if (result.interrupted) break;
  }
  const bestOf = ({ best, epochs }: TrainResult) => (best === null ? null : epochs[best].validation);
  const tried = results.map(({ anchor, result }) => ({ anchor, validation: bestOf(result) }));
  const stopped = results.find(({ result }) => result.interrupted);
  if (stopped !== undefined) return { ...stopped.result, anchor: stopped.anchor, tried };
  const kept = results.reduce((top, each) => {
    const [now, before] = [bestOf(each.result), bestOf(top.result)];
    return now !== null && isBetter(now, before, options.select) ? each : top;
  });
  return { ...kept.result, anchor: kept.anchor, tried };
}
