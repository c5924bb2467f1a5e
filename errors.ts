/**
 * The one error class of the project. Every failure that a user can meet is a `StratumError`: a stable `code`, a
 * `message` that holds the values, and a `fix`: what to type or change.
 */

/** Who has to act; decides the exit code of the command line (2, 1, 3, 1). */
export type ErrorKind = "usage" | "input" | "environment" | "internal";

const KIND_OF_AREA = {
  usage: "usage",
  model: "usage",
  config: "usage",
  tokenizer: "usage",
  template: "usage",
  safetensors: "usage",
  scorer: "usage",
  features: "usage",
  report: "usage",
  list: "input",
  state: "input",
  train: "input",
  adapter: "environment",
  device: "environment",
  memory: "environment",
  file: "environment",
  hub: "environment",
  queue: "environment",
  kernel: "internal",
} as const satisfies Record<string, ErrorKind>;

type Area = keyof typeof KIND_OF_AREA;

/** The codes, `area/what`; the areas stand in the README. A code never changes its meaning. */
export type ErrorCode = `${Area}/${string}`;

export class StratumError extends Error {
  /** Stable, `area/what`, e.g. `safetensors/overlap`. */
  readonly code: ErrorCode;
  /** What to type or change. */
  readonly fix: string;

  constructor(code: ErrorCode, message: string, fix: string, cause?: unknown) {
    super(printable(cut(message)), cause === undefined ? undefined : { cause });
    this.name = "StratumError";
    this.code = code;
    this.fix = printable(cut(fix));
  }

  /** The kind of failure, by the area of the code. */
  get kind(): ErrorKind {
    return KIND_OF_AREA[this.code.slice(0, this.code.indexOf("/")) as Area];
  }
}

/** A file can hold a name of megabytes, and a template can refuse a conversation in as many words. */
const MAX_TEXT = 10_000;

function cut(text: string): string {
  return text.length <= MAX_TEXT ? text : `${text.slice(0, MAX_TEXT)}... (${text.length} characters)`;
}

/**
 * Text with its control and format characters spelled out: messages quote other people's files, whose words must not
 * steer a terminal. Line breaks stay.
 */
export function printable(text: string): string {
  return text.replaceAll(/[^\P{C}\n]|[\p{Zl}\p{Zp}]/gu, (character) => {
    const code = character.codePointAt(0) ?? 0;
    return code > 0xffff ? `\\u{${code.toString(16)}}` : `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

/** Any thrown value as text, without a stack trace. */
export function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}
