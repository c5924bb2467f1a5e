/** `stratum convert`: files in, lists out, and every row that could not be used told with its place. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readLists } from "../../scorer/lists.ts";
import { errorCodes, type Folder, jsonLines, lastJsonLine, stratum, temporaryFolder } from "../support/cli.ts";

let folder: Folder;
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());

const convert = (...args: string[]) => stratum(["convert", ...args]);
const parquet = fileURLToPath(new URL("../golden/import/pairs-zstd.parquet", import.meta.url));
const pair = (prompt: string, chosen: string, rejected: string) => ({
  chosen: `\n\nHuman: ${prompt}\n\nAssistant: ${chosen}`,
  rejected: `\n\nHuman: ${prompt}\n\nAssistant: ${rejected}`,
});

describe("convert", () => {
  it("joins files of several formats, tells what failed and what was merged, and writes what rank and train read", async () => {
    const rows = [pair("q", "good", "bad"), pair("q", "good", "worse"), { chosen: "no prompt", rejected: "x" }];
    const lines = gzipSync(`${rows.map((row) => JSON.stringify(row)).join("\n")}\nnope\n`);
    const hh = await folder.write("train.jsonl.gz", lines);
    const csv = await folder.write(
      "more.csv",
      'prompt,response,is_safe\nq,bad,1\n"Why, then?",so,yes\n"Why, then?",no,\n',
    );
    const out = join(folder.path, "lists.jsonl");
    const run = await convert(hh, csv, parquet, "-o", out, "--json");
    expect(run.code).toBe(1);
    expect(run.stdout).toBe("");
    expect(errorCodes(run.stderr)).toEqual(["list/bad-row", "list/bad-json"]);
    expect(run.stderr).toContain(`${hh} line 3: 'chosen' holds no conversation`);
    expect(run.stderr).toContain(`${csv}: a response a row: prompt 'prompt', response 'response', label 'is_safe'`);
    expect(run.stderr).toContain("1 duplicate of responses left out");
    expect(run.stderr).toContain("1 response with different labels in one list dropped (--contradictions)");
    expect(lastJsonLine(run.stderr)).toEqual({
      ...{ files: [hh, csv, parquet], rows: 9, failed: 2, lists: 4, candidates: 8, duplicates: 1, contradictions: 1 },
      ...{ unlabelled: 1, without_contrast: 1, emptied: 0, output: out },
    });
    const found = [];
    for await (const line of readLists(out)) found.push(line.kind === "list" ? line.list : line.error);
    expect(found).toMatchObject([
      {
        messages: [{ role: "user", content: "q" }],
        candidates: [
          { text: "good", label: 1 },
          { text: "worse", label: 0 },
        ],
      },
      { messages: [{ role: "user", content: "Why, then?" }], candidates: [{ text: "so", label: 1 }, { text: "no" }] },
      {
        candidates: [
          { text: "Cover it with a lid.", label: 1 },
          { text: "Pour water on it.", label: 0 },
        ],
      },
      { candidates: [{ label: 1 }, { label: 0 }] },
    ]);
  });

  it("takes rows from stdin, and writes nothing where no list is left", async () => {
    const stdin = `${JSON.stringify({ prompt: "q", response: "a", label: 2 })}\n`;
    const run = await stratum(["convert", "-", "-q"], { stdin });
    expect([run.code, run.stderr]).toEqual([0, ""]);
    expect(jsonLines(run.stdout)).toMatchObject([{ instruction: "q", candidates: [{ text: "a", label: 2 }] }]);
    const out = join(folder.path, "none.jsonl");
    const none = await stratum(["convert", "-", "--contrast-only", "-o", out], { stdin });
    expect([none.code, errorCodes(none.stderr)]).toEqual([1, ["list/no-contrast"]]);
    expect(existsSync(out) || existsSync(`${out}.partial`)).toBe(false);
  });

  it.each([
    [["nothing-there.jsonl"], 2, "usage/no-input"],
    [[parquet, parquet], 2, "usage/arguments"],
    [[parquet, "--label-field", "is_safe"], 2, "usage/fields"],
    [[parquet, "-o", "/no/such/folder/lists.jsonl"], 2, "usage/output"],
    [[parquet, "--delimiter", "::"], 2, "usage/arguments"],
    [["--format", "parquet", fileURLToPath(import.meta.url)], 1, "list/bad-parquet"],
  ])("%j: exit %i, %s", async (args, code, name) => {
    const run = await convert(...args);
    expect([run.code, errorCodes(run.stderr), run.stdout]).toEqual([code, [name], ""]);
    expect(run.stderr).not.toContain("    at ");
  });
});
