/** `stratum rank`: data on stdout and nothing else, the same records whatever the company. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { RankingRecord } from "../../scorer/rankings.ts";
import {
  type CliRun,
  EXAMPLES,
  exampleLines,
  type Folder,
  jsonLines,
  lastJsonLine,
  stratum,
  temporaryFolder,
} from "../support/cli.ts";

interface ExampleList {
  readonly id: string;
  readonly instruction: string;
  readonly candidates: readonly { readonly text: string; readonly label: number }[];
}

const examples = exampleLines.map((line) => JSON.parse(line) as ExampleList);
/** Few enough for a run in seconds on a software adapter, enough for several batches of 128 tokens. */
const FEW = 6;
const fewLines = exampleLines.slice(0, FEW);

let folder: Folder;
let few: string;
let full: CliRun;
/** The records of all examples, ranked together with the defaults: what every other run must agree with. */
let records: RankingRecord[];

beforeAll(async () => {
  folder = await temporaryFolder();
  few = await folder.write("few.jsonl", `${fewLines.join("\n")}\n`);
  full = await stratum(["rank", EXAMPLES, "--json"]);
  records = jsonLines<RankingRecord>(full.stdout);
});
afterAll(() => folder[Symbol.asyncDispose]());

/** The first records of the full run, as bytes. */
const expectedBytes = () => `${full.stdout.split("\n").slice(0, FEW).join("\n")}\n`;

describe("the example lists", () => {
  it("give one record a list, in order, every candidate once, best first", () => {
    expect(full.code).toBe(0);
    expect(records.map(({ id }) => id)).toEqual(examples.map(({ id }) => id));
    for (const [i, { results, ...others }] of records.entries()) {
      expect(others).toEqual({ id: examples[i]!.id });
      expect(results.map(({ index }) => index).sort()).toEqual([...examples[i]!.candidates.keys()]);
      const scores = results.map((result) => result.relevance_score);
      expect(scores).toEqual([...scores].sort((a, b) => b - a));
      for (const score of scores) expect(Math.abs(score)).toBeLessThanOrEqual(1);
    }
    // A model that told nothing apart would pass everything above.
    expect(
      new Set(records.flatMap(({ results }) => results.map((result) => result.relevance_score))).size,
    ).toBeGreaterThan(examples.length);
  });

  it("end with a summary on stderr, with --json", () => {
    expect(lastJsonLine(full.stderr)).toMatchObject({
      lists: examples.length,
      failed: 0,
      candidates: examples.reduce((sum, { candidates }) => sum + candidates.length, 0),
      layer: 2,
      scorer: "cosine",
      output: null,
      stopped: false,
      adapter: expect.stringMatching(/./),
    });
  });
});

describe("the same records", () => {
  it("from stdin, byte for byte", async () => {
    const run = await stratum(["rank", "-"], { stdin: fewLines.join("\n") });
    expect([run.code, run.stdout]).toEqual([0, expectedBytes()]);
  });

  it("to a file, which appears whole and leaves no partial one; --quiet says nothing", async () => {
    const out = join(folder.path, "out.jsonl");
    const run = await stratum(["rank", few, "-o", out, "--quiet"]);
    expect([run.code, run.stdout]).toEqual([0, ""]);
    // Dawn writes these from C++, past Node's streams, on adapters with more dynamic buffers than it has use for.
    const ours = run.stderr.replaceAll(/^Warning: maxDynamic\w+ artificially reduced .*\n/gm, "");
    expect(ours).toBe("");
    expect(readFileSync(out, "utf8")).toBe(expectedBytes());
    expect(existsSync(`${out}.partial`)).toBe(false);
  });

  it.each([
    ["in batches of 128 tokens", ["--batch-tokens", "128"]],
    ["with the prompt computed again for every candidate", ["--no-share-prefix"]],
  ])("%s", async (_, flags) => {
    const run = await stratum(["rank", few, ...flags]);
    expect([run.code, run.stdout]).toEqual([0, expectedBytes()]);
  });

  it("by id in another order of the lists, cut by --top-n, with --return-documents and unknown fields", async () => {
    const changed = examples.slice(0, FEW).map((list) => ({
      topic: { of: list.id, numbers: [1, 2.5] },
      ...list,
      candidates: list.candidates.map((candidate, i) => (i === 0 ? { ...candidate, source: "web" } : candidate)),
    }));
    const stdin = `${changed
      .toReversed()
      .map((list) => JSON.stringify(list))
      .join("\n")}\n`;
    const run = await stratum(["rank", "--top-n", "2", "--return-documents"], { stdin });
    expect(run.code).toBe(0);
    const found = jsonLines<RankingRecord>(run.stdout);
    expect(found.map(({ id }) => id)).toEqual(changed.map(({ id }) => id).reverse());
    for (const [i, list] of changed.entries()) {
      expect(found.find(({ id }) => id === list.id)).toEqual({
        id: list.id,
        topic: list.topic,
        results: records[i]!.results.slice(0, 2).map((result) => ({
          ...result,
          document: list.candidates[result.index],
        })),
      });
    }
  });

  it("of the list that --instruction and --candidate spell", async () => {
    const { instruction, candidates } = examples[0]!;
    const flags = candidates.flatMap(({ text }) => ["--candidate", text]);
    const run = await stratum(["rank", "--instruction", instruction, ...flags]);
    expect(run.code).toBe(0);
    expect(jsonLines(run.stdout)).toEqual([{ id: "1", results: records[0]!.results }]);
  });
});

describe("--dry-run --json", () => {
  it("counts what a run would do, and runs nothing", async () => {
    const run = await stratum(["rank", EXAMPLES, "--dry-run", "--json"]);
    expect(run.code).toBe(0);
    const [estimate, ...more] = jsonLines<Record<string, number>>(run.stdout);
    expect(more).toEqual([]);
    const { lists, failed, candidates, tokens, gpu_bytes } = lastJsonLine(full.stderr);
    expect(estimate).toMatchObject({ lists, failed, candidates, tokens, gpu_bytes, layer: 2 });
    expect(estimate!["rows"]).toBeLessThan(estimate!["tokens"]!);
    for (const name of ["seconds", "rate_gflops", "batches", "flops", "read_bytes"])
      expect(estimate![name], name).toBeGreaterThan(0);
  });
});
