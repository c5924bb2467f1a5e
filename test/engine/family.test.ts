import { afterAll, describe, expect, it } from "vitest";
import { blockTensors } from "../../engine/decoder.ts";
import { hiddenStates, loadModel } from "../../engine/hidden-states.ts";
import { createEngine } from "../../engine/model.ts";
import { openModelFiles } from "../../engine/model-files.ts";
import { firstBitDifference } from "../support/compare.ts";
import { type TinyModelOptions, writeTinyModel } from "../support/tiny-model.ts";

const engine = await createEngine();
afterAll(() => engine[Symbol.dispose]());

async function states(options: TinyModelOptions): Promise<Float32Array> {
  await using tiny = await writeTinyModel(options);
  await using model = await loadModel(engine, tiny.directory, { layer: 2 });
  const [found] = await hiddenStates(model, [Int32Array.of(3, 1, 4, 1, 5)], { layers: [0, 1, 2], tokens: "all" });
  return found;
}

describe("the names of tensors", () => {
  it.each(["", "language_model.model."])(
    "a checkpoint with the prefix '%s' instead of 'model.' is the same model",
    async (prefix) => {
      const rename = (name: string) => name.replace(/^model\./, prefix);
      expect(firstBitDifference(await states({ rename }), await states({}))).toBeUndefined();
    },
  );

  it("a tied checkpoint that stores the head alone is embedded by it", async () => {
    const rename = (name: string) => (name === "model.embed_tokens.weight" ? null : name);
    const found = await states({ rename, config: { tie_word_embeddings: true } });
    // The table comes first and the head last: to embed by the other's values is to have them under its name.
    const head = await states({
      rename: (name) =>
        name === "model.embed_tokens.weight" ? null : name === "lm_head.weight" ? "model.embed_tokens.weight" : name,
    });
    expect(firstBitDifference(found, head)).toBeUndefined();
    expect(firstBitDifference(found, await states({}))).toBeDefined();
  });

  it("an untied checkpoint without a table is refused: its head is no embedding", async () => {
    await using tiny = await writeTinyModel({ rename: (name) => (name.includes("embed") ? null : name) });
    await expect(openModelFiles(tiny.directory)).rejects.toMatchObject({
      code: "model/missing-tensor",
      message: expect.stringContaining("model.embed_tokens.weight"),
      fix: expect.stringContaining("tie_word_embeddings"),
    });
  });

  it("a block is its norms and matrices, with biases where the configuration has them", async () => {
    for (const [biases, count] of [
      [false, 9],
      [true, 16],
    ] as const) {
      await using tiny = await writeTinyModel({ biases });
      await using files = await openModelFiles(tiny.directory);
      const names = files.spec.blocks.flatMap(blockTensors);
      expect(new Set(names).size).toBe(3 * count);
      const others = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"];
      expect([...names, ...others].sort()).toEqual([...files.checkpoint.names()].sort());
    }
  });
});
