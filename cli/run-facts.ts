/** What makes a run of `rank` or `extract` this run and no other: what must be the same for it to be gone on with. */
import { join } from "node:path";
import { fingerprint } from "../engine/fingerprint.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import type { Pooling } from "../scorer/encode.ts";
import type { RunFacts } from "../scorer/journal.ts";
import type { Resumed, RunState } from "../scorer/resume.ts";
import { hashFile } from "../weights/durable.ts";
import { type ListFlags, packageVersion, recordedName } from "./common.ts";
import { note } from "./terminal.ts";

export interface RunChoice {
  /** The deepest layer that is read. */
  readonly depth: number;
  readonly pooling: Pooling;
  readonly system: string | undefined;
}

/** The facts that every run over lists has; names are those of the options. */
export async function runFacts(
  files: ModelFiles,
  { depth, pooling, system }: RunChoice,
  flags: Pick<ListFlags, "truncate" | "date" | "batchTokens" | "sharePrefix">,
): Promise<RunFacts> {
  return {
    version: packageVersion(),
    model: recordedName(files),
    "model's fingerprint": (await fingerprint(files, depth)).slice(0, 16),
    pooling,
    system: system ?? null,
    truncate: flags.truncate ?? false,
    date: flags.date ?? null,
    "batch-tokens": flags.batchTokens ?? null,
    "share-prefix": flags.sharePrefix,
  };
}

/** Says that an earlier run is gone on with, behind what it did. */
export function noteResumed({ state, verify }: Resumed<RunState>, done: string): void {
  if (state === null) return;
  const again = verify ? "; what was read of the input is compared first" : "";
  note(`resume  after ${done}${again}`);
}

/** A scorer by its files' content. */
export async function scorerFact(scorer: string): Promise<string> {
  if (scorer === "cosine") return scorer;
  const [weights, settings] = await Promise.all(
    ["scorer.safetensors", "scorer.json"].map((name) => hashFile(join(scorer, name))),
  );
  return `${weights.slice(0, 16)} ${settings.slice(0, 16)}`;
}
