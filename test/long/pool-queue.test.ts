/** What a pool makes of its queue, whatever befalls it: with workers that need no model. Needs redis-server. */
import { renameSync } from "node:fs";
import { Worker } from "bullmq";
import { describe, expect, it } from "vitest";
import { StratumError } from "../../errors.ts";
import { openPool, type Pool, QUEUE_PREFIX } from "../../scorer/pool.ts";
import { poolRuns, poolStatus, removeRun } from "../../scorer/pool-collect.ts";
import { submitLists } from "../../scorer/pool-submit.ts";
import { work } from "../../scorer/pool-worker.ts";
import { failing } from "../support/failing.ts";
import { collectedIds, drain, fakeRanker, idsOf, linesOf, RUN, recordsOf, redisAndFolder } from "../support/pool.ts";
import { startRedis } from "../support/redis.ts";

const place = redisAndFolder();

/** A pool of a name of its own, and lists that can be submitted to it again and again. */
async function placeOf(name: string, lines: readonly string[], chunkBytes = 150) {
  const path = await place.folder.write(`${name}.jsonl`, lines.join("\n"));
  const pool = await openPool({ url: place.redis.url, name });
  return { path, pool, submit: () => submitLists(pool, { path, run: RUN, scorer: null, chunkBytes }) };
}

/** The name of a run's chunk in the queue. */
const chunkOf = async ({ redis: client, key }: Pool, run: string, index: number) =>
  String(await client.hget(key("run", run, "chunks"), String(index)));

describe("a chunk that fails", () => {
  const poison = fakeRanker((instruction) => {
    if (instruction === "q5") throw new Error("it met poison");
  });

  it("three times is set aside with its error, the rest is done, and submitting again tries it anew", async () => {
    const { pool, submit } = await placeOf("fail", linesOf(12).with(3, "{"));
    await using _ = pool;
    const { run, added } = await submit();
    expect([run.lists, added]).toEqual([12, run.chunks]);
    expect((await submit()).added).toBe(0);
    const attempts: number[] = [];
    await drain(pool, poison, { onFailure: (_error, attempt) => attempts.push(attempt) });
    expect(attempts).toEqual([1, 2, 3]);
    const records = await recordsOf(pool, run.id);
    expect(records.map(({ id }) => id)).toEqual(idsOf(12).with(3, "4"));
    const codes = records.map(({ error }) => (error as { code: string } | undefined)?.code ?? null);
    expect(codes[3]).toBe("list/bad-json");
    expect(codes[5]).toBe("list/set-aside");
    expect(records[5]).toMatchObject({
      error: { message: expect.stringContaining("line 6: its chunk failed again and again: it met poison") },
    });
    expect(await poolStatus(pool, run.id)).toMatchObject({ setAside: 1, done: run.chunks - 1 });

    expect(await submit()).toMatchObject({ added: 0, retried: 1 });
    await drain(pool);
    expect((await recordsOf(pool, run.id)).filter(({ error }) => error !== undefined)).toHaveLength(1);
    expect(await poolStatus(pool, run.id)).toMatchObject({ setAside: 0, done: run.chunks, listsDone: 12, failed: 1 });
    await removeRun(pool, run.id);
    await expect(poolStatus(pool, undefined)).rejects.toThrow(failing("queue/no-run"));
  });

  it("is none that twenty workers have died of: whatever they had is done by the next one", async () => {
    const { pool, submit } = await placeOf("deaths", linesOf(12));
    await using _ = pool;
    const { run } = await submit();
    const job = await chunkOf(pool, run.id, 0);
    await pool.redis.hset(pool.queue.toKey(job), "stc", "19");
    // A worker that has fetched it, and is gone.
    const died = new Worker(pool.address.name, null, {
      ...{ connection: pool.redis.duplicate({ maxRetriesPerRequest: null }), prefix: QUEUE_PREFIX },
    });
    expect((await died.getNextJob("token"))?.id).toBe(job);
    await pool.redis.del(`${pool.queue.toKey(job)}:lock`);
    await died.close(true);
    await drain(pool, fakeRanker(), { stalledMs: 500 });
    expect(await pool.redis.hget(pool.queue.toKey(job), "stc")).toBe("20");
    expect(await collectedIds(pool, run.id)).toEqual(idsOf(12));
  });

  it("is retried once by two that submit it at the same time, with its deaths forgotten", async () => {
    const { pool, submit } = await placeOf("twice", linesOf(12));
    await using _ = pool;
    const { run } = await submit();
    await drain(pool, poison);
    const job = await chunkOf(pool, run.id, 2);
    await pool.redis.hset(pool.queue.toKey(job), "stc", "5");
    const both = await Promise.all([submit(), submit()]);
    expect(both.map(({ added }) => added)).toEqual([0, 0]);
    expect(await pool.redis.hget(pool.queue.toKey(job), "stc")).toBeNull();
    await drain(pool);
    expect(await collectedIds(pool, run.id)).toEqual(idsOf(12));
  });

  it("for the worker's own reasons goes back as it was, and the worker ends", async () => {
    const { pool, submit } = await placeOf("own", linesOf(1));
    await using _ = pool;
    const { run } = await submit();
    const broken = work(pool, {
      open: async () => {
        throw new Error("no such model here");
      },
      ...{ stalledMs: 5000, drain: true },
    });
    await expect(broken).rejects.toThrow("no such model here");
    expect(await poolStatus(pool, run.id)).toMatchObject({ done: 0, setAside: 0, active: 0 });
    expect(await pool.queue.getJobCounts("waiting")).toEqual({ waiting: 1 });
  });

  it("for want of memory goes back, too, until it has been to many workers", async () => {
    const { pool, submit } = await placeOf("memory", linesOf(1));
    await using _ = pool;
    const { run } = await submit();
    const short = fakeRanker(() => {
      throw new StratumError("memory/out-of-memory", "no room", "free some");
    });
    const worker = () => expect(drain(pool, short)).rejects.toThrow(failing("memory/out-of-memory"));
    for (let i = 0; i < 3; i++) await worker();
    expect(await poolStatus(pool, run.id)).toMatchObject({ done: 0, setAside: 0 });
    await drain(pool);
    expect(await collectedIds(pool, run.id)).toEqual(idsOf(1));

    await removeRun(pool, run.id);
    await submit();
    let workers = 0;
    for (; (await poolStatus(pool, run.id)).setAside === 0; workers++) await worker();
    expect([5, 6, 7]).toContain(workers);
  });

  it("because its worker stands still for too long is told to be, and is no chunk that is done", async () => {
    const { pool, submit } = await placeOf("still", linesOf(1));
    await using _ = pool;
    const { run } = await submit();
    const troubles: string[] = [];
    const done: unknown[] = [];
    const still = fakeRanker(async () => {
      const begin = performance.now();
      while (performance.now() - begin < 700) {}
      await new Promise((resolve) => setTimeout(resolve, 400));
    });
    const options = { stalledMs: 300, onTrouble: (text: string) => troubles.push(text), onChunk: () => done.push(1) };
    await drain(pool, still, options);
    const { done: count, setAside } = await poolStatus(pool, run.id);
    expect([count, count + setAside]).toEqual([done.length, 1]);
    expect(troubles).toEqual([expect.stringContaining("--stalled-after")]);
  });
});

