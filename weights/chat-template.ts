/**
 * A model's chat template, rendered as transformers renders it (trim_blocks, lstrip_blocks, loop controls, `tojson`
 * without HTML escapes), with two differences: the clock is fixed, so that outputs can be repeated, and a template
 * comes from a stranger, so its work is bounded.
 */

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Environment, parse, tokenize } from "@huggingface/jinja";
import { z } from "zod";
import { messageOf, StratumError } from "../errors.ts";
import { clip, isSystemError, statRegular, unreadable } from "./json.ts";
import { modelFile } from "./model-folder.ts";
import { parseDate, strftime } from "./strftime.ts";
import { boundedInterpreter, boundedRange, tooExpensive } from "./template-limits.ts";
import { TimeUp, withinTime } from "./time-bound.ts";
import { readOptionalJson, readTokenizerConfig, type SpecialToken, type Tokenizer } from "./tokenizer.ts";

/** The largest published templates have about 30 thousand characters. */
const MAX_SOURCE = 2 ** 20;
const MAX_MILLISECONDS = 10_000;

/** The day that templates see as today, unless another is asked for. */
export const DEFAULT_DATE = "2026-01-01";

/** One turn. Fields beyond role and content (`name`, ...) reach the template untouched. */
export interface Message {
  readonly role: string;
  readonly content: string;
  readonly [field: string]: unknown;
}

export interface RenderOptions {
  readonly addGenerationPrompt: boolean;
  /** `YYYY-MM-DD`, what the template's clock shows (at 00:00:00); default {@link DEFAULT_DATE}. */
  readonly date?: string | undefined;
}

export interface Rendered {
  readonly text: string;
  /** The template asked for the date: outputs depend on `date` and should record it. */
  readonly usedClock: boolean;
}

export interface ChatTemplate {
  /** The Jinja source, for hashes and records. */
  readonly source: string;
  /**
   * @throws StratumError `template/failed` with the template's own words when it refuses the messages,
   *   `template/too-expensive` past the bounds on steps, time and output, `template/bad-date`.
   */
  render(messages: readonly Message[], options: RenderOptions): Rendered;
}

const namedSchema = z.array(z.object({ name: z.string(), template: z.string() }));
const templateSchema = z.union([z.string(), namedSchema, z.record(z.string(), z.string())]).nullish();
const templateFileSchema = z.looseObject({ chat_template: templateSchema });

/**
 * The chat template of a Hugging Face model directory, or null where it has none: `chat_template.jinja`, else
 * `tokenizer_config.json`, else `chat_template.json`; among named templates the one called `default`.
 *
 * @throws StratumError `template/bad-syntax`, `template/too-large`, `template/no-default`, `template/bad-json`,
 *   `template/bad-text`, `template/too-expensive`, `tokenizer/bad-json`, `model/outside-link`, `file/unreadable`,
 *   `file/not-a-file`.
 */
export async function loadChatTemplate(dir: string): Promise<ChatTemplate | null> {
  const config = await readTokenizerConfig(dir);
  const source =
    (await readSource(await modelFile(dir, "chat_template.jinja"))) ??
    defaultTemplate(config.raw["chat_template"], join(dir, "tokenizer_config.json")) ??
    defaultTemplate(
      (await readOptionalJson(await modelFile(dir, "chat_template.json"), templateFileSchema, "template/bad-json"))
        ?.chat_template,
      join(dir, "chat_template.json"),
    );
  return source === null ? null : compileChatTemplate(source, config.tokens);
}

/**
 * A chat template from its source.
 *
 * @param tokens - special tokens by name (`bos_token`, ...), variables of the template.
 * @param maxMilliseconds - what parsing, and each rendering, may take.
 * @throws StratumError `template/bad-syntax`, `template/too-large`, `template/too-expensive`.
 */
export function compileChatTemplate(
  source: string,
  tokens: Readonly<Record<string, string>> = {},
  maxMilliseconds: number = MAX_MILLISECONDS,
): ChatTemplate {
  if (source.length > MAX_SOURCE) throw tooLarge(source.length);
  const program = bounded(maxMilliseconds, "template/bad-syntax", "the chat template cannot be parsed", () =>
    // As in Jinja, whatever ends the lines of the source.
    parse(tokenize(source.replace(/\r\n?/g, "\n"), { lstrip_blocks: true, trim_blocks: true })),
  );
  repairAttributeTests(program);

  return {
    source,
    render: (messages, { addGenerationPrompt, date = DEFAULT_DATE }) => {
      const today = parseDate(date);
      let usedClock = false;
      const scope = new Environment();
      const globals = {
        ...tokens,
        true: true,
        True: true,
        false: false,
        False: false,
        none: null,
        None: null,
        raise_exception: (message: unknown) => {
          throw new StratumError(
            "template/failed",
            `the chat template refuses these messages: ${String(message)}`,
            "change the messages to what the template accepts (often: no system message, roles in turn)",
          );
        },
        range: boundedRange,
        strftime_now: (format: unknown) => {
          usedClock = true;
          return strftime(today, String(format));
        },
        messages,
        tools: null,
        documents: null,
        add_generation_prompt: addGenerationPrompt,
      };
      for (const [name, value] of Object.entries(globals)) scope.set(name, value);
      const text = bounded(maxMilliseconds, "template/failed", "the chat template failed", () => {
        const rendered: unknown = boundedInterpreter(scope).run(program).value;
        return typeof rendered === "string" ? rendered : "";
      });
      return { text, usedClock };
    },
  };
}

