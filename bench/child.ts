/** A peer in a process of its own: its Dawn, its driver and its crashes are its own. */
import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { StratumError } from "../errors.ts";
import type { Job } from "./jobs.ts";
import type { Reply, Request, RunResult, SharedAdapter } from "./protocol.ts";

/** A peer that takes part in rounds. */
export interface Peer {
  readonly name: string;
  /** @returns the adapter that it says it runs on */
  prepare(): Promise<string | null>;
  run(full: boolean): Promise<RunResult>;
  /** Ends it, whatever it is doing. */
  stop(): void;
}

export interface ChildOptions {
  readonly name: string;
  /** URL of the module. */
  readonly module: string;
  readonly job: Job;
  readonly adapter: SharedAdapter;
  /** Milliseconds that an answer may take. */
  readonly timeouts: Readonly<Record<Request["call"], number>>;
}

const SERVE = fileURLToPath(new URL("serve.ts", import.meta.url));

/** What a process printed last, for the message about its end. */
const TAIL = 2000;

/**
 * A peer whose process starts with `prepare`.
 *
 * Its calls throw `device/peer-failed` (what it answered), `device/peer-ended` (it crashed) and `device/peer-timeout`; after
 * the latter two it is gone.
 */
export function childPeer({ name, module, job, adapter, timeouts }: ChildOptions): Peer {
  let child: ReturnType<typeof fork> | undefined;
  let tail = "";

  function start() {
    const drivers = adapter.manifest === null ? {} : driverVariables(adapter.manifest);
    const started = fork(SERVE, [module], {
      execArgv: ["--import", import.meta.resolve("tsx")],
      env: { ...process.env, ...drivers },
      serialization: "advanced",
      stdio: ["ignore", "pipe", "pipe", "ipc"],
    });
    for (const stream of [started.stdout, started.stderr]) {
      stream?.on("data", (chunk) => {
        tail = (tail + chunk).slice(-TAIL);
      });
    }
    return started;
  }

  function ask(request: Request): Promise<Exclude<Reply, { error: string }>> {
    child ??= start();
    const process = child;
    const timeout = timeouts[request.call];
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        settle(() => {
          process.kill("SIGKILL");
          reject(timeoutError(name, request, timeout));
        });
      }, timeout);
      const settle = (then: () => void) => {
        clearTimeout(timer);
        process.off("message", onMessage).off("close", onClose).off("error", onError);
        then();
      };
      const onMessage = (message: unknown) => {
        const reply = message as Reply;
        settle(() => ("error" in reply ? reject(failedError(name, reply)) : resolve(reply)));
      };
      const onClose = (code: number | null, signal: string | null) =>
        settle(() => reject(endedError(name, request, signal ?? `exit ${code}`, tail)));
      const onError = (cause: Error) => settle(() => reject(endedError(name, request, cause.message, tail)));
      process.on("message", onMessage).on("close", onClose).on("error", onError);
      process.send(request);
    });
  }

  return {
    name,
    async prepare() {
      const reply = await ask({ call: "prepare", job, adapter });
      return "adapter" in reply ? reply.adapter : null;
    },
    async run(full) {
      const reply = await ask({ call: "run", full });
      if ("result" in reply) return reply.result;
      throw failedError(name, { error: `it answered ${JSON.stringify(reply)}`, fix: null });
    },
    stop() {
      child?.kill("SIGKILL");
    },
  };
}

/** Makes the Vulkan loader read one manifest alone, under the variable's new and its old name. */
export function driverVariables(manifest: string): Record<string, string> {
  return { VK_DRIVER_FILES: manifest, VK_ICD_FILENAMES: manifest };
}

function failedError(name: string, { error, fix }: { error: string; fix: string | null }): StratumError {
  return new StratumError("device/peer-failed", `${name}: ${error}`, fix ?? "leave it out with --peers");
}

function endedError(name: string, { call }: Request, how: string, tail: string): StratumError {
  const said = tail.trim().split("\n").slice(-3).join("; ");
  return new StratumError(
    "device/peer-ended",
    `${name}: its process ended in ${call} (${how})${said === "" ? "" : `: ${said}`}`,
    "run it alone with --peers to see whether it recurs",
  );
}

function timeoutError(name: string, { call }: Request, timeout: number): StratumError {
  return new StratumError(
    "device/peer-timeout",
    `${name}: no answer to ${call} within ${timeout / 1000} s`,
    "raise --timeout, or give a smaller job",
  );
}
