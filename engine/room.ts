/**
 * What keeps work going over faults of the GPU: a step that ends because the device was lost, or had no memory, is done
 * again with everything built anew. A state does not depend on its batch, so that a repeated step gives the same bits.
 */
import { StratumError } from "../errors.ts";
import type { Device } from "./device.ts";

/** Losses without a step done between them, after which the device is given up. */
export const MOST_LOSSES = 3;

/** Rows of a batch below which it is not the batch that memory is short for. */
const LEAST_ROWS = 64;

/**
 * Half as many rows a batch, as memory was short for so many; it is said.
 * @param enough rows that memory has sufficed for
 * @returns null where it is not the batch that memory is short for
 */
export function fewerRows(device: Device, { message }: StratumError, rows: number, enough = 0): number | null {
  if (rows < 2 * LEAST_ROWS || rows <= enough) return null;
  const less = Math.max(enough, Math.floor(rows / 2));
  device.note(`${message}; batches have at most ${less} tokens from now on (${rows} before)`);
  return less;
}

/** Counts what goes wrong until something has gone well. */
interface Recovery {
  /**
   * Mends what a step has thrown: gets another device where this one is broken.
   * @param generation of the device that the step began on
   * @param rows of the batches that were too large, where it can be done with smaller ones
   * @returns the rows to try next; undefined where their number was not at fault
   * @throws {StratumError} what cannot be mended
   */
  mend(thrown: unknown, generation: number, rows?: number): Promise<number | undefined>;
  /** Something was done: losses before it do not count. */
  done(): void;
}

function recovery(device: Device): Recovery {
  let losses = 0;
  return {
    async mend(thrown, generation, rows) {
      // Dawn's own errors on a broken device are consequences.
      const cause = thrown instanceof StratumError ? thrown : device.failure;
      if (cause === undefined) throw thrown;
      const { code, message, fix } = cause;
      let less: number | null = null;
      const latched = device.failure !== undefined;
      if (code === "memory/out-of-memory") {
        // Where the device is as it was, whoever asked for the memory has tried with less.
        if (latched && rows !== undefined) less = fewerRows(device, cause, rows);
        if (less === null) throw cause;
      } else if (code === "device/lost") {
        losses++;
        if (losses >= MOST_LOSSES) {
          throw new StratumError(
            code,
            `${message}; it was lost ${losses} times in a row on the same work`,
            fix,
            thrown,
          );
        }
        if (latched) device.note(`${message}; it is opened again, and what was under way is repeated`);
      } else throw cause;
      if (latched) await device.renew(generation);
      return less ?? undefined;
    },
    done() {
      losses = 0;
    },
  };
}

/**
 * Runs a step until it ends without a loss of the device. It must begin from nothing that lies on the GPU.
 * @param step `done` says that something was done that a repetition need not do again
 * @throws {StratumError} what the step throws; `device/lost` after {@link MOST_LOSSES} losses, or where there is no other device
 */
export async function overLosses<R>(device: Device, step: (done: () => void) => Promise<R>): Promise<R> {
  const { mend, done } = recovery(device);
  for (;;) {
    const { generation } = device;
    try {
      return await step(done);
    } catch (thrown) {
      await mend(thrown, generation);
    }
  }
}

/** What a room holds: everything on the GPU that batches need. */
export interface Furniture extends Disposable {
  readonly runner: {
    /** Rows of a batch. */
    readonly budget: number;
  };
}

/** Where batches are run. Disposing it disposes what it holds. */
export interface Room<T extends Furniture> extends Disposable {
  /** What the room holds, or held last where it is being built anew. */
  readonly current: T;
  /**
   * Runs a step with what the room holds, when the one before has ended; again, with everything built anew, where the device is lost or memory is short.
   * @throws {StratumError} what the step throws and what building throws; `device/lost` after {@link MOST_LOSSES} losses,
   *   `memory/out-of-memory` where the smallest batches find no memory
   */
  run<R>(step: (current: T) => Promise<R>): Promise<R>;
  /** Has the next step begin with everything built anew, for batches of so many rows, however short memory was before. */
  widen(rows: number): Promise<void>;
}

/**
 * Furnishes a room.
 * @param make builds what it holds; `mostRows` bounds a batch once memory has been short
 * @param rows of a batch as it is asked for
 */
export async function openRoom<T extends Furniture>(
  device: Device,
  make: (mostRows: number | undefined) => Promise<T>,
  rows: number,
): Promise<Room<T>> {
  let held: { readonly generation: number; readonly value: T } | undefined;
  let last: T | undefined;
  let mostRows: number | undefined;
  let disposed = false;
  let turn: Promise<unknown> = Promise.resolve();
  const clear = () => {
    held?.value[Symbol.dispose]();
    held = undefined;
  };

  async function runNow<R>(step: (current: T) => Promise<R>): Promise<R> {
    const { mend } = recovery(device);
    for (;;) {
      // Another room may have had the device renewed.
      if (held !== undefined && held.generation !== device.generation) clear();
      const { generation } = device;
      try {
        if (disposed) throw new StratumError("device/disposed", "the room was disposed", "create another");
        if (held === undefined) {
          last = await make(mostRows);
          held = { generation, value: last };
        }
        return await step(held.value);
      } catch (thrown) {
        const before = held?.value.runner.budget ?? Math.min(rows, mostRows ?? rows);
        clear();
        mostRows = (await mend(thrown, generation, before)) ?? mostRows;
      }
    }
  }
  /** One step at a time: what a step builds anew, another must not be working with. */
  function run<R>(step: (current: T) => Promise<R>): Promise<R> {
    const running = turn.then(() => runNow(step));
    turn = running.catch(() => undefined);
    return running;
  }

  function widen(rows: number): Promise<void> {
    const widening = turn.then(() => {
      mostRows &&= Math.max(mostRows, rows);
      clear();
    });
    turn = widening;
    return widening;
  }

  const room: Room<T> = {
    get current() {
      if (last === undefined) throw new StratumError("device/disposed", "the room is empty", "create another");
      return last;
    },
    run,
    widen,
    [Symbol.dispose]() {
      disposed = true;
      clear();
    },
  };
  await run(async () => undefined);
  return room;
}
