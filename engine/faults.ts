/**
 * Faults on purpose, for tests and for whoever wants to see how a command takes them: software adapters produce none by
 * themselves. `device-lost@12,out-of-memory@3` loses the device at its 12th submission and has no memory for the 3rd
 * buffer; `device-lost@12+` does so from the 12th on. Counts go on over a renewed device, so that a run meets each fault
 * once.
 */
import { StratumError } from "../errors.ts";

/**
 * - `device-lost`: the device is lost with this submission.
 * - `out-of-memory`: there is no memory for this buffer or texture.
 * - `submit-out-of-memory`: the driver finds no memory for this submission, which does not run.
 * - `hang`: this submission never ends.
 */
export const FAULT_KINDS = ["device-lost", "out-of-memory", "submit-out-of-memory", "hang"] as const;
export type FaultKind = (typeof FAULT_KINDS)[number];

/** What is to go wrong. It counts what it is asked. */
export interface Faults {
  /** What befalls the next submission. */
  submission(): Exclude<FaultKind, "out-of-memory"> | null;
  /** Whether the next buffer or texture finds memory. */
  allocation(): boolean;
}

interface Planned {
  readonly kind: FaultKind;
  readonly at: number;
  readonly onwards: boolean;
}

/** @throws {StratumError} `usage/faults` */
export function parseFaults(text: string): Faults {
  const planned = text.split(",").map((part): Planned => {
    const match = /^([a-z-]+)@([1-9]\d*)(\+?)$/.exec(part.trim());
    const kind = FAULT_KINDS.find((name) => name === match?.[1]);
    if (match === null || kind === undefined) {
      throw new StratumError(
        "usage/faults",
        `'${part.trim()}' names no fault`,
        `give KIND@COUNT, or KIND@COUNT+ for every one from there on, separated by commas; kinds: ${FAULT_KINDS.join(", ")}`,
      );
    }
    return { kind, at: Number(match[2]), onwards: match[3] === "+" };
  });
  const due = (count: number, { at, onwards }: Planned) => count === at || (onwards && count > at);
  let [submissions, allocations] = [0, 0];
  return {
    submission() {
      submissions++;
      const met = planned.find((fault) => fault.kind !== "out-of-memory" && due(submissions, fault));
      return (met?.kind as Exclude<FaultKind, "out-of-memory"> | undefined) ?? null;
    },
    allocation() {
      allocations++;
      return !planned.some((fault) => fault.kind === "out-of-memory" && due(allocations, fault));
    },
  };
}