describe("a run that is submitted, ranked and collected at the same time", () => {
  it("is collected whole, and nothing of it is ranked twice", async () => {
    const { pool, submit } = await placeOf("same-time", linesOf(600), 80);
    await using _ = pool;
    const { run } = await submit();
    expect(run.chunks).toBeGreaterThan(250);
    const ranked: string[] = [];
    const slow = fakeRanker(async (instruction) => {
      ranked.push(instruction);
      await new Promise((resolve) => setTimeout(resolve, 1));
    });
    const resubmitting = async (count: number) => {
      const added: number[] = [];
      for (let i = 0; i < count; i++) added.push((await submit()).added);
      return added;
    };
    const [, ids, added] = await Promise.all([drain(pool, slow), collectedIds(pool, run.id), resubmitting(4)]);
    expect(ids).toEqual(idsOf(600));
    expect(added).toEqual([0, 0, 0, 0]);
    expect(ranked).toHaveLength(600);
    expect(await poolStatus(pool, run.id)).toMatchObject({ done: run.chunks, listsDone: 600, lost: 0 });
  });

  it("keeps its counts when a second submit is stopped just as the first one ends", async () => {
    const { path, pool, submit } = await placeOf("stopped", linesOf(12));
    await using _ = pool;
    const { run } = await submit();
    await pool.redis.hdel(pool.key("run", run.id), "record");
    const killed = submitLists(pool, {
      ...{ path, run: RUN, scorer: null, chunkBytes: 150 },
      onChunk() {
        throw new Error("killed");
      },
    });
    await Promise.all([submit(), expect(killed).rejects.toThrow("killed")]);
    await drain(pool);
    expect(await collectedIds(pool, run.id)).toEqual(idsOf(12));
  });

  it("is told to be another where its file is replaced between its hash and its lists", async () => {
    const { path, pool, submit } = await placeOf("replaced", linesOf(12));
    await using _ = pool;
    const other = await place.folder.write("replacement.jsonl", linesOf(30).join("\n"));
    const { hsetnx } = pool.redis;
    pool.redis.hsetnx = ((...words: Parameters<typeof hsetnx>) => {
      renameSync(other, path);
      return hsetnx.apply(pool.redis, words);
    }) as typeof hsetnx;
    await expect(submit()).rejects.toThrow(failing("usage/other-input", "replaced.jsonl"));
  });
});

