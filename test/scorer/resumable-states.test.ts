/** A file of states whose process is lost at any instant: what lies there then is gone on with, and ends in the same bytes. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { messageOf } from "../../errors.ts";
import { readSequences } from "../../scorer/lists.ts";
import { openStatesFile } from "../../scorer/resumable-states.ts";
import { type Folder, temporaryFolder } from "../support/cli.ts";
import { contents, instantsOf, layOut } from "../support/instants.ts";

let folder: Folder;
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());

const LINES = 14;
const D = 8;
/** Three sequences a part, about. */
const PART_BYTES = 3 * 200;

/** Extracts into a folder what is left of the lines, with states that follow from the line. */
async function extract(input: string, place: string): Promise<void> {
  const file = await openStatesFile({
    ...{ output: join(place, "out.safetensors"), run: { layer: 1 }, input, restart: false, held: async () => true },
    plan: async () => ({ total: LINES, ranges: null, whole: null }),
    states: { layers: 1, tokens: "all", d: D, partBytes: PART_BYTES },
  });
  const sink = await file.begin({ adapter: "a", kernels: "k", tiles: [] }, { model: "m" });
  for await (const item of readSequences(input, file.resumed.read)) {
    const { line, position } = item;
    const ids = Int32Array.from({ length: 4 + (line % 3) }, (_, i) => line + i);
    const states = Float32Array.from({ length: ids.length * D }, (_, i) => line + i / 100);
    const sequence = { candidate: -1, ids, states };
    const id = line;
    await sink.write({ ...{ kind: "extracted", line, id, source: "ids", notes: {}, position }, sequences: [sequence] });
  }
  await sink.finish();
}

it("at every instant that the disk shows", async () => {
  const input = await folder.write(
    "lines.jsonl",
    Array.from({ length: LINES }, (_, i) => `${JSON.stringify({ ids: [i + 1] })}\n`).join(""),
  );
  const place = join(folder.path, "run");
  mkdirSync(place);
  const seen = await instantsOf(place, () => extract(input, place));
  const whole = contents(place);
  expect(Object.keys(whole).filter((name) => /-\d{5}\.safetensors$/.test(name)).length).toBeGreaterThan(3);
  expect(Object.keys(whole).filter((name) => /partial|journal/.test(name))).toEqual([]);
  expect(seen.length).toBeGreaterThan(50);
  let instant = 0;
  for (const found of seen) {
    const copy = join(folder.path, `instant-${++instant}`);
    layOut(copy, found);
    const left = `instant ${instant}: ${Object.keys(found).join(" ")}`;
    const message = await extract(input, copy).then(() => null, messageOf);
    expect([left, message, contents(copy)]).toEqual([left, null, whole]);
  }
}, 120_000);
