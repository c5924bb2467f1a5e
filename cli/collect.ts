/** `stratum collect`: a run's rankings out of a pool, or how far it is. */
import { type Command, Option } from "commander";
import { StratumError } from "../errors.ts";
import type { Pool } from "../scorer/pool.ts";
import type { PoolStatus } from "../scorer/pool-collect.ts";
import type { PoolRun } from "../scorer/pool-records.ts";
import { addOutputOptions } from "./common.ts";
import { counted, formatCount, formatFields, formatSeconds } from "./format.ts";
import { type LineOutput, withOutput } from "./output.ts";
import { addPoolOptions, openFlagged, type PoolFlags } from "./pool-options.ts";
import { EXIT, note, type StopSignal, startProgress, stopSignal, warn, writeStdout } from "./terminal.ts";

interface CollectFlags extends PoolFlags {
  readonly run?: string;
  readonly output?: string;
  readonly chunks?: string;
  readonly status?: boolean;
  readonly remove?: boolean;
  readonly discard?: boolean;
}

const EXAMPLES = `
Examples:
  $ stratum collect --queue redis://head:6379 -o rankings.jsonl --chunks chunks.jsonl
  $ stratum collect --queue redis://head:6379 --status

It waits until all is done. A chunk that failed three times is set aside: its lists get an error in their place. Results
stay in the queue, and collecting again gives the same, until --remove takes them out, or --discard, which writes nothing
and ends what nobody wants any more.`;

/** Declares the command. */
export function collectCommand(program: Command): void {
  const command = program.command("collect").description("write a run's rankings, in the order of its lists");
  addPoolOptions(command)
    .option("--run <id>", "the run, as submit printed it (default: the newest)")
    .option("-o, --output <file>", "write rankings there instead of stdout")
    .option("--chunks <file>", "write a line a chunk: who ranked it, on which adapter")
    .option("--status", "say how far it is and who has done what, and wait for nothing")
    .option("--remove", "take the run out of the queue once its rankings are written")
    .addOption(
      new Option(
        "--discard",
        "take the run that --run names out of the queue, done or not, and write nothing",
      ).conflicts(["output", "chunks", "status", "remove"]),
    )
    .addHelpText("after", EXAMPLES);
  addOutputOptions(command, "a JSON summary as the last line on stderr (with --status: on stdout)").action(
    async (flags: CollectFlags) => {
      process.exitCode = await runCollect(flags);
    },
  );
}

/** Runs the command. @returns the exit code */
async function runCollect(flags: CollectFlags): Promise<number> {
  const [{ loadRun }, { poolRuns, poolStatus }] = await Promise.all([
    import("../scorer/pool.ts"),
    import("../scorer/pool-collect.ts"),
  ]);
  if (flags.discard && flags.run === undefined) {
    throw new StratumError("usage/pool", "--discard without --run", "name the run as submit printed it");
  }
  if (flags.remove && flags.output === undefined) {
    throw new StratumError("usage/output", "--remove without -o FILE", "give -o FILE: stdout may be lost");
  }
  const stop = stopSignal();
  await using pool = await openFlagged(flags);
  if (flags.status) {
    const status = await poolStatus(pool, flags.run);
    const others = (await poolRuns(pool)).filter((id) => id !== status.run.id);
    await writeStdout(flags.json ? `${JSON.stringify({ ...status, others })}\n` : statusText(status, others));
    return EXIT.ok;
  }
  if (flags.discard) {
    const { id } = await loadRun(pool, flags.run);
    await discard(pool, id, stop);
    return stop.exitCode() ?? EXIT.ok;
  }
  return await collect(pool, await loadRun(pool, flags.run), flags, stop);
}

