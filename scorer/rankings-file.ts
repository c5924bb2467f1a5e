/** A file of rankings that a run can go on with: its lines, the journal beside it, the ids so far. */
import { createHash } from "node:crypto";
import { rename, stat, truncate } from "node:fs/promises";
import { dirname } from "node:path";
import { z } from "zod";
import { StratumError } from "../errors.ts";
import { syncFolder } from "../weights/durable.ts";
import { isSystemError } from "../weights/json.ts";
import { CLAIM_BYTES } from "./id-register.ts";
import { createJournal, type Machine, positionSchema, readJournal } from "./journal.ts";
import { START } from "./json-lines.ts";
import { createLineSink, type LineSink } from "./line-sink.ts";
import { claimsPath, forget, journalPath, type Resumed, type ResumeRequest, readStretch, resume } from "./resume.ts";

const count = z.int().min(0);

const countsSchema = z.object({ lists: count, failed: count, candidates: count, tokens: count, abstained: count });

/** Of all lists so far, those of earlier runs included. */
export type RankCounts = Readonly<z.infer<typeof countsSchema>>;

const stateSchema = z.object({
  position: positionSchema,
  out: count,
  /** Bytes that the file had before the run: those that `--append` leaves alone. */
  base: count,
  counts: countsSchema,
  finishing: z.boolean(),
});

export type RankState = Readonly<z.infer<typeof stateSchema>>;

export interface RankingsFileRequest extends Pick<ResumeRequest<RankState>, "output" | "run" | "input" | "plan"> {
  /** Write behind what the output holds, under its own name from the first line on. */
  readonly append: boolean;
  /** Throw away what an earlier run left. */
  readonly restart: boolean;
  /** Whether the output is still this process's own. */
  readonly held: () => Promise<boolean>;
}

export interface RankingsFile {
  readonly resumed: Resumed<RankState>;
  /** What an earlier run did, where it did all of it; then `complete` is what is left to do. */
  readonly finished: RankCounts | null;
  /** Gives the files their names; `last` before that. */
  complete(last?: () => Promise<void>): Promise<void>;
  /** The name of the lines until they are whole. */
  readonly partial: string;
  /** @throws {StratumError} `usage/other-machine` */
  begin(machine: Machine): LineSink<RankState>;
}

/**
 * Looks for what an earlier run left and prepares to go on with it. Nothing is written before the first line.
 * @throws {StratumError} as `resume`; `usage/torn-output` where `--append` finds no whole lines
 */
export async function openRankingsFile(request: RankingsFileRequest): Promise<RankingsFile> {
  const { output, append, restart } = request;
  const partial = append ? output : `${output}.partial`;
  if (restart) await startOver(output, partial, append);
  const found = await sizeOf(partial);
  const resumed = await resume<RankState>({
    ...request,
    state: stateSchema,
    digest: (from, to) => digestOf(output, partial, from, to),
    // What was given its name already is as long as it was.
    holds: async ({ out, base, finishing }) =>
      finishing && !append && found === null
        ? (await sizeOf(output)) === out
        : (found ?? 0) >= out && out >= base && (await endsLine(partial, out)),
  });
  const counts = { lists: 0, failed: 0, candidates: 0, tokens: 0, abstained: 0 };
  const base = append ? (found ?? 0) : 0;
  if (resumed.state === null && base > 0) await checkWholeLines(output, base);
  const begin = resumed.state ?? { position: START, out: base, base, counts, finishing: false };
  /** What another program appended meanwhile would be cut off or written over. @throws {StratumError} `usage/output-changed` */
  async function unchanged(): Promise<void> {
    const size = await sizeOf(output);
    if ((size ?? 0) === (found ?? 0)) return;
    const fresh = resumed.state === null;
    // A journal that stayed would have the same command cut it off.
    if (fresh) await forget(output, []);
    throw new StratumError(
      "usage/output-changed",
      `${output} had ${found ?? 0} bytes when the run began and has ${size ?? 0}: another program writes to it`,
      fresh
        ? "give the same command once the other program is done, or -o another name"
        : "move elsewhere what it appended, which going on would cut off; then the same command goes on",
    );
  }

  return {
    resumed,
    partial,
    finished: begin.finishing ? begin.counts : null,
    async complete(last) {
      // All of it was synced before the journal said so: only names were missing.
      await last?.();
      if (!append && found !== null) await rename(partial, output);
      await syncFolder(dirname(output));
      await forget(output, []);
    },
    begin: (machine) =>
      createLineSink<RankState>({
        ...{ output, partial, begin, held: request.held, digest: hashChunk },
        ...(append ? { unchanged } : {}),
        journal: createJournal(journalPath(output), resumed.head(machine)),
        register: resumed.read.register,
      }),
  };
}

function hashChunk(lines: Uint8Array, claims: Uint8Array): string {
  return createHash("sha256").update(lines).update(claims).digest("base64");
}

async function digestOf(output: string, partial: string, from: RankState, to: RankState): Promise<string | null> {
  const items = to.position.items - from.position.items;
  const lines = await readStretch(partial, from.out, to.out - from.out);
  const claims = await readStretch(claimsPath(output), CLAIM_BYTES * from.position.items, CLAIM_BYTES * items);
  return lines !== null && claims !== null ? hashChunk(lines, claims) : null;
}

/** Takes away an earlier run; of an output that was appended to, what that run appended. */
async function startOver(output: string, partial: string, append: boolean): Promise<void> {
  if (append) {
    const found = await readJournal({ path: journalPath(output), state: stateSchema, digest: async () => null });
    // Never longer: that would append zeros.
    if (found !== null && ((await sizeOf(output)) ?? 0) >= found.state.base) await truncate(output, found.state.base);
    await forget(output, []);
  } else await forget(output, [partial]);
}

async function sizeOf(path: string): Promise<number | null> {
  return await stat(path).then(
    ({ size }) => size,
    (cause: unknown) => {
      if (isSystemError(cause, "ENOENT")) return null;
      throw cause;
    },
  );
}

/** Whether a line ends at an offset. */
async function endsLine(path: string, offset: number): Promise<boolean> {
  return offset === 0 || (await readStretch(path, offset - 1, 1))?.[0] === 0x0a;
}

async function checkWholeLines(path: string, size: number): Promise<void> {
  if (await endsLine(path, size)) return;
  throw new StratumError(
    "usage/torn-output",
    `${path} does not end with a line break: its last line is cut`,
    "mend its last line, or give -o another name",
  );
}
