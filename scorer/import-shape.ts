/**
 * What rows of preference and safety data mean: which fields hold the prompt, the responses and their labels. A shape is
 * found by the names of the fields, and every field can be named instead.
 */
import { StratumError } from "../errors.ts";
import type { Message } from "../weights/chat-template.ts";
import { clip } from "../weights/json.ts";
import { LONE_SURROGATE } from "../weights/tokenizer.ts";
import { answered, badRow, conversationOf, promptOf } from "./conversation.ts";
import type { Fields } from "./lists.ts";

/** pairs: chosen and rejected. rows: a response a row. responses: several numbered ones a row, as in PKU-SafeRLHF. */
export const IMPORT_SHAPES = ["pairs", "rows", "responses"] as const;
export type ImportShape = (typeof IMPORT_SHAPES)[number];

/** What a label that is true or 1 says. */
export const LABEL_MEANINGS = ["safe", "unsafe"] as const;
export type LabelMeaning = (typeof LABEL_MEANINGS)[number];

/** Fields as they were named by hand; what is left out is looked for. */
export interface ImportFields {
  readonly shape?: ImportShape | undefined;
  /** `none`: the prompt is the conversation's. */
  readonly prompt?: string | undefined;
  readonly chosen?: string | undefined;
  readonly rejected?: string | undefined;
  readonly response?: string | undefined;
  readonly label?: string | undefined;
  readonly labelMeans?: LabelMeaning | undefined;
}

/** Where the parts of a row are. */
export type ImportPlan =
  | { readonly shape: "pairs"; readonly prompt: string | null; readonly chosen: string; readonly rejected: string }
  | {
      readonly shape: "rows";
      readonly prompt: string | null;
      readonly response: string;
      readonly label: string | null;
      readonly labelMeans: LabelMeaning;
    }
  | {
      readonly shape: "responses";
      readonly prompt: string;
      readonly responses: readonly string[];
      /** A label a response, or the one field that names the better response. */
      readonly labels: readonly string[] | string | null;
      readonly labelMeans: LabelMeaning;
    };

export interface ImportedResponse {
  readonly text: string;
  /** Undefined: the row has none. */
  readonly label?: number | undefined;
}

/** A row as a part of a list. */
export interface ImportedRow {
  readonly messages: readonly Message[];
  readonly responses: readonly ImportedResponse[];
}

const NAMES = {
  prompt: ["prompt", "instruction", "question", "query", "input", "messages"],
  chosen: ["chosen", "chosen_response", "response_chosen", "preferred"],
  rejected: ["rejected", "rejected_response", "response_rejected", "dispreferred"],
  response: ["response", "answer", "output", "completion", "generation", "text"],
  label: ["is_safe", "safe", "is_response_safe", "safety_label", "label", "score", "rating"],
  /** True says the opposite. */
  unsafe: ["is_unsafe", "unsafe", "is_harmful", "harmful", "is_toxic", "toxic"],
} as const;

/** Fields that name the better response of a row by its number. */
const BETTER = ["safer_response_id", "better_response_id"];

/**
 * Which fields are what.
 * @param names - the fields of the rows.
 * @throws StratumError `usage/fields` where a field is not there, or the names do not say
 */
export function planImport(names: readonly string[], asked: ImportFields = {}): ImportPlan {
  for (const name of [
    asked.prompt === "none" ? undefined : asked.prompt,
    asked.chosen,
    asked.rejected,
    asked.response,
    asked.label,
  ]) {
    if (name === undefined || names.includes(name)) continue;
    throw new StratumError(
      "usage/fields",
      `there is no field '${clip(name)}'; there are ${listed(names)}`,
      "name one of them",
    );
  }
  const find = (kind: keyof typeof NAMES) => NAMES[kind].find((name) => names.includes(name));
  const prompt = asked.prompt === "none" ? null : (asked.prompt ?? find("prompt") ?? null);
  const chosen = asked.chosen ?? find("chosen");
  const rejected = asked.rejected ?? find("rejected");
  const numbered = names
    .filter((name) => /^response_\d+$/.test(name))
    .sort((a, b) => Number(a.slice(9)) - Number(b.slice(9)));
  const response = asked.response ?? find("response");
  const shape =
    asked.shape ??
    (asked.response !== undefined || asked.label !== undefined
      ? numbered.length > 0 && asked.response === undefined
        ? "responses"
        : "rows"
      : chosen !== undefined && rejected !== undefined
        ? "pairs"
        : prompt !== null && numbered.length > 0
          ? "responses"
          : "rows");
  if (shape === "pairs") {
    if (chosen === undefined || rejected === undefined) throw unclear(names, "the chosen and the rejected response");
    return { shape, prompt, chosen, rejected };
  }
  if (shape === "responses") {
    if (prompt === null || numbered.length === 0) throw unclear(names, "a prompt and response_0, response_1, ...");
    return { shape, prompt, responses: numbered, ...numberedLabels(names, numbered, asked) };
  }
  if (names.includes("candidates") && asked.response === undefined) {
    throw new StratumError(
      "usage/fields",
      "the rows have 'candidates': they are lists already",
      "give them to stratum rank or train as they are",
    );
  }
  if (response === undefined || (prompt === null && asked.prompt !== "none"))
    throw unclear(names, "a prompt and a response");
  const [label, unsafe] = [find("label"), find("unsafe")];
  return {
    ...{ shape, prompt, response, label: asked.label ?? label ?? unsafe ?? null },
    labelMeans: asked.labelMeans ?? ((asked.label ?? label) === undefined && unsafe !== undefined ? "unsafe" : "safe"),
  };
}

