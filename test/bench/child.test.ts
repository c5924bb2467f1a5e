/** A peer's process: its answers, and what its failures look like from outside. */
import { afterEach, describe, expect, it } from "vitest";
import { childPeer, type Peer } from "../../bench/child.ts";
import type { Job } from "../../bench/jobs.ts";
import type { SharedAdapter } from "../../bench/protocol.ts";
import { interleave } from "../../bench/rounds.ts";

const JOB: Job = { kind: "matmul", rows: 2, k: 3, n: 4, seed: 5 };
const ADAPTER: SharedAdapter = { name: "none", source: "system", manifest: "/a/driver.json" };
const GENEROUS = 60_000;

const peers: Peer[] = [];
afterEach(() => {
  for (const peer of peers.splice(0)) peer.stop();
});

/** A peer whose module is this text. */
function peerOf(text: string, run = GENEROUS): Peer {
  const peer = childPeer({
    name: "fake",
    module: `data:text/javascript,${encodeURIComponent(text)}`,
    job: JOB,
    adapter: ADAPTER,
    timeouts: { prepare: GENEROUS, run },
  });
  peers.push(peer);
  return peer;
}

const STEADY = `
  let runs = 0;
  export const prepare = async (job, adapter) => ({
    adapter: [job.rows, job.k, job.n, job.seed, adapter.name, process.env.VK_DRIVER_FILES, process.pid].join(" "),
    run: async (full) => ({ ms: ++runs, output: full ? Float32Array.of(1.5, -2) : null }),
  });`;

describe("a peer's process", () => {
  it("gets the job and the driver, keeps its state, and hands over its result", async () => {
    const peer = peerOf(STEADY);
    expect(await peer.prepare()).toMatch(/^2 3 4 5 none \/a\/driver\.json \d+$/);
    expect(await peer.run(true)).toEqual({ ms: 1, output: Float32Array.of(1.5, -2) });
    expect(await peer.run(false)).toEqual({ ms: 2, output: null });
  });

  it("answers what it throws, and lives on", async () => {
    const peer = peerOf(`export const prepare = async () => ({
      adapter: "", run: async (full) => { if (full) throw new Error("no such shader"); return { ms: 1, output: null }; } });`);
    await peer.prepare();
    await expect(peer.run(true)).rejects.toMatchObject({
      code: "device/peer-failed",
      message: expect.stringContaining("no such shader"),
    });
    expect(await peer.run(false)).toEqual({ ms: 1, output: null });
  });

  it("that is not installed says so", async () => {
    await expect(peerOf(`import "no-such-runtime"; export const prepare = 1;`).prepare()).rejects.toMatchObject({
      code: "device/peer-failed",
      message: expect.stringContaining("no-such-runtime"),
    });
  });

  it("that crashes is named with how it ended and its last words", async () => {
    const peer = peerOf(`export const prepare = () => {
      process.stderr.write("driver: out of luck\\n"); process.kill(process.pid, "SIGSEGV"); return new Promise(() => {}); };`);
    await expect(peer.prepare()).rejects.toMatchObject({
      code: "device/peer-ended",
      message: expect.stringMatching(/prepare \(SIGSEGV\).*out of luck/s),
    });
  });

  it("that hangs is ended, even in a loop that answers nothing", async () => {
    const peer = peerOf(
      `export const prepare = async () => ({ adapter: String(process.pid), run: () => { for (;;); } });`,
      500,
    );
    const pid = Number(await peer.prepare());
    await expect(peer.run(false)).rejects.toMatchObject({ code: "device/peer-timeout" });
    await expect.poll(() => alive(pid), { timeout: 10_000 }).toBe(false);
  });

  it("takes no others along in a round", async () => {
    const crashes = peerOf(`export const prepare = async () => ({ adapter: "", run: async () => process.exit(3) });`);
    const [bad, good] = await interleave([crashes, peerOf(STEADY)], {
      rounds: 2,
      slowRounds: 1,
      slowMs: GENEROUS,
      onceMs: GENEROUS,
    });
    expect(bad.error).toContain("exit 3");
    expect(good).toMatchObject({ first: 1, times: [2, 3], error: null });
  });
});

function alive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}
