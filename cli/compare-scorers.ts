/** Two scorers on the same lists: states of each one's own layer and pooling, by way of the cache. */
import { StratumError } from "../errors.ts";
import { instructionKey } from "../scorer/instructions.ts";
import type { List } from "../scorer/lists.ts";
import { rank } from "../scorer/measures.ts";
import type { SavedScorer } from "../scorer/scorer-file.ts";
import { divideLists, seenInstructions } from "../scorer/seen.ts";
import { modelDirectory, withEngine, withModelFiles } from "./common.ts";
import type { Compared, CompareFlags, First } from "./compare-output.ts";
import { type Loaded, scorerMethod, tellDivision } from "./eval-measure.ts";
import { loadedFrom, requestOf } from "./eval-states.ts";
import { checkListsPath, withFeatures } from "./features.ts";
import { note, type StopSignal } from "./terminal.ts";

/** @throws {StratumError} as `stratum eval` */
export async function comparedScorers(
  names: readonly [string, string],
  scorers: readonly [SavedScorer, SavedScorer],
  path: string,
  flags: CompareFlags,
  stop: StopSignal,
): Promise<Compared> {
  checkListsPath(path);
  const seen = seenByEither(scorers);
  return withEngine(flags, (engine) =>
    withModelFiles(
      modelDirectory(flags.model),
      async (files) => {
        const [a, b] = [await requestOf(scorers[0], files, flags), await requestOf(scorers[1], files, flags)];
        const load = <T>(request: typeof a, report: boolean, use: (on: Loaded) => Promise<T>): Promise<T> =>
          withFeatures(engine, files, path, { ...request, report }, flags, stop, (found) => use(loadedFrom(found)));
        return load(a, true, async (on) => {
          const other = <T>(use: (own: Loaded) => Promise<T>): Promise<T> =>
            JSON.stringify(a) === JSON.stringify(b) ? use(on) : load(b, false, use);
          return other(async (own) => {
            const lists = on.lists as readonly List[];
            if (own.source.labels.length !== on.source.labels.length)
              throw new StratumError(
                "features/shape",
                "the two scorers' states are not of the same lists",
                "compute them anew with --no-cache",
              );
            const divided = divideLists(on.source, { ...flags, keys: on.clusters ?? undefined, seen });
            tellDivision(divided, flags);
            const { evaluated } = divided;
            const scores = [
              await scorerMethod(engine, scorers[0], on, evaluated),
              await scorerMethod(engine, scorers[1], own, evaluated),
            ].map(({ scores }) => scores);
            return chosen(names, on, lists, evaluated, scores as [ArrayLike<number>, ArrayLike<number>]);
          });
        });
      },
      flags,
    ),
  );
}

/** The instructions that one of the two has seen; told where a record does not say. */
function seenByEither(scorers: readonly SavedScorer[]): ReadonlySet<string> {
  const seen = scorers.map(({ training }) => seenInstructions(training));
  if (seen.includes(null))
    note("note    a scorer's record names no instructions: lists that it has seen cannot be told apart");
  return new Set(seen.flatMap((keys) => [...(keys ?? [])]));
}

/** The evaluated lists as data of their own. */
function chosen(
  names: readonly [string, string],
  { source }: Loaded,
  lists: readonly List[],
  evaluated: readonly number[],
  scores: readonly [ArrayLike<number>, ArrayLike<number>],
): Compared {
  const offsets = [0];
  const places: number[] = [];
  for (const b of evaluated) {
    for (let n = source.offsets[b]; n < source.offsets[b + 1]; n++) places.push(n);
    offsets.push(places.length);
  }
  const firstOf = (own: ArrayLike<number>, b: number): First => {
    const list = lists[b];
    const index = rank(Float64Array.from(list.candidates, (_, i) => own[source.offsets[b] + i]))[0];
    const { id, label, text } = list.candidates[index];
    return { index, id: id ?? null, label: label ?? null, text };
  };
  const [a, b] = scores.map((own) => Float64Array.from(places, (n) => own[n]));
  return {
    ...{ a, b, clusters: evaluated.map((at) => instructionKey(lists[at])), leftOut: {} },
    data: { offsets: Uint32Array.from(offsets), labels: Float32Array.from(places, (n) => source.labels[n]) },
    sides: {
      ...{ names, ids: evaluated.map((at) => lists[at].id) },
      first: evaluated.map((at) => [firstOf(scores[0], at), firstOf(scores[1], at)] as const),
      instructions: evaluated.map((at) => lists[at].messages[lists[at].messages.length - 1].content),
    },
  };
}
