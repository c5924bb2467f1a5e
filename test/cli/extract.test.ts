/** `stratum extract`: what the file holds is what the library gives, and the index says whose it is. */
import { existsSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { hiddenStates, loadModel, type Model } from "../../engine/hidden-states.ts";
import { createEngine } from "../../engine/model.ts";
import { openCheckpoint } from "../../weights/checkpoint.ts";
import { decodeFloats } from "../../weights/floats.ts";
import { openSafetensors } from "../../weights/safetensors.ts";
import {
  DEMO_MODEL,
  exampleLines,
  type Folder,
  jsonLines,
  lastJsonLine,
  stratum,
  temporaryFolder,
} from "../support/cli.ts";
import { firstBitDifference } from "../support/compare.ts";

const engine = await createEngine();
let model: Model;
let folder: Folder;
beforeAll(async () => {
  model = await loadModel(engine, DEMO_MODEL, { layer: 3 });
  folder = await temporaryFolder();
});
afterAll(async () => {
  await model[Symbol.asyncDispose]();
  engine[Symbol.dispose]();
  await folder[Symbol.asyncDispose]();
});

interface Reader {
  read(name: string): Promise<Uint8Array<ArrayBuffer>>;
}
const idsOf = async (file: Reader, i: number) => new Int32Array((await file.read(`ids_${i}`)).buffer);
const statesOf = async (file: Reader, i: number) => decodeFloats(await file.read(`hidden_${i}`), "F32");

/** Sequences of one token, of a list's common length and of more. */
const SEQUENCES = [[1], [1, 3, 200, 7, 5], Array.from({ length: 70 }, (_, t) => (t * 37) % 4096)];
const D = 192;

describe("lines of ids", () => {
  const input = `${SEQUENCES.map((ids, i) => JSON.stringify({ id: `s${i}`, ids })).join("\n")}\n`;

  it("give the library's hidden states, bit for bit, with what they are in the file's own words", async () => {
    const out = join(folder.path, "all.safetensors");
    const layers = [3, 0];
    const flags = ["--layers", "50%,0", "--tokens", "all", "-o", out, "--json"];
    const run = await stratum(["extract", "-", ...flags], { stdin: input });
    expect([run.code, run.stdout]).toEqual([0, ""]);
    const tokens = SEQUENCES.reduce((sum, ids) => sum + ids.length, 0);
    const written = [out, `${out}.index.jsonl`];
    expect(lastJsonLine(run.stderr)).toMatchObject({ lines: 3, failed: 0, sequences: 3, tokens, layers, written });

    const expected = await hiddenStates(
      model,
      SEQUENCES.map((ids) => Int32Array.from(ids)),
      { layers, tokens: "all" },
    );
    await using file = await openSafetensors(out);
    expect(file.metadata).toMatchObject({ layers: "3,0", tokens: "all", model: expect.any(String) });
    expect(file.tensors.size).toBe(2 * SEQUENCES.length);
    for (const [i, ids] of SEQUENCES.entries()) {
      expect([...(await idsOf(file, i))]).toEqual(ids);
      expect(file.info(`ids_${i}`)).toMatchObject({ dtype: "I32", shape: [ids.length] });
      expect(file.info(`hidden_${i}`)).toMatchObject({ dtype: "F32", shape: [2, ids.length, D] });
      expect(firstBitDifference(await statesOf(file, i), expected[i]!), `sequence ${i}`).toBeUndefined();
    }
    expect(jsonLines(await folder.read("all.safetensors.index.jsonl"))).toEqual(
      SEQUENCES.map((ids, i) => ({ sequence: i, line: i + 1, id: `s${i}`, tokens: ids.length })),
    );
  });
});

describe("lists, texts and parts", () => {
  it("give a list's prompt, then its candidates, in parts with an index of tensors", async () => {
    // Under this name the parts are a sharded checkpoint, and its reader finds the tensors.
    const directory = join(folder.path, "parts");
    await mkdir(directory);
    const out = join(directory, "model.safetensors");
    const lines = [exampleLines[0]!, '{"text": "Boil the water first."}', '{"id": 7, "ids": [1, 2, 3]}'];
    const candidates = (JSON.parse(lines[0]!) as { candidates: unknown[] }).candidates.length;
    // Three layers of 192 floats and some ids a sequence: four sequences fit into 11 kB. A list's stay together.
    const flags = ["--layers", "1,2,3", "--part-size", "11kB", "-o", out, "--json"];
    const run = await stratum(["extract", ...flags], { stdin: lines.join("\n") });
    expect(run.code).toBe(0);

    const index = jsonLines(await folder.read("parts/model.safetensors.index.jsonl"));
    const tokens = expect.any(Number);
    expect(index).toEqual([
      { sequence: 0, line: 1, id: "garden-01", candidate: null, tokens },
      ...Array.from({ length: candidates }, (_, candidate) => ({
        sequence: candidate + 1,
        line: 1,
        id: "garden-01",
        candidate,
        tokens,
      })),
      { sequence: candidates + 1, line: 2, id: "2", tokens },
      { sequence: candidates + 2, line: 3, id: 7, tokens: 3 },
    ]);
    const count = index.length;
    const { written } = lastJsonLine(run.stderr) as { written: string[] };
    const parts = written.filter((path) => path.endsWith(".safetensors"));
    expect(parts).toEqual(parts.map((_, i) => join(directory, `model-0000${i + 1}.safetensors`)));
    expect(candidates + 1).toBeGreaterThan(4);
    expect(parts.length).toBe(2);
    expect(written.slice(parts.length)).toEqual([`${out}.index.json`, `${out}.index.jsonl`]);
    expect(existsSync(out)).toBe(false);

    await using file = await openCheckpoint(directory);
    expect([...file.names()]).toEqual(Array.from({ length: count }, (_, i) => [`ids_${i}`, `hidden_${i}`]).flat());
    const ids: Int32Array[] = [];
    for (let i = 0; i < count; i++) {
      ids.push(await idsOf(file, i));
      expect(ids[i]).toHaveLength(index[i]!["tokens"] as number);
      expect((await file.info(`hidden_${i}`)).shape).toEqual([3, D]);
      const [expected] = await hiddenStates(model, [ids[i]!], { layers: [1, 2, 3] });
      expect(firstBitDifference(await statesOf(file, i), expected!), `sequence ${i}`).toBeUndefined();
    }
    for (let i = 1; i <= candidates; i++)
      expect([...ids[i]!.subarray(0, ids[0]!.length)], `candidate ${i - 1} begins with the prompt`).toEqual([
        ...ids[0]!,
      ]);
    expect(ids.at(-1)).toEqual(Int32Array.of(1, 2, 3));
  });
});
