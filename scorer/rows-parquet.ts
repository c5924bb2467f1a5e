/** Rows of a Parquet file, a row group at a time, of the asked-for columns alone; read by a process that may be lost. */
import { type ChildProcess, fork } from "node:child_process";
import { access, constants } from "node:fs/promises";
import { totalmem } from "node:os";
import { fileURLToPath } from "node:url";
import { messageOf, StratumError } from "../errors.ts";
import { clip, statRegular } from "../weights/json.ts";
import type { ParquetReply, ParquetRequest } from "./parquet-process.ts";
import type { RowItem, RowSource } from "./rows.ts";

/** What reading a file may take. */
export interface ParquetLimits {
  /** Milliseconds for one answer: a row group's rows, at most. */
  readonly ms: number;
  /** Bytes of the process that reads. */
  readonly bytes: number;
}

/** Of the source, the source: tests run it as it is. */
const [EXTENSION, LOADER] = import.meta.url.endsWith(".ts") ? [".ts", ["--import", "tsx"]] : [".js", []];
const MODULE = fileURLToPath(new URL(`./parquet-process${EXTENSION}`, import.meta.url));

/** A process that holds more after a file is not used for the next. */
const MOST_IDLE_BYTES = 2 ** 28;

/** What a file of this size can need at the worst: it grows when it is unpacked, and again as rows of JavaScript. */
function limitsOf(size: number): ParquetLimits {
  const memory = Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY);
  return { ms: 60_000 + size / 1000, bytes: Math.min(2 ** 30 + 32 * size, memory / 2) };
}

/** A process that reads one file after another. */
interface Reader {
  /** @throws {Error} how the process ended; `file/unreadable` where none could be started */
  ask(request: ParquetRequest, ms: number): Promise<ParquetReply>;
  readonly ended: boolean;
  end(): void;
}

/** Waits for the next file. */
let idle: Reader | null = null;

/** @throws StratumError `usage/no-input`, `file/not-a-file`, `file/unreadable`, `list/bad-parquet`, `list/empty-file` */
export async function openParquet(path: string, given?: ParquetLimits): Promise<RowSource> {
  const size = await readableSize(path);
  const limits = given ?? limitsOf(size);
  const reader = idle?.ended === false ? idle : startReader();
  idle = null;
  let inUse = true;
  const release = (bytes: number) => {
    inUse = false;
    if (idle === null && bytes <= MOST_IDLE_BYTES) idle = reader;
    else reader.end();
  };
  const ask = async <Call extends ParquetRequest["call"]>(request: ParquetRequest & { readonly call: Call }) => {
    const reply = await reader.ask(request, limits.ms).catch((cause: unknown) => {
      throw cause instanceof StratumError ? cause : badParquet(path, messageOf(cause));
    });
    if (reply.call !== "failed") return reply as ParquetReply & { readonly call: Call };
    release(reply.bytes);
    throw badParquet(path, reply.message);
  };
  const { total, names } = await ask({ call: "open", path, mostBytes: limits.bytes });
  if (total === 0) {
    release((await ask({ call: "close" })).bytes);
    throw new StratumError("list/empty-file", `${path} holds no rows`, "give a file with at least one row");
  }
  return {
    ...{ format: "parquet", total, names },
    async *rows(columns): AsyncGenerator<RowItem> {
      let done = 0;
      try {
        let coming = ask({ call: "next", columns });
        for (;;) {
          const { rows } = await coming;
          if (rows.length === 0) break;
          // The next ones are read while these are used.
          coming = ask({ call: "next", columns });
          coming.catch(() => undefined);
          for (const fields of rows) yield { place: `row ${++done}`, fields };
        }
        release((await ask({ call: "close" })).bytes);
      } finally {
        // Whoever stops early has no use for the rest of a row group.
        if (inUse) reader.end();
      }
    },
  };
}

function badParquet(path: string, why: string): StratumError {
  return new StratumError(
    "list/bad-parquet",
    `${path} cannot be read as Parquet: ${clip(why)}`,
    "check that the file is whole, and not encrypted",
  );
}

/** @throws StratumError `usage/no-input`, `file/not-a-file` */
async function readableSize(path: string): Promise<number> {
  try {
    const { size } = await statRegular(path);
    await access(path, constants.R_OK);
    return size;
  } catch (cause) {
    if (cause instanceof StratumError) throw cause;
    const what = `cannot read ${path}: ${messageOf(cause)}`;
    throw new StratumError("usage/no-input", what, "check the path of the input file", cause);
  }
}

function startReader(): Reader {
  const child = fork(MODULE, {
    ...{ execArgv: LOADER, serialization: "advanced" },
    stdio: ["ignore", "ignore", "ignore", "ipc"],
  });
  let end: Error | null = null;
  let waiting: { done(reply: ParquetReply): void; failed(cause: Error): void } | null = null;
  const ended = (how: Error) => {
    end ??= how;
    waiting?.failed(end);
  };
  child.on("message", (reply: ParquetReply) => waiting?.done(reply));
  child.on("error", (cause) =>
    ended(
      new StratumError(
        "file/unreadable",
        `there is no process to read Parquet with: ${messageOf(cause)}`,
        "free memory and processes, then run the command again",
        cause,
      ),
    ),
  );
  child.on("exit", (code, signal) =>
    ended(
      new Error(
        signal === "SIGKILL"
          ? "it takes more memory than a file of its size should"
          : `it ended the process that read it (${signal ?? `exit ${code}`})`,
      ),
    ),
  );
  hold(child, false);
  const kill = (why: string) => {
    ended(new Error(why));
    child.kill("SIGKILL");
  };
  return {
    get ended() {
      return end !== null;
    },
    end: () => kill("it is read no more"),
    async ask(request, ms) {
      if (end !== null) throw end;
      hold(child, true);
      const timer = setTimeout(() => kill(`a part of it was not read within ${Math.ceil(ms / 1000)} s`), ms);
      try {
        return await new Promise<ParquetReply>((resolve, reject) => {
          waiting = { done: resolve, failed: reject };
          child.send(request);
        });
      } finally {
        waiting = null;
        clearTimeout(timer);
        hold(child, false);
      }
    },
  };
}

/** Whether this process waits for another one with its own end. */
function hold(child: ChildProcess, held: boolean): void {
  for (const each of [child, child.channel]) {
    if (held) each?.ref();
    else each?.unref();
  }
}
