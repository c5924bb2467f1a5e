/** `inspect --quantise-report`: what quantised weights cost in accuracy and save in memory, measured on this model. */
import { join } from "node:path";
import { resolveLayers } from "../engine/layers.ts";
import type { ModelFiles } from "../engine/model-files.ts";
import { type QuantiseRow, quantiseReport } from "../engine/quantise-report.ts";
import { seededRandom } from "../kernels/random.ts";
import { createListEncoder } from "../scorer/encode.ts";
import { readLists } from "../scorer/lists.ts";
import { type CommonOptions, packageFolder, withEngine } from "./common.ts";
import { formatBytes, formatTable } from "./format.ts";
import { note, startProgress, writeStdout } from "./terminal.ts";

/** Sequences of the report, at most. */
const SEQUENCES = 24;
/** Where a model has no tokenizer. */
const RANDOM_LENGTH = 48;

/** Prompts and responses of the example lists; random ids where there is no tokenizer. */
async function sequencesOf(files: ModelFiles): Promise<{ sequences: Int32Array[]; what: string }> {
  const { vocab, maxPositions } = files.spec.config;
  const tokenizer = await files.tokenizer().catch(() => null);
  const sequences: Int32Array[] = [];
  if (tokenizer !== null) {
    const encoder = await createListEncoder(files, { truncate: true });
    for await (const line of readLists(join(packageFolder(), "cli", "examples", "everyday.jsonl"))) {
      if (line.kind === "list") sequences.push(...encoder.encode(line.list).group.sequences);
    }
    const what = `${Math.min(sequences.length, SEQUENCES)} prompts and responses of cli/examples/everyday.jsonl`;
    return { sequences: sequences.slice(0, SEQUENCES), what };
  }
  const random = seededRandom(1);
  const length = Math.min(RANDOM_LENGTH, maxPositions);
  for (let i = 0; i < SEQUENCES; i++) {
    sequences.push(Int32Array.from({ length }, () => Math.floor(random() * vocab)));
  }
  return { sequences, what: `${SEQUENCES} sequences of ${length} random ids (the model has no tokenizer)` };
}

/** Runs the report to the deepest of the layers and prints it. */
export async function runQuantiseReport(
  files: ModelFiles,
  flags: CommonOptions & { readonly layers: string },
): Promise<void> {
  const { layers } = files.spec.config;
  const layer = Math.max(...resolveLayers(flags.layers, layers));
  const { sequences, what } = await sequencesOf(files);
  await withEngine(flags, async (engine) => {
    note(`adapter ${engine.device.info.name} (${engine.device.info.source})`);
    const progress = startProgress(undefined, "forms");
    let rows: QuantiseRow[];
    try {
      rows = await quantiseReport(engine, files, layer, sequences);
    } finally {
      progress.stop();
    }
    if (flags.json) {
      await writeStdout(`${JSON.stringify({ model: files.name, layer, sequences: sequences.length, rows })}\n`);
      return;
    }
    const [stored] = rows;
    const table = formatTable(
      ["weights", "on the GPU", "of stored", "cosine, mean", "lowest", "NMSE"],
      rows.map(({ form, weight_bytes: bytes, cosine_mean: mean, cosine_min: low, nmse }) => [
        form,
        formatBytes(bytes),
        `${Math.round((100 * bytes) / Math.max(1, stored.weight_bytes))}%`,
        mean.toFixed(6),
        low.toFixed(6),
        nmse.toExponential(1),
      ]),
      [1, 2, 3, 4, 5],
    );
    await writeStdout(
      `Last-token states of layer ${layer} of ${layers}, against the stored weights; ${what}:\n${table}\n`,
    );
  });
}
