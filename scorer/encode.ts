/** From a list to the token sequences of its states. */
import type { SequenceGroup } from "../engine/batch.ts";
import { lengthLimit } from "../engine/decoder.ts";
import { checkLength } from "../engine/hidden-states.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import type { RunPooling } from "../engine/plan.ts";
import { StratumError } from "../errors.ts";
import { assistantEnd, type ChatTemplate, DEFAULT_DATE } from "../weights/chat-template.ts";
import { type EncodedList, encodeList, truncate } from "../weights/prompt.ts";
import { checkIds, type Tokenizer } from "../weights/tokenizer.ts";
import type { List } from "./lists.ts";
import type { RankingNotes } from "./rankings.ts";

/**
 * Which state stands for a response: that of its own last token, that of the token that ends an assistant's turn, the
 * mean over the response's tokens, or over its last K of them (all where it has fewer). A prompt's is that of its last
 * token always.
 */
export type Pooling = "last" | "end" | "mean" | `last-${number}`;

/** What a pooling may be called, in words. */
export const POOLING_NAMES = "last, end, mean, or last-K with K from 1 (last-8: the mean of the last 8 tokens)";

/** Whether a text names a pooling. */
export function isPooling(text: string): text is Pooling {
  return /^(?:last|end|mean|last-[1-9]\d{0,8})$/.test(text);
}

/** How the engine pools what is encoded so: the end token is a last token, too. */
export function runPooling(...poolings: readonly (Pooling | undefined)[]): RunPooling {
  return poolings.every((pooling = "last") => pooling === "last" || pooling === "end") ? "last" : "mean";
}

/** The first of a response's tokens that are averaged; null for the last alone. */
function pooledFrom(pooling: Pooling, responseStart: number, length: number): number | null {
  if (pooling === "last" || pooling === "end") return null;
  if (pooling === "mean") return responseStart;
  return Math.max(responseStart, length - Number(pooling.slice("last-".length)));
}

export interface EncodeOptions {
  /** A system message put before each list's own messages. */
  readonly system?: string | undefined;
  /** `YYYY-MM-DD`, what the chat template's clock shows. */
  readonly date?: string | undefined;
  readonly pooling?: Pooling | undefined;
  /** Cut responses to the model's length; otherwise a longer one is an error. */
  readonly truncate?: boolean | undefined;
}

/** Lists in a row whose template ran away before it is given up. */
const MAX_RUNAWAYS = 3;

/** Encodes lists for one model. */
export interface ListEncoder {
  readonly tokenizer: Tokenizer;
  readonly template: ChatTemplate | null;
  /**
   * The prompt's sequence, then the candidates'.
   * @throws {StratumError} `list/empty-response`, `list/too-long`, `list/empty-prompt`, `template/...`, `tokenizer/...`
   */
  encode(list: List): EncodedGroup;
}

export interface EncodedGroup {
  readonly group: SequenceGroup;
  readonly notes: RankingNotes;
  /** Tokens of all sequences, each counted whole. */
  readonly tokens: number;
}

