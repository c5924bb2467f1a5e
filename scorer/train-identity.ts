/** What a resumed run must share with the one that was stopped. */
import { createHash, type Hash } from "node:crypto";
import type { Engine } from "../engine/model.ts";
import { StratumError } from "../errors.ts";
import { type FeatureSource, listLength } from "./feature-source.ts";
import type { TrainOptions, TrainRun } from "./train-options.ts";

/** What a resumed run must share with the one that wrote the checkpoint. */
export async function runIdentity(
  source: FeatureSource,
  options: TrainOptions,
  run: TrainRun,
  engine: Engine,
): Promise<Record<string, unknown>> {
  const bytes = (values: Float32Array | Uint32Array) =>
    new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const labels = createHash("sha256").update(bytes(source.offsets)).update(bytes(source.labels));
  const states = createHash("sha256");
  for (let b = 0; b < source.lists; b++) {
    const values = new Float32Array((1 + listLength(source, b)) * source.dim);
    await source.readList(b, values);
    states.update(bytes(values));
  }
  const instructions = createHash("sha256");
  for (const text of run.instructions ?? []) instructions.update(`${text.length}:${text}`);
  const lists = createHash("sha256").update(Uint32Array.from(run.lists ?? []));
  const init = createHash("sha256");
  for (const [name, values] of run.init ?? []) init.update(name).update(bytes(values));
  const short = (hash: Hash) => hash.digest("hex").slice(0, 16);
  const data = { states: short(states), labels: short(labels), instructions: short(instructions), lists: short(lists) };
  return JSON.parse(
    JSON.stringify({
      ...options,
      ...data,
      init: run.init === undefined ? null : short(init),
      adapter: engine.device.info.name,
      kernels: run.kernels ?? null,
    }),
  ) as Record<string, unknown>;
}

export function checkSameRun(before: Readonly<Record<string, unknown>>, now: Readonly<Record<string, unknown>>): void {
  const differs = [...new Set([...Object.keys(before), ...Object.keys(now)])].filter(
    (name) => JSON.stringify(before[name]) !== JSON.stringify(now[name]),
  );
  if (differs.length === 0) return;
  throw new StratumError(
    "train/other-run",
    `the checkpoint is of another run: ${differs.map((name) => `${name} was ${JSON.stringify(before[name]) ?? "absent"}, is ${JSON.stringify(now[name]) ?? "absent"}`).join("; ")}`,
    "resume with the options, the data, the adapter and the kernels (--tune) of the run that was stopped, or train anew in another folder",
  );
}
