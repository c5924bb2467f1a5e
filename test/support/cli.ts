/** The compiled command line as its users meet it: a process with pipes, judged by its exit code and its two streams. */
import { type ChildProcess, type StdioOptions, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type TinyModel, type TinyModelOptions, writeTinyModel } from "./tiny-model.ts";

const at = (path: string) => fileURLToPath(new URL(`../../${path}`, import.meta.url));

export const REPOSITORY = at(".");
export const MAIN = at("dist/cli/main.js");
export const DEMO_MODEL = at("weights/demo");
export const EXAMPLES = at("cli/examples/everyday.jsonl");

/** The example lists as they are written, a line each. */
export const exampleLines: readonly string[] = readFileSync(EXAMPLES, "utf8").trimEnd().split("\n");

/** Past any run of these tests on the slowest adapter: a process that is killed here hangs. */
const HANGS_MS = 100_000;

export interface CliRun {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
  readonly seconds: number;
}

export interface CliOptions {
  /** What stdin holds; nothing by default. */
  readonly stdin?: string | Uint8Array;
  readonly stdio?: StdioOptions;
  /** Runs the command below this one, as in `sh -c '...' node main.js ...`. */
  readonly below?: readonly string[];
  /** A process that lives longer hangs, and is killed. */
  readonly hangsMs?: number;
}

/** Below it a command has 200 files open at most: Node itself has more than a hundred while it loads modules. */
export const FEW_FILES = ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh"] as const;

/** A command that is under way. */
export interface CliProcess {
  readonly child: ChildProcess;
  /** What stderr holds so far. */
  stderr(): string;
  /** Waits until the process has ended and its pipes are closed. */
  readonly ended: Promise<CliRun>;
}

/** Starts a command; its stdin stays open. */
export function startStratum(
  args: readonly string[],
  { stdio = "pipe", below = [], hangsMs = HANGS_MS }: CliOptions = {},
): CliProcess {
  const begin = performance.now();
  const [command, ...rest] = [...below, process.execPath, MAIN, ...args] as [string, ...string[]];
  const child = spawn(command, rest, { stdio });
  const streams = { stdout: [] as Buffer[], stderr: [] as Buffer[] };
  const text = (name: "stdout" | "stderr") => Buffer.concat(streams[name]).toString("utf8");
  child.stdout?.on("data", (chunk: Buffer) => streams.stdout.push(chunk));
  child.stderr?.on("data", (chunk: Buffer) => streams.stderr.push(chunk));
  // A command that ends without reading its input is not at fault for it.
  child.stdin?.on("error", () => undefined);
  const timer = setTimeout(() => child.kill("SIGKILL"), hangsMs);
  const ended = new Promise<CliRun>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => {
      clearTimeout(timer);
      const seconds = (performance.now() - begin) / 1000;
      resolve({ code, stdout: text("stdout"), stderr: text("stderr"), seconds });
    });
  });
  return { child, stderr: () => text("stderr"), ended };
}

/** Runs a command to its end. */
export function stratum(args: readonly string[], options: CliOptions = {}): Promise<CliRun> {
  const { child, ended } = startStratum(args, options);
  child.stdin?.end(options.stdin);
  return ended;
}

/** The values of JSON lines; every line must hold one, and the last must be whole. */
export function jsonLines<T = Readonly<Record<string, unknown>>>(text: string): T[] {
  if (text === "") return [];
  if (!text.endsWith("\n")) throw new Error(`the last line is cut: ${text.slice(-80)}`);
  return text
    .slice(0, -1)
    .split("\n")
    .map((line) => JSON.parse(line) as T);
}

/** The last line of stderr that is an object, where `--json` puts the summary: of a stopped run a word about its output follows. */
export function lastJsonLine(stderr: string): Readonly<Record<string, unknown>> {
  return JSON.parse(stderr.split("\n").findLast((line) => line.startsWith("{")) ?? "") as Readonly<
    Record<string, unknown>
  >;
}

/** The codes of the errors that stderr names, in order. */
export function errorCodes(stderr: string): string[] {
  return [...stderr.matchAll(/^error ([a-z]+(?:\/[a-z0-9-]+)?): /gm)].map((match) => match[1] ?? "");
}

/** A temporary folder, removed on disposal. */
export interface Folder extends AsyncDisposable {
  readonly path: string;
  /** Writes a file into it. @returns its path */
  write(name: string, content: string | Uint8Array): Promise<string>;
  /** A file's text. */
  read(name: string): Promise<string>;
}

/** Makes a temporary folder. */
export async function temporaryFolder(): Promise<Folder> {
  const path = await mkdtemp(join(tmpdir(), "stratum-cli-"));
  return {
    path,
    async write(name, content) {
      const file = join(path, name);
      await writeFile(file, content);
      return file;
    },
    read: (name) => readFile(join(path, name), "utf8"),
    [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
  };
}

/** A tiny checkpoint that can read text: with the demo model's tokenizer, and its chat template in the configuration. */
export async function writeTinyTextModel(options: TinyModelOptions = {}): Promise<TinyModel> {
  const model = await writeTinyModel({ vocab: 4096, ...options });
  for (const name of ["tokenizer.json", "tokenizer_config.json"])
    await cp(join(DEMO_MODEL, name), join(model.directory, name));
  return model;
}

/** What a fast poll sees first, or an error once the patience is over. */
export async function until<T>(find: () => T | undefined | Promise<T | undefined>, what: string): Promise<T> {
  const deadline = performance.now() + HANGS_MS / 2;
  while (performance.now() < deadline) {
    const found = await find();
    if (found !== undefined) return found;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`waited in vain for ${what}`);
}
