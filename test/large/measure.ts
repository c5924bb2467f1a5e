/**
 * What a large checkpoint costs, each in a process of its own: the memory of an idle adapter, of loading to all layers,
 * and of a rank of 4 candidates of 64 tokens behind a prompt of 64 to layer 2:
 *
 *     npx tsx test/large/make-llama-shape.ts DIR && npx tsx test/large/measure.ts DIR
 *
 * Prints one line of JSON. `host_mib`: the process's peak resident size less what is live on the GPU (a software adapter
 * keeps that in the same memory) and less an idle adapter's. `plan_share`: the printed plan over the growth of the
 * resident size from before the load.
 */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { packBatches } from "../../engine/batch.ts";
import { createEngine, loadBlocks } from "../../engine/model.ts";
import { openModelFiles } from "../../engine/model-files.ts";
import { createRunner } from "../../engine/runner.ts";

const MIB = 2 ** 20;
const [mode, directory] = process.argv.length > 3 ? process.argv.slice(2) : ["all", process.argv[2]];

/** Resident bytes: the peak, and now. */
function resident(): { peak: number; now: number } {
  const status = readFileSync("/proc/self/status", "utf8");
  const kib = (name: string) => Number(new RegExp(`${name}:\\s+(\\d+)`).exec(status)?.[1] ?? 0);
  return { peak: 1024 * kib("VmHWM"), now: 1024 * kib("VmRSS") };
}

async function measure(blocks: number | null, ranks: boolean): Promise<void> {
  using engine = await createEngine();
  const before = resident().now;
  if (blocks === null) {
    process.stdout.write(JSON.stringify({ idle: resident().now }));
    return;
  }
  const begin = performance.now();
  await using files = await openModelFiles(directory ?? "");
  const depth = blocks === 0 ? files.spec.config.layers : blocks;
  using model = await loadBlocks(engine, files.checkpoint, files.spec, { depth });
  const loaded = performance.now();
  using runner = await createRunner(model, { layers: [depth], output: "scores" });
  if (ranks) {
    const ids = (from: number, count: number) => Array.from({ length: count }, (_, i) => (from + 7 * i) % 1000);
    const prompt = ids(1, 64);
    const sequences = [0, 1, 2, 3].map((c) => Int32Array.from([...prompt, ...ids(100 + 31 * c, 64)]));
    for (const batch of packBatches(
      [{ sequences: [Int32Array.from(prompt), ...sequences], anchored: true }],
      runner.packing,
    ))
      await runner.cosines(batch, [
        [0, 1],
        [0, 2],
        [0, 3],
        [0, 4],
      ]);
  }
  const { peak, now } = resident();
  process.stdout.write(
    JSON.stringify({
      depth,
      load_s: (loaded - begin) / 1000,
      rank_s: ranks ? (performance.now() - loaded) / 1000 : null,
      peak,
      growth: now - before,
      live: engine.device.liveBytes,
      plan: runner.bytes,
    }),
  );
}

if (mode === "all") {
  const run = (what: string): Record<string, number> =>
    JSON.parse(
      execFileSync(process.execPath, [...process.execArgv, fileURLToPath(import.meta.url), what, directory ?? ""], {
        stdio: ["ignore", "pipe", "ignore"],
      }).toString(),
    ) as Record<string, number>;
  const { idle } = run("idle");
  const report = ["load", "rank"].map((what) => {
    const { depth, load_s, rank_s, peak, growth, live, plan } = run(what);
    return {
      what,
      depth,
      load_s,
      rank_s,
      live_mib: live / MIB,
      host_mib: (peak - live - idle) / MIB,
      plan_share: plan / growth,
    };
  });
  console.log(JSON.stringify({ idle_mib: idle / MIB, report }));
} else {
  await measure(mode === "idle" ? null : mode === "load" ? 0 : 2, mode === "rank");
}
