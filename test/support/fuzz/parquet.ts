/** Parquet files of every compression, damaged: the process that decodes them may end, this one may not. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { openParquet } from "../../../scorer/rows-parquet.ts";
import { fuzzFolder } from "./folder.ts";
import { type FuzzTarget, fuzzTarget, outcomeOf } from "./harness.ts";
import { damaged } from "./mutations.ts";

const folder = fuzzFolder("parquet");

const SEEDS = ["snappy", "zstd", "gzip", "uncompressed"].map((codec) =>
  readFileSync(new URL(`../../golden/import/pairs-${codec}.parquet`, import.meta.url)),
);
/** Little memory, so that what grows without bound is soon over. */
const LIMITS = { ms: 20_000, bytes: 2 ** 28 };

/** Bytes in the place of others, as many: lengths that a page's levels begin with, and anything. */
const overwritten = fc
  .tuple(
    fc.constantFrom(...SEEDS),
    fc.array(
      fc.record({
        at: fc.nat(2000),
        put: fc.oneof(
          fc.uint8Array({ minLength: 1, maxLength: 3 }),
          fc.constantFrom([0xfe, 0xff, 0xff, 0xff], [0xfe, 0xff, 0xff, 0xff, 0x0f], [0xff, 0xff, 0x7f], [0x80, 0x00]),
        ),
      }),
      { minLength: 1, maxLength: 3 },
    ),
  )
  .map(([seed, edits]) => {
    const bytes = Uint8Array.from(seed);
    for (const { at, put } of edits) bytes.set(put, at % (bytes.length - put.length));
    return bytes;
  });

export const PARQUET_TARGETS: readonly FuzzTarget[] = [
  fuzzTarget(
    "rows: damaged Parquet",
    200,
    ["ok", "list/bad-parquet"],
    fc.oneof({ weight: 4, arbitrary: overwritten }, { weight: 1, arbitrary: damaged(SEEDS) }),
    async (bytes) => {
      const path = join(folder, "rows.parquet");
      writeFileSync(path, bytes);
      return outcomeOf(async () => {
        const { rows, names, total } = await openParquet(path, LIMITS);
        let count = 0;
        for await (const { place } of rows(names)) if (place !== `row ${++count}`) throw new Error(place);
        if (count !== total) throw new Error(`${count} rows of ${total}`);
      });
    },
  ),
];
