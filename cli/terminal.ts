/** stdout is data, stderr is for people: the few functions that write, and the signals that stop. */
import { SingleBar } from "cli-progress";
import { messageOf, printable, StratumError } from "../errors.ts";
import { formatCount } from "./format.ts";

export const EXIT = {
  ok: 0,
  someFailed: 1,
  usage: 2,
  environment: 3,
  hungUp: 129,
  interrupted: 130,
  /** What a shell shows of a program that SIGPIPE ends. */
  closedPipe: 141,
  terminated: 143,
} as const;

let quiet = false;

/** Whether nothing but errors is to reach stderr. */
export function isQuiet(): boolean {
  return quiet;
}

/** With `--quiet` only errors reach stderr. */
export function setQuiet(value: boolean): void {
  quiet = value;
}

/** Takes away the bar that is drawn, where one is, while something else is written. */
let aroundBar = (write: () => void): void => write();

/** A line that `--quiet` does not silence: where the work is, when it ended early. */
export function warn(line: string): void {
  aroundBar(() => process.stderr.write(`${line}\n`));
}

/** A line for people. */
export function note(line: string): void {
  if (!quiet) warn(line);
}

const STYLES = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33, cyan: 36 } as const;

/** Styles text where the stream is a terminal that wants it. */
export function styled(style: keyof typeof STYLES, text: string, stream: NodeJS.WriteStream = process.stdout): string {
  return stream.isTTY && !process.env["NO_COLOR"] && process.env["TERM"] !== "dumb"
    ? `\x1b[${STYLES[style]}m${text}\x1b[0m`
    : text;
}

/** The reader of stdout has what it wants. */
const CLOSED_PIPE = "file/closed-pipe";

/**
 * Writes an error for people: code, message, fix; no stack trace unless STRATUM_DEBUG is set. A pipe that its reader has
 * closed is told to nobody, as by other programs: `stratum rank lists.jsonl | head` ends quietly.
 */
export function reportError(thrown: unknown): void {
  if (thrown instanceof StratumError && thrown.code === CLOSED_PIPE) return;
  const red = (text: string) => styled("red", text, process.stderr);
  if (thrown instanceof StratumError) {
    process.stderr.write(`${red(`error ${thrown.code}`)}: ${thrown.message}\n  fix: ${thrown.fix}\n`);
  } else {
    process.stderr.write(
      `${red("error internal")}: ${printable(messageOf(thrown))}\n  fix: this is a defect of Stratum: please report it, with the output of STRATUM_DEBUG=1\n`,
    );
  }
  if (process.env["STRATUM_DEBUG"] && thrown instanceof Error) process.stderr.write(`${thrown.stack}\n`);
}

/** The exit code that a failure of the whole command means. */
export function exitCodeOf(thrown: unknown): number {
  if (!(thrown instanceof StratumError)) return EXIT.environment;
  if (thrown.code === CLOSED_PIPE) return EXIT.closedPipe;
  const codes = {
    usage: EXIT.usage,
    input: EXIT.someFailed,
    environment: EXIT.environment,
    internal: EXIT.environment,
  };
  return codes[thrown.kind];
}

/**
 * Writes to stdout and waits for it.
 * @throws {StratumError} `file/closed-pipe` when the reader is gone, `file/stdout` when the disk behind it is full
 */
export function writeStdout(text: string): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(text, (cause) => {
      if (!cause) return resolve();
      const gone = (cause as NodeJS.ErrnoException).code === "EPIPE";
      reject(
        gone
          ? new StratumError(
              CLOSED_PIPE,
              "the reader of stdout closed the pipe",
              "use -o FILE to keep all of it",
              cause,
            )
          : new StratumError(
              "file/stdout",
              `stdout cannot be written: ${cause.message}`,
              "check the free space behind stdout",
              cause,
            ),
      );
    });
  });
}

export interface StopSignal {
  readonly signal: AbortSignal;
  /** 130 or 143 once a signal has come. */
  exitCode(): number | undefined;
}

/** Files that are being written, under the names that they have until they are whole. */
export const unfinished = new Set<string>();

/** Ctrl-C, SIGTERM and a closed terminal: the first ends the work after the batch that is running, the second the process. */
export function stopSignal(): StopSignal {
  const controller = new AbortController();
  let code: number | undefined;
  for (const [name, exit] of [
    ["SIGINT", EXIT.interrupted],
    ["SIGTERM", EXIT.terminated],
    ["SIGHUP", EXIT.hungUp],
  ] as const) {
    process.on(name, () => {
      if (code !== undefined) {
        for (const file of unfinished) warn(`unfinished: what was done lies in ${file}`);
        process.exit(exit);
      }
      code = exit;
      note("stopping after the batch that is running (again to stop at once)");
      controller.abort();
    });
  }
  installed = { signal: controller.signal, exitCode: () => code };
  return installed;
}

