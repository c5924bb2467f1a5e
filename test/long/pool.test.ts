/** A pool over a Redis of its own, with workers that are killed. Needs redis-server, and minutes. */
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import { openPool } from "../../scorer/pool.ts";
import { poolStatus } from "../../scorer/pool-collect.ts";
import { submitLists } from "../../scorer/pool-submit.ts";
import type { RankingRecord } from "../../scorer/rankings.ts";
import { withLock } from "../../weights/lock.ts";
import { type CliProcess, errorCodes, jsonLines, lastJsonLine, startStratum, stratum, until } from "../support/cli.ts";
import { drain, RUN, redisAndFolder } from "../support/pool.ts";
import { startRedis } from "../support/redis.ts";
import { writeTinyLists } from "../support/tiny-lists.ts";

const LONG = { hangsMs: 600_000 };
const LONG_TEST = { timeout: 600_000 };

const place = redisAndFolder();

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

describe("a Redis that stands still, with its connections open", () => {
  it("is told by those that wait for it, and a signal ends them", LONG_TEST, async () => {
    const own = await startRedis();
    const queue = ["--queue", own.url];
    const list = JSON.stringify({ id: "one", instruction: "q", candidates: ["a"] });
    expect((await stratum(["submit", "-", "--layer", "1", ...queue], { stdin: list })).code).toBe(0);
    const idle = startStratum(["worker", ...queue, "--name", "idle"], LONG);
    const waiting = [startStratum(["collect", ...queue], LONG), idle];
    await until(() => (idle.stderr().includes("waiting for chunks") ? true : undefined), "the worker");
    process.kill(own.pid, "SIGSTOP");
    try {
      const words = ({ stderr }: CliProcess) =>
        until(() => (stderr().includes("the Redis is away (no answer") ? true : undefined), "the word");
      await Promise.all(waiting.map(words));
      process.kill(own.pid, "SIGCONT");
      const back = ({ stderr }: CliProcess) =>
        until(() => (stderr().includes("the Redis is back") ? true : undefined), "the other word");
      await Promise.all(waiting.map(back));
      process.kill(own.pid, "SIGSTOP");
      for (const { child } of waiting) child.kill("SIGTERM");
      // The worker has nothing to hand in.
      for (const { code, stderr } of await Promise.all(waiting.map(({ ended }) => ended)))
        expect([code, errorCodes(stderr)]).toEqual([143, []]);
    } finally {
      process.kill(own.pid, "SIGCONT");
      await own[Symbol.asyncDispose]();
    }
  });
});

describe("the commands", () => {
  const LISTS = 3000;
  const KILLS = 20;
  const WORKERS = 3;

  it(`${KILLS} random kills of ${WORKERS} workers end in the bytes of an undisturbed run`, {
    timeout: 3_600_000,
  }, async () => {
    const input = join(place.folder.path, "lists.jsonl");
    await writeTinyLists(input, LISTS);
    const [out, whole] = [join(place.folder.path, "out.jsonl"), join(place.folder.path, "whole.jsonl")];
    const layer = ["--layer", "2"];
    expect((await stratum(["rank", input, ...layer, "-o", whole], LONG)).code).toBe(1);
    const queue = ["--queue", place.redis.url, "--name", "kills"];
    const submitted = await stratum(["submit", input, ...layer, ...queue, "--chunk-kib", "2"]);
    expect(submitted.code).toBe(0);

    const start = () => startStratum(["worker", ...queue, "--stalled-after", "3", "--json"], LONG);
    const workers: CliProcess[] = Array.from({ length: WORKERS }, start);
    await using pool = await openPool({ url: place.redis.url, name: "kills" });
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
    const input = join(place.folder.path, "mixed.jsonl");
    await writeTinyLists(input, 300);
    const [out, whole] = [join(place.folder.path, "mixed-out.jsonl"), join(place.folder.path, "mixed-whole.jsonl")];
    const queue = ["--queue", place.redis.url, "--name", "mixed"];
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
    const path = await place.folder.write("owned.jsonl", '{"id": 1, "instruction": "q", "candidates": ["a"]}\n');
    await using pool = await openPool({ url: place.redis.url, name: "owned" });
    await submitLists(pool, { path, run: RUN, scorer: null });
    await drain(pool);
    const [out, log] = [join(place.folder.path, "owned-out.jsonl"), join(place.folder.path, "owned-log.jsonl")];
    const collect = () =>
      stratum(["collect", "--queue", place.redis.url, "--name", "owned", "-o", out, "--chunks", log, "--remove"]);
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
    expect(readdirSync(place.folder.path).filter((name) => name.startsWith("owned-"))).toEqual(
      [log, out].map((file) => basename(file)),
    );
  });

  it("no pool and no Redis are told", async () => {
    const empty = await stratum(["collect", "--queue", place.redis.url, "--name", "empty", "--status"]);
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
    await using pool = await openPool({ url: place.redis.url, name: "password" });
    await pool.redis.config("SET", "requirepass", "right");
    try {
      for (const user of ["", ":wrong@"]) {
        const url = place.redis.url.replace("//", `//${user}`);
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
      const input = join(place.folder.path, "scored.jsonl");
      await writeTinyLists(input, 20);
      const labelled = await place.folder.write(
        "labelled.jsonl",
        Array.from({ length: 12 }, (_, i) =>
          JSON.stringify({
            instruction: `q ${i}`,
            candidates: [1, 0].map((label) => ({ text: `${label} ${i}`, label })),
          }),
        ).join("\n"),
      );
      const scorer = join(place.folder.path, "scorer");
      expect((await stratum(["train", labelled, "-o", scorer, "--epochs", "1"], LONG)).code).toBe(0);
      const queue = ["--queue", place.redis.url, "--name", "scorer"];
      const submit = () => stratum(["submit", input, "--scorer", scorer, ...queue, "--json"], LONG);
      const drain = () => stratum(["worker", ...queue, "--drain"], LONG);
      const run = JSON.parse((await submit()).stdout) as { id: string };
      await using pool = await openPool({ url: place.redis.url, name: "scorer" });
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
      const [out, whole] = [join(place.folder.path, "scored-out.jsonl"), join(place.folder.path, "scored-whole.jsonl")];
      const collected = await stratum(["collect", ...queue, "-o", out], LONG);
      const ranked = await stratum(["rank", input, "--scorer", scorer, "-o", whole], LONG);
      expect(collected.code).toBe(ranked.code);
      expect(readFileSync(out).equals(readFileSync(whole))).toBe(true);
    },
  );
});
