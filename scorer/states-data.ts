/** What is seen of states, as data: a part of a report, and what `stratum states` gives by itself. */
import { z } from "zod";

const count = z.number().int().min(0);
const layer = count;
const pooling = z.string();
/** Quartiles. */
const quartiles = { low: z.number(), median: z.number(), high: z.number() };
/** Null where there are no two classes, or nothing varies. */
const maybe = z.number().nullable();

const normSchema = z.object({
  ...{ layer, pooling, of: z.enum(["instruction", "response"]) },
  /** Of the Euclidean norm. */
  ...quartiles,
});

const cosineSchema = z.object({
  ...{ from: layer, to: layer, pooling },
  /** Of the cosine between a response's states at the two layers. */
  ...quartiles,
});

const changeSchema = z.object({
  ...{ from: layer, to: layer, pooling },
  /** Of |state at `to` - state at `from`| over |state at `from`|: neighbours among the asked-for layers. */
  ...quartiles,
});

const separationSchema = z.object({
  ...{ layer, pooling },
  /** Of the responses' states as they are: safe ones against the others. */
  fisher: maybe,
  silhouette: maybe,
  /** The same after the mean of its list has been taken from each state: what tells candidates of one list apart. */
  fisher_within: maybe,
  silhouette_within: maybe,
  /** The highest `fisher_within` of 19 shuffles of the labels within their lists. */
  shuffled_within: maybe,
  /** That have a class, in lists with both. */
  responses: count,
});

const mapSchema = z.object({
  ...{ layer, pooling, method: z.enum(["pca", "umap"]) },
  /** Shares of the variance along x and y, of a PCA. */
  explained: z.array(z.number()).nullable(),
  /** A value a point of `points`. */
  x: z.array(z.number()),
  y: z.array(z.number()),
});

/** What states look like, layer by layer. */
export const statesSchema = z.object({
  /** Looked at: whole lists, drawn by the seed where there are more. */
  lists: count,
  responses: count,
  seed: z.number().int(),
  norms: z.array(normSchema),
  /** Of every two asked-for layers. */
  cosines: z.array(cosineSchema),
  changes: z.array(changeSchema),
  /** Empty without labels. */
  separation: z.array(separationSchema),
  /** The responses of every map, a column each: class (1 safe, 0 not, null unknown), id of the list, candidate. */
  points: z.object({
    class: z.array(z.union([z.literal(0), z.literal(1)]).nullable()),
    list: z.array(z.union([z.string(), z.number()])),
    candidate: z.array(count),
  }),
  maps: z.array(mapSchema),
});

export type ReportStates = z.infer<typeof statesSchema>;
export type StateNorm = z.infer<typeof normSchema>;
export type StateCosine = z.infer<typeof cosineSchema>;
export type StateSeparation = z.infer<typeof separationSchema>;
export type StateMap = z.infer<typeof mapSchema>;