function numberedLabels(
  names: readonly string[],
  responses: readonly string[],
  { label, labelMeans = "safe" }: ImportFields,
): Pick<Extract<ImportPlan, { shape: "responses" }>, "labels" | "labelMeans"> {
  if (label !== undefined) return { labels: label, labelMeans };
  const own = responses.map((name) =>
    [`is_${name}_safe`, `${name}_is_safe`, `${name}_safe`, `${name}_label`].find((each) => names.includes(each)),
  );
  if (own.every((name) => name !== undefined)) return { labels: own, labelMeans };
  return { labels: BETTER.find((name) => names.includes(name)) ?? null, labelMeans };
}

/** The plan in words, for people: what was taken for what. */
export function planWords(plan: ImportPlan): string {
  const from = plan.prompt === null ? "the prompt out of the conversation" : `prompt '${plan.prompt}'`;
  if (plan.shape === "pairs") return `pairs: ${from}, '${plan.chosen}' labelled 1, '${plan.rejected}' 0`;
  const means = plan.labelMeans === "safe" ? "true or 1 is safe" : "true or 1 is unsafe";
  if (plan.shape === "rows") {
    const label = plan.label === null ? "no label" : `label '${plan.label}' (${means})`;
    return `a response a row: ${from}, response '${plan.response}', ${label}`;
  }
  const label =
    plan.labels === null
      ? "no label"
      : typeof plan.labels === "string"
        ? `1 for the one that '${plan.labels}' names`
        : `labels ${listed(plan.labels)} (${means})`;
  return `${plan.responses.length} responses a row: ${from}, ${listed(plan.responses)}, ${label}`;
}

/** The fields that a plan looks at. */
export function planFields(plan: ImportPlan): string[] {
  const names: (string | null)[] = [plan.prompt];
  if (plan.shape === "pairs") names.push(plan.chosen, plan.rejected);
  else if (plan.shape === "rows") names.push(plan.response, plan.label);
  else names.push(...plan.responses, ...(typeof plan.labels === "string" ? [plan.labels] : (plan.labels ?? [])));
  return names.filter((name) => name !== null);
}

/**
 * Prompt and responses of a row.
 * @throws StratumError `list/bad-row`
 */
export function importRow(fields: Fields, plan: ImportPlan): ImportedRow {
  const row = partsOf(fields, plan);
  const texts = [...row.messages.map(({ content }) => content), ...row.responses.map(({ text }) => text)];
  if (!texts.some((text) => LONE_SURROGATE.test(text))) return row;
  throw badRow("a text holds half of a surrogate pair (\\uD800-\\uDFFF)", "mend or remove the character");
}

function partsOf(fields: Fields, plan: ImportPlan): ImportedRow {
  if (plan.shape === "pairs") {
    const [chosen, rejected] = [plan.chosen, plan.rejected].map((field) => responseOf(fields, field, plan.prompt));
    if (JSON.stringify(chosen.messages) !== JSON.stringify(rejected.messages)) {
      throw badRow(
        `the conversations in '${plan.chosen}' and '${plan.rejected}' part before their last turns: they answer different prompts`,
        "leave the row out, or end both after the turn in which they differ",
      );
    }
    return {
      messages: chosen.messages,
      responses: [
        { text: chosen.text, label: 1 },
        { text: rejected.text, label: 0 },
      ],
    };
  }
  if (plan.shape === "rows") {
    const { messages, text } = responseOf(fields, plan.response, plan.prompt);
    const label = plan.label === null ? undefined : labelOf(fields[plan.label], plan.label, plan.labelMeans);
    return { messages, responses: [{ text, label }] };
  }
  const { labels, labelMeans, responses } = plan;
  const better = typeof labels === "string" ? betterOf(fields[labels], labels, responses.length) : undefined;
  const messages = promptOf(given(fields, plan.prompt), plan.prompt);
  const found = responses.flatMap((field, i): ImportedResponse[] => {
    // A row may have fewer responses than others.
    if (isMissing(fields[field])) return [];
    const label =
      typeof labels === "string"
        ? better === undefined
          ? undefined
          : Number(better === i)
        : labels === null
          ? undefined
          : labelOf(fields[labels[i]], labels[i], labelMeans);
    return [{ text: textIn(fields, field), label }];
  });
  if (found.length === 0) throw badRow(`${listed(responses)} are all empty`, "give at least one response");
  return { messages, responses: found };
}

