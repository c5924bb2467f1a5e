/** Curves in the terminal. */
import { plot } from "asciichart";

const HEIGHT = 9;

/** Mean of every bin, at most `width` bins: a long curve in the columns of a terminal. */
export function binned(values: readonly number[], width: number): number[] {
  const bins = Math.min(values.length, Math.max(1, width));
  return Array.from({ length: bins }, (_, i) => {
    const part = values.slice(
      Math.floor((i * values.length) / bins),
      Math.max(Math.floor(((i + 1) * values.length) / bins), Math.floor((i * values.length) / bins) + 1),
    );
    return part.reduce((sum, value) => sum + value, 0) / part.length;
  });
}

/** A curve with its axis, `width` columns at most. */
export function curve(values: readonly number[], width: number): string {
  const shown = binned(values, width - 12);
  // A single point has no curve, and a level one no height.
  const line = shown.length === 1 ? [shown[0], shown[0]] : shown;
  if (Math.min(...line) === Math.max(...line)) return `${line[0].toFixed(3).padStart(9)} throughout`;
  return plot(line, { height: HEIGHT, format: (value: number) => value.toFixed(3).padStart(9) });
}
