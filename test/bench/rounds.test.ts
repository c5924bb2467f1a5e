/** Who runs when, and what becomes of a peer that fails. */
import { describe, expect, it } from "vitest";
import type { Peer } from "../../bench/child.ts";
import { interleave } from "../../bench/rounds.ts";

const OPTIONS = { rounds: 3, slowRounds: 1, slowMs: 100, onceMs: 1000 };

/** A peer that writes down what it is asked; the first run takes `first` ms, others 1; it fails in counted run `fails`. */
function fake(name: string, log: string[], { first = 1, fails = -1 } = {}): Peer {
  let runs = -1;
  return {
    name,
    prepare: async () => {
      log.push(`${name} prepare`);
      return `${name}!`;
    },
    run: async (full) => {
      runs++;
      log.push(`${name} ${full ? "first" : "run"}`);
      if (runs === fails) throw new Error(`${name} broke`);
      return { ms: runs === 0 ? first : runs, output: full ? Float32Array.of(1) : null };
    },
    stop: () => log.push(`${name} stop`),
  };
}

/** Runs only, without preparations and ends. */
const runsOf = (log: readonly string[]) => log.filter((line) => line.endsWith(" run"));

describe("rounds", () => {
  it("let every peer run once before any runs again, one at a time", async () => {
    const log: string[] = [];
    const times = await interleave([fake("a", log), fake("b", log)], OPTIONS);
    expect(log).toEqual([
      ...["a prepare", "a first", "b prepare", "b first"],
      ...["a run", "b run", "a run", "b run", "a run", "b run"],
      ...["a stop", "b stop"],
    ]);
    expect(times[0]).toEqual({
      name: "a",
      adapter: "a!",
      first: 1,
      times: [1, 2, 3],
      output: Float32Array.of(1),
      error: null,
    });
  });

  it("are fewer for a slow peer, and none for one that is slower still", async () => {
    const log: string[] = [];
    const peers = [fake("a", log), fake("slow", log, { first: 101 }), fake("once", log, { first: 1001 })];
    const [, slow, once] = await interleave(peers, OPTIONS);
    expect(runsOf(log)).toEqual(["a run", "slow run", "a run", "a run"]);
    expect(slow.times).toHaveLength(1);
    expect(once).toMatchObject({ first: 1001, times: [], error: null });
    expect(log.indexOf("once stop")).toBeLessThan(log.indexOf("a run"));
  });

  it("count only the last run of a turn where others warm up for it", async () => {
    const log: string[] = [];
    const [a] = await interleave([fake("a", log), fake("b", log)], { ...OPTIONS, rounds: 2, warm: 1 });
    expect(runsOf(log)).toEqual(["a run", "a run", "b run", "b run", "a run", "a run", "b run", "b run"]);
    expect(a.times).toEqual([2, 4]);
  });

  it("go on without a peer that fails, in its first run or later", async () => {
    const log: string[] = [];
    const peers = [fake("early", log, { fails: 0 }), fake("late", log, { fails: 2 }), fake("a", log)];
    const [early, late, fine] = await interleave(peers, OPTIONS);
    expect(early).toMatchObject({ first: null, times: [], error: "early broke" });
    expect(late).toMatchObject({ times: [1], error: "late broke" });
    expect(fine).toMatchObject({ times: [1, 2, 3], error: null });
    expect(runsOf(log).filter((line) => line.startsWith("late"))).toHaveLength(2);
    expect(log.filter((line) => line === "late stop").length).toBeGreaterThan(0);
  });
});
