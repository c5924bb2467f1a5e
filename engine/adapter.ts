/// <reference types="@webgpu/types" />
/**
 * Which adapter runs: what the system offers (a real GPU, then a system software driver), else the embedded one.
 * A driver is probed in a child process: one that crashes takes only the child along, and the Vulkan loader reads its
 * environment once.
 */
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { create } from "webgpu";
import { messageOf, StratumError } from "../errors.ts";
import { activateEmbedded } from "./embedded.ts";

/** `auto`, `system`, `embedded`, or a part of a system adapter's name. */
export type AdapterChoice = string;

export interface AdapterTrial {
  readonly source: "system" | "embedded";
  readonly outcome: "taken" | "failed";
  /** The adapter's name, or why it failed. */
  readonly detail: string;
}

export interface OpenAdapter {
  readonly adapter: GPUAdapter;
  /** Asks for the adapter once more: each gives one device. */
  readonly again: () => Promise<GPUAdapter>;
  /** Dawn's instance: it must outlive every object made from it. */
  readonly instance: GPU;
  readonly source: "system" | "embedded";
  /** What was tried, in order. */
  readonly trials: readonly AdapterTrial[];
}

const PROBE_TIMEOUT_MS = 60_000;

/** Runs in the child: opens adapter and device, prints one JSON line. */
const PROBE_SCRIPT = `
const [url, ...options] = process.argv.slice(1);
const { create, globals } = await import(url);
Object.assign(globalThis, globals);
try {
  const instance = create(options);
  const adapter = await instance.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new Error("no adapter");
  const name = adapter.info.description || adapter.info.device;
  await adapter.requestDevice();
  console.log(JSON.stringify({ name }));
} catch (error) {
  console.log(JSON.stringify({ error: String(error?.message ?? error) }));
}
process.exit(0);
`;

/** Dawn's options: on Linux only Vulkan serves compute, and asking for it alone spares the probing of GL. */
function dawnOptions(name?: string, timed = false): string[] {
  const options = process.platform === "linux" ? ["backend=vulkan"] : [];
  // Dawn rounds timestamps to some 65 us, as browsers must: longer than many a kernel.
  if (timed) options.push("disable-dawn-features=timestamp_quantization");
  return name === undefined ? options : [...options, `adapter=${name}`];
}

/** The name to ask Dawn for again, or why there is no adapter. */
type Probe = { name: string; asked: string | undefined } | { error: string };

/**
 * Asks the system for an adapter in a child process: any, or the one whose name holds `part`, in whatever case. Never
 * throws.
 */
export async function probeSystem(part?: string): Promise<Probe> {
  const probe = await probeOnce(part);
  if (part === undefined || !("error" in probe)) return probe;
  // Dawn lists what there is, and compares with case.
  const names = [...probe.error.matchAll(/name: '([^'\n]*)'/g)].map(([, name]) => name);
  const meant = names.find((name) => name.toLowerCase().includes(part.toLowerCase()));
  if (meant !== undefined && !meant.includes(part)) return probeOnce(meant);
  return names.length > 0 ? { error: `no adapter is called '${part}'; there is ${names.join(", ")}` } : probe;
}

function probeOnce(name?: string): Promise<Probe> {
  const url = pathToFileURL(createRequire(import.meta.url).resolve("webgpu")).href;
  return new Promise((resolve) => {
    const child = spawn(process.execPath, ["--input-type=module", "-e", PROBE_SCRIPT, url, ...dawnOptions(name)], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    const timer = setTimeout(() => {
      child.kill("SIGKILL");
      resolve({ error: `the driver did not answer within ${PROBE_TIMEOUT_MS / 1000} s` });
    }, PROBE_TIMEOUT_MS);
    let out = "";
    let err = "";
    child.stdout.on("data", (chunk) => {
      out += chunk;
    });
    child.stderr.on("data", (chunk) => {
      err = (err + chunk).slice(-2000);
    });
    child.on("error", (cause) => resolve({ error: messageOf(cause) }));
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      const line = out.trim().split("\n").at(-1) ?? "";
      try {
        const found = { ...(JSON.parse(line) as { name: string } | { error: string }), asked: name };
        // Dawn's reason ("Found no drivers!") stands on stderr only.
        const why = /Warning: (vk[^\n]*)/.exec(err)?.[1];
        resolve("error" in found && why !== undefined ? { error: `${found.error.trim()} (${why})` } : found);
      } catch {
        resolve({
          error: `the driver ended its process (${signal ?? `exit ${code}`}) ${err.trim().split("\n")[0] ?? ""}`.trim(),
        });
      }
    });
  });
}

