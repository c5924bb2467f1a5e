/** Rows that `convert` takes, of every format but Parquet, and rankings that others read. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { readRankings } from "../../../scorer/ranking-lines.ts";
import { openRows, type RowFormat } from "../../../scorer/rows.ts";
import { chunks } from "../chunks.ts";
import { fuzzFolder } from "./folder.ts";
import { codeOf, type FuzzTarget, fuzzTarget, type Outcome, outcomeOf } from "./harness.ts";
import { changedJsonText, damaged } from "./mutations.ts";

const encoder = new TextEncoder();
const folder = fuzzFolder("rows");

const ROWS = [
  { prompt: "why?", chosen: "so", rejected: "no", n: 1 },
  { prompt: 'a,"b"\nc', chosen: [{ role: "user", content: "x" }], rejected: "" },
];
const CSV = ['prompt,chosen,rejected\nwhy?,"so, ""it"" is",no\n', "a;b\r\n1;2\r\n", "a\tb\n1\t2\n", "\ufeffa,a\n1,2\n"];

/** Every row of a file; the first error of a row, or `ok`. */
async function readRows(bytes: Uint8Array, format: RowFormat): Promise<Outcome> {
  const path = join(folder, `rows.${format}`);
  writeFileSync(path, bytes);
  let first: Outcome | undefined;
  const outcome = await outcomeOf(async () => {
    const source = await openRows(path, { format });
    for await (const { place, error } of source.rows(source.names.slice(0, 3))) {
      if (place === "") throw new Error("a row of no place");
      if (error !== undefined) first ??= codeOf(error);
    }
  });
  return outcome === "ok" ? (first ?? "ok") : outcome;
}

const texts = fc.oneof(
  fc.tuple(changedJsonText([ROWS], ["prompt", "chosen"]), fc.constant<RowFormat>("json")),
  fc.tuple(
    fc
      .array(changedJsonText(ROWS, ["prompt", "chosen"]), { minLength: 1, maxLength: 3 })
      .map((lines) => Buffer.concat(lines.flatMap((line) => [line, encoder.encode("\n")]))),
    fc.constant<RowFormat>("jsonl"),
  ),
  fc.tuple(damaged(CSV.map((text) => encoder.encode(text))), fc.constantFrom<RowFormat>("csv", "tsv")),
  fc.tuple(
    damaged([gzipSync(JSON.stringify(ROWS)), gzipSync(CSV[0]!)]),
    fc.constantFrom<RowFormat>("json", "csv", "jsonl"),
  ),
);

const RANKINGS = [
  {
    id: "a",
    results: [
      { index: 1, id: "c", relevance_score: 0.5 },
      { index: 0, relevance_score: -1 },
    ],
    k: 1,
  },
  { id: 7, error: { code: "list/bad-shape", message: "m", fix: "f" } },
  { id: "b", results: [{ index: 0, relevance_score: 1, document: { text: "t" } }], abstained: true },
];
const rankings = fc
  .array(changedJsonText(RANKINGS, ["results", "index", "relevance_score", "error", "abstained"]), {
    minLength: 1,
    maxLength: 3,
  })
  .map((lines) => Buffer.concat(lines.flatMap((line) => [line, encoder.encode("\n")])));

export const ROWS_TARGETS: readonly FuzzTarget[] = [
  fuzzTarget(
    "rows: changed and damaged JSON, CSV and gzip",
    2000,
    ["ok", "list/bad-json", "list/bad-csv", "list/bad-utf8"],
    texts,
    ([bytes, format]) => readRows(bytes, format),
  ),
  fuzzTarget(
    "rankings: changed and damaged lines",
    3000,
    ["ok", "list/bad-ranking", "list/bad-json", "list/bad-utf8", "list/duplicate-id"],
    rankings,
    (bytes) =>
      outcomeOf(async () => {
        for await (const { line } of readRankings(chunks(bytes))) if (line < 1) throw new Error(`line ${line}`);
      }),
  ),
];
