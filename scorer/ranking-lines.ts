/** Rankings read back, with the labels and texts of their candidates where those are known. */
import { z } from "zod";
import { StratumError } from "../errors.ts";
import { clip } from "../weights/json.ts";
import { nonEmpty } from "../weights/schema.ts";
import { isBlank, type ListSource, splitLines } from "./json-lines.ts";
import { atLine, type Fields, type Id, type List, type ListLine, parseLine, readLists } from "./lists.ts";
import type { SafeOptions } from "./measures.ts";

const id = z.union([z.string(), z.number()]);
const ranking = z.looseObject({
  id,
  results: nonEmpty(
    z.array(
      z.looseObject({
        index: z.int().min(0),
        id: id.optional(),
        relevance_score: z.number(),
        document: z.looseObject({}).optional(),
      }),
    ),
  ),
  abstained: z.boolean().optional(),
});
const failure = z.looseObject({ id, error: z.looseObject({ code: z.string(), message: z.string() }) });

/** A line of a rankings file. */
export interface RankingLine {
  readonly line: number;
  readonly id: Id;
  /** Best first; null where the list could not be ranked. */
  readonly results: readonly ReadResult[] | null;
  readonly abstained: boolean;
  /** Why there are no results. */
  readonly error: { readonly code: string; readonly message: string } | null;
}

export interface ReadResult {
  readonly index: number;
  readonly id?: Id | undefined;
  readonly relevance_score: number;
  readonly document?: Fields | undefined;
}

const MAX_LINE_BYTES = 64 * 2 ** 20;

/**
 * The lines of a rankings file, in order.
 * @throws StratumError `list/bad-ranking` (a line that is none, named), `list/bad-json`, `list/bad-utf8`, `list/too-long`,
 *   `list/duplicate-id`, `file/unreadable`
 */
export async function* readRankings(source: ListSource): AsyncGenerator<RankingLine> {
  const seen = new Map<string, number>();
  for await (const { line, bytes, length } of splitLines(source, MAX_LINE_BYTES)) {
    if (bytes !== null && isBlank(bytes)) continue;
    try {
      if (bytes === null) throw new StratumError("list/too-long", `the line has ${length} bytes`, "this is no ranking");
      const found = rankingOf(parseLine(bytes), line);
      const earlier = seen.get(String(found.id));
      if (earlier !== undefined) {
        const what = `the id ${clip(JSON.stringify(found.id))} was used on line ${earlier}`;
        throw new StratumError("list/duplicate-id", what, "give a file that one stratum rank wrote");
      }
      seen.set(String(found.id), line);
      yield found;
    } catch (thrown) {
      throw thrown instanceof StratumError ? atLine(thrown, line) : thrown;
    }
  }
}

function rankingOf(record: Fields, line: number): RankingLine {
  const failed = failure.safeParse(record);
  if (failed.success) return { line, id: failed.data.id, results: null, abstained: false, error: failed.data.error };
  const parsed = ranking.safeParse(record);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    const lists = "candidates" in record && !("results" in record);
    throw new StratumError(
      "list/bad-ranking",
      lists ? "a list, and no ranking" : `no ranking: ${issue.path.join(".")}: ${clip(issue.message)}`,
      lists ? "rank it first: stratum rank LISTS -o RANKINGS" : "give a file that stratum rank wrote",
      parsed.error,
    );
  }
  const { results, abstained = false } = parsed.data;
  if (new Set(results.map(({ index }) => index)).size < results.length) {
    throw new StratumError("list/bad-ranking", "a candidate is ranked twice", "give a file that stratum rank wrote");
  }
  return { line, id: parsed.data.id, results, abstained, error: null };
}

export interface JudgedResult {
  /** From 1. */
  readonly rank: number;
  readonly index: number;
  readonly id: Id | null;
  readonly score: number;
  readonly label: number | null;
  readonly text: string | null;
}

/** A ranking with what is known of its candidates. */
export interface JudgedRanking {
  readonly id: Id;
  readonly instruction: string | null;
  /**
   * Whether the first place is safe (as in `measureLists`); null where a label is missing, where without `safeFrom` all are
   * alike, and where there are no results.
   */
  readonly right: boolean | null;
  readonly abstained: boolean;
  readonly results: readonly JudgedResult[];
  readonly error: RankingLine["error"];
}

/**
 * Joins a ranking with its list, or with the documents that it carries.
 * @throws StratumError `list/bad-ranking` for a candidate that the list does not have
 */
export function judge(line: RankingLine, list: List | undefined, { safeFrom }: SafeOptions = {}): JudgedRanking {
  const results = (line.results ?? []).map((result, at): JudgedResult => {
    const own = list?.candidates[result.index];
    if (list !== undefined && own === undefined) {
      const what = `list ${clip(JSON.stringify(line.id))} has ${list.candidates.length} candidates; candidate ${result.index} is ranked`;
      throw atLine(new StratumError("list/bad-ranking", what, "give the lists that were ranked"), line.line);
    }
    const { text, label } = own ?? { text: result.document?.["text"], label: labelIn(result.document) };
    return {
      ...{ rank: at + 1, index: result.index, id: result.id ?? null, score: result.relevance_score },
      ...{ label: label ?? null, text: typeof text === "string" ? text : null },
    };
  });
  const labels = (list?.candidates ?? results).map(({ label }) => label ?? null);
  const { id, abstained, error } = line;
  return {
    id,
    instruction: list === undefined ? null : lastUser(list),
    right: verdict(results, labels, safeFrom),
    abstained,
    results,
    error,
  };
}

function verdict(
  [first]: readonly JudgedResult[],
  labels: readonly (number | null)[],
  safeFrom: number | undefined,
): boolean | null {
  if (first?.label == null) return null;
  if (safeFrom !== undefined) return first.label >= safeFrom;
  const known = labels.filter((label) => label !== null);
  const highest = Math.max(...known);
  if (known.length < labels.length || known.every((label) => label === highest)) return null;
  return first.label === highest;
}

/** What the list asks: the last user message. */
function lastUser({ messages }: List): string {
  return (messages.findLast(({ role }) => role === "user") ?? messages[messages.length - 1]).content;
}

function labelIn(document: Fields | undefined): number | undefined {
  const label = document?.["label"];
  return typeof label === "number" || typeof label === "boolean" ? Number(label) : undefined;
}

/**
 * Finds lists by id in a file that has them in about the order in which they are asked for, as rankings have: what was
 * passed over is kept, and nothing else.
 */
export interface ListFinder {
  /** @returns undefined where the file has no such list */
  find(id: Id): Promise<List | undefined>;
}

/** @throws StratumError `file/unreadable` (on the first call of `find`) */
export function listFinder(source: ListSource): ListFinder {
  const lines: AsyncGenerator<ListLine> = readLists(source);
  const passed = new Map<string, List>();
  return {
    async find(id) {
      const key = String(id);
      const held = passed.get(key);
      if (held !== undefined) {
        passed.delete(key);
        return held;
      }
      for (let next = await lines.next(); !next.done; next = await lines.next()) {
        const line = next.value;
        if (line.kind !== "list") continue;
        if (String(line.id) === key) return line.list;
        passed.set(String(line.id), line.list);
      }
      return undefined;
    },
  };
}
