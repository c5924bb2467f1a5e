import { StratumError } from "../errors.ts";

/**
 * The layer that a text names: `8`, or `25%` = floor(0.25 L + 0.5), at least 1. Layer k is the residual stream after k
 * blocks: 0 the embeddings, L the last.
 * @throws {StratumError} `usage/layer`
 */
export function resolveLayer(text: string, layers: number): number {
  const fix = `give a whole number from 0 to ${layers}, or a percentage such as 25%`;
  const trimmed = text.trim();
  const percent = /^(\d+(?:\.\d+)?)%$/.exec(trimmed);
  if (percent) {
    const share = Number(percent[1]);
    if (share > 100) throw new StratumError("usage/layer", `layer '${text}': more than 100%`, fix);
    return Math.max(1, Math.floor((share / 100) * layers + 0.5));
  }
  if (!/^\d+$/.test(trimmed))
    throw new StratumError("usage/layer", `layer '${text}' is neither a number nor a percentage`, fix);
  const layer = Number(trimmed);
  if (layer > layers)
    throw new StratumError("usage/layer", `layer ${layer} is out of range: the model has ${layers} blocks`, fix);
  return layer;
}

/**
 * A list of layers: `all` (0 .. L), or names separated by commas; kept in the asked order, duplicates dropped.
 * @throws {StratumError} `usage/layer`
 */
export function resolveLayers(text: string, layers: number): number[] {
  if (text.trim() === "all") return Array.from({ length: layers + 1 }, (_, k) => k);
  return [...new Set(text.split(",").map((name) => resolveLayer(name, layers)))];
}