describe("what Redis has lost", () => {
  it("is told by collect, and is added again by submit; a submit that is killed midway changes nothing", async () => {
    const { path, pool, submit } = await placeOf("lost", linesOf(12));
    await using _ = pool;
    const { run } = await submit();
    await drain(pool);
    expect(await collectedIds(pool, run.id)).toEqual(idsOf(12));

    const killed = submitLists(pool, {
      ...{ path, run: RUN, scorer: null, chunkBytes: 150 },
      onChunk: () => {
        throw new Error("killed");
      },
    });
    await expect(killed).rejects.toThrow("killed");
    expect(await poolStatus(pool, undefined)).toMatchObject({ lists: 12, chunks: run.chunks, done: run.chunks });
    expect(await collectedIds(pool, run.id)).toEqual(idsOf(12));

    await pool.queue.remove(await chunkOf(pool, run.id, 1));
    await expect(collectedIds(pool, run.id)).rejects.toThrow(failing("queue/lost-chunk"));
    expect(await poolStatus(pool, run.id)).toMatchObject({ done: run.chunks - 1, lost: 1 });
    expect((await submit()).added).toBe(1);
    await drain(pool);
    expect(await collectedIds(pool, run.id)).toEqual(idsOf(12));

    await pool.redis.hdel(pool.key("run", run.id, "chunks"), "1");
    await expect(collectedIds(pool, run.id)).rejects.toThrow(failing("queue/lost-chunk"));
  });

  it("may be BullMQ's own lists: of what waited and of what is done", async () => {
    const { pool, submit } = await placeOf("lists", linesOf(12));
    await using _ = pool;
    const { run } = await submit();
    await pool.redis.del(pool.queue.toKey("wait"));
    await expect(collectedIds(pool, run.id)).rejects.toThrow(failing("queue/lost-chunk"));
    expect((await submit()).added).toBe(run.chunks);
    await drain(pool);
    await pool.redis.del(pool.queue.toKey("completed"));
    expect(await collectedIds(pool, run.id)).toEqual(idsOf(12));
    expect(await submit()).toMatchObject({ added: 0, retried: 0 });
    await pool.queue.remove(await chunkOf(pool, run.id, 0));
    expect((await submit()).added).toBe(1);
    await drain(
      pool,
      fakeRanker(() => {
        throw new Error("poison");
      }),
    );
    await pool.redis.del(pool.queue.toKey("failed"));
    expect((await submit()).added).toBe(1);
    await drain(pool);
    expect(await collectedIds(pool, run.id)).toEqual(idsOf(12));
  });

  it("or changed is told, whatever it is, and put right by submit", async () => {
    const { pool, submit } = await placeOf("damaged", linesOf(12));
    await using _ = pool;
    const { redis: client, key, queue } = pool;
    const { run } = await submit();
    const job = await chunkOf(pool, run.id, 2);
    const damage = (field: string, value: string) => client.hset(queue.toKey(job), field, value);
    const read = async (field: string) => JSON.parse(String(await client.hget(queue.toKey(job), field)));
    const mended = async () => {
      await expect(collectedIds(pool, run.id)).rejects.toThrow(failing("queue/damaged"));
      expect(await submit()).toMatchObject({ added: 1, retried: 0 });
      await drain(pool);
      expect(await collectedIds(pool, run.id)).toEqual(idsOf(12));
    };

    // Before it is ranked: the worker goes on with the others, and the chunk is tried and set aside.
    await damage("data", JSON.stringify({ ...(await read("data")), index: 3 }));
    await drain(pool);
    await mended();

    const { done, text } = await read("returnvalue");
    for (const value of [
      "{",
      JSON.stringify({ done, text: `${text.slice(0, -8)}AAAAAAA=` }),
      JSON.stringify({ done: { ...done, lists: 1 }, text }),
      JSON.stringify({ done: { ...done, index: 0 }, text }),
    ]) {
      await damage("returnvalue", value);
      await mended();
    }
    await damage("data", "{");
    await mended();

    // Who has done it stands in its result, too.
    await client.hset(key("run", run.id, "done"), job, "[]");
    expect(await poolStatus(pool, run.id)).toMatchObject({ done: run.chunks, listsDone: 12 });
    const record = String(await client.hget(key("run", run.id), "record"));
    for (const [kept, code] of [
      [record.slice(0, -4), "queue/damaged"],
      [record.replace(run.id, "another"), "queue/damaged"],
      [record.replace("run 1", "run 99"), "queue/other-version"],
      [record.replace('"lists":12', '"lists":11'), "queue/damaged"],
    ] as const) {
      await client.hset(key("run", run.id), "record", kept);
      await expect(collectedIds(pool, run.id)).rejects.toThrow(failing(code));
      expect(await submit()).toMatchObject({ added: 0, retried: 0 });
      expect(await poolStatus(pool, run.id)).toMatchObject({ lists: 12, done: run.chunks, listsDone: 12 });
    }
    expect(await collectedIds(pool, run.id)).toEqual(idsOf(12));
  });
});

