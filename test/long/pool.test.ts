/** A pool over a Redis of its own, with workers that are killed. Needs redis-server, and minutes. */
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import { openPool, type Pool } from "../../scorer/pool.ts";
import { collectChunks, poolRuns, poolStatus, removeRun } from "../../scorer/pool-collect.ts";
import type { PoolRun } from "../../scorer/pool-records.ts";
import { submitLists } from "../../scorer/pool-submit.ts";
import { work } from "../../scorer/pool-worker.ts";
import type { Ranker } from "../../scorer/rank.ts";
import type { RankingRecord } from "../../scorer/rankings.ts";
import { withLock } from "../../weights/lock.ts";
import {
  type CliProcess,
  errorCodes,
  type Folder,
  jsonLines,
  lastJsonLine,
  startStratum,
  stratum,
  temporaryFolder,
  until,
} from "../support/cli.ts";
import { type RedisServer, startRedis } from "../support/redis.ts";
import { writeTinyLists } from "../support/tiny-lists.ts";

const LONG = { hangsMs: 600_000 };
const LONG_TEST = { timeout: 600_000 };

let redis: RedisServer;
let folder: Folder;
beforeAll(async () => {
  redis = await startRedis();
  folder = await temporaryFolder();
});
afterAll(async () => {
  await folder[Symbol.asyncDispose]();
  await redis[Symbol.asyncDispose]();
});

/** A ranker that throws at lists with a certain word, and ranks the others without a model. */
function fakeRanker(throwsAt: string): Ranker {
  const ranker: Pick<Ranker, "rank"> = {
    async *rank(lines) {
      for await (const line of lines) {
        if (line.kind !== "list") throw new Error("a chunk has lists alone");
        if (line.list.messages[0]?.content.includes(throwsAt)) throw new Error(`it met ${throwsAt}`);
        const record = { id: line.id, results: [] };
        yield { kind: "ranked", record, list: line.list, tokens: 1, notes: {} };
      }
    },
  };
  return ranker as Ranker;
}

const RUN: Omit<PoolRun, "id" | "lists" | "chunks"> = {
  ...{ facts: { layer: 1 }, model: "none", fingerprint: "none", weights: "stored", layer: 1, input: "lists" },
  options: {
    ...{ system: null, date: null, pooling: "last", truncate: false, topN: null, returnDocuments: false },
    ...{ batchTokens: null, sharePrefix: true, abstainBelow: null },
  },
};

/** Ranks all that is in the queue, without a model. */
const drain = async (pool: Pool) =>
  work(pool, {
    open: async () => {
      const dispose = async () => undefined;
      return { ranker: fakeRanker("nothing"), adapter: "none", kernels: "k", [Symbol.asyncDispose]: dispose };
    },
    ...{ stalledMs: 5000, drain: true },
  });

