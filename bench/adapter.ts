/**
 * One driver for every process. onnxruntime takes no adapter's name, so the choice is made where all runtimes look: a
 * Vulkan loader that reads one manifest finds one driver.
 */
import { readdirSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { probeSystem } from "../engine/adapter.ts";
import { StratumError } from "../errors.ts";
import { driverVariables } from "./child.ts";
import type { SharedAdapter } from "./protocol.ts";

const EMBEDDED: SharedAdapter = { name: "SwiftShader (embedded)", source: "embedded", manifest: null };

/**
 * Finds the adapter that a choice names, as the engine does, and its driver's manifest.
 * @throws {StratumError} `adapter/none`
 */
export async function sharedAdapter(choice: string): Promise<SharedAdapter> {
  if (choice === "embedded") return EMBEDDED;
  const part = choice === "auto" || choice === "system" ? undefined : choice;
  const found = await probeSystem(part);
  if (!("error" in found)) {
    return { name: found.name, source: "system", manifest: await manifestOf(found.name, part) };
  }
  if (choice === "auto" || "swiftshader".includes(choice.toLowerCase())) return EMBEDDED;
  throw new StratumError(
    "adapter/none",
    `no WebGPU adapter for --adapter ${choice} (${found.error})`,
    "use --adapter auto, system, embedded, or a part of a name",
  );
}

/** The manifest whose driver alone gives the adapter of this name. */
async function manifestOf(name: string, part: string | undefined): Promise<string | null> {
  if (process.platform !== "linux") return null;
  const chosen = process.env["VK_DRIVER_FILES"] ?? process.env["VK_ICD_FILENAMES"];
  if (chosen !== undefined) return chosen;
  for (const manifest of manifests()) {
    const found = await withVariables(driverVariables(manifest), () => probeSystem(part));
    if (!("error" in found) && found.name === name) return manifest;
  }
  return null;
}

/** Where the Vulkan loader looks for drivers. */
function manifests(): string[] {
  const home = process.env["XDG_DATA_HOME"] ?? join(homedir(), ".local/share");
  const folders = ["/usr/local/etc", "/usr/local/share", "/etc", "/usr/share", home];
  return folders.flatMap((folder) => {
    const directory = join(folder, "vulkan/icd.d");
    try {
      return readdirSync(directory)
        .filter((file) => file.endsWith(".json"))
        .map((file) => join(directory, file));
    } catch {
      return [];
    }
  });
}

async function withVariables<T>(variables: Record<string, string>, act: () => Promise<T>): Promise<T> {
  Object.assign(process.env, variables);
  try {
    return await act();
  } finally {
    for (const name of Object.keys(variables)) delete process.env[name];
  }
}
