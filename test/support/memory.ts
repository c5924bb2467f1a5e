/** What this process holds, by who holds it: each part is flat to the last few KiB where resident size jumps by MiB. */
import { readFileSync } from "node:fs";
import { queryObjects, setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import koffi from "koffi";
import { globals } from "webgpu";

/** Bytes. */
export interface Memory {
  /** JavaScript's objects and the array buffers that they own. */
  readonly objects: number;
  /**
   * What malloc has given out: to Dawn, the driver, V8 and Node. NaN where the C library is not glibc. Free memory between
   * is not in it, which arenas of many threads hold more or less of: that is why resident size rises and falls.
   */
  readonly native: number;
  /** Resident files and shared memory: of lavapipe, buffers on the GPU and bind groups. NaN where there is no /proc. */
  readonly mapped: number;
  readonly resident: number;
}

interface MallInfo {
  readonly uordblks: number | bigint;
  readonly hblkhd: number | bigint;
}

const mallinfo = ((): (() => MallInfo) | undefined => {
  if (process.platform !== "linux") return undefined;
  const fields = [
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
  ];
  try {
    const type = koffi.struct("mallinfo2", Object.fromEntries(fields.map((name) => [name, "size_t"])));
    return koffi.load("libc.so.6").func("mallinfo2", type, []) as () => MallInfo;
  } catch {
    return undefined;
  }
})();

/** Resident bytes that no other memory stands for. */
function anonymous(): number {
  try {
    return 1024 * Number(/^Anonymous:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/smaps_rollup", "utf8"))?.[1]);
  } catch {
    return Number.NaN;
  }
}

/** Call {@link collect} first: what is dead counts, too. */
export function memoryNow(): Memory {
  const { rss, heapUsed, external } = process.memoryUsage();
  const info = mallinfo?.();
  return {
    objects: heapUsed + external,
    native: info === undefined ? Number.NaN : Number(info.uordblks) + Number(info.hblkhd),
    mapped: rss - anonymous(),
    resident: rss,
  };
}

setFlagsFromString("--expose-gc");
const gc = runInNewContext("gc") as () => void;

/** Collects garbage, and what the GPU's objects free when they are collected: in a later turn of the event loop. */
export async function collect(): Promise<void> {
  for (let i = 0; i < 2; i++) {
    gc();
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/** Whoever keeps one of these keeps what it holds on the GPU. */
const GPU_OBJECTS = ["GPUBindGroup", "GPUBuffer", "GPUComputePipeline"] as const;

/** How many objects of WebGPU are alive; a kind takes some 0.3 s. */
export function gpuObjects(): string {
  const classes = globals as Readonly<Record<string, new () => object>>;
  return GPU_OBJECTS.map((name) => `${queryObjects(classes[name]!, { format: "count" })} ${name}`).join(", ");
}
