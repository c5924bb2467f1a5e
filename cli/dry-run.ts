/** `rank --dry-run`: tokens, time and memory, without running the model. */
import { groupCost, packBatches, type SequenceGroup } from "../engine/batch.ts";
import { batchFlops, measureRate } from "../engine/cost.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import { batchBudget, planRun } from "../engine/plan.ts";
import { StratumError } from "../errors.ts";
import { createListEncoder } from "../scorer/encode.ts";
import { emptyFileError, type ListLine } from "../scorer/lists.ts";
import type { RankOptions } from "../scorer/rank.ts";
import { type CommonOptions, withEngine } from "./common.ts";
import { formatBytes, formatCount, formatFields, formatSeconds } from "./format.ts";
import { EXIT, reportError, writeStdout } from "./terminal.ts";

/** Lists whose batches are counted together. */
const CHUNK = 256;

/** Prints the estimate. @returns the exit code */
export async function dryRun(
  files: ModelFiles,
  lines: AsyncIterable<ListLine>,
  source: string,
  options: RankOptions,
  flags: CommonOptions,
): Promise<number> {
  const layer = options.layer ?? files.spec.config.layers;
  const encoder = await createListEncoder(files, options);
  return withEngine(flags, async ({ device, ...engine }) => {
    const { limits } = device.info;
    const plan = await planRun(
      files.checkpoint,
      files.spec,
      { layers: [layer], output: "scores", batchTokens: options.batchTokens },
      limits,
    );
    const { budget } = batchBudget(files.spec, limits, options.batchTokens);
    const counts = { lists: 0, failed: 0, candidates: 0, tokens: 0, rows: 0, batches: 0, longest: 0, flops: 0 };
    let groups: SequenceGroup[] = [];
    const count = () => {
      for (const batch of packBatches(groups, { budget, sharePrefix: options.sharePrefix ?? true })) {
        counts.batches++;
        counts.rows += batch.ids.length;
        counts.flops += batchFlops(files.spec.config, batch, layer);
      }
      groups = [];
    };
    for await (const line of lines) {
      counts.lists++;
      try {
        if (line.kind === "error") throw line.error;
        const { group, tokens } = encoder.encode(line.list);
        counts.candidates += line.list.candidates.length;
        counts.tokens += tokens;
        counts.longest = Math.max(counts.longest, groupCost(group, options.sharePrefix ?? true));
        groups.push(group);
        if (groups.length === CHUNK) count();
      } catch (thrown) {
        if (!(thrown instanceof StratumError)) throw thrown;
        counts.failed++;
        reportError(thrown);
      }
    }
    count();
    if (counts.lists === 0) throw emptyFileError(source);
    const rate = await measureRate({ device, ...engine }, files.spec.config);
    const seconds = counts.flops / rate;
    const estimate = {
      ...counts,
      layer,
      seconds: Number(seconds.toFixed(3)),
      rate_gflops: Number((rate / 1e9).toFixed(2)),
      weights_bytes: plan.weights.bytes,
      gpu_bytes: plan.bytes,
      read_bytes: plan.weights.diskBytes,
      adapter: device.info.name,
    };
    const text = flags.json
      ? JSON.stringify(estimate)
      : formatFields([
          [
            "lists",
            `${formatCount(counts.lists)} (${counts.failed} cannot be ranked), ${formatCount(counts.candidates)} candidates`,
          ],
          [
            "tokens",
            `${formatCount(counts.tokens)}; ${formatCount(counts.rows)} computed, the shared prompts once, in ${formatCount(counts.batches)} batches of at most ${formatCount(budget)}`,
          ],
          [
            "time",
            `about ${formatSeconds(seconds)} to layer ${layer} (${(counts.flops / 1e9).toFixed(1)} GFLOP at ${(rate / 1e9).toFixed(2)} GFLOP/s, measured now on ${device.info.name})`,
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
