/** Random weights: of the real checkpoint's form, of its bytes nothing. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Checkpoint, openCheckpoint } from "../../weights/checkpoint.ts";
import { decodeFloats, type FloatDtype } from "../../weights/floats.ts";
import { randomCheckpoint } from "../../weights/random-checkpoint.ts";
import { writeSafetensors } from "../../weights/safetensors-writer.ts";
import { type TinyModel, writeTinyModel } from "../support/tiny-model.ts";

const QUERY = "model.layers.0.self_attn.q_proj.weight";
const KEY = "model.layers.1.self_attn.q_proj.weight";
const EMBEDDING = "model.embed_tokens.weight";
const SEED = 7;

let model: TinyModel;
let other: TinyModel;
beforeAll(async () => {
  model = await writeTinyModel({ biases: true, vocab: 500 });
  other = await writeTinyModel({ biases: true, vocab: 500, seed: 2 });
});
afterAll(async () => {
  await model[Symbol.asyncDispose]();
  await other[Symbol.asyncDispose]();
});

async function opened(directory: string, seed: number, use: (checkpoint: Checkpoint) => Promise<void>): Promise<void> {
  await using checkpoint = randomCheckpoint(await openCheckpoint(directory), seed);
  await use(checkpoint);
}

async function valuesOf(checkpoint: Checkpoint, name: string): Promise<Float32Array> {
  return decodeFloats(await checkpoint.read(name), (await checkpoint.info(name)).dtype);
}

/** Mean, deviation and kurtosis. */
function moments(values: Float32Array): readonly [number, number, number] {
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  const moment = (k: number) => values.reduce((sum, v) => sum + (v - mean) ** k, 0) / values.length;
  return [mean, Math.sqrt(moment(2)), moment(4) / moment(2) ** 2];
}

