/**
 * Two workers of a pool beside two independent `rank` on half the data each, in turn, on this machine (`npm run build`
 * first; needs redis-server):
 *
 *     npx tsx test/large/measure-pool.ts [LISTS] [ROUNDS]
 *
 * Times are from the start of the processes to the end of the last, model and compilation included. Prints a line of JSON:
 * medians in seconds, and how fast the pool is beside the processes.
 */
import { execFile } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { MAIN, temporaryFolder } from "../support/cli.ts";
import { startRedis } from "../support/redis.ts";
import { writeTinyLists } from "../support/tiny-lists.ts";
import { median } from "../support/trend.ts";

const [lists = "4000", rounds = "3"] = process.argv.slice(2);
await using folder = await temporaryFolder();
await using redis = await startRedis();
const stratum = async (...args: string[]) => {
  await promisify(execFile)(process.execPath, [MAIN, ...args], { maxBuffer: 2 ** 26 }).catch(
    (cause: { code: number }) => {
      // Some lines are no lists.
      if (cause.code !== 1) throw cause;
    },
  );
};
const input = join(folder.path, "lists.jsonl");
await writeTinyLists(input, Number(lists));
const lines = (await readFile(input, "utf8")).trimEnd().split("\n");
const halves = [join(folder.path, "a.jsonl"), join(folder.path, "b.jsonl")];
await writeFile(halves[0] ?? "", lines.filter((_, i) => i % 2 === 0).join("\n"));
await writeFile(halves[1] ?? "", lines.filter((_, i) => i % 2 === 1).join("\n"));
const layer = ["--layer", "4"];
const timed = async (work: () => Promise<unknown>) => {
  const begin = performance.now();
  await work();
  return (performance.now() - begin) / 1000;
};
const seconds: { processes: number[]; pool: number[] } = { processes: [], pool: [] };
for (let round = 0; round < Number(rounds); round++) {
  seconds.processes.push(
    await timed(() =>
      Promise.all(
        halves.map((half, i) => stratum("rank", half, ...layer, "-o", join(folder.path, `${round}-${i}.jsonl`))),
      ),
    ),
  );
  const queue = ["--queue", redis.url, "--name", `round-${round}`];
  await stratum("submit", input, ...layer, ...queue);
  seconds.pool.push(
    await timed(() => Promise.all([0, 1].map(() => stratum("worker", ...queue, "--drain", "--quiet")))),
  );
}
const [processes, pool] = [median(seconds.processes), median(seconds.pool)];
process.stdout.write(
  `${JSON.stringify({ lists: Number(lists), seconds, processes, pool, pool_speed: processes / pool })}\n`,
);