describe("a chunk that fails", () => {
  it("three times is set aside with its error, the rest is done, and submitting again tries it anew", async () => {
    const path = await folder.write(
      "fail.jsonl",
      Array.from({ length: 12 }, (_, i) =>
        i === 3 ? "{" : JSON.stringify({ instruction: i === 5 ? "poison" : `q ${i}`, candidates: ["a"] }),
      ).join("\n"),
    );
    await using pool = await openPool({ url: redis.url, name: "fail" });
    const submit = () => submitLists(pool, { path, run: RUN, scorer: null, chunkBytes: 150 });
    const { run, added } = await submit();
    expect([run.lists, added]).toEqual([12, run.chunks]);
    expect((await submit()).added).toBe(0);
    const attempts: number[] = [];
    const drain = (word: string) =>
      work(pool, {
        open: async () => {
          const dispose = async () => undefined;
          return { ranker: fakeRanker(word), adapter: "none", kernels: word, [Symbol.asyncDispose]: dispose };
        },
        ...{ stalledMs: 5000, drain: true },
        onFailure: (_, attempt) => attempts.push(attempt),
      });
    await drain("poison");
    expect(attempts).toEqual([1, 2, 3]);
    const collected = async () => {
      let text = "";
      for await (const chunk of collectChunks(pool, run.id)) text += chunk.text;
      return jsonLines(text);
    };
    const records = await collected();
    expect(records.map(({ id }) => id)).toEqual(Array.from({ length: 12 }, (_, i) => String(i + 1)));
    const codes = records.map(({ error }) => (error as { code: string } | undefined)?.code ?? null);
    expect(codes[3]).toBe("list/bad-json");
    expect(codes[5]).toBe("list/set-aside");
    expect(records[5]).toMatchObject({
      error: { message: expect.stringContaining("line 6: its chunk failed again and again: it met poison") },
    });
    const { setAside, done, chunks } = await poolStatus(pool, run.id);
    expect([setAside, done]).toEqual([1, chunks - 1]);

    expect(await submit()).toMatchObject({ added: 0, retried: 1 });
    await drain("nothing");
    expect((await collected()).filter(({ error }) => error !== undefined)).toHaveLength(1);
    expect((await poolStatus(pool, run.id)).workers.map(({ kernels }) => kernels)).toContain("nothing");
    await removeRun(pool, run.id);
    await expect(poolStatus(pool, undefined)).rejects.toThrow(expect.objectContaining({ code: "queue/no-run" }));
  });

  it("for the worker's own reasons goes back as it was, and the worker ends", async () => {
    const path = await folder.write("own.jsonl", '{"instruction": "q", "candidates": ["a"]}');
    await using pool = await openPool({ url: redis.url, name: "own" });
    const { run } = await submitLists(pool, { path, run: RUN, scorer: null, chunkBytes: 150 });
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
});

describe("what Redis has lost", () => {
  const collected = async (pool: Pool, id: string) => {
    const ids: unknown[] = [];
    for await (const chunk of collectChunks(pool, id)) ids.push(...jsonLines(chunk.text).map((record) => record["id"]));
    return ids;
  };

  it("is told by collect, and is added again by submit; a submit that is killed midway changes nothing", async () => {
    const ids = Array.from({ length: 12 }, (_, i) => `q${i}`);
    const lines = ids.map((id) => JSON.stringify({ id, instruction: id, candidates: ["a"] }));
    const path = await folder.write("lost.jsonl", lines.join("\n"));
    await using pool = await openPool({ url: redis.url, name: "lost" });
    const request = { path, run: RUN, scorer: null, chunkBytes: 150 };
    const { run } = await submitLists(pool, request);
    await drain(pool);
    expect(await collected(pool, run.id)).toEqual(ids);

    const killed = submitLists(pool, {
      ...request,
      onChunk: () => {
        throw new Error("killed");
      },
    });
    await expect(killed).rejects.toThrow("killed");
    expect(await poolStatus(pool, undefined)).toMatchObject({ lists: 12, chunks: run.chunks, done: run.chunks });
    expect(await collected(pool, run.id)).toEqual(ids);

    const jobId = await pool.redis.hget(pool.key("run", run.id, "chunks"), "1");
    await pool.queue.remove(String(jobId));
    await expect(collected(pool, run.id)).rejects.toThrow(expect.objectContaining({ code: "queue/lost-chunk" }));
    expect((await submitLists(pool, request)).added).toBe(1);
    expect((await poolStatus(pool, run.id)).done).toBe(run.chunks - 1);
    await drain(pool);
    expect(await collected(pool, run.id)).toEqual(ids);

    await pool.redis.hdel(pool.key("run", run.id, "chunks"), "1");
    await expect(collected(pool, run.id)).rejects.toThrow(expect.objectContaining({ code: "queue/lost-chunk" }));
  });

  it("or changed is told, whatever it is, and put right by submit", async () => {
    const ids = Array.from({ length: 12 }, (_, i) => `q${i}`);
    const lines = ids.map((id) => JSON.stringify({ id, instruction: id, candidates: ["a"] }));
    const path = await folder.write("damaged.jsonl", lines.join("\n"));
    await using pool = await openPool({ url: redis.url, name: "damaged" });
    const { redis: client, key, queue } = pool;
    const submit = () => submitLists(pool, { path, run: RUN, scorer: null, chunkBytes: 150 });
    const { run } = await submit();
    const job = String(await client.hget(key("run", run.id, "chunks"), "2"));
    const damage = (field: string, value: string) => client.hset(`${queue.toKey(job)}`, field, value);
    const otherData = async () => {
      const data = JSON.parse(String(await client.hget(queue.toKey(job), "data"))) as object;
      return JSON.stringify({ ...data, index: 3 });
    };

    // Before it is ranked: the worker goes on with the others, and the chunk is tried and set aside.
    await damage("data", await otherData());
    await drain(pool);
    await expect(collected(pool, run.id)).rejects.toThrow(expect.objectContaining({ code: "queue/damaged" }));
    expect(await submit()).toMatchObject({ added: 1, retried: 0 });
    await drain(pool);
    expect(await collected(pool, run.id)).toEqual(ids);

    // After.
    const result = async () => JSON.parse(String(await client.hget(queue.toKey(job), "returnvalue")));
    const { done, text } = await result();
    for (const value of [
      "{",
      JSON.stringify({ done, text: `${text.slice(0, -8)}AAAAAAA=` }),
      JSON.stringify({ done: { ...done, lists: 1 }, text }),
      JSON.stringify({ done: { ...done, index: 0 }, text }),
    ]) {
      await damage("returnvalue", value);
      await expect(collected(pool, run.id)).rejects.toThrow(expect.objectContaining({ code: "queue/damaged" }));
      expect(await submit()).toMatchObject({ added: 1, retried: 0 });
      await drain(pool);
      expect(await collected(pool, run.id)).toEqual(ids);
    }
    await damage("data", "{");
    await expect(collected(pool, run.id)).rejects.toThrow(expect.objectContaining({ code: "queue/damaged" }));
    expect(await submit()).toMatchObject({ added: 1, retried: 0 });
    await drain(pool);

    await client.hset(key("run", run.id, "done"), job, "[]");
    await expect(poolStatus(pool, run.id)).rejects.toThrow(expect.objectContaining({ code: "queue/damaged" }));
    const record = String(await client.hget(key("run", run.id), "record"));
    for (const [kept, code] of [
      [record.slice(0, -4), "queue/damaged"],
      [record.replace(run.id, "another"), "queue/damaged"],
      [record.replace("run 1", "run 99"), "queue/other-version"],
    ] as const) {
      await client.hset(key("run", run.id), "record", kept);
      await expect(poolStatus(pool, run.id)).rejects.toThrow(expect.objectContaining({ code }));
      expect(await submit()).toMatchObject({ added: 0, retried: 0 });
      expect(await poolStatus(pool, run.id)).toMatchObject({ lists: 12, done: run.chunks, listsDone: 12 });
    }
    expect(await collected(pool, run.id)).toEqual(ids);
  });
});

describe("a run that nobody wants any more", () => {
  it("is taken out while its chunks are under way, and nothing of it stays", async () => {
    const lines = Array.from({ length: 12 }, (_, i) => JSON.stringify({ instruction: `q${i}`, candidates: ["a"] }));
    const path = await folder.write("discard.jsonl", lines.join("\n"));
    await using pool = await openPool({ url: redis.url, name: "discard" });
    const { run } = await submitLists(pool, { path, run: RUN, scorer: null, chunkBytes: 150 });
    const other = await submitLists(pool, { path, run: { ...RUN, layer: 2, facts: { layer: 2 } }, scorer: null });
    let begun: () => void = () => undefined;
    const first = new Promise<void>((resolve) => {
      begun = resolve;
    });
    let goOn: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    const slow: Pick<Ranker, "rank"> = {
      async *rank(given) {
        begun();
        await gate;
        yield* fakeRanker("nothing").rank(given);
      },
    };
    const done: unknown[] = [];
    const working = work(pool, {
      open: async () => ({
        ...{ ranker: slow as Ranker, adapter: "none", kernels: "k" },
        [Symbol.asyncDispose]: async () => undefined,
      }),
      ...{ stalledMs: 5000, drain: true, onChunk: ({ lists }) => done.push(lists) },
    });
    await first;
    const stop = AbortSignal.timeout(1000);
    expect(await removeRun(pool, run.id, { signal: stop })).toBeGreaterThan(0);
    expect((await poolStatus(pool, run.id)).run.id).toBe(run.id);
    const removing = removeRun(pool, run.id);
    goOn();
    expect(await removing).toBe(0);
    await working;
    await expect(poolStatus(pool, run.id)).rejects.toThrow(expect.objectContaining({ code: "queue/no-run" }));
    expect(await poolRuns(pool)).toEqual([other.run.id]);
    // The other run was not touched, and is done.
    expect(await poolStatus(pool, other.run.id)).toMatchObject({ done: other.run.chunks, lists: 12, listsDone: 12 });
    expect((await pool.redis.keys("*")).filter((key) => key.includes(run.id))).toEqual([]);
    expect(await pool.queue.getJobCountByTypes("completed", "waiting", "active")).toBe(other.run.chunks);
  });

  it("has chunks that a worker meets: they fail, and it goes on with the other runs", async () => {
    const path = await folder.write("orphan.jsonl", '{"instruction": "q", "candidates": ["a"]}');
    await using pool = await openPool({ url: redis.url, name: "orphan" });
    const lost = await submitLists(pool, { path, run: RUN, scorer: null });
    await pool.redis.del(pool.key("run", lost.run.id));
    const { run } = await submitLists(pool, { path, run: { ...RUN, facts: { layer: 2 } }, scorer: null });
    await drain(pool);
    expect(await poolStatus(pool, run.id)).toMatchObject({ done: 1, lists: 1 });
    expect(await submitLists(pool, { path, run: RUN, scorer: null })).toMatchObject({ added: 0, retried: 1 });
    await drain(pool);
    expect(await poolStatus(pool, lost.run.id)).toMatchObject({ done: 1, lists: 1 });
  });
});

describe("a Redis that goes away", () => {
  it("is told by those that wait for it, and a signal ends them", LONG_TEST, async () => {
    const own = await startRedis();
    const queue = ["--queue", own.url];
    const list = (id: string) => `${JSON.stringify({ id, instruction: "q", candidates: ["a"] })}\n`;
    const submit = (stdin: string) => stratum(["submit", "-", "--layer", "1", ...queue], { stdin });
    expect((await submit(list("one"))).code).toBe(0);
    const worker = startStratum(["worker", ...queue], LONG);
    const first = await stratum(["collect", ...queue], LONG);
    expect([first.code, jsonLines(first.stdout).map(({ id }) => id)]).toEqual([0, ["one"]]);
    worker.child.kill("SIGTERM");
    expect((await worker.ended).code).toBe(143);

    // Nobody ranks the second; the worker has nothing to do.
    expect((await submit(list("two"))).code).toBe(0);
    const idle = startStratum(["worker", ...queue, "--name", "idle"], LONG);
    const waiting = [startStratum(["collect", ...queue], LONG), idle];
    await until(() => (idle.stderr().includes("waiting for chunks") ? true : undefined), "the worker");
    await own[Symbol.asyncDispose]();
    for (const { child, stderr } of waiting) {
      await until(() => (stderr().includes("the Redis is away") ? true : undefined), "the word");
      child.kill("SIGTERM");
    }
    const [collecting, working] = await Promise.all(waiting.map(({ ended }) => ended));
    expect([collecting?.code, errorCodes(collecting?.stderr ?? "")]).toEqual([143, []]);
    // It waits for an answer first.
    expect([working?.code, errorCodes(working?.stderr ?? "")]).toEqual([3, ["queue/unreachable"]]);
  });
});

describe("the commands", () => {
  const LISTS = 3000;
  const KILLS = 20;
  const WORKERS = 3;

  it(`${KILLS} random kills of ${WORKERS} workers end in the bytes of an undisturbed run`, {
    timeout: 3_600_000,
  }, async () => {
    const input = join(folder.path, "lists.jsonl");
    await writeTinyLists(input, LISTS);
    const [out, whole] = [join(folder.path, "out.jsonl"), join(folder.path, "whole.jsonl")];
    const layer = ["--layer", "2"];
    expect((await stratum(["rank", input, ...layer, "-o", whole], LONG)).code).toBe(1);
    const queue = ["--queue", redis.url, "--name", "kills"];
    const submitted = await stratum(["submit", input, ...layer, ...queue, "--chunk-kib", "2"]);
    expect(submitted.code).toBe(0);

    const start = () => startStratum(["worker", ...queue, "--stalled-after", "3", "--json"], LONG);
    const workers: CliProcess[] = Array.from({ length: WORKERS }, start);
    await using pool = await openPool({ url: redis.url, name: "kills" });
    const random = seededRandom(Date.now() % 2 ** 31);
    for (let kill = 0; kill < KILLS; kill++) {
      const { done } = await poolStatus(pool, undefined);
      // When one of them has done something, and a random while.
      await until(async () => ((await poolStatus(pool, undefined)).done > done ? true : undefined), "a chunk");
      await new Promise((resolve) => setTimeout(resolve, 500 * random()));
      const which = Math.floor(random() * WORKERS);
      workers[which]?.child.kill("SIGKILL");
      await workers[which]?.ended;
      const status = await poolStatus(pool, undefined);
      expect(status.done, "the run ended before its kills: give it more lists").toBeLessThan(status.chunks);
      workers[which] = start();
    }
    const collected = await stratum(["collect", ...queue, "-o", out, "--json"], LONG);
    expect([collected.code, errorCodes(collected.stderr)]).toEqual([1, []]);
    expect(lastJsonLine(collected.stderr)).toMatchObject({ lists: LISTS, set_aside: 0 });
    expect(readFileSync(out).equals(readFileSync(whole))).toBe(true);
    for (const { child } of workers) child.kill("SIGTERM");
    expect((await Promise.all(workers.map(({ ended }) => ended))).map(({ code }) => code)).toEqual([143, 143, 143]);
  });

  it("workers of two adapters do one run, and it is said which did what", LONG_TEST, async () => {
    const input = join(folder.path, "mixed.jsonl");
    await writeTinyLists(input, 300);
    const [out, whole] = [join(folder.path, "mixed-out.jsonl"), join(folder.path, "mixed-whole.jsonl")];
    const queue = ["--queue", redis.url, "--name", "mixed"];
    const layer = ["--layer", "1"];
    expect((await stratum(["submit", input, ...layer, ...queue, "--chunk-kib", "1"])).code).toBe(0);
    // Where the system has no adapter of its own, both are the embedded one.
    const adapters = [[], ["--adapter", "embedded"]];
    await Promise.all(adapters.map((flags) => stratum(["worker", ...queue, ...flags, "--drain"], LONG)));
    const collected = await stratum(["collect", ...queue, "-o", out, "--json"], LONG);
    const ranked = await stratum(["rank", input, ...layer, "-o", whole], LONG);
    expect(collected.code).toBe(ranked.code);
    const { workers } = lastJsonLine(collected.stderr) as { workers: { lists: number }[] };
    expect(workers).toHaveLength(2);
    expect(workers.reduce((sum, { lists }) => sum + lists, 0)).toBe(300);
    const read = (path: string) => jsonLines<RankingRecord>(readFileSync(path, "utf8"));
    const [found, wanted] = [read(out), read(whole)];
    expect(found.map(({ id }) => id)).toEqual(wanted.map(({ id }) => id));
    const scores = (records: readonly RankingRecord[]) =>
      records.flatMap(({ results = [] }) =>
        [...results].sort((a, b) => a.index - b.index).map(({ relevance_score }) => relevance_score),
      );
    const [got, expected] = [scores(found), scores(wanted)];
    expect(got).toHaveLength(expected.length);
    for (const [i, score] of got.entries()) expect(Math.abs(score - (expected[i] ?? 0))).toBeLessThan(2e-5);
  });

  it("collect leaves an output to the run that writes it, though it was stopped, and its log likewise", async () => {
    const path = await folder.write("owned.jsonl", '{"id": 1, "instruction": "q", "candidates": ["a"]}\n');
    await using pool = await openPool({ url: redis.url, name: "owned" });
    await submitLists(pool, { path, run: RUN, scorer: null });
    await drain(pool);
    const [out, log] = [join(folder.path, "owned-out.jsonl"), join(folder.path, "owned-log.jsonl")];
    const collect = () =>
      stratum(["collect", "--queue", redis.url, "--name", "owned", "-o", out, "--chunks", log, "--remove"]);
    for (const file of [out, log]) {
      const busy = await withLock(`${file}.journal.lock`, collect);
      expect([busy.code, errorCodes(busy.stderr)]).toEqual([2, ["usage/in-use"]]);
      for (const end of ["journal", "partial"]) writeFileSync(`${file}.${end}`, "days of work");
      const stopped = await collect();
      expect([stopped.code, errorCodes(stopped.stderr)]).toEqual([2, ["usage/other-run"]]);
      expect(readFileSync(`${file}.partial`, "utf8")).toBe("days of work");
      rmSync(`${file}.journal`);
    }
    expect((await collect()).code).toBe(0);
    expect(jsonLines(readFileSync(out, "utf8")).map(({ id }) => id)).toEqual([1]);
    expect(readdirSync(folder.path).filter((name) => name.startsWith("owned-"))).toEqual(
      [log, out].map((file) => basename(file)),
    );
  });

  it("no pool and no Redis are told", async () => {
    const empty = await stratum(["collect", "--queue", redis.url, "--name", "empty", "--status"]);
    expect([empty.code, errorCodes(empty.stderr)]).toEqual([3, ["queue/no-run"]]);
    const away = await stratum(["collect", "--queue", "redis://127.0.0.1:1", "--status"]);
    expect([away.code, errorCodes(away.stderr)]).toEqual([3, ["queue/unreachable"]]);
    const other = await stratum(["collect", "--queue", "http://x", "--status"]);
    expect([other.code, errorCodes(other.stderr)]).toEqual([2, ["usage/queue"]]);
  });

  it.each([
    ["http://u:hunter2@127.0.0.1:1", "usage/queue"],
    ["redis://u:hun/ter2@127.0.0.1:1", "usage/queue"],
    ["redis://u:hun@ter2@127.0.0.1:1", "queue/unreachable"],
    ["u:hunter2@127.0.0.1:1", "usage/queue"],
    ["redis://127.0.0.1:1?password=hunter2", "queue/unreachable"],
  ])("%s is refused without its password", async (url, code) => {
    const { stderr } = await stratum(["collect", "--queue", url, "--status"]);
    expect(errorCodes(stderr)).toEqual([code]);
    expect(stderr).not.toMatch(/hun|ter2/);
  });

  it("a Redis that wants another password says so", async () => {
    await using pool = await openPool({ url: redis.url, name: "password" });
    await pool.redis.config("SET", "requirepass", "right");
    try {
      for (const user of ["", ":wrong@"]) {
        const url = redis.url.replace("//", `//${user}`);
        const { code, stderr } = await stratum(["collect", "--queue", url, "--status"]);
        expect([code, errorCodes(stderr)]).toEqual([3, ["queue/refused"]]);
        expect(stderr).toMatch(/NOAUTH|WRONGPASS/);
        expect(stderr).not.toContain("wrong@");
      }
    } finally {
      await pool.redis.config("SET", "requirepass", "");
    }
  });

  it(
    "a scorer that Redis lost, or has another of, is refused and put back by submitting again",
    LONG_TEST,
    async () => {
      const input = join(folder.path, "scored.jsonl");
      await writeTinyLists(input, 20);
      const labelled = await folder.write(
        "labelled.jsonl",
        Array.from({ length: 12 }, (_, i) =>
          JSON.stringify({
            instruction: `q ${i}`,
            candidates: [1, 0].map((label) => ({ text: `${label} ${i}`, label })),
          }),
        ).join("\n"),
      );
      const scorer = join(folder.path, "scorer");
      expect((await stratum(["train", labelled, "-o", scorer, "--epochs", "1"], LONG)).code).toBe(0);
      const queue = ["--queue", redis.url, "--name", "scorer"];
      const submit = () => stratum(["submit", input, "--scorer", scorer, ...queue, "--json"], LONG);
      const drain = () => stratum(["worker", ...queue, "--drain"], LONG);
      const run = JSON.parse((await submit()).stdout) as { id: string };
      await using pool = await openPool({ url: redis.url, name: "scorer" });
      const key = pool.key("run", run.id, "scorer");
      const refused = async () => {
        const { code, stderr } = await drain();
        expect([code, errorCodes(stderr)]).toEqual([3, ["queue/other-scorer"]]);
        expect((await poolStatus(pool, run.id)).done).toBe(0);
      };
      await pool.redis.del(key);
      await refused();
      expect((await submit()).code).toBe(0);
      await pool.redis.hset(key, "scorer.json", "{}");
      await refused();
      expect((await submit()).code).toBe(0);
      expect((await drain()).code).toBe(0);
      const [out, whole] = [join(folder.path, "scored-out.jsonl"), join(folder.path, "scored-whole.jsonl")];
      const collected = await stratum(["collect", ...queue, "-o", out], LONG);
      const ranked = await stratum(["rank", input, "--scorer", scorer, "-o", whole], LONG);
      expect(collected.code).toBe(ranked.code);
      expect(readFileSync(out).equals(readFileSync(whole))).toBe(true);
    },
  );
});
