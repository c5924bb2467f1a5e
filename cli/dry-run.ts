/** `rank --dry-run`: tokens, time and memory, without running the model. */

import { groupCost, packBatches, type SequenceGroup } from "../engine/batch.ts";
import { batchFlops, measureRate } from "../engine/cost.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import { batchBudget, planRun } from "../engine/plan.ts";
import { platformOf } from "../engine/platform.ts";
import { longFrom } from "../engine/rope-table.ts";
import { createListEncoder, runPooling } from "../scorer/encode.ts";
import { emptyFileError, type ListLine } from "../scorer/lists.ts";
import { encodeLines, type RankOptions } from "../scorer/rank.ts";
import { type RunFlags, withEngine } from "./common.ts";
import { counted, formatBytes, formatCount, formatFields, formatSeconds } from "./format.ts";
import { EXIT, reportError, type StopSignal, writeStdout } from "./terminal.ts";
import { tuneModel } from "./tuning.ts";

/** Lists whose batches are counted together. */
const CHUNK = 256;

/** Prints the estimate. @returns the exit code */
export async function dryRun(
  files: ModelFiles,
  lines: AsyncIterable<ListLine>,
  source: string,
  options: RankOptions,
  flags: Pick<RunFlags, "tune" | "adapter" | "json" | "verbose">,
  stop: StopSignal,
): Promise<number> {
  // There is nothing to lose: a signal ends it at once, one that has come already too.
  const stopped = stop.exitCode();
  if (stopped !== undefined) return stopped;
  stop.signal.addEventListener("abort", () => process.exit(stop.exitCode()));
  const layer = options.layer ?? files.spec.config.layers;
  const encoder = await createListEncoder(files, options);
  return await withEngine(flags, async (opened) => {
    const { engine, kernels } = await tuneModel(opened, files, layer, flags);
    const { limits } = engine.device.info;
    const pooling = runPooling(options.pooling);
    let { budget, maxBudget } = batchBudget(files.spec, limits, {
      taps: 1,
      output: "scores",
      pooling,
      batchTokens: options.batchTokens,
    });
    const sharePrefix = options.sharePrefix ?? true;
    const sharing = { sharePrefix, longFrom: longFrom(files.spec.config) };
    const counts = { lists: 0, failed: 0, candidates: 0, tokens: 0, rows: 0, batches: 0, flops: 0 };
    let groups: SequenceGroup[] = [];
    const count = () => {
      for (const batch of packBatches(groups, { budget, ...sharing })) {
        counts.batches++;
        counts.rows += batch.ids.length;
        counts.flops += batchFlops(files.spec, batch, layer, pooling);
      }
      groups = [];
    };
    for await (const { line, encoded, error } of encodeLines(
      lines,
      encoder,
      { grantedBudget: maxBudget, packing: sharing },
      sharePrefix,
    )) {
      counts.lists++;
      if (error !== null) {
        counts.failed++;
        reportError(error);
        continue;
      }
      if (line.kind === "list") counts.candidates += line.list.candidates.length;
      counts.tokens += encoded.tokens;
      // As in a run: a longer list makes the batches grow.
      budget = Math.max(budget, Math.min(groupCost(encoded.group, sharing), maxBudget));
      groups.push(encoded.group);
      if (groups.length === CHUNK) count();
    }
    count();
    if (counts.lists === 0) throw emptyFileError(source);
    const plan = await planRun(
      files.checkpoint,
      files.spec,
      { layers: [layer], output: "scores", pooling, batchTokens: budget },
      platformOf(engine),
    );
    const rate = await measureRate(engine, files.spec.config);
    const seconds = counts.flops / rate;
    const estimate = {
      ...counts,
      layer,
      seconds: Number(seconds.toFixed(3)),
      rate_gflops: Number((rate / 1e9).toFixed(2)),
      weights_bytes: plan.weights.bytes,
      gpu_bytes: plan.bytes,
      read_bytes: plan.weights.diskBytes,
      adapter: engine.device.info.name,
      kernels: kernels.id,
    };
    const text = flags.json
      ? JSON.stringify(estimate)
      : formatFields([
          [
            "lists",
            `${formatCount(counts.lists)} (${counts.failed} cannot be ranked), ${counted(counts.candidates, "candidate")}`,
          ],
          [
            "tokens",
            `${formatCount(counts.tokens)}; ${formatCount(counts.rows)} computed, the shared prompts once, in ${formatCount(counts.batches)} batches of at most ${formatCount(budget)}`,
          ],
          [
            "time",
            `about ${formatSeconds(seconds)} to layer ${layer} (${(counts.flops / 1e9).toFixed(1)} GFLOP at ${(rate / 1e9).toFixed(2)} GFLOP/s, measured now on ${engine.device.info.name})`,
          ],
          [
            "memory",
            `${formatBytes(plan.bytes)} on the GPU: ${formatBytes(plan.weights.bytes)} weights, ${formatBytes(plan.bytes - plan.weights.bytes)} for batches`,
          ],
          ["disk", `reads ${formatBytes(plan.weights.diskBytes)} of weights, and embedding rows as they occur`],
        ]);
    await writeStdout(`${text}\n`);
    return counts.failed > 0 ? EXIT.someFailed : EXIT.ok;
  });
}
