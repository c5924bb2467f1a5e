/** The readers of models' files against hostile ones: see test/support/fuzz/harness.ts. */
import { describe, expect, it } from "vitest";
import { type FuzzTarget, fuzz, seedOf } from "../support/fuzz/harness.ts";
import { HUB_TARGETS } from "../support/fuzz/hub.ts";
import { MODEL_TARGETS } from "../support/fuzz/model.ts";
import { SAFETENSORS_TARGETS } from "../support/fuzz/safetensors.ts";
import { TEMPLATE_TARGETS } from "../support/fuzz/template.ts";
import { TOKENIZER_TARGETS } from "../support/fuzz/tokenizer.ts";

const TARGETS: readonly FuzzTarget[] = [
  ...SAFETENSORS_TARGETS,
  ...MODEL_TARGETS,
  ...HUB_TARGETS,
  ...TOKENIZER_TARGETS,
  ...TEMPLATE_TARGETS,
];

describe("hostile files", () => {
  it.each(TARGETS.map((target) => [target.name, target] as const))(
    "%s",
    async (_name, target) => {
      const outcomes = await fuzz(target, target.runs, seedOf(target, 20261126));
      expect([...outcomes.keys()], JSON.stringify([...outcomes])).toEqual(expect.arrayContaining([...target.reaches]));
    },
    600_000,
  );
});
