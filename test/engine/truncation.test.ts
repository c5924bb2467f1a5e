/** Only what the target layer needs is read from disk and held on the GPU (DESIGN.md, promises 1 and 5). */
import { stat, truncate } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, afterEach, describe, expect, it } from "vitest";
import { packBatches } from "../../engine/batch.ts";
import { blockTensors, tensorsTo } from "../../engine/decoder.ts";
import { createEngine, loadBlocks } from "../../engine/model.ts";
import { openModelFiles } from "../../engine/model-files.ts";
import { planRun, planWorkspace, type RunOutput } from "../../engine/plan.ts";
import { platformOf } from "../../engine/platform.ts";
import { createRunner } from "../../engine/runner.ts";
import { blockBuffers, textureWidths } from "../../engine/weight-plan.ts";
import { GOLDEN_MODELS, goldenModel } from "../support/golden.ts";
import { limitedEngine } from "../support/states.ts";
import { writeTinyModel } from "../support/tiny-model.ts";

const engine = await createEngine();
const { device } = engine;
afterAll(() => engine[Symbol.dispose]());
// Nothing of one test lives on in the next.
afterEach(() => expect(device.liveBuffers.map(({ label }) => label)).toEqual([]));

const bySize = (buffers: readonly { label: string; size?: number; bytes?: number }[]) =>
  buffers.map(({ label, size, bytes }) => `${label} ${size ?? bytes}`).sort();

describe("what is read", () => {
  it.each([0, 1, 2, 4])("depth %i: the tensors of the blocks below it, whole and once, and no other", async (depth) => {
    await using files = await openModelFiles(goldenModel("llama").directory);
    const { checkpoint, spec } = files;
    using model = await loadBlocks(engine, checkpoint, spec, { depth });
    const expected = new Map<string, number>();
    for (const name of spec.blocks.slice(0, depth).flatMap(blockTensors))
      expected.set(name, (await checkpoint.info(name)).byteLength);
    expect(expected.size).toBe(9 * depth);
    expect(checkpoint.log.tensors).toEqual(expected);
    expect(checkpoint.log.bytes).toBe(model.plan.diskBytes);
  });

  it.each(GOLDEN_MODELS.filter(({ outside }) => !outside))(
    "$name: tensors that hold several matrices, parts of a wrapper, learned positions: what the blocks name, whole and once",
    async ({ directory }) => {
      await using files = await openModelFiles(directory);
      const { checkpoint, spec } = files;
      const depth = spec.blocks.length - 1;
      using model = await loadBlocks(engine, checkpoint, spec, { depth });
      const expected = new Map<string, number>();
      for (const name of tensorsTo(spec, depth))
        if (name !== spec.embedding) expected.set(name, (await checkpoint.info(name)).byteLength);
      expect(checkpoint.log.tensors).toEqual(expected);
      expect(checkpoint.log.bytes).toBe(model.plan.diskBytes);
      expect(bySize(device.liveBuffers)).toEqual(bySize(model.plan.blocks.flatMap(blockBuffers)));
    },
  );

  it("of the embedding, the rows of the ids at hand, each once; no final norm, no head", async () => {
    await using files = await openModelFiles(goldenModel("llama3-rope").directory);
    const { checkpoint, spec } = files;
    expect(checkpoint.has("lm_head.weight") && checkpoint.has("model.norm.weight")).toBe(true);
    using model = await loadBlocks(engine, checkpoint, spec, { depth: spec.blocks.length });
    const before = checkpoint.log.bytes;
    using runner = await createRunner(model, { layers: [3], output: "pooled", batchTokens: 64 });
    const rowBytes = 2 * spec.config.hiddenSize;
    const run = (...ids: number[]) =>
      runner.pooledStates(packBatches([{ sequences: [Int32Array.from(ids)] }], { budget: 64 })[0]);

    await run(5, 250, 5, 7, 250);
    expect(checkpoint.log.tensors.get(spec.embedding)).toBe(3 * rowBytes);
    await run(7, 9, 5);
    expect(checkpoint.log.tensors.get(spec.embedding)).toBe(4 * rowBytes);
    expect(checkpoint.log.bytes - before).toBe(4 * rowBytes);
    for (const name of ["lm_head.weight", "model.norm.weight"]) expect(checkpoint.log.tensors.has(name)).toBe(false);
  });

  it("of a tied checkpoint whose table is the head too, rows of it and no more", async () => {
    await using files = await openModelFiles(goldenModel("demo").directory);
    const { checkpoint, spec } = files;
    expect(spec.config.tiedEmbeddings).toBe(true);
    using model = await loadBlocks(engine, checkpoint, spec, { depth: 1 });
    await model.embedding.rows(Int32Array.of(1, 4000), Uint32Array.of(0, 1));
    expect(checkpoint.log.tensors.get(spec.embedding)).toBe(2 * 2 * spec.config.hiddenSize);
  });

  it("a plan reads headers only", async () => {
    await using files = await openModelFiles(goldenModel("demo").directory);
    const plan = await planRun(files.checkpoint, files.spec, { layers: [2], output: "scores" }, platformOf(engine));
    expect(plan.weights.diskBytes).toBeGreaterThan(1_000_000);
    expect(files.checkpoint.log.bytes).toBe(0);
    expect(device.liveBytes).toBe(0);
  });

  it("an id outside the vocabulary is refused before anything is read of it", async () => {
    await using files = await openModelFiles(goldenModel("llama").directory);
    using model = await loadBlocks(engine, files.checkpoint, files.spec, { depth: 0 });
    for (const id of [-1, 256])
      await expect(model.embedding.rows(Int32Array.of(3, id), Uint32Array.of(0, 1))).rejects.toMatchObject({
        code: "tokenizer/mismatch",
        message: expect.stringContaining(`token id ${id} `),
      });
    expect(files.checkpoint.log.bytes).toBe(0);
  });
});