let installed: StopSignal | undefined;

/** What {@link stopSignal} gave this process, if it was called. */
export function stopping(): StopSignal | undefined {
  return installed;
}

export interface TrainProgress {
  start(steps: number, done: number): void;
  step(record: { readonly step: number; readonly loss: number }): void;
  epoch(record: { readonly epoch: number; readonly validation: { readonly top1: number } | null }, best: boolean): void;
  stop(): void;
}

/** Weight of the newest loss in the one that is shown. */
const SMOOTHING = 0.1;

/** A training's progress on stderr: a bar where it is a terminal, else a line now and then. */
export function startTrainProgress(): TrainProgress {
  let smooth: number | undefined;
  let top1 = "-";
  let bar: SingleBar | undefined;
  let lastLine = performance.now();
  return {
    start(steps, done) {
      bar?.stop();
      [smooth, top1] = [undefined, "-"];
      if (quiet || !process.stderr.isTTY) return;
      bar = new SingleBar({
        stream: process.stderr,
        format: "{bar} {value}/{total} steps · loss {loss} · validation top-1 {top1} · {eta_formatted} left",
        barCompleteChar: "█",
        barIncompleteChar: "░",
        barsize: 24,
        hideCursor: true,
        clearOnComplete: true,
      });
      bar.start(steps, done, { loss: "-", top1 });
    },
    step({ step, loss }) {
      smooth = smooth === undefined ? loss : smooth + SMOOTHING * (loss - smooth);
      bar?.update(step + 1, { loss: smooth.toFixed(3), top1 });
    },
    epoch({ epoch, validation }, best) {
      if (validation !== null) top1 = `${validation.top1.toFixed(3)}${best ? " (best)" : ""}`;
      if (bar !== undefined || performance.now() - lastLine < LINE_MS) return;
      lastLine = performance.now();
      note(`epoch ${epoch + 1}: loss ${(smooth ?? 0).toFixed(3)}, validation top-1 ${top1}`);
    },
    stop: () => bar?.stop(),
  };
}

/** Between two lines of progress, where there is no terminal. */
export const LINE_MS = 10_000;

export interface Progress {
  add(lists: number, tokens: number): void;
  /** Takes the bar away while something else is written. */
  aside(write: () => void): void;
  stop(): void;
}

/**
 * Progress on stderr: a bar where it is a terminal, else a line now and then.
 * @param total items, where known
 * @param before items that were done before
 */
export function startProgress(total: number | undefined, unit: string, before = 0): Progress {
  const begin = performance.now();
  let done = before;
  let tokens = 0;
  const rates = () => {
    const seconds = (performance.now() - begin) / 1000;
    return {
      rate: `${((done - before) / seconds).toFixed(1)} ${unit}/s`,
      tokenRate: tokens > 0 ? ` · ${formatCount(Math.round(tokens / seconds))} tokens/s` : "",
    };
  };
  const shown = total === undefined ? "?" : formatCount(total);
  if (quiet || !process.stderr.isTTY) {
    let lastLine = begin;
    return {
      add(items, more) {
        done += items;
        tokens += more;
        if (quiet || performance.now() - lastLine < LINE_MS) return;
        lastLine = performance.now();
        const { rate, tokenRate } = rates();
        note(`${formatCount(done)} of ${shown} ${unit} · ${rate}${tokenRate}`);
      },
      aside: (write) => write(),
      stop: () => undefined,
    };
  }
  const bar = new SingleBar({
    stream: process.stderr,
    format: `{bar} {value}/{shown} ${unit} · {rate}{tokenRate} · {eta_formatted} left`,
    barCompleteChar: "█",
    barIncompleteChar: "░",
    barsize: 28,
    hideCursor: true,
    clearOnComplete: true,
  });
  const start = () => bar.start(total ?? 0, done, { shown, rate: "-", tokenRate: "" });
  start();
  const aside = (write: () => void) => {
    aroundBar = (inner) => inner();
    bar.stop();
    write();
    start();
    aroundBar = aside;
  };
  aroundBar = aside;
  return {
    aside,
    add(items, more) {
      done += items;
      tokens += more;
      if (total === undefined) bar.setTotal(done + 1);
      bar.update(done, rates());
    },
    stop() {
      aroundBar = (write) => write();
      bar.stop();
    },
  };
}
