/**
 * Ranking: lists in, rankings out, scored by the cosine between the instruction's and each response's state, or by a
 * trained scorer on the same states, which stay on the GPU.
 */
import type { Batch } from "../engine/batch.ts";
import type { DeviceBuffer } from "../engine/device-memory.ts";
import { fingerprint } from "../engine/fingerprint.ts";
import type { Model } from "../engine/hidden-states.ts";
import { DEFAULT_BATCH_TOKENS } from "../engine/plan.ts";
import { openRoom } from "../engine/room.ts";
import { createRunner, type Runner, type SequencePair } from "../engine/runner.ts";
import { checkFits, type Job, type Packer, streamJobs } from "../engine/stream.ts";
import { StratumError } from "../errors.ts";
import { checkPointwise } from "./abstain.ts";
import { mapBunches } from "./bunches.ts";
import { createListEncoder, type EncodedGroup, type EncodeOptions, type ListEncoder, runPooling } from "./encode.ts";
import { arraySource } from "./feature-source.ts";
import type { Position } from "./json-lines.ts";
import { atLine, type Fields, type List, type ListLine, parseList } from "./lists.ts";
import {
  checkTopN,
  type ErrorRecord,
  errorRecord,
  type RankingNotes,
  type RankingRecord,
  rankingRecord,
} from "./rankings.ts";
import { createScorer, type Scorer, type StateRows } from "./scorer.ts";
import type { SavedScorer } from "./scorer-file.ts";
import { checkScorerFits } from "./scorer-fits.ts";
import { checkListLength } from "./scorer-spec.ts";

export interface RankOptions extends EncodeOptions {
  /** Layer whose states are compared; default the scorer's, or the model's depth. */
  readonly layer?: number | undefined;
  /** A trained scorer (`loadScorer`); without, the raw cosine of the states. */
  readonly scorer?: SavedScorer | undefined;
  /** Keep the best n of each list. */
  readonly topN?: number | undefined;
  /** Put the candidates into the results. */
  readonly returnDocuments?: boolean | undefined;
  /** Mark lists whose best score is below this as abstained; not with a listwise scorer. See `scorer/abstain.ts`. */
  readonly abstainBelow?: number | undefined;
  /** Rows of a batch; see `createRunner`. */
  readonly batchTokens?: number | undefined;
  /** Compute a list's common prefix once; default true. The scores are the same either way. */
  readonly sharePrefix?: boolean | undefined;
}

/** What became of one line of the input; `position`: behind it, where the reader says so. */
export type RankOutcome =
  | {
      readonly kind: "ranked";
      readonly record: RankingRecord;
      readonly list: List;
      readonly tokens: number;
      readonly notes: RankingNotes;
      readonly position?: Position | undefined;
    }
  | {
      readonly kind: "failed";
      readonly record: ErrorRecord;
      readonly error: StratumError;
      readonly line: number;
      readonly position?: Position | undefined;
    };

/** Ranks lists on one model. Disposing it frees the working buffers; the model stays. */
export interface Ranker extends Disposable {
  /** The one that runs batches now: another once the device was lost. */
  readonly runner: Runner;
  readonly encoder: ListEncoder;
  /** Bytes on the GPU: the model's, its working buffers', and the scorer's. */
  readonly bytes: number;
  /** Ranks lines in their order, as many a batch as fit; a line that cannot be ranked gives an error in its place. */
  rank(lines: AsyncIterable<ListLine>, options?: { readonly signal?: AbortSignal }): AsyncGenerator<RankOutcome>;
}

/** What ranking holds on the GPU. */
interface RankRoom extends Disposable {
  readonly runner: Runner;
  readonly scorer: Scorer | undefined;
}

/** A list under way: its scores arrive candidate by candidate. */
interface Pending {
  readonly line: ListLine;
  readonly notes: RankingNotes;
  readonly tokens: number;
  readonly scores: Float32Array;
  error: StratumError | null;
  /** States (1 + m, D) of a list that is cut over several batches, and which candidates of it are there. */
  parts?: { readonly states: Float32Array; readonly candidates: Set<number> };
}

/** A line with its token sequences, or with the reason why it has none. */
export type EncodedLine =
  | { readonly line: ListLine; readonly encoded: EncodedGroup; readonly error: null }
  | { readonly line: ListLine; readonly encoded: null; readonly error: StratumError };

/** Encodes lines; what is wrong with a line stays with the line. */
export function encodeLines(
  lines: AsyncIterable<ListLine>,
  encoder: ListEncoder,
  packer: Packer,
  sharePrefix: boolean,
  scored = false,
): AsyncGenerator<EncodedLine> {
  return mapBunches(lines, (line): EncodedLine => {
    if (line.kind === "error") return { line, encoded: null, error: line.error };
    try {
      if (scored) checkListLength(line.list.candidates.length);
      const encoded = encoder.encode(line.list);
      checkFits(encoded.group, packer, sharePrefix);
      return { line, encoded, error: null };
    } catch (thrown) {
      if (!(thrown instanceof StratumError)) throw thrown;
      return { line, encoded: null, error: atLine(thrown, line.line) };
    }
  });
}

