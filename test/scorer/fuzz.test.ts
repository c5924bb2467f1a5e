/** The readers of lists, scorers and features against hostile files: see test/support/fuzz/harness.ts. */
import { describe, expect, it } from "vitest";
import { fuzz, seedOf } from "../support/fuzz/harness.ts";
import { JOURNAL_TARGETS } from "../support/fuzz/journals.ts";
import { LISTS_TARGETS } from "../support/fuzz/lists.ts";
import { PARQUET_TARGETS } from "../support/fuzz/parquet.ts";
import { POOL_TARGETS } from "../support/fuzz/pool.ts";
import { ROWS_TARGETS } from "../support/fuzz/rows.ts";
import { SCORER_TARGETS } from "../support/fuzz/scorer.ts";

describe("hostile files", () => {
  it.each(
    [...LISTS_TARGETS, ...SCORER_TARGETS, ...ROWS_TARGETS, ...PARQUET_TARGETS, ...JOURNAL_TARGETS, ...POOL_TARGETS].map(
      (target) => [target.name, target] as const,
    ),
  )(
    "%s",
    async (_name, target) => {
      const outcomes = await fuzz(target, target.runs, seedOf(target, 20261126));
      expect([...outcomes.keys()], JSON.stringify([...outcomes])).toEqual(expect.arrayContaining([...target.reaches]));
    },
    600_000,
  );
});
