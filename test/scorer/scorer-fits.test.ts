import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { checkScorerFits } from "../../scorer/scorer-fits.ts";
import { parameterShapes, type ScorerSpec } from "../../scorer/scorer-spec.ts";
import { loadWeights } from "../../scorer/scorer-weights.ts";
import { encodeFloats } from "../../weights/floats.ts";
import { type TensorData, writeSafetensors } from "../../weights/safetensors-writer.ts";
import { type Folder, temporaryFolder } from "../support/cli.ts";
import { failing } from "../support/failing.ts";
import { DIM, scorer } from "../support/scorer.ts";
import { SCORER_GOLDEN } from "../support/scorer-golden.ts";

let place: Folder;
beforeEach(async () => {
  place = await temporaryFolder();
});
afterEach(() => place[Symbol.asyncDispose]());

describe("loadWeights", () => {
  const { spec, weights } = scorer(5);
  const tensors = (prefix: string, dtype: "F32" | "F64" = "F32"): TensorData[] =>
    parameterShapes(spec).map(({ name, shape }) => ({
      name: prefix + name,
      dtype,
      shape,
      bytes: encodeFloats(weights.get(name)!, dtype),
    }));
  const other: TensorData = { name: "grad.proj.weight", dtype: "U8", shape: [1], bytes: Uint8Array.of(1) };

  it.each([
    ["its own names", [...tensors(""), other]],
    ["init. in front", [...tensors("init."), other]],
    [
      "both: its own names",
      [
        ...tensors("").map((t) => ({ ...t })),
        ...tensors("init.").map((t) => ({ ...t, bytes: new Uint8Array(t.bytes.length) })),
      ],
    ],
    ["F64", tensors("", "F64")],
  ])("takes %s", async (_, all) => {
    const path = join(place.path, "init.safetensors");
    await writeSafetensors(path, all);
    expect(await loadWeights(path, spec)).toEqual(weights);
  });

  it.each<[string, TensorData[], string, string]>([
    ["no file", [], "scorer/missing-file", "nowhere"],
    ["a file without them", [other], "scorer/missing-tensor", "'proj.weight'"],
    [
      "a file that lacks one",
      tensors("init.").slice(0, -1),
      "scorer/missing-tensor",
      "'init.encoder.layers.0.norm2.bias'",
    ],
    [
      "NaN",
      [{ ...tensors("")[1]!, bytes: new Uint8Array(16).fill(255) }, ...tensors("").filter((_, i) => i !== 1)],
      "scorer/not-finite",
      "proj.bias",
    ],
    [
      "another shape",
      [{ ...tensors("")[0]!, shape: [6, 4] }, ...tensors("").slice(1)],
      "scorer/tensor-shape",
      "proj.weight",
    ],
  ])("refuses %s", async (what, all, code, word) => {
    const path = join(place.path, what === "no file" ? "nowhere" : "init.safetensors");
    if (what !== "no file") await writeSafetensors(path, all);
    await expect(loadWeights(path, spec)).rejects.toThrow(failing(code, word));
  });

  it("takes the golden scorer's", async () => {
    const golden: ScorerSpec = { head: "listwise", dim: 32, width: 16, heads: 2, ffn: 64, tau: 0.2 };
    const found = await loadWeights(SCORER_GOLDEN, golden);
    expect([...found.keys()]).toEqual(parameterShapes(golden).map(({ name }) => name));
  });
});

describe("checkScorerFits", () => {
  const origin = { fingerprint: "abc", name: "demo", dim: DIM, layer: 3, pooling: "last" } as const;
  it("takes what the scorer was trained on, and does not compare what is not known", () => {
    expect(() => checkScorerFits(scorer(1), origin)).not.toThrow();
    expect(() => checkScorerFits(scorer(1), { fingerprint: "abc", dim: DIM })).not.toThrow();
    const unknown = scorer(1, "listwise", { base: null, layer: null, pooling: null });
    expect(() => checkScorerFits(unknown, { ...origin, fingerprint: "other", layer: 1 })).not.toThrow();
  });

  it.each([
    ["model", { fingerprint: "xyz", name: "other" }, ["'demo' \\(abc\\)", "'other'", "xyz"], "--model"],
    ["model", { fingerprint: "xyz", name: undefined }, ["this model"], "--model"],
    ["layer", { layer: 4 }, ["layer 3", "layer 4"], "--layer 3"],
    ["width", { dim: 7 }, ["6 wide", "7 wide"], "model"],
    ["pooling", { pooling: "mean" as const }, ["'last'", "'mean'"], "--pooling last"],
  ])("refuses another %s: %j", (what, change, words, fix) => {
    expect(() => checkScorerFits(scorer(1), { ...origin, ...change })).toThrow(
      expect.objectContaining({
        ...failing(`scorer/${what}-mismatch`, ...words).sample,
        fix: expect.stringContaining(fix),
      }),
    );
  });
});
