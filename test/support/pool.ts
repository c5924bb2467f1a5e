/** Pools whose workers need no model. */
import { afterAll, beforeAll } from "vitest";
import type { Pool } from "../../scorer/pool.ts";
import { collectChunks } from "../../scorer/pool-collect.ts";
import type { PoolRun } from "../../scorer/pool-records.ts";
import { type WorkerOptions, work } from "../../scorer/pool-worker.ts";
import type { Ranker } from "../../scorer/rank.ts";
import { type Folder, jsonLines, temporaryFolder } from "./cli.ts";
import { type RedisServer, startRedis } from "./redis.ts";

/** A Redis and a folder for a file of tests, which they are gone with. */
export function redisAndFolder(): { readonly redis: RedisServer; readonly folder: Folder } {
  const place = {} as { redis: RedisServer; folder: Folder };
  beforeAll(async () => {
    place.redis = await startRedis();
    place.folder = await temporaryFolder();
  });
  afterAll(async () => {
    await place.folder[Symbol.asyncDispose]();
    await place.redis[Symbol.asyncDispose]();
  });
  return place;
}

/** What is submitted beside lists. */
export const RUN: Omit<PoolRun, "id" | "lists" | "chunks"> = {
  ...{ facts: { layer: 1 }, model: "none", fingerprint: "none", weights: "stored", layer: 1, input: "lists" },
  options: {
    ...{ system: null, date: null, pooling: "last", truncate: false, topN: null, returnDocuments: false },
    ...{ batchTokens: null, sharePrefix: true, abstainBelow: null },
  },
};

/** Lists `q0` to `q(n - 1)`, a line each. */
export const linesOf = (count: number) =>
  Array.from({ length: count }, (_, i) => JSON.stringify({ id: `q${i}`, instruction: `q${i}`, candidates: ["a"] }));
export const idsOf = (count: number) => Array.from({ length: count }, (_, i) => `q${i}`);

/** Ranks lists without looking at them; `onList` may throw, or take its time. */
export function fakeRanker(onList: (instruction: string) => void | Promise<void> = () => undefined): Ranker {
  const ranker: Pick<Ranker, "rank"> = {
    async *rank(lines) {
      for await (const line of lines) {
        if (line.kind !== "list") throw new Error("a chunk has lists alone");
        await onList(line.list.messages[0]?.content ?? "");
        yield { kind: "ranked", record: { id: line.id, results: [] }, list: line.list, tokens: 1, notes: {} };
      }
    },
  };
  return ranker as Ranker;
}

/** Works until nothing is left to do. */
export function drain(pool: Pool, ranker = fakeRanker(), options: Partial<WorkerOptions> = {}): Promise<void> {
  return work(pool, {
    open: async () => ({ ranker, adapter: "none", kernels: "k", [Symbol.asyncDispose]: async () => undefined }),
    ...{ stalledMs: 5000, drain: true },
    ...options,
  });
}

/** A run's records, collected. */
export async function recordsOf(pool: Pool, run: string): Promise<Readonly<Record<string, unknown>>[]> {
  let text = "";
  for await (const chunk of collectChunks(pool, run)) text += chunk.text;
  return jsonLines(text);
}

/** The ids of a run's records, collected. */
export async function collectedIds(pool: Pool, run: string): Promise<unknown[]> {
  return (await recordsOf(pool, run)).map(({ id }) => id);
}
