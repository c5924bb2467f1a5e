/**
 * Property-based fuzzing of what reads other people's files. An input either gives a result or a `StratumError` with a
 * code; it takes bounded time and memory; whatever else happens is a finding, shrunk by fast-check and printed with the
 * seed and the path that give it again (STRATUM_FUZZ_SEED, STRATUM_FUZZ_PATH, and vitest's -t for the target).
 */
import { writeSync } from "node:fs";
import { Worker } from "node:worker_threads";
import fc from "fast-check";
import { StratumError } from "../../../errors.ts";

/** What one input came to: `ok`, or the code of its error. */
export type Outcome = string;

export interface FuzzTarget {
  readonly name: string;
  /** Inputs in the ordinary tests. */
  readonly runs: number;
  /** What must be among the outcomes of that many inputs, or the inputs show little. */
  readonly reaches: readonly Outcome[];
  readonly property: (tally: (outcome: Outcome) => void) => fc.IRawProperty<unknown>;
}

/** Processor time of one input; the slowest honest ones take a few hundred milliseconds. */
const MAX_CPU_MS = 5000;
/** Growth of the process over a target's inputs: garbage included, so far above what any one input may take. */
const MAX_GROWTH_KB = 700 * 1024;
/** Without an end of any input for so long, the process is stopped. */
const MAX_SILENCE_S = 120;

/** A target over inputs of an arbitrary. `check` throws where the input does what it must not. */
export function fuzzTarget<T>(
  name: string,
  runs: number,
  reaches: readonly Outcome[],
  inputs: fc.Arbitrary<T>,
  check: (input: T) => Outcome | Promise<Outcome>,
): FuzzTarget {
  return {
    name,
    runs,
    reaches,
    property(tally) {
      let rss = process.resourceUsage().maxRSS;
      const first = rss;
      return fc.asyncProperty(inputs, async (input) => {
        const before = process.cpuUsage();
        tally(await check(input));
        const { user, system } = process.cpuUsage(before);
        if (user + system > MAX_CPU_MS * 1000) throw new Error(`took ${(user + system) / 1000} ms of processor time`);
        const { maxRSS } = process.resourceUsage();
        const grown = maxRSS - rss;
        rss = maxRSS;
        if (maxRSS - first > MAX_GROWTH_KB) throw new Error(`the process has grown by ${grown} KB to ${maxRSS} KB`);
      }) as fc.IRawProperty<unknown>;
    },
  };
}

/** The outcome of a reader: anything but a result or an error of ours is a finding. */
export async function outcomeOf(work: () => unknown): Promise<Outcome> {
  try {
    await work();
    return "ok";
  } catch (thrown) {
    if (!(thrown instanceof StratumError)) throw thrown;
    return codeOf(thrown);
  }
}

/** The code of an error that is fit to be seen. */
export function codeOf(error: StratumError): string {
  if (!/^[a-z]+\/[a-z0-9-]+$/.test(error.code)) throw new Error(`the code ${JSON.stringify(error.code)}`);
  if (error.message === "" || error.fix === "") throw new Error(`${error.code} says nothing`);
  if (error.message.length > 100_000)
    throw new Error(`${error.code} has a message of ${error.message.length} characters`);
  return error.code;
}

/** The inputs of a seed. @returns how often each outcome was met */
export async function fuzz(target: FuzzTarget, runs: number, seed: number): Promise<ReadonlyMap<Outcome, number>> {
  const outcomes = new Map<Outcome, number>();
  const path = process.env["STRATUM_FUZZ_PATH"];
  const alive = watch(`${target.name}, seed ${seed}`);
  try {
    await fc.assert(
      target.property((outcome) => {
        alive.beat();
        outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
      }),
      { seed, numRuns: runs, ...(path === undefined ? {} : { path }) },
    );
  } finally {
    await alive.end();
  }
  return outcomes;
}

/** Of a target and the run's seed, which STRATUM_FUZZ_SEED replaces. */
export function seedOf(target: FuzzTarget, seed: number): number {
  const given = process.env["STRATUM_FUZZ_SEED"];
  if (given !== undefined) return Number(given);
  let hash = seed | 0;
  for (const character of target.name) hash = Math.imul(hash ^ character.charCodeAt(0), 0x01000193);
  return hash;
}

/** Notices from another thread that this one hangs; says where, and ends the process. */
function watch(where: string): { beat(): void; end(): Promise<unknown> } {
  const beats = new Int32Array(new SharedArrayBuffer(4));
  const source = `
    const { workerData: { beats, where, silence } } = require("node:worker_threads");
    let last = -1, since = Date.now();
    setInterval(() => {
      const now = Atomics.load(beats, 0);
      if (now !== last) { last = now; since = Date.now(); return; }
      if (Date.now() - since < 1000 * silence) return;
      require("node:fs").writeSync(2, "\\nfuzzing hangs at " + where + ", input " + now + "\\n");
      process.kill(process.pid, "SIGKILL");
    }, 1000);`;
  const worker = new Worker(source, { eval: true, workerData: { beats, where, silence: MAX_SILENCE_S } });
  worker.unref();
  return { beat: () => void Atomics.add(beats, 0, 1), end: () => worker.terminate() };
}

/** A line of the long form, past vitest's capture: so that it is there when the process is not. */
export function tell(line: string): void {
  writeSync(2, `${line}\n`);
}
