/** A scorer's folder: written whole, read back to the bit, and refused with the reason. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { copyFile, mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { StratumError } from "../../errors.ts";
import { seededRandom } from "../../kernels/random.ts";
import { loadScorer, type SavedScorer, saveScorer } from "../../scorer/scorer-file.ts";
import { parameterShapes } from "../../scorer/scorer-spec.ts";
import { encodeFloats } from "../../weights/floats.ts";
import { openSafetensors } from "../../weights/safetensors.ts";
import { type TensorData, writeSafetensors } from "../../weights/safetensors-writer.ts";
import { type Folder, temporaryFolder } from "../support/cli.ts";
import { failing } from "../support/failing.ts";
import { DIM, scorer } from "../support/scorer.ts";

/** Renames that still succeed; a process that is killed does no other one, and no cleaning either. */
const killed = vi.hoisted(() => ({ after: Number.POSITIVE_INFINITY, dead: false }));
vi.mock("node:fs/promises", async (importOriginal) => {
  const real = await importOriginal<typeof import("node:fs/promises")>();
  return {
    ...real,
    rename: async (...args: Parameters<typeof real.rename>) => {
      // The writer of a safetensors file renames once itself.
      if (!String(args[1]).endsWith(".partial") && killed.after-- <= 0) killed.dead = true;
      if (killed.dead) throw new Error("killed");
      return real.rename(...args);
    },
    rm: async (...args: Parameters<typeof real.rm>) => (killed.dead ? undefined : real.rm(...args)),
  };
});

let place: Folder;
let folder: string;
beforeEach(async () => {
  Object.assign(killed, { after: Number.POSITIVE_INFINITY, dead: false });
  place = await temporaryFolder();
  folder = join(place.path, "deep", "scorer");
});
afterEach(async () => {
  Object.assign(killed, { after: Number.POSITIVE_INFINITY, dead: false });
  await place[Symbol.asyncDispose]();
});

const at = (name: string) => join(folder, name);
const seedOf = async () => (await loadScorer(folder)).training["seed"];

describe("saveScorer and loadScorer", () => {
  it.each<[string, SavedScorer]>([
    ["listwise", scorer(1)],
    ["pointwise", scorer(2, "pointwise")],
    [
      "without standardisation and origin",
      scorer(3, "listwise", { standardise: null, base: null, layer: null, pooling: null, system: "Be brief." }),
    ],
  ])("keep everything, to the bit: %s", async (_, saved) => {
    await saveScorer(folder, saved);
    expect(await loadScorer(folder)).toEqual(saved);
    expect(readdirSync(folder).sort()).toEqual(["scorer.json", "scorer.safetensors"]);
  });

  it("write F32 under PyTorch's names, without metadata, as the npm package safetensors reads it", async () => {
    const saved = scorer(1);
    await saveScorer(folder, saved);
    const bytes = Uint8Array.from(readFileSync(at("scorer.safetensors")));
    expect(Buffer.from(bytes).toString("latin1")).not.toContain("__metadata__");
    const { SafeTensor } = createRequire(import.meta.url)("safetensors") as {
      SafeTensor: new (
        bytes: Uint8Array,
      ) => { metadata: Map<string, { dtype: string; shape: number[] }>; getTensor(name: string): Uint8Array };
    };
    const read = new SafeTensor(bytes);
    for (const { name } of parameterShapes(saved.spec))
      expect(Uint8Array.from(read.getTensor(name)), name).toEqual(encodeFloats(saved.weights.get(name)!, "F32"));
    expect(Uint8Array.from(read.getTensor("standardise.resp.scale"))).toEqual(
      encodeFloats(saved.standardise!.scale.subarray(DIM), "F32"),
    );
    await using file = await openSafetensors(at("scorer.safetensors"));
    const names = [...file.tensors.keys()].filter((name) => !name.startsWith("standardise."));
    expect(names).toEqual(parameterShapes(saved.spec).map(({ name }) => name));
    expect(file.tensors.size).toBe(names.length + 4);
    expect(JSON.parse(readFileSync(at("scorer.json"), "utf8"))).toMatchObject({
      format: "stratum-scorer",
      version: 1,
      base_model: { name: "demo", fingerprint: "abc" },
      layer: 3,
      pooling: "last",
      system: null,
      head: "listwise",
      sizes: { dim: DIM, width: 4, heads: 2, ffn: 5 },
      tau: 0.2,
      standardise: true,
      training: { seed: 1, curve: [1, 0.5], note: "ä" },
      sha256: expect.stringMatching(/^[0-9a-f]{64}$/),
    });
  });

  it.each<[string, Partial<SavedScorer>, string, string]>([
    ["a missing tensor", { weights: new Map([...scorer(1).weights].slice(1)) }, "scorer/missing-tensor", "proj.weight"],
    [
      "a tensor of another size",
      { weights: new Map([...scorer(1).weights, ["proj.bias", new Float32Array(3)]]) },
      "scorer/tensor-shape",
      "proj.bias",
    ],
    [
      "NaN",
      { weights: new Map([...scorer(1).weights, ["proj.bias", Float32Array.of(0, 1, Number.NaN, 2)]]) },
      "scorer/not-finite",
      "proj.bias",
    ],
    [
      "a deviation of 0",
      { standardise: { mean: new Float32Array(12), scale: new Float32Array(12) } },
      "scorer/bad-scale",
      "standardise.resp.scale",
    ],
    ["heads that do not divide", { spec: { ...scorer(1).spec, heads: 3 } }, "scorer/bad-size", "3 heads"],
  ])("refuse to save %s, and leave the older scorer", async (_, change, code, word) => {
    await saveScorer(folder, scorer(7));
    await expect(saveScorer(folder, scorer(1, "listwise", change))).rejects.toThrow(failing(code, word));
    expect(await seedOf()).toBe(7);
  });

  it("say where they could not write", async () => {
    await place.write("file", "");
    await expect(saveScorer(join(place.path, "file", "scorer"), scorer(1))).rejects.toThrow(
      failing("file/write-failed"),
    );
    await mkdir(at("scorer.json"), { recursive: true });
    await expect(saveScorer(folder, scorer(1))).rejects.toThrow(failing("file/write-failed"));
  });
});

