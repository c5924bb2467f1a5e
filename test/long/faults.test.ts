/** Faults of the GPU in runs that are killed as well: what is written in the end is what an undisturbed run writes. Takes minutes. */
import { readdirSync, readFileSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import { errorCodes, type Folder, startStratum, stratum, temporaryFolder, until } from "../support/cli.ts";
import { writeTinyLists } from "../support/tiny-lists.ts";

const KILLS = 8;
const LONG = { hangsMs: 600_000 };

let folder: Folder;
let input: string;
beforeAll(async () => {
  folder = await temporaryFolder();
  input = join(folder.path, "lists.jsonl");
  await writeTinyLists(input, 1200);
});
afterAll(() => folder[Symbol.asyncDispose]());

it.each([
  ["rank", ["--layer", "2"]],
  ["extract", ["--layers", "1,2", "--part-size", "400000"]],
])(
  `${KILLS} kills of %s, a lost device and two shortages of memory in each run`,
  {
    timeout: 3_600_000,
  },
  async (command, flags) => {
    const seed = Date.now() % 2 ** 31;
    const random = seededRandom(seed);
    const args = (place: string) => {
      // Small batches: more of them to be disturbed in.
      return [command, input, ...flags, "--batch-tokens", "512", "-o", join(folder.path, command, place, "out")];
    };
    for (const place of ["whole", "disturbed"]) await mkdir(join(folder.path, command, place), { recursive: true });
    const undisturbed = await stratum(args("whole"), LONG);
    expect(undisturbed.code).toBe(1);

    const among = (most: number) => 1 + Math.floor(most * random());
    const faults = () =>
      `device-lost@${among(30)},submit-out-of-memory@${among(10)},submit-out-of-memory@${10 + among(10)}`;
    const below = (planned: string) => ["env", `STRATUM_FAULTS=${planned}`];
    let met = 0;
    for (let kills = 0; kills < KILLS; kills++) {
      const run = startStratum(args("disturbed"), { ...LONG, below: below(faults()) });
      let ended = false;
      void run.ended.then(() => {
        ended = true;
      });
      // From the start of the process to somewhere in its share of the lists.
      const wait = 1000 * random() * (1 + (1.5 * undisturbed.seconds) / KILLS);
      const begin = performance.now();
      await until(() => (performance.now() - begin > wait || ended ? true : undefined), "the time to kill");
      expect(ended, `the run ended before its kills (seed ${seed}): ${run.stderr()}`).toBe(false);
      run.child.kill("SIGKILL");
      met += (await run.ended).stderr.match(/^warning: the GPU (?:device was lost|is out of memory)/gm)?.length ?? 0;
    }
    expect(met, `no run met a fault (seed ${seed})`).toBeGreaterThan(0);
    // Early ones: whatever is left, the last run meets them.
    const last = await stratum(args("disturbed"), {
      ...LONG,
      below: below("device-lost@3,submit-out-of-memory@1"),
    });
    expect([last.code, errorCodes(last.stderr)]).toEqual([1, expect.arrayContaining(["list/bad-json"])]);
    expect(last.stderr).toMatch(/^resume {2}after/m);
    const files = readdirSync(join(folder.path, command, "whole"));
    expect(readdirSync(join(folder.path, command, "disturbed"))).toEqual(files);
    for (const file of files) {
      const [a, b] = ["whole", "disturbed"].map((place) => readFileSync(join(folder.path, command, place, file)));
      expect([file, seed, a!.equals(b!)]).toEqual([file, seed, true]);
    }
    process.stdout.write(`${command}: ${KILLS} kills, ${met} faults of the GPU before the last run (seed ${seed})\n`);
  },
);
