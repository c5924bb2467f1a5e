import { describe, expect, it } from "vitest";
import { type Batch, groupCost, type SequenceGroup } from "../../engine/batch.ts";
import type { Room } from "../../engine/room.ts";
import { checkFits, type Job, type Streaming, type StreamOptions, streamJobs } from "../../engine/stream.ts";
import { failing } from "../support/failing.ts";
import { randomGroups } from "../support/states.ts";

/** As much of a runner as streaming looks at; what it grew to is kept. */
function fakeRunner(budget: number, maxBudget = budget): Streaming["runner"] {
  const runner = {
    budget,
    maxBudget,
    grantedBudget: maxBudget,
    get packing() {
      return { longFrom: null, budget: runner.budget };
    },
    async grow(rows: number) {
      if (rows > runner.budget) runner.budget = Math.min(rows, maxBudget);
    },
  };
  return runner as Streaming["runner"];
}

/** A room where nothing goes wrong. */
function fakeRoom(runner: Streaming["runner"]): Room<Streaming> {
  const current = { runner, [Symbol.dispose]: () => undefined };
  return { current, run: (step) => step(current), widen: async () => undefined, [Symbol.dispose]: () => undefined };
}

async function* source<T>(jobs: readonly T[]): AsyncGenerator<T> {
  yield* jobs;
}

/** Runs jobs and keeps what happened, in order. */
async function collect(
  jobs: AsyncIterable<Job<number>>,
  runner: Streaming["runner"],
  options: StreamOptions & { readonly onBatch?: () => void } = {},
) {
  const ran: string[] = [];
  const batches: Batch[] = [];
  const items: number[] = [];
  const run = async (batch: Batch, members: readonly Job<number>[]) => {
    batches.push(batch);
    for (const { group, index } of batch.sequences) ran.push(`${members[group].item}/${index}`);
    options.onBatch?.();
  };
  for await (const item of streamJobs(jobs, fakeRoom(runner), run, options)) items.push(item);
  return { ran, batches, items };
}

const single = (length: number): SequenceGroup => ({ sequences: [new Int32Array(length)] });
const signal = (stop: AbortController) => ({ signal: stop.signal });

