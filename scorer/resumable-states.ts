/** A file of hidden states that a run can go on with: the states, a line a sequence beside it, and the journal. */
import { existsSync } from "node:fs";
import { rename, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { z } from "zod";
import { StratumError } from "../errors.ts";
import { syncFolder } from "../weights/durable.ts";
import type { ExtractOutcome } from "./extract.ts";
import { createJournal, type Machine, positionSchema } from "./journal.ts";
import { START, splitLines } from "./json-lines.ts";
import { createLineSink, type LineSink } from "./line-sink.ts";
import { forget, journalPath, type Resumed, type ResumeRequest, resume } from "./resume.ts";
import {
  createStatesWriter,
  indexPath,
  partPath,
  type StatesWriter,
  type StatesWriterOptions,
} from "./states-writer.ts";

const count = z.int().min(0);
const part = z.object({ sequences: count, bytes: count });
export const extractCounts = z.object({ lines: count, failed: count, sequences: count, tokens: count });

/** Of all lines so far, those of earlier runs included. */
export type ExtractCounts = Readonly<z.infer<typeof extractCounts>>;

const stateSchema = z.object({
  position: positionSchema,
  out: count,
  parts: z.array(part).readonly(),
  /** The part under way, and where its lines begin. */
  part: part.extend({ index: count }),
  /** The part under way is about to become whole. */
  ending: z.boolean(),
  counts: extractCounts,
  finishing: z.boolean(),
});

type StatesState = Readonly<z.infer<typeof stateSchema>>;

export interface StatesFileRequest extends Pick<ResumeRequest<StatesState>, "output" | "run" | "input" | "plan"> {
  readonly restart: boolean;
  readonly held: () => Promise<boolean>;
  readonly states: Omit<StatesWriterOptions, "metadata" | "begun" | "keep">;
}

export interface StatesFile {
  readonly resumed: Resumed<StatesState>;
  /** What earlier runs did; `finished`: all of it is done, but perhaps for the files' names. */
  readonly counts: ExtractCounts;
  readonly finished: boolean;
  /** @throws {StratumError} `usage/other-machine`, `file/write-failed`, `file/not-a-file` */
  begin(machine: Machine, metadata: Readonly<Record<string, string>>): Promise<StatesSink>;
}

type Extracted = ExtractOutcome & { readonly kind: "extracted" };

/** What became of one line, its error as it is written. */
export type StatesRecord =
  | Extracted
  | (Omit<ExtractOutcome & { readonly kind: "failed" }, "error"> & {
      readonly error: { readonly code: string; readonly message: string; readonly fix: string };
    });

/** A file, and where it lies until the last one has its name. */
export interface PlacedFile {
  readonly name: string;
  readonly at: string;
}

export interface StatesSink {
  readonly counts: ExtractCounts;
  /** How many numbered parts there are, once it is finished; 0 for one file. */
  readonly parts: number;
  /** @throws {StratumError} `file/write-failed`, `usage/in-use` */
  write(record: StatesRecord): Promise<void>;
  /**
   * @param last runs when all is whole, before the last file gets its name; it may be cut short and done again
   * @returns the files' names
   */
  finish(last?: (files: readonly PlacedFile[]) => Promise<void>): Promise<readonly string[]>;
  /** The work ended early: what was done stays, for a later run. */
  leave(): Promise<void>;
}

/** Longer than any id that a line of lists can have. */
const MAX_INDEX_LINE = 2 ** 28;
const indexLine = z.object({ tokens: z.int().min(1).optional() });

/**
 * Looks for what an earlier run left and prepares to go on with it.
 * @throws {StratumError} as `resume`
 */
export async function openStatesFile(request: StatesFileRequest): Promise<StatesFile> {
  const { output, restart, states } = request;
  const index = indexPath(output);
  const partial = `${index}.partial`;
  if (restart) await forgetStates(output);
  const sizeOf = (path: string) =>
    stat(path).then(
      (found) => found.size,
      () => null,
    );
  const size = await sizeOf(partial);
  const resumed = await resume<StatesState>({
    ...request,
    state: stateSchema,
    // A chunk counts once it is synced: hashing states again would cost as much as reading them.
    digest: async () => null,
    holds: async ({ out, finishing }) =>
      finishing && size === null ? (await sizeOf(index)) === out : (size ?? 0) >= out,
  });
  const begin: StatesState = resumed.state ?? {
    ...{ position: START, out: 0, parts: [], part: { sequences: 0, bytes: 0, index: 0 }, ending: false },
    ...{ counts: { lines: 0, failed: 0, sequences: 0, tokens: 0 }, finishing: false },
  };

  async function openWriter(metadata: Readonly<Record<string, string>>): Promise<StatesWriter> {
    const begun = { progress: begin, tokens: await tokensOf(size === null ? index : partial, begin) };
    return createStatesWriter(output, {
      ...{ ...states, metadata, keep: true },
      ...(resumed.state === null ? {} : { begun }),
    });
  }

  return {
    resumed,
    counts: begin.counts,
    finished: begin.finishing,
    async begin(machine, metadata) {
      const head = resumed.head(machine);
      const writer = await openWriter(metadata);
      if (begin.finishing) return finishedSink(writer, begin, { output, partial, index });
      let state = begin;
      if (begin.ending) {
        await writer.endPart();
        state = partEnded(writer, begin);
      }
      const sink = createLineSink<StatesState>({
        ...{ output, partial, target: index, begin: state, held: request.held, sync: () => writer.sync() },
        journal: createJournal(journalPath(output), head),
        register: resumed.read.register,
      });
      if (begin.ending) await tell(sink, state);
      return createSink(writer, sink, index, state.part.index);
    },
  };
}

/** A part has its name, and the next has not begun. */
function partEnded(writer: StatesWriter, before: StatesState): StatesState {
  const { parts, part } = writer.progress;
  return { ...before, parts, part: { ...part, index: before.out }, ending: false };
}

/** Waits until the journal says so. */
async function tell(sink: LineSink<StatesState>, state: StatesState): Promise<void> {
  await sink.write("", state);
  await sink.settle();
}

/** Throws away what an unfinished run left. */
export async function forgetStates(output: string): Promise<void> {
  const files = [`${indexPath(output)}.partial`, `${output}.partial`, `${output}.partial.body`];
  for (let part = 1; existsSync(`${partPath(output, part)}.partial`); part++)
    files.push(`${partPath(output, part)}.partial`);
  await forget(output, files);
}

function createSink(writer: StatesWriter, sink: LineSink<StatesState>, index: string, begun: number): StatesSink {
  let partIndex = begun;
  return {
    get counts() {
      return sink.state.counts;
    },
    get parts() {
      return writer.progress.parts.length;
    },
    async write(outcome) {
      const { position } = outcome;
      if (position === undefined) throw new Error("a line without its position");
      const before = sink.state;
      const counts = { ...before.counts, lines: before.counts.lines + 1 };
      let text: string;
      if (outcome.kind === "failed") {
        const { code, message, fix } = outcome.error;
        text = `${JSON.stringify({ line: outcome.line, id: outcome.id, error: { code, message, fix } })}\n`;
        counts.failed++;
      } else {
        if (!writer.fits(outcome.sequences)) {
          // What the part holds is in the journal before it changes its name, and that it did before the next begins: the
          // body of that one would be taken for its own.
          await tell(sink, { ...before, ending: true });
          await writer.endPart();
          await tell(sink, partEnded(writer, sink.written));
          partIndex = sink.written.out;
        }
        const first = await writer.add(outcome.sequences);
        text = indexLines(outcome, first);
        counts.sequences += outcome.sequences.length;
        counts.tokens += outcome.sequences.reduce((sum, { ids }) => sum + ids.length, 0);
      }
      const { parts, part } = writer.progress;
      const next = { position, parts, part: { ...part, index: partIndex }, counts };
      await sink.write(text, { ...next, ending: false, finishing: false });
    },
    async finish(last) {
      let written: readonly string[] = [];
      await sink.finish(async () => {
        written = await writer.finish();
        await last?.(placed(written, index));
      });
      return [...written, index];
    },
    async leave() {
      await sink.leave();
      await writer.leave();
    },
  };
}

/** An earlier run was about to give the files their names. */
function finishedSink(
  writer: StatesWriter,
  { counts }: StatesState,
  { output, partial, index }: { readonly output: string; readonly partial: string; readonly index: string },
): StatesSink {
  return {
    counts,
    get parts() {
      return writer.progress.parts.length;
    },
    write: async () => undefined,
    async finish(last) {
      const written = await writer.finish();
      await last?.(placed(written, index));
      if (existsSync(partial)) await rename(partial, index);
      await syncFolder(dirname(output));
      await forget(output, []);
      return [...written, index];
    },
    leave: () => writer.leave(),
  };
}

/** The files of a run that is all but over: the index has its name last. */
function placed(written: readonly string[], index: string): PlacedFile[] {
  const partial = `${index}.partial`;
  return [...written.map((name) => ({ name, at: name })), { name: index, at: existsSync(partial) ? partial : index }];
}

function indexLines(outcome: Extracted, first: number): string {
  const { line, id, source, notes, sequences } = outcome;
  return sequences
    .map(({ candidate, ids }, k) => {
      const role = source === "list" ? { candidate } : {};
      const noted = Object.keys(notes).length > 0 ? { notes } : {};
      return `${JSON.stringify({ sequence: first + k, line, id, ...role, tokens: ids.length, ...noted })}\n`;
    })
    .join("");
}

/** The tokens of the sequences of the part under way: its lines say them. */
async function tokensOf(path: string, { part: { sequences, index }, out }: StatesState): Promise<number[]> {
  if (sequences === 0) return [];
  const tokens: number[] = [];
  const from = { line: 0, bytes: index, hash: "" };
  for await (const { bytes } of splitLines(path, MAX_INDEX_LINE, { from, until: out })) {
    const line = indexLine.safeParse(parsed(bytes));
    if (!line.success) break;
    if (line.data.tokens !== undefined) tokens.push(line.data.tokens);
  }
  if (tokens.length === sequences) return tokens;
  throw new StratumError(
    "usage/output-changed",
    `${path} names ${tokens.length} sequences of the part under way, and ${sequences} were written`,
    "throw away what there is with --restart",
  );
}

function parsed(bytes: Uint8Array | null): unknown {
  try {
    return JSON.parse(Buffer.from(bytes ?? []).toString("utf8")) as unknown;
  } catch {
    return undefined;
  }
}
