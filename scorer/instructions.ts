/** What instruction a list is about: lists of one instruction are never on two sides of a split. */
import { createHash } from "node:crypto";
import type { List } from "./lists.ts";

/** 16 hexadecimal digits; the same for lists whose messages are the same. */
export function instructionKey({ messages }: Pick<List, "messages">): string {
  const text = JSON.stringify(messages.map(({ role, content }) => [role, content]));
  return createHash("sha256").update(text).digest("hex").slice(0, 16);
}

/** The instructions that a scorer was trained with, as its training record (`scorer.json`) has them. */
export interface InstructionRecord {
  readonly train: readonly string[];
  readonly validation: readonly string[];
  /** Held out: neither seen by the training nor by the choice of its best epoch. */
  readonly test: readonly string[];
}
