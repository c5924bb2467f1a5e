/** A sweep under faults of the GPU: its parts are tested by themselves, and all of them together take long. */
import { join } from "node:path";
import { expect, it } from "vitest";
import { exampleLines, jsonLines, stratum, temporaryFolder, writeTinyTextModel } from "../support/cli.ts";

it("a sweep whose GPU is lost, in its pass, its trainings and its scoring, writes the same cells", async () => {
  await using folder = await temporaryFolder();
  await using tiny = await writeTinyTextModel({ layers: 1 });
  const lists = await folder.write("lists.jsonl", `${exampleLines.slice(0, 24).join("\n")}\n`);
  const what = ["--model", tiny.directory, "--layers", "0", "--seeds", "1", "--preset", "pointwise"];
  const sweep = async (out: string, faults: string) => {
    const args = ["sweep", lists, ...what, "--no-control", "--no-states", "--no-cache", "-o", join(folder.path, out)];
    const { code, stderr } = await stratum(args, { below: ["env", `STRATUM_FAULTS=${faults}`] });
    const cells = jsonLines(await folder.read(join(out, "cells.jsonl"))).map(({ ms: _, ...cell }) => cell);
    return { code, cells, losses: stderr.match(/^warning: the GPU device was lost/gm)?.length ?? 0 };
  };
  const whole = await sweep("whole", "");
  expect([whole.code, whole.losses, whole.cells.length > 0]).toEqual([0, 0, true]);
  const lost = await sweep("lost", "device-lost@2,device-lost@100,device-lost@180");
  expect(lost).toEqual({ ...whole, losses: 3 });
});
