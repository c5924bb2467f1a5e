/** `stratum bench`: rows, pages, comparisons with earlier runs, and what is refused. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { benchPage } from "../../cli/bench-page.ts";
import { errorCodes, type Folder, jsonLines, stratum, temporaryFolder } from "../support/cli.ts";

const nullable = z.number().min(0).nullable();
const Document = z.object({
  ...{ command: z.string(), adapter: z.string(), machine: z.string(), node: z.string(), version: z.string() },
  model: z.string().optional(),
  ceilings: z.object({ gflops: z.number().positive(), gbps: z.number().positive() }).nullable(),
  rows: z.array(
    z.object({
      ...{ name: z.string().min(1), shape: z.string().min(1), dtype: z.string(), variant: z.string().min(1) },
      ...{ median_ms: z.number().positive(), iqr_ms: z.number().min(0), runs: z.int().min(1) },
      ...{ gflops: nullable, gbps: nullable, ceiling_share: nullable },
    }),
  ),
});

let folder: Folder;
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());

const PRODUCT = ["bench", "kernels", "--shapes", "16x64x96", "--runs", "2", "--no-ceilings"];

/** The page's own copy of the data. */
function dataOf(page: string): unknown {
  const [, data] = /<script type="application\/json" id="data">(.*)<\/script>/s.exec(page) ?? [];
  return JSON.parse(data ?? "");
}

describe("a benchmark", () => {
  it("prints rows, writes them into a page that needs nothing else, and compares them", async () => {
    const path = join(folder.path, "page.html");
    const run = await stratum([...PRODUCT, "--json", "--html", path]);
    expect(run.code, run.stderr).toBe(0);
    const [printed] = jsonLines(run.stdout);
    const document = Document.parse(printed);
    expect(document).toMatchObject({
      ...{ command: "bench kernels", model: "16x64x96", ceilings: null },
      rows: [{ name: "matmul", shape: "16 x 64 x 96", dtype: "bf16", ceiling_share: null }],
    });
    expect(printed).toMatchObject({ wrong: [], left: [] });

    const page = await readFile(path, "utf8");
    expect(Document.parse(dataOf(page))).toEqual(document);
    // Nothing is fetched and no script runs: links lead into the page alone.
    expect(page).not.toMatch(/(src|href)="(?!#)|@import|url\(/);
    expect(page.match(/<script/g)).toHaveLength(1);
    expect(page).toMatch(/<a [^>]*href="#row-1"/);
    expect(page).toContain('<tr id="row-1">');

    const [row] = document.rows;
    const compare = async (changes: object) => {
      const old = await folder.write("old.json", JSON.stringify({ ...document, rows: [{ ...row, ...changes }] }));
      // One run has no spread: what is left of the noise is a tenth.
      return await stratum([...PRODUCT, "--runs", "1", "--compare", old]);
    };
    // Beyond any noise: a thousandth of the time, and a thousand times it.
    const slower = await compare({ median_ms: row!.median_ms / 1000, iqr_ms: 0 });
    expect([slower.code, /^slower matmul 16 x 64 x 96/m.test(slower.stdout)]).toEqual([1, true]);
    const faster = await compare({ median_ms: row!.median_ms * 1000, iqr_ms: 0 });
    expect([faster.code, /^faster matmul 16 x 64 x 96/m.test(faster.stdout)]).toEqual([0, true]);
  });

  it("of a stack takes a configuration and no checkpoint", async () => {
    const config = await folder.write(
      "tiny.json",
      JSON.stringify({
        ...{ model_type: "llama", hidden_size: 64, intermediate_size: 172, num_hidden_layers: 3, vocab_size: 50 },
        ...{ num_attention_heads: 4, num_key_value_heads: 2, rms_norm_eps: 1e-5, max_position_embeddings: 256 },
      }),
    );
    const model = ["--config", config, "--random-weights", "--no-ceilings", "--json", "--runs", "1"];
    const forward = await stratum(["bench", "forward", ...model, "--batch", "2", "--tokens", "16", "--layer", "2"]);
    expect(forward.code, forward.stderr).toBe(0);
    const document = Document.parse(jsonLines(forward.stdout)[0]);
    expect(document.rows).toMatchObject([{ name: "forward", shape: "2 x 16 tokens to layer 2", dtype: "bf16" }]);

    const rank = await stratum([
      "bench",
      "rank",
      ...model,
      "--prompt",
      "24",
      "--candidates",
      "2",
      "--tokens",
      "8",
      "-l",
      "1",
    ]);
    expect(rank.code, rank.stderr).toBe(0);
    const [printed] = jsonLines(rank.stdout);
    const { rows } = Document.parse(printed);
    const [once, every, whole, full] = rows.map(({ median_ms }) => median_ms);
    const { factors } = z.object({ factors: z.record(z.string(), z.number().positive()) }).parse(printed);
    expect(factors["prefix_sharing"]).toBeCloseTo(every! / once!, 3);
    expect(factors["last_row_pruning"]).toBeCloseTo(whole! / every!, 3);
    expect(factors["truncation"]).toBeCloseTo(full! / whole!, 3);
    expect(factors["together"]).toBeCloseTo(full! / once!, 3);
  });
});

describe("a page", () => {
  const base = { command: "bench kernels", adapter: "a <b> & c", machine: "m", node: "v20", version: "0" };
  const row = (name: string, gflops: number | null, gbps: number | null) => ({
    ...{ name, shape: "1 x 1", dtype: "f32", variant: "</script>", median_ms: 1, iqr_ms: 0, runs: 1 },
    ...{ gflops, gbps, ceiling_share: null },
  });

  it("holds names that look like markup as text", () => {
    const document = {
      ...base,
      ceilings: { gflops: 30, gbps: 10 },
      rows: [row("matmul <q>", 5, 1), row("norm", null, 2)],
    };
    const page = benchPage(document);
    expect(dataOf(page)).toEqual(document);
    expect(page).toContain("a &lt;b&gt; &amp; c");
    expect(page).not.toContain("<q>");
    // A point where operations and bytes are counted, drawn for a wide screen and a narrow one, and a row for each.
    expect([page.match(/<a [^>]*href="#row-1"/g)?.length, page.match(/<tr id=/g)?.length]).toEqual([2, 2]);
    // The roof: up to the knee, then level.
    const roof = /stroke="var\(--fore\)" fill="none"><path d="M([^"]+)"/.exec(page)?.[1]?.split("L") ?? [];
    const [low, knee, end] = roof.map((place) => Number(place.split(",")[1]));
    expect([roof.length, low! > knee!, knee === end]).toEqual([3, true, true]);
    expect(page).not.toContain("NaN");
  });

  it("without a point says so", () => {
    expect(benchPage({ ...base, ceilings: null, rows: [row("norm", null, 2)] })).toContain("nothing to plot");
  });
});

