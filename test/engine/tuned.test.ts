/** A model on measured kernels: the same promises under every table. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { packBatches } from "../../engine/batch.ts";
import { createEngine, type Engine, type LoadedModel, loadBlocks } from "../../engine/model.ts";
import { type ModelFiles, openModelFiles } from "../../engine/model-files.ts";
import { planRun } from "../../engine/plan.ts";
import { platformOf } from "../../engine/platform.ts";
import { createRunner } from "../../engine/runner.ts";
import { kernelsRecord, plannedShapes, type TileTable, tileKey, tileText } from "../../engine/tiles.ts";
import { tuned } from "../../engine/tuned.ts";
import { readTuning, writeTuning } from "../../engine/tuner-cache.ts";
import { planWeights } from "../../engine/weight-plan.ts";
import { type MatmulShape, type MatmulTile, matmulChoices } from "../../kernels/matmul.ts";
import { DEMO_MODEL, type Folder, temporaryFolder } from "../support/cli.ts";
import { firstBitDifference, parityFaults } from "../support/compare.ts";
import { goldenModel, readGolden } from "../support/golden.ts";
import { allStatesOf, lastStates, pooledStatesOf, randomGroups } from "../support/states.ts";

const engine = await createEngine();
afterAll(() => engine[Symbol.dispose]());

let folder: Folder;
let demo: ModelFiles;
beforeAll(async () => {
  folder = await temporaryFolder();
  demo = await openModelFiles(DEMO_MODEL);
});
afterAll(async () => {
  await demo[Symbol.asyncDispose]();
  await folder[Symbol.asyncDispose]();
});

/** The shapes of a model's blocks. */
async function shapesOf({ checkpoint, spec }: ModelFiles, depth: number) {
  return plannedShapes(await planWeights(checkpoint, spec, depth, platformOf(engine))).map(({ shape }) => shape);
}

/** An engine of the same device whose table has, of each shape, the variant that `pick` takes. */
async function picking(
  files: ModelFiles,
  depth: number,
  pick: (choices: readonly MatmulTile[]) => MatmulTile | undefined,
): Promise<Engine & { readonly tiles: TileTable }> {
  const entries = (await shapesOf(files, depth)).flatMap((shape) => {
    const tile = pick(matmulChoices(engine.target, shape));
    return tile === undefined ? [] : [[tileKey(shape), tile] as const];
  });
  return { ...engine, tiles: new Map(entries) };
}

/** Of sequences alone against the same ones packed, where a bit differs. */
async function companyDifferences(model: LoadedModel, depth: number): Promise<string[]> {
  const groups = randomGroups(3, 5, model.spec.config.vocab);
  const together = await lastStates(model, groups, [depth]);
  using runner = await createRunner(model, { layers: [depth], output: "pooled", batchTokens: 512 });
  const alone = groups.flatMap(({ sequences }, group) =>
    sequences.flatMap((ids, index) =>
      packBatches([{ sequences: [ids] }], { budget: 512 }).map((batch) => ({
        ...batch,
        sequences: batch.sequences.map((sequence) => ({ ...sequence, group, index })),
      })),
    ),
  );
  const expected = await pooledStatesOf(runner, alone);
  expect(expected.size).toBe(together.size);
  return [...expected].flatMap(([name, states]) => {
    const difference = firstBitDifference(together.get(name)!, states);
    return difference === undefined ? [] : [`${name} ${difference}`];
  });
}

describe("force, then auto", () => {
  it("measures the demo model's shapes, keeps them, and finds them again", async () => {
    const file = join(folder.path, "tuning.json");
    const shapes = await shapesOf(demo, 1);
    // Few, but with textures and without: with the time that all of them take, the test would be one of the machine.
    const choices = (shape: MatmulShape) => {
      const [standard, ...others] = matmulChoices(engine.target, shape);
      return [standard, ...others.filter(({ tileRows, subgroup }) => tileRows === 4 && subgroup > 0)];
    };
    const forced = await tuned(engine, demo, 1, { mode: "force", file, budgetMs: 60_000, choices });
    expect([forced.shapes, forced.measured, forced.tuning!.wrong]).toEqual([shapes.length, shapes.length, []]);
    const kept = await readTuning(engine, file);
    expect(kept).toEqual(forced.tuning!.tiles);
    for (const [key, tile] of kept) {
      const shape = shapes.find((each) => tileKey(each) === key)!;
      expect(matmulChoices(engine.target, shape).map(tileText)).toContain(tileText(tile));
    }
    const again = await tuned(engine, demo, 1, { mode: "auto", file });
    expect([again.engine.tiles, again.tuning, again.kernels]).toEqual([forced.engine.tiles, null, forced.kernels]);
    using model = await loadBlocks(forced.engine, demo.checkpoint, demo.spec, { depth: 1 });
    expect(await companyDifferences(model, 1)).toEqual([]);
  });

  it("auto takes what the file has, off nothing, and neither measures", async () => {
    const file = join(folder.path, "one.json");
    const [shape] = await shapesOf(demo, 2);
    const tile = matmulChoices(engine.target, shape).at(-1)!;
    await writeTuning(engine, new Map([[tileKey(shape), tile]]), file);
    const before = await readFile(file);
    await using other = await openModelFiles(goldenModel("llama").directory);
    const auto = await tuned(engine, demo, 2, { file });
    const off = await tuned(engine, demo, 2, { file, mode: "off" });
    const unknown = await tuned(engine, other, 2, { file });
    expect([auto, off, unknown].map(({ measured, tuning }) => [measured, tuning])).toEqual([
      [1, null],
      [0, null],
      [0, null],
    ]);
    expect(off.kernels.variants[`matmul ${tileKey(shape)}`]).not.toBe(tileText(tile));
    expect(await readFile(file)).toEqual(before);
  });

  it("goes on where the file cannot be written, and says so", async () => {
    await writeFile(join(folder.path, "file"), "");
    const notes: string[] = [];
    await using files = await openModelFiles(goldenModel("gpt2").directory);
    const { measured, shapes } = await tuned(engine, files, 1, {
      ...{ mode: "force", file: join(folder.path, "file", "tuning.json") },
      choices: (shape) => matmulChoices(engine.target, shape).slice(0, 1),
      onNote: (text) => notes.push(text),
    });
    expect([measured, shapes > 0]).toEqual([shapes, true]);
    expect(notes).toEqual([expect.stringContaining("serves this run only")]);
  });
});