/**
 * Prepares ranking: compiles kernels, allocates working buffers.
 * @throws {StratumError} `usage/layer`, `memory/...`, `tokenizer/...`, `scorer/model-mismatch` and its kin,
 *   `scorer/not-pointwise` for `abstainBelow` with a listwise scorer
 */
export async function createRanker(model: Model, options: RankOptions = {}): Promise<Ranker> {
  const { batchTokens, topN, returnDocuments, abstainBelow, sharePrefix = true, scorer: saved } = options;
  checkTopN(topN);
  if (abstainBelow !== undefined && saved !== undefined) checkPointwise(saved.spec.head);
  const layer = options.layer ?? saved?.layer ?? model.depth;
  const pooling = options.pooling ?? saved?.pooling ?? "last";
  const system = options.system ?? saved?.system ?? undefined;
  const { hiddenSize } = model.files.spec.config;
  if (saved !== undefined) {
    const identity = await fingerprint(model.files, layer);
    checkScorerFits(saved, { dim: hiddenSize, layer, pooling, system, fingerprint: identity });
  }
  const { device } = model.engine;
  const made = await createListEncoder(model.files, { ...options, pooling, system });
  const encoder: ListEncoder = { ...made, encode: (list) => device.span("tokenise", () => made.encode(list)) };
  const request = { layers: [layer], output: "scores", pooling: runPooling(pooling), batchTokens } as const;
  const furnish = async (mostRows: number | undefined): Promise<RankRoom> => {
    const runner = await createRunner(await model.onDevice(), request, mostRows);
    try {
      const scorer = saved && (await createScorer(model.engine, { ...saved, standardisation: saved.standardise }));
      const dispose = () => {
        scorer?.[Symbol.dispose]();
        runner[Symbol.dispose]();
      };
      return { runner, scorer, [Symbol.dispose]: dispose };
    } catch (cause) {
      runner[Symbol.dispose]();
      throw cause;
    }
  };
  const room = await openRoom(device, furnish, batchTokens ?? DEFAULT_BATCH_TOKENS);

  /** Scores a batch of lists, and leaves NaN where a state is not finite. */
  async function score(
    { runner, scorer }: RankRoom,
    batch: Batch,
    pairs: readonly SequencePair[],
    members: readonly Job<Pending>[],
  ): Promise<Float32Array> {
    if (scorer === undefined) return runner.cosines(batch, pairs);
    const trained = scorer;
    return runner.withStates(batch, async (states, count, cosines) => {
      const flags = await cosines(pairs);
      const scores = new Float32Array(pairs.length).fill(Number.NaN);
      const whole: { rows: StateRows; from: number }[] = [];
      for (let from = 0; from < pairs.length; ) {
        let end = from;
        while (end < pairs.length && pairs[end][0] === pairs[from][0]) end++;
        const [instruction] = pairs[from];
        const candidates = pairs.slice(from, end).map(([, candidate]) => candidate);
        const { item } = members[batch.sequences[instruction].group];
        if (candidates.length < item.scores.length) await keepPart(item, batch, states, count, instruction, candidates);
        else if (flags.subarray(from, end).every(Number.isFinite))
          whole.push({ rows: { instruction, candidates }, from });
        // The list has no scores; NaN stays where the reason is.
        else
          scores.set(
            flags.subarray(from, end).map((flag) => (Number.isFinite(flag) ? 0 : flag)),
            from,
          );
        from = end;
      }
      const found = await trained.scoreStates(
        states,
        whole.map(({ rows }) => rows),
      );
      for (const [i, { from }] of whole.entries()) scores.set(found[i], from);
      return scores;
    });
  }

  /** A list that no batch holds whole: its states wait on the host until all of them are there. */
  async function keepPart(
    item: Pending,
    batch: Batch,
    states: DeviceBuffer,
    count: number,
    instruction: number,
    candidates: readonly number[],
  ): Promise<void> {
    const staging = device.createBuffer("rank.part", 4 * count * hiddenSize, "readback");
    try {
      const values = new Float32Array(await device.read(states, 4 * count * hiddenSize, staging));
      item.parts ??= { states: new Float32Array((1 + item.scores.length) * hiddenSize), candidates: new Set() };
      for (const sequence of [instruction, ...candidates]) {
        const row = values.subarray(sequence * hiddenSize, (sequence + 1) * hiddenSize);
        item.parts.states.set(row, batch.sequences[sequence].index * hiddenSize);
      }
      for (const candidate of candidates) item.parts.candidates.add(batch.sequences[candidate].index);
    } finally {
      staging.destroy();
    }
  }

  /** Scores a list from its parts. */
  async function scoreParts({ scores, parts }: Pending): Promise<void> {
    if (parts === undefined) return;
    if (!parts.states.every(Number.isFinite)) {
      const finite = (row: number) =>
        parts.states.subarray(row * hiddenSize, (row + 1) * hiddenSize).every(Number.isFinite);
      for (let i = 0; i < scores.length; i++) scores[i] = finite(0) && finite(i + 1) ? 0 : Number.NaN;
      return;
    }
    const [inst, resp] = [parts.states.subarray(0, hiddenSize), parts.states.subarray(hiddenSize)];
    const offsets = Uint32Array.of(0, scores.length);
    const labels = new Float32Array(scores.length);
    const source = arraySource({ dim: hiddenSize, inst, resp, labels, offsets });
    const [found = scores] = await room.run(async ({ scorer }) => (await scorer?.scoreFeatures(source)) ?? []);
    scores.set(found);
  }

  async function* jobs(lines: AsyncIterable<ListLine>): AsyncGenerator<Job<Pending>> {
    for await (const { line, encoded, error } of encodeLines(
      lines,
      encoder,
      room.current.runner,
      sharePrefix,
      saved !== undefined,
    )) {
      const scores = new Float32Array(line.kind === "list" ? line.list.candidates.length : 0);
      const { notes, tokens } = encoded ?? { notes: {}, tokens: 0 };
      yield { item: { line, notes, tokens, scores, error }, group: encoded?.group ?? null };
    }
  }

  return {
    get runner() {
      return room.current.runner;
    },
    encoder,
    async *rank(lines, { signal } = {}) {
      const run = async (batch: Batch, members: readonly Job<Pending>[], current: RankRoom) => {
        const pairs: [number, number][] = [];
        const targets: { pending: Pending; candidate: number }[] = [];
        let anchor = 0;
        for (const [i, { group, index }] of batch.sequences.entries()) {
          if (index === 0) anchor = i;
          else {
            pairs.push([anchor, i]);
            targets.push({ pending: members[group].item, candidate: index - 1 });
          }
        }
        const scores = await score(current, batch, pairs, members);
        for (const [i, { pending, candidate }] of targets.entries()) pending.scores[candidate] = scores[i];
      };
      for await (const pending of streamJobs(jobs(lines), room, run, { sharePrefix, signal })) {
        if (pending.parts?.candidates.size === pending.scores.length) await scoreParts(pending);
        yield outcome(pending, { topN, returnDocuments, abstainBelow });
      }
    },
    get bytes() {
      const { runner, scorer } = room.current;
      return runner.bytes + (scorer?.bytes ?? 0);
    },
    [Symbol.dispose]: () => room[Symbol.dispose](),
  };
}