describe("what cannot be timed is refused", () => {
  it.each([
    ["an unknown op", "usage/op", ["kernels", "--op", "convolution"]],
    ["an op of a product", "usage/op", ["kernels", "--op", "norm", "--shapes", "1x2x3"]],
    ["shapes of nothing", "config/missing", ["kernels", "--shapes", "gpt-9"]],
    ["a configuration without weights", "usage/bench", ["forward", "--config", "smollm2-135m"]],
    ["two models", "usage/bench", ["forward", "--config", "smollm2-135m", "--random-weights", "-m", "x"]],
    ["a configuration that is not there", "config/missing", ["rank", "--config", "/nowhere", "--random-weights"]],
    ["fits of one layer", "usage/bench", ["forward", "--fit", "--layer", "1"]],
    ["more tokens than positions", "usage/bench", ["forward", "--tokens", "100000"]],
    ["an earlier run that is not there", "usage/compare", ["peak", "--compare", "/nowhere/old.json"]],
    ["a page in a folder that is not there", "usage/output", ["peak", "--html", "/nowhere/page.html"]],
  ] as const)("%s: %s", async (_, code, args) => {
    const run = await stratum(["bench", ...args]);
    expect([errorCodes(run.stderr), run.code, run.stdout], run.stderr).toEqual([[code], 2, ""]);
  });

  it("an earlier run of another kind or adapter", async () => {
    const other = await folder.write("other.json", JSON.stringify({ rows: [{ name: "x" }] }));
    const unlike = await stratum([...PRODUCT, "--compare", other]);
    expect([errorCodes(unlike.stderr), unlike.code]).toEqual([["usage/compare"], 2]);
    const elsewhere = await folder.write("elsewhere.json", JSON.stringify({ adapter: "another", rows: [] }));
    const run = await stratum([...PRODUCT, "--compare", elsewhere]);
    expect([errorCodes(run.stderr), run.code]).toEqual([["usage/compare"], 2]);
  });

  it.each([
    ["0x2x3", /error usage\/shapes.*whole numbers from 1/s],
    ["1x2x99999999999", /error usage\/shapes/],
  ])("a product %s", async (shapes, says) => {
    const run = await stratum(["bench", "kernels", "--shapes", shapes]);
    expect(run.code).toBe(2);
    expect(run.stderr).toMatch(says);
  });
});
