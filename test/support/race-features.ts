/** A process of its own that asks the cache for features: two of them race. Prints what it got. */
import { createHash } from "node:crypto";
import { loadModel } from "../../engine/hidden-states.ts";
import { createEngine } from "../../engine/model.ts";
import { cachedFeatures } from "../../scorer/features-cache.ts";
import { readLists } from "../../scorer/lists.ts";
import { readList } from "./features.ts";

const [folder, directory, lists] = process.argv.slice(2) as [string, string, string];
using engine = await createEngine();
await using model = await loadModel(engine, directory, { layer: 2 });
const notes: string[] = [];
await using found = await cachedFeatures({
  layers: [1, 2],
  lines: () => readLists(lists),
  model: async () => model,
  directory,
  fingerprint: "f",
  adapter: engine.device.info.name,
  version: "1",
  folder,
  onNote: (text) => notes.push(text),
});
const hash = createHash("sha256");
for (const { source } of found.layers) {
  for (let b = 0; b < source.lists; b++) hash.update(await readList(source, b));
}
const { ids, reused } = found.layers[0]!;
process.stdout.write(`${JSON.stringify({ ids, reused, notes, states: hash.digest("hex") })}\n`);
