/** Options of the commands that measure: what counts as safe, and how intervals are taken. */
import { Option } from "commander";
import { number } from "./numbers.ts";

export function safeFromOption(): Option {
  return new Option(
    "--safe-from <label>",
    "a candidate with this label or a higher one is safe (default: its list's highest)",
  ).argParser(number(-Number.MAX_VALUE, Number.MAX_VALUE, "a number"));
}

export function bootstrapOption(): Option {
  return new Option("--bootstrap <n>", "samples of the bootstrap, 100 to 100000")
    .argParser(number(100, 100_000, "a number from 100 to 100000"))
    .default(2000);
}
