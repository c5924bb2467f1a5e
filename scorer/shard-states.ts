/** A shard's hidden states, line by line, read once from front to back. */
import { z } from "zod";
import type { ExtractedSequence } from "./extract.ts";
import type { FoundShard } from "./merge.ts";
import type { RankingNotes } from "./rankings.ts";
import type { StatesRecord } from "./resumable-states.ts";
import { CHANGED, changedFile, outputFiles, type ShardStates } from "./shard-manifest.ts";
import type { ShardFiles, ShardReading } from "./shard-reading.ts";

const id = z.union([z.string(), z.number()]);
const sequenceSchema = z.object({
  ...{ sequence: z.int().min(0), line: z.int().min(1), id },
  candidate: z.int().min(0).nullable().optional(),
  tokens: z.int().min(1),
  notes: z.custom<RankingNotes>((value) => typeof value === "object" && value !== null).optional(),
});
const failedSchema = z.object({
  ...{ line: z.int().min(1), id },
  error: z.object({ code: z.string(), message: z.string(), fix: z.string() }),
});
const indexSchema = z.union([sequenceSchema, failedSchema]);

type IndexLine = Readonly<z.infer<typeof indexSchema>>;
type SequenceIndex = Readonly<z.infer<typeof sequenceSchema>>;

export interface StatesReading {
  /** What became of a line; lines are asked for in their order. */
  next(line: number): Promise<StatesRecord>;
  /** Goes past a line. */
  pass(line: number): Promise<void>;
  /** @throws {StratumError} `usage/shard-changed` unless that was all of it, and as it was */
  end(): Promise<void>;
}

/** @param states how they lie in the shard's files */
export function readStates(from: ShardFiles, shard: FoundShard, states: ShardStates): StatesReading {
  const { files } = shard.manifest;
  const paths = outputFiles(shard.path, states);
  const last = files.length - 1;
  const index = from.read(paths[last], files[last]);
  const bodies = readBodies(from, paths, files, Math.max(1, states.parts));
  let ahead: IndexLine | null = null;
  let sequences = 0;

  const changed = () => changedFile(paths[last], files[last], CHANGED);

  async function nextIndexLine(): Promise<IndexLine | null> {
    if (index.left === 0) return null;
    const parsed = indexSchema.safeParse(parse(await index.line()));
    if (!parsed.success) throw changed();
    return parsed.data;
  }

  /** What the index says of a line: one error, or its sequences in order. */
  async function linesOf(line: number): Promise<readonly IndexLine[]> {
    const found: IndexLine[] = [];
    for (;;) {
      ahead ??= await nextIndexLine();
      if (ahead?.line !== line) break;
      if ("sequence" in ahead && ahead.sequence !== sequences++) throw changed();
      found.push(ahead);
      ahead = null;
    }
    if (found.length === 0 || (found.length > 1 && found.some((one) => "error" in one))) throw changed();
    return found;
  }

  const sizes = ({ tokens }: SequenceIndex) => {
    const rows = states.layers * (states.tokens === "all" ? tokens : 1);
    return { ids: 4 * tokens, states: 4 * rows * states.d };
  };

  return {
    async pass(line) {
      for (const one of await linesOf(line)) {
        if ("error" in one) continue;
        const { ids, states: own } = sizes(one);
        await bodies.pass(ids + own);
      }
    },
    async next(line) {
      const lines = await linesOf(line);
      const [first] = lines;
      if ("error" in first) return { kind: "failed", line, id: first.id, error: first.error };
      const sequences: ExtractedSequence[] = [];
      for (const one of lines) {
        if ("error" in one) throw changed();
        const { ids, states: own } = sizes(one);
        sequences.push({
          candidate: one.candidate ?? null,
          ids: new Int32Array((await bodies.take(ids)).buffer),
          states: new Float32Array((await bodies.take(own)).buffer),
        });
      }
      const source = first.candidate === undefined ? "text" : "list";
      return { kind: "extracted", line, id: first.id, source, notes: first.notes ?? {}, sequences };
    },
    async end() {
      if ((ahead ?? (await nextIndexLine())) !== null) throw changed();
      await index.end();
      await bodies.end();
    },
  };
}

/**
 * The bodies of safetensors files one after the other: `ids_i` and `hidden_i` of one sequence after the other, without
 * gaps, as the writer of states lays them. Headers are hashed and not parsed: the index says how long each sequence is,
 * and of a thousand shards they would fill the memory.
 */
function readBodies(from: ShardFiles, paths: readonly string[], files: FoundShard["manifest"]["files"], parts: number) {
  let part = -1;
  let open: ShardReading | null = null;
  /** Bytes of the part that were passed and are not yet read. */
  let passed = 0;

  const changed = () => changedFile(paths[Math.max(0, part)], files[Math.max(0, part)], CHANGED);

  async function openNext(): Promise<ShardReading> {
    if (part + 1 >= parts) throw changed();
    part++;
    open = from.read(paths[part], files[part]);
    await open.skip(Number(new DataView((await open.take(8)).buffer).getBigUint64(0, true)));
    return open;
  }

  /** @param compared an earlier merge has compared this part */
  async function endPart(compared: boolean): Promise<void> {
    if (!compared) {
      await open?.skip(passed);
      await open?.end();
    }
    passed = 0;
  }

  /** The part that has the next bytes. @param compared whether the one before it was compared already */
  async function current(compared: boolean): Promise<ShardReading> {
    if (open !== null && open.left > passed) return open;
    await endPart(compared);
    return openNext();
  }

  return {
    async take(length: number): Promise<Uint8Array<ArrayBuffer>> {
      const reading = await current(false);
      await reading.skip(passed);
      passed = 0;
      return reading.take(length);
    },
    /** Goes past what an earlier merge took: it compared all parts but the one that it was in. */
    async pass(length: number): Promise<void> {
      const reading = await current(true);
      passed += length;
      if (passed > reading.left) throw changed();
    },
    async end(): Promise<void> {
      // A shard without sequences has a file all the same.
      if (open === null) await openNext();
      await endPart(false);
      if (part !== parts - 1) throw changed();
    },
  };
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}
