/** Numbers on the command line. */
import { InvalidArgumentError } from "commander";

/** A number between two bounds; `above`: not the lower one itself. */
export function number(low: number, high: number, what: string, above = false): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isFinite(value) || value < low || value > high || (above && value === low))
      throw new InvalidArgumentError(`${what} is needed.`);
    return value;
  };
}

/** A whole number from 0. */
export function wholeNumber(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text.trim()) || !Number.isSafeInteger(value))
    throw new InvalidArgumentError("a whole number from 0 is needed.");
  return value;
}

/** A size such as 2GiB, 500MB or 1024. */
export function byteCount(text: string): number {
  const found = /^(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?$/i.exec(text.trim());
  if (found === null) throw new InvalidArgumentError("a size is needed, such as 2GiB or 500MB.");
  const [, value, unit = ""] = found;
  const power = ["", "k", "m", "g", "t"].indexOf(unit.charAt(0).toLowerCase());
  return Math.floor(Number(value) * (unit.endsWith("i") ? 1024 : 1000) ** power);
}

/** A share that is neither nothing nor all. */
export function properShare(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !(value > 0 && value < 1))
    throw new InvalidArgumentError("a share above 0 and below 1 is needed.");
  return value;
}

/** A part of the lists. */
export const share = number(0, 0.9, "a share from 0 to 0.9");
