/** Hidden states of shards, put together in the order of the input: what one run over all of it would have written. */
import { createHash } from "node:crypto";
import { StratumError } from "../errors.ts";
import type { IdRegister } from "./id-register.ts";
import type { RunFacts } from "./journal.ts";
import { claimPlaced, countPlaced, type FoundShard, placedLines } from "./merge.ts";
import { openStatesFile, type StatesFile, type StatesRecord, type StatesSink } from "./resumable-states.ts";
import type { ShardStates } from "./shard-manifest.ts";
import { openShardFiles } from "./shard-reading.ts";
import { readStates } from "./shard-states.ts";

export interface MergedStates extends Pick<StatesFile, "counts" | "finished"> {
  /** Lines of the input that have a place in the output. */
  readonly total: number;
  begin(): Promise<StatesSink>;
  /** What is left to write, in order. @throws {StratumError} `usage/shard-changed`, `usage/bad-shard` */
  records(): AsyncGenerator<StatesRecord>;
}

/**
 * Prepares to merge states into one file, or to go on with that; `begin` opens it, and what `records` gives goes there.
 * @param held whether the output is still this process's own
 * @throws {StratumError} `usage/other-run` where something else lies beside the output; as `openStatesFile`
 */
export async function openMergedStates(
  shards: readonly FoundShard[],
  {
    output,
    restart,
    held,
  }: { readonly output: string; readonly restart: boolean; readonly held: () => Promise<boolean> },
): Promise<MergedStates> {
  const total = countPlaced(shards);
  const { metadata, ...states } = mergedLayout(shards);
  const { adapter = "", kernels = "" } = metadata;
  const file = await openStatesFile({
    ...{ output, run: mergeFacts(shards), restart, held, states },
    // The facts name the shards by their content: nothing is to be asked of an input.
    input: "-",
    plan: async () => ({ total, ranges: null, whole: null }),
  });
  const { from, register } = file.resumed.read;
  return {
    ...{ counts: file.counts, finished: file.finished, total },
    begin: () => file.begin({ adapter, kernels, tiles: [] }, metadata),
    records: () => mergedStates(shards, { line: from.line, items: from.items, register }),
  };
}

/** The shards' own words, and what they hold: a merge goes on with no other shards. */
function mergeFacts(shards: readonly FoundShard[]): RunFacts {
  const hash = createHash("sha256");
  for (const { manifest } of shards)
    hash.update(JSON.stringify([manifest.shard, manifest.whole, manifest.ranges, manifest.files]));
  return { ...shards[0].manifest.run, command: "merge", "shards' sha256": hash.digest("hex").slice(0, 16) };
}

/** How the states lie in the merged files. */
function mergedLayout(shards: readonly FoundShard[]): Omit<ShardStates, "parts"> {
  const layouts = shards.map(statesOf);
  const metadata = { ...layouts[0].metadata };
  // Shards of several machines name them all; of one, the bytes are those of one run.
  for (const name of ["adapter", "kernels"])
    metadata[name] = [...new Set(layouts.map((layout) => layout.metadata[name] ?? ""))].join("; ");
  const { layers, tokens, d, partBytes } = layouts[0];
  return { layers, tokens, d, partBytes, metadata };
}

function statesOf({ path, manifest }: FoundShard): ShardStates {
  if (manifest.states !== null) return manifest.states;
  throw new StratumError("usage/bad-shard", `${path} holds no states`, "give shards of `extract`");
}

interface MergeStart {
  /** The last line of the input that was merged before; 0 for none. */
  readonly line: number;
  /** Lines that were. */
  readonly items: number;
  /** Their ids. */
  readonly register: IdRegister;
}

/**
 * The states of all shards line by line, in the order of the input. Ids that two shards use are found here, and give the
 * error that one run would have given. What is held is one line's states, and a part of each shard that
 * is the smaller the more there are.
 * @param start what an earlier merge did; it is read once more only from the beginning of the part where it stopped
 * @throws {StratumError} `usage/shard-changed` where a shard's files are not those of its record, `usage/bad-shard`
 */
async function* mergedStates(
  shards: readonly FoundShard[],
  { line: before, items: done, register }: MergeStart,
): AsyncGenerator<StatesRecord> {
  // A shard's index, and one of its parts at a time.
  const files = openShardFiles(2 * shards.length);
  const readings = shards.map((shard) => readStates(files, shard, statesOf(shard)));
  let items = done;
  try {
    for (const { shard, line, end } of placedLines(shards)) {
      if (line <= before) {
        await readings[shard].pass(line);
        continue;
      }
      const record = await readings[shard].next(line);
      items++;
      // Shards say where a line's stretch ends, not where the line does.
      const position = { line, bytes: end, items, hash: "" };
      const error = claimPlaced(register, record) ?? (record.kind === "failed" ? record.error : null);
      yield error === null ? { ...record, position } : { kind: "failed", line, id: record.id, error, position };
    }
    for (const reading of readings) await reading.end();
  } finally {
    await files.close();
  }
}