describe("under every kind of variant", async () => {
  const golden = goldenModel("llama");
  await using files = await openModelFiles(golden.directory);
  const { checkpoint, spec } = files;
  const depth = spec.blocks.length;
  const shapes = await shapesOf(files, depth);
  const { subgroupSize } = engine.target;
  const kinds = [
    ...[true, false].flatMap((textures) =>
      [...new Set([subgroupSize, 0])].flatMap((subgroup) =>
        [0, -1].map((at) => ({ textures, subgroup, at, staged: false })),
      ),
    ),
    { textures: false, subgroup: 0, at: 0, staged: true },
  ];

  it.each(kinds)(
    "textures $textures, subgroup $subgroup, staged $staged, tile $at of those: parity, plan, bits",
    async (kind) => {
      await using own = await openModelFiles(golden.directory);
      const on = await picking(own, depth, (choices) =>
        choices
          .filter(({ staged = false }) => staged === kind.staged)
          .filter(({ textures, subgroup }) => textures === kind.textures && subgroup === kind.subgroup)
          .sort((a, b) => a.tileRows * a.tileCols - b.tileRows * b.tileCols)
          .at(kind.at),
      );
      expect(on.tiles.size).toBe(shapes.length);
      const layers = Array.from({ length: depth + 1 }, (_, k) => k);
      const run = { layers, output: "all", batchTokens: 512 } as const;
      const plan = await planRun(own.checkpoint, own.spec, run, platformOf(on));
      const live = engine.device.liveBytes;
      using model = await loadBlocks(on, own.checkpoint, own.spec, { depth });
      using runner = await createRunner(model, run);
      expect(engine.device.liveBytes - live).toBe(plan.bytes);
      const sequences = await readGolden(golden.golden);
      const batches = packBatches(
        sequences.map(({ ids }) => ({ sequences: [ids] })),
        runner.packing,
      );
      const states = await allStatesOf(runner, batches);
      const d = own.spec.config.hiddenSize;
      const faults = sequences.flatMap((sequence, s) => {
        const all = states.get(`${s}/0`)!;
        const size = sequence.ids.length * d;
        return sequence.layers.flatMap((want, k) =>
          parityFaults(all.subarray(k * size, (k + 1) * size), want, d, `layer ${k}, sequence ${s}`),
        );
      });
      expect(faults).toEqual([]);
      expect(await companyDifferences(model, depth)).toEqual([]);
    },
  );

  it("records which they are: another table, another hash", async () => {
    const records = await Promise.all(
      [0, 1, 2, 0].map(async (i) => {
        const on = await picking(files, depth, (choices) => choices[i % choices.length]);
        return kernelsRecord(on.target, await planWeights(checkpoint, spec, depth, platformOf(on)));
      }),
    );
    expect(new Set(records.map(({ id }) => id)).size).toBe(3);
    expect(records[3]).toEqual(records[0]);
    expect(Object.keys(records[0].variants)).toEqual(
      ["attention", "norm", ...shapes.map((shape) => `matmul ${tileKey(shape)}`)].sort(),
    );
  });
});

it("createEngine refuses a table that its adapter does not run", async () => {
  const [shape] = await shapesOf(demo, 1);
  const tile = { ...matmulChoices(engine.target, shape)[0], lanes: 24 };
  for (const tiles of [new Map([[tileKey(shape), tile]]), new Map([["nonsense", tile]])])
    await expect(createEngine({ tiles })).rejects.toMatchObject({ code: "kernel/tiles" });
});