describe("a process that is killed while it saves", () => {
  it.each([
    ["before the first rename", 0, 1],
    ["between the two renames", 1, 2],
    ["after both", 2, 2],
  ])("%s leaves the old scorer or the new one", async (_, after, expected) => {
    await saveScorer(folder, scorer(1));
    killed.after = after;
    await saveScorer(folder, scorer(2)).catch((error: unknown) => expect(String(error)).toContain("killed"));
    killed.dead = false;
    killed.after = Number.POSITIVE_INFINITY;
    expect(await loadScorer(folder)).toEqual(scorer(expected));
    await saveScorer(folder, scorer(3));
    expect(await seedOf()).toBe(3);
  });

  it("between the renames of its first scorer leaves the new one", async () => {
    killed.after = 1;
    await expect(saveScorer(folder, scorer(2))).rejects.toThrow("killed");
    killed.dead = false;
    expect(existsSync(at("scorer.json"))).toBe(false);
    expect(await seedOf()).toBe(2);
  });

  it("does not hide a mixed pair: what it left belongs to neither", async () => {
    await saveScorer(folder, scorer(1));
    killed.after = 0;
    await saveScorer(folder, scorer(2)).catch(() => undefined);
    killed.dead = false;
    killed.after = Number.POSITIVE_INFINITY;
    const other = join(place.path, "other");
    await saveScorer(other, scorer(3));
    await copyFile(join(other, "scorer.safetensors"), at("scorer.safetensors"));
    await expect(loadScorer(folder)).rejects.toThrow(failing("scorer/mixed-files", "SHA-256"));
  });

  it("a reader that falls between the renames of a living one looks again", async () => {
    await saveScorer(folder, scorer(1));
    const other = join(place.path, "other");
    await saveScorer(other, scorer(2));
    await rename(join(other, "scorer.safetensors"), at("scorer.safetensors"));
    const loading = seedOf();
    await new Promise((resolve) => setTimeout(resolve, 20));
    await rename(join(other, "scorer.json"), at("scorer.json"));
    expect(await loading).toBe(2);
  });
});

