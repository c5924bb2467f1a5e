/** The working buffers of a runner: for as many rows as a batch may hold, and for more where they are asked for. */
import { StratumError } from "../errors.ts";
import type { ModelSpec } from "./decoder.ts";
import type { Device } from "./device.ts";
import type { DeviceBuffer, DeviceTexture } from "./device-memory.ts";
import type { Workspace } from "./forward.ts";
import type { BoundBuffer } from "./pipelines.ts";
import { type BatchBudget, planWorkspace, type WorkspaceName, type WorkspaceSize } from "./plan.ts";
import { checkPlan, createPlanned, type PlannedMemory } from "./planned-buffer.ts";
import { fewerRows } from "./room.ts";
import { ropeRegions, ropeTables } from "./rope-table.ts";

/** Disposing it frees the buffers. */
export interface WorkingBuffers extends Disposable {
  /** Rows that a batch may hold, and to how many they may grow: less once the GPU had no memory for as much. */
  readonly budget: number;
  readonly maxBudget: number;
  readonly plan: readonly PlannedMemory[];
  /** By name; what a run's output does not need is absent. */
  readonly buffers: Workspace;
  /** The rotation table of each of the model's rotary embeddings. */
  readonly ropeTables: readonly BoundBuffer[];
  /**
   * Makes room for so many rows, at most `maxBudget`; for half as many where the GPU has no memory for so many.
   * @throws {StratumError} `memory/buffer-limit`, `memory/out-of-memory`
   */
  grow(rows: number): Promise<void>;
}

/** Makes the buffers of a budget, as {@link WorkingBuffers.grow} does. */
export async function createWorkingBuffers(
  device: Device,
  spec: ModelSpec,
  size: Omit<WorkspaceSize, "rows">,
  granted: BatchBudget,
): Promise<WorkingBuffers> {
  let { maxBudget } = granted;
  let budget = 0;
  let plan: readonly PlannedMemory[] = [];
  let buffers = {} as Workspace;
  let tables: readonly BoundBuffer[] = [];

  const release = () => {
    for (const buffer of Object.values(buffers)) buffer.destroy();
    buffers = {} as Workspace;
    plan = [];
  };
  const allocate = async (rows: number) => {
    const planned = planWorkspace(spec, { ...size, rows });
    checkPlan([...planned.values()], device.info.limits);
    // The old buffers first: both together may be more than there is.
    release();
    if (budget > 0) await device.freed();
    const made: Partial<Record<WorkspaceName, DeviceBuffer | DeviceTexture>> = {};
    buffers = made as Workspace;
    try {
      await device.allocating(() => {
        for (const [name, buffer] of planned) made[name] = createPlanned(device, buffer);
      });
      const regions = ropeRegions(spec.config, rows);
      if (regions.length > 0) device.write(buffers.ropeTable, ropeTables(regions, rows));
      tables = regions.map(({ offset, bytes }) => ({ buffer: buffers.ropeTable, offset, size: bytes }));
    } catch (cause) {
      release();
      throw cause;
    }
    plan = [...planned.values()];
    budget = rows;
  };
  const grow = async (asked: number) => {
    // For so many there was memory.
    const before = budget;
    for (let rows = Math.min(asked, maxBudget); rows > budget || plan.length === 0; ) {
      try {
        await allocate(rows);
      } catch (cause) {
        const short = cause instanceof StratumError && cause.code === "memory/out-of-memory";
        const less = short && device.failure === undefined ? fewerRows(device, cause, rows, before) : null;
        if (less === null) throw cause;
        rows = less;
        maxBudget = less;
      }
    }
  };
  await grow(granted.budget);

  return {
    get budget() {
      return budget;
    },
    get maxBudget() {
      return maxBudget;
    },
    get plan() {
      return plan;
    },
    get buffers() {
      return buffers;
    },
    get ropeTables() {
      return tables;
    },
    grow,
    [Symbol.dispose]: release,
  };
}
