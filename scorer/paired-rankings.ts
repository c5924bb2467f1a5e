/** Two rankings files of the same lists, as scores to compare. */
import { StratumError } from "../errors.ts";
import { clip } from "../weights/json.ts";
import { instructionKey } from "./instructions.ts";
import type { ListSource } from "./json-lines.ts";
import type { Id, List } from "./lists.ts";
import type { LabelledLists } from "./measures.ts";
import { type JudgedRanking, judge, listFinder, type RankingLine, readRankings } from "./ranking-lines.ts";

export interface PairedRankings {
  /** (B) */
  readonly ids: readonly Id[];
  readonly data: LabelledLists;
  /** (N) scores of the first file, by the candidates' places in the input. */
  readonly a: Float64Array;
  /** (N) */
  readonly b: Float64Array;
  /** (B) a list's instruction; null without a file of lists. */
  readonly clusters: readonly string[] | null;
  /** (B) the rankings with what is known of them. */
  readonly judged: readonly { readonly a: JudgedRanking; readonly b: JudgedRanking }[];
  /** Lists that only one file has, and those that failed in either. */
  readonly onlyA: number;
  readonly onlyB: number;
  readonly failed: number;
}

/**
 * Pairs two rankings files by their lists' ids. Labels come from the lists, or from the documents that the rankings carry.
 *
 * @param lists - the ranked lists; without, labels are looked for in the rankings, and instructions are not known.
 * @throws StratumError `list/bad-ranking` where the two do not rank the same candidates, `list/no-contrast` without a list
 *   in common or without a label; as `readRankings`
 */
export async function pairRankings(a: ListSource, b: ListSource, lists?: ListSource): Promise<PairedRankings> {
  const first = new Map<string, RankingLine>();
  for await (const line of readRankings(a)) first.set(String(line.id), line);
  const finder = lists === undefined ? undefined : listFinder(lists);
  const [ids, clusters, judged]: [Id[], string[], { a: JudgedRanking; b: JudgedRanking }[]] = [[], [], []];
  const [offsets, labels, scoresA, scoresB]: number[][] = [[0], [], [], []];
  let [onlyB, failed] = [0, 0];
  for await (const line of readRankings(b)) {
    const other = first.get(String(line.id));
    if (other === undefined) {
      onlyB++;
      continue;
    }
    first.delete(String(line.id));
    if (line.results === null || other.results === null) {
      failed++;
      continue;
    }
    const list = await finder?.find(line.id);
    if (finder !== undefined && list === undefined) {
      const what = `line ${line.line}: the lists have no list ${clip(JSON.stringify(line.id))}`;
      throw new StratumError("list/bad-ranking", what, "give the lists that were ranked");
    }
    const pair = { a: judge(other, list), b: judge(line, list) };
    const count = checkSame(pair.a, pair.b, list);
    const [own, others] = [byIndex(pair.a), byIndex(pair.b)];
    for (let i = 0; i < count; i++) {
      scoresA.push(own[i].score);
      scoresB.push(others[i].score);
      labels.push(own[i].label ?? others[i].label ?? Number.NaN);
    }
    offsets.push(labels.length);
    ids.push(line.id);
    judged.push(pair);
    if (list !== undefined) clusters.push(instructionKey(list));
  }
  if (ids.length === 0) {
    const what = `the two files have no ranked list in common (${first.size} only in the first, ${onlyB} only in the second, ${failed} failed)`;
    throw new StratumError("list/no-contrast", what, "give two rankings of the same lists");
  }
  if (labels.every(Number.isNaN)) {
    const fix = "name the labelled lists as a third argument, or rank them with --return-documents";
    throw new StratumError("list/no-contrast", "nothing says which candidates are safe: there are no labels", fix);
  }
  return {
    ...{ ids, clusters: finder === undefined ? null : clusters, judged, onlyA: first.size, onlyB, failed },
    data: { offsets: Uint32Array.from(offsets), labels: Float32Array.from(labels) },
    ...{ a: Float64Array.from(scoresA), b: Float64Array.from(scoresB) },
  };
}

const byIndex = ({ results }: JudgedRanking) => [...results].sort((i, j) => i.index - j.index);

/** @returns how many candidates both rank, all of the list's */
function checkSame(a: JudgedRanking, b: JudgedRanking, list: List | undefined): number {
  const count = list?.candidates.length ?? Math.max(a.results.length, b.results.length);
  const named = clip(JSON.stringify(a.id));
  for (const { results } of [a, b]) {
    if (results.length === count && results.every(({ index }) => index < count)) continue;
    throw new StratumError(
      "list/bad-ranking",
      `list ${named} has ${count} candidates, of which ${results.length} are ranked`,
      "rank without --top-n: a comparison needs all scores",
    );
  }
  const [own, others] = [byIndex(a), byIndex(b)];
  const other = own.findIndex(({ text }, i) => text !== null && others[i].text !== null && text !== others[i].text);
  if (other === -1) return count;
  throw new StratumError(
    "list/bad-ranking",
    `candidate ${other} of list ${named} is not the same text in the two files`,
    "give two rankings of the same lists",
  );
}
