/**
 * What a tokenizer.json may ask for. The library does as the file says: pieces of length 0 for ever, a text doubled by
 * each of forty replacements, a tree of every character. Published files stay far below each bound.
 */
import { StratumError } from "../errors.ts";
import { isJsonObject, show } from "./json.ts";

/** Tokens, or merges; the largest published vocabularies stay near one million. */
const MAX_ENTRIES = 2 ** 21;
/** Nodes of a tree of characters, of the added tokens and of a Unigram vocabulary: 200 bytes each and more. */
const MAX_ADDED_NODES = 2 ** 20;
const MAX_UNIGRAM_NODES = 2 ** 22;
/** Normalizers, pre-tokenizers, post-processors and decoders; published ones have fewer than twenty. */
const MAX_COMPONENTS = 1000;
/** Characters that are put in some other's place, or before a text. */
const MAX_REPLACEMENT = 256;
/** How much longer all replacements together may make a text. */
const MAX_GROWTH = 4096;
/** Tokens that a post-processor puts around a text. */
const MAX_TEMPLATE = 1000;

/** The parts of a tokenizer.json that are looked at; anything may be in them. */
interface TokenizerFile {
  readonly added_tokens?: readonly { readonly content: string }[] | null | undefined;
  readonly model: Readonly<Record<string, unknown>>;
  readonly [part: string]: unknown;
}

/**
 * Refuses a tokenizer that would take time or memory without bound.
 *
 * @throws StratumError `tokenizer/unsupported`
 */
export function checkTokenizerLimits(file: TokenizerFile, path: string): void {
  const { vocab, merges } = file.model;
  checkCount("entries in its vocabulary", countOf(vocab), MAX_ENTRIES, path);
  checkCount("merges", countOf(merges), MAX_ENTRIES, path);
  checkCount(
    "characters in its added tokens",
    treeNodes((file.added_tokens ?? []).map(({ content }) => content)),
    MAX_ADDED_NODES,
    path,
  );
  if (Array.isArray(vocab)) {
    const tokens = vocab.map(unigramToken);
    checkCount("characters in its vocabulary", treeNodes(tokens), MAX_UNIGRAM_NODES, path);
  }
  let growth = 1;
  for (const part of ["normalizer", "pre_tokenizer", "post_processor", "decoder"]) {
    const components = componentsOf(file[part]);
    checkCount(`components in its ${part}`, components.length, MAX_COMPONENTS, path);
    for (const component of components) {
      checkComponent(component, path);
      growth *= growthOf(component);
    }
  }
  if (growth > MAX_GROWTH) throw refused(path, `its replacements can make a text ${growth} times as long`);
}

/** The token of an entry `[token, score]` of a Unigram vocabulary; empty where there is none. */
export function unigramToken(entry: unknown): string {
  const token: unknown = Array.isArray(entry) ? entry[0] : undefined;
  return typeof token === "string" ? token : "";
}

/** A component and all that it is made of, in no order. */
function componentsOf(part: unknown): Readonly<Record<string, unknown>>[] {
  const found: Readonly<Record<string, unknown>>[] = [];
  const pending = [part];
  while (pending.length > 0 && found.length <= MAX_COMPONENTS) {
    const component = pending.pop();
    if (!isJsonObject(component)) continue;
    found.push(component);
    for (const name of ["normalizers", "pretokenizers", "processors", "decoders"]) {
      const inner = component[name];
      if (Array.isArray(inner)) pending.push(...inner.slice(0, MAX_COMPONENTS + 1));
    }
  }
  return found;
}

function checkComponent(component: Readonly<Record<string, unknown>>, path: string): void {
  if (component["type"] === "FixedLength") {
    const length = component["length"];
    if (typeof length !== "number" || !Number.isInteger(length) || length < 1) {
      throw refused(path, `it cuts texts into pieces of ${show(length)} characters`);
    }
  }
  const { pattern } = component;
  if ((component["type"] === "Split" || component["type"] === "Replace") && !isPattern(pattern)) {
    throw refused(path, `the pattern of its ${component["type"]} is ${show(pattern)}`);
  }
  for (const name of ["content", "prepend", "str_rep", "replacement", "suffix"]) {
    const text = component[name];
    const long = typeof text === "string" ? text.length > MAX_REPLACEMENT : text !== undefined && text !== null;
    if (long) throw refused(path, `the ${name} of its ${show(component["type"])} is ${show(text)}`);
  }
  for (const name of ["single", "pair"]) {
    checkCount("tokens around a text", countOf(component[name]), MAX_TEMPLATE, path);
  }
}

function isPattern(pattern: unknown): boolean {
  return isJsonObject(pattern) && ["Regex", "String"].some((kind) => typeof pattern[kind] === "string");
}

/** How many times as long a text can become, at most. */
function growthOf({ type, content, pattern, str_rep: spaces, replacement }: Readonly<Record<string, unknown>>): number {
  const lengthOf = (text: unknown) => (typeof text === "string" ? text.length : 0);
  if (type === "Metaspace") return Math.max(1, lengthOf(spaces), lengthOf(replacement));
  if (type !== "Replace") return 1;
  const { Regex: expression, String: plain } = isJsonObject(pattern) ? pattern : {};
  const of = expression === undefined ? lengthOf(plain) : 0;
  // What is no plain text can be found between any two characters.
  return of === 0 ? 1 + lengthOf(content) : Math.max(1, lengthOf(content) / of);
}

function countOf(value: unknown): number {
  return Array.isArray(value) ? value.length : isJsonObject(value) ? Object.keys(value).length : 0;
}

/** Nodes of the tree of characters that holds these texts: of each what it does not share with its neighbour in order. */
function treeNodes(texts: readonly string[]): number {
  let nodes = 0;
  let before = "";
  for (const text of [...texts].sort()) {
    let shared = 0;
    while (shared < text.length && text[shared] === before[shared]) shared++;
    nodes += text.length - shared;
    before = text;
  }
  return nodes;
}

function checkCount(what: string, count: number, most: number, path: string): void {
  if (count > most) throw refused(path, `it has ${count} ${what}, at most ${most} are read`);
}

function refused(path: string, what: string): StratumError {
  return new StratumError(
    "tokenizer/unsupported",
    `cannot build a tokenizer from ${path}: ${what}`,
    "use the tokenizer.json that was published with the model",
  );
}
