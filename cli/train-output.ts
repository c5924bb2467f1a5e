/** What `stratum train` says to people: the plan before a run, and what it came to. */
import type { Engine } from "../engine/model.ts";
import type { EpochRecord } from "../scorer/checkpoint.ts";
import type { Recipe } from "../scorer/presets.ts";
import type { ScorerSpec } from "../scorer/scorer-spec.ts";
import type { AnchoredResult } from "../scorer/train-anchors.ts";
import type { Anchor, TrainPlan } from "../scorer/train-options.ts";
import { curve } from "./chart.ts";
import { counted, formatBytes, formatCount, formatSeconds } from "./format.ts";
import { note, warn } from "./terminal.ts";
import type { TrainFlags } from "./train-options.ts";

export const ANCHOR_WORDS: Readonly<Record<Anchor, string>> = {
  instruction: "the instruction's state",
  learned: "a learned vector in the instruction's place",
};

/** Device, scorer and steps of a run, before it begins. */
export function planLine(engine: Engine, spec: ScorerSpec, recipe: Recipe, plan: TrainPlan): string {
  const head = spec.head === "listwise" ? `listwise, ${spec.heads} heads` : "pointwise";
  const batch = recipe.batchLists === "all" ? "all lists" : `${recipe.batchLists} lists`;
  return [
    `adapter ${engine.device.info.name} (${engine.device.info.source})`,
    `scorer  ${head}, width ${spec.width}, ${formatCount(plan.parameters)} parameters; loss ${recipe.loss}, tau ${spec.tau}`,
    `plan    ${counted(plan.trainLists, "list")} to train, ${formatCount(plan.validationLists)} to validate; ${counted(plan.steps, "step")} of ${batch}${plan.from > 0 ? `, resumed after ${formatCount(plan.from)}` : ""}; on the GPU ${formatBytes(plan.bytes)} (${formatCount(plan.bytes)} bytes), features ${plan.resident ? "resident" : "streamed"}`,
  ].join("\n");
}

/** The end of a run, for people. */
export function report(
  result: AnchoredResult,
  losses: readonly number[],
  best: EpochRecord | null,
  seconds: number,
  flags: TrainFlags,
  recipe: Recipe,
): void {
  const width = Math.min(process.stderr.columns ?? 80, 100);
  if (losses.length > 0) note(`\n${recipe.loss} loss by step\n${curve(losses, width)}`);
  if (result.tried.length > 1) {
    const told = result.tried.map(({ anchor, validation }) =>
      validation === null ? anchor : `${anchor} ${validation.top1.toFixed(3)} (loss ${validation.loss.toFixed(3)})`,
    );
    note(`\nanchor  ${result.anchor}: it validates better; top-1 with ${told.join(", with ")}`);
  }
  const top1 = result.epochs.flatMap(({ validation }) => (validation === null ? [] : [validation.top1]));
  if (top1.length > 1) note(`\nvalidation top-1 by epoch\n${curve(top1, width)}`);
  const kept =
    best?.validation == null
      ? "the last weights"
      : `epoch ${best.epoch + 1}: validation top-1 ${best.validation.top1.toFixed(3)}, loss ${best.validation.loss.toFixed(3)}`;
  note(
    `\ndone    ${counted(result.steps, "step")}, ${result.epochs.length} epochs${result.stoppedEarly ? " (ended early)" : ""} in ${formatSeconds(seconds)}; kept ${kept}`,
  );
  const loss = best === null ? result.epochs.at(-1)?.loss : best.validation?.loss;
  if (loss !== undefined && loss >= result.chance)
    warn(
      `warning: the ${best === null ? "last epoch's" : "validation"} loss ${loss.toFixed(3)} is no better than ${result.chance.toFixed(3)}, that of equal scores: try a lower --lr,${flags.preset === "few-lists" ? "" : " --preset few-lists,"} another --layer, or more lists`,
    );
  const next = flags.features !== undefined ? "eval --features" : flags.holdOut > 0 ? "eval" : "eval on other lists";
  note(`scorer  ${flags.output}: scorer.safetensors, scorer.json; try stratum ${next}`);
}
