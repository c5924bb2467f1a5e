/// <reference types="@webgpu/types" />
/** A browser's `navigator.gpu` on Dawn, for libraries that know no other door. */
import { availableParallelism } from "node:os";
import { create, globals } from "webgpu";
import { adapterName } from "../engine/adapter.ts";
import { StratumError } from "../errors.ts";

/** Dawn's instance must outlive every object made from it. */
let instance: GPU | undefined;

/**
 * Provides the globals.
 * @returns the name of the adapter that a library will be given
 * @throws {StratumError} `adapter/none`
 */
export async function provideGpu(): Promise<string> {
  instance = create(process.platform === "linux" ? ["backend=vulkan"] : []);
  Object.assign(globalThis, globals);
  Object.defineProperty(globalThis, "navigator", {
    value: { gpu: instance, userAgent: "Node.js", hardwareConcurrency: availableParallelism() },
    configurable: true,
  });
  const adapter = await instance.requestAdapter({ powerPreference: "high-performance" });
  if (adapter) return adapterName(adapter.info);
  throw new StratumError("adapter/none", "Dawn found no adapter in this process", "see stratum doctor");
}
