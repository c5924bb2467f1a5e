/** A day, as chat templates write it. */
import { StratumError } from "../errors.ts";

/** Midnight UTC of a day. @param date `2026-01-31` @throws {StratumError} `template/bad-date` */
export function parseDate(date: string): Date {
  const parsed = /^\d{4}-\d{2}-\d{2}$/.test(date) ? new Date(`${date}T00:00:00Z`) : new Date(Number.NaN);
  if (Number.isNaN(parsed.getTime()) || parsed.toISOString().slice(0, 10) !== date) {
    throw new StratumError("template/bad-date", `${JSON.stringify(date)} is not a day`, "write it as 2026-01-31");
  }
  return parsed;
}

const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS = "January February March April May June July August September October November December".split(" ");

/** C's strftime in the C locale, at midnight UTC; a code that it does not know stays as written, as in glibc. */
export function strftime(date: Date, format: string): string {
  const day = date.getUTCDate();
  const month = date.getUTCMonth();
  const year = date.getUTCFullYear();
  const weekday = date.getUTCDay();
  const dayOfYear = Math.round((date.getTime() - Date.UTC(year, 0, 1)) / 86_400_000) + 1;
  const padded = (value: number, width = 2) => String(value).padStart(width, "0");
  const dayName = DAYS[weekday] ?? "";
  const monthName = MONTHS[month] ?? "";
  const codes: Readonly<Record<string, string>> = {
    a: dayName.slice(0, 3),
    A: dayName,
    b: monthName.slice(0, 3),
    B: monthName,
    c: `${dayName.slice(0, 3)} ${monthName.slice(0, 3)} ${String(day).padStart(2)} 00:00:00 ${padded(year, 4)}`,
    d: padded(day),
    e: String(day).padStart(2),
    f: "000000",
    F: `${padded(year, 4)}-${padded(month + 1)}-${padded(day)}`,
    h: monthName.slice(0, 3),
    H: "00",
    I: "12",
    j: padded(dayOfYear, 3),
    m: padded(month + 1),
    M: "00",
    p: "AM",
    R: "00:00",
    S: "00",
    T: "00:00:00",
    u: String(weekday === 0 ? 7 : weekday),
    w: String(weekday),
    x: `${padded(month + 1)}/${padded(day)}/${padded(year % 100)}`,
    X: "00:00:00",
    y: padded(year % 100),
    Y: padded(year, 4),
    z: "",
    Z: "",
    "%": "%",
    "-d": String(day),
    "-m": String(month + 1),
    "-H": "0",
    "-I": "12",
    "-M": "0",
    "-S": "0",
    "-j": String(dayOfYear),
  };
  return format.replace(/%(-?[A-Za-z%])/g, (written, code: string) => codes[code] ?? written);
}
