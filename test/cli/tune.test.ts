/** `--tune` and `bench tune` as processes: what was measured is kept, said, recorded, and not mixed with anything else. */
import { cp, readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { createEngine } from "../../engine/model.ts";
import { openModelFiles } from "../../engine/model-files.ts";
import { platformOf } from "../../engine/platform.ts";
import { plannedShapes, tileKey, tileText } from "../../engine/tiles.ts";
import { writeTuning } from "../../engine/tuner-cache.ts";
import { planWeights } from "../../engine/weight-plan.ts";
import { matmulChoices, matmulTile } from "../../kernels/matmul.ts";
import {
  DEMO_MODEL,
  errorCodes,
  exampleLines,
  type Folder,
  jsonLines,
  lastJsonLine,
  stratum,
  temporaryFolder,
} from "../support/cli.ts";

const engine = await createEngine();
afterAll(() => engine[Symbol.dispose]());

const before = process.env["XDG_CACHE_HOME"];
let folder: Folder;
let lists: string;
beforeAll(async () => {
  folder = await temporaryFolder();
  // The unpacked adapter is no part of this test.
  process.env["XDG_CACHE_HOME"] = join(folder.path, "cache");
  lists = await folder.write("lists.jsonl", exampleLines.slice(0, 6).join("\n"));
});
afterAll(async () => {
  if (before === undefined) delete process.env["XDG_CACHE_HOME"];
  else process.env["XDG_CACHE_HOME"] = before;
  await folder[Symbol.asyncDispose]();
});

const at = (name: string) => join(folder.path, name);
const file = () => at("cache/stratum/tuning.json");

/** Puts the demo model's shapes into the file, each with a variant that is not the default. */
async function keepOthers(): Promise<string[]> {
  await using files = await openModelFiles(DEMO_MODEL);
  const plan = await planWeights(files.checkpoint, files.spec, 1, platformOf(engine));
  const entries = plannedShapes(plan).map(({ shape }) => {
    const standard = tileText(matmulTile(engine.target, shape));
    const other = matmulChoices(engine.target, shape).find(
      (tile) => tileText(tile) !== standard && !tile.textures && tile.subgroup === 0,
    )!;
    return [tileKey(shape), other] as const;
  });
  await writeTuning(engine, new Map(entries), file());
  return entries.map(([key, tile]) => `matmul ${key}: ${tileText(tile)}`);
}

it("bench tune says what it timed and chose, and keeps it", async () => {
  const run = await stratum(["bench", "tune", "--layer", "1", "--max-seconds", "2", "--json"]);
  expect([run.code, errorCodes(run.stderr)]).toEqual([0, []]);
  const [found] = jsonLines(run.stdout) as unknown as [
    {
      rows: { name: string; variant: string; median_ms: number; runs: number }[];
      chosen: Record<string, { variant: string | null }>;
      kernels: { id: string; variants: Record<string, string> };
      file: string;
    },
  ];
  expect(found.file).toBe(file());
  expect(found.rows.length).toBeGreaterThanOrEqual(1);
  for (const row of found.rows) expect(row.median_ms).toBeGreaterThan(0);
  for (const [key, { variant }] of Object.entries(found.chosen))
    if (variant !== null) expect(found.kernels.variants[`matmul ${key}`]).toBe(variant);
  expect(run.stderr).toContain("kernels tuned in ");
  const kept = JSON.parse(await readFile(file(), "utf8"));
  expect(kept.entries).toHaveLength(1);
});

it("rank runs on what is kept, and on the defaults with --tune off; the rankings agree", async () => {
  const others = await keepOthers();
  const ranked = async (...flags: readonly string[]) => {
    const run = await stratum(["rank", lists, "--layer", "1", "--json", "-v", ...flags]);
    expect([run.code, errorCodes(run.stderr)]).toEqual([0, []]);
    const scores = jsonLines<{ results: { index: number; relevance_score: number }[] }>(run.stdout).flatMap(
      ({ results }) => [...results].sort((a, b) => a.index - b.index).map((each) => each.relevance_score),
    );
    return { stderr: run.stderr, scores, kernels: lastJsonLine(run.stderr)["kernels"] };
  };
  const [tuned, off] = [await ranked(), await ranked("--tune", "off")];
  expect(tuned.stderr).toContain("kernels tuned (cached)");
  for (const line of others) expect(tuned.stderr).toContain(line);
  expect(off.stderr).toContain("kernels default");
  expect(tuned.kernels).not.toBe(off.kernels);
  expect(tuned.scores.length).toBeGreaterThan(6);
  for (const [i, score] of tuned.scores.entries()) expect(score).toBeCloseTo(off.scores[i], 4);
});

it("train records its kernels, keeps their features apart, and does not go on with others", async () => {
  await keepOthers();
  const train = (out: string, ...flags: readonly string[]) =>
    stratum([
      ...["train", lists, "--layer", "1", "-o", at(out), "--preset", "few-lists", "--no-validation", "--steps", "2"],
      ...["--width", "8", "--heads", "2", "--json", ...flags],
    ]);
  const first = await train("scorer");
  expect([first.code, errorCodes(first.stderr)]).toEqual([0, []]);
  const { kernels } = JSON.parse(await folder.read("scorer/scorer.json")).training;
  expect(kernels).toMatchObject({ id: expect.stringMatching(/^[0-9a-f]{16}$/), variants: expect.any(Object) });
  expect(lastJsonLine(first.stdout)["kernels"]).toBe(kernels.id);

  await cp(at("scorer"), at("copy"), { recursive: true });
  const same = await train("copy", "--resume");
  expect([same.code, errorCodes(same.stderr)]).toEqual([0, []]);
  expect(same.stderr).toContain("from the cache");

  const other = await train("copy", "--resume", "--tune", "off");
  expect([other.code, errorCodes(other.stderr)]).toEqual([1, ["train/other-run"]]);
  expect(other.stderr).toContain(`kernels was "${kernels.id}"`);
  expect(other.stderr).not.toContain("from the cache");

  // A scorer of other kernels' states still ranks: they agree within rounding.
  const ranked = await stratum(["rank", lists, "--scorer", at("scorer"), "--tune", "off", "-v", "-o", at("r.jsonl")]);
  expect([ranked.code, errorCodes(ranked.stderr)]).toEqual([0, []]);
  expect(ranked.stderr).toContain("the scorer was trained on states of the kernels");
});

it("a file that is not ours is told of, and the defaults run", async () => {
  await folder.write("cache/stratum/tuning.json", '{"theirs": true}');
  const run = await stratum(["rank", lists, "--layer", "1", "-v", "-o", at("r.jsonl")]);
  expect([run.code, errorCodes(run.stderr)]).toEqual([0, []]);
  expect(run.stderr).toContain("are not used: it is not a file of ours");
  expect(run.stderr).toContain("kernels default");
});
