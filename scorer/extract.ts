/** Extraction: lists, texts or token ids in, hidden states out, sequence by sequence in the order of the input. */

import type { Batch, SequenceGroup } from "../engine/batch.ts";
import {
  batchStates,
  checkLength,
  finiteFault,
  type Model,
  openRunnerRoom,
  type RunnerRoom,
} from "../engine/hidden-states.ts";
import type { Runner } from "../engine/runner.ts";
import { checkFits, type Job, streamJobs } from "../engine/stream.ts";
import { StratumError } from "../errors.ts";
import { encodeText } from "../weights/prompt.ts";
import { checkIds, type Tokenizer } from "../weights/tokenizer.ts";
import { mapBunches } from "./bunches.ts";
import {
  createListEncoder,
  type EncodeOptions,
  encodeUnderAll,
  type ListEncoder,
  type Pooling,
  runPooling,
} from "./encode.ts";
import type { Position } from "./json-lines.ts";
import { atLine, type Id, type SequenceLine } from "./lists.ts";
import type { RankingNotes } from "./rankings.ts";

export interface ExtractOptions extends EncodeOptions {
  /** Layers to read out, in the order of the output. */
  readonly layers: readonly number[];
  /**
   * The states of every token; or with `last` one state a sequence: a candidate's as `pooling` says, and the last token's
   * of a prompt, a text or ids.
   */
  readonly tokens: "last" | "all";
  /**
   * With `last`, instead of `pooling`: several at once. A list then gives its prompt's state, and of every candidate one
   * state a pooling, side by side in this order.
   */
  readonly poolings?: readonly Pooling[] | undefined;
  readonly batchTokens?: number | undefined;
  readonly sharePrefix?: boolean | undefined;
}

/** One sequence's states. A list gives its prompt (`candidate` null), then its candidates. */
export interface ExtractedSequence {
  readonly candidate: number | null;
  /** (T) */
  readonly ids: Int32Array;
  /** (K, T, D) with `all`, (K, D) with `last` */
  readonly states: Float32Array<ArrayBuffer>;
}

/** What became of one line of the input. */
export type ExtractOutcome =
  | {
      readonly kind: "extracted";
      readonly line: number;
      readonly id: Id;
      readonly source: "list" | "text" | "ids";
      readonly sequences: readonly ExtractedSequence[];
      readonly notes: RankingNotes;
      /** Behind the line, where the reader says so. */
      readonly position?: Position | undefined;
    }
  | {
      readonly kind: "failed";
      readonly line: number;
      readonly id: Id;
      readonly error: StratumError;
      readonly position?: Position | undefined;
    };

/** Extracts states on one model. Disposing it frees the working buffers; the model stays. */
export interface Extractor extends Disposable {
  /** The one that runs batches now: another once the device was lost. */
  readonly runner: Runner;
  extract(
    lines: AsyncIterable<SequenceLine>,
    options?: { readonly signal?: AbortSignal },
  ): AsyncGenerator<ExtractOutcome>;
}

interface Pending {
  readonly line: SequenceLine;
  readonly sequences: readonly Int32Array[];
  readonly states: Float32Array<ArrayBuffer>[];
  readonly notes: RankingNotes;
  error: StratumError | null;
}

