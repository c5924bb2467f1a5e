/** Schemas of what others wrote. */
import type { z } from "zod";

/**
 * A schema of texts or arrays with at least so many characters or items. zod's own `.min` asks any object for its `length`
 * and compares it: one that is `{"toString": 1, "valueOf": 1}` ends that in a TypeError. Nothing is asked here of what is
 * of another type.
 */
export function nonEmpty<T extends z.ZodType<string | readonly unknown[]>>(schema: T, least = 1): T {
  return schema.refine((value) => value.length >= least, {
    error: ({ input }) =>
      typeof input === "string"
        ? `Too small: expected string to have >=${least} characters`
        : `Too small: expected array to have >=${least} items`,
  });
}