/**
 * The first special token that the template writes after an assistant's turn (pooling `end` reads the state there).
 *
 * @throws StratumError `template/no-end-token` when no special token follows; and the errors of `render`.
 */
export function assistantEnd(template: ChatTemplate, tokenizer: Tokenizer): SpecialToken {
  // Letters and digits alone: templates trim, strip and split content at other characters.
  const sentinel = "stratumEndSentinel7c41";
  const conversation = [
    { role: "user", content: "Hello" },
    { role: "assistant", content: sentinel },
  ];
  const { text } = template.render(conversation, { addGenerationPrompt: false });
  const at = text.lastIndexOf(sentinel);
  const tail = at < 0 ? "" : text.slice(at + sentinel.length);
  let first: SpecialToken | undefined;
  let firstAt = Number.POSITIVE_INFINITY;
  for (const token of tokenizer.specialTokens) {
    const found = tail.indexOf(token.content);
    const longer = found === firstAt && token.content.length > (first?.content.length ?? 0);
    if (found >= 0 && (found < firstAt || longer)) {
      first = token;
      firstAt = found;
    }
  }
  if (first === undefined) {
    throw new StratumError(
      "template/no-end-token",
      at < 0
        ? "the chat template does not write an assistant's content as it is"
        : `the chat template writes no special token after an assistant's content, only ${JSON.stringify(tail.slice(0, 80))}`,
      "use --pooling last with this model",
    );
  }
  return first;
}

async function readSource(path: string): Promise<string | null> {
  try {
    const { size } = await statRegular(path);
    // At most four bytes a character.
    if (size > 4 * MAX_SOURCE) throw tooLarge(size);
    return new TextDecoder("utf-8", { fatal: true }).decode(await readFile(path));
  } catch (cause) {
    if (cause instanceof StratumError) throw cause;
    if (isSystemError(cause, "ENOENT", "ENOTDIR")) return null;
    if (!(cause instanceof TypeError)) throw unreadable(path, cause);
    throw new StratumError("template/bad-text", `${path} is not UTF-8 text`, "download the file again", cause);
  }
}

function tooLarge(size: number): StratumError {
  return new StratumError(
    "template/too-large",
    `the chat template has a size of ${size}; at most ${MAX_SOURCE} characters are read`,
    "check chat_template.jinja, or remove it to rank without a template",
  );
}

function defaultTemplate(value: unknown, path: string): string | null {
  const parsed = templateSchema.safeParse(value);
  if (!parsed.success) {
    throw new StratumError(
      "template/bad-json",
      `${path}: chat_template is neither text nor a list of named templates`,
      "write the template to chat_template.jinja",
    );
  }
  const template = parsed.data ?? null;
  if (template === null || typeof template === "string") return template;
  const named = new Map(
    Array.isArray(template) ? template.map((entry) => [entry.name, entry.template]) : Object.entries(template),
  );
  const chosen = named.get("default");
  if (chosen !== undefined) return chosen;
  if (named.size === 0) return null;
  throw new StratumError(
    "template/no-default",
    `${path} has the templates ${[...named.keys()].join(", ")}, and none is called default`,
    "write the one to use to chat_template.jinja",
  );
}

/** Runs a part of a template's work under a clock. */
function bounded<T>(timeout: number, code: "template/failed" | "template/bad-syntax", what: string, work: () => T): T {
  try {
    return withinTime(timeout, work);
  } catch (cause) {
    if (cause instanceof StratumError) throw cause;
    if (cause instanceof TimeUp) throw tooExpensive(`ran for more than ${timeout} ms`);
    throw new StratumError(
      code,
      `${what}: ${clip(messageOf(cause))}`,
      "check chat_template.jinja against the model's page, or remove it to rank without a template",
      cause,
    );
  }
}

interface Call {
  readonly callee: { value: unknown };
  readonly args: readonly { readonly type: string; value: unknown }[];
}
const OPPOSITES: ReadonlyMap<unknown, string> = new Map([
  ["selectattr", "rejectattr"],
  ["rejectattr", "selectattr"],
]);

/**
 * The library's `selectattr(name, "undefined")` never holds for a message without the attribute, which is what Mistral's
 * templates ask for; its `rejectattr(name, "defined")` does what is meant, and the other way round.
 */
function repairAttributeTests(program: unknown): void {
  const pending: unknown[] = [program];
  while (pending.length > 0) {
    const node = pending.pop();
    if (typeof node !== "object" || node === null) continue;
    for (const child of Object.values(node)) pending.push(child);
    const { callee, args } = node as Partial<Call>;
    const [, test] = args ?? [];
    const opposite = OPPOSITES.get(callee?.value);
    if (callee === undefined || opposite === undefined || test?.type !== "StringLiteral") continue;
    if (test.value !== "undefined") continue;
    callee.value = opposite;
    test.value = "defined";
  }
}
