/**
 * Tells a GPU that is slow from one that has stopped: some part of what was submitted must end within a bounded time.
 * Time is counted in ticks of the event loop, so that neither a suspended machine nor a busy host counts, nor a jump of
 * any clock.
 */
import { StratumError } from "../errors.ts";

/**
 * What every submission may take, whatever it holds; STRATUM_GPU_TIMEOUT gives another. A software adapter compiles within
 * it, and shares its cores with whatever else the machine does.
 */
export const PATIENCE_SECONDS = { software: 600, hardware: 120 } as const;

/**
 * Operations a second that the slowest adapters are granted on top: a twentieth of what SwiftShader does on one loaded
 * core, and less than a hundredth of an integrated GPU.
 */
const SLOWEST_FLOPS = { software: 1e8, hardware: 1e10 } as const;

/** Work whose end is looked at, at most: what a wait covers is cut, so that progress shows. */
const MARK_FLOPS = 5e10;

const TICK_MS = 250;

export interface WatchdogOptions {
  readonly software: boolean;
  /** Default 120, of software adapters 600. */
  readonly seconds?: number | undefined;
}

/** @throws {StratumError} `usage/gpu-timeout` */
export function patienceOf(text: string | undefined): number | undefined {
  if (text === undefined || text === "") return undefined;
  const seconds = Number(text);
  if (Number.isFinite(seconds) && seconds > 0) return seconds;
  throw new StratumError("usage/gpu-timeout", `STRATUM_GPU_TIMEOUT is '${text}'`, "give seconds, above 0");
}

interface Mark {
  readonly flops: number;
}

/** Watches one GPU device. */
export class Watchdog {
  readonly #options: WatchdogOptions;
  /** What has not ended, oldest first. */
  readonly #marks: Mark[] = [];
  readonly #waiting = new Set<(stalled: StratumError) => void>();
  #unmarked = 0;
  #ticks = 0;
  #hangs = false;
  #stalled: StratumError | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: WatchdogOptions) {
    this.#options = options;
  }

  /** What was said once nothing ended any more: whoever waits for this GPU, waits for ever. */
  get stalled(): StratumError | undefined {
    return this.#stalled;
  }

  /** From now on nothing ends, for tests. */
  hang(): void {
    this.#hangs = true;
  }

  /** Counts a submission. @param done gives the end of all that was submitted so far; asked now and then */
  submitted(flops: number, done: () => Promise<unknown>): void {
    this.#unmarked += flops;
    if (this.#unmarked >= MARK_FLOPS) this.#mark(done());
  }

  /**
   * Waits for something that ends when all that was submitted has.
   * @throws {StratumError} `device/stalled`, and what the wait ends with
   */
  async wait<T>(given: Promise<T>): Promise<T> {
    const ending = this.#hangs ? new Promise<never>(() => undefined) : given;
    this.#mark(ending);
    let stop: ((stalled: StratumError) => void) | undefined;
    const stalled = new Promise<never>((_, reject) => {
      stop = reject;
      this.#waiting.add(reject);
    });
    if (this.#timer === undefined) {
      this.#ticks = 0;
      this.#timer = setInterval(() => this.#tick(), TICK_MS);
    }
    try {
      return await Promise.race([ending, stalled]);
    } finally {
      if (stop !== undefined) this.#waiting.delete(stop);
      if (this.#waiting.size === 0) {
        clearInterval(this.#timer);
        this.#timer = undefined;
      }
    }
  }

  #mark(ending: Promise<unknown>): void {
    const mark: Mark = { flops: this.#unmarked };
    this.#unmarked = 0;
    this.#marks.push(mark);
    const ended = () => {
      this.#ticks = 0;
      this.#marks.splice(this.#marks.indexOf(mark), 1);
    };
    ending.then(ended, ended);
  }

  #tick(): void {
    this.#ticks++;
    const kind = this.#options.software ? "software" : "hardware";
    const { seconds = PATIENCE_SECONDS[kind] } = this.#options;
    const flops = this.#marks[0]?.flops ?? 0;
    const patience = seconds + flops / SLOWEST_FLOPS[kind];
    if (this.#ticks * TICK_MS < 1000 * patience) return;
    this.#stalled = new StratumError(
      "device/stalled",
      `the GPU has ended nothing of what it was given for ${Math.round(patience)} s (${flops.toExponential(1)} operations)`,
      "run the command again, on another adapter if it recurs; where the adapter is only slow, raise STRATUM_GPU_TIMEOUT (seconds)",
    );
    for (const stop of [...this.#waiting]) stop(this.#stalled);
  }
}