function correlation(a: Float32Array, b: Float32Array): number {
  const dot = (x: Float32Array, y: Float32Array) => x.reduce((sum, v, i) => sum + v * y[i]!, 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

describe("a random checkpoint", () => {
  it("has the names, types and shapes of the real one, and reads no byte of a tensor", async () => {
    await using real = await openCheckpoint(model.directory);
    await opened(model.directory, SEED, async (random) => {
      expect([...random.names()]).toEqual([...real.names()]);
      expect([random.has(QUERY), random.has("x")]).toEqual([true, false]);
      for (const name of real.names()) {
        expect(await random.info(name)).toEqual(await real.info(name));
        expect((await random.read(name)).byteLength).toBe((await real.info(name)).byteLength);
      }
      await random.readRows(EMBEDDING, [3, 1]);
      expect(random.log).toMatchObject({ bytes: 0, tensors: new Map() });
    });
  });

  it("holds norm weights of 1, biases of 0, and matrices of N(0, 0.02^2)", async () => {
    await opened(model.directory, SEED, async (random) => {
      for (const name of random.names()) {
        const values = await valuesOf(random, name);
        if (name.includes("norm")) expect(new Set(values), name).toEqual(new Set([1]));
        else if (name.endsWith(".bias")) expect(new Set(values), name).toEqual(new Set([0]));
        else {
          const [mean, deviation, kurtosis] = moments(values);
          // Five standard errors of each, and what the grid lacks of a normal's tails.
          const error = 5 / Math.sqrt(values.length);
          expect(Math.abs(mean), name).toBeLessThan(0.02 * error);
          expect(Math.abs(deviation / 0.02 - 1), name).toBeLessThan(error / Math.SQRT2 + 1e-3);
          expect(Math.abs(kurtosis - 3), name).toBeLessThan(error * Math.sqrt(24) + 0.02);
        }
      }
    });
  });

  it.each<FloatDtype>(["F64", "F32", "F16", "BF16"])("holds the same values as %s, rounded", async (dtype) => {
    await using stored = await writeTinyModel({ dtype, biases: true });
    await using wide = await writeTinyModel({ dtype: "F64", biases: true });
    await opened(stored.directory, SEED, async (random) =>
      opened(wide.directory, SEED, async (exact) => {
        for (const name of [QUERY, "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"]) {
          const [found, expected] = [await valuesOf(random, name), await valuesOf(exact, name)];
          const precision = { F64: 0, F32: 0, F16: 2 ** -11, BF16: 2 ** -8 }[dtype];
          for (const [i, value] of found.entries())
            expect(Math.abs(value - expected[i]!)).toBeLessThanOrEqual(precision * Math.abs(expected[i]!) + 2 ** -25);
        }
      }),
    );
  });

  it("gives rows as a whole read does, whatever their order, and again in another opening", async () => {
    let whole = new Uint8Array();
    await opened(model.directory, SEED, async (random) => {
      whole = await random.read(EMBEDDING);
    });
    const rowBytes = whole.byteLength / 500;
    const row = (r: number) => whole.subarray(r * rowBytes, (r + 1) * rowBytes);
    await opened(model.directory, SEED, async (random) => {
      expect(await random.readRows(EMBEDDING, { start: 100, count: 7 })).toEqual(
        whole.slice(100 * rowBytes, 107 * rowBytes),
      );
      const asked = [499, 3, 4, 3, 0];
      expect([...(await random.readRows(EMBEDDING, asked))]).toEqual(asked.flatMap((r) => [...row(r)]));
    });
  });

  it("depends on the seed and the tensor's name, not on the learned values", async () => {
    await opened(model.directory, SEED, async (random) => {
      const query = await valuesOf(random, QUERY);
      await opened(other.directory, SEED, async (same) => expect(await valuesOf(same, QUERY)).toEqual(query));
      await opened(model.directory, SEED + 1, async (different) => {
        for (const stranger of [await valuesOf(random, KEY), await valuesOf(different, QUERY)]) {
          expect(Math.abs(correlation(query, stranger))).toBeLessThan(5 / Math.sqrt(query.length));
          expect([...stranger].sort()).not.toEqual([...query].sort());
        }
      });
    });
  });

  it("goes on past 2^32 elements, and over the border as in parts", async () => {
    const [rows, columns] = [2 ** 22, 2048];
    const info = { name: "x", dtype: "BF16", shape: [rows, columns], byteLength: 2 * rows * columns, fileOffset: 0 };
    await using real = await openCheckpoint(model.directory);
    const random = randomCheckpoint({ ...real, info: async () => info } as Checkpoint, SEED);
    const border = 2 ** 32 / columns;
    const across = await random.readRows("x", { start: border - 1, count: 2 });
    const [before, after] = [await random.readRows("x", [border - 1]), await random.readRows("x", [border])];
    expect(across).toEqual(Uint8Array.from([...before, ...after]));
    expect(after).not.toEqual(await random.readRows("x", [0]));
  });

  it("refuses what the real one refuses, and tensors of no floats", async () => {
    await opened(model.directory, SEED, async (random) => {
      await expect(random.read("x")).rejects.toMatchObject({ code: "model/missing-tensor" });
      await expect(random.readRows(EMBEDDING, [500])).rejects.toMatchObject({ code: "model/row-out-of-range" });
      const columns = random.readColumns("model.norm.weight", { start: 0, count: 1 });
      await expect(columns).rejects.toMatchObject({ code: "model/column-out-of-range" });
    });
    const folder = await mkdtemp(join(tmpdir(), "stratum-random-"));
    try {
      const ids = { name: "ids", dtype: "I64", shape: [2, 1], bytes: new Uint8Array(16) } as const;
      await writeSafetensors(join(folder, "model.safetensors"), [ids]);
      await opened(folder, SEED, (random) =>
        expect(random.read("ids")).rejects.toMatchObject({ code: "safetensors/not-floats" }),
      );
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });

  it("closes the real one with it", async () => {
    const real = await openCheckpoint(model.directory);
    await randomCheckpoint(real, SEED).close();
    await expect(real.read(QUERY)).rejects.toMatchObject({ code: "safetensors/closed" });
  });
});