async function request(options: string[]): Promise<Pick<OpenAdapter, "instance" | "adapter" | "again">> {
  const instance = create(options);
  const again = async () => {
    const adapter = await instance.requestAdapter({ powerPreference: "high-performance" });
    if (!adapter) throw new Error("no adapter");
    return adapter;
  };
  return { instance, adapter: await again(), again };
}

/**
 * Opens the adapter that a choice names.
 * @param timed timestamps are wanted as exact as they are
 * @throws {StratumError} `adapter/none` with everything that was tried and what to install
 */
export function openAdapter(choice: AdapterChoice, timed = false): Promise<OpenAdapter> {
  const turn = opening.then(() => openNow(choice, timed));
  opening = turn.catch(() => undefined);
  return turn;
}

/** One adapter is opened at a time: the loader's variables belong to the process. */
let opening: Promise<unknown> = Promise.resolve();

async function openNow(choice: AdapterChoice, timed: boolean): Promise<OpenAdapter> {
  const trials: AdapterTrial[] = [];
  const fixes: string[] = [];
  const named = ["auto", "system", "embedded"].includes(choice) ? undefined : choice;
  const attempt = async (source: "system" | "embedded"): Promise<OpenAdapter | undefined> => {
    let restore: (() => void) | undefined;
    let name: string | undefined;
    try {
      if (source === "system") {
        const probe = await probeSystem(named);
        if ("error" in probe) throw new Error(probe.error);
        name = probe.asked;
      } else restore = activateEmbedded();
      const opened = await request(dawnOptions(name, timed));
      trials.push({ source, outcome: "taken", detail: adapterName(opened.adapter.info) });
      return { ...opened, source, trials };
    } catch (cause) {
      if (cause instanceof StratumError) fixes.push(cause.fix);
      trials.push({
        source,
        outcome: "failed",
        detail: messageOf(cause)
          .trim()
          .replaceAll(/\s*\n\s*/g, "; "),
      });
      return undefined;
    } finally {
      restore?.();
    }
  };
  const wantsEmbedded =
    choice === "auto" || choice === "embedded" || (named !== undefined && "swiftshader".includes(named.toLowerCase()));
  const opened =
    (choice === "embedded" ? undefined : await attempt("system")) ??
    (wantsEmbedded ? await attempt("embedded") : undefined);
  if (opened) return opened;
  const tried = trials.map((t) => `${t.source}: ${t.detail}`).join("; ");
  throw new StratumError(
    "adapter/none",
    `no WebGPU adapter for --adapter ${choice} (${tried})`,
    [...fixes, installHint(choice)].join("; "),
  );
}

function installHint(choice: AdapterChoice): string {
  if (choice === "system" || choice === "embedded") return `${platformHint()}; or use --adapter auto`;
  return choice === "auto"
    ? platformHint()
    : "use a part of a name that is listed, or --adapter auto, system or embedded";
}

function platformHint(): string {
  if (process.platform === "linux") {
    return process.arch === "x64"
      ? "install a Vulkan driver (your GPU's, or mesa-vulkan-drivers 24 or later), or run npm ci without --omit=optional to get the embedded adapter"
      : "install a Vulkan driver (your GPU's, or mesa-vulkan-drivers 24 or later); nothing is embedded for this platform";
  }
  return `${process.platform}: update the graphics driver; nothing is embedded for this platform`;
}

/** An adapter's name for people. */
export function adapterName(info: GPUAdapterInfo): string {
  return info.description || info.device || `${info.vendor} ${info.architecture}`.trim() || "unnamed adapter";
}
