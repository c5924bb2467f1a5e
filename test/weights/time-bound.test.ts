import { describe, expect, it } from "vitest";
import { TimeUp, underSharedClock, withinTime } from "../../weights/time-bound.ts";

/** Takes as long as it may. */
const never = () => {
  for (;;);
};
const spin = (milliseconds: number) => {
  const end = performance.now() + milliseconds;
  while (performance.now() < end);
};
const taken = (work: () => unknown) => {
  const begin = performance.now();
  work();
  return performance.now() - begin;
};

describe("withinTime", () => {
  it("gives the result, and what the work throws", () => {
    expect(withinTime(1000, () => 42)).toBe(42);
    const own = new TypeError("own");
    expect(() =>
      withinTime(1000, () => {
        throw own;
      }),
    ).toThrow(own);
  });

  it("stops work without an end, a regular expression's too", () => {
    expect(() => withinTime(20, never)).toThrow(new TimeUp("it ran for more than 20 ms"));
    expect(() => withinTime(20, () => /^(a+)+$/.test(`${"a".repeat(40)}b`))).toThrow(TimeUp);
    expect(withinTime(1000, () => "and goes on")).toBe("and goes on");
  });
});

describe("underSharedClock", () => {
  /** Work that tells its own failures, as encoding does. */
  const guarded = (work: (item: number) => string, milliseconds: number) => (item: number) => {
    try {
      return withinTime(milliseconds, () => work(item));
    } catch (thrown) {
      return thrown instanceof TimeUp ? `${item}: ${thrown.message}` : `${item}: ${(thrown as Error).message}`;
    }
  };

  it("maps all items, the failures of some among them", () => {
    const work = guarded((item) => {
      if (item === 1) throw new Error("no");
      return String(item);
    }, 100);
    expect(underSharedClock([0, 1, 2], 1000, work)).toEqual(["0", "1: no", "2"]);
    expect(underSharedClock([], 1000, work)).toEqual([]);
  });

  it("begins no item after the pause", () => {
    const work = guarded((item) => {
      spin(30);
      return String(item);
    }, 1000);
    expect(underSharedClock([0, 1, 2], 1, work)).toEqual(["0"]);
    expect(underSharedClock([0, 1, 2], 45, work)).toEqual(["0", "1"]);
  });

  it("tells of an item that ended late, and maps those behind it", () => {
    const work = guarded((item) => {
      if (item === 1) spin(60);
      return String(item);
    }, 50);
    expect(underSharedClock([0, 1, 2], 1000, work)).toEqual(["0", "1: it ran for more than 50 ms", "2"]);
  });

  it("stops an item without an end, and tells of it alone", () => {
    const work = guarded((item) => (item === 1 ? never() : String(item)), 40);
    expect(underSharedClock([0, 1, 2], 1000, work, 100)).toEqual(["0", "1: it ran for more than 40 ms"]);
    expect(underSharedClock([2], 1000, work, 100)).toEqual(["2"]);
  });

  it("gives an item that needs more than the clock has left clocks of its own", () => {
    const work = guarded((item) => {
      spin(30);
      return String(item);
    }, 200);
    // Of 220 ms, 30 are gone.
    expect(underSharedClock([0, 1, 2], 1000, work, 220)).toEqual(["0", "1"]);
  });

  it("throws what is no failure of an item, and leaves no clock behind", () => {
    const bug = new TypeError("bug");
    expect(() =>
      underSharedClock([0], 1000, () => {
        throw bug;
      }),
    ).toThrow(bug);
    expect(taken(() => expect(() => withinTime(20, never)).toThrow(TimeUp))).toBeLessThan(5000);
  });
});