async function collect(pool: Pool, run: PoolRun, flags: CollectFlags, stop: StopSignal): Promise<number> {
  const { id } = run;
  const { poolStatus } = await import("../scorer/pool-collect.ts");
  const begin = performance.now();
  const write = (output: LineOutput, log: LineOutput | null) => writeChunks(pool, run, output, log, stop);
  // A part of an output is of no use: the queue has it still.
  const { finished, counts } = await withOutput(flags.output, {}, (output) =>
    flags.chunks === undefined ? write(output, null) : withOutput(flags.chunks, {}, (log) => write(output, log)),
  );
  // Of what was collected: a run that is stopped has other shares by now.
  const workers = finished ? (await poolStatus(pool, id)).workers : [];
  const seconds = (performance.now() - begin) / 1000;
  if (flags.json) {
    const summary = { run: id, ...counts, seconds: Number(seconds.toFixed(3)), workers, output: flags.output ?? null };
    process.stderr.write(`${JSON.stringify({ ...summary, stopped: !finished })}\n`);
  } else {
    const failed = counts.failed > 0 ? `; ${formatCount(counts.failed)} failed` : "";
    note(
      `${finished ? "done" : "stopped"}    ${counted(counts.lists, "list")} in ${counted(counts.chunks, "chunk")}, ${formatSeconds(seconds)}${failed}`,
    );
    for (const { adapter, worker, lists } of workers) note(`        ${worker}, ${adapter}: ${counted(lists, "list")}`);
    if (new Set(workers.map(({ adapter, kernels }) => `${adapter} ${kernels}`)).size > 1)
      note("note    different adapters or kernels agree within rounding, not in every bit");
  }
  if (finished && flags.remove) await discard(pool, id, stop);
  return stop.exitCode() ?? (counts.failed > 0 ? EXIT.someFailed : EXIT.ok);
}

/** Writes the chunks as they are done. */
async function writeChunks(
  pool: Pool,
  run: PoolRun,
  output: LineOutput,
  log: LineOutput | null,
  { signal }: StopSignal,
) {
  const { collectChunks } = await import("../scorer/pool-collect.ts");
  const progress = startProgress(run.lists > 0 ? run.lists : undefined, "lists");
  const counts = { lists: 0, failed: 0, tokens: 0, chunks: 0, set_aside: 0 };
  let finished = false;
  try {
    for await (const chunk of collectChunks(pool, run.id, { signal })) {
      await output.write(chunk.text);
      await log?.write(`${JSON.stringify(chunk.done ?? { index: counts.chunks, set_aside: chunk.setAside })}\n`);
      if (chunk.setAside !== null) {
        counts.set_aside++;
        progress.aside(() =>
          warn(`set aside: chunk ${counts.chunks}, ${counted(chunk.lists, "list")}: ${chunk.setAside}`),
        );
      }
      counts.chunks++;
      counts.lists += chunk.lists;
      counts.failed += chunk.failed;
      counts.tokens += chunk.tokens;
      progress.add(chunk.lists, chunk.tokens);
    }
    if (!signal.aborted) {
      await output.finish();
      await log?.finish();
      finished = true;
    }
  } finally {
    progress.stop();
  }
  return { finished, counts };
}

/** Takes a run out of the queue. */
async function discard(pool: Pool, id: string, { signal }: StopSignal): Promise<void> {
  const { removeRun } = await import("../scorer/pool-collect.ts");
  const left = await removeRun(pool, id, { signal });
  if (left === 0) note(`removed run ${id}`);
  else warn(`run ${id} is in the queue still: ${counted(left, "chunk")} under way; take it out again later`);
}

/** @param others runs of the pool */
function statusText(
  { run, chunks, done, setAside, lost, active, listsDone, failed, workers }: PoolStatus,
  others: readonly string[],
): string {
  const all = run.chunks > 0 ? `${formatCount(chunks)}` : "(being submitted)";
  const fields: [string, string][] = [
    ["run", `${run.id}, ${run.input}`],
    [
      "chunks",
      `${formatCount(done)} of ${all} done, ${formatCount(active)} under way, ${formatCount(setAside)} set aside${lost > 0 ? `, ${formatCount(lost)} lost: submit the lists again` : ""}`,
    ],
    [
      "lists",
      `${formatCount(listsDone)} of ${formatCount(run.lists)}${failed > 0 ? `, ${formatCount(failed)} failed` : ""}`,
    ],
  ];
  for (const { worker, adapter, kernels, chunks: own, lists, seconds } of workers) {
    fields.push([
      "worker",
      `${worker}, ${adapter}, kernels ${kernels}: ${counted(own, "chunk")}, ${counted(lists, "list")} in ${formatSeconds(seconds)}`,
    ]);
  }
  if (others.length > 0) fields.push(["others", `${others.join(", ")} (--run)`]);
  return `${formatFields(fields)}\n`;
}
