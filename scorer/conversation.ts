/** Conversations as data sets write them: message arrays in two spellings, and transcripts in one string. */
import { z } from "zod";
import { StratumError } from "../errors.ts";
import type { Message } from "../weights/chat-template.ts";
import { clip } from "../weights/json.ts";
import { nonEmpty } from "../weights/schema.ts";

/** A conversation whose last turn is the response. */
export interface Answered {
  readonly prompt: readonly Message[];
  readonly response: string;
}

const content = z.union([z.string(), nonEmpty(z.array(z.looseObject({ type: z.literal("text"), text: z.string() })))]);
const turn = z.union([
  z.looseObject({ role: nonEmpty(z.string()), content }),
  z.looseObject({ from: nonEmpty(z.string()), value: z.string() }),
]);
const turns = nonEmpty(z.array(turn));

/** What the roles of ShareGPT's spelling are called in a chat template. */
const ROLES: Readonly<Record<string, string>> = {
  human: "user",
  gpt: "assistant",
  bot: "assistant",
  chatgpt: "assistant",
};

/** How an array of messages in a string begins, as JSON or as Python prints it; a response may be JSON of another kind. */
const ARRAY = /^\s*\[\s*\{\s*["'](?:role|content|from|value)["']\s*:/;
/** Of Anthropic's transcripts: "\n\nHuman: ...\n\nAssistant: ...". */
const TRANSCRIPT = /^\s*Human: ?/;
const TURN = /(?:^\s*|\n\n)(Human|Assistant): ?/;

/**
 * The messages of a field's value, if it is a conversation: an array of `{role, content}` or `{from, value}`, the same as
 * JSON in a string, or a transcript. Undefined for other strings.
 *
 * @throws StratumError `list/bad-row` for arrays that are no conversation
 */
export function conversationOf(value: unknown, field: string): readonly Message[] | undefined {
  if (typeof value !== "string") return messagesOf(value, field);
  if (ARRAY.test(value)) return messagesOf(parseArray(value, field), field);
  return TRANSCRIPT.test(value) ? transcriptOf(value) : undefined;
}

/** The last turn apart from those before. @throws StratumError `list/bad-row` unless it is the assistant's */
export function answered(messages: readonly Message[], field: string): Answered {
  const last = messages[messages.length - 1];
  if (last.role === "assistant") return { prompt: messages.slice(0, -1), response: last.content };
  throw badRow(
    `the conversation in '${field}' ends with a turn of role '${clip(last.role)}'`,
    "end it with the assistant's response, or give the responses in fields of their own",
  );
}

/** A prompt from a field: a conversation, or one user message. @throws StratumError `list/bad-row` */
export function promptOf(value: unknown, field: string): readonly Message[] {
  const messages = conversationOf(value, field);
  if (messages === undefined) return [{ role: "user", content: value as string }];
  // A transcript of a prompt ends where the response would begin.
  const last = messages[messages.length - 1];
  return last.role === "assistant" && last.content === "" ? messages.slice(0, -1) : messages;
}

/** The error of a row that cannot be used. */
export function badRow(what: string, fix: string, cause?: unknown): StratumError {
  return new StratumError("list/bad-row", what, fix, cause);
}

function messagesOf(value: unknown, field: string): readonly Message[] {
  const parsed = turns.safeParse(value);
  if (!parsed.success) {
    throw badRow(
      `'${field}' is neither a text nor a conversation`,
      'write a string, or messages: [{"role": "user", "content": "..."}, ...]',
      parsed.error,
    );
  }
  return parsed.data.map((each): Message => {
    const [role, said] =
      "from" in each && typeof each.from === "string" ? [each.from, each["value"]] : [each["role"], each["content"]];
    const text = Array.isArray(said) ? (said as readonly { text: string }[]).map((part) => part.text).join("") : said;
    return { role: ROLES[role as string] ?? (role as string), content: text as string };
  });
}

function parseArray(text: string, field: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw badRow(
      `'${field}' looks like an array of messages and is no JSON`,
      "write the field with json.dumps rather than str(), or save the data as JSONL or Parquet",
      cause,
    );
  }
}

function transcriptOf(text: string): Message[] {
  const [, ...parts] = text.split(TURN);
  const messages: Message[] = [];
  for (let i = 0; i + 1 < parts.length; i += 2)
    messages.push({ role: parts[i] === "Human" ? "user" : "assistant", content: parts[i + 1].trim() });
  return messages;
}
