/** A GPU that has stopped is told from one that is slow. */
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { PATIENCE_SECONDS, patienceOf, Watchdog } from "../../engine/watchdog.ts";

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

const never = () => new Promise<never>(() => undefined);
const stalled = expect.objectContaining({ code: "device/stalled" });

/** How a wait stands. */
function watched(waiting: Promise<unknown>): { readonly state: () => unknown } {
  let state: unknown = "waiting";
  waiting.then(
    (value) => {
      state = value;
    },
    (thrown: unknown) => {
      state = thrown;
    },
  );
  return { state: () => state };
}

describe("the watchdog", () => {
  it.each(["software", "hardware"] as const)(
    "ends a wait for nothing after its patience, %s, and no sooner",
    async (kind) => {
      const { state } = watched(new Watchdog({ software: kind === "software" }).wait(never()));
      await vi.advanceTimersByTimeAsync(1000 * PATIENCE_SECONDS[kind] - 500);
      expect(state()).toBe("waiting");
      await vi.advanceTimersByTimeAsync(1000);
      expect(state()).toEqual(stalled);
    },
  );

  it.each([
    [true, 1e11, 1000],
    [false, 1e11, 10],
  ])("gives work its time (software %s, %d operations: %d s more)", async (software, flops, seconds) => {
    const watchdog = new Watchdog({ software, seconds: 10 });
    watchdog.submitted(flops, never);
    const { state } = watched(watchdog.wait(never()));
    await vi.advanceTimersByTimeAsync(1000 * (9 + seconds));
    expect(state()).toBe("waiting");
    await vi.advanceTimersByTimeAsync(2000);
    expect(state()).toEqual(stalled);
  });

  it("never ends work that goes on, however long all of it takes", async () => {
    const watchdog = new Watchdog({ software: false, seconds: 10 });
    const ends: (() => void)[] = [];
    const part = () =>
      new Promise<void>((resolve) => {
        ends.push(resolve);
      });
    for (let i = 0; i < 20; i++) watchdog.submitted(1e11, part);
    const { state } = watched(watchdog.wait(part()));
    expect(ends).toHaveLength(21);
    for (const [i, end] of ends.entries()) {
      expect(state()).toBe("waiting");
      // A part may take 20 s, and the last, which holds nothing, 10; all of them take six minutes.
      await vi.advanceTimersByTimeAsync(i < 20 ? 18_000 : 8_000);
      end();
    }
    await vi.advanceTimersByTimeAsync(0);
    expect(state()).toBeUndefined();
    expect(vi.getTimerCount()).toBe(0);
  });

  it("looks at the end of small submissions only where they add up", () => {
    const watchdog = new Watchdog({ software: false });
    const done = vi.fn(never);
    for (let i = 0; i < 100; i++) watchdog.submitted(1e9, done);
    expect(done).toHaveBeenCalledTimes(2);
  });

  it("is deaf to the clocks: neither a jump of the date nor one of the host's time counts", async () => {
    const { state } = watched(new Watchdog({ software: false, seconds: 10 }).wait(never()));
    await vi.advanceTimersByTimeAsync(5000);
    vi.setSystemTime(Date.now() + 1e10);
    vi.spyOn(performance, "now").mockReturnValue(1e12);
    await vi.advanceTimersByTimeAsync(4000);
    expect(state()).toBe("waiting");
    vi.restoreAllMocks();
  });

  it("passes on what a wait gives and what it throws, and watches no more", async () => {
    const watchdog = new Watchdog({ software: false });
    expect(await watchdog.wait(Promise.resolve(7))).toBe(7);
    await expect(watchdog.wait(Promise.reject(new Error("lost")))).rejects.toThrow("lost");
    expect(vi.getTimerCount()).toBe(0);
  });

  it("takes its patience from the environment, in seconds above 0", () => {
    expect([patienceOf(undefined), patienceOf(""), patienceOf("0.5")]).toEqual([undefined, undefined, 0.5]);
    for (const text of ["0", "-1", "soon", "Infinity"])
      expect(() => patienceOf(text)).toThrow(expect.objectContaining({ code: "usage/gpu-timeout" }));
  });
});
