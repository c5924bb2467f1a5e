/** What the tuner keeps, drops and leaves: decisions on a made-up adapter and clock, broken variants on a real one. */
import { afterAll, describe, expect, it } from "vitest";
import { createEngine, type Engine } from "../../engine/model.ts";
import { type PlannedShape, tileKey, tileText } from "../../engine/tiles.ts";
import { type Trial, type TuneOptions, tune } from "../../engine/tuner.ts";
import { type MatmulShape, type MatmulTile, matmulTile } from "../../kernels/matmul.ts";

const FAKE = {
  target: { subgroupSize: 8, textures: true },
  device: { info: { name: "a made-up adapter", software: true } },
} as unknown as Engine;

const planned = (n: number, epilogue: "store" | "glu" = "store"): PlannedShape => ({
  shape: { k: 64, n, weight: "bf16", epilogue },
  columns: n,
  work: 64 * n,
});
const SHAPE = planned(96);
const tile = (tileRows: number, tileCols: number, subgroup = 8, textures = true): MatmulTile => ({
  ...{ tileRows, tileCols, lanes: 32, subgroup, textures },
});
const [STANDARD, OTHER, THIRD] = [tile(8, 2), tile(8, 4), tile(4, 2)];

interface Fake {
  /** Milliseconds of a variant, by how often it was timed before; or what is wrong with it. */
  readonly time: (text: string, before: number) => readonly number[] | string;
  /** Of the default, beside each. */
  readonly standard?: readonly number[];
  /** Milliseconds of the clock that a trial takes. */
  readonly takes?: number;
}

/** Tunes on the made-up adapter. */
async function decide(
  choices: readonly MatmulTile[],
  { time, standard = [10, 10, 10, 10, 10], takes = 0 }: Fake,
  shapes: readonly PlannedShape[] = [SHAPE],
  options: Partial<TuneOptions> = {},
) {
  let clock = 0;
  let open = 0;
  const tried: { text: string; at: number }[] = [];
  const trial: Trial = {
    async time(each) {
      const text = tileText(each);
      const before = tried.filter((other) => other.text === text).length;
      tried.push({ text, at: clock });
      clock += takes;
      const own = time(text, before);
      return typeof own === "string" ? own : { own, standard: each === choices[0] ? own : standard };
    },
    [Symbol.dispose]: () => {
      open--;
    },
  };
  const tuning = await tune(FAKE, shapes, {
    choices: () => choices,
    open: async () => {
      open++;
      return trial;
    },
    now: () => clock,
    ...options,
  });
  expect(open).toBe(0);
  return { ...tuning, tried, clock };
}

const steady = (ms: number) => [ms, ms, ms, ms, ms];

describe("of right variants", () => {
  it("keeps the fastest of those that beat the default", async () => {
    const times: Record<string, number> = { [tileText(STANDARD)]: 10, [tileText(OTHER)]: 7, [tileText(THIRD)]: 8 };
    const { tiles, shapes, rows, wrong, left } = await decide([STANDARD, OTHER, THIRD], {
      time: (text) => steady(times[text]),
    });
    expect([...tiles]).toEqual([[tileKey(SHAPE.shape), OTHER]]);
    expect(shapes).toEqual([{ shape: SHAPE.shape, tile: OTHER, ratio: 0.7 }]);
    expect(rows.map(({ variant, median_ms }) => [variant, median_ms]).sort()).toEqual(Object.entries(times).sort());
    expect([wrong, left]).toEqual([[], 0]);
  });

  it.each([
    ["4% faster, always", steady(9.6), steady(10)],
    ["faster in half of the rounds", [8, 12, 8, 12, 10], steady(10)],
    ["twice as fast, but as often slower, on a machine that sways", [5, 20, 11, 9, 10], [10, 10, 10, 10, 10]],
    ["timed too seldom to tell", [5, 5, 5], [10, 10, 10]],
    ["slower in every round, though faster than the default was elsewhere", steady(9), steady(8)],
  ])("keeps the default where another is %s", async (_, own, standard) => {
    const { tiles } = await decide([STANDARD, OTHER], {
      time: (text) => (text === tileText(STANDARD) ? steady(10) : own),
      standard,
    });
    expect([...tiles.values()]).toEqual([STANDARD]);
  });

  it("compares round by round: what slows a round slows both", async () => {
    const sway = [10, 40, 20, 80, 10];
    const { tiles } = await decide([STANDARD, OTHER], {
      time: () => sway.map((ms) => 0.9 * ms),
      standard: sway,
    });
    expect([...tiles.values()]).toEqual([OTHER]);
  });

  it("lets a winner win again before it counts, and asks the next where it does not", async () => {
    const { tiles, tried } = await decide([STANDARD, OTHER, THIRD], {
      time: (text, before) => {
        if (text === tileText(OTHER)) return steady(before === 0 ? 5 : 10);
        return steady(text === tileText(THIRD) ? 8 : 10);
      },
    });
    expect([...tiles.values()]).toEqual([THIRD]);
    expect(tried.filter(({ text }) => text === tileText(OTHER))).toHaveLength(2);
  });

  it("tries each kind once, then the fastest kind first", async () => {
    const choices = [8, 0].flatMap((subgroup) =>
      [true, false].flatMap((textures) => [tile(8, 2, subgroup, textures), tile(8, 4, subgroup, textures)]),
    );
    const { tried } = await decide(choices, { time: (text) => steady(text.includes("plain") ? 12 : 10) });
    const kinds = tried.map(({ text }) => text.replace(/^\S+ /, ""));
    expect(new Set(kinds.slice(0, 4)).size).toBe(4);
    expect(kinds.slice(4).map((kind) => kind.includes("plain"))).toEqual([false, false, true, true]);
  });
});

