/**
 * What lies beside an output from an earlier run, checked against the run that is about to begin: the journal, the ids
 * that were used, and whether the input is still the one that was read.
 *
 * The input is not read again. The system's word (size, times, inode) is taken: the time of the last change cannot be set
 * by hand, so where nothing differs nothing was written. Where something differs (a copy, another machine, a pipe) the
 * bytes that were read before are read once more and their chain of hashes compared.
 */
import { open, rm, stat } from "node:fs/promises";
import { messageOf, StratumError } from "../errors.ts";
import { isSystemError } from "../weights/json.ts";
import { CLAIM_BYTES, createIdRegister, type IdRegister } from "./id-register.ts";
import {
  checkSameFacts,
  type FoundJournal,
  type JournalHead,
  type JournalOptions,
  type Machine,
  type RunFacts,
  readJournal,
  type WholeInput,
} from "./journal.ts";
import { type FileFacts, fileFacts, type LineRange, type Position, START } from "./json-lines.ts";
import type { ReadOptions } from "./lists.ts";

/** What every state of a run says. */
export interface RunState {
  readonly position: Position;
  /** All is done but for the names of the files. */
  readonly finishing: boolean;
}

/** How the input is divided and counted; asked only where no journal says it. */
export interface InputPlan {
  readonly total: number | null;
  readonly ranges: readonly LineRange[] | null;
  /** The input whole, where it was read to be divided. */
  readonly whole: WholeInput | null;
}

export interface ResumeRequest<S extends RunState> extends Omit<JournalOptions<S>, "path" | "expected"> {
  /** The output's final name. */
  readonly output: string;
  readonly run: RunFacts;
  /** A path, or `-`. */
  readonly input: string;
  readonly plan: () => Promise<InputPlan>;
  /** Whether the files of an earlier run still hold what a state says. */
  readonly holds: (state: S) => Promise<boolean>;
}

export interface Resumed<S extends RunState> {
  /** Where the earlier run stopped; null to begin. */
  readonly state: S | null;
  /** Kernels of the earlier run. */
  readonly machine: Machine | null;
  /** How the input is to be read on. */
  readonly read: ReadOptions & { readonly from: Position; readonly register: IdRegister };
  /** Whether what was read before is read again. */
  readonly verify: boolean;
  /** The journal's first line on this machine. @throws {StratumError} `usage/other-machine` */
  head(machine: Machine): JournalHead;
  readonly plan: InputPlan;
  /** What the system says of the input now. */
  readonly input: RunFacts | null;
}

/** `OUT.journal`. */
export function journalPath(output: string): string {
  return `${output}.journal`;
}

/** The ids of the lines so far. */
export function claimsPath(output: string): string {
  return `${output}.journal.ids`;
}

/** What the system says of a regular file; null for anything else. @throws {StratumError} `usage/no-input` */
export async function inputFacts(path: string): Promise<(RunFacts & FileFacts) | null> {
  if (path === "-") return null;
  try {
    const found = await stat(path, { bigint: true });
    if (!found.isFile()) return null;
    const { size, modified, inode } = fileFacts(found);
    return { size, modified, changed: `${found.ctimeNs}`, inode };
  } catch (cause) {
    throw new StratumError(
      "usage/no-input",
      `cannot read ${path}: ${messageOf(cause)}`,
      "check the path of the input file",
      cause,
    );
  }
}

/**
 * Looks for an earlier run and checks that it is this one.
 * @throws {StratumError} `usage/other-run`, `usage/bad-journal`, `usage/other-input`, `usage/output-changed`
 */
