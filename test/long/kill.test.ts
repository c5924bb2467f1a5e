/** `rank` killed again and again at random times: the output is that of a run that nobody disturbed. Takes minutes. */
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import { type Folder, lastJsonLine, startStratum, stratum, temporaryFolder, until } from "../support/cli.ts";
import { writeTinyLists } from "../support/tiny-lists.ts";

const LISTS = 2000;
const KILLS = 20;
const LONG = { hangsMs: 600_000 };

let folder: Folder;
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());

it(`${KILLS} random kills during ${LISTS} lists end in the bytes of an undisturbed run`, {
  timeout: 3_600_000,
}, async () => {
  const input = join(folder.path, "lists.jsonl");
  await writeTinyLists(input, LISTS);
  const [out, whole] = [join(folder.path, "out.jsonl"), join(folder.path, "whole.jsonl")];
  // Small batches: more of them to be killed in.
  const command = (output: string) => ["rank", input, "--layer", "2", "--batch-tokens", "512", "--json", "-o", output];
  const undisturbed = await stratum(command(whole), LONG);
  expect(undisturbed.code).toBe(1);
  const { seconds } = lastJsonLine(undisturbed.stderr) as { seconds: number };
  const startUp = undisturbed.seconds - seconds;

  const random = seededRandom(Date.now() % 2 ** 31);
  const lines = () =>
    existsSync(`${out}.partial`) ? readFileSync(`${out}.partial`, "utf8").split("\n").length - 1 : 0;
  let kills = 0;
  let largest = 0;
  while (kills < KILLS) {
    const before = lines();
    const run = startStratum(command(out), LONG);
    let ended = false;
    void run.ended.then(() => {
      ended = true;
    });
    // Anywhere from the start of the process to somewhere in its share of the lists.
    const wait = 1000 * random() * (startUp + (1.5 * seconds) / KILLS);
    const begin = performance.now();
    await until(() => (performance.now() - begin > wait || ended ? true : undefined), "the time to kill");
    expect(ended, "the run ended before its kills: give it more lists").toBe(false);
    run.child.kill("SIGKILL");
    await run.ended;
    kills++;
    expect(existsSync(out)).toBe(false);
    // Finished lines are never taken back; a torn one may follow.
    expect(lines()).toBeGreaterThanOrEqual(before);
    if (existsSync(`${out}.journal`)) largest = Math.max(largest, statSync(`${out}.journal`).size);
  }
  const left = lines();
  const last = await stratum(command(out), LONG);
  expect(last.code).toBe(1);
  expect(lastJsonLine(last.stderr)).toMatchObject({ lists: LISTS, resumed: left, failed: 4 });
  expect(readFileSync(out).equals(readFileSync(whole))).toBe(true);
  expect(largest).toBeLessThan(2 ** 18);
  process.stdout.write(`${kills} kills, ${left} of ${LISTS} lists by then, journal of at most ${largest} bytes\n`);
});
