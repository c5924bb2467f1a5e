/** What a record says of the run that made it: command, model, adapter, versions. */
import { dawnVersion } from "../engine/tuner-cache.ts";
import type { ReportRun } from "../scorer/report-data.ts";
import { packageVersion, recordedName } from "./common.ts";
import type { LentModel } from "./features.ts";

/** Of this process, and of the model that it runs. */
export function runRecord({
  files,
  fingerprint,
  engine,
  kernels,
}: LentModel): Pick<ReportRun, "command" | "date" | "model" | "adapter" | "kernels" | "versions"> {
  const { name, source, software } = engine.device.info;
  const { config, form } = files.spec;
  const revision = files.pinned ? (files.name.split("@").at(1) ?? null) : null;
  return {
    command: ["stratum", ...process.argv.slice(2)].map(shellWord).join(" "),
    date: new Date().toISOString(),
    model: {
      ...{ name: recordedName(files), revision, fingerprint },
      ...{ type: config.modelType, layers: config.layers, hidden_size: config.hiddenSize, weights: form },
    },
    ...{ adapter: { name, source, software }, kernels: kernels.id },
    versions: {
      ...{ stratum: packageVersion(), node: process.version, webgpu: dawnVersion() },
      platform: `${process.platform} ${process.arch}`,
    },
  };
}

/** A word as a shell takes it. */
function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