describe("a Redis without memory", () => {
  it("is told, and fails no chunk", async () => {
    await using own = await startRedis();
    const path = await place.folder.write("full.jsonl", linesOf(60).join("\n"));
    await using pool = await openPool({ url: own.url, name: "full" });
    const request = { path, run: RUN, scorer: null, chunkBytes: 60 };
    const { run } = await submitLists(pool, request);
    const memory = (words: string) => pool.redis.config("SET", "maxmemory", words);
    const failures: unknown[] = [];
    const troubles: string[] = [];
    let ranked = 0;
    const filling = fakeRanker(async () => {
      if (++ranked === 20) await memory("1mb");
    });
    const stop = new AbortController();
    const working = drain(pool, filling, {
      signal: stop.signal,
      onFailure: (error) => failures.push(error),
      onTrouble: (text) => troubles.push(text),
    });
    setTimeout(() => stop.abort(), 4000);
    await working;
    const other = submitLists(pool, { ...request, run: { ...RUN, facts: { layer: 2 } } });
    await expect(other).rejects.toThrow(failing("queue/full", "no memory left"));
    expect(failures).toEqual([]);
    expect(troubles.filter((text) => !text.includes("no memory left"))).toEqual([]);
    await memory("0");
    await drain(pool);
    expect(await collectedIds(pool, run.id)).toEqual(idsOf(60));
    expect(await poolStatus(pool, run.id)).toMatchObject({ done: run.chunks, listsDone: 60 });
  });
});

describe("a run that nobody wants any more", () => {
  it("is taken out while its chunks are under way, and nothing of it stays", async () => {
    const { path, pool, submit } = await placeOf("discard", linesOf(12));
    await using _ = pool;
    const { run } = await submit();
    const other = await submitLists(pool, { path, run: { ...RUN, layer: 2, facts: { layer: 2 } }, scorer: null });
    let [begun, goOn] = [() => {}, () => {}];
    const first = new Promise<void>((resolve) => {
      begun = resolve;
    });
    const gate = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    const gated = fakeRanker(() => {
      begun();
      return gate;
    });
    const working = drain(pool, gated);
    await first;
    const stop = AbortSignal.timeout(1000);
    expect(await removeRun(pool, run.id, { signal: stop })).toBeGreaterThan(0);
    expect((await poolStatus(pool, run.id)).run.id).toBe(run.id);
    const removing = removeRun(pool, run.id);
    goOn();
    expect(await removing).toBe(0);
    await working;
    await expect(poolStatus(pool, run.id)).rejects.toThrow(failing("queue/no-run"));
    expect(await poolRuns(pool)).toEqual([other.run.id]);
    // The other run was not touched, and is done.
    expect(await poolStatus(pool, other.run.id)).toMatchObject({ done: other.run.chunks, lists: 12, listsDone: 12 });
    await removeRun(pool, other.run.id);
    // Of a pool without runs there are names and counts.
    const left = (await pool.redis.keys("*")).filter((key) => key.includes(":discard:"));
    expect(left.filter((key) => !/:(id|meta|stalled-check|marker)$/.test(key))).toEqual([]);
  });

  it("has chunks that a worker meets: they fail, and it goes on with the other runs", async () => {
    const { path, pool, submit } = await placeOf("orphan", linesOf(1));
    await using _ = pool;
    const lost = await submit();
    await pool.redis.del(pool.key("run", lost.run.id));
    const { run } = await submitLists(pool, { path, run: { ...RUN, facts: { layer: 2 } }, scorer: null });
    await drain(pool);
    expect(await poolStatus(pool, run.id)).toMatchObject({ done: 1, lists: 1 });
    expect(await submit()).toMatchObject({ added: 0, retried: 1 });
    await drain(pool);
    expect(await poolStatus(pool, lost.run.id)).toMatchObject({ done: 1, lists: 1 });
  });
});