function outcome({ line, notes, tokens, scores, error }: Pending, options: RankOptions): RankOutcome {
  let failure = error;
  if (line.kind === "list" && failure === null) {
    const broken = scores.findIndex((score) => !Number.isFinite(score));
    if (broken < 0) {
      return {
        kind: "ranked",
        record: rankingRecord(line.list, scores, { ...options, notes }),
        list: line.list,
        tokens,
        notes,
        position: line.position,
      };
    }
    failure = atLine(
      new StratumError(
        "state/not-finite",
        `the state of candidate ${broken} or of its prompt holds NaN or infinity`,
        "the checkpoint's weights overflow or are damaged: try a shallower --layer, and check the download",
      ),
      line.line,
    );
  }
  const why = failure ?? new StratumError("state/not-finite", `line ${line.line}: no state`, "please report this");
  return { kind: "failed", record: errorRecord(line.id, why), error: why, line: line.line, position: line.position };
}

/**
 * Ranks lists that are at hand.
 * @param lists objects of the lists format: `{ instruction | messages, candidates, id? }`
 * @returns a ranking a list, in order
 * @throws {StratumError} for the first list that cannot be ranked, and as `createRanker`
 */
export async function rank(
  model: Model,
  lists: readonly Fields[],
  options: RankOptions = {},
): Promise<RankingRecord[]> {
  const lines = lists.map((record, i): ListLine => {
    const list = parseList(record, String(i + 1));
    return { kind: "list", line: i + 1, id: list.id, list };
  });
  const ids = new Set<string>();
  for (const { id } of lines) {
    if (ids.has(String(id))) {
      throw new StratumError(
        "list/duplicate-id",
        `the id ${JSON.stringify(id)} is used twice`,
        "give every list an id of its own",
      );
    }
    ids.add(String(id));
  }
  async function* source(): AsyncGenerator<ListLine> {
    yield* lines;
  }
  using ranker = await createRanker(model, options);
  const records: RankingRecord[] = [];
  for await (const result of ranker.rank(source())) {
    if (result.kind === "failed") throw result.error;
    records.push(result.record);
  }
  return records;
}
