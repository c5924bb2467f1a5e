/** The files of a look at states: everything as JSON, a row a layer and a row a point as CSV. */
import { mkdir, readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { messageOf, StratumError } from "../errors.ts";
import { csvText } from "./csv.ts";
import type { ReportRun } from "./report-data.ts";
import type { ReportStates } from "./states-data.ts";
import { writeWhole } from "./sweep-journal.ts";

/** Names in the folder. */
export const STATES_FILES = {
  states: "states.json",
  layers: "layers.csv",
  points: "points.csv",
  html: "states.html",
} as const;

export interface StatesRecord {
  readonly format: "stratum-states";
  readonly version: 1;
  readonly run: Pick<
    ReportRun,
    "command" | "date" | "seconds" | "model" | "data" | "adapter" | "kernels" | "versions" | "layers" | "poolings"
  >;
  readonly states: ReportStates;
}

/**
 * Makes the folder; one that holds other things than an earlier look is left alone.
 * @throws {StratumError} `usage/output`, `usage/output-exists`, `file/write-failed`
 */
export async function openStatesFolder(folder: string): Promise<void> {
  const found = await stat(folder).catch(() => undefined);
  if (found !== undefined && !found.isDirectory())
    throw new StratumError("usage/output", `${folder} is a file`, "give -o the name of a folder");
  try {
    const names = found === undefined ? [] : await readdir(folder);
    if (names.length > 0 && !names.includes(STATES_FILES.states))
      throw new StratumError(
        "usage/output-exists",
        `${folder} exists, is not empty, and holds no look at states`,
        "give -o another name",
      );
    await mkdir(folder, { recursive: true });
  } catch (cause) {
    if (cause instanceof StratumError) throw cause;
    const what = `${folder} could not be made: ${messageOf(cause)}`;
    throw new StratumError("file/write-failed", what, "check the path and its permissions", cause);
  }
}

/** Writes the files, each whole. @throws {StratumError} `file/write-failed` */
export async function writeStates(folder: string, record: StatesRecord): Promise<void> {
  await writeWhole(join(folder, STATES_FILES.layers), layersCsv(record.states));
  await writeWhole(join(folder, STATES_FILES.points), pointsCsv(record.states));
  await writeWhole(join(folder, STATES_FILES.states), `${JSON.stringify(record)}\n`);
}

/** A row a layer and pooling: quartiles of norms, of what changed since the layer before, and separation. */
export function layersCsv({ norms, cosines, changes, separation }: ReportStates): string {
  const quartiles = (name: string) => [`${name}_low`, `${name}_median`, `${name}_high`];
  const values = (own: { low: number; median: number; high: number } | undefined) =>
    own === undefined ? [null, null, null] : [own.low, own.median, own.high];
  const responses = norms.filter(({ of }) => of === "response");
  return csvText(
    [
      ...["layer", "pooling", ...quartiles("response_norm"), ...quartiles("instruction_norm"), "from_layer"],
      ...[...quartiles("cosine"), ...quartiles("step")],
      ...["fisher", "silhouette", "fisher_within", "silhouette_within", "shuffled_within"],
    ],
    responses.map((response) => {
      const { layer, pooling } = response;
      const here = (each: { pooling: string }) => each.pooling === pooling;
      const change = changes.find((each) => here(each) && each.to === layer);
      const apart = separation.find((each) => here(each) && each.layer === layer);
      return [
        ...[layer, pooling, ...values(response)],
        ...values(norms.find((each) => here(each) && each.layer === layer && each.of === "instruction")),
        change?.from ?? null,
        ...values(cosines.find((each) => here(each) && each.from === change?.from && each.to === layer)),
        ...values(change),
        ...[apart?.fisher ?? null, apart?.silhouette ?? null, apart?.fisher_within ?? null],
        ...[apart?.silhouette_within ?? null, apart?.shuffled_within ?? null],
      ];
    }),
  );
}

/** A row a point of a map. */
export function pointsCsv({ points, maps }: ReportStates): string {
  return csvText(
    ["method", "layer", "pooling", "list", "candidate", "class", "x", "y"],
    maps.flatMap(({ method, layer, pooling, x, y }) =>
      points.list.map((list, i) => [
        ...[method, layer, pooling, list, points.candidate[i], points.class[i], x[i], y[i]],
      ]),
    ),
  );
}
