/// <reference types="@webgpu/types" />
/** What goes wrong on a GPU, as errors of ours. */
import { StratumError } from "../errors.ts";

/** What was on the device is gone. */
export function lostError(message: string, cause?: unknown): StratumError {
  return new StratumError(
    "device/lost",
    message,
    "run the command again; if it recurs, lower --batch-tokens, or use --adapter embedded",
    cause,
  );
}

export function outOfMemory(what: string): StratumError {
  return new StratumError(
    "memory/out-of-memory",
    `the GPU is out of memory: ${what}`,
    "lower --batch-tokens (of a training: --gpu-memory), or choose a smaller --layer or model",
  );
}

/** What Dawn says of a command. */
export function fromGpuError(error: GPUError): StratumError {
  const first = error.message.split("\n")[0] ?? "";
  if (error.constructor.name === "GPUOutOfMemoryError") return outOfMemory(first);
  return new StratumError(
    "device/validation",
    `the GPU refused a command: ${first}`,
    "this is a defect of Stratum: please report it with the output of `stratum doctor --json`",
  );
}
