/** How an error is expected. */
import { expect } from "vitest";

/** An error of ours with a code, whose message holds all of the patterns, in any order. */
export const failing = (code: string, ...words: readonly (string | RegExp)[]) =>
  expect.objectContaining({
    name: "StratumError",
    code,
    message: expect.stringMatching(
      words.map((word) => `(?=[^]*${typeof word === "string" ? word : word.source})`).join(""),
    ),
  });
