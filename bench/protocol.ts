/** What a peer's module exports, and what passes between the orchestrator and a peer's process. */
import type { Job } from "./jobs.ts";

/** What a peer calls its adapter that computes on the CPU. */
export const CPU = "CPU";

/** The driver that every process of a run uses. */
export interface SharedAdapter {
  /** Its name for people. */
  readonly name: string;
  readonly source: "system" | "embedded";
  /** The Vulkan manifest that the loader is told to read, alone; null where there is no choice to make. */
  readonly manifest: string | null;
}

export interface RunResult {
  /** Milliseconds of the job alone. */
  readonly ms: number;
  /** The job's result, row-major; asked for once, in the run that is not counted. */
  readonly output: Float32Array | null;
}

/** A job that is ready: weights uploaded, as far as a runtime can before its first run. */
export interface Prepared {
  /** The name of the adapter that it runs on, `CPU`, or null where the runtime does not tell. */
  readonly adapter: string | null;
  /** @param full also give the result */
  run(full: boolean): Promise<RunResult>;
}

/** A peer's module. */
export interface PeerModule {
  prepare(job: Job, adapter: SharedAdapter): Promise<Prepared>;
}

export type Request =
  | { readonly call: "prepare"; readonly job: Job; readonly adapter: SharedAdapter }
  | { readonly call: "run"; readonly full: boolean };

export type Reply =
  | { readonly adapter: string | null }
  | { readonly result: RunResult }
  | { readonly error: string; readonly fix: string | null };
