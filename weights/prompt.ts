/**
 * From a list to token ids. One string per row, encoded once: the prompt is the rendered template with its generation
 * prompt, a candidate is the same text followed by the raw response. Rows are never glued together from parts, as a
 * token may merge across the border.
 */

import { StratumError } from "../errors.ts";
import type { ChatTemplate, Message } from "./chat-template.ts";
import type { Tokenizer } from "./tokenizer.ts";

export interface EncodeListInput {
  readonly tokenizer: Tokenizer;
  /** null: the contents of the messages, joined by newlines, after the tokenizer's BOS. */
  readonly template: ChatTemplate | null;
  readonly messages: readonly Message[];
  /** Put before the messages as a turn of its own. */
  readonly system?: string | undefined;
  readonly responses: readonly string[];
  /** `YYYY-MM-DD`, the template's clock. */
  readonly date?: string | undefined;
  /** Pooling `end`: the id that ends an assistant's turn, appended to every candidate. */
  readonly endToken?: number | undefined;
}

export interface EncodedCandidate {
  /** (T) token ids, prompt included. */
  readonly ids: Int32Array;
  /**
   * Index of the first token that is not the prompt's own: a token merged across the border belongs to the response.
   * Before the end token is appended, equal to the length only when `empty`.
   */
  readonly responseStart: number;
  /** The response adds no token; there is nothing to rank. The end token does not count. */
  readonly empty: boolean;
}

export interface EncodedList {
  /** (T) token ids of the prompt alone. */
  readonly prompt: Int32Array;
  readonly candidates: readonly EncodedCandidate[];
  readonly templated: boolean;
  /** The template read its clock: outputs depend on `date`. */
  readonly usedClock: boolean;
}

/**
 * Token ids of a list: the prompt (instruction state) and each candidate (response state), in order.
 *
 * @throws StratumError `list/empty-prompt` when the prompt has no token; those of `ChatTemplate.render` and
 *   `Tokenizer.encode`.
 */
export function encodeList(input: EncodeListInput): EncodedList {
  const { tokenizer, template, responses, endToken } = input;
  const messages: readonly Message[] =
    input.system === undefined ? input.messages : [{ role: "system", content: input.system }, ...input.messages];
  const rendered =
    template === null
      ? { text: messages.map((message) => message.content).join("\n"), usedClock: false }
      : template.render(messages, { addGenerationPrompt: true, date: input.date });

  // A template writes BOS itself.
  const encode = (text: string): Int32Array =>
    template === null ? encodeText(tokenizer, text) : tokenizer.encode(text, { addSpecialTokens: false });
  const prompt = encode(rendered.text);
  if (prompt.length === 0) {
    throw new StratumError("list/empty-prompt", "the prompt has no token", "give the list an instruction");
  }
  const candidates = responses.map((response): EncodedCandidate => {
    const ids = encode(rendered.text + response);
    const responseStart = commonPrefixLength(prompt, ids);
    return {
      ids: endToken === undefined ? ids : concatenate(ids, [endToken]),
      responseStart,
      // Not only equal: a normalizer may drop the response and the prompt's own trailing blanks with it.
      empty: response === "" || responseStart === ids.length,
    };
  });
  return { prompt, candidates, templated: template !== null, usedClock: rendered.usedClock };
}

/**
 * (T) token ids of a plain text: BOS if the tokenizer adds one, no EOS.
 *
 * @throws StratumError those of `Tokenizer.encode`.
 */
export function encodeText(tokenizer: Tokenizer, text: string): Int32Array {
  const ids = tokenizer.encode(text, { addSpecialTokens: false });
  return tokenizer.prefixIds.length === 0 ? ids : concatenate(tokenizer.prefixIds, ids);
}

/** Number of tokens that two sequences start with in common. */
export function commonPrefixLength(a: ArrayLike<number>, b: ArrayLike<number>): number {
  const shorter = Math.min(a.length, b.length);
  let t = 0;
  while (t < shorter && a[t] === b[t]) t++;
  return t;
}

/**
 * The first `max` tokens, and how many were cut off: whoever truncates has to say so.
 *
 * @param ids - (T) token ids.
 * @throws StratumError `usage/bad-max-tokens` unless `max` is a positive integer.
 */
export function truncate(ids: Int32Array, max: number): { readonly ids: Int32Array; readonly dropped: number } {
  if (!Number.isInteger(max) || max < 1) {
    throw new StratumError("usage/bad-max-tokens", `cannot truncate to ${max} tokens`, "give a positive whole number");
  }
  return ids.length <= max ? { ids, dropped: 0 } : { ids: ids.slice(0, max), dropped: ids.length - max };
}

function concatenate(a: ArrayLike<number>, b: ArrayLike<number>): Int32Array {
  const whole = new Int32Array(a.length + b.length);
  whole.set(a);
  whole.set(b, a.length);
  return whole;
}
