/** Extraction as a library: one stream of lists, texts and ids, each sequence with the states that it has alone. */
import { cp, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { hiddenStates, loadModel, type Model } from "../../engine/hidden-states.ts";
import { createEngine } from "../../engine/model.ts";
import { createExtractor, type ExtractOptions, type ExtractOutcome } from "../../scorer/extract.ts";
import { readSequences } from "../../scorer/lists.ts";
import { DEMO_MODEL, exampleLines } from "../support/cli.ts";
import { firstBitDifference } from "../support/compare.ts";

const engine = await createEngine();
let model: Model;
beforeAll(async () => {
  model = await loadModel(engine, DEMO_MODEL, { layer: 2 });
});
afterAll(async () => {
  await model[Symbol.asyncDispose]();
  engine[Symbol.dispose]();
});

type Extracted = Extract<ExtractOutcome, { kind: "extracted" }>;

async function extract(
  lines: readonly string[],
  options: Partial<ExtractOptions> = {},
  from = model,
): Promise<ExtractOutcome[]> {
  using extractor = await createExtractor(from, { layers: [2], tokens: "last", ...options });
  const source = (async function* () {
    yield Buffer.from(lines.join("\n"));
  })();
  const found: ExtractOutcome[] = [];
  for await (const outcome of extractor.extract(readSequences(source))) found.push(outcome);
  return found;
}
const extracted = (outcomes: readonly ExtractOutcome[]): Extracted[] =>
  outcomes.map((outcome) => {
    if (outcome.kind === "failed") throw outcome.error;
    return outcome;
  });

const MIXED = [exampleLines[0]!, '{"text": "Boil the water."}', '{"id": 5, "ids": [1, 2, 3, 2, 1]}', exampleLines[1]!];

describe("extract", () => {
  it.each(["last", "all"] as const)("gives each sequence of a mixed stream its own states: %s", async (tokens) => {
    const layers = [2, 0];
    const found = extracted(await extract(MIXED, { layers, tokens }));
    expect(found.map(({ source, id, line }) => [source, id, line])).toEqual([
      ["list", "garden-01", 1],
      ["text", "2", 2],
      ["ids", 5, 3],
      ["list", "medicine-01", 4],
    ]);
    expect(found[0]!.sequences.map(({ candidate }) => candidate)).toEqual([null, 0, 1, 2, 3, 4, 5]);
    expect(found[2]!.sequences[0]!.ids).toEqual(Int32Array.of(1, 2, 3, 2, 1));
    // A text begins with BOS, as the tokenizer asks.
    expect(found[1]!.sequences[0]!.ids[0]).toBe(1);
    for (const [l, line] of found.entries()) {
      for (const [i, { ids, states }] of line.sequences.entries()) {
        const [alone] = await hiddenStates(model, [ids], { layers, tokens });
        expect(firstBitDifference(states, alone!), `line ${l + 1}, sequence ${i}`).toBeUndefined();
      }
    }
  });

  it("gives the same states in small batches, with and without the shared prompt", async () => {
    const [first, ...others] = [
      await extract(MIXED),
      await extract(MIXED, { batchTokens: 80 }),
      await extract(MIXED, { sharePrefix: false }),
    ].map((outcomes) => extracted(outcomes).flatMap(({ sequences }) => sequences));
    for (const other of others) {
      expect(other.map(({ ids }) => ids)).toEqual(first!.map(({ ids }) => ids));
      for (const [i, { states }] of other.entries())
        expect(firstBitDifference(states, first![i]!.states), `sequence ${i}`).toBeUndefined();
    }
  });

  it("cuts ids and texts with truncate, and notes it; without, they are errors", async () => {
    const long = JSON.stringify({ ids: Array.from({ length: 600 }, (_, t) => t) });
    const text = JSON.stringify({ text: " word".repeat(600) });
    const refused = await extract([long, text, MIXED[2]!]);
    expect(refused.map((outcome) => (outcome.kind === "failed" ? outcome.error.code : outcome.kind))).toEqual([
      "list/too-long",
      "list/too-long",
      "extracted",
    ]);
    const cut = extracted(await extract([long, text, MIXED[2]!], { truncate: true }));
    expect(cut.map(({ sequences, notes }) => [sequences[0]!.ids.length, notes])).toEqual([
      [512, { truncated: [0] }],
      [512, { truncated: [0] }],
      [5, {}],
    ]);
  });

  it("needs no tokenizer for ids, and fails the lines that need one", async () => {
    const folder = await mkdtemp(join(tmpdir(), "stratum-extract-"));
    try {
      for (const name of ["config.json", "model.safetensors"]) await cp(join(DEMO_MODEL, name), join(folder, name));
      await using bare = await loadModel(engine, folder, { layer: 1 });
      const found = await extract([MIXED[2]!, MIXED[1]!, MIXED[0]!], { layers: [1] }, bare);
      expect(found.map((outcome) => (outcome.kind === "failed" ? outcome.error.code : outcome.kind))).toEqual([
        "extracted",
        "tokenizer/missing",
        "tokenizer/missing",
      ]);
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
});