export async function resume<S extends RunState>(request: ResumeRequest<S>): Promise<Resumed<S>> {
  const { output, run, input } = request;
  const path = journalPath(output);
  const now = await inputFacts(input);
  const found = await readJournal({ ...request, path, expected: { run, output } });
  if (found !== null) {
    // Else the rest of the input would be taken for done, and a length that no file has would be asked for.
    const { line, bytes, items } = found.state.position;
    if (items > line || line > bytes) {
      throw new StratumError(
        "usage/bad-journal",
        `${path} says that ${items} of ${line} lines in ${bytes} bytes are done`,
        "throw away what there is with --restart",
      );
    }
    if (!(await request.holds(found.state))) {
      throw new StratumError(
        "usage/output-changed",
        `${path} says that more was done than the files beside it hold`,
        "throw away what there is with --restart",
      );
    }
  }
  const read = found?.state.position.bytes ?? 0;
  const same =
    found !== null &&
    now !== null &&
    JSON.stringify(found.head.input) === JSON.stringify(now) &&
    read <= Number(now["size"]);
  const plan = same ? found.head : await request.plan();
  if (found !== null && !same) checkPlans(found, plan, input);
  const position = found?.state.position ?? START;
  // A run that was done takes its ids away before its journal, and has no line to compare them with.
  const claims = found?.state.finishing ? 0 : position.items;
  const register = createIdRegister(await readClaims(claimsPath(output), claims));
  const verify = found !== null && !same && position.bytes > 0;
  return {
    state: found?.state ?? null,
    machine: found?.head.machine ?? null,
    read: { from: position, register, verify, facts: now, ...(plan.ranges === null ? {} : { ranges: plan.ranges }) },
    verify,
    plan: { total: plan.total, ranges: plan.ranges, whole: plan.whole },
    input: now,
    head(machine) {
      if (found !== null) checkMachine(found.head.machine, machine, output);
      const { total, ranges, whole } = plan;
      return { run, input: now, total, ranges: ranges === null ? null : [...ranges], whole, machine };
    },
  };
}

/** A shard's stretches are those of the whole input: other ones, and its lines are other lines. */
function checkPlans<S>({ head }: FoundJournal<S>, plan: InputPlan, input: string): void {
  const facts = ({ ranges, whole }: InputPlan) => JSON.stringify([ranges, ranges === null ? null : whole]);
  if (facts(head) === facts(plan)) return;
  throw new StratumError(
    "usage/other-input",
    `${input} has changed since the run was begun, and with it which lines are this shard's`,
    "give the earlier input, or throw away what there is of every shard with --restart",
  );
}

function checkMachine(before: Machine, now: Machine, output: string): void {
  const facts = ({ adapter, kernels }: Machine) => ({ adapter, kernels });
  try {
    checkSameFacts(facts(before), facts(now), output);
  } catch (cause) {
    if (!(cause instanceof StratumError)) throw cause;
    throw new StratumError(
      "usage/other-machine",
      cause.message,
      "other kernels agree within rounding only: go on where the run began (--adapter), or throw away what there is with --restart",
      cause,
    );
  }
}

/** Of a process that was thought dead: its lock was taken away. */
export function takenError(output: string): StratumError {
  return new StratumError(
    "usage/in-use",
    `another process has begun to write ${output} while this one stood still`,
    "let one of them finish",
  );
}

/** Takes away a run's files, whatever is in them. */
export async function forget(output: string, files: readonly string[]): Promise<void> {
  for (const file of [journalPath(output), `${journalPath(output)}.next`, claimsPath(output), ...files])
    await rm(file, { force: true });
}

async function readClaims(path: string, items: number): Promise<Uint8Array> {
  const bytes = await readStretch(path, 0, items * CLAIM_BYTES);
  if (bytes !== null) return bytes;
  throw new StratumError(
    "usage/bad-journal",
    `${path} does not hold the ids of the ${items} lines that were done`,
    "throw away what there is with --restart",
  );
}

/** Bytes of a file; null where it does not have them all. A journal says how many: no more is asked for than there is. */
export async function readStretch(path: string, start: number, length: number): Promise<Uint8Array | null> {
  if (length < 0) return null;
  if (length === 0) return new Uint8Array(0);
  const file = await open(path, "r").catch((cause: unknown) => {
    if (isSystemError(cause, "ENOENT")) return null;
    throw cause;
  });
  if (file === null) return null;
  try {
    if ((await file.stat()).size < start + length) return null;
    const bytes = new Uint8Array(length);
    let done = 0;
    while (done < bytes.byteLength) {
      const { bytesRead } = await file.read(bytes, done, bytes.byteLength - done, start + done);
      if (bytesRead === 0) return null;
      done += bytesRead;
    }
    return bytes;
  } finally {
    await file.close();
  }
}
