import { fileURLToPath } from "node:url";
import { arraySource, type FeatureSource } from "../../scorer/feature-source.ts";
import type { ScorerSpec } from "../../scorer/scorer-spec.ts";
import { openSafetensors } from "../../weights/safetensors.ts";

/** Scores, losses, gradients and training curves from PyTorch in float64; see the README beside the reference values. */
export const SCORER_GOLDEN = fileURLToPath(new URL("../golden/scorer/scorer.safetensors", import.meta.url));

export const GOLDEN_SPEC: ScorerSpec = { head: "listwise", dim: 32, width: 16, heads: 2, ffn: 64, tau: 0.2 };

export interface ScorerGolden {
  /** Any tensor of the file. */
  readonly tensor: (name: string) => Float32Array<ArrayBuffer>;
  /** The tensors below a prefix, by the rest of their names. */
  readonly below: (prefix: string) => Map<string, Float32Array<ArrayBuffer>>;
  readonly source: FeatureSource;
  /** (m) scores of every list. */
  readonly scores: readonly Float32Array[];
}

/** Reads the golden file; its padded lists become ragged. */
export async function readScorerGolden(): Promise<ScorerGolden> {
  await using file = await openSafetensors(SCORER_GOLDEN);
  const tensors = new Map<string, Float32Array<ArrayBuffer>>();
  for (const name of file.tensors.keys()) tensors.set(name, new Float32Array((await file.read(name)).buffer));
  const tensor = (name: string) => {
    const found = tensors.get(name);
    if (found === undefined) throw new Error(`no tensor ${name}`);
    return found;
  };
  const [lists, padded, dim] = file.info("resp").shape;
  const [mask, resp, labels, scores] = ["mask", "resp", "labels", "scores"].map(tensor);
  const offsets = [0];
  const rows: number[] = [];
  for (let b = 0; b < lists; b++) {
    for (let m = 0; m < padded; m++) if (mask[b * padded + m] === 1) rows.push(b * padded + m);
    offsets.push(rows.length);
  }
  return {
    tensor,
    below: (prefix) =>
      new Map(
        [...tensors].flatMap(([name, values]) =>
          name.startsWith(prefix) ? [[name.slice(prefix.length), values]] : [],
        ),
      ),
    source: arraySource({
      dim,
      inst: tensor("inst"),
      resp: Float32Array.from(rows.flatMap((row) => [...resp.subarray(row * dim, (row + 1) * dim)])),
      labels: Float32Array.from(rows, (row) => labels[row]),
      offsets: Uint32Array.from(offsets),
    }),
    scores: Array.from({ length: lists }, (_, b) =>
      Float32Array.from(rows.slice(offsets[b], offsets[b + 1]), (row) => scores[row]),
    ),
  };
}
