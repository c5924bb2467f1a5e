/** `stratum states` as its users meet it: its numbers against the states that `extract` writes, its files, what it refuses. */
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { statesSchema } from "../../scorer/states-data.ts";
import type { StatesRecord } from "../../scorer/states-file.ts";
import { decodeFloats } from "../../weights/floats.ts";
import { openSafetensors } from "../../weights/safetensors.ts";
import { type CliRun, errorCodes, exampleLines, stratum, temporaryFolder } from "../support/cli.ts";

const folder = await temporaryFolder();
afterAll(() => folder[Symbol.asyncDispose]());
/** Features of these tests are no one else's. */
const below = ["env", `XDG_CACHE_HOME=${folder.path}`];

const LISTS = 6;
const LAYERS = [0, 2];
const median = (values: readonly number[]) => {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[Math.floor((sorted.length - 1) / 2)]! + sorted[Math.ceil((sorted.length - 1) / 2)]!) / 2;
};

describe("states", () => {
  let run: CliRun;
  let record: StatesRecord;
  let lists: string;
  const out = join(folder.path, "look");
  beforeAll(async () => {
    lists = await folder.write("lists.jsonl", `${exampleLines.slice(0, LISTS).join("\n")}\n`);
    const words = [
      "states",
      lists,
      "--layers",
      LAYERS.join(","),
      "--map",
      "pca",
      "--points",
      "12",
      "-o",
      out,
      "--json",
    ];
    run = await stratum(words, { below });
    record = JSON.parse(run.stdout) as StatesRecord;
  });

  it("has the norms and cosines of the states that extract writes", async () => {
    expect(run.code, run.stderr).toBe(0);
    const path = join(folder.path, "states.safetensors");
    const extracted = await stratum(["extract", lists, "--layers", LAYERS.join(","), "-o", path], { below });
    expect(extracted.code, extracted.stderr).toBe(0);
    const file = await openSafetensors(path);
    const index = (await folder.read("states.safetensors.index.jsonl")).trimEnd().split("\n");
    const responses: Float32Array[][] = [];
    for (const line of index) {
      const { sequence, candidate } = JSON.parse(line) as { sequence: number; candidate: number | null };
      if (candidate === null) continue;
      const values = decodeFloats(await file.read(`hidden_${sequence}`), "F32");
      const d = values.length / LAYERS.length;
      responses.push(LAYERS.map((_, k) => values.subarray(k * d, (k + 1) * d)));
    }
    await file.close();
    const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, value, i) => sum + value * b[i]!, 0);
    const { norms, cosines, responses: counted } = record.states;
    expect(counted).toBe(responses.length);
    for (const [k, layer] of LAYERS.entries()) {
      const found = norms.find((norm) => norm.layer === layer && norm.of === "response");
      expect(found!.median).toBeCloseTo(median(responses.map((own) => Math.sqrt(dot(own[k]!, own[k]!)))), 5);
    }
    const cosine = (a: Float32Array, b: Float32Array) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
    expect(cosines[0]!.median).toBeCloseTo(median(responses.map(([a, b]) => cosine(a!, b!))), 5);
  });

  it("writes a page, everything as JSON, and rows as CSV", async () => {
    expect((await readdir(out)).sort()).toEqual(["layers.csv", "points.csv", "states.html", "states.json"]);
    expect(JSON.parse(await folder.read("look/states.json"))).toEqual(record);
    expect(statesSchema.parse(record.states)).toEqual(record.states);
    const rows = async (name: string) =>
      (await folder.read(name))
        .trimEnd()
        .split("\r\n")
        .map((row) => row.split(","));
    const layers = await rows("look/layers.csv");
    expect(layers.map(([layer]) => layer)).toEqual(["layer", "0", "2"]);
    expect(new Set(layers.map((row) => row.length)).size).toBe(1);
    const points = await rows("look/points.csv");
    expect(points).toHaveLength(1 + LAYERS.length * record.states.points.list.length);
    const page = await folder.read("look/states.html");
    expect(page).toContain("PCA, layer 2");
    expect(page).not.toMatch(/NaN|undefined/);
  });

  it("prints words, curves and tables without a folder, out of the cache", async () => {
    const text = await stratum(["states", lists, "--layers", "0,2", "--map", "none"], { below });
    expect(text.code, text.stderr).toBe(0);
    expect(text.stdout).toContain("Within lists the classes lie furthest apart at layer");
    expect(text.stdout).not.toContain("Maps");
  });

  it("refuses a folder of something else, layers that are not there, and maps of layers that are not looked at", async () => {
    const refused = async (...more: string[]) => {
      const { code, stderr } = await stratum(["states", lists, ...more], { below });
      return [code, errorCodes(stderr)[0]];
    };
    expect(await refused("-o", folder.path)).toEqual([2, "usage/output-exists"]);
    expect(await refused("-o", lists)).toEqual([2, "usage/output"]);
    expect(await refused("--points", "100000")).toEqual([2, "usage/arguments"]);
    expect(await refused("--layers", "9")).toEqual([2, "usage/layer"]);
    expect(await refused("--layers", "0,2", "--map-layers", "1")).toEqual([2, "usage/layer"]);
  });
});