/** Makes the encoder of a model. @throws {StratumError} `tokenizer/...`, `template/...` */
export async function createListEncoder(files: ModelFiles, options: EncodeOptions = {}): Promise<ListEncoder> {
  const { vocab, maxPositions } = files.spec.config;
  const tokenizer = await files.tokenizer();
  const template = await files.template();
  const { system, date, pooling = "last" } = options;
  if (pooling === "end" && template === null) {
    throw new StratumError(
      "template/no-end-token",
      "pooling 'end' needs a chat template, and this model has none",
      "use --pooling last",
    );
  }
  const endToken = pooling === "end" && template !== null ? assistantEnd(template, tokenizer).id : undefined;
  let runaways = 0;
  /** Renders and encodes; a template that ran away again and again is not tried any more: each time costs seconds. */
  function encodeGuarded(list: List): EncodedList {
    const responses = list.candidates.map(({ text }) => text);
    if (runaways >= MAX_RUNAWAYS) {
      throw new StratumError(
        "template/too-expensive",
        `the chat template ran away on ${MAX_RUNAWAYS} lists in a row and is not tried again`,
        "repair the model's chat template",
      );
    }
    try {
      const encoded = encodeList({ tokenizer, template, messages: list.messages, system, responses, date, endToken });
      runaways = 0;
      return encoded;
    } catch (thrown) {
      runaways = thrown instanceof StratumError && thrown.code === "template/too-expensive" ? runaways + 1 : 0;
      throw thrown;
    }
  }
  return {
    tokenizer,
    template,
    encode(list) {
      const encoded = encodeGuarded(list);
      checkLength(
        encoded.prompt.length,
        files.spec.config,
        "the prompt",
        "shorten the instruction: --truncate cuts responses only",
      );
      const truncated: number[] = [];
      const candidates = encoded.candidates.map(({ ids, empty, responseStart }, index) => {
        if (empty) {
          throw new StratumError(
            "list/empty-response",
            `candidate ${index} adds no token to the prompt: its state would be the instruction's own`,
            "remove the candidate or give it a text",
          );
        }
        if (ids.length > maxPositions) {
          // Of the response something must be left, beside the end token where one is read.
          if (!options.truncate || responseStart >= maxPositions - (endToken === undefined ? 0 : 1)) {
            throw new StratumError(
              "list/too-long",
              `candidate ${index} has ${ids.length} tokens with its prompt of ${encoded.prompt.length}; ${lengthLimit(files.spec.config)}`,
              options.truncate
                ? "the prompt alone fills the model: shorten it"
                : "shorten it, or cut responses with --truncate",
            );
          }
          truncated.push(index);
          if (endToken === undefined) return truncate(ids, maxPositions).ids;
          // The end token is what is read: cut before it, not through it.
          const cut = ids.slice(0, maxPositions);
          cut[maxPositions - 1] = endToken;
          return cut;
        }
        return ids;
      });
      const sequences = [encoded.prompt, ...candidates];
      for (const ids of sequences) checkIds(ids, vocab);
      return {
        group: {
          sequences,
          anchored: true,
          // A cut takes tokens off the end, and leaves some of the response.
          ...(runPooling(pooling) === "mean"
            ? {
                poolFrom: [
                  null,
                  ...candidates.map(({ length }, i) =>
                    pooledFrom(pooling, encoded.candidates[i].responseStart, length),
                  ),
                ],
              }
            : {}),
        },
        notes: {
          ...(encoded.templated ? {} : { template: "none" as const }),
          ...(encoded.usedClock ? { date: date ?? DEFAULT_DATE } : {}),
          ...(truncated.length > 0 ? { truncated } : {}),
        },
        tokens: sequences.reduce((sum, ids) => sum + ids.length, 0),
      };
    },
  };
}

/**
 * One list under several poolings at once: the prompt, then a candidate's sequences side by side, `poolings.length` each
 * in the order of `encoders`. What they share is computed once.
 * @param encoders one a pooling, otherwise alike
 * @throws {StratumError} as `ListEncoder.encode`, where any of them does
 */
export function encodeUnderAll(encoders: readonly ListEncoder[], list: List): EncodedGroup {
  const found = encoders.map((encoder) => encoder.encode(list));
  const [first] = found;
  const beside = <T>(of: (each: EncodedGroup, i: number) => T) =>
    list.candidates.flatMap((_, candidate) => found.map((each) => of(each, candidate + 1)));
  const sequences = [first.group.sequences[0], ...beside(({ group }, i) => group.sequences[i])];
  return {
    group: {
      sequences,
      anchored: true,
      poolFrom: [null, ...beside(({ group }, i) => group.poolFrom?.[i] ?? null)],
    },
    notes: first.notes,
    tokens: first.tokens,
  };
}