describe("a folder that is refused", () => {
  const config = async (change: (json: Record<string, unknown>) => unknown) => {
    const json = JSON.parse(await readFile(at("scorer.json"), "utf8")) as Record<string, unknown>;
    await writeFile(at("scorer.json"), JSON.stringify(change(json)));
  };
  /** Writes other weights, and their hash into scorer.json. */
  const weights = async (change: (tensors: TensorData[]) => TensorData[]) => {
    const tensors: TensorData[] = [];
    {
      await using file = await openSafetensors(at("scorer.safetensors"));
      for (const info of file.tensors.values()) tensors.push({ ...info, bytes: await file.read(info.name) });
    }
    await writeSafetensors(at("scorer.safetensors"), change(tensors));
    const { createHash } = await import("node:crypto");
    const sha256 = createHash("sha256")
      .update(readFileSync(at("scorer.safetensors")))
      .digest("hex");
    await config((json) => ({ ...json, sha256 }));
  };
  const replace = (name: string, change: Partial<TensorData>) =>
    weights((tensors) => tensors.map((tensor) => (tensor.name === name ? { ...tensor, ...change } : tensor)));
  const floats = (...values: number[]) => encodeFloats(Float32Array.from(values), "F32");
  const NORM = "encoder.layers.0.norm1.bias";

  const faults: [string, () => Promise<unknown>, string, ...string[]][] = [
    ["none", () => rm(folder, { recursive: true }), "scorer/missing", "deep.scorer"],
    ["no scorer.json", () => rm(at("scorer.json")), "scorer/missing-file", "scorer.json"],
    ["no weights", () => rm(at("scorer.safetensors")), "scorer/missing-file", "scorer.safetensors"],
    ["a broken scorer.json", () => writeFile(at("scorer.json"), "{"), "scorer/bad-json", "scorer.json"],
    ["an array", () => config(() => []), "scorer/bad-config", "object"],
    ["another format", () => config((json) => ({ ...json, format: "other" })), "scorer/bad-config", "format"],
    [
      "a later version",
      () => config((json) => ({ ...json, version: 2 })),
      "scorer/unknown-version",
      "version 2",
      "reads 1",
    ],
    ["no version", () => config(({ version: _, ...json }) => json), "scorer/bad-config", "version"],
    [
      "a fractional size",
      () => config((json) => ({ ...json, sizes: { dim: 6, width: 4.5, heads: 2, ffn: 5 } })),
      "scorer/bad-config",
      "sizes.width",
    ],
    ["an unknown head", () => config((json) => ({ ...json, head: "both" })), "scorer/bad-config", "head"],
    ["an unknown pooling", () => config((json) => ({ ...json, pooling: "max" })), "scorer/bad-config", "pooling"],
    [
      "heads that do not divide",
      () => config((json) => ({ ...json, sizes: { dim: 6, width: 4, heads: 3, ffn: 5 } })),
      "scorer/bad-size",
      "3 heads",
    ],
    ["tau of 0", () => config((json) => ({ ...json, tau: 0 })), "scorer/bad-size", "tau"],
    [
      "another width",
      () => config((json) => ({ ...json, sizes: { dim: 6, width: 8, heads: 2, ffn: 5 } })),
      "scorer/tensor-shape",
      "proj.weight",
      "\\[4,6\\]",
      "\\[8,6\\]",
    ],
    [
      "another head",
      () => config((json) => ({ ...json, head: "pointwise" })),
      "scorer/missing-tensor",
      "'linear1.weight'",
    ],
    ["other weights", () => writeSafetensors(at("scorer.safetensors"), []), "scorer/mixed-files", "SHA-256"],
    [
      "a missing tensor",
      () => weights((all) => all.filter(({ name }) => name !== NORM)),
      "scorer/missing-tensor",
      NORM,
    ],
    [
      "no standardisation",
      () => weights((all) => all.filter(({ name }) => !name.startsWith("standardise."))),
      "scorer/missing-tensor",
      "standardise.inst.mean",
    ],
    ["a tensor of another shape", () => replace(NORM, { shape: [2, 2] }), "scorer/tensor-shape", NORM, "\\[2,2\\]"],
    ["integers", () => replace(NORM, { dtype: "I32" }), "scorer/tensor-dtype", NORM, "I32"],
    ["NaN", () => replace(NORM, { bytes: floats(0, Number.NaN, 0, 0) }), "scorer/not-finite", NORM, "NaN at 1"],
    [
      "infinity",
      () => replace(NORM, { bytes: floats(0, 0, 0, Number.NEGATIVE_INFINITY) }),
      "scorer/not-finite",
      "-Infinity",
    ],
    [
      "a negative scale",
      () => replace("standardise.resp.scale", { bytes: floats(1, 1, -1, 1, 1, 1) }),
      "scorer/bad-scale",
      "-1 at 2",
    ],
  ];
  it.each(faults)("%s", async (_, damage, code, ...words) => {
    await saveScorer(folder, scorer(1));
    await damage();
    await expect(loadScorer(folder)).rejects.toThrow(failing(code, ...words));
  });

  it("in any damage: a StratumError, or the scorer itself", async () => {
    await saveScorer(folder, scorer(1));
    const files = ["scorer.json", "scorer.safetensors"].map((name) => [at(name), readFileSync(at(name))] as const);
    const random = seededRandom(4);
    const codes = new Set<string>();
    for (let run = 0; run < 80; run++) {
      const [path, whole] = files[run % 2]!;
      const damaged = Uint8Array.from(whole);
      damaged[Math.floor(random() * damaged.length)] = Math.floor(random() * 256);
      await writeFile(
        path,
        damaged.subarray(0, run % 3 === 0 ? Math.floor(random() * damaged.length) : damaged.length),
      );
      await loadScorer(folder).then(
        () => codes.add("loaded"),
        (thrown: unknown) => codes.add(thrown instanceof StratumError ? thrown.code : String(thrown)),
      );
      await writeFile(path, whole);
    }
    for (const code of codes) expect(code).toMatch(/^(loaded|scorer\/[a-z-]+)$/);
    expect(codes.size).toBeGreaterThan(3);
    expect(await loadScorer(folder)).toEqual(scorer(1));
  });
});
