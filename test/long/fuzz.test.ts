/**
 * Fuzzing for a time: STRATUM_FUZZ_SECONDS of it over all targets (an hour where it is not set), every round with seeds of
 * its own. Needs nothing but that time. A finding names its target, seed and path: the ordinary tests give it again with
 * them (see test/support/fuzz/harness.ts).
 */
import { expect, it } from "vitest";
import { fuzz, seedOf, tell } from "../support/fuzz/harness.ts";
import { HUB_TARGETS } from "../support/fuzz/hub.ts";
import { JOURNAL_TARGETS } from "../support/fuzz/journals.ts";
import { LISTS_TARGETS } from "../support/fuzz/lists.ts";
import { MODEL_TARGETS } from "../support/fuzz/model.ts";
import { PARQUET_TARGETS } from "../support/fuzz/parquet.ts";
import { POOL_TARGETS } from "../support/fuzz/pool.ts";
import { ROWS_TARGETS } from "../support/fuzz/rows.ts";
import { SAFETENSORS_TARGETS } from "../support/fuzz/safetensors.ts";
import { SCORER_TARGETS } from "../support/fuzz/scorer.ts";
import { TEMPLATE_TARGETS } from "../support/fuzz/template.ts";
import { TOKENIZER_TARGETS } from "../support/fuzz/tokenizer.ts";

const TARGETS = [
  ...SAFETENSORS_TARGETS,
  ...MODEL_TARGETS,
  ...HUB_TARGETS,
  ...TOKENIZER_TARGETS,
  ...TEMPLATE_TARGETS,
  ...LISTS_TARGETS,
  ...SCORER_TARGETS,
  ...ROWS_TARGETS,
  ...PARQUET_TARGETS,
  ...JOURNAL_TARGETS,
  ...POOL_TARGETS,
];
/** Inputs of one target in one round; another one's turn comes within seconds. */
const ROUND = 500;

const SECONDS = Number(process.env["STRATUM_FUZZ_SECONDS"] ?? 3600);

it(
  `${SECONDS} seconds of hostile files of every kind`,
  async () => {
    const end = performance.now() + 1000 * SECONDS;
    const first = Date.now();
    let inputs = 0;
    let rounds = 0;
    for (; performance.now() < end; rounds++) {
      const began = inputs;
      for (const target of TARGETS) {
        if (performance.now() >= end) break;
        const runs = Math.min(ROUND, target.runs);
        const seed = seedOf(target, first + rounds);
        try {
          await fuzz(target, runs, seed);
        } catch (thrown) {
          tell(`${target.name}: STRATUM_FUZZ_SEED=${seed}`);
          throw thrown;
        }
        inputs += runs;
      }
      tell(`fuzzing, round ${rounds + 1} from seed ${first + rounds}: ${inputs - began} inputs, ${inputs} in all`);
    }
    // At the slowest of them all: a hang that the watch of the harness did not see would be seen here.
    expect(inputs).toBeGreaterThan(SECONDS);
  },
  1000 * (SECONDS + 600),
);