describe("of wrong variants", () => {
  it("drops and reports them, however fast", async () => {
    const { tiles, wrong, rows } = await decide([STANDARD, OTHER], {
      time: (text) => (text === tileText(OTHER) ? "[3] is 1 instead of 2" : steady(10)),
    });
    expect([...tiles.values()]).toEqual([STANDARD]);
    expect(wrong).toEqual([
      { name: "matmul", shape: "192 x 64 x 96", variant: tileText(OTHER), fault: "[3] is 1 instead of 2" },
    ]);
    expect(rows).toHaveLength(1);
  });

  it("takes the fastest right one where the default is wrong", async () => {
    const { tiles, wrong } = await decide([STANDARD, OTHER, THIRD], {
      time: (text) => (text === tileText(STANDARD) ? "wrong" : steady(text === tileText(THIRD) ? 20 : 30)),
    });
    expect([...tiles.values()]).toEqual([THIRD]);
    expect(wrong.map(({ variant }) => variant)).toEqual([tileText(STANDARD)]);
  });

  it("says what to do where none is right", async () => {
    const deciding = decide([STANDARD, OTHER], { time: () => "wrong" });
    await expect(deciding).rejects.toMatchObject({
      code: "kernel/wrong",
      message: expect.stringContaining("64x96 bf16"),
      fix: expect.stringContaining("--adapter"),
    });
  });
});

describe("of its own time", () => {
  const shapes = [planned(96), planned(64), planned(96, "glu"), planned(32)];

  it("tries nothing after its end, and what was not reached keeps the default", async () => {
    const many = Array.from({ length: 9 }, (_, i) => tile(4 + i, 2));
    const {
      tiles,
      tried,
      left,
      clock,
      shapes: tuned,
    } = await decide(many, { time: () => steady(10), takes: 3000 }, shapes, { budgetMs: 10_000 });
    expect(tried.every(({ at }) => at < 10_000)).toBe(true);
    expect(clock).toBeLessThan(10_000 + 3000);
    expect(tried.length + left).toBe(4 * 9);
    // Only the default was looked at, or nothing.
    expect(tiles.size).toBe(0);
    expect(tuned.map(({ tile: chosen }) => chosen)).toEqual([null, null, null, null]);
  });

  it("divides it among the shapes, and passes on what one leaves", async () => {
    const { tiles, clock } = await decide([STANDARD, OTHER], { time: () => steady(10), takes: 1000 }, shapes, {
      budgetMs: 10_000,
    });
    expect([tiles.size, clock]).toEqual([4, 8000]);
  });

  it("ends at the signal", async () => {
    const reason = new Error("stop");
    const deciding = decide([STANDARD], { time: () => steady(10) }, shapes, { signal: AbortSignal.abort(reason) });
    await expect(deciding).rejects.toBe(reason);
  });
});

describe("on this adapter", async () => {
  const engine = await createEngine();
  afterAll(() => engine[Symbol.dispose]());
  const shape: MatmulShape = { k: 64, n: 96, weight: "bf16", epilogue: "store" };
  const standard = matmulTile(engine.target, shape);

  it("finds variants that give wrong results or do not compile, and goes on", async () => {
    // Lanes that a subgroup of this adapter does not have; more of them than a workgroup may.
    const strange: MatmulTile = { ...standard, subgroup: 2 * engine.target.subgroupSize };
    const huge: MatmulTile = { ...standard, lanes: 4096 };
    const sound: MatmulTile = { ...standard, tileRows: 4, textures: false };
    const { tiles, rows, wrong } = await tune(engine, [{ shape, columns: 96, work: 1 }], {
      budgetMs: 60_000,
      choices: () => [standard, strange, huge, sound],
    });
    const faults = Object.fromEntries(wrong.map(({ variant, fault }) => [variant, fault]));
    expect(Object.keys(faults).sort()).toEqual([strange, huge].map(tileText).sort());
    expect(faults[tileText(strange)]).toContain("sampled values differ");
    expect(faults[tileText(huge)]).toContain("does not compile");
    expect(rows.map(({ variant }) => variant)).toEqual([standard, sound].map(tileText));
    expect([standard, sound].map(tileText)).toContain(tileText(tiles.get(tileKey(shape))!));
    engine.device.check();
    expect(engine.device.liveBytes).toBe(0);
  });

  it("replaces a default that is wrong here", async () => {
    const strange: MatmulTile = { ...standard, subgroup: 2 * engine.target.subgroupSize };
    const { tiles } = await tune(engine, [{ shape, columns: 96, work: 1 }], {
      budgetMs: 60_000,
      choices: () => [strange, standard],
    });
    expect(tiles.get(tileKey(shape))).toEqual(standard);
  });
});