describe("what is held", () => {
  it.each(["pooled", "all", "scores"] satisfies RunOutput[])(
    "output %s: the plan, buffer by buffer",
    async (output) => {
      await using files = await openModelFiles(goldenModel("mistral-window").directory);
      const { checkpoint, spec } = files;
      const layers = output === "scores" ? [2] : [2, 0];
      const plan = await planRun(checkpoint, spec, { layers, output, batchTokens: 100 }, platformOf(engine));
      const model = await loadBlocks(engine, checkpoint, spec, { depth: 2 });
      expect(bySize(device.liveBuffers)).toEqual(bySize(plan.weights.blocks.flatMap(blockBuffers)));
      expect(device.liveBytes).toBe(model.plan.bytes);

      const runner = await createRunner(model, { layers, output, batchTokens: 100 });
      const planned = [...plan.weights.blocks.flatMap(blockBuffers), ...plan.workspace.values()];
      expect(bySize(device.liveBuffers)).toEqual(bySize(planned));
      expect(bySize(runner.plan)).toEqual(bySize([...plan.workspace.values()]));
      expect([device.liveBytes, runner.bytes]).toEqual([plan.bytes, plan.bytes]);

      const batch = packBatches([{ sequences: [Int32Array.of(1, 2), Int32Array.of(1, 3)] }], { budget: 100 })[0];
      if (output === "scores") await runner.cosines(batch, [[0, 1]]);
      else if (output === "pooled") await runner.pooledStates(batch);
      else await runner.allStates(batch, () => undefined);
      expect(device.liveBytes).toBe(plan.bytes);

      runner[Symbol.dispose]();
      expect(device.liveBytes).toBe(model.plan.bytes);
      model[Symbol.dispose]();
      expect(device.liveBytes).toBe(0);
    },
  );

  it("a grown runner holds the larger plan, and nothing of the smaller one", async () => {
    await using files = await openModelFiles(goldenModel("mistral-window").directory);
    using model = await loadBlocks(engine, files.checkpoint, files.spec, { depth: 1 });
    using runner = await createRunner(model, { layers: [1], output: "pooled" });
    const small = runner.bytes;
    await runner.grow(runner.budget - 1);
    expect(runner.bytes).toBe(small);
    await runner.grow(4000);
    expect(runner.budget).toBe(4000);
    const larger = [
      ...planWorkspace(files.spec, {
        rows: 4000,
        taps: 1,
        output: "pooled",
        textures: textureWidths(model.plan),
      }).values(),
    ];
    expect(bySize(runner.plan)).toEqual(bySize(larger));
    expect(runner.bytes).toBeGreaterThan(small);
    expect(device.liveBytes).toBe(runner.bytes);
    await runner.grow(1e9);
    expect(runner.budget).toBe(runner.maxBudget);
    expect(device.liveBytes).toBe(runner.bytes);
  });

  it("mixed and odd types are planned as they are held", async () => {
    await using tiny = await writeTinyModel({
      dtype: "BF16",
      biases: true,
      hidden: 33,
      ffn: 69,
      dtypeOf: { "gate_proj.weight": "F32" },
    });
    await using files = await openModelFiles(tiny.directory);
    using model = await loadBlocks(engine, files.checkpoint, files.spec, { depth: 3 });
    expect(bySize(device.liveBuffers)).toEqual(bySize(model.plan.blocks.flatMap(blockBuffers)));
    expect(device.liveBytes).toBe(model.plan.bytes);
  });
});