/** A response with what it answers: its own conversation, or the prompt's field. */
function responseOf(
  fields: Fields,
  field: string,
  promptField: string | null,
): { readonly messages: readonly Message[]; readonly text: string } {
  const own = conversationOf(given(fields, field), field);
  const { prompt: history, response } =
    own === undefined ? { prompt: [], response: textIn(fields, field) } : answered(own, field);
  if (response.trim() === "") throw badRow(`the response in '${field}' is empty`, "give a text, or leave the row out");
  if (history.length === 0) {
    if (promptField !== null) return { messages: promptOf(given(fields, promptField), promptField), text: response };
    throw badRow(`'${field}' holds no conversation: there is no prompt`, "name the prompt's field with --prompt-field");
  }
  if (promptField !== null && !isMissing(fields[promptField])) {
    const asked = promptOf(fields[promptField], promptField);
    const same = JSON.stringify(asked) === JSON.stringify(history);
    const last = asked[asked.length - 1].content.trim();
    if (!same && !history.some(({ role, content }) => role === "user" && content.trim() === last)) {
      throw badRow(
        `the prompt in '${promptField}' is not in the conversation in '${field}'`,
        "give --prompt-field none to take the conversation as it is",
      );
    }
  }
  return { messages: history, text: response };
}

const TRUE = ["true", "1", "1.0", "yes"];
const FALSE = ["false", "0", "0.0", "no"];
const SAFE_WORDS = ["safe", "harmless", "chosen"];
const UNSAFE_WORDS = ["unsafe", "harmful", "rejected"];

/**
 * A label as a number: 1 safe, 0 not, or a grade. Words that name the class mean it, whatever true means.
 * @returns undefined where there is none
 * @throws StratumError `list/bad-row`
 */
export function labelOf(value: unknown, field: string, means: LabelMeaning): number | undefined {
  if (isMissing(value)) return undefined;
  const word = typeof value === "string" ? value.trim().toLowerCase() : value;
  if (typeof word === "string") {
    if (SAFE_WORDS.includes(word)) return 1;
    if (UNSAFE_WORDS.includes(word)) return 0;
  }
  const yes = word === true || word === 1 || TRUE.includes(word as string);
  const no = word === false || word === 0 || FALSE.includes(word as string);
  if (yes || no) return Number(means === "safe" ? yes : no);
  const grade = typeof word === "string" ? Number(word) : word;
  if (typeof grade !== "number" || !Number.isFinite(grade)) {
    throw badRow(
      `the label in '${field}' is ${clip(JSON.stringify(value))}`,
      "write true or false, 1 or 0, safe or unsafe, or a number",
    );
  }
  if (means === "safe") return grade;
  throw badRow(
    `the label in '${field}' is the grade ${grade}, which cannot be turned round`,
    "leave out --label-means unsafe, or write true and false",
  );
}

/** The number of the better response; undefined where the row says none. */
function betterOf(value: unknown, field: string, count: number): number | undefined {
  if (isMissing(value)) return undefined;
  const number = Number(value);
  if (Number.isInteger(number) && number >= 0 && number < count) return number;
  // PKU's mark for 'none'.
  if (number === -1) return undefined;
  throw badRow(`'${field}' is ${clip(JSON.stringify(value))}`, `name a response by its number, 0 to ${count - 1}`);
}

function isMissing(value: unknown): boolean {
  return value === undefined || value === null || value === "";
}

function given(fields: Fields, field: string): unknown {
  if (!isMissing(fields[field])) return fields[field];
  throw badRow(`'${field}' is ${field in fields ? "empty" : "missing"}`, "fill it in, or leave the row out");
}

function textIn(fields: Fields, field: string): string {
  const value = given(fields, field);
  if (typeof value === "string" && value.trim() !== "") return value;
  throw badRow(
    typeof value === "string" ? `the response in '${field}' is empty` : `'${field}' is no text`,
    "give a text, or leave the row out",
  );
}

function listed(names: readonly string[]): string {
  return names.length === 0 ? "none" : names.map((name) => `'${clip(name)}'`).join(", ");
}

function unclear(names: readonly string[], what: string): StratumError {
  return new StratumError(
    "usage/fields",
    `the rows' fields do not say where ${what} are: there are ${listed(names)}`,
    "name them: --prompt-field and --response-field with --label-field, or --chosen-field and --rejected-field",
  );
}
