import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { expect, it } from "vitest";
import { isGone } from "../../weights/process.ts";

it("a process is there until it has ended", async () => {
  const child = spawn("sleep", ["60"]);
  expect([isGone(process.pid), isGone(child.pid!)]).toEqual([false, false]);
  child.kill("SIGKILL");
  await once(child, "exit");
  expect(isGone(child.pid!)).toBe(true);
});

// Elsewhere the system does not tell: such a process is there until its parent asks.
it.runIf(process.platform === "linux")("one that has ended is gone though its parent never asks how", async () => {
  // `exec` leaves a parent that knows of no child.
  const parent = spawn("sh", ["-c", "sleep 0.2 & echo $!; exec sleep 60"]);
  try {
    const [line] = (await once(createInterface(parent.stdout), "line")) as [string];
    const pid = Number(line);
    expect(isGone(pid)).toBe(false);
    await expect.poll(() => isGone(pid), { timeout: 10_000 }).toBe(true);
    // The number is still taken.
    expect(() => process.kill(pid, 0)).not.toThrow();
  } finally {
    parent.kill("SIGKILL");
  }
});