describe("a stream", () => {
  it.each([1, 2, 3, 4])("runs every sequence once and yields the items in their order (seed %i)", async (seed) => {
    const jobs = randomGroups(seed, 40, 30).map((group, item) => ({ item, group: item % 7 === 3 ? null : group }));
    const { ran, items, batches } = await collect(source(jobs), fakeRunner(100, 400));
    expect(items).toEqual(jobs.map(({ item }) => item));
    const wanted = jobs.flatMap(({ item, group }) => group?.sequences.map((_, index) => `${item}/${index}`) ?? []);
    expect(ran).toEqual(wanted);
    expect(batches.length).toBeLessThan(jobs.length);
    expect(Math.max(...batches.map(({ ids }) => ids.length))).toBeLessThanOrEqual(400);
  });

  it("grows the runner for a list that is larger than its budget, as far as it may", async () => {
    for (const [most, grown] of [
      [1000, 58],
      [51, 51],
    ] as const) {
      const runner = fakeRunner(16, most);
      const list = { sequences: [new Int32Array(50), Int32Array.from({ length: 51 }, (_, i) => (i === 50 ? 1 : 0))] };
      // 50 shared rows, none and one of their own, which count as 8 each.
      expect(groupCost(list)).toBe(66);
      await collect(
        source([
          { item: 0, group: single(50) },
          { item: 1, group: list },
        ]),
        runner,
      );
      expect(runner.budget).toBe(most === 1000 ? 66 : grown);
    }
  });

  it("answers what it has when the source pauses", async () => {
    let more: () => void = () => undefined;
    const pause = new Promise<void>((resolve) => {
      more = resolve;
    });
    async function* slow() {
      yield { item: 1, group: single(3) };
      await pause;
      yield { item: 2, group: single(3) };
    }
    const seen: number[] = [];
    for await (const item of streamJobs(slow(), fakeRoom(fakeRunner(100)), async () => undefined)) {
      seen.push(item);
      // Had it waited for a full batch, the source would never go on.
      more();
    }
    expect(seen).toEqual([1, 2]);
  });

  it("takes the jobs of the next batch while one runs, and no more", async () => {
    let taken = 0;
    async function* counted() {
      for (let item = 0; item < 20; item++) {
        taken++;
        // The host's work comes in turns of the event loop.
        await new Promise((resolve) => setImmediate(resolve));
        yield { item, group: single(8) };
      }
    }
    const during: number[] = [];
    const run = async () => {
      await new Promise((resolve) => setTimeout(resolve, 50));
      during.push(taken);
    };
    for await (const _ of streamJobs(counted(), fakeRoom(fakeRunner(32)), run));
    // Four a batch; one more is taken to see that it does not fit.
    expect(during).toEqual([9, 13, 17, 20, 20]);
  });

  it("stops between batches: what has run is yielded or not, what has not is not", async () => {
    const jobs = Array.from({ length: 10 }, (_, item) => ({ item, group: single(8) }));
    const stop = new AbortController();
    const { ran, items } = await collect(source(jobs), fakeRunner(16), {
      ...signal(stop),
      onBatch: () => stop.abort(),
    });
    expect(ran.length).toBeLessThanOrEqual(2);
    expect(items.every((item) => ran.includes(`${item}/0`))).toBe(true);
  });

  it("stops while it waits for a source that never answers", async () => {
    const stop = new AbortController();
    const never: AsyncIterable<Job<number>> = {
      [Symbol.asyncIterator]: () => ({ next: () => new Promise(() => undefined) }),
    };
    setTimeout(() => stop.abort(), 20);
    expect((await collect(never, fakeRunner(16), signal(stop))).items).toEqual([]);
  });

  it("repeats, in a room that begins anew, the batches that were not done; with another budget all of them", async () => {
    const jobs = Array.from({ length: 4 }, (_, item) => ({ item, group: single(8) }));
    for (const [then, wanted] of [
      [16, ["0 1", "2 3", "2 3"]],
      [8, ["0 1", "2 3", "0", "1", "2", "3"]],
    ] as const) {
      const budgets = [16, then];
      const { current: first, ...room } = fakeRoom(fakeRunner(16));
      const again: Room<Streaming> = {
        ...room,
        current: first,
        async run(step) {
          await expect(step(first)).rejects.toThrow("lost");
          return await step({ ...first, runner: fakeRunner(budgets[1]!) });
        },
      };
      const ran: string[] = [];
      const run = async (batch: Batch, members: readonly Job<number>[]) => {
        ran.push(batch.sequences.map(({ group }) => members[group]!.item).join(" "));
        if (ran.length === 2) throw new Error("lost");
      };
      // All four are of one filling: they wait for a source that does not pause.
      const whole = { ...again, current: { ...first, runner: { ...first.runner, budget: 64 } } };
      const items: number[] = [];
      for await (const item of streamJobs(source(jobs), whole, run)) items.push(item);
      expect([ran, items]).toEqual([wanted, [0, 1, 2, 3]]);
    }
  });

  it("asks for more room where a batch cannot hold a sequence any more, and fails where there is none", async () => {
    const jobs = [single(8), single(30), single(8)].map((group, item) => ({ item, group }));
    const short: Streaming["runner"] = { ...fakeRunner(16), grantedBudget: 64 };
    for (const wide of [fakeRunner(64), short]) {
      const asked: number[] = [];
      const ran: number[] = [];
      let runner = short;
      const room: Room<Streaming> = {
        ...fakeRoom(runner),
        run: (step) => step({ runner, [Symbol.dispose]: () => undefined }),
        async widen(rows) {
          asked.push(rows);
          runner = wide;
        },
      };
      const run = async (batch: Batch, members: readonly Job<number>[]) => {
        for (const { group } of batch.sequences) ran.push(members[group]!.item);
      };
      const items: number[] = [];
      const streaming = async () => {
        for await (const item of streamJobs(source(jobs), room, run)) items.push(item);
      };
      if (wide === short) await expect(streaming()).rejects.toThrow(failing("memory/out-of-memory", "30", "16", "64"));
      else await streaming();
      expect(asked).toEqual([30]);
      expect([items, ran]).toEqual(
        wide === short
          ? [[0], [0]]
          : [
              [0, 1, 2],
              [0, 1, 2],
            ],
      );
    }
  });

  it("passes on what a batch throws", async () => {
    const stream = streamJobs(source([{ item: 1, group: single(1) }]), fakeRoom(fakeRunner(16)), async () => {
      throw new Error("the GPU is gone");
    });
    await expect(stream.next()).rejects.toThrow("the GPU is gone");
  });
});

describe("what cannot fit", () => {
  it("is refused by the sequence, what it needs and what there is", () => {
    const group = { sequences: [new Int32Array(10), new Int32Array(40)] };
    expect(() => checkFits(group, fakeRunner(16, 40))).not.toThrow();
    expect(() => checkFits(group, fakeRunner(16, 39))).toThrow(
      expect.objectContaining({ code: "list/over-budget", message: expect.stringMatching(/sequence 1 .*40 .*39/) }),
    );
  });

  it("counts a first sequence that has to come along", () => {
    const sequences = [new Int32Array(10).fill(1), new Int32Array(30)];
    const anchored = { sequences, anchored: true };
    expect(() => checkFits(anchored, fakeRunner(39))).toThrow(expect.objectContaining({ code: "list/over-budget" }));
    expect(() => checkFits(anchored, fakeRunner(40))).not.toThrow();
    expect(() => checkFits({ sequences }, fakeRunner(30))).not.toThrow();
  });
});