/** Prepares extraction. The tokenizer is opened only when a line needs it: lines of ids do without. */
export async function createExtractor(model: Model, options: ExtractOptions): Promise<Extractor> {
  const { layers, tokens, batchTokens, sharePrefix = true } = options;
  const poolings = options.poolings ?? [options.pooling ?? "last"];
  const { files } = model;
  const { device } = model.engine;
  const { config } = files.spec;
  const { vocab, maxPositions, hiddenSize } = config;
  const room = await openRunnerRoom(model, {
    layers,
    output: tokens === "last" ? "pooled" : "all",
    pooling: runPooling(...poolings),
    batchTokens,
  });
  let encoders: (() => readonly ListEncoder[]) | undefined;
  let tokenizer: (() => Tokenizer) | undefined;
  async function open(lines: readonly SequenceLine[]): Promise<void> {
    if (encoders === undefined && lines.some(({ kind }) => kind === "list")) {
      const made = poolings.map((pooling) => createListEncoder(files, { ...options, pooling }));
      encoders = await settled(Promise.all(made));
    }
    if (tokenizer === undefined && lines.some(({ kind }) => kind === "text"))
      tokenizer = await settled(files.tokenizer());
  }

  function encode(line: SequenceLine): { group: SequenceGroup; notes: RankingNotes } {
    if (line.kind === "error") throw line.error;
    if (line.kind === "list") {
      const made = encoders?.() ?? [];
      const { group, notes } = device.span("tokenise", () =>
        made.length === 1 ? made[0].encode(line.list) : encodeUnderAll(made, line.list),
      );
      // Nothing is compared with the prompt: a cut list need not repeat it.
      return { group: { ...group, anchored: false }, notes };
    }
    const ids =
      line.kind === "ids"
        ? line.ids
        : device.span("tokenise", () => encodeText((tokenizer as () => Tokenizer)(), line.text));
    const cut = options.truncate && ids.length > maxPositions;
    const kept = cut ? ids.slice(0, maxPositions) : ids;
    checkLength(kept.length, config, "the sequence", "shorten it, or cut it with --truncate");
    checkIds(kept, vocab);
    return { group: { sequences: [kept] }, notes: cut ? { truncated: [0] } : {} };
  }

  function job(line: SequenceLine): Job<Pending> {
    try {
      const { group, notes } = encode(line);
      checkFits(group, room.current.runner, sharePrefix);
      return { item: { line, sequences: group.sequences, states: [], notes, error: null }, group };
    } catch (thrown) {
      if (!(thrown instanceof StratumError)) throw thrown;
      const error = line.kind === "error" ? thrown : atLine(thrown, line.line);
      return { item: { line, sequences: [], states: [], notes: {}, error }, group: null };
    }
  }

  return {
    get runner() {
      return room.current.runner;
    },
    async *extract(lines, { signal } = {}) {
      const run = async (batch: Batch, members: readonly Job<Pending>[], { runner }: RunnerRoom["current"]) => {
        for (const { group, index, states } of await batchStates(model, runner, batch, tokens)) {
          members[group].item.states[index] = states;
        }
      };
      for await (const pending of streamJobs(mapBunches(lines, job, open), room, run, { sharePrefix, signal })) {
        yield outcome(pending, layers, hiddenSize, poolings.length);
      }
    },
    [Symbol.dispose]: () => room[Symbol.dispose](),
  };
}

/** What was awaited: gives it, or throws what it ended with, each time it is asked. */
async function settled<T>(awaited: Promise<T>): Promise<() => T> {
  try {
    const value = await awaited;
    return () => value;
  } catch (thrown) {
    return () => {
      throw thrown;
    };
  }
}

function outcome(
  { line, sequences, states, notes, error }: Pending,
  layers: readonly number[],
  d: number,
  poolings: number,
): ExtractOutcome {
  const at = { line: line.line, id: line.id, position: line.position };
  if (line.kind === "error") return { kind: "failed", ...at, error: line.error };
  if (error !== null) return { kind: "failed", ...at, error };
  for (const [i, values] of states.entries()) {
    const failure = finiteFault(values, layers, d);
    if (failure === null) continue;
    const { code, message, fix } = failure;
    return {
      kind: "failed",
      ...at,
      error: new StratumError(code, `line ${line.line}, sequence ${i}: ${message}`, fix),
    };
  }
  return {
    kind: "extracted",
    ...at,
    source: line.kind,
    notes,
    sequences: sequences.map((ids, i) => ({
      candidate: line.kind === "list" && i > 0 ? Math.floor((i - 1) / poolings) : null,
      ids,
      states: states[i],
    })),
  };
}
