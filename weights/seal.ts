/** JSON that carries a hash of itself: what is damaged and still reads as valid is not taken for what was written. */
import { createHash } from "node:crypto";
import { isJsonObject } from "./json.ts";

/** The JSON of an object, a line without its end, with a hash under `check`. */
export function sealed(value: Readonly<Record<string, unknown>>): string {
  // As it will be read back.
  const text = JSON.stringify(value);
  return JSON.stringify({ ...(JSON.parse(text) as object), check: hashOf(text) });
}

/** What was sealed; null for anything else. @param value parsed JSON */
export function unsealed(value: unknown): Readonly<Record<string, unknown>> | null {
  if (!isJsonObject(value)) return null;
  const { check, ...rest } = value;
  return check === hashOf(JSON.stringify(rest)) ? rest : null;
}

function hashOf(text: string): string {
  return createHash("sha256").update(text).digest("base64");
}