describe("what is left after a failure", () => {
  it("a file that ends in the middle of a block: an error, and nothing alive", async () => {
    await using tiny = await writeTinyModel();
    await using files = await openModelFiles(tiny.directory);
    const weights = join(tiny.directory, "model.safetensors");
    const done: number[] = [];
    await truncate(weights, Math.floor((await stat(weights)).size / 2));
    const loading = loadBlocks(engine, files.checkpoint, files.spec, {
      depth: 3,
      onBlock: (block) => done.push(block),
    });
    await expect(loading).rejects.toMatchObject({ code: "safetensors/file-changed" });
    // It failed midway: a block was held already.
    expect(done).toEqual([1]);
    expect(device.liveBytes).toBe(0);
  });

  it("a callback that throws: nothing alive", async () => {
    await using files = await openModelFiles(goldenModel("llama").directory);
    const onBlock = (done: number) => {
      expect(device.liveBytes).toBeGreaterThan(0);
      if (done === 2) throw new Error("stop");
    };
    await expect(loadBlocks(engine, files.checkpoint, files.spec, { depth: 3, onBlock })).rejects.toThrow("stop");
    expect(device.liveBytes).toBe(0);
  });

  it("a signal between two blocks: its reason, and nothing alive", async () => {
    await using files = await openModelFiles(goldenModel("llama").directory);
    const stop = new AbortController();
    const done: number[] = [];
    const onBlock = (block: number) => {
      done.push(block);
      stop.abort(new Error("stopped"));
    };
    const loading = loadBlocks(engine, files.checkpoint, files.spec, { depth: 3, onBlock, signal: stop.signal });
    await expect(loading).rejects.toThrow("stopped");
    expect([done, device.liveBytes]).toEqual([[1], 0]);
  });

  it("a plan beyond the limits: refused before a byte is read or held", async () => {
    await using tiny = await writeTinyModel();
    await using files = await openModelFiles(tiny.directory);
    const limited = limitedEngine(engine, { maxStorageBufferBindingSize: 100 });
    const loading = loadBlocks(limited, files.checkpoint, files.spec, { depth: 1 });
    await expect(loading).rejects.toMatchObject({
      code: "memory/buffer-limit",
      message: expect.stringMatching(/bytes for '.+'; the adapter binds at most 100/),
    });
    expect([files.checkpoint.log.bytes, limited.device.liveBytes]).toEqual([0, 0]);
  });

  it("a depth that the model does not have", async () => {
    await using files = await openModelFiles(goldenModel("llama").directory);
    for (const depth of [-1, 5, 1.5])
      await expect(loadBlocks(engine, files.checkpoint, files.spec, { depth })).rejects.toMatchObject({
        code: "usage/layer",
        fix: expect.stringContaining("0 to 4"),
      });
  });
});
