/** Waiting leaves the cores to whoever computes, and everything else of the event loop goes on. */
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { napping } from "../../engine/nap.ts";

/** The event loop turns as fast as it can, as Dawn makes it, until `ending` has ended. @returns turns and milliseconds of a core */
async function spun(ending: Promise<unknown>): Promise<{ readonly turns: number; readonly cpu: number }> {
  let turns = 0;
  let over = false;
  const turn = () => {
    turns++;
    if (!over) setImmediate(turn);
  };
  const begin = process.cpuUsage();
  setImmediate(turn);
  await ending;
  over = true;
  const { user, system } = process.cpuUsage(begin);
  return { turns, cpu: (user + system) / 1000 };
}

it("takes a small part of a core, and the loop still turns", async () => {
  const idle = await spun(napping(sleep(400)));
  const busy = await spun(sleep(400));
  expect(idle.cpu).toBeLessThan(0.5 * busy.cpu);
  expect(idle.turns).toBeLessThan(0.5 * busy.turns);
  // A turn sleeps for a millisecond at most; the machine may have other things to do.
  expect(idle.turns).toBeGreaterThan(20);
});

it("many short waits, one after another and at once, sleep no longer than one", async () => {
  for (let i = 0; i < 200; i++) await Promise.all([napping(Promise.resolve(i)), napping(Promise.resolve(i))]);
  const { turns } = await spun(napping(sleep(400)));
  expect(turns).toBeGreaterThan(20);
});

it("ends as what is waited for ends", async () => {
  await expect(napping(sleep(5, "value"))).resolves.toBe("value");
  await expect(napping(Promise.reject(new Error("lost")))).rejects.toThrow("lost");
  // Nothing sleeps any more.
  const begin = performance.now();
  for (let i = 0; i < 100; i++) await new Promise((resolve) => setImmediate(resolve));
  expect(performance.now() - begin).toBeLessThan(100);
});
