/**
 * Rows into lists: those of one prompt together, each response once. What waits for the rest of its list lies in a
 * temporary file, so that memory holds a few dozen bytes a row, whatever the texts are.
 */
import { createHash } from "node:crypto";
import { type FileHandle, mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { messageOf, StratumError } from "../errors.ts";
import type { ImportedResponse, ImportedRow } from "./import-shape.ts";
import { instructionKey } from "./instructions.ts";
import type { Fields } from "./lists.ts";

/** all: wherever the rows of a prompt stand. adjacent: rows that follow each other. none: a list a row. */
export const GROUPINGS = ["all", "adjacent", "none"] as const;
export type Grouping = (typeof GROUPINGS)[number];

/** What becomes of a response that a list has with different labels. */
export const CONTRADICTIONS = ["drop", "majority", "mean", "first"] as const;
export type Contradictions = (typeof CONTRADICTIONS)[number];

export interface ImportOptions {
  /** `all` by default. */
  readonly group?: Grouping | undefined;
  /** `drop` by default: nobody knows which label is right. */
  readonly contradictions?: Contradictions | undefined;
  /** A response that a list has again, with the same label, stays there twice. */
  readonly keepDuplicates?: boolean | undefined;
  /** Leave out lists that teach nothing: with a missing label, or with labels all alike. */
  readonly contrastOnly?: boolean | undefined;
}

/** What an import met. Filled while the lists are made. */
export interface ImportCounts {
  rows: number;
  lists: number;
  candidates: number;
  /** Responses that a list had already, with the same label. */
  duplicates: number;
  /** Different responses that a list has with different labels. */
  contradictions: number;
  /** Candidates without a label. */
  unlabelled: number;
  /** Lists with a missing label, or with labels all alike; among `lists` unless they are left out. */
  withoutContrast: number;
  /** Lists that lost all their responses to contradictions. */
  emptied: number;
}

/** A list in the lists format. */
export type ImportedList = Fields;

/** Bytes written at a time. */
const WRITTEN = 2 ** 20;
/** Read back in blocks, of which so many are kept: a prompt's rows may stand far apart, and its neighbours' beside them. */
const [BLOCK, BLOCKS] = [2 ** 14, 512];

export function importCounts(): ImportCounts {
  return {
    ...{ rows: 0, lists: 0, candidates: 0, duplicates: 0, contradictions: 0 },
    ...{ unlabelled: 0, withoutContrast: 0, emptied: 0 },
  };
}

/**
 * Lists of rows, in the order in which their prompts appear first. Grouped over all rows, a list's id is its instruction's
 * key; otherwise it has none, and the line number serves.
 *
 * @throws StratumError `file/write-failed` where the temporary file cannot be written
 */
export async function* importLists(
  rows: AsyncIterable<ImportedRow>,
  options: ImportOptions,
  counts: ImportCounts,
): AsyncGenerator<ImportedList> {
  const { group = "all" } = options;
  const grouped = group === "all" ? groupAll(rows, counts) : groupAdjacent(rows, group === "none", counts);
  for await (const { messages, responses } of grouped) {
    const candidates = mergeResponses(responses, options, counts);
    if (candidates.length === 0) {
      counts.emptied++;
      continue;
    }
    const [first] = candidates;
    const contrast =
      candidates.every(({ label }) => label !== undefined) && candidates.some(({ label }) => label !== first.label);
    if (!contrast) counts.withoutContrast++;
    if (!contrast && options.contrastOnly) continue;
    counts.lists++;
    counts.candidates += candidates.length;
    counts.unlabelled += candidates.filter(({ label }) => label === undefined).length;
    const [{ role, content }] = messages;
    const plain = messages.length === 1 && role === "user";
    yield {
      ...(group === "all" ? { id: instructionKey({ messages }) } : {}),
      ...(plain ? { instruction: content } : { messages }),
      candidates,
    };
  }
}

/** A list's responses, each once. */
export function mergeResponses(
  responses: readonly ImportedResponse[],
  { contradictions = "drop", keepDuplicates = false }: ImportOptions,
  counts: ImportCounts,
): ImportedResponse[] {
  const byText = new Map<string, ImportedResponse[]>();
  for (const response of responses) {
    const same = byText.get(response.text);
    if (same === undefined) byText.set(response.text, [response]);
    else same.push(response);
  }
  return [...byText.values()].flatMap((same): ImportedResponse[] => {
    const { text } = same[0];
    const labels = same.flatMap(({ label }) => (label === undefined ? [] : [label]));
    const different = new Set(labels);
    if (different.size > 1) {
      counts.contradictions++;
      const label = resolved(labels, contradictions);
      return label === undefined ? [] : [{ text, label }];
    }
    if (same.length > 1) counts.duplicates += same.length - 1;
    if (keepDuplicates) return same;
    const [label] = different;
    return [label === undefined ? { text } : { text, label }];
  });
}

/** The label of a response with several; undefined: it is dropped. */
function resolved(labels: readonly number[], how: Contradictions): number | undefined {
  if (how === "drop") return undefined;
  if (how === "first") return labels[0];
  if (how === "mean") return labels.reduce((sum, label) => sum + label, 0) / labels.length;
  const votes = new Map<number, number>();
  for (const label of labels) votes.set(label, (votes.get(label) ?? 0) + 1);
  const [[label, most], [, next]] = [...votes].sort(([, a], [, b]) => b - a);
  // A draw has no majority.
  return most > next ? label : undefined;
}

async function* groupAdjacent(
  rows: AsyncIterable<ImportedRow>,
  each: boolean,
  counts: ImportCounts,
): AsyncGenerator<ImportedRow> {
  let open: { key: string; messages: ImportedRow["messages"]; responses: ImportedResponse[] } | undefined;
  for await (const { messages, responses } of rows) {
    counts.rows++;
    const key = each ? String(counts.rows) : instructionKey({ messages });
    if (open?.key === key) open.responses.push(...responses);
    else {
      if (open !== undefined) yield open;
      open = { key, messages, responses: [...responses] };
    }
  }
  if (open !== undefined) yield open;
}

/** Rows wait in a file; of a prompt memory keeps its hash and where its rows lie. */
async function* groupAll(rows: AsyncIterable<ImportedRow>, counts: ImportCounts): AsyncGenerator<ImportedRow> {
  const folder = await mkdtemp(join(tmpdir(), "stratum-convert-")).catch(failed);
  try {
    const file = await open(join(folder, "rows"), "w+").catch(failed);
    try {
      const groups = new Map<string, number[]>();
      let end = 0;
      let waiting: Buffer[] = [];
      let bytes = 0;
      const flush = async () => {
        await file.writeFile(Buffer.concat(waiting)).catch(failed);
        [waiting, bytes] = [[], 0];
      };
      for await (const row of rows) {
        counts.rows++;
        const key = createHash("sha256").update(JSON.stringify(row.messages)).digest("base64");
        const line = Buffer.from(JSON.stringify(row));
        const places = groups.get(key);
        if (places === undefined) groups.set(key, [end, line.length]);
        else places.push(end, line.length);
        waiting.push(line);
        end += line.length;
        bytes += line.length;
        if (bytes >= WRITTEN) await flush();
      }
      await flush();
      const read = cachedReader(file);
      for (const places of groups.values()) {
        let messages: ImportedRow["messages"] = [];
        const responses: ImportedResponse[] = [];
        for (let i = 0; i < places.length; i += 2) {
          const row = JSON.parse((await read(places[i], places[i + 1])).toString("utf8")) as ImportedRow;
          ({ messages } = row);
          responses.push(...row.responses);
        }
        yield { messages, responses };
      }
    } finally {
      await file.close();
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Reads parts of a file by way of the blocks that were read last. */
function cachedReader(file: FileHandle): (at: number, length: number) => Promise<Buffer> {
  const blocks = new Map<number, Buffer>();
  const blockOf = async (index: number): Promise<Buffer> => {
    const held = blocks.get(index);
    if (held !== undefined) {
      blocks.delete(index);
      blocks.set(index, held);
      return held;
    }
    const fresh = Buffer.alloc(BLOCK);
    const { bytesRead } = await file.read(fresh, 0, BLOCK, index * BLOCK);
    const block = fresh.subarray(0, bytesRead);
    blocks.set(index, block);
    const [oldest] = blocks.keys();
    if (blocks.size > BLOCKS) blocks.delete(oldest);
    return block;
  };
  return async (at, length) => {
    const [first, last] = [Math.floor(at / BLOCK), Math.floor((at + length - 1) / BLOCK)];
    const start = at - first * BLOCK;
    if (first === last) return (await blockOf(first)).subarray(start, start + length);
    const parts: Buffer[] = [];
    for (let index = first; index <= last; index++) parts.push(await blockOf(index));
    return Buffer.concat(parts).subarray(start, start + length);
  };
}

function failed(cause: unknown): never {
  throw new StratumError(
    "file/write-failed",
    `rows cannot wait in ${tmpdir()}: ${messageOf(cause)}`,
    "free space there, name another folder with TMPDIR, or give --group adjacent for rows that are sorted by prompt",
    cause,
  );
}
