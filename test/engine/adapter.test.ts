/** Which adapter is taken: children with an environment of their own, as the Vulkan loader reads it once a process. */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { openAdapter, probeSystem } from "../../engine/adapter.ts";
import { activateEmbedded, embeddedSupported, unpackEmbedded } from "../../engine/embedded.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const NOWHERE = { VK_DRIVER_FILES: "/nonexistent/driver.json", VK_ICD_FILENAMES: "/nonexistent/driver.json" };
const NOT_HERE = embeddedSupported() ? "" : " (skipped: nothing is embedded for this platform)";

interface Report {
  readonly source?: string;
  readonly name?: string;
  readonly trials?: readonly { readonly source: string; readonly outcome: string; readonly detail: string }[];
  readonly out?: readonly number[];
  readonly environment?: string;
  readonly code?: string;
  readonly message?: string;
  readonly fix?: string;
}

/** Opens an engine in a child, runs a kernel on it, and reports. */
const SCRIPT = `
import { createEngine } from "./engine/model.ts";
import { runKernel } from "./engine/run-kernel.ts";
import { rowGather } from "./kernels/row-gather.ts";
const report = (value) => { console.log(JSON.stringify(value)); process.exit(0); };
try {
  const { device, pipelines } = await createEngine(JSON.parse(process.env.OPTIONS));
  const buffers = { x: Float32Array.of(1, 2, 3, 4), index: Uint32Array.of(1, 0), out: new Float32Array(4) };
  const { out } = await runKernel(device, pipelines, rowGather({ d: 2 }), buffers, 2);
  const { source, name, trials } = device.info;
  report({ source, name, trials, out: [...out], environment: process.env.VK_DRIVER_FILES ?? "unset" });
} catch ({ code, message, fix }) {
  report({ code, message, fix });
}`;

function openInChild(options: { adapter?: string }, environment: Record<string, string>): Promise<Report> {
  const { STRATUM_ADAPTER: _, ...inherited } = process.env;
  const env = { ...inherited, ...environment, OPTIONS: JSON.stringify(options) };
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", SCRIPT], { cwd: ROOT, env });
    let [out, err] = ["", ""];
    child.stdout.on("data", (chunk) => {
      out += chunk;
    });
    child.stderr.on("data", (chunk) => {
      err += chunk;
    });
    child.on("close", (code) => {
      const line = out.trim().split("\n").at(-1);
      if (line) resolve(JSON.parse(line) as Report);
      else reject(new Error(`exit ${code}: ${err}`));
    });
  });
}

describe.skipIf(!embeddedSupported())(`where no driver is found${NOT_HERE}`, () => {
  it("'embedded' computes, and leaves the environment as it was", async () => {
    const report = await openInChild({ adapter: "embedded" }, NOWHERE);
    expect(report).toMatchObject({ source: "embedded", out: [3, 4, 1, 2], environment: NOWHERE.VK_DRIVER_FILES });
    expect(report.name).toMatch(/swiftshader/i);
    expect(report.trials).toEqual([{ source: "embedded", outcome: "taken", detail: report.name }]);
  });

  it("'auto' tries the system, says why not, and takes the embedded one", async () => {
    const report = await openInChild({}, NOWHERE);
    expect(report).toMatchObject({ source: "embedded", out: [3, 4, 1, 2] });
    expect(report.trials).toMatchObject([
      { source: "system", outcome: "failed", detail: expect.stringMatching(/\S/) },
      { source: "embedded", outcome: "taken", detail: report.name },
    ]);
  });

  it("'SwiftShader' by name is the embedded one, too", async () => {
    expect(await openInChild({ adapter: "SwiftShader" }, NOWHERE)).toMatchObject({ source: "embedded" });
  });
});

it("'system' where no driver is found: an error that says what was tried and what to install", async () => {
  const report = await openInChild({ adapter: "system" }, NOWHERE);
  expect(report).toMatchObject({ code: "adapter/none", fix: expect.stringMatching(/driver.*--adapter auto/) });
  expect(report.message).toMatch(/--adapter system \(system: .+\)/);
  expect(report.message).not.toContain("embedded");
});

it("STRATUM_ADAPTER is the default of createEngine; an option wins", async () => {
  const wrong = await openInChild({}, { STRATUM_ADAPTER: "no such adapter" });
  expect(wrong).toMatchObject({ code: "adapter/none", message: expect.stringContaining("no such adapter") });
  const option = await openInChild({ adapter: "system" }, { ...NOWHERE, STRATUM_ADAPTER: "embedded" });
  expect(option).toMatchObject({ code: "adapter/none", message: expect.stringContaining("--adapter system") });
});

it("an unknown name: an error with what was tried, and how to go on", async () => {
  await expect(openAdapter("no such adapter")).rejects.toMatchObject({
    code: "adapter/none",
    kind: "environment",
    message: expect.stringMatching(/--adapter no such adapter \(system: .+\)/),
    fix: expect.stringContaining("--adapter auto"),
  });
});

it("the probe reports a failure and never throws", async () => {
  // Where no driver is installed there is no adapter of any name.
  expect(await probeSystem("no such adapter")).toMatchObject({
    error: expect.stringMatching(/no such adapter|no adapter/),
  });
});

describe.skipIf(!embeddedSupported())(`the embedded driver${NOT_HERE}`, () => {
  it("is unpacked once, with a manifest that names its library by an absolute path", () => {
    const folder = unpackEmbedded();
    expect(unpackEmbedded()).toBe(folder);
    const manifest = JSON.parse(readFileSync(`${folder}/stratum_icd.json`, "utf8")) as {
      ICD: { library_path: string };
    };
    expect(manifest.ICD.library_path).toBe(`${folder}/libvk_swiftshader.so`);
    expect(readFileSync(manifest.ICD.library_path).subarray(1, 4).toString()).toBe("ELF");
  });

  it("is in the environment only while an adapter is requested", () => {
    const before = [process.env["VK_DRIVER_FILES"], process.env["VK_ICD_FILENAMES"]];
    const restore = activateEmbedded();
    expect(process.env["VK_DRIVER_FILES"]).toContain("stratum_icd.json");
    expect(process.env["VK_ICD_FILENAMES"]).toBe(process.env["VK_DRIVER_FILES"]);
    restore();
    expect([process.env["VK_DRIVER_FILES"], process.env["VK_ICD_FILENAMES"]]).toEqual(before);
  });
});
